"""Bets against "nothing has changed", whose wealth is evidence at any moment.

A bet's factor has mean at most 1 while all is well, so its wealth seldom grows: reaching c has
probability at most 1/c, however often one looks (Ville's inequality). ``Bets`` holds wealth,
``Drift`` bets on the ranks of one number per task. Pure; broadcasts over leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

# Alternatives that the tests bet on; each is a share of the starting capital.
RISKS = np.array([1.5, 2.5, 4.0, 8.0])
TAILS = np.array([0.02, 0.02, 0.05, 0.05, 0.1, 0.1, 0.2, 0.2])
RISES = np.array([2.0, 5.0, 2.0, 4.0, 2.0, 3.0, 1.5, 2.5])
_RESTS = (1.0 - TAILS * RISES) / (1.0 - TAILS)

_BINS = 100
_MOST = 2**53  # up to which a float holds every count


def grown(wealth: _Array, factor: _Array, *, horizon: float) -> _Array:
    """Return the wealth of bets after one outcome, with new bets opened just before it.

    Every task a share 1/horizon of the starting capital 1 enters the game, so that a change is met
    by fresh bets (Shiryaev-Roberts; Shin, Ramdas and Rinaldo 2023, arXiv:2203.03532). With what has
    not entered yet the sum stays a martingale for one horizon, hence Ville's inequality.

    Args:
        wealth: (..., bets).
        factor: (..., bets), of mean at most 1 while all is well.
        horizon: tasks of an epoch.

    """
    after: _Array = (wealth + 1.0 / (horizon * wealth.shape[-1])) * factor
    return after


def audit_factor(loss: _Array, *, alpha: float, rate: float) -> _Array:
    """Return what the bets on a higher risk gain from one outcome, shape (..., bets).

    Betting on a mean (Waudby-Smith and Ramdas 2023, arXiv:2010.09686) with inverse-propensity
    weighted losses: the mean of ``loss`` is the true risk whatever the propensities were. No bet
    loses more than 0.95 of its wealth, at any rate.

    Args:
        loss: wrong / propensity where audited, 0 where not; at least 0.
        alpha: the promised risk, between 0 and 1.
        rate: the usual propensity, above 0 and at most 1; scales the bets, which never depend on
            the answer at hand.

    """
    # A loss of 0 costs rate * (risk - alpha): below 1 as no bet is on a risk above 0.95.
    stakes = rate * np.maximum(np.minimum(RISKS, 0.95 / alpha) - 1.0, 0.0)
    factor: _Array = 1.0 + stakes * (np.asarray(loss)[..., None] - alpha)
    return factor


def tail_factor(p: _Array) -> _Array:
    """Return what the bets on more low values gain from conformal p-values, shape (..., bets).

    Each bet says that the lowest ``TAILS`` share has become ``RISES`` times as frequent: a density
    over 0..1 (conformal test martingales, Vovk et al. 2021, arXiv:2102.10439).
    """
    return np.where(np.asarray(p)[..., None] < TAILS, RISES, _RESTS)


@dataclass(frozen=True, slots=True)
class Bets:
    """The wealth of one test's bets, and how many tasks of the epoch they have seen."""

    wealth: tuple[float, ...]
    tasks: int = 0

    @property
    def total(self) -> float:
        """What the starting capital 1 has become."""
        return math.fsum(self.wealth)

    def after(self, factor: _Array, horizon: int) -> Bets:
        """Return the bets after one outcome; an epoch that is over starts anew."""
        fresh = self.tasks >= horizon
        wealth = np.zeros(len(self.wealth)) if fresh else np.array(self.wealth)
        gained = grown(wealth, factor, horizon=horizon)
        return Bets(tuple(gained.tolist()), 1 if fresh else self.tasks + 1)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any], *, kinds: int, horizon: int) -> Self:
        """Return the saved bets of so many kinds.

        Raises:
            KeyError, TypeError, ValueError: they are none.

        """
        wealth = tuple(number(each) for each in body["wealth"])
        tasks = count(body["tasks"])
        if len(wealth) != kinds or tasks > horizon:
            raise ValueError(f"{len(wealth)} bets after {tasks} tasks do not fit")
        if min(wealth) < 0.0 or not math.isfinite(sum(wealth)):
            raise ValueError(f"the wealth {wealth} is out of range")
        return cls(wealth, tasks)


def no_bets(kinds: _Array) -> Bets:
    """Return bets of which none is open yet."""
    return Bets((0.0,) * len(kinds))


@dataclass(frozen=True, slots=True)
class Drift:
    """A test whether one number per task still falls like those before it.

    Its p-values are ranks among everything seen so far, the calibration included, so they are
    exactly uniform as long as nothing changes, however small the calibration was.

    Attributes:
        low, high: range of the number; fixed beforehand, not read off the sample.
        counts: how many have fallen into each of equal bins of that range.
        bets: on low values becoming more frequent.

    """

    low: float
    high: float
    counts: tuple[int, ...]
    bets: Bets

    @classmethod
    def start(cls, sample: Sequence[float], *, low: float, high: float) -> Self:
        """Begin with the calibration's numbers.

        They must be measured like those to come: an exemplar's similarity to itself is none.
        """
        counts = [0] * _BINS
        for value in sample:
            counts[_place(value, low, high, _BINS)] += 1
        return cls(low, high, tuple(counts), no_bets(TAILS))

    def after(self, value: float, chance: float, *, horizon: int) -> Self:
        """Return the test after one more number; ``chance`` in [0, 1) breaks ties."""
        place = _place(value, self.low, self.high, len(self.counts))
        below, ties = sum(self.counts[:place]), self.counts[place]
        p = (below + chance * (ties + 1)) / (sum(self.counts) + 1)
        counts = (*self.counts[:place], ties + 1, *self.counts[place + 1 :])
        bets = self.bets.after(tail_factor(np.array(p)), horizon)
        return replace(self, counts=counts, bets=bets)

    def rebased(self) -> Self:
        """Return the test with what comes from now on as the only reference."""
        return replace(self, counts=(0,) * len(self.counts), bets=no_bets(TAILS))

    @classmethod
    def from_dict(cls, body: Mapping[str, Any], *, low: float, high: float, horizon: int) -> Self:
        """Return the saved test of a number of that range.

        Raises:
            KeyError, TypeError, ValueError: it is none.

        """
        counts = tuple(count(each) for each in body["counts"])
        if len(counts) != _BINS or (body["low"], body["high"]) != (low, high):
            raise ValueError(f"{len(counts)} counts of {body['low']}..{body['high']} do not fit")
        bets = Bets.from_dict(body["bets"], kinds=len(TAILS), horizon=horizon)
        return cls(low, high, counts, bets)


def count(value: object) -> int:
    """Return a saved count, 0 or more.

    Raises:
        ValueError: it is none.

    """
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError(f"{value!r} is no count")
    return value


def number(value: object) -> float:
    """Return a saved number, which is finite.

    Raises:
        ValueError: it is none.

    """
    if type(value) is bool or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _place(value: float, low: float, high: float, bins: int) -> int:
    """Return the bin of a value; of NaN, the lowest."""
    if math.isnan(value):
        return 0
    return int(min(max((value - low) / (high - low) * bins, 0.0), bins - 1.0))
