"""Signals of single fields: whose tokens are whose, and which fields are not trusted."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.confidence.fields import doubtful, field_signals, field_tokens, scan
from edge.types import TokenStats

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def entry(token, logprob=-0.5, *, entropy=0.1, margin=1.0, mass=1.0):
    return TokenStats(token, logprob, entropy, margin, allowed_mass=mass)


def forced(token):
    return TokenStats(token, math.nan, math.nan, math.nan)


def laid(pieces, *, without=()):
    """Return who has which tokens, by their places: name -> (of the name, of the value)."""
    stats = [forced(at) if at in without else entry(at) for at in range(len(pieces))]
    found = field_tokens([piece.encode() for piece in pieces], stats)
    return {
        name: ([each.token for each in part.named], [each.token for each in part.value])
        for name, part in found.items()
    }


@pytest.mark.parametrize(
    ("pieces", "wanted"),
    [
        # The quote that ends a value is a choice, the marks around it are not.
        (["{", '"', "a", '":', ' "', "x", " y", '"', "}"], {"a": ([2, 3], [5, 6, 7])}),
        # A token that straddles a border counts on both sides.
        (['{"a": "x', ' y", "b": ', "1", "}"], {"a": ([0], [0, 1]), "b": ([1], [2])}),
        (['{"a": "', 'x"}'], {"a": ([0], [1])}),
        # Nested values count to their field, nested names and marks do not.
        (
            ['{"a":', "[", "1", ",", '{"k":', "true", "}", "]", ',"b":', "null", "}"],
            {"a": ([0], [2, 5]), "b": ([8], [9])},
        ),
        # Escapes and marks within strings are no structure.
        (['{"a":', '"', r"\"", "}", ",", '"', "}"], {"a": ([0], [2, 3, 4, 5])}),
        # Of a name that occurs twice, both places count.
        (['{"a":', "1", ',"a":', "2", "}"], {"a": ([0, 2], [1, 3])}),
        # What follows the object belongs to none of it.
        (['{"a":', "1", "}", ' {"b":', "2", "}", ""], {"a": ([0], [1])}),
        # White space between, an empty value, an empty object.
        ([' {\n "a" : ', '"', '" }'], {"a": ([0], [2])}),
        (["{", "}"], {}),
        # No object has no fields.
        (['["a"', ":", "1]"], {}),
        (["plain text"], {}),
        ([], {}),
    ],
)
def test_tokens_are_laid_over_fields(pieces, wanted):
    assert laid(pieces) == wanted


def test_a_character_split_over_tokens_is_one_value():
    body = '{"ü": "né"}'.encode()
    found = field_tokens([body[at : at + 1] for at in range(len(body))], tokens_of(body))
    assert [each.token for each in found["ü"].value] == [8, 9, 10, 11]
    assert bytes(body[each.token] for each in found["ü"].value).decode() == 'né"'


def tokens_of(body):
    return [entry(at) for at in range(len(body))]


def test_forced_tokens_carry_no_weight():
    assert laid(['{"', "a", '":"', "x", '"}'], without={0, 1, 2, 3}) == {"a": ([], [4])}
    assert laid(['{"', "a", '":"', "x", '"}'], without=range(5)) == {"a": ([], [])}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"a": "x', ["a"]),
        ('{"a": 1, "b', ["a", "b"]),
        ('{"a": 1, "b": "\\', ["a", "b"]),
        ('{"a": [1, {"k": ', ["a"]),
        ('{"a": 1}}', ["a"]),
        ('{"a" 1 "b" 2}', ["a", "1", "b", "2"]),
        ('{:,}"', []),
        ("}{", []),
    ],
)
def test_broken_json_gives_fields_up_to_the_break(text, wanted):
    assert [each.name for each in scan(text.encode())] == wanted


@given(st.dictionaries(st.text(), JSON, max_size=4), st.booleans())
def test_every_field_of_an_object_is_found(value, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    found = scan(body)
    assert [each.name for each in found] == list(value)
    for each in found:
        shown = value[each.name]
        start, end = each.named
        assert json.loads(b'"' + body[start:end]) == each.name
        if isinstance(shown, str):
            assert json.loads(b'"' + body[slice(*each.values[0])]) == shown
        elif not isinstance(shown, dict | list):
            assert body[slice(*each.values[0])].decode() == json.dumps(shown)


@given(st.binary(max_size=60) | st.text('{}[]":,\\ a1', max_size=60).map(str.encode))
def test_no_bytes_raise(body):
    for each in scan(body):
        assert all(0 <= start <= end <= len(body) for start, end in [each.named, *each.values])


def test_signals_of_a_field():
    stats = [
        entry(0, -9.0, margin=0.0, mass=0.0),
        entry(1, -0.5, entropy=0.2, margin=3.0, mass=0.9),
        entry(2, -0.1, entropy=0.9, margin=0.5, mass=0.6),
        entry(3, -0.3, margin=2.0),
    ]
    tokens = field_tokens([b'{"a": ', b'"x', b"y", b'"', b"}"], [*stats, entry(4, -7.0)])["a"]
    found = field_signals(tokens, copied=True)
    assert found == pytest.approx(
        {
            "tokens": 3,
            "mean_logprob": -0.3,
            "min_logprob": -0.5,
            "q10_logprob": -0.46,
            "min_margin": 0.5,
            "max_entropy": 0.9,
            "outside_mass": 0.4,
            "first_margin": 3.0,
            "first_outside": 0.1,
            "name_margin": 0.0,
            "copied": 1.0,
        }
    )


def test_a_field_that_was_forced_has_no_numbers():
    tokens = field_tokens([b'{"a":1}'], [forced(0)])["a"]
    assert field_signals(tokens) == {"tokens": 0.0}
    assert field_signals(tokens, copied=False) == {"tokens": 0.0, "copied": 0.0}
    assert doubtful({"a": field_signals(tokens)}) == ()


SURE = {"min_margin": 9.0, "name_margin": 9.0, "copied": 1.0}


@pytest.mark.parametrize(
    ("second", "left_out", "wanted"),
    [
        ({}, 0.0, ()),
        ({"min_margin": 0.1}, 0.0, ("b",)),
        ({"copied": 0.0}, 0.0, ("b",)),
        # What fields there should be is in doubt, so all are.
        ({"name_margin": 0.1}, 0.0, ("a", "b")),
        ({}, 1.0, ("a", "b")),
    ],
)
def test_which_fields_are_not_trusted(second, left_out, wanted):
    assert doubtful({"a": SURE, "b": SURE | second}, left_out=left_out) == wanted
