"""The two decisions of a task, as pure functions over plain values.

``plan`` says before anything runs whether the device and the cloud may be used, ``decide`` says
afterwards what becomes of the draft. No I/O, no clock: the same values give the same decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from edge.cloud.pacing import worth
from edge.policy.conditions import evaluate
from edge.policy.rules import Rule
from edge.task import TaskSpec
from edge.types import Draft, Json, Kind, Reason, Verdict

TOOL_KEYS = ("name", "intent")
"""Under which an extracted call names its tool."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the runtime knows of the world at the start of a call.

    Attributes:
        offline: no socket may be opened.
        has_pool: the pool that the task names is configured.
        has_redactor: private spans can be removed before sending.
        tightened: the fleet's policy has expired, so nothing new may leave.
        stopped: the fleet stopped the task.
        halted: the fleet stopped the task's local model.

    """

    offline: bool
    has_pool: bool
    has_redactor: bool = False
    tightened: bool = False
    stopped: bool = False
    halted: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What may be used for one call.

    Attributes:
        local: there is a local model to ask.
        cloud_blocked: why the cloud may not be asked now, or ``None`` where it may.
        may_queue: an answer could still come later, once that reason has passed.
        calls_left: model calls the budget allows.
        stopped: nothing answers.
        halted: there would be a local model, but it is stopped.

    """

    local: bool
    cloud_blocked: Reason | None
    may_queue: bool
    calls_left: int
    stopped: bool = False
    halted: bool = False

    def without_pools(self, why: Reason) -> Plan:
        """Return the same plan where no pool is asked, now or later."""
        return replace(self, cloud_blocked=why, may_queue=False)


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked of a draft at this moment.

    Attributes:
        threshold: an answer is kept from this confidence on; ``None`` for the task's
            ``keep_above``.
        certified: a certificate stands behind the threshold.
        rung: how often a watch has raised the threshold since it was certified.
        rules: of the policy, in order.
        context: what the app told of the call, for the rules.
        cost_microusd: what asking usually costs; ``None`` where asking because it is worth it is
            out of the question.
        price: of the budget, upon each micro-dollar; see ``edge.cloud.pacing``.

    """

    threshold: float | None = None
    certified: bool = False
    rung: int = 0
    rules: tuple[Rule, ...] = ()
    context: Mapping[str, object] = field(default_factory=dict)
    cost_microusd: int | None = None
    price: float = 0.0


class Action(StrEnum):
    """What becomes of a draft."""

    KEEP = "keep"
    ESCALATE = "escalate"
    DEFER = "defer"
    ABSTAIN = "abstain"


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, whether it goes into the queue, and why.

    Attributes:
        pool: whom to ask; the task's own where ``None``.
        certified: a certificate covers the kept answer.

    """

    action: Action
    reasons: tuple[Reason, ...]
    queue: bool = False
    pool: str | None = None
    certified: bool = False


def plan(task: TaskSpec, now: Circumstances) -> Plan:
    """Say what may be used, before anything runs."""
    blocked = _cloud_blocked(task, now)
    return Plan(
        local=task.model is not None and not now.halted and not now.stopped,
        cloud_blocked=blocked,
        may_queue=blocked is not Reason.PRIVACY_NEVER
        and task.kind is not Kind.EMBED
        and task.routing.below != "abstain",
        calls_left=task.budget.max_model_calls,
        stopped=now.stopped,
        halted=now.halted,
    )


def _cloud_blocked(task: TaskSpec, now: Circumstances) -> Reason | None:
    if now.stopped:
        return Reason.STOPPED
    if task.privacy.allow_cloud == "never":
        return Reason.PRIVACY_NEVER
    if task.privacy.allow_cloud == "redacted" and not now.has_redactor:
        return Reason.REDACTION_UNAVAILABLE
    if now.tightened:
        return Reason.POLICY_EXPIRED
    if now.offline:
        return Reason.OFFLINE
    # A chat pool answers in words; no pool gives vectors.
    return None if now.has_pool and task.kind is not Kind.EMBED else Reason.NO_POOL


def decide(
    task: TaskSpec,
    the_plan: Plan,
    draft: Draft | None,
    verdict: Verdict,
    *,
    terms: Terms = Terms(),
    calls: int | None = None,
) -> Decision:
    """Say what becomes of a draft, or of a task no local model could answer.

    Args:
        task: what was asked.
        the_plan: see ``plan``.
        draft: of the local model that answered last.
        verdict: over that draft.
        terms: what is asked of it.
        calls: model calls made so far; that of the draft alone where ``None``.

    """
    if calls is None:
        calls = 0 if draft is None else 1
    if the_plan.stopped:
        return Decision(Action.ABSTAIN, (Reason.STOPPED,))
    rule = _matched(draft, verdict, terms)
    doubts = _doubts(task, draft, verdict, terms)
    if rule is not None:
        doubts = (Reason.CONDITION, *doubts)
    affordable = the_plan.calls_left > calls
    if doubts:
        reasons = (*doubts, *(reason for reason in verdict.reasons if reason not in doubts))
        return _not_kept(
            task, the_plan, reasons, pool=rule.pool if rule else None, affordable=affordable
        )
    free = the_plan.cloud_blocked is None and affordable and task.routing.below == "escalate"
    if free and _is_worth_it(task, verdict, terms):
        return Decision(Action.ESCALATE, (Reason.WORTH_ASKING, *verdict.reasons))
    return _keep(verdict, terms)


def best_effort(decision: Decision, the_plan: Plan) -> Decision:
    """Return what becomes of a draft where nobody else is asked: it is given as it is.

    A task that is stopped stays so, and what could be asked later still waits for it.
    """
    if decision.action not in {Action.ESCALATE, Action.DEFER}:
        return decision
    return replace(decision, action=Action.DEFER, queue=the_plan.may_queue)


def denied(task: TaskSpec, value: Json, tools: Mapping[str, Reason]) -> Reason | None:
    """Return why what was extracted must not be given out: a call's tool is among ``tools``."""
    if task.kind is not Kind.EXTRACT or not tools:
        return None
    calls = value if isinstance(value, list) else [value]
    named = (call.get(key) for call in calls if isinstance(call, dict) for key in TOOL_KEYS)
    return next((tools[name] for name in named if isinstance(name, str) and name in tools), None)


def _not_kept(
    task: TaskSpec,
    the_plan: Plan,
    reasons: tuple[Reason, ...],
    *,
    pool: str | None,
    affordable: bool,
) -> Decision:
    if task.routing.below == "abstain":
        return Decision(Action.ABSTAIN, reasons)
    if task.routing.below == "defer":
        return Decision(Action.DEFER, reasons, queue=the_plan.may_queue, pool=pool)
    if the_plan.cloud_blocked is not None:
        blocked = (*reasons, the_plan.cloud_blocked)
        return Decision(Action.DEFER, blocked, queue=the_plan.may_queue, pool=pool)
    if not affordable:
        return Decision(Action.DEFER, (*reasons, Reason.CALL_LIMIT))
    return Decision(Action.ESCALATE, reasons, pool=pool)


def _values(draft: Draft | None, verdict: Verdict, terms: Terms) -> dict[str, object]:
    """Return what the conditions of a policy may look at."""
    signals = draft.signals if draft else {}
    return {**terms.context, **signals, "confidence": verdict.confidence}


def _keep(verdict: Verdict, terms: Terms) -> Decision:
    certified = terms.certified and verdict.confidence is not None
    if verdict.confidence is None:
        sure = Reason.UNCALIBRATED
    else:
        sure = Reason.CERTIFIED if certified else Reason.CONFIDENT
    return Decision(Action.KEEP, (sure, *verdict.reasons), certified=certified)


def _matched(draft: Draft | None, verdict: Verdict, terms: Terms) -> Rule | None:
    """Return the first rule that is known to hold."""
    if not terms.rules:
        return None
    values = _values(draft, verdict, terms)
    return next((rule for rule in terms.rules if evaluate(rule.condition, values).holds), None)


def _is_worth_it(task: TaskSpec, verdict: Verdict, terms: Terms) -> bool:
    """Whether the pool's better chance is worth more than what asking costs now."""
    routing = task.routing
    if routing.value_usd is None or terms.cost_microusd is None or verdict.confidence is None:
        return False
    value, cost = float(routing.value_usd), terms.cost_microusd
    return worth(value, routing.cloud_accuracy, verdict.confidence, cost, terms.price)


def _doubts(
    task: TaskSpec, draft: Draft | None, verdict: Verdict, terms: Terms
) -> tuple[Reason, ...]:
    """Return why the local draft cannot stand; empty where it can."""
    if draft is None:
        return verdict.reasons or (Reason.NO_LOCAL_MODEL,)
    if not verdict.valid:
        return (Reason.INVALID_OUTPUT,)
    if task.routing.risk is not None and not terms.certified:
        # A share of errors was asked for, and nothing promises it.
        return (Reason.UNCERTIFIED,)
    if verdict.confidence is None:
        may_stay = task.routing.keep_uncalibrated and task.routing.risk is None
        return () if may_stay else (Reason.UNCALIBRATED,)
    threshold = task.routing.keep_above if terms.threshold is None else terms.threshold
    if verdict.confidence >= threshold:
        return ()
    alarm = (Reason.WATCH_ALARM,) if terms.rung else ()
    return (Reason.LOW_CONFIDENCE, *alarm)
