"""Do certificates hold, and what do they leave on the device? And is the confidence a probability?

Population: the bench rows of one set, each as likely as any other. A certifying sample is drawn
from it with replacement, so its rows are independent draws from exactly the population on which
the true kept risk is read off: no second sample, whose noise would look like violations. The order
of tests comes from the training rows answered out of fold, the pack's prior; none of them is ever
in a sample. For snips, which the tape holds no training rows of, it is the table in the shipped
calibration. A refused certificate keeps nothing, and counts as kept 0. Where hindsight itself keeps
little, a share of it says little too: the row beside gives it.

The thousands of certificates are counted by a twin of ``certify_scores`` over many samples at once;
in each cell some samples go through ``certify_scores`` itself, and a difference ends the bench.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from _common import ROOT, Row, at_least, at_most
from _escalation_tape import SETS, Bools, Floats, Stream
from numpy.typing import NDArray

from edge.confidence.binomial import most_errors
from edge.confidence.calibration import Calibration
from edge.confidence.certificate import Certificate, certify_scores
from edge.confidence.fusion import Prior, fit_calibration
from edge.confidence.key import CalibrationKey
from edge.confidence.logistic import CLIP, fit_logistic
from edge.confidence.sequence import RiskTable, from_table, risk_table
from edge.lab.metrics import kept_share, smooth_ece

KEY = CalibrationKey("tape", "tape")
ACTIONS = ROOT / "models" / "actions-q8_0" / "calibration-action.json"
ALPHAS = (0.02, 0.05, 0.10)
DELTA = 0.10
RESAMPLES = 1000
KEPT = {500: 0.55, 1000: 0.78}  # labels: least share of what hindsight would keep
NOISE = 0.05
SMOOTH, LABELS = 0.03, 300
_CHECKED = 3
Ints = NDArray[np.int_]


@dataclass(frozen=True)
class Outcomes:
    """What each resample came to on the population, ``[resamples]``."""

    kept: Floats
    risk: Floats

    def violations(self, alpha: float) -> float:
        """Return the share of resamples whose true kept risk is above alpha."""
        return float((self.risk > alpha + 1e-12).mean())


def certified(
    stream: Stream,
    table: RiskTable,
    picks: Ints,
    *,
    alpha: float,
    labels: Bools | None = None,
) -> Outcomes:
    """Return what certificates over samples of a stream keep, and at what true risk.

    Args:
        stream: the population.
        table: kept risks that order the tests.
        picks: rows of the population in each sample, ``[resamples, n]``.
        alpha: the bound asked for.
        labels: what the samples say of each picked row, where that is not the truth.

    """
    n = picks.shape[1]
    order = np.array(from_table(table, n, alpha=alpha, delta=DELTA))
    rung = np.searchsorted(-order, -stream.confidence, side="left")
    said = stream.right[picks] if labels is None else labels
    kept, errors = _counted(rung[picks], ~said, len(order))
    limits = np.array([most_errors(k, risk=alpha, delta=DELTA) for k in range(n + 1)])
    passed = np.cumprod(errors <= limits[kept], axis=1).sum(axis=1)
    _check(stream, picks[:_CHECKED], said, order, passed, alpha=alpha, table=table)
    whole, wrong = _counted(rung[None, :], ~stream.right[None, :], len(order))
    shares = np.append(0.0, whole[0] / len(stream))
    risks = np.append(0.0, wrong[0] / np.maximum(whole[0], 1))
    return Outcomes(shares[passed], risks[passed])


def _counted(rung: Ints, wrong: Bools, rungs: int) -> tuple[Ints, Ints]:
    """Return (kept, errors) of each sample at each threshold, ``[samples, rungs]``."""
    samples = len(rung)
    cell = rung + np.arange(samples)[:, None] * (rungs + 1)
    size = samples * (rungs + 1)
    kept = np.bincount(cell.ravel(), minlength=size)
    errors = np.bincount(cell[wrong], minlength=size)
    kept, errors = (
        each.reshape(samples, rungs + 1)[:, :-1].cumsum(axis=1) for each in (kept, errors)
    )
    return kept, errors


def _check(
    stream: Stream,
    picks: Ints,
    said: Bools,
    order: Floats,
    passed: Ints,
    *,
    alpha: float,
    table: RiskTable,
) -> None:
    """End the bench where the twin and ``certify_scores`` differ."""
    for at, pick in enumerate(picks):
        real = certify_scores(
            stream.confidence[pick].tolist(),
            said[at].tolist(),
            key=KEY,
            alpha=alpha,
            delta=DELTA,
            table=table,
        )
        found = real.threshold if isinstance(real, Certificate) else None
        twin = order[passed[at] - 1] if passed[at] else None
        if found != twin:
            raise RuntimeError(f"The twin certifies {twin}, certify_scores {found}.")


def plug_in(stream: Stream, picks: Ints, *, alpha: float) -> Outcomes:
    """Return the same for the laxest threshold whose risk in the sample is within alpha."""
    points, rank = np.unique(-stream.confidence, return_inverse=True)
    kept, errors = _counted(rank[picks], ~stream.right[picks], len(points))
    within = errors <= alpha * kept
    last = len(points) - 1 - np.argmax(within[:, ::-1], axis=1)
    whole, wrong = _counted(rank[None, :], ~stream.right[None, :], len(points))
    any_ = within.any(axis=1)
    return Outcomes(
        np.where(any_, whole[0][last] / len(stream), 0.0),
        np.where(any_, wrong[0][last] / whole[0][last], 0.0),
    )


def certificates(streams: Mapping[str, Stream]) -> Iterator[Row]:
    """Yield violations and kept shares of every set, with the plug-in threshold beside them."""
    for name, table in tables(streams).items():
        yield from _of_one(streams[name], table)


def tables(streams: Mapping[str, Stream]) -> dict[str, RiskTable]:
    """Return the kept risks that order each set's tests: the pack's, never of bench rows."""
    found = {}
    for name in SETS:
        prior = streams.get(f"{name}-fit")
        if name in streams and prior is not None:
            found[name] = risk_table(prior.confidence.tolist(), prior.right.tolist())
    if "snips" in streams and "snips" not in found:
        shipped = Calibration.load(ACTIONS).risks
        if shipped is not None:
            found["snips"] = shipped
    return found


def _of_one(stream: Stream, table: RiskTable) -> Iterator[Row]:
    random = np.random.default_rng(7)
    picks = {n: random.integers(len(stream), size=(RESAMPLES, n)) for n in KEPT}
    for alpha in ALPHAS:
        told = f"{stream.name} alpha {alpha:.0%}"
        hindsight = kept_share(stream.confidence, stream.right, risk=alpha)
        yield Row(f"{told}: kept in hindsight (n {len(stream)})", round(hindsight, 4), "")
        for n, bar in KEPT.items():
            found = certified(stream, table, picks[n], alpha=alpha)
            yield at_most(f"{told}, {n} labels: violations", found.violations(alpha), DELTA)
            plain = plug_in(stream, picks[n], alpha=alpha).violations(alpha)
            yield Row(f"{told}, {n} labels: violations, plug-in", round(plain, 4), "")
            share = float(found.kept.mean()) / hindsight if hindsight else 1.0
            yield at_least(f"{told}, {n} labels: kept of hindsight", share, bar)
            refused = float((found.kept == 0.0).mean())
            yield Row(f"{told}, {n} labels: refused", round(refused, 4), "")


def noisy(streams: Mapping[str, Stream]) -> Iterator[Row]:
    """Yield the same with 5 % of the certifying labels replaced by another one.

    A true label replaced makes a right answer look wrong; a wrong one stays wrong, but for one in
    as many as there are labels. So the certificate sees a higher risk, and refuses rather than
    breaks.
    """
    for name, table in tables(streams).items():
        if name not in SETS[:3]:
            continue
        stream, random = streams[name], np.random.default_rng(8)
        picks = random.integers(len(stream), size=(RESAMPLES, 1000))
        replaced = random.random(picks.shape) < NOISE
        lucky = random.random(picks.shape) < 1.0 / max(stream.labels - 1, 1)
        said = np.where(replaced, ~stream.right[picks] & lucky, stream.right[picks])
        for alpha in ALPHAS[1:]:
            found = certified(stream, table, picks, alpha=alpha, labels=said)
            told = f"{name} alpha {alpha:.0%}, 1000 labels, 5 % of them false"
            yield at_most(f"{told}: violations", found.violations(alpha), DELTA)
            yield Row(f"{told}: kept", round(float(found.kept.mean()), 4), "")
            refused = float((found.kept == 0.0).mean())
            yield Row(f"{told}: refused", round(refused, 4), "")


def smooth(streams: Mapping[str, Stream], *, seeds: int) -> Iterator[Row]:
    """Yield the smooth calibration error, on all bench rows, of a fit near a prior on 300 labels.

    The labels are rows of one fold of the training rows, the prior is fitted on the other folds:
    no bench row is seen before it measures. The floor is the error of a perfect confidence on as
    many rows: outcomes drawn from the confidence itself.
    """
    for name in SETS:
        if name not in streams or f"{name}-fit" not in streams:
            continue
        prior = streams[f"{name}-fit"]
        found = [_after_labels(streams[name], prior, seed) for seed in range(seeds)]
        error, floor = np.mean(found, axis=0)
        told = f"{name} smooth calibration error"
        yield at_most(f"{told}, {LABELS} labels (n {len(streams[name])})", error, SMOOTH)
        yield Row(f"{told}, of a perfect confidence", round(float(floor), 4), "")
        shipped = smooth_ece(streams[name].confidence, streams[name].right)
        yield Row(f"{told}, as shipped", round(shipped, 4), "")


def _after_labels(stream: Stream, prior: Stream, seed: int) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    folds = np.unique(prior.fold)
    inside = prior.fold == folds[seed % len(folds)]
    labelled = random.choice(np.flatnonzero(inside), min(LABELS, int(inside.sum())), replace=False)
    features = tuple(name for name in stream.signals if name in prior.signals)
    weights = fit_logistic_prior(prior, ~inside, features)
    fitted = fit_calibration(
        KEY,
        prior.rows(labelled),
        correct=prior.right[labelled].tolist(),
        features=features,
        prior=weights,
    )
    judged = (fitted.confidence(KEY, row) for row in stream.rows())
    sure = np.array([value for value in judged if value is not None])
    return smooth_ece(sure, stream.right), smooth_ece(sure, random.random(len(sure)) < sure)


def fit_logistic_prior(prior: Stream, rows: Bools, features: tuple[str, ...]) -> Prior:
    """Return a pack's weights over these features, fitted on chosen training rows."""
    table = np.column_stack([prior.signals[name][rows] for name in features])
    mean, scale = table.mean(axis=0), np.maximum(table.std(axis=0), 1e-9)
    standard = np.clip((table - mean) / scale, -CLIP, CLIP)
    weights = fit_logistic(standard, prior.right[rows].astype(float)).tolist()
    return Prior(
        prior.name,
        features,
        tuple(mean.tolist()),
        tuple(scale.tolist()),
        tuple(weights[:-1]),
        weights[-1],
    )
