"""The quality of a runtime's answers over time: one breaker per task that declares steps down.

Says how a call is answered that begins now, and takes how it ended. Where a task is on its steps is
in the state folder: a new process begins there, and ``edge doctor`` shows it. Each process counts
its own answers. A task that declares no steps costs nothing here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from edge.admit import Call
from edge.degrade import FULL, Ladder, Rung, Stance, stances
from edge.errors import StoreError
from edge.store.states import State, States
from edge.task import TaskSpec

_PREFIX = "degrade/"


class Quality:
    """The breakers of one runtime. Safe to call from several threads.

    Args:
        specs: tasks by name.
        states: where the steps in force are kept.
        clock: seconds, monotonic.
        wall: seconds since the epoch.

    """

    def __init__(
        self,
        specs: Mapping[str, TaskSpec],
        states: States,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._states = states
        self._clock = clock
        self._wall = wall
        self._specs = {name: spec for name, spec in specs.items() if spec.degrade.steps}
        self._ladders = {
            name: Ladder(spec.degrade, spec.budget.p95_latency_slo_ms, rung=self._kept(name))
            for name, spec in self._specs.items()
        }

    def begin(self, task: str) -> Stance:
        """Return how a call that begins now is answered; ``ended`` follows."""
        ladder = self._ladders.get(task)
        return FULL if ladder is None else ladder.begin(self._clock())

    def ended(self, call: Call, *, failed: bool | None) -> None:
        """Take a call that ended; a step that cannot be written down is in force all the same.

        Args:
            call: of ``begin``.
            failed: it raised; ``None`` where it says nothing: broken off, or its input was wrong.

        """
        ladder = self._ladders.get(call.name)
        if ladder is None:
            return
        if failed is None:
            ladder.cancel(call.stance)
            return
        moved = ladder.end(
            call.stance,
            call.allowance.elapsed_ms,
            failed=failed or call.allowance.failed,
            now=self._clock(),
        )
        if moved:
            with suppress(StoreError):
                self._keep(call.name, ladder.rung)

    def report(self) -> dict[str, dict[str, Any]]:
        """Return, by task with steps: step, of, in_force, objective_ms and window."""
        return {
            name: {
                "step": (step := ladder.rung.step),
                "of": len(self._specs[name].degrade.steps),
                "in_force": [*stances(self._specs[name].degrade.steps)[step].reasons],
                "objective_ms": self._specs[name].budget.p95_latency_slo_ms,
                "window": self._specs[name].degrade.window,
            }
            for name, ladder in self._ladders.items()
        }

    def _kept(self, task: str) -> Rung:
        """Return where the task was left; at the top where that is not known."""
        try:
            state = self._states.read(_PREFIX + task)
        except StoreError:
            return Rung()
        found = None if state is None else _rung(state, now=self._clock(), wall=self._wall())
        return found or Rung()

    def _keep(self, task: str, rung: Rung) -> None:
        at = self._wall() - (self._clock() - rung.since)
        state = {"step": rung.step, "at": at, "strikes": rung.strikes, "passed": rung.passed}
        self._states.change(_PREFIX + task, lambda _: state)


def nearest_rank(values: Sequence[float], percent: int = 95) -> float | None:
    """Return the smallest value that at least that share does not exceed; ``None`` for none."""
    if not values:
        return None
    return sorted(values)[-(-percent * len(values) // 100) - 1]


def _rung(state: State, *, now: float, wall: float) -> Rung | None:
    """Return a saved rung on this process's clock; ``None`` where it is damaged."""
    counts: list[Any] = [state.get(name) for name in ("step", "strikes", "passed")]
    at = state.get("at")
    if not all(type(each) is int and each >= 0 for each in counts) or not isinstance(
        at, int | float
    ):
        return None
    step, strikes, passed = counts
    # A wall clock that was set back makes the wait longer by nothing.
    return Rung(step, now - max(0.0, wall - at), strikes, passed)
