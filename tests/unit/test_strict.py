"""Texts that look like JSON: what is a value, what is not, and how answers are printed."""

import math
from types import SimpleNamespace

import pytest

from edge.answering import parsed, problem_of
from edge.cli import run, show
from edge.strict import strict_json
from edge.types import Kind, Reason, Result, Route

NOT_JSON = [
    "",
    "card_arrival",
    "NaN",
    '{"a": Infinity}',
    "[-Infinity]",
    "[1e999]",
    '{"a": -1e999}',
    '{"a": NaN, "a": 1}',
    '"\\ud800"',
    '{"\\udfff": 1}',
    '["\\udc00\\ud800"]',
    '"\ud800"',
    "[" * 100_000,
    "1" * 5_000,
]


@pytest.mark.parametrize("text", NOT_JSON)
def test_a_text_that_is_not_json(text):
    with pytest.raises(ValueError):
        strict_json(text)
    generation = SimpleNamespace(text=text, finish="stop")
    value, missing = parsed(text, "", ground=False)
    assert value is None
    assert problem_of(generation, value, missing, Kind.EXTRACT) == "the answer is not JSON"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        (" false ", False),
        ('{"a": [1, 2.5, "\\ud83d\\ude00"]}', {"a": [1, 2.5, "😀"]}),
        ("1" * 400, int("1" * 400)),
    ],
)
def test_a_text_that_is_json(text, value):
    assert strict_json(text) == value
    found, missing = parsed(text, "", ground=False)
    assert found == value
    generation = SimpleNamespace(text=text, finish="stop")
    assert problem_of(generation, found, missing, Kind.EXTRACT) is None


@pytest.mark.parametrize("value", [math.nan, {"a": [math.inf]}])
def test_what_json_has_not_is_never_printed(value, capsys):
    with pytest.raises(ValueError):
        show.print_json(value)
    assert capsys.readouterr().out == ""


def test_a_model_named_like_markup_is_printed_as_it_is(capsys):
    result = Result(
        value="[red]yes[/red]",
        confidence=None,
        certified=False,
        route=Route.CLOUD,
        provisional=False,
        model="small[/bold] [red]v2",
        device="npu[/]",
        cost_microusd=0,
        latency_ms=1.0,
        tokens_in=0,
        tokens_out=0,
        trace_id="t",
        reasons=(Reason.ESCALATED,),
        task="reply",
        task_id=None,
    )
    run._print(result)
    printed = " ".join(capsys.readouterr().out.split())
    assert "[red]yes[/red]" in printed
    assert "small[/bold] [red]v2 on npu[/]" in printed
