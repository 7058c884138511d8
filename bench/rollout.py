"""Whether bad policies are halted in their first wave and good ones are not, over simulated fleets.

The real judgement over simulated devices. They come and go with shop hours and with absences whose
lengths have a heavy tail (Pareto, index 1.3, up to 30 days), differ in how much they work and how
often they fail or ask, and share swings of the day. A fault is in the policy, not in the wave. What
a first wave of three devices cannot show is measured like everything else and has no bar.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from _common import Row, at_least, at_most, main
from numpy.typing import NDArray

from edge_sync.rollout.evidence import Columns, Sums, Work, gather, no_work, online
from edge_sync.rollout.judgement import Advance, Halt, judge
from edge_sync.rollout.terms import Terms, next_look_s
from edge_sync.rollout.waves import choose_id, parse_waves, wave_of
from edge_sync.wire import LATENCY_BUCKETS

_Floats = NDArray[np.float64]

SEED = 20261124  # the defaults of the terms were chosen with other seeds
WAVES, WIDE = "5,25,100", "40,70,100"
GOOD_COUNTS, QUICK_GOOD_COUNTS = {60: 350, 500: 350, 5000: 300}, {60: 30, 500: 30}
BAD_COUNT, QUICK_BAD_COUNT = 42, 5
HOUR = 3600.0
WARM_HOURS, PAST_HOURS = 28 * 24, 14 * 24
LONGEST_HOURS = 60 * 24
OLD, NEW = 1, 2


@dataclass(frozen=True)
class Fault:
    """What is wrong with a policy.

    Attributes:
        errors, corrections: share of tasks that fail, or are corrected, more than before.
        slower, escalating: factors.
        silent, refusing: share of the devices that fall silent after activation, or refuse.

    """

    name: str
    errors: float = 0.0
    corrections: float = 0.0
    slower: float = 1.0
    escalating: float = 1.0
    silent: float = 0.0
    refusing: float = 0.0


GOOD = Fault("good")
BAD = (
    Fault("10 % of tasks fail", errors=0.1),
    Fault("all devices fall silent", silent=1.0),
    Fault("30 % of devices fall silent", silent=0.3),
    Fault("all devices refuse", refusing=1.0),
    Fault("30 % of devices refuse", refusing=0.3),
    Fault("latency doubled", slower=2.0),
    Fault("escalations doubled", escalating=2.0),
    Fault("10 % of tasks corrected", corrections=0.1),
)
# Faults that hit only some devices: three devices of a first wave may all be spared.
PARTIAL = (BAD[2], BAD[4])


@dataclass
class Fleet:
    """Devices that come and go and work; all arrays have the shape (devices,)."""

    random: np.random.Generator
    size: int
    hour: int = 0
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """Draw what the devices are like."""
        draw, n = self.random, self.size
        self.ids = [draw.bytes(16).hex() for _ in range(n)]
        self.shop = draw.random(n) < 0.4
        self.opens = draw.integers(6, 10, n)
        self.up = draw.random(n) < 0.8
        self.until = draw.exponential(24.0, n)
        self.dead = np.zeros(n, bool)
        self.rate = draw.lognormal(np.log(12.0), 0.8, n)
        shares = draw.uniform([0.002, 0.05, 0.001], [0.03, 0.3, 0.02])
        self.errors, self.escalated, self.corrections = (
            draw.beta(share * 20.0, (1.0 - share) * 20.0, n) for share in shares
        )
        self.speed = draw.normal(0.0, 0.5, n)
        self.spread = draw.uniform(0.5, 1.1)
        self.swing = np.zeros(3)
        self.last_seen = np.full(n, -np.inf)
        self.worked = np.zeros(n)

    @property
    def now(self) -> float:
        """The end of the last hour, in seconds."""
        return self.hour * HOUR

    def step(self) -> NDArray[np.bool_]:
        """Let an hour pass; return which devices were online."""
        self.hour += 1
        flips = self.until <= self.hour
        count = int(flips.sum())
        if count:
            self.up[flips] = ~self.up[flips]
            away = np.minimum(2.0 * (1.0 + self.random.pareto(1.3, count)), 720.0)
            here = self.random.exponential(36.0, count)
            self.until[flips] = self.hour + np.where(self.up[flips], here, away)
        clock = (self.hour - self.opens) % 24
        on = self.up & ~self.dead & ~(self.shop & (clock >= 14))
        self.last_seen[on] = self.now - self.random.uniform(0.0, 300.0, int(on.sum()))
        if self.hour % 24 == 0:
            self.swing = 0.7 * self.swing + self.random.normal(0.0, 0.1, 3)
        return on

    def work(self, on: NDArray[np.bool_], hours: _Floats, faults: Sequence[_Floats]) -> _Floats:
        """Return what devices did in so many hours, (devices, 4 + buckets) without latencies."""
        table = np.zeros((self.size, 4 + LATENCY_BUCKETS))
        draw, at = self.random, np.flatnonzero(on)
        tasks = draw.poisson(self.rate[at] * hours[at])
        table[at, 0] = tasks
        shares = (self.errors, self.escalated, self.corrections)
        for column, (share, more, swing) in enumerate(
            zip(shares, faults, self.swing, strict=True), start=1
        ):
            # Hours differ too: failures come in clumps.
            clump = draw.gamma(3.0 * hours[at], 1.0 / (3.0 * hours[at]))
            chance = np.minimum(0.95, share[at] * np.exp(swing) * clump)
            chance = np.minimum(0.98, more[at] + chance if column != 2 else chance * more[at])
            table[at, column] = draw.binomial(tasks, chance)
        return table

    def latencies(self, tasks: _Floats, slower: float) -> _Floats:
        """Return by bucket how long so many tasks of each device took."""
        edges = np.log(2.0) * np.arange(LATENCY_BUCKETS - 1) / 2.0
        z = (edges[None, :] - np.log(60.0 * slower) - self.speed[:, None]) / self.spread
        below = np.concatenate([np.zeros((self.size, 1)), _normal(z), np.ones((self.size, 1))], 1)
        shares = np.maximum(np.diff(below, axis=1), 0.0)
        return self.random.multinomial(tasks.astype(np.int64), shares).astype(float)


def _normal(z: _Floats) -> _Floats:
    """Return the normal distribution function, to 1e-7 (Abramowitz and Stegun 26.2.17)."""
    t = 1.0 / (1.0 + 0.2316419 * np.abs(z))
    terms = (0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429)
    tail = np.exp(-z * z / 2.0) / np.sqrt(2.0 * np.pi)
    tail = tail * sum(factor * t ** (at + 1) for at, factor in enumerate(terms))
    return np.where(z >= 0.0, 1.0 - tail, tail)


@dataclass(frozen=True)
class Outcome:
    """How one rollout ended.

    Attributes:
        touched: devices that were given the policy.
        first: devices of the first wave.
        offline: share of the fleet that was offline, on average.

    """

    halted: bool
    touched: int
    first: int
    hours: float
    offline: float
    reason: str


class Rollout:
    """One simulated rollout of a policy over a fleet."""

    def __init__(self, size: int, fault: Fault, *, seed: Sequence[int], waves: str) -> None:
        self.fault, self.terms, self.waves = fault, Terms(), parse_waves(waves)
        self.random = np.random.default_rng(seed)
        self.fleet = Fleet(self.random, size)
        self.hit = self.random.random(size) < max(fault.silent, fault.refusing)
        self.dies = np.full(size, np.inf)
        self.revision = np.full(size, OLD)
        self.since = np.full(size, -np.inf)
        self.refused, self.touched = np.zeros(size, bool), np.zeros(size, bool)
        self.new, self.meanwhile = no_work(size).table, no_work(size).table
        self.before = no_work(size).table
        self.offline: list[float] = []
        self.old = self._past()
        living = self.fleet.last_seen >= self.fleet.now - self.terms.grace_s
        fleet = [(name, "all", bool(on)) for name, on in zip(self.fleet.ids, living, strict=True)]
        chosen = choose_id(int(self.random.integers(1_000_000)), self.waves, fleet)
        self.wave = np.array(
            [
                wave_of(self.waves, rollout=chosen, device_id=name, group="all")
                for name in self.fleet.ids
            ]
        )

    def _past(self) -> _Floats:
        hours = np.zeros(self.fleet.size)
        for at in range(WARM_HOURS + int(self.random.integers(24))):
            on = self.fleet.step()
            if at >= WARM_HOURS - PAST_HOURS:
                hours += on
        plain = self._more(np.zeros(self.fleet.size, bool))
        table = self.fleet.work(hours > 0, hours, plain)
        table[:, 4:] = self.fleet.latencies(table[:, 0], 1.0)
        return table

    def _more(self, new: NDArray[np.bool_]) -> tuple[_Floats, _Floats, _Floats]:
        """Return what the fault adds to errors and corrections, and times escalations."""
        return (
            np.where(new, self.fault.errors, 0.0),
            np.where(new, self.fault.escalating, 1.0),
            np.where(new, self.fault.corrections, 0.0),
        )

    def run(self) -> Outcome:
        """Run until it is done or halted."""
        starts, looked = [self.fleet.now], 0.0
        expected = online(self.columns(), self.terms, wave=0, now=self.fleet.now)
        for _ in range(LONGEST_HOURS):
            self._hour(len(starts) - 1)
            elapsed = self.fleet.now - starts[-1]
            if elapsed < next_look_s(looked):
                continue
            done = self._latencies()
            evidence = gather(
                self.columns(), done, self.terms,
                revision=NEW, starts=starts, last=len(starts) == len(self.waves), expected=expected,
                paused_s=0.0, looked_s=looked, now=self.fleet.now,
            )  # fmt: skip
            found, looked = judge(evidence, self.terms), elapsed
            if isinstance(found, Halt):
                return self._outcome(starts, found.reason, halted=True)
            if isinstance(found, Advance):
                if evidence.last:
                    return self._outcome(starts, found.reason, halted=False)
                starts, looked = [*starts, self.fleet.now], 0.0
                wave, self.before = len(starts) - 1, self.new.copy()
                expected = online(self.columns(), self.terms, wave=wave, now=self.fleet.now)
        raise AssertionError("no deadline ended this rollout")

    def _hour(self, wave: int) -> None:
        """Let an hour pass: devices take the policy, work, and fall silent."""
        fleet = self.fleet
        self.fleet.dead |= self.dies <= fleet.hour + 1
        on = fleet.step()
        self.offline.append(1.0 - float((on | fleet.dead).mean()))
        take = on & (self.wave <= wave) & ~self.touched
        self.touched |= take
        refusing = take & self.hit & (self.fault.refusing > 0.0)
        self.refused |= refusing
        takers = take & ~refusing
        self.since[takers] = fleet.last_seen[takers] - 60.0
        dying = np.flatnonzero(takers & self.hit & (self.fault.silent > 0.0))
        # Half of them never come back from the activation, the others within hours.
        delay = np.where(self.random.random(len(dying)) < 0.5, 0.0,
                         self.random.exponential(2.0, len(dying)))  # fmt: skip
        self.dies[dying] = fleet.hour + delay
        fleet.last_seen[dying[delay == 0.0]] -= HOUR
        unheard = np.zeros(fleet.size, bool)
        unheard[dying[delay == 0.0]] = True
        self.revision[takers & ~unheard] = NEW
        new = self.revision == NEW
        done = fleet.work(on & ~unheard, np.ones(fleet.size), self._more(new))
        self.new += np.where(new[:, None], done, 0.0)
        self.meanwhile += np.where(new[:, None], 0.0, done)

    def _latencies(self) -> Sums:
        """Return the sums so far; latencies are drawn when they are looked at."""
        timed = self.new[:, 4:].sum(axis=1)
        self.new[:, 4:] += self.fleet.latencies(self.new[:, 0] - timed, self.fault.slower)
        lately = Work(self.new - self.before)
        return Sums(Work(self.new), Work(self.old), Work(self.meanwhile), lately)

    def columns(self) -> Columns:
        """Return what the hub knows of the devices."""
        return Columns(self.wave, self.fleet.last_seen, self.revision, self.since, self.refused)

    def _outcome(self, starts: Sequence[float], reason: str, *, halted: bool) -> Outcome:
        hours = (self.fleet.now - starts[0]) / HOUR
        first = int((self.wave == 0).sum())
        offline = float(np.mean(self.offline))
        return Outcome(halted, int(self.touched.sum()), first, hours, offline, reason)


def rollouts(
    size: int, fault: Fault, count: int, *, waves: str = WAVES, seed: int = SEED
) -> list[Outcome]:
    """Return how so many rollouts end."""
    kind = (GOOD, *BAD).index(fault)
    return [
        Rollout(size, fault, seed=(seed, size, kind, len(waves), at), waves=waves).run()
        for at in range(count)
    ]


def passed(outcome: Outcome) -> bool:
    """Return whether a bad policy went further than it may."""
    return not outcome.halted or outcome.touched > 1.2 * outcome.first


def share(outcomes: Sequence[Outcome]) -> float:
    """Return how many percent of rollouts were halted."""
    return 100.0 * sum(each.halted for each in outcomes) / len(outcomes)


def good_rows(name: str, outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Yield what became of good rollouts of one kind of fleet."""
    done = [each.hours for each in outcomes if not each.halted]
    offline = 100.0 * float(np.mean([each.offline for each in outcomes]))
    yield Row(f"{name}, naturally offline (n {len(outcomes)})", round(offline, 1), "%")
    yield Row(f"{name}, good: halted", round(share(outcomes), 2), "%")
    yield Row(f"{name}, good: to the end, median", round(float(np.median(done)), 1), "h")
    yield Row(f"{name}, good: to the end, 90 of 100", round(float(np.quantile(done, 0.9)), 1), "h")


def bad_rows(name: str, outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Yield what became of bad rollouts of one kind."""
    most = max(each.touched / max(1, each.first) for each in outcomes)
    if all(each.halted for each in outcomes):
        yield at_most(f"{name}: most touched, in first waves", most, 1.2)
    else:
        yield Row(f"{name}: not halted at all", sum(not each.halted for each in outcomes), "",
                  0.0, met=False, sense="<=")  # fmt: skip
    beyond = sum(map(passed, outcomes))
    yield Row(f"{name}: beyond 1.2 first waves", f"{beyond} of {len(outcomes)}", "")
    hours = float(np.median([each.hours for each in outcomes]))
    yield Row(f"{name}: to the halt, median", round(hours, 1), "h")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    goods = QUICK_GOOD_COUNTS if arguments.quick else GOOD_COUNTS
    count = QUICK_BAD_COUNT if arguments.quick else BAD_COUNT
    good: list[Outcome] = []
    bad: list[Outcome] = []
    for size, each in goods.items():
        found = rollouts(size, GOOD, each)
        good += found
        yield from good_rows(f"{size} devices", found)
        for fault in BAD:
            found = rollouts(size, fault, count)
            bad += found
            yield from bad_rows(f"{size} devices, {fault.name}", found)
    yield at_most(f"all good: halted (n {len(good)})", share(good), 1.0, "%")
    held = 100.0 * (1.0 - sum(map(passed, bad)) / len(bad))
    yield at_least(f"all bad: held within 1.2 first waves (n {len(bad)})", held, 100.0, "%")
    if not arguments.quick:
        yield from wide(count)


def wide(count: int) -> Iterator[Row]:
    """Yield what a first wave that is large enough shows in a small fleet."""
    name = f"60 devices in waves {WIDE}"
    yield from good_rows(name, rollouts(60, GOOD, 2 * count, waves=WIDE))
    for fault in PARTIAL:
        found = rollouts(60, fault, count, waves=WIDE)
        yield from bad_rows(f"{name}, {fault.name}", found)


if __name__ == "__main__":
    main("rollout", measure)
