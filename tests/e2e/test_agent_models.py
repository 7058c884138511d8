"""Two generations of a real ONNX model: an update, one that answers wrongly, and a rollback."""

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge.errors import HubUnreachable
from edge_sync.agent import golden
from edge_sync.agent.activation import Change
from edge_sync.agent.start import Standalone, open_device
from edge_sync.hub import enrolment, fleet, models, policies
from edge_sync.hub.home import Hub

MAGIKA = Path(__file__).resolve().parents[3] / "shared" / "models" / "magika"
PATIENCE_S = 60
SERVE = (
    "import sys; from pathlib import Path; from edge_sync.hub.home import Hub; "
    "from edge_sync.server.serve import serve; serve(Hub.open(Path(sys.argv[1])))"
)
GENERATIONS = ("standard_v3_2", "standard_v3_3")

pytestmark = pytest.mark.skipif(
    not MAGIKA.is_dir(), reason="the two magika generations are not in ../shared/models"
)


def make(folder, generation, *, answers_of=None):
    """Write a model's folder with golden cases: its own answers, or another generation's."""
    from onnxruntime import InferenceSession

    folder.mkdir(parents=True)
    shutil.copy(MAGIKA / generation / "model.onnx", folder)
    session = InferenceSession(str(MAGIKA / (answers_of or generation) / "model.onnx"))
    (asked,), (answered,) = session.get_inputs(), session.get_outputs()
    bytes_ = np.random.default_rng(7).integers(0, 257, (4, 2048), dtype=np.int32)
    bytes_[1, :64] = np.frombuffer(b"import os\nprint(os.getcwd())\n".ljust(64), np.uint8)
    (right,) = session.run([answered.name], {asked.name: bytes_})
    np.savez(folder / "golden.npz", **{f"in.{asked.name}": bytes_, f"out.{answered.name}": right})
    files = [("model.onnx", "weights"), ("golden.npz", golden.ROLE)]
    manifest = {
        "name": "magika",
        "kind": "tensor",
        "engine": "onnx",
        "licence": "Apache-2.0",
        "files": [
            {
                "path": path,
                "role": role,
                "sha256": hashlib.sha256((folder / path).read_bytes()).hexdigest(),
                "bytes": (folder / path).stat().st_size,
            }
            for path, role in files
        ],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def hub(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    with Hub.create(tmp_path / "hub", listen=listen) as made:
        fleet.add_group(made, "default", who="test")
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(made.home)], stderr=subprocess.DEVNULL
        )
        yield made
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture
def device(hub, tmp_path):
    made, _ = open_device(
        Standalone("kiosk", tmp_path / "state"),
        f"http://{hub.settings.listen}",
        state=tmp_path / "state",
        pack="kiosk",
        env={},
    )
    code = enrolment.make_code(hub, group="default", uses=1, expires_s=600.0, who="test")
    patiently(lambda: made.enrol(code.text))
    yield made
    made.close()


def patiently(step):
    """Try until the hub answers."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return step()
        except HubUnreachable:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def synced(device, revision):
    """Sync until the device has made up its mind about a revision; return what it did."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        done = device.sync()  # the server may be a moment behind the publication
        if done.change in {Change.ACTIVATED, Change.REFUSED}:
            return done.change
        time.sleep(0.1)
    raise AssertionError(device.summary(), revision)


def assign(hub, digest):
    text = f"models: {{magika: {{digest: {digest}}}}}"
    checked = policies.check(hub, text.encode(), what="policy.yaml")
    made = policies.publish(hub, checked, message="A test", who="test", at_once=["default"])
    return made.revision


def test_an_update_a_wrong_one_and_a_rollback(hub, device, tmp_path):
    old, new = (
        models.add(hub, make(tmp_path / each, each), who="test").digest for each in GENERATIONS
    )
    wrong = make(tmp_path / "wrong", GENERATIONS[1], answers_of=GENERATIONS[0])
    wrong = models.add(hub, wrong, who="test").digest
    here = tmp_path / "state" / "models"

    def folders():
        return {path.name for path in here.glob("magika@*")}

    def follow(digest):
        return synced(device, assign(hub, digest))

    assert follow(old) is Change.ACTIVATED
    assert follow(new) is Change.ACTIVATED
    assert device.summary()["models"] == {"magika": new}
    assert folders() == {f"magika@{each[:12]}" for each in (old, new)}

    assert follow(wrong) is Change.REFUSED
    assert "golden" in device.summary()["refused"]
    assert folders() == {f"magika@{each[:12]}" for each in (old, new)}

    shutil.rmtree(hub.models_folder)  # what is on the device already is not fetched again
    assert follow(old) is Change.ACTIVATED
    assert device.summary()["models"] == {"magika": old}
    golden.check(here / f"magika@{old[:12]}")
