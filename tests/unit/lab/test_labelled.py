"""Labelled rows: what is read, what is refused and with which line, and what counts as right."""

import json

import pytest

from edge.confidence.fusion import row_digest
from edge.errors import InputError
from edge.judge import is_right, plain
from edge.lab.labelled import (
    Example,
    check_labels,
    check_unseen,
    read_examples,
)
from edge.types import Kind


def lines(count, **changed):
    rows = [json.dumps({"text": f"text {at}", "label": "a"}) for at in range(count)]
    return [changed.get(f"line{number}", row) for number, row in enumerate(rows, start=1)]


def test_examples_are_read_in_order_and_empty_lines_are_passed_over():
    found = read_examples(["", *lines(40), "  "], name="rows.jsonl", kind=Kind.CLASSIFY)
    assert [each.text for each in found] == [f"text {at}" for at in range(40)]
    assert found[0] == Example("text 0", "a", "Line 2 of rows.jsonl")


def test_an_extraction_has_an_object():
    rows = [json.dumps({"text": f"text {at}", "value": {"city": "Bonn"}}) for at in range(40)]
    assert read_examples(rows, name="r", kind=Kind.EXTRACT)[0].gold == {"city": "Bonn"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "Line 3 of r.jsonl is not JSON"),
        ('{"text": "x", "label": NaN}', "Line 3 of r.jsonl is not JSON"),
        ("[1]", "Line 3 of r.jsonl has no text or no label"),
        ('{"text": "x"}', "Line 3 of r.jsonl has no text or no label"),
        ('{"text": "  ", "label": "a"}', "Line 3 of r.jsonl has a text that is empty"),
        ('{"text": 3, "label": "a"}', "Line 3 of r.jsonl has a text that is empty or no string"),
        ('{"text": "x", "label": 3}', "Line 3 of r.jsonl has a label of type int"),
        ('{"text": "text 0", "label": "b"}', "Line 3 of r.jsonl repeats the text of line 1 of"),
    ],
)
def test_a_line_that_is_no_example_is_named(row, words):
    with pytest.raises(InputError, match=words):
        read_examples(lines(50, line3=row), name="r.jsonl", kind=Kind.CLASSIFY)


@pytest.mark.parametrize("text", ["TEXT 0", "  text 0", "text \\t 0", "Text\\u00a00"])
def test_a_copy_in_other_case_or_white_space_is_a_repeat(text):
    row = f'{{"text": "{text}", "label": "a"}}'
    with pytest.raises(InputError, match=r"Line 3 of r.jsonl repeats the text of line 1 of"):
        read_examples(lines(50, line3=row), name="r.jsonl", kind=Kind.CLASSIFY)


def test_rows_that_a_model_was_made_from_are_counted():
    rows = [Example("A  text", "a", "Line 1"), Example("other", "b", "Line 2")]
    check_unseen(rows, {row_digest("a third")}, model="m")
    for known in ({row_digest("a text")}, {row_digest("A  text")}):
        with pytest.raises(InputError, match="1 of these 2 rows are ones that m was made from"):
            check_unseen(rows, known, model="m")


def test_few_rows_say_nothing():
    with pytest.raises(InputError, match="has 5 labelled rows; below 40 they say nothing"):
        read_examples(lines(5), name="r.jsonl", kind=Kind.CLASSIFY)


def test_a_draft_has_no_right_answer():
    with pytest.raises(InputError, match="kind generate has no right answer"):
        read_examples(lines(50), name="r.jsonl", kind=Kind.GENERATE)


def test_a_label_must_be_one_of_the_tasks():
    rows = [Example("x", "a", "Line 1"), Example("y", None, "Line 2"), Example("z", "q", "Line 3")]
    check_labels(rows[:2], ["a", "b"])
    with pytest.raises(InputError, match=r"Line 3 has the label 'q', which is not one of .* 2"):
        check_labels(rows, ["a", "b"])


@pytest.mark.parametrize(
    ("found", "gold", "right"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", None, False),
        (None, None, False),
        ({"city": " BONN"}, {"city": "Bonn"}, True),
        ({"city": "Bonn", "day": "monday"}, {"city": "Bonn"}, False),
        ({"city": "Ulm"}, {"city": "Bonn"}, False),
        (None, {"city": "Bonn"}, False),
        ("Bonn", {"city": "Bonn"}, False),
    ],
)
def test_what_is_right(found, gold, right):
    assert is_right(found, gold) is right


def test_case_and_white_space_are_out_of_the_way():
    assert plain({"a": "R&B  Jams"}) == plain({"a": "r&b jams"})
