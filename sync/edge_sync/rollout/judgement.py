"""What follows from the evidence: on to the next wave, wait, or halt; each with its reason.

A wave advances only when it is shown to be well: enough devices have worked under the new policy
for a whole soak, too few are missing for a fault that silences devices, and every figure is shown
to be below its limit. It halts when one is shown to be beyond, when devices refuse or fall silent
more often than others do, and when the deadline finds it neither. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor, log, log2
from typing import Any

from edge.confidence.binomial import lower_tail, most_errors
from edge_sync.rollout.evidence import Evidence
from edge_sync.rollout.mixture import log_capital, more_by_chance
from edge_sync.rollout.terms import Terms, silence_slot

_KNOWN_TASKS = 100  # fewer say nothing of what is usual
_MOST_LIMIT = 0.95


@dataclass(frozen=True, slots=True)
class Advance:
    """The wave is well: the next one may begin, or the rollout is done."""

    reason: str
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """Neither is shown yet; ``reason`` says what is missing."""

    reason: str
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Halt:
    """The wave is bad, or was not shown to be well in time."""

    reason: str
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measure:
    """One share of the tasks beside its limit.

    Attributes:
        name: for a person.
        hits: tasks that count against the policy, of ``trials``.
        usual: the share that is usual.
        limit: from where on it is bad.

    """

    name: str
    hits: float
    trials: float
    usual: float
    limit: float

    @property
    def share(self) -> float:
        """Hits per trial; 0 without any."""
        return self.hits / self.trials if self.trials > 0.0 else 0.0

    def shown(self, terms: Terms, *, above: bool) -> bool:
        """Return whether the share is shown to be above (or below) its limit."""
        if self.trials < terms.least_tasks:
            return False
        risk = terms.halt_risk if above else terms.advance_risk
        capital = log_capital(
            self.hits, self.trials, limit=self.limit, above=above, clump=terms.clump
        )
        return capital >= -log(risk)


def judge(evidence: Evidence, terms: Terms) -> Advance | Wait | Halt:
    """Return what follows from the evidence of this moment."""
    measures = tuple(_measures(evidence, terms))
    figures = {
        **evidence.figures(),
        "limits": {each.name: round(each.limit, 5) for each in measures},
    }
    bad = next(_faults(evidence, terms, measures), None)
    if bad is not None:
        return Halt(bad, figures)
    missing = next(_missing(evidence, terms, measures), None)
    if missing is None:
        told = f"Wave {evidence.wave + 1} is well: {_devices(evidence.healthy)} worked under it"
        return Advance(
            f"{told} for {_span(terms.soak_s)} over {evidence.new.tasks:.0f} tasks.", figures
        )
    if evidence.elapsed_s >= terms.deadline_s:
        late = f"Wave {evidence.wave + 1} was not shown to be well in {_span(terms.deadline_s)}"
        return Halt(f"{late}: {missing}", figures)
    return Wait(missing, figures)


def _measures(evidence: Evidence, terms: Terms) -> Iterator[Measure]:
    """Yield each share of the tasks with its limit; those without a usual share only by floor."""
    new, known = evidence.known, evidence.usual.tasks >= _KNOWN_TASKS
    table = (
        ("errors", "errors", terms.error_ratio, terms.error_floor),
        ("escalations", "escalated", terms.escalation_ratio, terms.escalation_floor),
        ("corrections", "corrections", terms.correction_ratio, terms.correction_floor),
    )
    for name, field, ratio, least in table:
        if name == "escalations" and not known:
            continue
        usual = evidence.usual.share(field) * _drift(evidence, field) if known else 0.0
        limit = min(_MOST_LIMIT, max(ratio * usual, usual + least))
        yield Measure(name, getattr(new, field), new.tasks, usual, limit)
    if known and sum(evidence.usual.latency) >= _KNOWN_TASKS:
        yield _slow(evidence, terms)


def _drift(evidence: Evidence, field: str) -> float:
    """Return how much more or less of it there is meanwhile among devices given nothing new."""
    before, meanwhile = evidence.control_usual, evidence.control
    usual = before.share(field)
    if min(before.tasks, meanwhile.tasks) < _KNOWN_TASKS or usual <= 0.0:
        return 1.0
    # Some tasks as usual are put to what was seen, so that a few unlucky ones say little.
    seen = meanwhile.share(field) * meanwhile.tasks + usual * _KNOWN_TASKS
    return seen / (usual * (meanwhile.tasks + _KNOWN_TASKS))


def _slow(evidence: Evidence, terms: Terms) -> Measure:
    """Return the share of tasks slower than usual tasks' 95th percentile, or than the SLO.

    A bucket is a factor of sqrt(2), so were everything slower by the ratio, the share above an edge
    would be what was usual some buckets below it: that is the limit.
    """
    usual, new = evidence.usual.latency, evidence.known.latency
    steps = max(1, round(2.0 * log2(terms.p95_ratio)))
    edge = round(2.0 * log2(evidence.usual.p95_ms))
    limit = _above(usual, edge - steps)
    if terms.slo_ms > 0.0 and 2.0 * log2(terms.slo_ms) > edge:
        edge, limit = ceil(2.0 * log2(terms.slo_ms)), 0.05
    limit = min(_MOST_LIMIT, max(0.05, limit))
    trials = sum(new)
    return Measure("slow tasks", _above(new, edge) * trials, trials, _above(usual, edge), limit)


def _above(latency: tuple[float, ...], edge: int) -> float:
    """Return the share of tasks in buckets above an edge, which ends bucket ``edge``."""
    total = sum(latency)
    return sum(latency[max(0, edge + 1) :]) / total if total > 0.0 else 0.0


def _faults(evidence: Evidence, terms: Terms, measures: tuple[Measure, ...]) -> Iterator[str]:
    """Yield each reason to halt."""
    answered = evidence.refused + evidence.activated
    if evidence.refused >= terms.refusals and evidence.refused > terms.refusal_share * answered:
        yield f"{evidence.refused} of {_devices(answered)} refused the policy."
    for each in measures:
        if each.shown(terms, above=True):
            yield (
                f"{each.name.capitalize()} rose to {each.share:.1%} of {each.trials:.0f} tasks; "
                f"{each.usual:.1%} is usual and {each.limit:.1%} the limit."
            )
    if _silence(evidence, terms):
        yield (
            f"{evidence.silent} of {_devices(evidence.reached)} fell silent; "
            f"of the others {evidence.control_silent} of {evidence.control_reached} did."
        )


def _silence(evidence: Evidence, terms: Terms) -> bool:
    """Return whether devices fell silent more often than the control, at a look that tests it."""
    due = silence_slot(evidence.elapsed_s) > silence_slot(evidence.looked_s)
    if not due or evidence.elapsed_s < 2.0 * terms.grace_s or not evidence.silent:
        return False
    if evidence.control_reached:
        chance = more_by_chance(
            evidence.silent,
            evidence.reached,
            others=evidence.control_silent,
            of=evidence.control_reached,
        )
    else:
        speaking = evidence.reached - evidence.silent
        chance = lower_tail(speaking, evidence.reached, risk=1.0 - terms.offline_share)
    return chance <= terms.silence_risk / terms.silence_looks


def _missing(evidence: Evidence, terms: Terms, measures: tuple[Measure, ...]) -> Iterator[str]:
    """Yield each thing that is not shown yet."""
    if evidence.elapsed_s < terms.soak_s:
        yield f"The wave is out for {_span(evidence.elapsed_s)} of {_span(terms.soak_s)}."
    if evidence.healthy < 1 or evidence.activated < terms.activated_share * evidence.expected:
        yield f"{evidence.activated} of {evidence.expected} expected devices have activated it."
    judged = evidence.healthy + evidence.lost
    needed = min(_enough(terms), max(1, floor(terms.living_share * evidence.living)))
    if judged < needed:
        yield f"{judged} of {needed} devices have had it for {_span(terms.soak_s)}."
    # A wave that follows a good one may be too small to say much, and somebody is always on leave.
    least = 0 if evidence.wave == 0 else 1
    spared = max(least, most_errors(judged, risk=terms.silence_share, delta=terms.silence_doubt))
    if evidence.lost > spared:
        yield (
            f"{evidence.lost} of {judged} devices have not been heard of "
            f"after {_span(terms.soak_s)} under it; {spared} may be."
        )
    for each in measures:
        if not each.shown(terms, above=False):
            yield (
                f"{each.name.capitalize()} are {each.share:.1%} of {each.trials:.0f} tasks: "
                f"not yet shown to stay below {each.limit:.1%}."
            )


def _enough(terms: Terms) -> int:
    """Return how many devices, all of them well, rule out a fault of ``silence_share``."""
    return ceil(log(terms.silence_doubt) / log(1.0 - terms.silence_share))


def _span(seconds: float) -> str:
    """Return a length of time for a person."""
    for size, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2.0 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} seconds"


def _devices(count: int) -> str:
    """Return a number of devices for a person."""
    return f"{count} device" if count == 1 else f"{count} devices"
