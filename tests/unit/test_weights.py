"""The model store hands out checked files only."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from edge.errors import ConfigError, IntegrityError, LoadError
from edge.store.weights import ModelStore


def listed(path: Path, role: str = "weights") -> dict[str, object]:
    data = path.read_bytes()
    return {
        "path": path.name,
        "role": role,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
    }


def make_model(folder: Path, name: str = "small", **changes: object) -> Path:
    home = folder / name
    home.mkdir(parents=True)
    (home / "w.gguf").write_bytes(b"weights of " + name.encode())
    (home / "t.json").write_text("{}")
    manifest = {
        "name": name,
        "kind": "decoder",
        "engine": "llamacpp",
        "licence": "Apache-2.0",
        "context": 512,
        "files": [listed(home / "w.gguf"), listed(home / "t.json", "tokenizer")],
        **changes,
    }
    (home / "manifest.json").write_text(json.dumps(manifest))
    return home


def test_names_and_paths(tmp_path):
    home = make_model(tmp_path / "shipped")
    own = make_model(tmp_path / "packs", "own")
    (tmp_path / "shipped" / "recipes").mkdir()
    store = ModelStore(tmp_path / "shipped", [own, tmp_path / "missing"])
    assert store.names() == ["own", "small"]
    assert store.path("small") == home / "w.gguf"
    assert store.path("small", role="tokenizer") == home / "t.json"
    assert store.path("own") == own / "w.gguf"
    manifest = store.manifest("small")
    assert manifest.folder == home
    assert manifest.digest == hashlib.sha256(b"weights of small").hexdigest()
    assert manifest.context == 512
    assert store.verify("small") == []


def test_an_extra_folder_does_not_replace_a_shipped_model(tmp_path):
    home = make_model(tmp_path / "shipped")
    make_model(tmp_path / "extra")
    assert ModelStore(tmp_path / "shipped", [tmp_path / "extra"]).path("small").parent == home


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    make_model(tmp_path)
    with pytest.raises(ConfigError, match="no model 'big'; known models: small"):
        ModelStore(tmp_path).path("big")


def test_a_model_added_later_is_found(tmp_path):
    store = ModelStore(tmp_path)
    assert store.names() == []
    make_model(tmp_path)
    assert store.path("small").name == "w.gguf"


def test_a_role_that_is_not_there(tmp_path):
    make_model(tmp_path)
    with pytest.raises(LoadError, match="no file with the role 'schema'"):
        ModelStore(tmp_path).path("small", role="schema")


def damaged_missing(file: Path) -> None:
    file.unlink()


def damaged_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def damaged_long(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"!")


def damaged_flipped(file: Path) -> None:
    file.write_bytes(b"W" + file.read_bytes()[1:])


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (damaged_missing, LoadError, "cannot be read"),
        (damaged_short, LoadError, "truncated"),
        (damaged_long, LoadError, "not the file that was listed"),
        (damaged_flipped, IntegrityError, "has the sha256"),
    ],
)
def test_a_damaged_file_is_not_handed_out(tmp_path, damage, error, words):
    home = make_model(tmp_path)
    damage(home / "w.gguf")
    store = ModelStore(tmp_path)
    with pytest.raises(error, match=words):
        store.path("small")
    assert store.path("small", role="tokenizer").name == "t.json"
    problems = store.verify("small")
    assert [problem.file for problem in problems] == ["w.gguf"]
    assert words in str(problems[0])


def test_a_file_damaged_after_the_first_use_is_noticed(tmp_path):
    home = make_model(tmp_path)
    store = ModelStore(tmp_path)
    before = store.path("small").stat()
    damaged_flipped(home / "w.gguf")
    os.utime(home / "w.gguf", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(IntegrityError):
        store.path("small")


def test_verify_does_not_trust_the_cache(tmp_path):
    home = make_model(tmp_path)
    store = ModelStore(tmp_path)
    before = store.path("small").stat()
    with (home / "w.gguf").open("r+b") as file:
        file.write(b"W")
    os.utime(home / "w.gguf", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [problem.file for problem in store.verify("small")] == ["w.gguf"]


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../b", "..\\b", "C:\\b", "a\0b"]
)
def test_a_path_out_of_the_folder_is_refused(tmp_path, path):
    entry = {"path": path, "role": "weights", "sha256": "0" * 64, "bytes": 1}
    make_model(tmp_path, files=[entry])
    with pytest.raises(LoadError, match="must be relative and stay inside"):
        ModelStore(tmp_path).path("small")


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    home = make_model(tmp_path / "models")
    outside = tmp_path / "outside"
    outside.write_bytes((home / "w.gguf").read_bytes())
    (home / "w.gguf").unlink()
    (home / "w.gguf").symlink_to(outside)
    with pytest.raises(LoadError, match="link out of"):
        ModelStore(tmp_path / "models").path("small")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, "colour"),
        ({"kind": "oracle"}, "kind"),
        ({"kind": "head", "engine": "head"}, "names its encoder"),
        ({"files": []}, "files"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, changes, words):
    make_model(tmp_path, **changes)
    with pytest.raises(LoadError, match=words):
        ModelStore(tmp_path).manifest("small")


def test_a_manifest_of_another_name_is_refused(tmp_path):
    make_model(tmp_path).rename(tmp_path / "renamed")
    with pytest.raises(LoadError, match="is of 'small', not of 'renamed'"):
        ModelStore(tmp_path).manifest("renamed")


def test_a_broken_manifest_does_not_hide_the_others(tmp_path):
    make_model(tmp_path)
    broken = make_model(tmp_path, "broken")
    (broken / "manifest.json").write_text("{")
    store = ModelStore(tmp_path)
    assert store.path("small").name == "w.gguf"
    with pytest.raises(LoadError, match="not valid"):
        store.manifest("broken")


def test_the_shipped_manifests_are_valid():
    folder = Path(__file__).resolve().parents[2] / "models"
    store = ModelStore(folder)
    assert [problem for name in store.names() for problem in store.verify(name)] == []
