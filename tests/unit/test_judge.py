"""Deterministic checks on answers."""

import datetime as dt
import json
import math

import pytest
import yaml

import edge
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


def deep(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


# name -> (schema, what the error says)
WRONG = {
    "address": ({"$ref": "http://host.example/s.json"}, "'http://host.example/s.json'"),
    "file": ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "'file:///etc/passwd'"),
    "in a part": ({"allOf": [{"items": {"not": {"$ref": "other.json"}}}]}, "'other.json'"),
    "dynamic": ({"$dynamicRef": "http://host.example/s#a"}, "'http://host.example/s#a'"),
    "nowhere": ({"$ref": "#/nope"}, "'#/nope'"),
    "no anchor": ({"items": {"$ref": "#nope"}}, "'#nope'"),
    "no index": ({"anyOf": [{}], "items": {"$ref": "#/anyOf/x"}}, "'#/anyOf/x'"),
    "not in the base": ({"$id": "http://host.example/a", "$ref": "other"}, "'other'"),
    "not a URI": ({"items": {"$ref": "http://["}}, r"'http://\['"),
    "the meta-schema": ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "2020-12"),
    "behind a reference": (
        {"$ref": "#/x/y", "x": {"y": {"$ref": "http://host.example/s.json"}}},
        "'http://host.example/s.json'",
    ),
    "to no schema": ({"$ref": "#/x", "x": {"type": 5}}, "5"),
    "to a text": ({"$ref": "#/title", "title": "x"}, "'x'"),
    "itself": ({"$ref": "#"}, "leads back to itself"),
    "itself later": (
        {"items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}]}}},
        "leads back to itself",
    ),
    "a date": ({"const": dt.date(2026, 1, 2)}, "not JSON"),
    "not a number": ({"const": math.nan}, "not JSON"),
    "half of a pair": ({"const": "\ud800"}, "not JSON"),
    "a key": ({"properties": {1: {"type": "string"}}}, "a key that is not text"),
    "mixed keys": ({"properties": {True: {}, "b": {}}}, "a key that is not text"),
    "an alias": (yaml.safe_load("&a {items: *a}"), "not JSON"),
    "deep": (deep(5_000), "nested too deep"),
    "bad type": ({"type": "no such type"}, "no JSON Schema"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_schema_that_cannot_be_used_is_refused_at_open(name):
    schema, words = WRONG[name]
    with pytest.raises(ConfigError, match=words) as caught:
        check_schema("action", schema)
    assert "task action" in caught.value.message


# name -> (schema, a value that fits, a value that does not)
RIGHT = {
    "definition": ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "null"}}}, None, 1),
    "tree": (
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False},
        {"next": {"next": {}}},
        {"next": {"other": {}}},
    ),
    "anchor": ({"$ref": "#x", "$defs": {"x": {"$anchor": "x", "type": "null"}}}, None, 1),
    "dynamic anchor": (
        {"$dynamicAnchor": "n", "type": "array", "items": {"$dynamicRef": "#n"}},
        [[], [[]]],
        [1],
    ),
    "inner $id": (
        {
            "$id": "http://host.example/a",
            "items": {"$ref": "c"},
            "$defs": {"x": {"$id": "c", "type": "null"}},
        },
        [None],
        [1],
    ),
    "a property of that name": (
        {"properties": {"$ref": {"type": "string"}}}, {"$ref": "x"}, {"$ref": 1},
    ),
    "a value of that name": ({"const": {"$ref": "other.json"}}, {"$ref": "other.json"}, 1),
    "draft 7 inside": (
        {
            "properties": {
                "a": {
                    "$schema": "http://json-schema.org/draft-07/schema#",
                    "$ref": "#/definitions/x",
                }
            },
            "definitions": {"x": {"type": "string"}},
        },
        {"a": "x"},
        {"a": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_references_within_a_schema_are_followed(name):
    schema, fits, breaks = RIGHT[name]
    check_schema("action", schema)
    spec = TaskSpec(kind="extract", output_schema=schema)
    assert value_problem(spec, fits) is None
    assert value_problem(spec, breaks)


def test_nothing_is_fetched_even_where_no_schema_was_checked(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}", "utf-8")
    spec = TaskSpec(kind="extract", output_schema={"$ref": path.as_uri()})
    assert value_problem(spec, {}) == "the schema refers to something outside of it"


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("schema", "value", "words"),
    [
        ({"items": {"$ref": "#"}}, nested(900), "too deep"),
        ({"$ref": "#"}, {}, "too deep"),
        ({"multipleOf": 0.1}, 10**400, "too large"),
    ],
)
def test_what_the_validator_cannot_do_is_a_problem(schema, value, words):
    assert words in value_problem(TaskSpec(kind="extract", output_schema=schema), value)


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ([0.5, -1, 0.0], True),
        ([10**400], True),
        ([], False),
        ("[0.5, 1]", False),
        ([0.5, math.nan], False),
        ([math.inf], False),
        ([True], False),
        (["0.5"], False),
        (None, False),
    ],
)
def test_an_embedding_is_a_list_of_finite_numbers(value, fits):
    assert (value_problem(TaskSpec(kind="embed"), value) is None) is fits


def test_a_pack_whose_schema_refers_elsewhere_does_not_open(tmp_path):
    task = {"kind": "extract", "output_schema": {"$ref": "http://host.example/s.json"}}
    pack = tmp_path / "p.yaml"
    pack.write_text(json.dumps({"name": "p", "version": 1, "tasks": {"when": task}}), "utf-8")
    with pytest.raises(ConfigError, match=r"task when refers to 'http://host\.example/s\.json'"):
        edge.open(pack, state=tmp_path / "state", offline=True)
