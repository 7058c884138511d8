"""Fetching models: piece by piece, resumed, from mirrors first; wrong bytes never count."""

import errno
import hashlib
import json
import shutil

import httpx
import pytest

from edge.errors import HubDistrusted, HubUnreachable, IntegrityError, SignatureInvalid, StoreError
from edge_sync.agent import models
from edge_sync.agent.activation import Change
from edge_sync.agent.exchange import HubRefused
from edge_sync.agent.models import Shelf, read_index
from edge_sync.wire import CHUNK_BYTES

WEIGHTS = bytes(range(256)) * (CHUNK_BYTES // 256) * 2 + b"tail"


def make_model(folder, *, weights=WEIGHTS, kind="decoder", name="words"):
    folder.mkdir(parents=True)
    (folder / "weights.gguf").write_bytes(weights)
    manifest = {
        "name": name,
        "kind": kind,
        "engine": "llamacpp",
        "licence": "Apache-2.0",
        "files": [
            {
                "path": "weights.gguf",
                "role": "weights",
                "sha256": hashlib.sha256(weights).hexdigest(),
                "bytes": len(weights),
            }
        ],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def model(hub, tmp_path):
    """A model of three pieces on the hub; its name and digest."""
    return hub.add_model(make_model(tmp_path / "words"))


def assign(hub, model):
    name, digest = model
    return hub.publish(f"models: {{{name}: {{digest: '{digest}'}}}}", models={name: digest})


def fetched(hub):
    return [
        request.headers.get("Range", "whole")
        for request in hub.requests
        if request.url.path.endswith("weights.gguf")
    ]


def cut_after(count):
    """Cut a download after some bytes."""

    class Stream(httpx.AsyncByteStream):
        async def __aiter__(self):
            yield WEIGHTS[:count]
            raise httpx.ReadError("cut")

    return lambda request: httpx.Response(200, stream=Stream())


def place(hub, model):
    return f"/v1/models/{model[0]}/{model[1]}/weights.gguf"


def test_an_assigned_model_is_here_whole_before_the_policy_is_in_force(device, hub, model):
    assign(hub, model)
    assert device.sync().change is Change.ACTIVATED
    folder = Shelf(device.state).folder(*model)
    assert folder.name == f"words@{model[1][:12]}"
    assert (folder / "weights.gguf").read_bytes() == WEIGHTS
    device.sync()
    assert hub.seen[-1].models == {"words": model[1]}


def test_a_cut_download_goes_on_at_the_last_whole_piece(device, hub, model, opened):
    assign(hub, model)
    hub.faults[place(hub, model)] = cut_after(CHUNK_BYTES + 5)
    with pytest.raises(HubUnreachable, match="cut"):
        device.sync()
    assert device.policies.active() is None
    assert not Shelf(device.state).has(*model)
    hub.faults.clear()
    assert opened().sync().change is Change.ACTIVATED
    assert fetched(hub) == ["whole", f"bytes={CHUNK_BYTES}-"]


def test_a_source_that_knows_no_ranges_is_read_from_the_start(device, hub, model):
    assign(hub, model)
    hub.faults[place(hub, model)] = cut_after(CHUNK_BYTES)
    with pytest.raises(HubUnreachable):
        device.sync()
    hub.faults[place(hub, model)] = lambda request: httpx.Response(200, content=WEIGHTS)
    assert device.sync().change is Change.ACTIVATED


def test_wrong_bytes_are_never_kept(device, hub, model):
    assign(hub, model)
    wrong = bytearray(WEIGHTS)
    wrong[CHUNK_BYTES + 7] ^= 1
    hub.faults[place(hub, model)] = lambda request: httpx.Response(200, content=bytes(wrong))
    with pytest.raises(IntegrityError, match="Piece 1"):
        device.sync()
    assert not Shelf(device.state).has(*model)
    part = next((device.state / "models" / ".part").rglob("weights.gguf"))
    assert part.read_bytes() == WEIGHTS[:CHUNK_BYTES]
    hub.faults.clear()
    assert device.sync().change is Change.ACTIVATED


def test_more_bytes_than_signed_are_refused(device, hub, model):
    assign(hub, model)
    hub.faults[place(hub, model)] = lambda request: httpx.Response(200, content=WEIGHTS + b"x")
    with pytest.raises(IntegrityError, match="longer"):
        device.sync()


def test_a_mirror_is_asked_first_without_the_token_and_the_hub_helps_out(opened, hub, model):
    wrong = WEIGHTS[:CHUNK_BYTES] + bytes(len(WEIGHTS) - CHUNK_BYTES)
    name, digest = model
    hub.mirror[f"{name}/{digest}/weights.gguf"] = wrong
    device = opened(env={"EDGE_HUB_MIRRORS": "https://mirror.test"})
    device.enrol(hub.code)
    assign(hub, model)
    assert device.sync().change is Change.ACTIVATED
    asked = [request for request in hub.requests if request.url.path.endswith("weights.gguf")]
    assert [request.url.host for request in asked] == ["mirror.test", "hub.test"]
    assert asked[1].headers["Range"] == f"bytes={CHUNK_BYTES}-"
    assert "Authorization" not in asked[0].headers


def test_an_index_that_nobody_signed_is_refused(device, hub, model):
    assign(hub, model)
    hub.files[f"{model[0]}/{model[1]}/index.json"] += b" "
    with pytest.raises(SignatureInvalid, match="words"):
        device.sync()


def test_a_file_that_is_not_there_is_told(device, hub, model):
    assign(hub, model)
    del hub.files[f"{model[0]}/{model[1]}/weights.gguf"]
    with pytest.raises(HubRefused, match="no such file"):
        device.sync()


def test_a_full_disk_changes_nothing_and_is_tried_again(device, hub, model, monkeypatch):
    assign(hub, model)
    monkeypatch.setattr(models, "SPARE_BYTES", 10**18)
    with pytest.raises(StoreError, match="are free"):
        device.sync()
    monkeypatch.undo()
    monkeypatch.setattr(models.os, "fsync", _full)
    with pytest.raises(StoreError, match="disk is full"):
        device.sync()
    monkeypatch.undo()
    assert device.policies.active() is None
    assert device.sync().change is Change.ACTIVATED


def _full(_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_model_that_breaks_its_manifest_is_refused_and_the_old_one_stays(device, hub, tmp_path):
    first = hub.add_model(make_model(tmp_path / "first"))
    assign(hub, first)
    device.sync()
    folder = make_model(tmp_path / "second", weights=b"new")
    (folder / "weights.gguf").write_bytes(b"not")  # the fleet signed it all the same
    second = hub.add_model(folder)
    assign(hub, second)
    assert device.sync().change is Change.REFUSED
    assert device.policies.active().revision == 1
    assert Shelf(device.state).has(*first)
    assert not Shelf(device.state).has(*second)
    device.sync()
    assert "sha256" in hub.seen[-1].refused[0].reason


def test_the_last_two_versions_stay_and_a_rollback_fetches_nothing(device, hub, tmp_path):
    made = [
        hub.add_model(make_model(tmp_path / f"v{at}", weights=bytes([at]) * 9)) for at in range(3)
    ]
    for each in made:
        assign(hub, each)
        device.sync()
    shelf = Shelf(device.state)
    assert [shelf.has(*each) for each in made] == [False, True, True]
    before = len(fetched(hub))
    assign(hub, made[1])
    assert device.sync().change is Change.ACTIVATED
    assert len(fetched(hub)) == before
    assert not list((device.state / "models" / ".part").iterdir())


def index(**changes):
    digest = hashlib.sha256(b"{}").hexdigest()
    file = {"path": "manifest.json", "bytes": 2, "sha256": digest, "chunks": [digest]}
    whole = {"name": "words", "digest": digest, "files": [file]}
    return json.dumps(whole | changes).encode(), digest, file


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"path": "../out"}, "leaves"),
        ({"path": "/etc/x"}, "leaves"),
        ({"path": "a\\b"}, "leaves"),
        ({"path": "c:x"}, "leaves"),
        ({"chunks": []}, "pieces"),
        ({"bytes": 2**40}, "pieces"),
        ({"path": "manifest.json"}, "twice"),
    ],
)
def test_an_index_that_cannot_be_fetched_safely_is_refused(changes, reason):
    _, digest, file = index()
    text, *_ = index(files=[file, file | changes])
    with pytest.raises(HubDistrusted, match=reason):
        read_index(text, name="words", digest=digest)


@pytest.mark.parametrize("changes", [{"name": "other"}, {"digest": "0" * 64}, {"files": []}])
def test_an_index_of_another_model_is_refused(changes):
    text, digest, _ = index(**changes)
    with pytest.raises(HubDistrusted):
        read_index(text, name="words", digest=digest)


def test_a_folder_without_its_manifest_does_not_count(device, hub, model):
    folder = Shelf(device.state).folder(*model)
    folder.mkdir(parents=True)
    (folder / "weights.gguf").write_bytes(b"half")
    assign(hub, model)
    assert device.sync().change is Change.ACTIVATED
    assert (folder / "weights.gguf").read_bytes() == WEIGHTS
    shutil.rmtree(folder)
