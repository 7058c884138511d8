"""The token loop: whole characters, hidden stop strings, every way it ends."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.backends.fake import END, VOCAB_SIZE, FakeDecoder, FakeEncoder
from edge.backends.generate import Generation, generate, stream
from edge.errors import GenerationError, InputError, ModelError
from edge.types import SamplingParams, Usage

GREEDY = SamplingParams()


class Pieces(FakeDecoder):
    """A decoder whose tokens are given byte strings, one after the other."""

    def __init__(self, pieces):
        super().__init__("")
        self.pieces = pieces

    def piece(self, token, *, special=False):
        return self.pieces[token] if token < len(self.pieces) else b""

    def sequence(self):
        sequence = super().sequence()
        rows = np.eye(VOCAB_SIZE, dtype=np.float32) * 9
        steps = iter([*range(len(self.pieces)), END])
        sequence.forward = lambda _tokens: rows[next(steps)]
        return sequence


def run(reply, *, max_tokens=1000, **options):
    decoder = FakeDecoder(reply)
    pieces = []
    result = generate(
        decoder,
        decoder.tokenize("hi"),
        params=GREEDY,
        max_tokens=max_tokens,
        on_text=pieces.append,
        **options,
    )
    assert "".join(pieces) == result.text
    assert all(pieces)
    assert decoder.open_sequences == 0
    return result, pieces


def test_a_whole_answer():
    result, pieces = run("Grüße 👋!")
    assert result.text == "Grüße 👋!"
    assert pieces == list("Grüße 👋!")
    assert result.finish == "stop"
    assert result.tokens == (*"Grüße 👋!".encode(), END)
    assert result.usage == Usage(3, 14)
    assert [entry.token for entry in result.stats] == list(result.tokens)
    assert all(entry.margin == pytest.approx(12.0) for entry in result.stats)


def test_length():
    result, _ = run("abcdef", max_tokens=3)
    assert (result.text, result.finish, result.usage.tokens_out) == ("abc", "length", 3)


def test_a_character_cut_off_at_the_end_is_left_out():
    result, _ = run("ab👋", max_tokens=4)
    assert (result.text, result.finish) == ("ab", "length")


@pytest.mark.parametrize(
    ("reply", "stop", "text"),
    [
        ("one two three", [" two"], "one"),
        ("one two three", [" tw", "o three"], "one"),
        ("aaab", ["aab"], "a"),
        ("one", ["one more"], "one"),
        ("one two", ["x", "one tx"], "one two"),
        ("Grüße", ["üß"], "Gr"),
        ("abc", ["abc", "b"], "a"),
    ],
)
def test_stop_strings(reply, stop, text):
    result, pieces = run(reply, stop=stop)
    assert result.text == text
    assert result.finish == "stop"
    assert not any(word in "".join(pieces) for word in stop)


def split(data, cuts):
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


@given(
    st.text(alphabet="abß👋", max_size=12),
    st.lists(st.text(alphabet="abß👋", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(0, 60), max_size=8),
)
def test_token_borders_do_not_matter(reply, stop, cuts):
    whole, _ = run(reply, stop=stop)
    decoder = Pieces(split(reply.encode(), cuts))
    parts = []
    result = generate(decoder, [1], params=GREEDY, max_tokens=99, stop=stop, on_text=parts.append)
    assert result.text == whole.text
    assert "".join(parts) == whole.text


def test_bytes_that_are_no_text_become_replacement_characters():
    decoder = Pieces([b"a\xff", b"b"])
    assert generate(decoder, [1], params=GREEDY, max_tokens=9).text == "a\N{REPLACEMENT CHARACTER}b"


def test_cancel():
    answers = iter([False, False, True])
    result, _ = run("abcdef", cancel=lambda: next(answers))
    assert (result.text, result.finish) == ("ab", "cancelled")


def test_cancel_before_the_first_token():
    result, _ = run("abc", cancel=lambda: True)
    assert (result.text, result.tokens, result.finish) == ("", (), "cancelled")


def test_a_full_context_ends_the_text():
    decoder = FakeDecoder("abcdefgh", context=5)
    result = generate(decoder, [1, 2], params=GREEDY, max_tokens=99)
    assert (result.text, result.finish) == ("abc", "length")


@pytest.mark.parametrize(
    ("tokens", "options", "words"),
    [
        ([], {}, "no tokens"),
        ([1] * 8, {}, "8 tokens; the context of fake-decoder holds 8"),
        ([1], {"max_tokens": 0}, "max_tokens is 0"),
        ([1], {"stop": ["a", ""]}, "stop string is empty"),
        ([VOCAB_SIZE], {}, "outside the vocabulary"),
    ],
)
def test_wrong_input_is_refused(tokens, options, words):
    decoder = FakeDecoder("abc", context=8)
    with pytest.raises(InputError, match=words):
        stream(decoder, tokens, params=GREEDY, **{"max_tokens": 4, **options})
    assert decoder.open_sequences == 0


def test_an_engine_failure_gives_the_sequence_back():
    decoder = FakeDecoder("abcdef", fail_after=3)
    with pytest.raises(GenerationError):
        generate(decoder, [1], params=GREEDY, max_tokens=9)
    assert decoder.open_sequences == 0


def test_an_abandoned_stream_gives_the_sequence_back():
    decoder = FakeDecoder("abcdef")
    steps = stream(decoder, [1], params=GREEDY, max_tokens=9)
    assert next(steps) == "a"
    assert decoder.open_sequences == 1
    steps.close()
    assert decoder.open_sequences == 0


def test_a_stream_ends_with_its_generation():
    steps = list(stream(FakeDecoder("ab"), [1], params=GREEDY, max_tokens=9))
    assert steps[:-1] == ["a", "b"]
    assert isinstance(steps[-1], Generation)


def test_allowed_tokens():
    seen = []

    def only_vowels(tokens):
        seen.append(len(tokens))
        mask = np.zeros((VOCAB_SIZE + 31) // 32, np.uint32)
        for token in b"aeiou":
            mask[token // 32] |= np.uint32(1 << token % 32)
        return mask if len(tokens) < 3 else None

    result, _ = run("xxxb", max_tokens=4, allowed=only_vowels)
    assert set(result.text[:3]) <= set("aeiou")
    assert result.text[3] == "b"
    assert seen == [0, 1, 2, 3]


def test_the_prompt_counts_for_the_penalties():
    params = SamplingParams(presence_penalty=20.0)
    result = generate(FakeDecoder("a"), list(b"a"), params=params, max_tokens=1)
    assert result.text != "a"


def test_fake_models_say_so_and_close():
    decoder, encoder = FakeDecoder(), FakeEncoder()
    assert decoder.info.engine == encoder.info.engine == "fake"
    near, far = (
        encoder.embed(["pay the bill", "a bill to pay", "rainy weather"])[1:]
        @ (encoder.embed(["pay the bill"])[0])
    )
    assert near > far
    decoder.close()
    encoder.close()
    with pytest.raises(ModelError):
        decoder.sequence()
    with pytest.raises(ModelError):
        encoder.embed(["x"])
