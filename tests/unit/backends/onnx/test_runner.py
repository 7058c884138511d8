"""A device that fails at run time gives way to the CPU, with a reason."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edge.backends.base import Placement
from edge.backends.onnx.runner import Runner
from edge.backends.onnx.session import Opened
from edge.errors import DeviceFallback, GenerationError, ModelError


class Ask:
    """Opens fake sessions: the device's fails on what is in ``broken``, the CPU's on -1."""

    name = "fake"
    device = "qnn"

    def __init__(self, *, strict=False, broken=(5, -1)):
        self.strict, self.broken, self.opened = strict, broken, []

    def open(self, size=None, *, device=None):
        device = device or self.device
        self.opened.append((device, size))
        fails = self.broken if device == "qnn" else (-1,)

        def run(outputs, given):
            if given["x"] in fails:
                raise RuntimeError(f"{device}\n cannot do {given['x']}.")
            return [given["x"] * 2]

        return Opened(SimpleNamespace(run=run), Placement(device, device))


def test_a_device_that_fails_is_left_once_and_the_reason_kept():
    ask = Ask()
    runner = Runner(ask, size=16)
    assert runner.run(["y"], {"x": 2}, size=16) == [4]
    assert runner.placement == Placement("qnn", "qnn")
    assert runner.run(["y"], {"x": 5}, size=16) == [10]
    assert runner.placement == Placement(
        "qnn", "cpu",
        why="qnn failed at run time: fake failed on this input: qnn cannot do 5",
    )  # fmt: skip
    assert runner.run(["y"], {"x": 5}, size=16) == [10]
    assert runner.run(["y"], {"x": 5}, size=32) == [10]
    assert ask.opened == [("qnn", 16), ("cpu", 16), ("cpu", 32)]


def test_an_input_that_fails_everywhere_moves_nothing():
    ask = Ask()
    runner = Runner(ask)
    for _ in range(2):
        with pytest.raises(GenerationError, match="fake failed on this input: cpu cannot do -1"):
            runner.run(["y"], {"x": -1})
    assert runner.placement == Placement("qnn", "qnn")
    assert runner.run(["y"], {"x": 2}) == [4]
    assert ask.opened == [("qnn", None), ("cpu", None)]


def test_strict_makes_a_failure_at_run_time_an_error():
    runner = Runner(Ask(strict=True))
    with pytest.raises(DeviceFallback, match="qnn failed at run time"):
        runner.run(["y"], {"x": 5})
    assert runner.placement == Placement("qnn", "qnn")
    runner.close()
    runner.close()
    with pytest.raises(ModelError, match="fake is closed"):
        runner.run(["y"], {"x": 2})
