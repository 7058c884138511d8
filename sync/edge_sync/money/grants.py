"""How much each device is given: weighted max-min fair shares of what is free, in integers.

Max-min (Bertsekas and Gallager, Data Networks, 6.5.2): all are raised together until each has its
demand or the money is out; what was had before in the period counts, so a device that asks often
gets no more. What would be too little for one call is put together for those who had least, so
nobody starves. Knows no caps, clocks or tables.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """What one device asks for.

    Attributes:
        demand_microusd: what it expects to need until its next sync.
        had_microusd: what it was given and did not give back in this period.
        weight: from 1; twice the weight, twice the share.

    """

    device_id: str
    demand_microusd: int
    had_microusd: int = 0
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Terms:
    """How careful the hub is.

    Attributes:
        parts: one grant takes at most one part in so many of what is free.
        least_microusd: a smaller grant is of no use; the most that one call may cost.
        floor_microusd: what a device that is long offline finds when it comes back.

    """

    parts: int = 8
    least_microusd: int = 10_000
    floor_microusd: int = 0


def reserved(absent: Iterable[Claim], terms: Terms, *, left: float) -> int:
    """Return what is kept back for devices that are long offline.

    Args:
        absent: what they had in this period counts.
        terms: name the floor.
        left: share of the period still to come; the floor falls with it, so that in the end
            nothing is kept for those who do not come.

    """
    floor = terms.floor_microusd * int(1000 * left) // 1000
    return sum(max(0, floor - claim.had_microusd) for claim in absent)


def shares(total_microusd: int, claims: Sequence[Claim], *, least_microusd: int) -> dict[str, int]:
    """Share an amount out.

    Args:
        total_microusd: nothing is given where it is negative.
        claims: of all devices that ask now or asked lately, one each.
        least_microusd: no share is smaller, except for a smaller demand.

    Returns:
        An amount for each device, at most its demand; their sum is at most the total.

    """
    level = _level(max(0, total_microusd), claims)
    given = {claim.device_id: _share(claim, level) for claim in claims}
    small = [
        claim
        for claim in claims
        if given[claim.device_id] < min(least_microusd, claim.demand_microusd)
    ]
    for claim in small:
        given[claim.device_id] = 0
    left = max(0, total_microusd) - sum(given.values())
    for claim in sorted(small, key=_order):
        amount = min(least_microusd, claim.demand_microusd)
        if amount <= left:
            given[claim.device_id] = amount
            left -= amount
    return given


def grant_amount(
    free_microusd: int,
    asking: Claim,
    *,
    others: Iterable[Claim],
    absent: Iterable[Claim],
    terms: Terms,
    left: float,
) -> int:
    """Return what one device is granted now; 0 where nothing useful is.

    Args:
        free_microusd: the least that is free under any cap above it.
        asking: the device that syncs.
        others: with a demand that still stands.
        absent: devices that are long offline.
        terms: how careful to be.
        left: share of the period still to come.

    """
    budget = free_microusd - reserved(absent, terms, left=left)
    least = min(terms.least_microusd, asking.demand_microusd)
    if least <= 0 or budget < least:
        return 0
    fair = shares(budget, [asking, *others], least_microusd=terms.least_microusd)
    most = max(least, budget // terms.parts)
    return min(fair[asking.device_id], most)


def jain(amounts: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 where all are equal, 1/n where one has all."""
    squares = sum(amount * amount for amount in amounts)
    total = sum(amounts)
    return 1.0 if squares == 0 else total * total / (len(amounts) * squares)


def _share(claim: Claim, level: int) -> int:
    share = claim.weight * level - claim.had_microusd
    if share <= 0:
        return 0
    return min(share, claim.demand_microusd)


def _level(total: int, claims: Sequence[Claim]) -> int:
    """Return the highest whole level to which all can be raised.

    What a level costs is a sum of ramps, from ``had / weight`` to ``(had + demand) / weight``: a
    straight line between the whole numbers around these corners.
    """
    corners = {0}
    for claim in claims:
        for end in (claim.had_microusd, claim.had_microusd + claim.demand_microusd):
            corners.update((end // claim.weight, -(-end // claim.weight)))
    levels = sorted(corners)

    def cost(level: int) -> int:
        return sum(_share(claim, level) for claim in claims)

    at = bisect_right(levels, total, key=cost) - 1
    low, low_cost = levels[at], cost(levels[at])
    if at + 1 == len(levels):
        return low
    slope = (cost(levels[at + 1]) - low_cost) // (levels[at + 1] - low)
    return low + (total - low_cost) // slope


def _order(claim: Claim) -> tuple[float, str]:
    return claim.had_microusd / claim.weight, claim.device_id
