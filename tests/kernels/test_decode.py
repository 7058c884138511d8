"""The decode loop in plain C over a model of pieces: what is certain, and when it ends."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

STOP, LENGTH = 1, 2
NEVER = 64


@pytest.fixture(scope="module")
def program(compiled):
    return compiled("decode_check", "decode", "-g", "-fsanitize=address,undefined")


def run(program, pieces, *, stops=(), room=None, end=NEVER, chunk=8):
    """Return (finish, kept, batch, certain) after every step."""
    room = len(pieces) if room is None else room
    words = [room, chunk, end, len(stops), *stops, *pieces]
    command = [program, *(word if isinstance(word, bytes) else str(word) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ") for line in done.stdout.splitlines()]
    return [(int(a), int(b), int(c), bytes.fromhex(text)) for a, b, c, text in lines]


def certain(program, pieces, **settings):
    return [text for *_, text in run(program, pieces, **settings)]


def expected(pieces, stops):
    """The certain text after every piece, until the first stop string is whole."""
    text, found = b"", []
    for at, piece in enumerate(pieces):
        text += piece
        whole = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        if whole:
            return [*found, text[: min(whole)[1]]]
        held = 0 if at + 1 == len(pieces) else max(open_stop(text, stops), open_character(text))
        found.append(text[: len(text) - held])
    return found


def open_stop(text, stops):
    starts = (stop[:length] for stop in stops for length in range(1, len(stop)))
    return max((len(start) for start in starts if text.endswith(start)), default=0)


def open_character(text):
    for back in range(1, min(3, len(text)) + 1):
        lead = text[-back]
        wants = 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1
        if lead < 0x80 or lead >= 0xC0:
            return back if back < wants else 0
    return 0


@pytest.mark.parametrize(
    ("pieces", "stops", "found"),
    [
        ([b"a", b"b"], [], [b"a", b"ab"]),
        ([b"a", b"E", b"N", b"D"], [b"END"], [b"a", b"a", b"a", b"a"]),
        ([b"a", b"E", b"N", b"x"], [b"END"], [b"a", b"a", b"a", b"aENx"]),
        ([b"xEN", b"Dy", b"z"], [b"END"], [b"x", b"x"]),
        ([b"abc"], [b"bc", b"b"], [b"a"]),
        ([b"\xe2", b"\x82", b"\xac", b"."], [], [b"", b"", "€".encode(), "€.".encode()]),
        ([b"\xf0\x9f", b"\x99\x82!", b"."], [], [b"", "🙂!".encode(), "🙂!.".encode()]),
        ([b"", b"a"], [b"ab"], [b"", b"a"]),
    ],
)
def test_what_is_certain_after_every_token(program, pieces, stops, found):
    assert certain(program, pieces, stops=stops) == found
    assert expected(pieces, stops) == found


TEXTS = st.lists(st.sampled_from([b"a", b"b"]), max_size=4).map(b"".join)
PIECES = st.lists(TEXTS | st.sampled_from(["é".encode()[:1], "é".encode()[1:]]), min_size=1)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS.filter(bool), max_size=3), PIECES.filter(lambda pieces: len(pieces) < NEVER))
def test_text_is_held_back_only_as_long_as_needed(program, stops, pieces):
    assert certain(program, pieces, stops=stops) == expected(pieces, stops)


def test_how_a_generation_ends(program):
    pieces = [b"a", b"b", b"STOP", b"c"]
    assert run(program, pieces, room=2)[-1][::3] == (LENGTH, b"ab")
    assert run(program, pieces, stops=[b"STOP"])[-1][::3] == (STOP, b"ab")
    assert run(program, pieces, end=1)[-1][::3] == (STOP, b"a")
    assert run(program, [b"S", b"T"], stops=[b"STOP"])[-1][::3] == (LENGTH, b"ST")


@pytest.mark.parametrize(
    ("chunk", "reads"),
    [(8, [(5, 5), (6, 1)]), (5, [(5, 5), (6, 1)]), (2, [(2, 2), (4, 2), (5, 1), (6, 1)])],
)
def test_a_prompt_is_read_in_batches_and_then_a_token_a_step(program, chunk, reads):
    assert [step[1:3] for step in run(program, [b"a", b"b"], chunk=chunk)] == reads
