"""Why the ledger sets no money aside, in words: what is missing and what to do about it."""

from __future__ import annotations

from edge.errors import BudgetExceeded
from edge.store.holds import usd
from edge.store.periods import Period

_UNITS = ((86_400.0, "day"), (3_600.0, "hour"), (60.0, "minute"))


def no_cap(task: str, *, asked_microusd: int) -> BudgetExceeded:
    """Return the refusal where nothing may be spent at all."""
    return BudgetExceeded(
        f"Task {task!r} asks for up to {usd(asked_microusd)} but no cap is set.",
        hint="Set a cap: without one no money is spent.",
    )


def over_cap(
    task: str,
    *,
    asked_microusd: int,
    cap_microusd: int,
    period: Period,
    spent_microusd: int,
    held_microusd: int,
) -> BudgetExceeded:
    """Return the refusal of what does not fit the device's own cap."""
    return BudgetExceeded(
        f"Task {task!r} asks for up to {usd(asked_microusd)}, but of the cap of "
        f"{usd(cap_microusd)} ({period}) {usd(spent_microusd)} is spent and "
        f"{usd(held_microusd)} is held."
    )


def no_lease(
    task: str,
    *,
    pool: str,
    asked_microusd: int,
    most_left_microusd: int | None,
    age_s: float | None,
) -> BudgetExceeded:
    """Return the refusal where no lease pays for a call.

    Args:
        task: that asks.
        pool: that would be asked.
        asked_microusd: the worst case.
        most_left_microusd: of the best lease for it; ``None`` where there is none.
        age_s: since the last sync; ``None`` where unknown.

    """
    what = (
        "this device holds no lease for it"
        if most_left_microusd is None
        else f"the best lease has {usd(most_left_microusd)} left"
    )
    return BudgetExceeded(
        f"Task {task!r} asks for up to {usd(asked_microusd)} of pool {pool}, but {what} "
        f"({since(age_s)}).",
        hint="Sync with the fleet's hub; if that gives none, ask the fleet's admin for a cap.",
    )


def since(age_s: float | None) -> str:
    """Return how long ago the last sync was, in words."""
    if age_s is None:
        return "no sync is known"
    for unit_s, name in _UNITS:
        if age_s >= unit_s:
            count = int(age_s // unit_s)
            return f"last sync {count} {name}{'' if count == 1 else 's'} ago"
    return "last sync less than a minute ago"
