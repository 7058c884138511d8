"""Tasks against the models they name, from manifests alone."""

import hashlib
import json

import pytest

import edge
from edge.config import assigned_folder
from edge.errors import ConfigError, IntegrityError, LoadError
from edge.pack import load_pack
from edge.roster import all_tasks, check_models, model_store

TEMPLATE = {"p": {"version": 1, "template": "{text}"}}


def model_of(folder, name, kind, **changes):
    """Write a model whose weights are a few bytes; nothing loads them."""
    folder.mkdir(parents=True)
    raw = name.encode()
    (folder / "weights").write_bytes(raw)
    engine = {"head": "head", "encoder": "onnx", "decoder": "llamacpp"}[kind]
    digest = hashlib.sha256(raw).hexdigest()
    manifest = {
        "name": name,
        "kind": kind,
        "engine": engine,
        "licence": "none",
        "files": [{"path": "weights", "role": "weights", "sha256": digest, "bytes": len(raw)}],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes), "utf-8")


def pack_of(folder, tasks, models=()):
    path = folder / "shop.yaml"
    document = {
        "name": "shop",
        "version": 1,
        "models": {name: {"folder": where} for name, where in dict(models).items()},
        "prompts": TEMPLATE,
        "tasks": tasks,
    }
    path.write_text(json.dumps(document), "utf-8")
    return path


def fit(path, state):
    pack = load_pack(path)
    tasks, store = all_tasks(pack, state), model_store(pack, state)
    check_models(tasks, store)
    return tasks


def task(kind, model):
    extra = {"output_schema": {"type": "object"}} if kind == "extract" else {}
    prompt = {"prompt": "p"} if kind in {"extract", "generate"} else {}
    return {"kind": kind, "model": model, **prompt, **extra}


@pytest.mark.parametrize(
    ("kind", "fits"),
    [("classify", "head"), ("embed", "encoder"), ("extract", "decoder"), ("generate", "decoder")],
)
def test_each_kind_of_task_takes_one_kind_of_model(tmp_path, kind, fits):
    shipped = {"head": "sms-spam-head", "encoder": "minilm-l6-int8", "decoder": "actions-q8_0"}
    assert set(fit(pack_of(tmp_path, {"mood": task(kind, shipped[fits])}), tmp_path)) == {"mood"}
    for other in shipped.keys() - {fits}:
        told = f"mood of kind {kind} needs .* kind {fits}, but {shipped[other]} is of kind {other}"
        with pytest.raises(ConfigError, match=told) as caught:
            fit(pack_of(tmp_path, {"mood": task(kind, shipped[other])}), tmp_path)
        assert shipped[fits] in caught.value.hint


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({}, "mood of kind classify needs a model of kind head, but there is no model 'mine'"),
        ({"mine": "nowhere"}, "mine of pack shop is not in .*nowhere"),
        ({"mine": "other"}, "mine of pack shop is called 'other' in "),
        ({"mine": "mine", "sms-spam-head": "spam"}, "sms-spam-head of pack shop has the name of"),
        ({"mine": "mine"}, "head mine of task mood needs .* encoder, but there is no model 'gone'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, models, words):
    encoder = {"name": "gone", "sha256": "0" * 64}
    model_of(tmp_path / "mine", "mine", "head", encoder=encoder)
    model_of(tmp_path / "other", "other", "head", encoder=encoder)
    model_of(tmp_path / "spam", "sms-spam-head", "head", encoder=encoder)
    path = pack_of(tmp_path, {"mood": task("classify", "mine")}, models)
    with pytest.raises(ConfigError, match=words):
        fit(path, tmp_path / "state")
    with pytest.raises(ConfigError, match=words):
        edge.open(path, state=tmp_path / "state", offline=True)
    assert not (tmp_path / "state").exists()


def test_a_model_of_the_pack_may_lie_in_a_folder_of_any_name(tmp_path):
    model_of(tmp_path / "build-7", "mine", "decoder")
    models = {"mine": "build-7"}
    assert fit(pack_of(tmp_path, {"say": task("generate", "mine")}, models), tmp_path)


def test_a_task_without_a_model_needs_none(tmp_path):
    assert fit(pack_of(tmp_path, {"mood": {"kind": "classify"}}), tmp_path)


def test_a_task_of_the_state_folder_is_checked_too(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "topic.yaml").write_text("{kind: classify, model: topic-head}", "utf-8")
    path = pack_of(tmp_path, {"mood": {"kind": "classify"}})
    with pytest.raises(ConfigError, match=r"Task topic .* 'topic-head'"):
        fit(path, tmp_path)


def test_a_broken_manifest_is_named_and_others_do_no_harm(tmp_path):
    model_of(tmp_path / "models" / "mine", "mine", "decoder", engine="?")
    path = pack_of(tmp_path, {"mood": task("classify", "sms-spam-head")})
    assert fit(path, tmp_path)
    with pytest.raises(ConfigError, match="'gone'"):
        fit(pack_of(tmp_path, {"say": task("generate", "gone")}), tmp_path)
    with pytest.raises(LoadError, match="mine"):
        fit(pack_of(tmp_path, {"say": task("generate", "mine")}), tmp_path)


def assigned(state, name, **changes):
    """Put a model where the fleet's agent puts it, and return its digest."""
    model_of(state / "fetched", name, "decoder", **changes)
    raw = (state / "fetched" / "manifest.json").read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    (state / "fetched").rename(assigned_folder(state, name, digest))
    return digest


def assigning(folder, name, digest):
    path = folder / "shop.yaml"
    document = {"name": "shop", "version": 1, "models": {name: {"digest": digest}}, "tasks": {}}
    path.write_text(json.dumps(document), "utf-8")
    return load_pack(path)


def test_an_assigned_model_is_taken_by_its_digest_and_before_a_shipped_one(tmp_path):
    (tmp_path / "models").mkdir()
    for name in ("mine", "actions-q8_0"):
        old, new = (assigned(tmp_path, name, description=text) for text in ("old", "new"))
        for digest, text in ((old, "old"), (new, "new")):
            store = model_store(assigning(tmp_path, name, digest), tmp_path)
            assert store.manifest(name).description == text
            assert store.names().count(name) == 1
            assert not [each for each in store.names() if "@" in each]


@pytest.mark.parametrize(
    ("break_it", "error", "words"),
    [
        (lambda manifest: manifest.unlink(), ConfigError, "mine .* is not on this device yet"),
        (lambda manifest: manifest.write_text("{}"), IntegrityError, "mine .* not the assigned"),
    ],
)
def test_an_assigned_model_that_is_not_that_model(tmp_path, break_it, error, words):
    (tmp_path / "models").mkdir()
    digest = assigned(tmp_path, "mine")
    break_it(assigned_folder(tmp_path, "mine", digest) / "manifest.json")
    with pytest.raises(error, match=words):
        model_store(assigning(tmp_path, "mine", digest), tmp_path)


def test_an_assigned_model_of_another_name(tmp_path):
    (tmp_path / "models").mkdir()
    digest = assigned(tmp_path, "mine")
    folder = assigned_folder(tmp_path, "mine", digest)
    folder.rename(assigned_folder(tmp_path, "yours", digest))
    with pytest.raises(ConfigError, match=r"yours .* calls itself 'mine'"):
        model_store(assigning(tmp_path, "yours", digest), tmp_path)


def test_a_default_model_must_be_one(tmp_path):
    path = tmp_path / "shop.yaml"
    path.write_text("{name: shop, version: 1, routing: {default_model: gone}, tasks: {}}", "utf-8")
    with pytest.raises(ConfigError, match="default model of pack shop is 'gone', but there is no"):
        model_store(load_pack(path), tmp_path)
