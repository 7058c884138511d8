"""The llama.cpp engine with real models: text as golden, failures as errors, never a crash."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge.backends.generate import generate
from edge.backends.llama.decoder import LlamaDecoder
from edge.errors import Busy, DeviceFallback, InputError, LoadError, ModelError
from edge.store.weights import ModelStore
from edge.types import SamplingParams

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "stories260k"
MODEL = STORIES / "stories260K.gguf"
GREEDY = SamplingParams()

ROOT = Path(__file__).resolve().parents[2]
STORE = ModelStore(ROOT / "models")
SHIPPED = [name for name in STORE.names() if STORE.manifest(name).engine == "llamacpp"]

needs_stories = pytest.mark.skipif(
    not MODEL.is_file(), reason="the fixture shared/models/stories260k is not here"
)


def open_stories(**options):
    return LlamaDecoder.open(MODEL, name="stories", digest="0" * 64, **{"threads": 1, **options})


@pytest.fixture(scope="module")
def stories():
    decoder = open_stories()
    yield decoder
    decoder.close()


def greedy(decoder, tokens, count):
    sequence = decoder.sequence()
    out, row = [], sequence.forward(tokens)
    for _ in range(count):
        out.append(int(row.argmax()))
        row = sequence.forward(out[-1:])
    sequence.close()
    return out


@needs_stories
def test_the_golden_text(stories):
    golden = (STORIES / "golden.txt").read_bytes()
    generation = generate(
        stories, stories.tokenize(""), params=GREEDY, max_tokens=stories.info.context
    )
    # The vocabulary begins a text with a space that is not part of it (SentencePiece).
    assert generation.text.encode().removeprefix(b" ")[: len(golden.rstrip())] == golden.rstrip()
    assert generation.finish in {"stop", "length"}


@needs_stories
def test_info(stories):
    assert stories.info.engine == "llamacpp"
    assert stories.info.device == "cpu"
    assert stories.info.context == 512
    assert stories.info.vocab_size == 512
    assert stories.end_tokens == {2}


@needs_stories
def test_threads_are_measured_where_not_given():
    decoder = open_stories(threads=None)
    assert decoder.info.threads >= 1
    decoder.close()


@needs_stories
@pytest.mark.parametrize(
    "text", ["", "Once upon a time", "a\0b", "naïve 👋 漢字", "\n\t x  y", "~" * 3000]
)
def test_tokens_give_the_text_back(stories, text):
    tokens = stories.tokenize(text, add_bos=False)
    joined = b"".join(stories.piece(token) for token in tokens).decode()
    assert joined.removeprefix(" ") == text


@needs_stories
def test_special_tokens_are_parsed_only_where_asked(stories):
    assert 2 not in stories.tokenize("a</s>b")
    assert 2 in stories.tokenize("a</s>b", parse_special=True)
    assert stories.tokenize("a")[0] == 1
    assert stories.piece(2) == b""
    assert stories.piece(2, special=True) == b"</s>"


@needs_stories
def test_half_a_surrogate_pair_is_refused(stories):
    with pytest.raises(InputError, match="character 1"):
        stories.tokenize("a\ud800")


@needs_stories
@pytest.mark.parametrize("token", [-1, 512, 2**31])
def test_tokens_outside_the_vocabulary_are_refused(stories, token):
    with pytest.raises(InputError):
        stories.piece(token)
    sequence = stories.sequence()
    with pytest.raises(InputError):
        sequence.forward([1, token])
    sequence.close()


@needs_stories
def test_a_prompt_is_the_same_in_one_piece_or_many(stories):
    tokens = stories.tokenize("Once upon a time, there was a little girl named Lily. " * 4)
    sequence = stories.sequence()
    whole = sequence.forward(tokens).copy()
    sequence.close()
    sequence = stories.sequence()
    for token in tokens:
        row = sequence.forward([token])
    np.testing.assert_allclose(row, whole, atol=0.05)  # the cache holds half floats
    assert int(row.argmax()) == int(whole.argmax())
    sequence.close()


@needs_stories
def test_the_row_is_a_read_only_view(stories):
    sequence = stories.sequence()
    row = sequence.forward([1])
    assert row.dtype == np.float32
    assert row.shape == (512,)
    assert not row.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        row[0] = 1.0
    sequence.close()


@needs_stories
def test_a_context_that_is_full_leaves_the_sequence_usable(stories):
    sequence = stories.sequence()
    sequence.forward([1] * 510)
    with pytest.raises(InputError, match=r"513 tokens; the context of stories holds 512"):
        sequence.forward([1, 1, 1])
    sequence.forward([1, 1])
    assert len(sequence) == 512
    with pytest.raises(InputError, match="at least one token"):
        sequence.forward([])
    sequence.close()


@needs_stories
def test_sequences_do_not_disturb_each_other():
    decoder = open_stories(max_sequences=2)
    alone = greedy(decoder, [1], 20)
    first, second = decoder.sequence(), decoder.sequence()
    other = second.forward([1, 400, 300])
    kept = other.copy()
    row, out = first.forward([1]), []
    for step in range(20):
        out.append(int(row.argmax()))
        second.forward([300 + step])
        row = first.forward(out[-1:])
    assert out == alone
    second.close()
    again = decoder.sequence()
    np.testing.assert_allclose(again.forward([1, 400, 300]), kept, atol=1e-4)
    decoder.close()


@needs_stories
def test_threads_take_turns():
    decoder = open_stories(max_sequences=2, context=128)
    expected = greedy(decoder, [1], 60)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: greedy(decoder, [1], 60), range(8)))
    assert results == [expected] * 8
    decoder.close()


@needs_stories
def test_a_caller_waits_for_a_sequence_and_then_is_told():
    decoder = open_stories(wait_s=0.05)
    held = decoder.sequence()
    with pytest.raises(Busy, match="stories"):
        decoder.sequence()
    timer = threading.Timer(0.01, held.close)
    timer.start()
    decoder._wait_s = 10.0
    decoder.sequence().close()
    timer.join()
    decoder.close()


@needs_stories
def test_use_after_close():
    decoder = open_stories()
    sequence = decoder.sequence()
    decoder.close()
    decoder.close()
    for call in (
        lambda: sequence.forward([1]),
        decoder.sequence,
        lambda: decoder.tokenize("a"),
        lambda: decoder.piece(1),
    ):
        with pytest.raises(ModelError, match="closed"):
            call()
    sequence.close()
    sequence.close()


@needs_stories
def test_a_closed_sequence_is_refused(stories):
    sequence = stories.sequence()
    sequence.close()
    with pytest.raises(ModelError, match="closed"):
        sequence.forward([1])


@needs_stories
def test_files_that_are_no_models_are_errors(tmp_path):
    whole = MODEL.read_bytes()
    unusable, refused = "is not a usable GGUF file", "cannot be loaded"
    for name, raw, words in (
        ("cut", whole[: len(whole) // 2], unusable),
        ("head", whole[:100], unusable),
        ("empty", b"", unusable),
        ("foreign", b"PK" + bytes(1000), unusable),
        ("renamed", whole.replace(b"llama.block_count", b"llama.block_cnt__"), refused),
        (
            "other",
            whole.replace(b"\x05" + bytes(7) + b"llama", b"\x05" + bytes(7) + b"xlama"),
            refused,
        ),
    ):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(raw)
        with pytest.raises(LoadError, match=f"{name}.gguf {words}"):
            LlamaDecoder.open(path, name=name, digest="0" * 64, threads=1)
    with pytest.raises(LoadError, match="none"):
        LlamaDecoder.open(tmp_path / "none.gguf", name="none", digest="0" * 64)


@needs_stories
def test_wrong_options_are_errors():
    with pytest.raises(InputError):
        open_stories(context=0)
    with pytest.raises(DeviceFallback, match="abacus"):
        open_stories(device="abacus")


@needs_stories
@pytest.mark.parametrize(
    "ending", ["", "sequence.close(); decoder.close()", "del decoder", "raise SystemExit(0)"]
)
def test_the_process_ends_cleanly_and_silently(ending):
    code = f"""
from pathlib import Path
from edge.backends.llama.decoder import LlamaDecoder
decoder = LlamaDecoder.open(Path({str(MODEL)!r}), name="s", digest="0" * 64, threads=1)
sequence = decoder.sequence()
row = sequence.forward([1])
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", code],
        capture_output=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.skipif(not SHIPPED, reason="no decoder has been built under models/")
def test_shipped_decoders_generate():
    for name in SHIPPED:
        manifest = STORE.manifest(name)
        decoder = LlamaDecoder.open(
            STORE.path(name), name=name, digest=manifest.digest, context=manifest.context or 2048
        )
        tokens = decoder.tokenize("play some jazz")
        runs = [generate(decoder, tokens, params=GREEDY, max_tokens=8) for _ in range(2)]
        assert runs[0] == runs[1]
        assert runs[0].tokens
        assert decoder.end_tokens
        decoder.close()
