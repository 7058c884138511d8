"""ONNX models on devices: placements, fallbacks, bound key values, callers that share passes."""

from __future__ import annotations

import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge.backends.base import Placement
from edge.backends.onnx.decoder import OnnxDecoder
from edge.backends.onnx.encoder import OnnxEncoder
from edge.backends.onnx.providers import PROVIDERS, available_devices
from edge.backends.onnx.runner import Ask, Runner
from edge.errors import DeviceFallback, GenerationError, InputError, LoadError
from edge.store.weights import ModelStore

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "models"
TINY = SHARED / "tiny_gpt2_onnx"
STORE = ModelStore(ROOT / "models")
ENCODER = "minilm-l6-int8"
BUILT = ROOT / "build" / "bench" / "minilm-l6-qnn" / "minilm-l6-qnn.onnx"
MISSING = sorted(PROVIDERS.keys() - set(available_devices()))

needs_encoder = pytest.mark.skipif(
    ENCODER not in STORE.names(), reason=f"the model {ENCODER} has not been built"
)
needs_shared = pytest.mark.skipif(
    not TINY.is_dir(), reason="the fixtures of shared/models are not here"
)
needs_qnn = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None, reason="onnxruntime-qnn is not installed"
)


def open_encoder(path=None, **options):
    return OnnxEncoder.open(
        path or STORE.path(ENCODER),
        tokenizer=STORE.path(ENCODER, role="tokenizer"),
        name=ENCODER,
        digest="0" * 64,
        **{"threads": 1, **options},
    )


def open_tiny(**options):
    return OnnxDecoder.open(
        TINY / "past.onnx", TINY / "tokenizer.json", name="tiny", digest="0" * 64, **options
    )


@needs_encoder
@pytest.mark.parametrize("device", MISSING)
def test_a_device_that_is_not_here_is_told(device):
    encoder = open_encoder(device=device)
    placement = encoder.info.placement
    assert (placement.asked, placement.used, placement.share) == (device, "cpu", 1.0)
    assert placement.fallback
    assert placement.why
    assert encoder.info.device == "cpu"
    with pytest.raises(DeviceFallback, match=f"cannot run on '{device}': {placement.why}"):
        open_encoder(device=device, strict=True)


@needs_encoder
def test_the_cpu_is_no_fallback(tmp_path):
    assert open_encoder(strict=True).info.placement == Placement("cpu", "cpu")
    memory = tmp_path / "devices.json"
    found = open_encoder(device="auto", memory=memory, strict=True).info.placement
    assert found.asked == "auto"
    assert found.why
    assert not found.fallback
    assert memory.exists() is (len(available_devices()) > 1)
    with pytest.raises(DeviceFallback, match="abacus"):
        open_encoder(device="abacus")


@needs_shared
def test_decoders_have_placements_too():
    assert open_tiny(device=MISSING[0]).info.placement.fallback
    assert open_tiny(device="auto").info.placement.asked == "auto"
    with pytest.raises(DeviceFallback):
        open_tiny(device=MISSING[0], strict=True)


@needs_shared
def test_bound_key_values_give_the_same_rows():
    plain, bound = open_tiny(io_binding=False), open_tiny(io_binding=True)
    one, other = plain.sequence(), bound.sequence()
    for tokens in ([5, 6, 7], [8], [900, 3], *([at] for at in range(40))):
        np.testing.assert_array_equal(one.forward(tokens), other.forward(tokens))
    with pytest.raises(InputError):
        other.forward([1000])
    np.testing.assert_array_equal(one.forward([1]), other.forward([1]))
    # A past that was bound goes on in a session that does not bind, as after a fallback.
    bound._bind = False
    np.testing.assert_array_equal(one.forward([2]), other.forward([2]))


@needs_shared
def test_key_values_are_handed_on_and_not_copied():
    decoder, fed = open_tiny(io_binding=False), []
    opened = decoder._runner._sessions[None]
    run = opened.session.run
    opened.session.run = lambda outputs, feed: fed.append(feed) or run(outputs, feed)
    sequence = decoder.sequence()
    sequence.forward([5])
    held = dict(sequence._past)
    sequence.forward([6])
    assert held
    for name, array in held.items():
        assert fed[1][name] is array
        assert not array.flags.owndata


@needs_shared
def test_a_model_that_fails_goes_on_serving(capfd):
    runner = Runner(Ask(SHARED / "nnsplit" / "en.onnx", "nnsplit", threads=1))
    even, odd = ({"input": np.zeros((1, size), np.uint8)} for size in (10, 11))
    for _ in range(2):
        with pytest.raises(GenerationError, match="nnsplit failed on this input"):
            runner.run(["output"], odd)
        assert runner.run(["output"], even)[0].shape == (1, 10, 2)
    assert runner.placement == Placement("cpu", "cpu")
    assert capfd.readouterr() == ("", "")


@needs_shared
@pytest.mark.parametrize("name", ["test_bert_tokenizer", "test_string_mapping"])
@pytest.mark.parametrize("device", ["cpu", MISSING[0]])
def test_foreign_operators_are_refused_on_every_device(name, device):
    with pytest.raises(LoadError, match=f"{name}.onnx cannot be loaded"):
        Runner(Ask(SHARED / "custom_ops" / f"{name}.onnx", name, threads=1, device=device))


@needs_encoder
def test_callers_at_once_share_a_pass():
    encoder = open_encoder(max_batch=8)
    texts = [f"please tell me where order number {at} is now" for at in range(6)]
    alone = open_encoder().embed(texts)
    opened = encoder._runner._sessions[None]
    run, sizes, go = opened.session.run, [], threading.Event()

    def slow(outputs, feed):
        sizes.append(len(feed["input_ids"]))
        assert go.wait(20)
        return run(outputs, feed)

    opened.session.run = slow
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(encoder.embed, [text]) for text in texts]
        while len(encoder._together._waiting) + sum(sizes) < 6:
            pass
        go.set()
        found = np.stack([call.result(20)[0] for call in calls])
    assert sum(sizes) == 6
    assert len(sizes) == 2
    assert (found * alone).sum(axis=1).min() > 0.9
    assert (found @ alone.T).argmax(axis=1).tolist() == list(range(6))
    assert len(encoder.embed(["x"])) == 1


@needs_encoder
@pytest.mark.parametrize("options", [{"buckets": (0,)}, {"buckets": (8,), "max_batch": 2}])
def test_wrong_buckets_are_refused(options):
    with pytest.raises(InputError, match="bucket"):
        open_encoder(**options)


@needs_encoder
def test_texts_are_padded_to_buckets():
    encoder = open_encoder(buckets=(32, 8))
    assert encoder.info.context == 32
    texts = ["hello there", "a little longer text than eight tokens are", "word " * 100]
    plain = open_encoder(max_tokens=32).embed(texts)
    assert (encoder.embed(texts) * plain).sum(axis=1).min() > 0.95
    assert set(encoder._runner._sessions) == {8, 32}


@needs_qnn
@needs_encoder
def test_a_part_on_the_npu_is_told():
    placement = open_encoder(device="qnn").info.placement
    assert placement.asked == placement.used == "qnn"
    assert 0 < placement.share < 1
    assert "nodes run on the CPU" in placement.why
    with pytest.raises(DeviceFallback, match="nodes run on the CPU"):
        open_encoder(device="qnn", strict=True)


@needs_qnn
@pytest.mark.skipif(not BUILT.is_file(), reason="bench/devices.py has not built the model")
def test_the_whole_encoder_runs_on_the_npu():
    encoder = open_encoder(BUILT, device="qnn", strict=True, buckets=(16, 32, 64))
    near, far = encoder.embed(["my card has not arrived", "play some jazz"])
    assert encoder.info.placement == Placement("qnn", "qnn")
    assert near @ open_encoder().embed(["where is my new card"])[0] > near @ far
