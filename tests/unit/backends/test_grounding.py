"""A grounded value takes the input's own characters, or counts as missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.backends.grounding import MAX_DEPTH, ground, ground_object

SOURCE = 'Wake me at 5:30 PM in  New\tYork, says "Ann O\'Neil" (Room 12b); straße İstanbul'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("new york", "New\tYork"),
        ("NEW   YORK", "New\tYork"),
        (" 5 : 30 pm", "5:30 PM"),
        ("5:30pm", None),
        ("ann o ' neil", "Ann O'Neil"),
        ("says ann", 'says "Ann'),
        ("( room 12b )", "(Room 12b)"),
        ("STRASSE", "straße"),
        ("i̇stanbul", "İstanbul"),
        ("İSTANBUL", "İstanbul"),
        ("London", None),
        ("york new", None),
        ("newyork", None),
        ("12", "12"),
        ("", None),
        ("   ", None),
        ('"', None),
    ],
)
def test_ground(value, expected):
    assert ground(value, SOURCE) == expected


def test_whole_words_come_first():
    assert ground("cat", "Concatenate, then the CAT") == "CAT"
    assert ground("cat", "Concatenate") == "cat"
    assert ground("2", "at 12 or 2") == "2"


def test_pattern_characters_are_plain_text():
    assert ground("a.c", "abc a.c") == "a.c"
    assert ground(".*", "nothing") is None
    assert ground("$5.00 (net)", "pay $5.00 (NET)!") == "$5.00 (NET)"


def test_ground_object():
    answer = {
        "intent": "book",
        "city": "new york",
        "when": ["5 : 30 pm", "noon"],
        "who": {"first": "ann", "age": 7, "none": None},
    }
    grounded, missing = ground_object(answer, SOURCE, skip={"intent"})
    assert grounded == {
        "intent": "book",
        "city": "New\tYork",
        "when": ["5:30 PM", "noon"],
        "who": {"first": "Ann", "age": 7, "none": None},
    }
    assert missing == ("when[1]",)
    assert answer["city"] == "new york"
    assert ground_object({"intent": "book"}, SOURCE)[1] == ("intent",)


def test_deep_nesting_is_missing_not_a_crash():
    value: object = "ann"
    for _ in range(MAX_DEPTH + 400):
        value = [value]
    assert len(ground_object(value, SOURCE)[1]) == 1


@given(st.text(max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_every_slice_grounds_to_the_same_words(source, start, end):
    value = source[start:end]
    found = ground(value, source)
    if found is None:
        assert not any(character.isalnum() for character in value)
    else:
        assert found in source
