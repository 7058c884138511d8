"""The two decisions of a task, as pure functions over plain values.

``plan`` says before anything runs whether the device and the cloud may be used, ``decide`` says
afterwards what becomes of the draft. No I/O, no clock: the same values give the same decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edge.task import TaskSpec
from edge.types import Draft, Kind, Reason, Verdict


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the runtime knows of the world at the start of a call.

    Attributes:
        offline: no socket may be opened.
        has_pool: the pool that the task names is configured.
        has_redactor: private spans can be removed before sending.

    """

    offline: bool
    has_pool: bool
    has_redactor: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What may be used for one call.

    Attributes:
        local: there is a local model to ask.
        cloud_blocked: why the cloud may not be asked now, or ``None`` where it may.
        may_queue: an answer could still come later, once that reason has passed.
        calls_left: model calls the budget allows.

    """

    local: bool
    cloud_blocked: Reason | None
    may_queue: bool
    calls_left: int


class Action(StrEnum):
    """What becomes of a draft."""

    KEEP = "keep"
    ESCALATE = "escalate"
    DEFER = "defer"
    ABSTAIN = "abstain"


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, whether it goes into the queue, and why."""

    action: Action
    reasons: tuple[Reason, ...]
    queue: bool = False


def plan(task: TaskSpec, now: Circumstances) -> Plan:
    """Say what may be used, before anything runs."""
    blocked = _cloud_blocked(task, now)
    return Plan(
        local=task.model is not None,
        cloud_blocked=blocked,
        may_queue=blocked is not Reason.PRIVACY_NEVER
        and task.kind is not Kind.EMBED
        and task.routing.below != "abstain",
        calls_left=task.budget.max_model_calls,
    )


def _cloud_blocked(task: TaskSpec, now: Circumstances) -> Reason | None:
    if task.privacy.allow_cloud == "never":
        return Reason.PRIVACY_NEVER
    if task.privacy.allow_cloud == "redacted" and not now.has_redactor:
        return Reason.REDACTION_UNAVAILABLE
    if now.offline:
        return Reason.OFFLINE
    # A chat pool answers in words; no pool gives vectors.
    return None if now.has_pool and task.kind is not Kind.EMBED else Reason.NO_POOL


def decide(task: TaskSpec, the_plan: Plan, draft: Draft | None, verdict: Verdict) -> Decision:
    """Say what becomes of a draft, or of a task no local model could answer."""
    doubts = _doubts(task, draft, verdict)
    if not doubts:
        sure = Reason.UNCALIBRATED if verdict.confidence is None else Reason.CONFIDENT
        return Decision(Action.KEEP, (sure, *verdict.reasons))
    reasons = (*doubts, *(reason for reason in verdict.reasons if reason not in doubts))
    if task.routing.below == "abstain":
        return Decision(Action.ABSTAIN, reasons)
    if task.routing.below == "defer":
        return Decision(Action.DEFER, reasons, queue=the_plan.may_queue)
    if the_plan.cloud_blocked is not None:
        blocked = (*reasons, the_plan.cloud_blocked)
        return Decision(Action.DEFER, blocked, queue=the_plan.may_queue)
    if the_plan.calls_left < (1 if draft is None else 2):
        return Decision(Action.DEFER, (*reasons, Reason.CALL_LIMIT))
    return Decision(Action.ESCALATE, reasons)


def _doubts(task: TaskSpec, draft: Draft | None, verdict: Verdict) -> tuple[Reason, ...]:
    """Return why the local draft cannot stand; empty where it can."""
    if draft is None:
        return verdict.reasons or (Reason.NO_LOCAL_MODEL,)
    if not verdict.valid:
        return (Reason.INVALID_OUTPUT,)
    if verdict.confidence is None:
        return () if task.routing.keep_uncalibrated else (Reason.UNCALIBRATED,)
    return () if verdict.confidence >= task.routing.keep_above else (Reason.LOW_CONFIDENCE,)
