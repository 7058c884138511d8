"""Replays recorded answers under another policy: what would have been kept, and at what cost.

The decision is ``edge.route.decide``, the one that the runtime takes; what it looks at comes from
traces. The same traces and the same policy give the same values. Not replayed: a watch that has
raised the threshold, a second local tier, the budget's cap, a pool that fails, and conditions over
the app's context, which no trace holds. Pure: opens no file, asks no model.

How many kept answers are right is known of those that a user judged. Of the others an audit is a
random sample with a recorded probability, so each audited answer stands for 1 / propensity of them
(Horvitz and Thompson 1952). Nothing was audited that was not kept when it happened: of what a
policy newly keeps only the confidence speaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, sqrt
from typing import Any

from edge.route import Action, Plan, Terms, decide
from edge.store.traces import ERROR
from edge.task import TaskSpec
from edge.types import Draft, Reason, Route, Verdict

_Z = 1.959964  # of a two-sided interval of 95 %
_ACTIONS = {
    Route.LOCAL.value: Action.KEEP,
    Route.CLOUD.value: Action.ESCALATE,
    Route.ABSTAINED.value: Action.ABSTAIN,
}
Labels = Mapping[str, tuple[bool, str]]


@dataclass(frozen=True, slots=True)
class Seen:
    """One recorded task.

    Attributes:
        action: what became of it.
        draft: of the local model, without its value; ``None`` where there was none.
        valid: whether that could be an answer.
        cost_microusd: spent on it.
        chars: of the input.
        propensity: probability with which it was to be audited; ``None`` where it was not kept.

    """

    trace_id: str
    action: Action
    draft: Draft | None
    valid: bool
    cost_microusd: int
    chars: int
    propensity: float | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What recorded tasks are decided by.

    Attributes:
        task: with the routing to try.
        plan: what may be used.
        terms: threshold, certificate and rules; see ``edge.route.Terms``.
        confidence: of a recorded draft, as the calibration in force gives it.
        price: the most that asking the pool for an input of so many characters costs, in
            micro-dollars; ``None`` where no pool is there.

    """

    task: TaskSpec
    plan: Plan
    terms: Terms
    confidence: Callable[[Draft], float | None]
    price: Callable[[int], int] | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """An estimated share with its interval of 95 %, all 0..1.

    Attributes:
        tasks: it speaks of so many.
        audits: that it rests on.

    """

    value: float
    low: float
    high: float
    tasks: int
    audits: int


@dataclass(frozen=True, slots=True)
class Tally:
    """What became, or would have become, of the tasks.

    Attributes:
        kept, escalated, deferred, abstained: how many tasks.
        cost_microusd: spent on all; ``None`` where a price is not known.
        right_by_labels: see ``right_of``.
        judged, judged_wrong: kept answers that a user judged, and those found wrong.
        unaudited: kept answers that could not be audited when they were recorded, nor were judged.
        right_by_confidence: mean confidence of the kept; ``None`` where one has none.
        right_expected: of all tasks kept and escalated, by confidence and the cloud's accuracy.

    """

    kept: int
    escalated: int
    deferred: int
    abstained: int
    cost_microusd: int | None
    right_by_labels: Share | None
    judged: int
    judged_wrong: int
    unaudited: int
    right_by_confidence: float | None
    right_expected: float | None


@dataclass(frozen=True, slots=True)
class Simulated:
    """One task under two policies.

    Attributes:
        happened, simulated: the tallies.
        prices: how the cost of each simulated escalation is known: ``recorded``, ``mean`` of those
            recorded, ``worst case`` at the pool's price, or ``unknown``; with their number.
        changed: how many tasks would have gone another way.

    """

    tasks: int
    happened: Tally
    simulated: Tally
    changed: int
    prices: Mapping[str, int] = field(default_factory=dict)


def seen(row: Mapping[str, Any]) -> Seen | None:
    """Return what a trace tells; ``None`` where it holds no signals although a model answered.

    A call that failed tells nothing either, and one that the cache answered nothing new.
    """
    if row["route"] in {ERROR, Route.CACHE}:
        return None
    detail = row["detail"] if "digest" in row["detail"] else {}
    action = _ACTIONS.get(row["route"], Action.DEFER)
    if not detail and action is Action.KEEP:
        return None
    draft = None
    if detail:
        draft = Draft(
            value=None,
            model=str(row["model"] or ""),
            digest=str(detail["digest"]),
            device="",
            signals={name: float(value) for name, value in detail["signals"].items()},
            confidence=detail["confidence"],
        )
    audit = detail.get("audit") if action is Action.KEEP else None
    return Seen(
        trace_id=row["trace_id"],
        action=action,
        draft=draft,
        valid=bool(detail.get("valid", False)),
        cost_microusd=int(row["cost_microusd"]),
        chars=int(row["input_chars"]),
        propensity=None if audit is None else float(audit["propensity"]),
    )


def simulate(
    traces: Sequence[Seen], policy: Policy, labels: Labels, *, cloud_accuracy: float
) -> Simulated:
    """Decide recorded tasks by another policy, and count beside what happened.

    Args:
        traces: of one task, in the order in which they happened.
        policy: to try.
        labels: by trace id: whether the local answer was right, and who says so.
        cloud_accuracy: probability that the pool is right, 0..1.

    """
    known = [each.cost_microusd for each in traces if each.action is Action.ESCALATE]
    usual = round(sum(known) / len(known)) if known else None
    actions = [_decided(each, policy, usual) for each in traces]
    costs = [
        _cost(each, policy, usual)
        for each, action in zip(traces, actions, strict=True)
        if action is Action.ESCALATE
    ]
    prices = Counter(how for _, how in costs)
    whole = None if prices["unknown"] else sum(cost for cost, _ in costs)

    def told(chosen: Sequence[Action], cost: int | None) -> Tally:
        kept = [t for t, action in zip(traces, chosen, strict=True) if action is Action.KEEP]
        sure = [policy.confidence(each.draft) if each.draft else None for each in kept]
        return _tally(kept, sure, chosen, labels, cost=cost, cloud_accuracy=cloud_accuracy)

    before = [each.action for each in traces]
    return Simulated(
        tasks=len(traces),
        happened=told(before, sum(each.cost_microusd for each in traces)),
        simulated=told(actions, whole),
        changed=sum(a is not b for a, b in zip(before, actions, strict=True)),
        prices=dict(sorted(prices.items())),
    )


def right_of(kept: Sequence[Seen], labels: Labels) -> Share | None:
    """Return the share that is right of the kept answers that could have been audited.

    What a user judged counts as it is. The others are estimated from their audits, each with the
    weight 1 / propensity, with Wilson's interval over the effective number of audits. ``None``
    without audits: users mostly speak up where an answer is wrong, so they alone say too little.
    """
    open_to_audit = [each for each in kept if each.propensity is not None]
    judged = [labels[e.trace_id][0] for e in open_to_audit if _source(e, labels) == "user"]
    audited = [each for each in open_to_audit if _source(each, labels) == "audit"]
    if not audited:
        return None
    tasks = len(open_to_audit)
    rest = tasks - len(judged)
    weights = [1.0 / each.propensity for each in audited if each.propensity]
    right = [labels[each.trace_id][0] for each in audited]
    mean, low, high = _wilson(weights, right)
    value, least, most = ((sum(judged) + rest * each) / tasks for each in (mean, low, high))
    return Share(value, least, most, tasks=tasks, audits=len(audited))


def _decided(each: Seen, policy: Policy, usual: int | None) -> Action:
    if each.draft is None:
        missing = Reason.LOCAL_MODEL_FAILED if policy.plan.local else Reason.NO_LOCAL_MODEL
        nothing = Verdict(valid=False, confidence=None, reasons=(missing,))
        return decide(policy.task, policy.plan, None, nothing, terms=policy.terms).action
    confidence = policy.confidence(each.draft) if each.valid else None
    cost, how = _cost(each, policy, usual)
    known = None if how == "unknown" else cost
    return decide(
        policy.task,
        policy.plan,
        each.draft,
        Verdict(valid=each.valid, confidence=confidence),
        terms=replace(policy.terms, cost_microusd=known),
    ).action


def _cost(each: Seen, policy: Policy, usual: int | None) -> tuple[int, str]:
    """Return what asking the pool costs, and how that is known."""
    if each.action is Action.ESCALATE:
        return each.cost_microusd, "recorded"
    if usual is not None:
        return usual, "mean"
    if policy.price is not None:
        return policy.price(each.chars), "worst case"
    return 0, "unknown"


def _tally(
    kept: Sequence[Seen],
    sure: Sequence[float | None],
    actions: Sequence[Action],
    labels: Labels,
    *,
    cost: int | None,
    cloud_accuracy: float,
) -> Tally:
    counts = Counter(actions)
    judged = [labels[each.trace_id][0] for each in kept if _source(each, labels) == "user"]
    known = [value for value in sure if value is not None]
    hoped = fsum(known) if len(known) == len(kept) else None
    answered = counts[Action.KEEP] + counts[Action.ESCALATE]
    asked = cloud_accuracy * counts[Action.ESCALATE]
    return Tally(
        kept=counts[Action.KEEP],
        escalated=counts[Action.ESCALATE],
        deferred=counts[Action.DEFER],
        abstained=counts[Action.ABSTAIN],
        cost_microusd=cost,
        right_by_labels=right_of(kept, labels),
        judged=len(judged),
        judged_wrong=len(judged) - sum(judged),
        unaudited=sum(e.propensity is None and _source(e, labels) is None for e in kept),
        right_by_confidence=hoped / len(kept) if hoped is not None and kept else None,
        right_expected=(hoped + asked) / answered if hoped is not None and answered else None,
    )


def _source(each: Seen, labels: Labels) -> str | None:
    found = labels.get(each.trace_id)
    return None if found is None else found[1]


def _wilson(weights: Sequence[float], right: Sequence[bool]) -> tuple[float, float, float]:
    """Return (mean, low, high) of weighted outcomes, at least one."""
    total = fsum(weights)
    mean = fsum(w for w, good in zip(weights, right, strict=True) if good) / total
    count = total * total / fsum(w * w for w in weights)
    near = _Z * _Z / count
    centre = (mean + near / 2) / (1 + near)
    width = _Z * sqrt(mean * (1 - mean) / count + near / (4 * count)) / (1 + near)
    return mean, max(0.0, centre - width), min(1.0, centre + width)
