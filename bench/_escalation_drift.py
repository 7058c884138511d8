"""Is a change of traffic noticed, and is the promise kept afterwards?

Out-of-scope requests rise from 3 % to 18 %, as between CLINC150's own splits. Population: the bench
rows of clinc150 and of clinc150-oos, mixed at these shares, drawn with replacement. A run certifies
on 1,000 labelled draws at 3 % (alpha 5 %, and 3, 2 and 1 % for the stricter rungs), hands those
draws to the watch as its reference, and then answers tasks; 2 % of the kept answers are audited.
The change is met by the runtime's own ``Watch``, step by step. False alarms over 10,000 unchanged
tasks take a twin that runs all seeds at once; one run through ``Watch`` itself must agree with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from _common import Row, at_least, at_most
from _escalation_promise import KEY
from _escalation_tape import Bools, Floats, Stream
from numpy.typing import NDArray

from edge.confidence.betting import RISKS, TAILS, audit_factor, grown, tail_factor
from edge.confidence.certificate import Certificate, certify_scores
from edge.confidence.sequence import RiskTable, risk_table
from edge.confidence.watch import Auditor, Cause, Watch, WatchPlan, bar, ticket

ALPHA, STRICTER = 0.05, (0.03, 0.02, 0.01)
BEFORE, AFTER = 0.03, 0.18
LABELS, AUDITS = 1000, 0.02
SOON, EPOCH, LATER = 1000, 10_000, 3000
WAIT = 200  # unchanged tasks before the change
_BINS = 100
Ints = NDArray[np.int_]


@dataclass(frozen=True)
class Traffic:
    """Tasks in order of arrival: similarity, confidence, and whether the answer is wrong."""

    similarity: Floats
    sure: Floats
    wrong: Bools


@dataclass(frozen=True)
class Pools:
    """The two populations, as columns similarity, confidence and wrong."""

    inside: Floats
    outside: Floats
    table: RiskTable

    @classmethod
    def of(cls, streams: Mapping[str, Stream]) -> Pools:
        """Return the pools of a tape."""
        prior = streams["clinc150-fit"]
        table = risk_table(prior.confidence.tolist(), prior.right.tolist())
        return cls(_columns(streams["clinc150"]), _columns(streams["clinc150-oos"]), table)

    def traffic(self, random: np.random.Generator, outside: Floats) -> Traffic:
        """Draw tasks; ``outside`` is the chance of each to be out of scope."""
        count = len(outside)
        out = random.random(count) < outside
        within = self.inside[random.integers(len(self.inside), size=count)]
        beyond = self.outside[random.integers(len(self.outside), size=count)]
        rows = np.where(out[:, None], beyond, within)
        return Traffic(rows[:, 0], rows[:, 1], rows[:, 2] > 0)

    def risk(self, threshold: float | None, outside: float) -> tuple[float, float]:
        """Return (true kept risk, kept share) above a threshold."""
        if threshold is None:
            return 0.0, 0.0
        wrong = kept = 0.0
        for share, rows in ((1.0 - outside, self.inside), (outside, self.outside)):
            stays = rows[:, 1] >= threshold
            kept += share * float(stays.mean())
            wrong += share * float((stays & (rows[:, 2] > 0)).mean())
        return wrong / max(kept, 1e-12), kept


def _columns(stream: Stream) -> Floats:
    similarity = stream.signals["similarity"]
    return np.column_stack([similarity, stream.confidence, ~stream.right]).astype(float)


def begun(pools: Pools, random: np.random.Generator) -> tuple[Watch, Traffic] | None:
    """Return a watch after calibration, and what it was calibrated on; ``None`` if refused."""
    seen = pools.traffic(random, np.full(LABELS, BEFORE))
    ladder = []
    for alpha in (ALPHA, *STRICTER):
        found = certify_scores(
            seen.sure.tolist(),
            (~seen.wrong).tolist(),
            key=KEY,
            alpha=alpha,
            table=pools.table,
        )
        if isinstance(found, Certificate):
            ladder.append(found.threshold)
        elif alpha == ALPHA:
            return None
    plan = WatchPlan(ALPHA, _rungs(ladder), rate=AUDITS, horizon=EPOCH)
    watch = Watch.start(plan, seen.similarity.tolist(), confidences=seen.sure.tolist())
    return watch, seen


def _rungs(thresholds: list[float]) -> tuple[float, ...]:
    """Return the first threshold and those above it, rising, as the runtime does."""
    return tuple(sorted({each for each in thresholds if each >= thresholds[0]}))


@dataclass(frozen=True)
class Watched:
    """What a run came to.

    Attributes:
        alarms: (task, cause) of each.
        thresholds: in force at each task; NaN where nothing was kept.
        kept, errors: after the first alarm.

    """

    alarms: tuple[tuple[int, Cause], ...]
    thresholds: Floats
    kept: int
    errors: int


def watched(watch: Watch, tasks: Traffic, *, name: str) -> Watched:
    """Send tasks through the runtime's watch."""
    auditor = Auditor(name, rate=AUDITS, near_rate=AUDITS)
    alarms: list[tuple[int, Cause]] = []
    thresholds, kept, errors = np.full(len(tasks.sure), np.nan), 0, 0
    rows = zip(tasks.similarity.tolist(), tasks.sure.tolist(), tasks.wrong.tolist(), strict=True)
    for at, (similarity, sure, wrong) in enumerate(rows):
        least, rung = watch.threshold, watch.rung
        thresholds[at] = np.nan if least is None else least
        trace = f"{name}-{at}"
        chances = ticket(name, trace, "similarity"), ticket(name, trace, "confidence")
        keeps = least is not None and sure >= least
        audit = auditor.pick(trace) if keeps else None
        if audit is not None and not audit.chosen:
            watch = watch.kept()
        watch, first = watch.seen(similarity, sure, tickets=chances)
        second = None
        if audit is not None and audit.chosen:
            watch, second = watch.audited(wrong=wrong, propensity=audit.propensity, rung=rung)
        kept, errors = (kept + keeps, errors + (keeps and wrong)) if alarms else (kept, errors)
        alarms += [(at, each.cause) for each in (first, second) if each is not None]
    return Watched(tuple(alarms), thresholds, kept, errors)


@dataclass(frozen=True)
class Chances:
    """Numbers in [0, 1) that decide ties and audits, ``[runs, tasks]`` each."""

    audit: Floats
    similarity: Floats
    confidence: Floats

    @classmethod
    def of(cls, name: str, tasks: int) -> Chances:
        """Return the runtime's tickets of one run."""
        return cls(
            *(
                np.array([[ticket(name, f"{name}-{at}", purpose) for at in range(tasks)]])
                for purpose in ("audit", "similarity", "confidence")
            )
        )

    @classmethod
    def drawn(cls, random: np.random.Generator, shape: tuple[int, int]) -> Chances:
        """Return fresh ones."""
        return cls(*(random.random(shape) for _ in range(3)))


def first_alarms(
    starts: Sequence[tuple[Watch, Traffic]], streams: Sequence[Traffic], *, chances: Chances
) -> Ints:
    """Return the task of each run's first alarm by each test, ``[runs, 3]``; or how many there are.

    A twin of ``Watch`` over many runs at once, up to each run's first alarm.
    """
    runs, tasks = len(streams), len(streams[0].sure)
    found = np.full((runs, 3), tasks)
    bars = [bar(cause, starts[0][0].plan.false_alarm) for cause in Cause]
    least = np.array([watch.plan.ladder[0] for watch, _ in starts])
    kept = np.stack([each.sure for each in streams]) >= least[:, None]
    wrong = np.stack([each.wrong for each in streams])
    loss = np.where((chances.audit < AUDITS) & wrong, 1.0 / AUDITS, 0.0)
    wealth = np.zeros((runs, len(RISKS)))
    for at in range(tasks):
        factor = audit_factor(loss[:, at], alpha=ALPHA, rate=AUDITS)
        after = grown(wealth, factor, horizon=EPOCH)
        wealth = np.where(kept[:, at, None], after, wealth)
        _note(found[:, 0], wealth.sum(axis=1) >= bars[0], at)
    for column, (field, low, ties) in enumerate(
        (("similarity", -1.0, chances.similarity), ("sure", 0.0, chances.confidence)), start=1
    ):
        sample = np.stack([getattr(seen, field) for _, seen in starts])
        stream = np.stack([getattr(each, field) for each in streams])
        ranks = _ranked(sample, stream, low, ties)
        wealth = np.zeros((runs, len(TAILS)))
        for at in range(tasks):
            wealth = grown(wealth, tail_factor(ranks[:, at]), horizon=EPOCH)
            _note(found[:, column], wealth.sum(axis=1) >= bars[column], at)
    return found


def _note(column: Ints, raised: Bools, at: int) -> None:
    column[raised & (column > at)] = at


def _ranked(sample: Floats, stream: Floats, low: float, chances: Floats) -> Floats:
    """Return the conformal p-values of each run's stream, by running counts of bins."""
    cells = [
        np.clip((values - low) / (1.0 - low) * _BINS, 0, _BINS - 1).astype(int)
        for values in (sample, stream)
    ]
    rows = np.arange(len(stream))
    counts = np.stack([np.bincount(row, minlength=_BINS) for row in cells[0]])
    found = np.empty(stream.shape)
    for at in range(stream.shape[1]):
        here = cells[1][:, at]
        upto = np.cumsum(counts, axis=1)[rows, here]
        ties = counts[rows, here]
        found[:, at] = (upto - ties + chances[:, at] * (ties + 1)) / (sample.shape[1] + at + 1)
        counts[rows, here] += 1
    return found


def drifting(streams: Mapping[str, Stream], *, runs: int, calm_runs: int) -> Iterator[Row]:
    """Yield the rows of a change, and of no change."""
    if {"clinc150", "clinc150-oos", "clinc150-fit"} <= streams.keys():
        pools = Pools.of(streams)
        yield from _changed(pools, runs)
        yield from _calm(pools, calm_runs)


def _changed(pools: Pools, runs: int) -> Iterator[Row]:
    share = np.where(np.arange(WAIT + LATER) < WAIT, BEFORE, AFTER)
    found, before = [], []
    for seed in range(runs):
        random = np.random.default_rng(seed)
        start = begun(pools, random)
        if start is None:
            continue
        tasks, name = pools.traffic(random, share), f"change-{seed}"
        found.append(watched(start[0], tasks, name=name))
        before.append(pools.risk(start[0].threshold, AFTER)[0])
        if len(found) == 1:
            twin = first_alarms([start], [tasks], chances=Chances.of(name, len(share)))
            _check(found[0], int(twin.min()))
    told = f"out of scope 3 % -> 18 %, alpha {ALPHA:.0%}"
    yield Row(f"{told}: certificates refused at 3 %", round(1.0 - len(found) / runs, 4), "")
    yield Row(f"{told}: kept risk without a watch", round(float(np.mean(before)), 4), "")
    yield from _noticed(told, found)
    yield from _afterwards(told, pools, found)


def _noticed(told: str, found: Sequence[Watched]) -> Iterator[Row]:
    delays = np.array(
        [next((at - WAIT for at, _ in run.alarms if at >= WAIT), LATER) for run in found]
    )
    soon = float((delays < SOON).mean())
    yield at_least(f"{told}: runs with an alarm within 1,000 tasks", soon, 0.95)
    yield Row(f"{told}: median delay of the alarm", float(np.median(delays)), "tasks")
    yield Row(f"{told}: longest delay of the alarm", float(delays.max()), "tasks")
    early = float(np.mean([any(at < WAIT for at, _ in run.alarms) for run in found]))
    yield Row(f"{told}: runs with an alarm before the change", round(early, 4), "")


def _afterwards(told: str, pools: Pools, found: Sequence[Watched]) -> Iterator[Row]:
    kept, errors = (sum(getattr(run, name) for run in found) for name in ("kept", "errors"))
    yield at_most(
        f"{told}: kept risk after the alarm", errors / max(kept, 1), round(1.5 * ALPHA, 4)
    )
    last = [float(run.thresholds[-1]) for run in found]
    risks = np.array([pools.risk(None if np.isnan(each) else each, AFTER) for each in last])
    above = float((risks[:, 0] > 1.5 * ALPHA).mean())
    yield Row(f"{told}: runs above 1.5 alpha in the end", round(above, 4), "")
    yield Row(f"{told}: kept share in the end", round(float(risks[:, 1].mean()), 4), "")
    yield Row(
        f"{told}: runs that keep nothing in the end", round(float(np.isnan(last).mean()), 4), ""
    )
    steps = float(np.mean([len(run.alarms) for run in found]))
    yield Row(f"{told}: steps of the ladder taken", round(steps, 2), "")


def _calm(pools: Pools, runs: int) -> Iterator[Row]:
    starts, traffic = [], []
    for seed in range(runs):
        random = np.random.default_rng(100_000 + seed)
        start = begun(pools, random)
        if start is not None:
            starts.append(start)
            traffic.append(pools.traffic(random, np.full(EPOCH, BEFORE)))
    chances = Chances.drawn(np.random.default_rng(99), (len(starts), EPOCH))
    found = first_alarms(starts, traffic, chances=chances)
    alarmed = (found < EPOCH).any(axis=1)
    told = "out of scope 3 %, unchanged"
    yield at_most(f"{told}: false alarms in 10,000 tasks", float(alarmed.mean()), 0.05)
    for column, cause in enumerate(Cause):
        share = float((found[:, column] < EPOCH).mean())
        yield Row(f"{told}: false alarms of {cause}", round(share, 4), "")


def _check(run: Watched, twin: int) -> None:
    """End the bench where the twin and ``Watch`` differ."""
    first = run.alarms[0][0] if run.alarms else WAIT + LATER
    if first != twin:
        raise RuntimeError(f"The watch alarmed at task {first}, its twin at {twin}.")
