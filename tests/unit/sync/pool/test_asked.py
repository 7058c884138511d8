"""Requests: what is read, and what is refused rather than ignored."""

import json

import pytest

from edge.errors import InputError
from edge_sync.pool.asked import read_asked

TURN = [{"role": "user", "content": "hello"}]


def read(**fields):
    body = json.dumps({"messages": TURN, **fields}).encode()
    return read_asked(body, model="m", most_tokens=100, seed=7)


def test_what_is_missing_has_openais_defaults():
    asked = read()
    assert (asked.max_tokens, asked.seed, dict(asked.numbers)) == (100, 7, {"temperature": 1.0})
    assert (asked.stop, asked.schema, asked.stream, asked.usage) == ((), None, False, False)


def test_the_smallest_limit_counts_and_names_become_the_samplers():
    asked = read(max_tokens=50, max_completion_tokens=20, repeat_penalty=1.1, top_k=4, seed=-1)
    assert (asked.max_tokens, asked.seed) == (20, 2**63 - 1)
    assert asked.numbers == {"temperature": 1.0, "repetition_penalty": 1.1, "top_k": 4}


def test_messages_of_parts_and_of_developers():
    turns = [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}]
    (message,) = read(messages=turns).messages
    assert (message.role, message.content) == ("system", "ab")


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}},
         {"type": "integer"}),
    ],
)  # fmt: skip
def test_formats(given, schema):
    assert read(response_format=given).schema == schema


def test_usage_is_told_in_a_stream_where_it_is_asked_for():
    assert read(stream=True, stream_options={"include_usage": True}).usage
    assert not read(stream=True).usage
    assert not read(stream_options={"include_usage": True}).usage


def test_fields_of_no_effect_pass():
    read(
        n=1, logprobs=False, tools=[], tool_choice="none", user="u", metadata={"a": "b"}, top_p=None
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"n": 2}, "'n'"),
        ({"tools": [{}]}, "'tools'"),
        ({"logprobs": True}, "'logprobs'"),
        ({"surprise": 1}, "'surprise'"),
        ({"model": "other"}, "no model but 'm'"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "roles"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": False}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"seed": 1.5}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stream": 1}, "stream"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
    ],
)
def test_what_is_not_done_is_named(fields, told):
    with pytest.raises(InputError, match=told):
        read(**fields)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(InputError, match="JSON object"):
        read_asked(body, model="m", most_tokens=1, seed=0)
