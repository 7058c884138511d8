"""Logistic regression pulled towards given weights, by Newton's method.

Sources: Platt 1999 (probabilities from scores); the Gaussian prior is a quadratic pull whose
strength is counted in labels: the average Fisher information of the rows under the prior weights.
Fitting uses numpy; evaluating is plain floats in a fixed order, the same bits on every thread
count. Does not know what the columns mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, fsum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CLIP = 6.0  # standard deviations: what lies further out says no more
_ROUNDS = 50
_STEP = 4.0
_DONE = 1e-9


def log_odds(
    row: Sequence[float],
    weights: Sequence[float],
    *,
    bias: float,
    mean: Sequence[float],
    scale: Sequence[float],
) -> float:
    """Return the log-odds of one row of signals."""
    terms = [
        weight * min(CLIP, max(-CLIP, (value - centre) / width))
        for value, weight, centre, width in zip(row, weights, mean, scale, strict=True)
    ]
    terms.append(bias)
    return fsum(terms)


def probability(odds: float) -> float:
    """Return the probability of log-odds, without overflow."""
    if odds >= 0.0:
        return 1.0 / (1.0 + exp(-odds))
    grown = exp(odds)
    return grown / (1.0 + grown)


def sigmoid(value: Floats) -> Floats:
    """Return the probabilities of many log-odds."""
    return 0.5 * (1.0 + np.tanh(0.5 * value))


def fit_logistic(
    table: Floats,
    truth: Floats,
    *,
    l2: float = 1.0,
    towards: Floats | None = None,
    labels: float = 0.0,
) -> Floats:
    """Return the weights and, last, the bias that is penalised only through ``labels``.

    Args:
        table: standardised signals, float64 ``[rows, signals]``.
        truth: 1.0 where the answer was right, else 0.0; ``[rows]``.
        l2: pull on each weight, in units of one observation of unit variance.
        towards: the prior's weights and bias, ``[signals + 1]``; zero where ``None``.
        labels: how many labels the prior is worth.

    """
    design = np.column_stack([table, np.ones(len(table))])
    centre = np.zeros(design.shape[1]) if towards is None else np.asarray(towards, dtype=float)
    pull = np.diag([*[l2] * table.shape[1], 1e-6])
    if labels > 0.0 and len(table):
        pull += _information(design, centre) * (labels / len(table))
    weights = centre.copy()
    for _ in range(_ROUNDS):
        expected = sigmoid(design @ weights)
        gradient = design.T @ (expected - truth) + pull @ (weights - centre)
        step = np.linalg.solve(_information(design, weights) + pull, gradient)
        weights -= np.clip(step, -_STEP, _STEP)
        if np.abs(step).max() < _DONE:
            break
    return weights


def _information(design: Floats, weights: Floats) -> Floats:
    """Return the Fisher information of the rows: the Hessian of the log-loss."""
    expected = sigmoid(design @ weights)
    found: Floats = (design.T * (expected * (1.0 - expected))) @ design
    return found
