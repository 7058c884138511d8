"""Deterministic checks on answers."""

import pytest

from edge.errors import ConfigError
from edge.judge import check_schema, judge, value_problem
from edge.task import TaskSpec
from edge.types import Draft, Reason

SCHEMA = {
    "type": "object",
    "required": ["intent"],
    "properties": {"intent": {"enum": ["A", "B"]}, "n": {"type": "string"}},
    "additionalProperties": False,
}
EXTRACT = TaskSpec(kind="extract", model="m", prompt="p", output_schema=SCHEMA)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"intent": "A", "n": "x"}, None),
        ({"intent": "C"}, "intent"),
        ({}, "required"),
        ({"intent": "A", "z": 1}, "additionalProperties"),
        ({"intent": "A", "n": 3}, "n"),
        (None, "type"),
        ([1], "type"),
    ],
)
def test_a_call_against_its_schema(value, words):
    problem = value_problem(EXTRACT, value)
    assert problem is None if words is None else words in problem


def test_labels_and_empty_texts():
    classify = TaskSpec(kind="classify", model="m")
    assert value_problem(classify, "x", labels=("a", "b"))
    assert value_problem(classify, "a", labels=("a", "b")) is None
    generate = TaskSpec(kind="generate")
    assert value_problem(generate, "  ")
    assert value_problem(generate, "yes") is None


def test_a_problem_of_the_draft_wins_and_no_answer_text_is_in_it():
    draft = Draft({"intent": "secret"}, "m", "d", "cpu", confidence=0.9, truncated=True)
    found = judge(EXTRACT, draft)
    assert not found.valid
    assert found.confidence is None
    assert found.reasons == (Reason.INPUT_TRUNCATED,)
    assert "secret" not in found.problem


def test_a_schema_that_is_none():
    with pytest.raises(ConfigError, match="action"):
        check_schema("action", {"type": "no such type"})
