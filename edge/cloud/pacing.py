"""The price of the budget: how much an escalation must be worth so that the money lasts.

One price for every micro-dollar, learned while spending (dual descent on the budget constraint,
Balseiro, Lu and Mirrokni 2020, arXiv:2002.10421), under limits that hold whatever the price: never
above the budget, no faster than a token bucket allows.
Pure: a state and an event give the next state. Knows no clock and no pool; the ledger stays the
authority on money, and this only says what is worth asking of it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Self

from edge.errors import BudgetExceeded, ConfigError, StoreError

_MICRO = 1_000_000
# How far the price moves, in nats, when all the budget is spent off pace, per square root of the
# calls that the budget pays for: steps shrink and add up to a bounded regret.
_AGILITY = 0.7
# Without a first price the steps are larger by this at the start, and fade over that share.
_HASTE, _FADE = 6.0, 0.05
# No price is above e^50.
_HIGHEST = 50.0
# The share of a period that the last moments count as, so that what is left is spent and no
# division by zero occurs.
_LAST = 1e-4


class Limit(StrEnum):
    """Which hard limit stands against a call."""

    BUDGET = "budget"
    BURST = "burst"


@dataclass(frozen=True, slots=True)
class Pacing:
    """What may be spent, and over how long.

    Attributes:
        budget_microusd: the hard cap of the period.
        horizon: length of the period, in expected tasks or in seconds; ``advance`` uses the same.
        call_microusd: what a usual call costs.
        burst: share of the budget that may be spent at once, above the even pace; 1 sets no limit.

    """

    budget_microusd: int
    horizon: float
    call_microusd: int
    burst: float = 0.1

    def __post_init__(self) -> None:
        if self.budget_microusd < 0 or self.call_microusd < 1 or not 0 < self.horizon < math.inf:
            raise ConfigError(
                f"A budget of {self.budget_microusd} over {self.horizon:g} with calls of "
                f"{self.call_microusd} micro-dollars cannot be paced.",
                hint="Set a budget of 0 or more, a horizon above 0, and a call's usual cost.",
            )
        if not 0 < self.burst <= 1:
            raise ConfigError(
                f"The share burst {self.burst:g} is not above 0 and at most 1.",
                hint="Set 0.1, which is usual.",
            )

    @property
    def agility(self) -> float:
        """Nats by which the price moves when the whole budget is spent off pace."""
        return _AGILITY * math.sqrt(max(self.budget_microusd / self.call_microusd, 1.0))

    @property
    def bucket_microusd(self) -> float:
        """What the token bucket holds at most; always enough for one usual call."""
        return max(self.burst * self.budget_microusd, float(self.call_microusd))


@dataclass(frozen=True, slots=True)
class Pacer:
    """The state of the pacing; plain values that survive a restart.

    Attributes:
        bar: logarithm, >= 0, of what a call must gain per micro-dollar it costs.
        spent_microusd: settled and held together.
        unpriced_microusd: spent since the price last moved.
        elapsed: how much of the horizon has passed.
        bucket_microusd: what may be spent at once.
        cold: the first price was not known.

    """

    plan: Pacing
    bar: float
    bucket_microusd: float
    spent_microusd: int = 0
    unpriced_microusd: int = 0
    elapsed: float = 0.0
    cold: bool = False

    def __post_init__(self) -> None:
        if not (0.0 <= self.bar <= _HIGHEST and self.elapsed >= 0.0 <= self.spent_microusd):
            raise ConfigError(
                f"The pacing's price {self.bar!r}, elapsed {self.elapsed!r} or spent "
                f"{self.spent_microusd!r} is out of range.",
                hint="Begin with `start`; let elapsed and spent only grow.",
            )

    @property
    def price(self) -> float:
        """Micro-dollars that one micro-dollar of the budget is worth beyond itself, >= 0."""
        return math.expm1(self.bar)

    @property
    def agility(self) -> float:
        """Nats by which the price moves now when the whole budget is spent off pace."""
        fade = math.exp(-self.elapsed / (_FADE * self.plan.horizon))
        return self.plan.agility * (1.0 + _HASTE * fade * self.cold)

    @property
    def left_microusd(self) -> int:
        """What is left of the budget, >= 0."""
        return max(self.plan.budget_microusd - self.spent_microusd, 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Return the state that ``to_dict`` wrote.

        Raises:
            StoreError: it is none.

        """
        try:
            pacer = cls(**{**body, "plan": Pacing(**body["plan"])})
            _check(pacer)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise StoreError(
                f"The saved state of the pacing cannot be used: {error!r}.",
                hint="Once it is removed, the period's pacing starts anew; the ledger keeps the "
                "account of the money.",
            ) from error
        return pacer


def gain_per_microusd(
    value_usd: float, p_cloud: float, p_local: float, cost_microusd: int
) -> float:
    """Return what a call is expected to gain, per micro-dollar that it costs.

    Args:
        value_usd: what a right answer is worth more than a wrong one.
        p_cloud: probability that the cloud is right.
        p_local: probability that the local answer is.
        cost_microusd: of the call.

    """
    return value_usd * _MICRO * (p_cloud - p_local) / max(cost_microusd, 1)


def worth(
    value_usd: float, p_cloud: float, p_local: float, cost_microusd: int, price: float
) -> bool:
    """Return whether a call gains more than it costs with the budget's price upon it.

    The price is per micro-dollar, so that a dear call must gain more than a cheap one. A number
    that is missing (NaN) makes no call worth it.
    """
    return value_usd * _MICRO * (p_cloud - p_local) > cost_microusd * (1.0 + price)


def start(plan: Pacing, gains: Sequence[float] = (), *, share: float | None = None) -> Pacer:
    """Begin a period.

    Args:
        plan: of the period.
        gains: expected gains per micro-dollar of the calibration's tasks. The first price is the
            one at which the budget pays for all tasks above it; without gains it is 0, and the
            first twentieth of the period goes into finding it.
        share: of tasks that the budget pays for; by default as if the horizon counted tasks.

    """
    if share is None:
        share = plan.budget_microusd / plan.call_microusd / plan.horizon
    ranked = sorted(filter(math.isfinite, gains), reverse=True)
    place = int(share * len(ranked))
    first = ranked[place] if place < len(ranked) else 1.0
    bar = _clipped(math.log(max(first, 1.0)))
    return Pacer(plan, bar=bar, bucket_microusd=plan.bucket_microusd, cold=not gains)


def limit(pacer: Pacer, cost_microusd: int) -> Limit | None:
    """Return which hard limit stands against a call, or ``None``."""
    if cost_microusd > pacer.left_microusd:
        return Limit.BUDGET
    # A call dearer than the bucket may go once the bucket is full; or it never could.
    if min(cost_microusd, pacer.plan.bucket_microusd) > pacer.bucket_microusd:
        return Limit.BURST
    return None


def spend(pacer: Pacer, cost_microusd: int) -> Pacer:
    """Return the state after a call's worst-case cost is held.

    Raises:
        BudgetExceeded: a hard limit stands against it.

    """
    stands = limit(pacer, cost_microusd)
    if stands is not None or cost_microusd < 0:
        raise BudgetExceeded(
            f"A call of {cost_microusd} micro-dollars is against the limit of the "
            f"{stands or 'cost'}: {pacer.left_microusd} are left.",
            hint="Ask `limit` before spending.",
        )
    return replace(
        pacer,
        spent_microusd=pacer.spent_microusd + cost_microusd,
        unpriced_microusd=pacer.unpriced_microusd + cost_microusd,
        bucket_microusd=pacer.bucket_microusd - cost_microusd,
    )


def incurred(pacer: Pacer, cost_microusd: int) -> Pacer:
    """Return the state after a cost that the ledger has allowed, whatever the pacing says to it."""
    cost = min(cost_microusd, pacer.left_microusd)
    return replace(
        pacer,
        spent_microusd=pacer.spent_microusd + cost,
        unpriced_microusd=pacer.unpriced_microusd + cost,
        bucket_microusd=max(0.0, pacer.bucket_microusd - cost),
    )


def settle(pacer: Pacer, held_microusd: int, actual_microusd: int) -> Pacer:
    """Return the state once a held cost is known; what was held too much comes back."""
    back = held_microusd - actual_microusd
    return replace(
        pacer,
        spent_microusd=pacer.spent_microusd - back,
        unpriced_microusd=pacer.unpriced_microusd - back,
        bucket_microusd=min(pacer.bucket_microusd + back, pacer.plan.bucket_microusd),
    )


def advance(pacer: Pacer, by: float = 1.0, *, reachable: bool = True) -> Pacer:
    """Return the state after some of the horizon has passed.

    The price goes up where more was spent than the even pace of what is left, down where less.
    While the cloud is out of reach it stays: what could not be spent says nothing about demand.

    Args:
        pacer: the state, calls of that time included.
        by: how much has passed, in the horizon's unit. A clock that went back counts as 0; count on
            from the latest time seen, or what it went back by passes twice.
        reachable: whether the cloud could be asked.

    """
    plan = pacer.plan
    by = max(0.0, by)
    ahead = max(plan.horizon - pacer.elapsed, plan.horizon * _LAST, by)
    due = max(pacer.left_microusd + pacer.unpriced_microusd, 0) * min(by / ahead, 1.0)
    off = (pacer.unpriced_microusd - due) / max(plan.budget_microusd, 1)
    return replace(
        pacer,
        bar=_clipped(pacer.bar + pacer.agility * off) if reachable else pacer.bar,
        unpriced_microusd=0,
        elapsed=pacer.elapsed + by,
        bucket_microusd=min(pacer.bucket_microusd + due, plan.bucket_microusd),
    )


def _clipped(bar: float) -> float:
    return min(max(bar, 0.0), _HIGHEST)


def _check(pacer: Pacer) -> None:
    """Raise a ValueError where a saved state is none that the steps above lead to."""
    plan, spent = pacer.plan, pacer.spent_microusd
    counts = (plan.budget_microusd, plan.call_microusd, spent)
    if not all(type(each) is int and each >= 0 for each in counts):
        raise ValueError(f"an amount or a count of {counts} is no integer of 0 or more")
    # A bucket holds what came in, less what was spent; 1 is for rounding.
    ranges = {
        "unpriced_microusd": (-plan.budget_microusd, spent),
        "bucket_microusd": (-spent - 1.0, plan.bucket_microusd),
        "elapsed": (0.0, sys.float_info.max),
    }
    for name, (low, high) in ranges.items():
        value = getattr(pacer, name)
        if not low <= value <= high:
            raise ValueError(f"{name} is {value!r}, not within {low}..{high}")
    if type(pacer.unpriced_microusd) is not int or type(pacer.cold) is not bool:
        raise ValueError("unpriced_microusd is no integer, or cold no truth value")
