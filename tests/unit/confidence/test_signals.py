"""Signals of whole answers: what they are taken over, and that every name is declared."""

from dataclasses import fields as attributes

import pytest

from edge.backends.heads import HeadOutput
from edge.choosing import signals as choice_signals
from edge.confidence.coverage import coverage
from edge.confidence.fields import field_tokens
from edge.confidence.likely import MOST, likely
from edge.confidence.signals import as_row, generation_signals
from edge.policy.rules import SIGNALS
from edge.types import Choice, TokenStats

PIECES = (b'{"', b"a", b'":"', b"x", b'","', b"b", b'":"', b"y", b"z", b'"', b"}", b"")
LOGPROBS = (-9, -1, -9, -0.2, -0.4, -1, -9, -0.1, -0.3, -0.8, -9, -9)
MARGINS = (0, 3, 0, 5, 4, 2, 0, 6, 1, 7, 0, 0)
STATS = tuple(
    TokenStats(at, logprob, 0.1, margin, allowed_mass=0.7 if at == 8 else 1.0)
    for at, (logprob, margin) in enumerate(zip(LOGPROBS, MARGINS, strict=True))
)


def test_value_signals_leave_structure_out():
    found = generation_signals(STATS, fields=field_tokens(PIECES, STATS).values())
    # The token of quotes and a comma ends the first value and holds nothing of the second.
    wanted = {
        "value_mean_logprob": -0.36,
        "value_min_logprob": -0.8,
        "value_q10_logprob": -0.64,
        "value_margin": 1.0,
        "outside_mass": 0.3,
        "first_margin": 5.0,
        "name_margin": 0.0,
        "worst_field": -0.4,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_fields_leave_the_signals_over_all_tokens_as_they_are():
    with_fields = generation_signals(STATS, fields=field_tokens(PIECES, STATS).values())
    without = generation_signals(STATS)
    for name in ("mean_logprob", "min_logprob", "q10_logprob", "min_margin", "tokens"):
        assert with_fields[name] == without[name]
    assert without["min_logprob"] == -9
    assert without["tokens"] == len(STATS)


def test_a_text_is_one_value_without_a_name():
    found = generation_signals(STATS)
    assert found["value_mean_logprob"] == found["mean_logprob"] == found["worst_field"]
    assert found["first_margin"] == MARGINS[0]
    assert "name_margin" not in found


def test_nothing_chosen_gives_finite_numbers():
    found = generation_signals([], missing_fields=2)
    assert found.pop("missing") == 2
    assert set(found.values()) == {0.0}
    assert as_row(found, ["mean_logprob", "worst_field"]) == [0.0, 0.0]
    assert as_row(found, ["left_out"]) is None


@pytest.mark.parametrize(
    ("value", "source", "wanted"),
    [
        # Wanted: partial, left_out and overlap.
        ({"city": "Boston"}, "a table in Boston", (0, 0, 0)),
        ({"city": "Rocky"}, "a table in Rocky Fork for 2", (0, 2, 0)),
        ({"type": "photograph"}, "Find The Photographic photographs", (1, 2, 0)),
        ({"a": "Nora Fiji", "b": "Fiji"}, "rain in Nora Fiji", (0, 0, 1)),
        # Of two places the one that no value holds yet is taken.
        ({"a": "two", "b": "two"}, "two for two", (0, 0, 0)),
        ({"a": "art"}, "party art", (0, 0, 0)),
        # The first word is no name, and neither is a single letter; a digit is a number.
        ({}, "Find what I want", (0, 0, 0)),
        ({}, "book for 6", (0, 1, 0)),
        # Without small letters nothing tells which words are names.
        ({}, "PLAY SOME JAZZ", (0, 0, 0)),
        ({}, "PLAY THE TOP 20", (0, 1, 0)),
        # Nested values and numbers hold words; a truth value does not.
        ({"a": [{"b": "Ann"}, 7, True]}, "tell Ann at 7", (0, 0, 0)),
        # What does not occur or is skipped is passed over.
        ({"a": "Paris", "intent": "Rome"}, "go to Rome", (0, 1, 0)),
        ({"a": ""}, "", (0, 0, 0)),
        (None, "see Ann", (0, 1, 0)),
    ],
)
def test_coverage_of_a_text(value, source, wanted):
    found = coverage(value, source, skip={"intent"})
    assert (found["partial"], found["left_out"], found["overlap"]) == wanted


def test_coverage_reads_deep_nesting():
    value = "Ann"
    for _ in range(5000):
        value = [value]
    assert coverage(value, "see Ann")["left_out"] == 0


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [
        ([("a", 0.004), ("b", 0.995), ("c", 0.001)], ("b",)),
        ([("a", 0.5), ("b", 0.3), ("c", 0.2)], ("a", "b", "c")),
        ([("a", 0.005), ("b", 0.4), ("c", 0.595)], ("c", "b")),
        ([(str(at), 1 / (MOST + 1)) for at in range(MOST + 1)], ()),
        ([], ()),
    ],
)
def test_likely_labels(shares, wanted):
    assert likely(shares) == wanted


def test_every_signal_is_declared():
    fields = field_tokens(PIECES, STATS).values()
    choice = Choice(
        value="a",
        distribution={"a": 0.7, "b": 0.3},
        log_mass=-1.0,
        model="m",
        digest="d",
        device="cpu",
        tokens_in=1,
    )
    head = HeadOutput(**{each.name: 0.5 for each in attributes(HeadOutput)})
    made = (
        generation_signals(STATS, fields=fields),
        coverage({}, ""),
        choice_signals(choice),
        head.signals,
    )
    assert {name for each in made for name in each} == set(SIGNALS) - {"confidence", "energy"}
    assert len(SIGNALS) == len(set(SIGNALS))
