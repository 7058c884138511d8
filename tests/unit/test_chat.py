"""The body of a request, and answers read back: good, odd and hostile ones."""

import json
import math

import pytest

from edge.cloud.chat import Message, Reply, read_json, read_reply, request_body, short_name
from edge.errors import InputError
from edge.types import Usage

SECRET = "my pin is 4711"
CHOICE = {"message": {"content": "yes"}, "finish_reason": "stop"}
HI = (Message("user", "hi"),)


def body(messages=HI, max_tokens=5, temperature=0.0, schema=None):
    return request_body(
        "small",
        messages,
        max_tokens=max_tokens,
        temperature=temperature,
        response_schema=schema,
    )


def test_a_request_says_this_and_nothing_more():
    asked = [Message("system", "Be brief."), Message("user", "größe 👍")]
    assert json.loads(body(asked, 7, 0.5)) == {
        "model": "small",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "größe 👍"},
        ],
        "max_tokens": 7,
        "temperature": 0.5,
        "stream": False,
    }
    schema = {"type": "object"}
    assert json.loads(body(schema=schema))["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema},
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": ()},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"messages": (Message("user", SECRET + "\ud800"),)},
        {"messages": (Message("user", SECRET),), "schema": {"enum": {SECRET}}},
    ],
)
def test_what_cannot_be_sent_is_refused_without_quoting_it(wrong):
    with pytest.raises(InputError) as caught:
        body(**wrong)
    assert SECRET not in str(caught.value)
    assert (caught.value.__context__, caught.value.__cause__) == (None, None)


def reply(text="yes", finish="stop", model="", name="", usage=None):
    return Reply(text=text, finish=finish, model=model, id=name, usage=usage)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ({"choices": [CHOICE]}, reply()),
        ({"choices": [CHOICE, {}]}, reply()),
        ({"choices": [CHOICE], "model": "big", "id": "r1"}, reply(model="big", name="r1")),
        ({"choices": [CHOICE], "model": 7, "id": ["x"]}, reply()),
        ({"choices": [{"message": {"content": "cut"}, "finish_reason": "length"}]},
         reply("cut", "length")),
        ({"choices": [{"message": {"content": None}, "finish_reason": "tool_calls"}]},
         reply("", "tool_calls")),
        ({"choices": [{"message": {}}]}, reply("", "")),
        ({"choices": [{"message": {"content": [{"text": "a"}, {"text": "b"}]}}]}, reply("ab", "")),
        ({"choices": [{"message": {"content": []}}]}, reply("", "")),
        ({"choices": [{"message": {"content": "a\ud800b"}}]}, reply("a?b", "")),
        ({"choices": [{"message": {"content": [{"image": 1}]}}]}, None),
        ({"choices": [{"message": {"content": 7}}]}, None),
        ({"choices": [{"message": "yes"}]}, None),
        ({"choices": [{"text": "yes"}]}, None),
        ({"choices": ["yes"]}, None),
        ({"choices": []}, None),
        ({"choices": {"0": CHOICE}}, None),
        ({"error": {"message": "no"}}, None),
        ([CHOICE], None),
        ("yes", None),
        (None, None),
    ],
)  # fmt: skip
def test_an_answer_is_read_whole_or_not_at_all(answer, read):
    assert read_reply(json.dumps(answer).encode()) == read


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, Usage(3, 4)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(0, 0)),
        ({"prompt_tokens": 10**9, "completion_tokens": 1}, Usage(10**9, 1)),
        ({"prompt_tokens": 10**9 + 1, "completion_tokens": 1}, None),
        ({"prompt_tokens": 3}, None),
        ({"prompt_tokens": 3, "completion_tokens": None}, None),
        ({"prompt_tokens": -3, "completion_tokens": 4}, None),
        ({"prompt_tokens": 3.0, "completion_tokens": 4}, None),
        ({"prompt_tokens": "3", "completion_tokens": 4}, None),
        ({"prompt_tokens": True, "completion_tokens": 4}, None),
        ([3, 4], None),
        (None, None),
    ],
)
def test_usage_is_two_counts_or_unknown(usage, read):
    found = read_reply(json.dumps({"choices": [CHOICE], "usage": usage}).encode())
    assert found.usage == read


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff\xfe\x00", b"{", b"<html>", b"[" * 100_000, b"9" * 5000],
    ids=["empty", "bytes", "cut", "html", "deep", "a long number"],
)
def test_what_is_no_json_is_none(raw):
    assert read_json(raw) is None
    assert read_reply(raw) is None


@pytest.mark.parametrize(
    ("value", "short"),
    [
        ("gpt", "gpt"),
        ("a\x1b[31m\nb", "a[31mb"),
        ("x" * 500, "x" * 128),
        ("\ud800ok", "ok"),
        (7, ""),
        (None, ""),
    ],
)
def test_a_servers_name_is_short_and_printable(value, short):
    assert short_name(value) == short
