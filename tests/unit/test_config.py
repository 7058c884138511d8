"""Folders and switches from arguments and environment."""

import errno
from pathlib import Path

import pytest

from edge.confidence.calibration import Calibration
from edge.config import is_offline, models_folder, state_folder
from edge.errors import ConfigError, LoadError, StoreError
from edge.loading import Loader
from edge.pack import find_pack, load_pack
from edge.roster import all_tasks
from edge.store.db import open_database, translated
from edge.store.weights import Manifest


def test_the_state_folder_by_argument_then_environment_then_platform(tmp_path):
    assert state_folder(tmp_path, {"EDGE_STATE": "elsewhere"}) == tmp_path
    assert state_folder(None, {"EDGE_STATE": str(tmp_path)}) == tmp_path
    assert state_folder(None, {"XDG_STATE_HOME": str(tmp_path)}).name == "edge"
    assert state_folder("relative", {}) == Path("relative").absolute()


@pytest.mark.parametrize("told", ["~nouser/x", "a\0b", "\udcff", "x/\ud800", "a" * 5000])
def test_a_state_folder_that_cannot_be(told):
    for argument, environment in ((told, {}), (None, {"EDGE_STATE": told})):
        with pytest.raises(ConfigError, match=r"state folder .* cannot be one: ") as caught:
            state_folder(argument, environment)
        assert len(str(caught.value)) < 250
        assert str(caught.value).isprintable()


def test_an_empty_state_folder_is_not_the_current_one():
    with pytest.raises(ConfigError, match="state folder is empty"):
        state_folder("", {})


def test_a_state_folder_too_long_for_what_lies_in_it(tmp_path):
    name = "/abcdefg" * 600
    long = Path(str(tmp_path) + name[: 4090 - len(str(tmp_path))])
    assert state_folder(long, {}) == long
    with pytest.raises(StoreError, match="cannot be read"):
        all_tasks(load_pack(find_pack("kiosk")), long)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_cannot_be_written_has_one_remedy(tmp_path, code):
    with pytest.raises(StoreError) as caught, translated(tmp_path):
        raise OSError(code, "no")
    assert caught.value.hint == "Make the state folder writable."


def test_a_closed_state_file_says_that_the_runtime_is_closed(tmp_path):
    database = open_database(tmp_path / "x.db", durable=True)
    database.close()
    database.close()
    with pytest.raises(StoreError, match=r"the runtime is closed\. Open the runtime again"):
        database.query("SELECT 1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "it lacks key, features, mean"),
        ("[]", "it lacks key, features"),
        ('{"key": {}, "features": []}', "it lacks mean, scale"),
        ("{", "Expecting"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_calibration_file_that_is_none(tmp_path, text, words):
    path = tmp_path / "calibration.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=f"calibration.json cannot be used: .*{words}"):
        Calibration.load(path)


@pytest.mark.parametrize("buckets", [5, "64", ["64"], [True], {"a": 1}, None])
def test_a_manifest_whose_buckets_are_none(buckets):
    files = [{"path": "m.onnx", "role": "weights", "sha256": "0" * 64, "bytes": 1}]
    manifest = Manifest.model_validate(
        {"name": "m", "kind": "encoder", "engine": "onnx", "licence": "MIT", "files": files}
        | {"facts": {"buckets": buckets}}
    )

    class Store:
        def manifest(self, _name):
            return manifest

        def path(self, *_):
            return Path("m.onnx")

    with pytest.raises(LoadError, match="manifest of model m has the buckets"):
        Loader(Store()).encoder("m")


@pytest.mark.parametrize(
    ("argument", "environment", "wanted"),
    [
        (None, "", False),
        (None, "1", True),
        (False, "1", False),
        (True, "", True),
        (True, "maybe", True),
        *((None, word, True) for word in ("true", "True", "YES", "on", " 1 ")),
        *((None, word, False) for word in ("0", "false", "No", "OFF", " ")),
    ],
)
def test_offline(argument, environment, wanted):
    assert is_offline(argument, {"EDGE_OFFLINE": environment}) is wanted


@pytest.mark.parametrize("word", ["2", "maybe", "offline", "y"])
def test_a_switch_that_says_neither_yes_nor_no_is_named(word):
    with pytest.raises(ConfigError, match=f"EDGE_OFFLINE is '{word}'"):
        is_offline(None, {"EDGE_OFFLINE": word})


def test_the_models_are_found():
    assert (models_folder() / "packs" / "kiosk.yaml").is_file()
