"""Exact binomial tails and bounds, in plain floats.

Exact up to rounding, in a fixed order and without BLAS: the same bits on every thread count. Does
not know what is being counted.

Source of the bound: Clopper and Pearson, Biometrika 26 (1934).
"""

from __future__ import annotations

from functools import lru_cache
from math import exp, floor, inf, isfinite, lgamma, log, log1p

from edge.errors import InputError

_MANY = 1_000_000
_TERMS = 10_000
_PRECISION = 1e-15
_SMALL = 1e-300
_HALVINGS = 60  # of 0..1: below the spacing of floats near any bound


def lower_tail(errors: int, trials: int, *, risk: float) -> float:
    """Return P(X <= errors) for X ~ Binomial(trials, risk).

    It is the p-value of the claim "the risk is above ``risk``".

    Raises:
        InputError: a count below 0, or a risk outside 0..1.

    """
    if trials < 0 or not 0.0 <= risk <= 1.0:
        raise InputError(f"There is no binomial of {trials} trials at a risk of {risk}.")
    if errors < 0:
        return 0.0
    if errors >= trials or risk == 0.0:
        return 1.0
    if risk == 1.0:
        return 0.0
    return _incomplete_beta(trials - errors, errors + 1, 1.0 - risk, risk)


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Return the regularised incomplete beta function at x = 1 - rest, which is the tail.

    By its continued fraction on the side where that converges fast (DLMF 8.17.22).
    """
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(rest))
    if x < (a + 1.0) / (a + b + 2.0):
        return min(1.0, front * _fraction(a, b, x) / a)
    return max(0.0, 1.0 - front * _fraction(b, a, rest) / b)


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction by Lentz's method."""
    upper, lower = 1.0, 1.0 / _nonzero(1.0 - (a + b) * x / (a + 1.0))
    value = lower
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            lower = 1.0 / _nonzero(1.0 + term * lower)
            upper = _nonzero(1.0 + term / upper)
            value *= lower * upper
        if abs(lower * upper - 1.0) < _PRECISION:
            break
    return value


def _nonzero(value: float) -> float:
    return value if abs(value) > _SMALL else _SMALL


def upper_bound(errors: int, trials: int, *, delta: float) -> float:
    """Return the least risk that ``errors`` in ``trials`` refute at level ``delta``, 0..1.

    The one-sided Clopper-Pearson bound: the true risk is above it with probability at most delta.
    """
    if trials <= 0 or errors >= trials:
        return 1.0
    low, high = errors / trials, 1.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if lower_tail(errors, trials, risk=middle) > delta:
            low = middle
        else:
            high = middle
    return high


@lru_cache(maxsize=65536)
def most_errors(trials: int, *, risk: float, delta: float) -> int:
    """Return the most errors in ``trials`` that still refute ``risk`` at level ``delta``; or -1."""
    if trials <= 0:
        return -1
    total, errors = 0.0, -1
    whole, yes, no = lgamma(trials + 1), log(risk), log1p(-risk)
    while errors < trials:
        k = errors + 1
        total += exp(whole - lgamma(k + 1) - lgamma(trials - k + 1) + k * yes + (trials - k) * no)
        if total > delta:
            break
        errors = k
    return errors


def fewest_trials(rate: float, *, risk: float, delta: float) -> float:
    """Return how many trials refute ``risk`` if a share ``rate`` of them are errors.

    A whole number of trials; ``inf`` where the rate is not below the risk or a million trials are
    too few. The errors counted on are rounded up.
    """
    if not isfinite(rate) or rate >= risk:
        return inf
    low, high = 0, 1
    while not _refutes(high, rate, risk=risk, delta=delta):
        low, high = high, 2 * high
        if high > _MANY:
            return inf
    while high - low > 1:
        middle = (low + high) // 2
        if _refutes(middle, rate, risk=risk, delta=delta):
            high = middle
        else:
            low = middle
    return high


def _refutes(trials: int, rate: float, *, risk: float, delta: float) -> bool:
    errors = floor(rate * trials) + (rate > 0.0)
    return lower_tail(errors, trials, risk=risk) <= delta
