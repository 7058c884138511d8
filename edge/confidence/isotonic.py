"""Monotone maps from scores to probabilities: pooled adjacent violators, and Venn-Abers intervals.

Sources: Ayer et al. 1955 (pooling); Vovk, Petej and Fedorova, NIPS 2015 (inductive Venn-Abers).
Tables are made once; a look-up is a few operations on floats. Does not know where scores come from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from edge.errors import InputError

Floats = NDArray[np.float64]

CELLS_PER_NAT = 16
REACH = 8.0  # nats: scores further out share the outermost cell
CELLS = int(2 * REACH * CELLS_PER_NAT) + 1


def pooled(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the non-decreasing sequence nearest to ``values`` in weighted squares.

    Raises:
        InputError: lengths differ, a value is not finite, or a weight is not above 0.

    """
    if len(values) != len(weights):
        raise InputError(f"{len(values)} values cannot have {len(weights)} weights.")
    if not all(isfinite(v) and isfinite(w) and w > 0 for v, w in zip(values, weights, strict=True)):
        raise InputError("Only finite values with weights above 0 can be pooled.")
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for each, heavy in zip(values, weights, strict=True):
        mean, weight, length = float(each), float(heavy), 1
        while blocks and blocks[-1][0] >= mean:
            below, more, longer = blocks.pop()
            mean = (below * more + mean * weight) / (more + weight)
            weight, length = weight + more, length + longer
        blocks.append((mean, weight, length))
    return [mean for mean, _, length in blocks for _ in range(length)]


def fit_isotonic(scores: Floats, truth: Floats) -> tuple[tuple[float, float], ...]:
    """Return knots (score, probability): the mean score and the level of each pooled block.

    Both rise strictly. Equal scores are one point.
    """
    points, where, counts = np.unique(scores, return_inverse=True, return_counts=True)
    right = np.bincount(where, weights=truth, minlength=len(points))
    levels = np.array(pooled((right / counts).tolist(), counts.tolist()))
    knots: list[tuple[float, float]] = []
    for part in np.split(np.arange(len(points)), np.nonzero(np.diff(levels) > 0)[0] + 1):
        centre = float((points[part] * counts[part]).sum() / counts[part].sum())
        knots.append((centre, float(levels[part[0]])))
    return tuple(knots)


def interpolated(knots: Sequence[tuple[float, float]], score: float) -> float:
    """Return the level at a score: straight lines between knots, flat outside them."""
    after = bisect_right(knots, (score, float("inf")))
    if after == 0:
        return knots[0][1]
    if after == len(knots):
        return knots[-1][1]
    (left, low), (right, high) = knots[after - 1], knots[after]
    return low + (high - low) * ((score - left) / (right - left))


def cell(score: float) -> int:
    """Return the cell of a log-odds: a sixteenth of a nat wide, fixed before any data."""
    return round((min(REACH, max(-REACH, score)) + REACH) * CELLS_PER_NAT)


@dataclass(frozen=True, slots=True)
class VennAbers:
    """Intervals of the probability of being right, one per cell of the score.

    Rounding a score to a cell keeps the validity: it is a scoring rule fixed beforehand. Valid in
    the sense of Vovk et al. (one of the two ends is calibrated) where the labels were not used to
    make the scores and come from the same traffic; nearly so for cross-fitted scores.

    Attributes:
        low, high: the fit with the asked-for answer counted as wrong, and as right; ``[CELLS]``.

    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def interval(self, score: float) -> tuple[float, float]:
        """Return (low, high) for a finite log-odds, 0..1."""
        at = cell(score)
        return self.low[at], self.high[at]


def fit_venn_abers(scores: Sequence[float], truth: Sequence[float]) -> VennAbers:
    """Return the table of two isotonic fits for each cell; scores are log-odds."""
    counts, right = [0.0] * CELLS, [0.0] * CELLS
    for score, good in zip(scores, truth, strict=True):
        counts[cell(score)] += 1.0
        right[cell(score)] += float(good)
    ends = [[_fit_with(counts, right, at, answer) for at in range(CELLS)] for answer in (0.0, 1.0)]
    return VennAbers(low=tuple(ends[0]), high=tuple(ends[1]))


def _fit_with(counts: list[float], right: list[float], at: int, answer: float) -> float:
    """Return the isotonic level of a cell with one more answer in it."""
    used = [i for i, count in enumerate(counts) if count or i == at]
    weights = [counts[i] + (i == at) for i in used]
    values = [(right[i] + answer * (i == at)) / w for i, w in zip(used, weights, strict=True)]
    return round(pooled(values, weights)[used.index(at)], 6)
