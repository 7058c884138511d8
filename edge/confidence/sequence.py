"""The order in which thresholds are tested, fixed before a certifying label is seen.

A table of kept risks from other data (the pack's, or the rows the fusion was fitted on) proposes
where to start and how to go on. A wrong table lowers what can be kept, never the validity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor, log, log1p

import numpy as np
from numpy.typing import NDArray

from edge.confidence.binomial import lower_tail, most_errors
from edge.confidence.isotonic import pooled
from edge.errors import InputError

Floats = NDArray[np.float64]

_KNOTS = 100
# Shares of alpha. Beyond 1 the table may be too gloomy; going on costs nothing.
_SHARES = tuple(round(0.05 * step, 2) for step in range(2, 61))
# Of the best chance in the table. A table is often too hopeful, and testing ends at the first
# failure: the strictest place that is nearly as good as any kept most over folds of training rows.
_ENOUGH = 0.95
_TOP_START = 2.5  # times the fewest kept answers that can certify without an error
_TOP_GROWTH = 1.1


@dataclass(frozen=True, slots=True)
class RiskTable:
    """What earlier answers say of the risk above each threshold.

    Attributes:
        threshold: confidences, falling; the last keeps everything.
        kept: share of answers at or above each, 0..1, not falling.
        risk: share of those that are wrong, smoothed so that it does not fall.

    """

    threshold: tuple[float, ...]
    kept: tuple[float, ...]
    risk: tuple[float, ...]

    def laxest(self, risk: float) -> tuple[float, float, float]:
        """Return (threshold, kept share, risk) of the lowest threshold within a risk.

        Where no threshold is, the strictest one.
        """
        within = [at for at, each in enumerate(self.risk) if each <= risk]
        at = within[-1] if within else 0
        if not within or at == len(self.risk) - 1:
            return self.threshold[at], self.kept[at], self.risk[at]
        share = (risk - self.risk[at]) / (self.risk[at + 1] - self.risk[at])
        threshold, kept = (
            low + share * (high - low)
            for low, high in (
                (self.threshold[at], self.threshold[at + 1]),
                (self.kept[at], self.kept[at + 1]),
            )
        )
        return threshold, kept, risk


def risk_table(confidence: Sequence[float], correct: Sequence[bool]) -> RiskTable:
    """Return the table of answers with known outcome.

    The chance of being right is first made monotone in the confidence (isotonic regression), so
    that the table does not follow the noise of single answers.

    Raises:
        InputError: no answers, or lengths that differ.

    """
    if not len(confidence) or len(confidence) != len(correct):
        raise InputError("A table of kept risks needs answers, each with a confidence and a label.")
    values = np.asarray(confidence, dtype=float)
    points, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    right = np.bincount(where, weights=np.asarray(correct, dtype=float), minlength=len(points))
    chance = np.array(pooled((right / counts).tolist(), counts.tolist()))
    kept = counts[::-1].cumsum()
    risk = np.maximum.accumulate((counts * (1.0 - chance))[::-1].cumsum() / kept)
    at = np.unique(np.linspace(0, len(points) - 1, min(_KNOTS, len(points))).round().astype(int))
    threshold = points[::-1][at]
    threshold[-1] = min(0.0, threshold[-1])
    return RiskTable(
        threshold=tuple(threshold.tolist()),
        kept=tuple((kept[at] / len(values)).tolist()),
        risk=tuple(risk[at].tolist()),
    )


@lru_cache(maxsize=64)
def from_table(table: RiskTable, n: int, *, alpha: float, delta: float) -> tuple[float, ...]:
    """Return thresholds to test one after the other, falling.

    They lie where the table's risk is a share of alpha. The start is the strictest that has nearly
    the best chance to pass with ``n`` labels.
    """
    places = [table.laxest(share * alpha) for share in _SHARES]
    chances = [_chance(kept, risk, n, alpha=alpha, delta=delta) for _, kept, risk in places]
    start = next(at for at, each in enumerate(chances) if each >= _ENOUGH * max(chances))
    falling = [places[start][0]]
    for threshold, _, _ in [*places[start + 1 :], table.laxest(1.0)]:
        if threshold < falling[-1]:
            falling.append(threshold)
    return tuple(falling)


def _chance(kept: float, risk: float, n: int, *, alpha: float, delta: float) -> float:
    """Return the probability that a threshold passes if the table is right."""
    trials = floor(n * kept)
    return lower_tail(most_errors(trials, risk=alpha, delta=delta), trials, risk=risk)


def from_top(scores: Floats, n: int, *, alpha: float, delta: float) -> tuple[float, ...]:
    """Return falling thresholds at quantiles of scores that certify nothing themselves.

    The first keeps, in the mean, 2.5 times the fewest of ``n`` answers that can certify without an
    error; each further one a tenth more; the last keeps everything.
    """
    share = _TOP_START * log(delta) / log1p(-alpha) / max(n, 1)
    falling: list[float] = []
    while share < 1.0:
        threshold = float(np.quantile(scores, 1.0 - share))
        if not falling or threshold < falling[-1]:
            falling.append(threshold)
        share *= _TOP_GROWTH
    return (*falling, min(0.0, float(scores.min())))
