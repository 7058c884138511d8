"""The ONNX engine: the shipped encoder, decoders with past key values, failures as errors."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge.backends.generate import generate
from edge.backends.onnx.decoder import OnnxDecoder, genai_tokens
from edge.backends.onnx.encoder import OnnxEncoder
from edge.backends.onnx.session import available_devices, open_session, run_session
from edge.backends.onnx.tokens import byte_alphabet
from edge.errors import DeviceFallback, GenerationError, InputError, LoadError, ModelError
from edge.store.weights import ModelStore
from edge.types import SamplingParams

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "models"
TINY = SHARED / "tiny_gpt2_onnx"
STORE = ModelStore(ROOT / "models")
ENCODER = "minilm-l6-int8"

needs_encoder = pytest.mark.skipif(
    ENCODER not in STORE.names(), reason=f"the model {ENCODER} has not been built"
)
needs_shared = pytest.mark.skipif(
    not TINY.is_dir(), reason="the fixtures of shared/models are not here"
)


def open_encoder(**options):
    return OnnxEncoder.open(
        STORE.path(ENCODER),
        tokenizer=STORE.path(ENCODER, role="tokenizer"),
        name=ENCODER,
        digest=STORE.manifest(ENCODER).digest,
        **{"threads": 1, **options},
    )


@pytest.fixture(scope="module")
def encoder():
    return open_encoder()


@pytest.fixture(scope="module")
def tiny():
    facts = genai_tokens(TINY / "genai_config.json")
    return OnnxDecoder.open(
        TINY / "past.onnx",
        TINY / "tokenizer.json",
        name="tiny",
        digest="0" * 64,
        context=facts.context,
        bos_token=facts.bos_token,
        end_tokens=facts.end_tokens,
        threads=1,
    )


@needs_encoder
def test_vectors_are_unit_and_near_where_meanings_are(encoder):
    vectors = encoder.embed(
        ["my card has not arrived", "I am still waiting for my new card", "play some jazz", ""]
    )
    assert vectors.shape == (4, encoder.info.dimensions) == (4, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.6
    assert vectors[0] @ vectors[2] < 0.3
    assert encoder.embed([]).shape == (0, 384)


@needs_encoder
def test_a_vector_does_not_depend_on_its_neighbours(encoder):
    texts = ["one two three", "red green blue", "a much longer text than the others are", "x"]
    together = encoder.embed(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_array_equal(encoder.embed([text])[0], vector)


@needs_encoder
def test_batches_keep_the_order():
    encoder = open_encoder(max_batch=4)
    texts = [f"{word} {index}" for index in range(3) for word in ("tree", "a quick fox", "sun")]
    single = open_encoder().embed(texts)
    similar = (encoder.embed(texts) * single).sum(axis=1)
    assert similar.min() > 0.9
    assert (encoder.embed(texts) @ single.T).argmax(axis=1).tolist() == list(range(len(texts)))


@needs_encoder
def test_long_texts_are_cut_and_counted():
    encoder = open_encoder(max_tokens=16)
    assert encoder.count_tokens("hello there") == 4
    assert encoder.count_tokens("word " * 100) == 102
    np.testing.assert_array_equal(encoder.embed(["word " * 100]), encoder.embed(["word " * 14]))
    assert not np.array_equal(encoder.embed(["word " * 13]), encoder.embed(["word " * 14]))


@needs_encoder
def test_a_call_may_read_less_than_the_encoder_can(encoder):
    long, most = "word " * 400, encoder.info.context
    for limit, read in ((1, ""), (16, "word " * 14), (most, "word " * (most - 2))):
        assert encoder.count_tokens(read) == max(limit, 2)
        found = encoder.embed([long], max_tokens=limit)
        assert np.array_equal(found, encoder.embed([read])) is (limit > 1)
    for limit in (None, most, most + 1):
        np.testing.assert_array_equal(encoder.embed([long], max_tokens=limit), found)


@needs_encoder
def test_half_a_surrogate_pair_is_refused(encoder):
    with pytest.raises(InputError):
        encoder.embed(["ok", "a\ud800"])
    with pytest.raises(InputError):
        encoder.count_tokens("\udfff")


@needs_encoder
def test_several_threads_get_the_same_vectors(encoder):
    expected = encoder.embed(["how do I top up?"])
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: encoder.embed(["how do I top up?"]), range(16)):
            np.testing.assert_array_equal(found, expected)


@needs_encoder
def test_threads_are_measured_where_not_given():
    assert open_encoder(threads=None).info.threads >= 1


@needs_encoder
def test_a_closed_encoder_is_refused():
    encoder = open_encoder()
    encoder.close()
    encoder.close()
    with pytest.raises(ModelError, match="closed"):
        encoder.embed(["x"])


@needs_encoder
def test_damaged_files_are_errors(tmp_path):
    model, words = STORE.path(ENCODER), STORE.path(ENCODER, role="tokenizer")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(model.read_bytes()[:-1000])
    text = tmp_path / "text.json"
    text.write_text("{}")
    for broken, tokens, name in (
        (cut, words, "cut.onnx"),
        (text, words, "text.json"),
        (model, text, "text.json"),
        (model, cut, "cut.onnx"),
        (tmp_path / "none", words, "none"),
        (model, tmp_path / "none", "none"),
    ):
        with pytest.raises(LoadError, match=name):
            OnnxEncoder.open(broken, tokens, name="m", digest="0" * 64, threads=1)


@needs_encoder
def test_devices_are_what_was_asked_for_or_an_error(encoder):
    assert encoder.info.device == "cpu"
    assert "cpu" in available_devices()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    for device in {"qnn", "cuda", "abacus"} - set(available_devices()):
        with pytest.raises(DeviceFallback, match=device):
            open_encoder(device=device, strict=True)


@needs_shared
def test_a_prompt_is_the_same_in_one_piece_or_many(tiny):
    tokens = [5, 17, 900, 3, 3, 42]
    whole = tiny.sequence().forward(tokens)
    sequence = tiny.sequence()
    for token in tokens:
        row = sequence.forward([token])
    assert row.shape == (tiny.info.vocab_size,) == (1000,)
    assert len(sequence) == 6
    np.testing.assert_allclose(row, whole, atol=1e-4)


@needs_shared
def test_sequences_hold_their_own_past(tiny):
    first, second = tiny.sequence(), tiny.sequence()
    alone = tiny.sequence().forward([7, 8, 9])
    first.forward([7])
    second.forward([500, 600])
    first.forward([8])
    np.testing.assert_allclose(first.forward([9]), alone, atol=1e-4)


@needs_shared
def test_the_token_loop_runs_on_onnx_too(tiny):
    params = SamplingParams(temperature=1.0, top_k=50, seed=3)
    runs = [generate(tiny, [5, 6], params=params, max_tokens=12) for _ in range(2)]
    assert runs[0].tokens == runs[1].tokens
    assert len(runs[0].tokens) <= 12


@needs_shared
def test_tokens_give_the_text_back(tiny):
    text = "Héllo wörld 👋\n  <|endoftext|>"
    tokens = tiny.tokenize(text, add_bos=False)
    assert b"".join(tiny._pieces[token] for token in tokens).decode() == text
    assert tiny.tokenize("a") == [98, *tiny.tokenize("a", add_bos=False)]
    assert 50256 in tiny.tokenize(text, parse_special=True)
    assert 50256 not in tokens
    assert tiny.piece(50256) == b""
    assert tiny.piece(50256, special=True) == b"<|endoftext|>"
    with pytest.raises(InputError):
        tiny.piece(-1)
    with pytest.raises(InputError):
        tiny.tokenize("\ud800")


@needs_shared
def test_wrong_tokens_and_full_contexts_are_refused(tiny):
    sequence = tiny.sequence()
    with pytest.raises(InputError, match="between 0 and 999"):
        sequence.forward([1000])
    with pytest.raises(InputError, match="at least one"):
        sequence.forward([])
    with pytest.raises(InputError, match="513 tokens; the context of tiny holds 512"):
        sequence.forward([1] * 513)
    sequence.forward([1] * 512)
    sequence.close()
    with pytest.raises(ModelError, match="closed"):
        sequence.forward([1])


@needs_shared
@pytest.mark.parametrize(
    "name",
    [
        "custom_ops/test_bert_tokenizer.onnx",
        "custom_ops/test_string_mapping.onnx",
        "nnsplit/en.onnx",
        "silero_vad/silero_vad.onnx",
        "tiny_gpt2_onnx/tokenizer.json",
    ],
)
def test_graphs_of_another_kind_are_refused(name):
    path = SHARED / name
    with pytest.raises(LoadError, match=path.name):
        OnnxDecoder.open(path, TINY / "tokenizer.json", name="x", digest="0" * 64)
    with pytest.raises(LoadError, match=path.name):
        OnnxEncoder.open(path, TINY / "tokenizer.json", name="x", digest="0" * 64, threads=1)


@needs_shared
def test_a_failure_at_run_time_is_a_generation_error(capfd):
    session = open_session(SHARED / "nnsplit" / "en.onnx", threads=1).session
    even = {"input": np.zeros((1, 10), np.uint8)}
    odd = {"input": np.zeros((1, 11), np.uint8)}
    assert run_session(session.run, ["output"], even, name="nnsplit")[0].shape == (1, 10, 2)
    with pytest.raises(GenerationError, match="nnsplit failed on this input"):
        run_session(session.run, ["output"], odd, name="nnsplit")
    assert capfd.readouterr() == ("", "")


@needs_shared
def test_a_broken_genai_config_is_an_error(tmp_path):
    for raw in ("{", "[]", '{"model": {}}', '{"model": {"eos_token_id": "x"}}'):
        path = tmp_path / "genai_config.json"
        path.write_text(raw)
        with pytest.raises(LoadError, match="genai_config"):
            genai_tokens(path)


def test_the_byte_alphabet_is_whole():
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert byte_alphabet()["Ġ"] == ord(" ")
