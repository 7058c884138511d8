"""Devices are measured once; the fastest one is remembered."""

from __future__ import annotations

import json

import pytest

from edge.backends.onnx.choice import choice_key, choose_device
from edge.errors import GenerationError


def timed(**seconds):
    """Return a measurement that counts its calls; a string is a failure."""
    calls = []

    def measure(device):
        calls.append(device)
        if isinstance(seconds[device], str):
            raise GenerationError(f"{seconds[device]}.")
        return seconds[device]

    return measure, calls


def test_the_fastest_device_is_remembered(tmp_path):
    memory = tmp_path / "state" / "devices.json"
    measure, calls = timed(cpu=0.02, cuda=0.001, qnn="no such operator")
    devices = ["cpu", "cuda", "qnn"]
    key = choice_key("d" * 64, "1.32.0", devices)
    found = choose_device(key, devices, measure, memory=memory)
    assert found == (
        "cuda", "measured: cpu 20.0 ms; cuda 1.0 ms; qnn failed: no such operator"
    )  # fmt: skip
    assert choose_device(key, devices, measure, memory=memory) == found
    assert calls == devices
    for other in (
        choice_key("e" * 64, "1.32.0", devices),
        choice_key("d" * 64, "1.33.0", devices),
        choice_key("d" * 64, "1.32.0", devices[:2]),
    ):
        calls.clear()
        choose_device(other, devices, measure, memory=memory)
        assert calls == devices
    assert len(json.loads(memory.read_text())["choices"]) == 4
    assert [path.name for path in memory.parent.iterdir()] == ["devices.json"]


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"format": 1}', b'{"format": 2, "choices": {}}',
     b'{"format": 1, "choices": []}', b'{"format": 1, "choices": {"k": 3}}',
     b'{"format": 1, "choices": {"k": {"device": "abacus", "why": ""}}}', b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_memory_is_measured_anew(tmp_path, raw):
    memory = tmp_path / "devices.json"
    memory.write_bytes(raw)
    measure, calls = timed(cpu=0.02, cuda=0.001)
    for _ in range(2):
        assert choose_device("k", ["cpu", "cuda"], measure, memory=memory)[0] == "cuda"
    assert calls == ["cpu", "cuda"]


def test_the_first_device_in_doubt(tmp_path):
    measure, calls = timed(cpu=0.02, cuda=0.019)
    assert choose_device("k", ["cpu", "cuda"], measure)[0] == "cpu"
    broken, _ = timed(cpu="x", cuda="y")
    assert choose_device("k", ["cpu", "cuda"], broken) == (
        "cpu", "measured: cpu failed: x; cuda failed: y"
    )  # fmt: skip
    calls.clear()
    memory = tmp_path / "devices.json"
    assert choose_device("k", ["cpu"], measure, memory=memory) == ("cpu", "only cpu is here")
    assert not calls
    assert not memory.exists()
    blocked = tmp_path / "file" / "devices.json"
    blocked.parent.write_text("a file where the folder should be")
    assert choose_device("k", ["cpu", "cuda"], measure, memory=blocked)[0] == "cpu"
