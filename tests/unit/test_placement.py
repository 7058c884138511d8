"""Placements, the choice of a device, the fallback at run time and gathered callers, all faked."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from edge.backends import onnx_providers
from edge.backends.base import Placement
from edge.backends.llama_library import Accelerator
from edge.backends.llama_placement import (
    LayerSizes,
    free_bytes,
    layer_sizes,
    layers_that_fit,
    place_layers,
    use_gpu,
)
from edge.backends.onnx_batch import Gatherer
from edge.backends.onnx_choice import choice_key, choose_device
from edge.backends.onnx_providers import Provider
from edge.backends.onnx_rows import feed, groups
from edge.backends.onnx_runner import Runner
from edge.backends.onnx_session import Opened, _placement
from edge.cli.placements import sentence
from edge.errors import DeviceFallback, GenerationError, InputError, LoadError, ModelError

QNN = Provider("qnn", plugin=True, options={})


class Record:
    """A session that only keeps record of its nodes."""

    def __init__(self, **nodes):
        self._nodes = nodes

    def get_provider_graph_assignment_info(self):
        names = {"npu": "QNNExecutionProvider", "cpu": "CPUExecutionProvider"}
        return [
            SimpleNamespace(
                ep_name=names[where],
                get_nodes=lambda ops=ops: [SimpleNamespace(op_type=o) for o in ops],
            )
            for where, ops in self._nodes.items()
        ]


@pytest.mark.parametrize(
    ("session", "expected", "fallback"),
    [
        (Record(npu=["MatMul"] * 4), Placement("qnn", "qnn"), False),
        (
            Record(npu=["MatMul"] * 3, cpu=["Gather"]),
            Placement("qnn", "qnn", 0.75, "1 of 4 nodes run on the CPU (Gather)"),
            True,
        ),
        (
            Record(cpu=["Cast", "Gather", "Cast"]),
            Placement(
                "qnn", "cpu", 1.0, "QNNExecutionProvider took none of 3 nodes (Cast, Gather)"
            ),
            True,
        ),
        (
            object(),
            Placement("qnn", "qnn", None, "this version of onnxruntime keeps no record of nodes"),
            False,
        ),
    ],
)
def test_the_share_is_the_sessions_own_record(session, expected, fallback):
    found = _placement(session, QNN)
    assert found == expected
    assert found.fallback is fallback
    if fallback:
        with pytest.raises(DeviceFallback, match="model cannot run on 'qnn'"):
            found.require("model")
    else:
        found.require("model")


@pytest.mark.parametrize(
    ("device", "gpu", "offloaded", "expected"),
    [
        ("cpu", False, None, Placement("cpu", "cpu")),
        ("gpu", False, None, Placement("gpu", "cpu", why="llama.cpp here offers cpu only")),
        ("gpu", True, (7, 7), Placement("gpu", "gpu")),
        ("auto", True, (7, 7), Placement("auto", "gpu")),
        ("auto", False, None, Placement("auto", "cpu", why="llama.cpp here offers cpu only")),
        ("gpu", True, (3, 6), Placement("gpu", "gpu", 0.5, "3 of 6 layers run on the CPU")),
        ("gpu", True, (0, 6), Placement("gpu", "cpu", why="6 of 6 layers run on the CPU")),
    ],
)
def test_layers_on_a_gpu(device, gpu, offloaded, expected):
    assert place_layers(device, gpu=gpu, offloaded=offloaded) == expected


THREE = LayerSizes(layers=(10, 20, 30), output=5, cache=1)


@pytest.mark.parametrize(
    ("room", "layers"),
    [
        (0, 0),
        (4, 0),
        (5, 1),  # the output
        (35, 1),
        (36, 2),  # and the last layer with its cache
        (56, 2),
        (57, 3),
        (67, 3),
        (68, 4),
        (10**12, 4),
    ],
)
def test_layers_are_taken_from_the_end_while_they_fit(room, layers):
    assert layers_that_fit(THREE, room) == layers


def test_layer_sizes_are_read_off_the_tensors():
    tensors = {
        "token_embd.weight": 100,
        "blk.0.attn_q.weight": 7,
        "blk.0.ffn_up.weight": 3,
        "blk.1.attn_q.weight": 20,
        "output_norm.weight": 1,
    }
    assert layer_sizes(tensors, cache=8) == LayerSizes((10, 20), 101, 4)  # the input's weights
    assert layer_sizes({**tensors, "output.weight": 50}, cache=8) == LayerSizes((10, 20), 51, 4)
    assert layer_sizes({}, cache=8) == LayerSizes((), 0, 8)


GIB = 1 << 30


@pytest.mark.parametrize(
    ("devices", "room"),
    [
        ([], 0),
        ([("cpu", 8, 8)], 0),
        ([("gpu", 8, 10)], 8 * GIB - GIB // 2),
        ([("gpu", 0, 10)], 0),
        ([("gpu", 1, 1)], GIB - 256_000_000),
        ([("gpu", 8, 10), ("igpu", 8, 10), ("gpu", 8, 10)], 16 * GIB - GIB),
        ([("igpu", 8, 10), ("cpu", 8, 10)], 8 * GIB - GIB // 2),
    ],
)
def test_a_part_of_a_gpus_memory_stays_free(devices, room):
    given = [Accelerator(kind, kind, free * GIB, all_ * GIB) for kind, free, all_ in devices]
    assert free_bytes(given) == room


def test_a_gpu_that_is_not_there():
    assert use_gpu("m", "gpu", built=True, strict=True)
    assert not use_gpu("m", "gpu", built=False, strict=False)
    with pytest.raises(DeviceFallback, match="m cannot run on 'gpu'"):
        use_gpu("m", "gpu", built=False, strict=True)
    with pytest.raises(DeviceFallback, match="abacus"):
        use_gpu("m", "abacus", built=True, strict=False)
    silent = place_layers("gpu", gpu=True, offloaded=None)
    assert silent.share is None
    assert silent.why


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        ({"asked": "cpu", "used": "cpu", "share": 1.0, "why": ""}, "on cpu"),
        ({"asked": "auto", "used": "cpu", "share": 1.0, "why": "only"}, "on cpu (only)"),
        ({"asked": "qnn", "used": "qnn", "share": 0.5, "why": "w"}, "on qnn 50% of it (w)"),
        ({"asked": "qnn", "used": "cpu", "share": 1.0, "why": "w"}, "on cpu, asked for qnn (w)"),
        ({"problem": "broken"}, "nowhere: broken"),
    ],
)
def test_a_placement_in_words(placement, words):
    assert sentence(placement) == words


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


def test_callers_that_come_meanwhile_share_a_pass():
    started, go, passes = threading.Event(), threading.Event(), []

    def work(rows):
        passes.append(len(rows))
        if len(passes) == 1:
            started.set()
            assert go.wait(10)
        return np.array([[row[0]] for row in rows], np.float32)

    gatherer = Gatherer(work, most=4)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(gatherer.run, [[0]])]
        assert started.wait(10)
        calls += [pool.submit(gatherer.run, [[at], [at + 10]]) for at in range(1, 6)]
        while len(gatherer._waiting) < 5:
            pass
        go.set()
        found = [call.result(10).ravel().tolist() for call in calls]
    assert found == [[0], *([at, at + 10] for at in range(1, 6))]
    assert passes == [1, 4, 4, 2]


def test_one_callers_bad_rows_do_not_fail_the_others():
    started, go = threading.Event(), threading.Event()

    def work(rows):
        if rows[0][0] == 0:
            started.set()
            assert go.wait(10)
        if any(row[0] == 13 for row in rows):
            raise GenerationError("thirteen")
        return np.array(rows, np.float32)

    gatherer = Gatherer(work, most=8)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(gatherer.run, [[0]])
        assert started.wait(10)
        good, bad = pool.submit(gatherer.run, [[1]]), pool.submit(gatherer.run, [[13]])
        while len(gatherer._waiting) < 2:
            pass
        go.set()
        assert [call.result(10).tolist() for call in (first, good)] == [[[0.0]], [[1.0]]]
        with pytest.raises(GenerationError, match="thirteen"):
            bad.result(10)
    with pytest.raises(GenerationError, match="thirteen"):
        gatherer.run([[13]])
    assert gatherer.run([[7]]).tolist() == [[7.0]]


def test_an_interrupt_is_the_leaders_alone():
    started, go, passes = threading.Event(), threading.Event(), []

    def work(rows):
        passes.append(len(rows))
        if len(passes) == 1:
            started.set()
            assert go.wait(10)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return np.array(rows, np.float32)

    gatherer = Gatherer(work, most=8)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(gatherer.run, [[0]])]
        assert started.wait(10)
        calls += [pool.submit(gatherer.run, [[at]]) for at in (1, 2)]
        while len(gatherer._waiting) < 2:
            pass
        go.set()
        errors = [type(call.exception(10)) for call in calls]
    assert errors.count(KeyboardInterrupt) == 1
    assert passes == [1, 2, 1]


def test_rows_are_grouped_and_padded():
    assert groups([5, 9, 4, 30, 8], most=3) == [[2, 0, 4], [1], [3]]
    assert groups([3, 3], most=1) == [[0], [1]]
    types = {"input_ids": np.int32, "attention_mask": np.int64}
    found = feed([[7, 8], [9]], types, size=4)
    assert found["input_ids"].tolist() == [[7, 8, 0, 0], [9, 0, 0, 0]]
    assert found["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert {name: array.dtype.type for name, array in found.items()} == types


def test_a_library_that_is_no_provider(tmp_path):
    path = tmp_path / "libnothing.so"
    path.write_bytes(b"not a library")
    with pytest.raises(LoadError, match=r"libnothing\.so is not an execution provider for webgpu"):
        onnx_providers.register_plugin("webgpu", path)
    with pytest.raises(InputError, match="abacus"):
        onnx_providers.register_plugin("abacus", path)
    assert "no device is called so" in onnx_providers.why_missing("abacus")
