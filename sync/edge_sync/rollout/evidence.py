"""What is known of a wave: devices that took the policy, work, refuse or fell silent; their work.

Frozen values counted from columns of devices and from sums of their health. Order does not matter,
and nothing is estimated here. Does not know what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sync.rollout.terms import Terms
from edge_sync.wire import LATENCY_BUCKETS

_Floats = NDArray[np.float64]
_Flags = NDArray[np.bool_]
_BORROWED = 200.0


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums of health; fractions where they were weighed.

    Attributes:
        escalated: tasks that went to the cloud or wait for it.
        latency: tasks by bucket of ``wire.LATENCY_BUCKETS``.

    """

    tasks: float = 0.0
    errors: float = 0.0
    escalated: float = 0.0
    corrections: float = 0.0
    latency: tuple[float, ...] = (0.0,) * LATENCY_BUCKETS

    def share(self, name: str) -> float:
        """Return errors, escalated or corrections per task; 0 without tasks."""
        return float(getattr(self, name)) / self.tasks if self.tasks > 0.0 else 0.0

    @property
    def p95_ms(self) -> float:
        """The upper edge of the bucket in which the 95th percentile lies; 0 without latencies."""
        total = sum(self.latency)
        if total <= 0.0:
            return 0.0
        below = np.cumsum(self.latency) / total
        return float(2.0 ** (int(np.searchsorted(below, 0.95 - 1e-12)) / 2.0))


@dataclass(frozen=True, slots=True)
class Work:
    """Sums of health by device: n rows of tasks, errors, escalated, corrections, then latencies.

    Attributes:
        table: (n, 4 + LATENCY_BUCKETS).

    """

    table: _Floats

    def total(self) -> Tally:
        """Return the sums over all devices."""
        return _tally(self.table.sum(axis=0))

    def known(self, past: Work) -> Work:
        """Return the sums, of each device over at most as many tasks as its past had.

        What a device does of which little was known may be usual for it.
        """
        own, before = self.table[:, 0], past.table[:, 0]
        if before.sum() <= 0.0:
            return self
        part = np.divide(before, own, out=np.ones_like(own), where=own > before)
        return Work(self.table * part[:, None])

    def like(self, other: Work) -> Tally:
        """Return what these devices would have done over as many tasks each as in ``other``.

        Devices differ, and those that work most now need not be those that worked most before. One
        that did little before counts as if it had done ``_BORROWED`` tasks more like all of them.
        """
        own, asked = self.table[:, 0], other.table[:, 0]
        whole = self.table.sum(axis=0)
        if whole[0] <= 0.0:
            return Tally()
        weights = asked / (own + _BORROWED)
        common = whole / whole[0] * _BORROWED * weights.sum()
        return _tally((self.table * weights[:, None]).sum(axis=0) + common)


def _tally(sums: _Floats) -> Tally:
    values = [float(value) for value in sums]
    return Tally(values[0], values[1], values[2], values[3], tuple(values[4:]))


def no_work(devices: int) -> Work:
    """Return the sums of devices that did nothing."""
    return Work(np.zeros((devices, 4 + LATENCY_BUCKETS)))


@dataclass(frozen=True, slots=True)
class Columns:
    """What the hub knows of n devices, as arrays of shape (n,).

    Attributes:
        wave: the first wave each belongs to.
        last_seen: seconds since the epoch; -inf for never.
        revision: in force on the device, as it reported.
        since: from when on; -inf where unknown.
        refused: whether it would not take the new revision.

    """

    wave: NDArray[np.int64]
    last_seen: _Floats
    revision: NDArray[np.int64]
    since: _Floats
    refused: _Flags


@dataclass(frozen=True, slots=True)
class Evidence:
    """A wave at one moment; earlier waves are part of it.

    Attributes:
        wave: from 0.
        last: whether no wave follows.
        elapsed_s: age of the wave without pauses.
        looked_s: its age at the look before; 0 for none.
        devices: in the wave.
        living: of them, those seen shortly before the start or later.
        expected: of them, those online just before the wave began.
        activated: on the new revision, as they reported.
        refused: those that would not take it.
        healthy: heard of after a whole soak under the new revision.
        failed: more than half of whose tasks failed under it.
        lost: reached, and silent or not activated though a whole soak has passed.
        reached, silent: seen since just before the start; of them, not heard of in the second half
            of the wave's life.
        control_reached, control_silent: the same among devices that were given nothing new.
        new: what the wave's devices did under the new revision.
        known: the part of it that is compared: of each device as many tasks as it did before.
        usual: what the same devices did before, over as many tasks of each.
        control: what devices that were given nothing new do meanwhile, and ``control_usual``
            what they did before.

    """

    wave: int
    last: bool
    elapsed_s: float
    looked_s: float
    devices: int
    living: int
    expected: int
    activated: int
    refused: int
    healthy: int
    failed: int
    lost: int
    reached: int
    silent: int
    control_reached: int
    control_silent: int
    new: Tally
    known: Tally
    usual: Tally
    control: Tally
    control_usual: Tally

    def figures(self) -> dict[str, Any]:
        """Return the counts and shares as plain values, for a person and for the record."""
        counts = asdict(self)
        tallies = {
            name: counts.pop(name) for name in ("new", "known", "usual", "control", "control_usual")
        }
        for name in tallies:
            tally: Tally = getattr(self, name)
            counts[name] = {
                "tasks": round(tally.tasks),
                "error_share": round(tally.share("errors"), 5),
                "escalation_share": round(tally.share("escalated"), 5),
                "correction_share": round(tally.share("corrections"), 5),
                "p95_ms": round(tally.p95_ms, 1),
            }
        return counts


@dataclass(frozen=True, slots=True)
class Sums:
    """Health by device, in the order of the columns.

    Attributes:
        new: under the new revision.
        old: under others, before the start.
        meanwhile: under others, since the start.
        lately: under the new revision, since the current wave began.

    """

    new: Work
    old: Work
    meanwhile: Work
    lately: Work


def gather(
    columns: Columns,
    sums: Sums,
    terms: Terms,
    *,
    revision: int,
    starts: Sequence[float],
    last: bool,
    expected: int,
    paused_s: float,
    looked_s: float,
    now: float,
) -> Evidence:
    """Return the evidence on a rollout's current wave.

    Args:
        columns: of all devices of the rollout's groups.
        sums: of the same.
        terms: of the judgement.
        revision: the new one.
        starts: when each wave so far began; the last is the current one.
        last: whether no wave follows.
        expected: devices of the wave that were online just before it began.
        paused_s: how long the current wave was paused.
        looked_s: age of the wave at the look before.
        now: seconds since the epoch.

    """
    wave = len(starts) - 1
    elapsed = max(0.0, now - starts[-1] - paused_s)
    marks = _mark(columns, terms, revision=revision, starts=starts, elapsed=elapsed, now=now)
    inside, fresh = marks.inside, marks.fresh
    return Evidence(
        wave=wave,
        last=last,
        elapsed_s=elapsed,
        looked_s=looked_s,
        devices=int(inside.sum()),
        living=int((inside & (columns.last_seen >= starts[0] - terms.living_s)).sum()),
        expected=expected,
        activated=int(marks.on.sum()),
        refused=int((inside & columns.refused & ~marks.on).sum()),
        healthy=int(marks.healthy.sum()),
        failed=int((inside & (2.0 * sums.new.table[:, 1] > sums.new.table[:, 0])).sum()),
        lost=int(marks.lost.sum()),
        reached=int((fresh & marks.begun).sum()),
        silent=int((fresh & marks.silent).sum()),
        control_reached=int((~fresh & marks.begun).sum()),
        control_silent=int((~fresh & marks.silent).sum()),
        **_compared(sums, fresh, waiting=bool((~inside).any())),
    )


@dataclass(frozen=True, slots=True)
class _Marks:
    """Which devices are what, see ``Evidence``; ``fresh`` are compared with all others."""

    inside: _Flags
    on: _Flags
    healthy: _Flags
    lost: _Flags
    fresh: _Flags
    begun: _Flags
    silent: _Flags


def _mark(
    columns: Columns,
    terms: Terms,
    *,
    revision: int,
    starts: Sequence[float],
    elapsed: float,
    now: float,
) -> _Marks:
    wave = len(starts) - 1
    inside = columns.wave <= wave
    on = inside & (columns.revision == revision)
    healthy = on & (columns.last_seen >= columns.since + terms.soak_s)
    offered = np.asarray(starts)[np.minimum(columns.wave, wave)]
    due = np.where(on, columns.since, offered) + terms.soak_s + terms.grace_s
    reached = columns.last_seen >= starts[0] - terms.grace_s
    # Where nobody waits any more, devices of earlier waves are those that were given nothing new.
    waiting = bool((~inside).any())
    # The last start was chosen when these were well, so both begin with those online then.
    begun = reached & (columns.last_seen >= starts[0 if waiting else -1] - terms.grace_s)
    return _Marks(
        inside=inside,
        on=on,
        healthy=healthy,
        lost=inside & reached & ~healthy & (now >= due),
        fresh=inside if waiting else columns.wave == wave,
        begun=begun,
        silent=begun & (columns.last_seen < now - max(terms.grace_s, elapsed / 2.0)),
    )


def _compared(sums: Sums, fresh: _Flags, *, waiting: bool) -> dict[str, Tally]:
    """Return what devices did, beside what they did before and what the control does."""
    new = _rows(sums.new if waiting else sums.lately, fresh)
    control = _rows(sums.meanwhile if waiting else sums.lately, ~fresh)
    past = _rows(sums.old, fresh)
    known = new.known(past)
    return {
        "new": new.total(),
        "known": known.total(),
        "usual": past.like(known),
        "control": control.total(),
        "control_usual": _rows(sums.old, ~fresh).like(control),
    }


def online(columns: Columns, terms: Terms, *, wave: int, now: float) -> int:
    """Return how many devices of the waves up to this one are online."""
    inside = columns.wave <= wave
    return int((inside & (columns.last_seen >= now - terms.grace_s)).sum())


def _rows(work: Work, flags: _Flags) -> Work:
    return Work(work.table[flags])
