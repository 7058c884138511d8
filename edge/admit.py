"""Admits a call: the task is known, the text is one this task can take. Nothing is stored yet."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge.errors import ConfigError, InputError
from edge.local import LocalTask
from edge.task import TaskSpec
from edge.types import Json


@dataclass(frozen=True, slots=True)
class Call:
    """One admitted call.

    Attributes:
        local: the task with its prompt.
        started: ``time.perf_counter()`` at admission, seconds.
        context: what the app told of the call, for the conditions of the policy.

    """

    local: LocalTask
    text: str
    trace_id: str
    started: float
    context: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The task's name."""
        return self.local.name

    @property
    def spec(self) -> TaskSpec:
        """The task's specification."""
        return self.local.spec


def admit(
    tasks: Mapping[str, LocalTask], task: str, text: str, *, trace_id: str | None = None
) -> Call:
    """Check a task's name and its input.

    Raises:
        ConfigError: there is no such task; the hint lists those there are.
        InputError: the text is no text, empty, too long, or not valid Unicode.

    """
    started = time.perf_counter()
    local = task_named(tasks, task)
    check_text(text, max_chars=local.spec.input.max_chars, task=task)
    return Call(local, text, trace_id or uuid.uuid4().hex, started)


def task_named(tasks: Mapping[str, LocalTask], task: str) -> LocalTask:
    """Return a task.

    Raises:
        ConfigError: there is none of that name; the hint lists those there are.

    """
    local = tasks.get(task)
    if local is None:
        known = ", ".join(sorted(tasks))
        raise ConfigError(f"There is no task named {task!r}.", hint=f"Tasks here: {known}.")
    return local


def check_context(
    context: Mapping[str, object] | None, declared: Mapping[str, str]
) -> Mapping[str, object]:
    """Return what an app tells of a call, made sure to be what the pack declares.

    Raises:
        InputError: a name is not declared, or a value is of another type.

    """
    if context is not None and not isinstance(context, Mapping):
        raise InputError(
            f"The context is of type {type(context).__name__}, not a mapping of names to values.",
            hint="Pass a dict.",
        )
    for name, value in (context or {}).items():
        kind = declared.get(name)
        if kind is None:
            known = ", ".join(sorted(declared)) or "nothing"
            raise InputError(
                f"The context holds {name!r}, which the pack does not declare.",
                hint=f"Declared here: {known}; see `context` in the pack.",
            )
        if value is not None and not _fits(kind, value):
            raise InputError(
                f"The context's {name} is of type {type(value).__name__}; the pack says {kind}.",
                hint="Pass a value of that type, or none.",
            )
    return dict(context or {})


def _fits(kind: str, value: object) -> bool:
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str if kind == "text" else bool)


def check_label(task: str, label: Json, labels: Sequence[str]) -> None:
    """Make sure that what is said to be right is a label, or ``None`` where none of them fits.

    Raises:
        InputError: it is another one.

    """
    if labels and label is not None and label not in labels:
        raise InputError(
            f"{label!r} is not one of the labels of task {task}.",
            hint="Pass one of them, or None where none of them fits.",
        )


def check_text(text: str, *, max_chars: int, task: str) -> None:
    """Make sure that an input can be answered.

    Raises:
        InputError: see ``admit``.

    """
    if not isinstance(text, str):
        raise InputError(
            f"The input of task {task} is of type {type(text).__name__}, not text.",
            hint="Decode bytes to str first.",
        )
    if len(text) > max_chars:
        raise InputError(
            f"The input of task {task} has {len(text)} characters; the limit is {max_chars}.",
            hint="Shorten it, or raise input.max_chars in the pack.",
        )
    if not text.strip():
        raise InputError(f"The input of task {task} is empty.", hint="Pass some text.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"The input of task {task} is not valid Unicode: it holds a lone surrogate at "
            f"character {error.start}.",
            hint="Decode the input with errors='replace'.",
        ) from error
