"""The breaker of a task: it steps down where the objective is missed, and up once it is healthy.

One ladder per task, in the order that the policy declares. Answers that were late or failed are
counted over a sliding window: once more than 1 in 20 of the window's answers missed, the window's
95th percentile is above the objective, and the task goes one step down. After a healthy period one
call at a time is answered a step higher; so many in a row in time there, and the task steps up. A
probe that misses doubles the wait. Thread-safe and deterministic: time comes in with each call.
Asks no model and knows no clock.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge.policy.sections import Degrade, DegradeStep
from edge.types import Reason

_PERCENTILE = 20  # one answer in so many may be late
_MOST_DOUBLED = 6

STEP_REASONS = {
    "smaller_model": Reason.SMALLER_MODEL,
    "shorter_context": Reason.SHORTER_CONTEXT,
    "best_effort": Reason.BEST_EFFORT,
}
"""Codes of the steps that change how an answer is made; one from the cache says so itself."""


@dataclass(frozen=True, slots=True)
class Stance:
    """How one call is answered: the steps in force, taken once at its beginning.

    Attributes:
        step: how many of the declared steps are in force; 0 for none.
        smaller: task whose local model answers; the task's own where ``None``.
        context: tokens of the input that are read; the task's own limit where ``None``.
        stale_s: how old an answer from the cache may be; the cache's own limit where ``None``.
        best_effort: nobody else is asked.
        probe: the call tries a step above the one in force.

    """

    step: int = 0
    smaller: str | None = None
    context: int | None = None
    stale_s: int | None = None
    best_effort: bool = False
    reasons: tuple[Reason, ...] = ()
    probe: bool = False

    def as_detail(self) -> dict[str, Any]:
        """Return what a trace keeps of it; with the revision's steps ``stances`` gives it back."""
        return {"step": self.step, "probe": self.probe, "in_force": [*self.reasons]}


FULL = Stance()
"""Nothing is degraded."""


def stances(steps: Sequence[DegradeStep]) -> tuple[Stance, ...]:
    """Return how a task is answered with none, one, … all of its steps in force."""
    found = [FULL]
    for number, step in enumerate(steps, 1):
        above = found[-1]
        codes = dict.fromkeys((Reason.DEGRADED, *above.reasons))
        name = next(key for key in type(step).model_fields if getattr(step, key) is not None)
        if name in STEP_REASONS:
            codes[STEP_REASONS[name]] = None
        found.append(
            Stance(
                step=number,
                smaller=step.smaller_model or above.smaller,
                context=step.shorter_context or above.context,
                stale_s=step.cached or above.stale_s,
                best_effort=bool(step.best_effort) or above.best_effort,
                reasons=tuple(codes),
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Rung:
    """Where a ladder is; what outlives a process.

    Attributes:
        step: how many steps are in force.
        since: when that began to count as healthy, seconds.
        strikes: probes in a row that missed.
        passed: probes in a row that were in time.

    """

    step: int = 0
    since: float = -math.inf
    strikes: int = 0
    passed: int = 0


class Ladder:
    """The steps of one task.

    Args:
        spec: the steps, and when they are taken.
        objective_ms: what an answer may take; ``None`` counts failures alone.
        rung: where to begin.

    Attributes:
        rung: where it is.

    """

    def __init__(
        self, spec: Degrade, objective_ms: float | None, *, rung: Rung | None = None
    ) -> None:
        self._spec = spec
        self._objective_ms = math.inf if objective_ms is None else objective_ms
        self._stances = stances(spec.steps)
        self._allowed = spec.window // _PERCENTILE
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, bool]] = deque()
        self._missed = 0
        self._probed_at: float | None = None
        rung = rung or Rung()
        self.rung = replace(rung, step=min(rung.step, len(spec.steps)))

    def begin(self, now: float) -> Stance:
        """Return how a call that begins now is answered; it ends with ``end`` or ``cancel``."""
        rung = self.rung
        if rung.step == 0:
            return FULL
        with self._lock:
            rung = self.rung
            if rung.step == 0:
                return FULL
            if not self._may_probe(now):
                return self._stances[rung.step]
            self._probed_at = now
            return replace(self._stances[rung.step - 1], probe=True)

    def end(self, stance: Stance, latency_ms: float, *, failed: bool, now: float) -> bool:
        """Take a finished call; return whether the rung is another one now."""
        missed = failed or latency_ms > self._objective_ms
        with self._lock:
            before: Rung = self.rung
            if stance.probe:
                self._probe_ended(stance, missed=missed, now=now)
            elif stance.step == before.step:  # one that began on another step says nothing here
                self._count(missed=missed, now=now)
            return self.rung != before

    def cancel(self, stance: Stance) -> None:
        """Take a call that says nothing: it was broken off, or its input was wrong."""
        if stance.probe:
            with self._lock:
                self._probed_at = None

    def _may_probe(self, now: float) -> bool:
        if self._probed_at is not None and now - self._probed_at < self._spec.window_s:
            return False
        wait_s = self._spec.recover_s * (1 << min(self.rung.strikes, _MOST_DOUBLED))
        return now - self.rung.since >= wait_s

    def _probe_ended(self, stance: Stance, *, missed: bool, now: float) -> None:
        if stance.step != self.rung.step - 1:
            return
        self._probed_at = None
        rung = self.rung
        if missed:
            self.rung = replace(rung, since=now, strikes=rung.strikes + 1, passed=0)
        elif rung.passed + 1 < self._spec.probes:
            self.rung = replace(rung, passed=rung.passed + 1)
        else:
            self._move(rung.step - 1, now)

    def _count(self, *, missed: bool, now: float) -> None:
        seen, oldest = self._seen, now - self._spec.window_s
        seen.append((now, missed))
        self._missed += missed
        while len(seen) > self._spec.window or seen[0][0] < oldest:
            self._missed -= seen.popleft()[1]
        if self._missed > self._allowed:
            self._move(min(self.rung.step + 1, len(self._spec.steps)), now)

    def _move(self, step: int, now: float) -> None:
        """Go to a step; what was seen on another one says nothing of it.

        On the last one there is no further step: it begins to count as healthy anew.
        """
        strikes = self.rung.strikes if step == self.rung.step else 0
        self.rung = Rung(step, since=now, strikes=strikes)
        self._seen.clear()
        self._missed, self._probed_at = 0, None
