"""Admits a call: the task is known, the text is one this task can take. Nothing is stored yet."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge.allowance import Allowance
from edge.degrade import FULL, Stance
from edge.errors import ConfigError, InputError
from edge.local import LocalTask
from edge.task import TaskSpec
from edge.types import Json

MOST_PRIORITY = 9
LONGEST_WAIT_S = 10 * 31_536_000.0


@dataclass(frozen=True, slots=True)
class Wait:
    """How a call waits where nobody can be asked at once.

    Attributes:
        priority: 0 to 9; the higher, the sooner its turn comes.
        expires_s: an answer that comes later than this after admission is of no use; ``None`` for
            never.

    """

    priority: int
    expires_s: float | None


@dataclass(frozen=True, slots=True)
class Call:
    """One admitted call.

    Attributes:
        local: the task with its prompt.
        started: ``time.perf_counter()`` at admission, seconds.
        context: what the app told of the call, for the conditions of the policy.
        allowance: what it may still use.
        stance: the degrade steps in force for it.
        wait: how it waits where it has to; as its task says where ``None``.

    """

    local: LocalTask
    text: str
    trace_id: str
    started: float
    allowance: Allowance
    context: Mapping[str, object] = field(default_factory=dict)
    stance: Stance = FULL
    wait: Wait | None = None

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
    allowance = Allowance(local.spec.budget, started=started)
    return Call(local, text, trace_id or uuid.uuid4().hex, started, allowance)


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


def check_wait(spec: TaskSpec, priority: int | None, deadline_s: float | None) -> Wait:
    """Return how a call waits where it has to: as the app says, or else as its task does.

    Raises:
        InputError: the priority or the time is none.

    """
    usual = spec.deferred
    if priority is None:
        priority = usual.priority
    elif type(priority) is not int or not 0 <= priority <= MOST_PRIORITY:
        raise InputError(
            f"The priority is {priority!r}, which is no whole number from 0 to {MOST_PRIORITY}.",
            hint="Pass one, the higher the sooner; or none for the task's own.",
        )
    if deadline_s is None:
        return Wait(priority, usual.expires_s)
    number = isinstance(deadline_s, int | float) and not isinstance(deadline_s, bool)
    if not number or not 0 < deadline_s <= LONGEST_WAIT_S:
        raise InputError(
            f"The deadline_s is {deadline_s!r}, which is no number of seconds above 0 and within "
            "10 years.",
            hint="Pass for how many seconds from now an answer is of use.",
        )
    return Wait(priority, float(deadline_s))


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
