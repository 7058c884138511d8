"""Calls to an app's tools, under one allowance of milliseconds per answer.

A tool runs on a thread of its own; one that is not back in time is cut off: the caller goes on at
once, what it still returns is dropped, and the outcome says so. A thread cannot be killed, so a
tool that was cut off is not begun again while more than a few of its calls still run. What pack,
policy or fleet do not allow is not called. Asks no model; the clock comes in.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from edge.activation import Activation
from edge.admit import task_named
from edge.errors import InputError
from edge.route import TOOL_KEYS, denied
from edge.strict import json_text
from edge.task import TaskSpec
from edge.types import Json, Kind, Reason, Result

Tool: TypeAlias = Callable[[dict[str, Json]], Json]
"""Takes an answer's object without the tool's name, and returns JSON."""

_MOST_ABANDONED = 4
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What one call of a tool came to.

    Attributes:
        tool: its name.
        value: what it returned; ``None`` where there is a reason.
        reason: why there is no value: ``tool_timeout``, ``tool_failed``, ``tool_denied``,
            ``stopped``; or ``None``.
        took_ms: what it took of the allowance.
        error: name of what it raised; empty otherwise. Its text may quote the input.

    """

    tool: str
    value: Json
    reason: Reason | None
    took_ms: float
    error: str = ""


@dataclass(slots=True, eq=False)
class _Running:
    """A call of a tool on its thread.

    Attributes:
        back: (value, name of what was raised), once it has ended.
        ended: it has.
        left: nobody waits for it any more.

    """

    back: queue.SimpleQueue[tuple[Json, str]] = field(default_factory=queue.SimpleQueue)
    ended: bool = False
    left: bool = False


class Tooling:
    """Calls tools for the answers of one runtime. Safe to call from several threads.

    Args:
        clock: seconds, monotonic.

    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left: Counter[str] = Counter()  # calls that were cut off and still run
        self._used_ms: OrderedDict[str, float] = OrderedDict()

    def call(
        self,
        result: Result,
        spec: TaskSpec,
        tools: Mapping[str, Tool],
        *,
        barred: Mapping[str, Reason],
    ) -> list[ToolOutcome]:
        """Call the tools that an answer names, one after another.

        All of them, and later calls for the same answer, share the task's ``max_tool_ms``.

        Args:
            result: of kind extract; one object or a list of them.
            spec: its task.
            tools: by name.
            barred: tools that may not be called, with the reason.

        Raises:
            InputError: the answer names no tool, or one that was not passed; none is called.

        """
        named = _named(result, spec, tools)
        if reason := denied(spec, result.value, barred):
            return [ToolOutcome(name, None, reason, 0.0) for name, _ in named]
        return [
            self._one(result.trace_id, name, arguments, tools[name], spec.budget.max_tool_ms)
            for name, arguments in named
        ]

    def _one(
        self, trace_id: str, name: str, arguments: dict[str, Json], tool: Tool, most_ms: int | None
    ) -> ToolOutcome:
        left_ms = None if most_ms is None else self._hold(trace_id, most_ms)
        if left_ms == 0 or self._left[name] >= _MOST_ABANDONED:
            self._give_back(trace_id, left_ms or 0.0)
            return ToolOutcome(name, None, Reason.TOOL_TIMEOUT, 0.0)
        begun, running = self._clock(), _Running()
        work = (name, tool, arguments, running)
        threading.Thread(target=self._run, args=work, name="edge-tool", daemon=True).start()
        try:
            value, error = running.back.get(timeout=None if left_ms is None else left_ms / 1e3)
            reason = Reason.TOOL_FAILED if error else None
        except queue.Empty:
            value, error, reason = None, "", Reason.TOOL_TIMEOUT
        finally:
            self._leave(name, running)
        took_ms = (self._clock() - begun) * 1e3
        if left_ms is not None:
            took_ms = min(took_ms, left_ms)  # beyond it nobody waited for the tool
            self._give_back(trace_id, left_ms - took_ms)
        return ToolOutcome(name, value, reason, took_ms, error)

    def _run(self, name: str, tool: Tool, arguments: dict[str, Json], running: _Running) -> None:
        value, error = None, ""
        try:
            value = tool(arguments)
            json_text(value)
        except BaseException as raised:  # noqa: BLE001 - also what would end the thread unheard
            value, error = None, type(raised).__name__
        with self._lock:
            running.ended = True
            self._left[name] -= running.left
        running.back.put((value, error))

    def _leave(self, name: str, running: _Running) -> None:
        """Count a call that is not waited for any more and has not ended."""
        with self._lock:
            running.left = not running.ended
            self._left[name] += running.left

    def _hold(self, trace_id: str, most_ms: float) -> float:
        """Take all that is left for an answer's tools: two calls at once never exceed it."""
        with self._lock:
            left_ms = max(0.0, most_ms - self._used_ms.get(trace_id, 0.0))
            self._used_ms[trace_id] = self._used_ms.get(trace_id, 0.0) + left_ms
            while len(self._used_ms) > _REMEMBERED:
                self._used_ms.popitem(last=False)
            return left_ms

    def _give_back(self, trace_id: str, left_ms: float) -> None:
        with self._lock:
            if trace_id in self._used_ms:
                self._used_ms[trace_id] -= left_ms


def _named(
    result: Result, spec: TaskSpec, tools: Mapping[str, Tool]
) -> list[tuple[str, dict[str, Json]]]:
    """Return each tool that an answer names, with its arguments."""
    value = result.value
    calls = value if isinstance(value, list) else [value]
    found: list[tuple[str, dict[str, Json]]] = []
    for call in calls:
        arguments: dict[str, Any] = dict(call) if isinstance(call, dict) else {}
        keys = [key for key in TOOL_KEYS if isinstance(arguments.get(key), str)]
        if spec.kind is not Kind.EXTRACT or not keys:
            raise InputError(
                f"The answer of task {result.task} names no tool.",
                hint=f"A call is an object with {' or '.join(TOOL_KEYS)}.",
            )
        known = [key for key in keys if arguments[key] in tools]
        if not known:
            raise InputError(
                f"The answer of task {result.task} calls {arguments[keys[0]]!r}, which was not "
                "passed.",
                hint=f"Tools passed: {', '.join(sorted(tools)) or 'none'}.",
            )
        if len({arguments[key] for key in known}) > 1:
            raise InputError(
                f"The answer of task {result.task} names two tools, "
                f"{' and '.join(repr(arguments[key]) for key in known)}.",
                hint="Pass only the tools that the task may call, or rename a field of its schema.",
            )
        found.append((arguments.pop(known[0]), arguments))
    return found


class Tooled:
    """What ``Runtime`` offers for tools."""

    _activation: Activation
    _tooling: Tooling

    def call_tool(self, result: Result, tools: Mapping[str, Tool]) -> list[ToolOutcome]:
        """Call the tools that an answer of kind extract names, within its task's ``max_tool_ms``.

        A tool that is not back in time is cut off with the reason ``tool_timeout``; see
        ``edge.tooling``. What an answer may do is the app's word: look at ``result.reasons`` first.

        Args:
            result: of ``run``.
            tools: functions by name; each gets the answer's object without the name.

        Raises:
            ConfigError: the task is gone.
            InputError: the answer names no tool, or one that was not passed; none is called.

        """
        standing = self._activation.now()
        task = task_named(standing.tasks, result.task)
        return self._tooling.call(result, task.spec, tools, barred=standing.tools)
