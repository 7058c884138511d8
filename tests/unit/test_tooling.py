"""Calls of tools: what they return, what cuts them off, and what may not be called."""

import sys
import threading
from types import SimpleNamespace

import pytest

from edge.errors import InputError
from edge.task import TaskBudget, TaskSpec
from edge.tooling import Tooling, ToolOutcome
from edge.types import Reason


def spec(kind="extract", **budget):
    schema = {"output_schema": {}} if kind == "extract" else {}
    return TaskSpec(kind=kind, budget=TaskBudget(**budget), **schema)


def result(value, trace_id="t1"):
    return SimpleNamespace(value=value, task="act", trace_id=trace_id)


def call(tooling, value, *, tools=None, barred=None, task=None, **more):
    given = tools or {"add": lambda told: told["a"] + told["b"]}
    return tooling.call(result(value, **more), task or spec(), given, barred=barred or {})


class Clock:
    """Moves by so many seconds with each reading."""

    def __init__(self, step_s=0.0):
        self.now, self.step_s = 0.0, step_s

    def __call__(self):
        self.now += self.step_s
        return self.now


def fails(_):
    raise ZeroDivisionError


CALLED = {
    "by name": ({"name": "add", "a": 1, "b": 2}, None, [ToolOutcome("add", 3, None, 0.0)]),
    "by intent": ({"intent": "add", "a": 1, "b": 2}, None, [ToolOutcome("add", 3, None, 0.0)]),
    "several": (
        [{"name": "add", "a": 1, "b": 2}, {"name": "add", "a": "x", "b": "y"}],
        None,
        [ToolOutcome("add", 3, None, 0.0), ToolOutcome("add", "xy", None, 0.0)],
    ),
    "it raises": (
        {"name": "add", "a": 1},
        None,
        [ToolOutcome("add", None, Reason.TOOL_FAILED, 0.0, "KeyError")],
    ),
    "it ends its thread": (
        {"name": "give"},
        {"give": lambda _: sys.exit(3)},
        [ToolOutcome("give", None, Reason.TOOL_FAILED, 0.0, "SystemExit")],
    ),
    "a name that is no tool's": (
        {"intent": "add", "name": "Smith", "a": 1, "b": 2},
        None,
        [ToolOutcome("add", 3, None, 0.0)],
    ),
    "no JSON": (
        {"name": "give"},
        {"give": lambda _: {1, 2}},
        [ToolOutcome("give", None, Reason.TOOL_FAILED, 0.0, "TypeError")],
    ),
}


@pytest.mark.parametrize("name", CALLED)
def test_what_a_call_comes_to(name):
    value, tools, outcomes = CALLED[name]
    assert call(Tooling(clock=Clock()), value, tools=tools) == outcomes


@pytest.mark.parametrize(
    ("value", "kind", "told"),
    [
        (None, "extract", "names no tool"),
        ({"a": 1}, "extract", "names no tool"),
        ("add", "generate", "names no tool"),
        ([{"name": "add", "a": 1, "b": 1}, {"name": "gone"}], "extract", "'gone', which was not"),
    ],
)
def test_what_is_no_call_of_a_known_tool_calls_none(value, kind, told):
    called = []
    with pytest.raises(InputError, match=told):
        call(Tooling(), value, tools={"add": called.append}, task=spec(kind))
    assert called == []


def test_an_answer_that_names_two_tools_calls_neither():
    called = []
    tools = {"find": called.append, "pay": called.append}
    with pytest.raises(InputError, match="names two tools, 'pay' and 'find'"):
        call(Tooling(), {"intent": "find", "name": "pay"}, tools=tools)
    assert called == []


def test_what_is_not_allowed_is_not_called():
    called = []
    outcomes = call(
        Tooling(),
        {"name": "pay"},
        tools={"pay": called.append},
        barred={"pay": Reason.TOOL_DENIED},
    )
    assert outcomes == [ToolOutcome("pay", None, Reason.TOOL_DENIED, 0.0)]
    assert called == []


def test_a_tool_is_cut_off_and_its_late_answer_dropped():
    go_on, ended = threading.Event(), threading.Event()

    def slow(_):
        go_on.wait()
        ended.set()
        return "late"

    tooling = Tooling()
    task = spec(max_tool_ms=20)
    value = [{"name": "slow"}, {"name": "slow"}]
    first, second = call(tooling, value, tools={"slow": slow}, task=task)
    assert (first.value, first.reason, first.took_ms) == (None, Reason.TOOL_TIMEOUT, 20.0)
    assert second == ToolOutcome("slow", None, Reason.TOOL_TIMEOUT, 0.0)  # nothing is left
    go_on.set()
    assert ended.wait(10)
    # Another answer has an allowance of its own; the same one has used its up.
    assert call(tooling, {"name": "slow"}, tools={"slow": slow}, task=task)[0].value is None
    fresh = call(tooling, {"name": "slow"}, tools={"slow": slow}, task=spec(), trace_id="t2")
    assert fresh[0].value == "late"


def test_calls_that_somebody_waits_for_hold_up_no_other():
    at_once, outcomes = 8, []
    together = threading.Barrier(at_once)
    tools, tooling = {"meet": lambda _: together.wait(30)}, Tooling()

    def meet(number):
        outcomes.extend(
            call(tooling, {"name": "meet"}, tools=tools, task=spec(), trace_id=str(number))
        )

    threads = [threading.Thread(target=meet, args=(number,)) for number in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.value for outcome in outcomes) == [*range(at_once)]


def test_all_tools_of_an_answer_share_their_milliseconds():
    tooling, task = Tooling(clock=Clock(0.03)), spec(max_tool_ms=100)
    one = {"name": "add", "a": 1, "b": 1}
    took = [call(tooling, one, task=task)[0] for _ in range(5)]
    assert [each.took_ms for each in took] == pytest.approx([30, 30, 30, 10, 0])
    assert [each.reason for each in took[:4]] == [None] * 4
    assert took[4].reason is Reason.TOOL_TIMEOUT


def test_a_tool_whose_calls_never_end_is_begun_only_so_often():
    go_on, begun = threading.Event(), []

    def hangs(_):
        begun.append(1)
        go_on.wait()

    tooling, task = Tooling(), spec(max_tool_ms=1)
    for number in range(8):
        outcome = call(
            tooling, {"name": "hangs"}, tools={"hangs": hangs}, task=task, trace_id=str(number)
        )
        assert outcome[0].reason is Reason.TOOL_TIMEOUT
    assert len(begun) <= 4
    go_on.set()
