import hashlib
import json

import pytest

from edge.errors import ConfigError, IntegrityError, LoadError
from edge_sync.hub import models
from edge_sync.trust.assignment import model_path
from edge_sync.wire import CHUNK_BYTES, ModelIndex

WEIGHTS = bytes(range(256)) * (CHUNK_BYTES // 256) + b"the last piece"


def manifest(weights, *, name="spotter"):
    file = {
        "path": "weights/model.onnx",
        "role": "weights",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": len(weights),
    }
    return {
        "name": name,
        "kind": "encoder",
        "engine": "onnx",
        "licence": "Apache-2.0",
        "files": [file],
    }


def write(folder, weights=WEIGHTS, **values):
    (folder / "weights").mkdir(parents=True)
    (folder / "weights/model.onnx").write_bytes(weights)
    (folder / "manifest.json").write_text(json.dumps(manifest(weights, **values)))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "spotter")


def test_a_model_is_copied_and_vouched_for_piece_by_piece(hub, folder, dump):
    made = models.add(hub, folder, who="ann")
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert (made.name, made.digest, made.files) == ("spotter", digest, 2)
    copied = hub.models_folder / "spotter" / digest
    assert (copied / "weights/model.onnx").read_bytes() == WEIGHTS
    index = ModelIndex.model_validate_json(dump()["models"][0].files)
    assert [file.path for file in index.files] == ["manifest.json", "weights/model.onnx"]
    assert index.files[1].chunks == [
        hashlib.sha256(piece).hexdigest()
        for piece in (WEIGHTS[:CHUNK_BYTES], WEIGHTS[CHUNK_BYTES:])
    ]
    signed = hub.repository.targets.signed.targets[model_path("spotter", digest)]
    signed.verify_length_and_hashes(dump()["models"][0].files.encode())
    assert models.verify(hub, made) == []


def test_an_assigned_model_is_in_the_assignment_and_stays(hub, folder, publish, fetched, dump):
    made = models.add(hub, folder, who="ann")
    publish(f"models: {{spotter: {{digest: {made.digest}}}}}\n", at_once=["lab"])
    assert fetched("0" * 32, "lab").assignment.models["spotter"].digest == made.digest
    assert models.find(hub, "spotter").revisions == (1,)
    before = dump()
    with pytest.raises(ConfigError, match="named by policy 1"):
        models.remove(hub, made, who="ann")
    assert dump() == before
    assert models.verify(hub, made) == []


def test_a_model_under_another_name_is_not_it(hub, folder, publish):
    made = models.add(hub, folder, who="ann")
    with pytest.raises(ConfigError, match="does not have"):
        publish(f"models: {{other: {{digest: {made.digest}}}}}\n")


def test_two_versions_are_told_apart_by_digest(hub, folder, tmp_path, clock):
    old = models.add(hub, folder, who="ann")
    clock.at += 60
    new = models.add(hub, write(tmp_path / "new", b"newer"), who="ann")
    assert [each.digest for each in models.list_models(hub)] == [new.digest, old.digest]
    assert models.find(hub, "spotter", new.digest[:8]).digest == new.digest
    with pytest.raises(ConfigError, match="more than one model spotter"):
        models.find(hub, "spotter")
    models.remove(hub, old, who="ann")
    assert models.find(hub, "spotter").digest == new.digest
    assert not models.place(hub, "spotter", old.digest).exists()
    assert models.verify(hub, new) == []
    models.remove(hub, new, who="ann")
    assert list(hub.models_folder.iterdir()) == []
    assert not hub.repository.targets.signed.targets


def flipped(folder):
    path = folder / "weights/model.onnx"
    path.write_bytes(b"X" + path.read_bytes()[1:])


def truncated(folder):
    path = folder / "weights/model.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def missing(folder):
    (folder / "weights/model.onnx").unlink()


def leaving(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("weights/model.onnx", "../secret"))


def linked(folder):
    (folder.parent / "outside").write_bytes(WEIGHTS)
    (folder / "weights/model.onnx").unlink()
    (folder / "weights/model.onnx").symlink_to(folder.parent / "outside")


def broken(folder):
    (folder / "manifest.json").write_text("{")


def without(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (flipped, IntegrityError),
        (truncated, LoadError),
        (missing, LoadError),
        (leaving, LoadError),
        (linked, LoadError),
        (broken, LoadError),
        (without, ConfigError),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(hub, folder, dump, spoil, error):
    spoil(folder)
    before = dump()
    with pytest.raises(error):
        models.add(hub, folder, who="ann")
    assert dump() == before
    assert list(hub.models_folder.iterdir()) == []


def test_the_same_model_twice_is_refused(hub, folder, dump):
    made = models.add(hub, folder, who="ann")
    before = dump()
    with pytest.raises(ConfigError, match="already"):
        models.add(hub, folder, who="ann")
    assert dump() == before
    assert models.verify(hub, made) == []


def test_damage_on_the_hub_is_found(hub, folder):
    made = models.add(hub, folder, who="ann")
    copied = models.place(hub, made.name, made.digest)
    (copied / "weights/model.onnx").write_bytes(b"else")
    (copied / "manifest.json").unlink()
    told = models.verify(hub, made)
    assert len(told) == 2
    assert "cannot be read" in told[0]
    assert "4 bytes" in told[1]


def test_what_an_attempt_left_is_replaced(hub, folder):
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    place = models.place(hub, "spotter", digest)
    place.mkdir(parents=True)
    (place / "half").write_bytes(b"")
    made = models.add(hub, folder, who="ann")
    assert models.verify(hub, made) == []
    assert not (place / "half").exists()
