"""Periods of a budget: an hour, a day, a month in UTC, or all time.

A period is its key, such as ``month:2026-11`` or ``hour:2026-11-24T19``. Kinds nest (an hour lies
in one day, a day in one month), so what fits the shortest never crosses a longer one; that is why
there are no weeks. Has no summer time, and reads no clock.
"""

from __future__ import annotations

import calendar
import datetime as dt
import math
from typing import Literal, TypeAlias

from edge.errors import InputError

Kind: TypeAlias = Literal["hour", "day", "month", "total"]
KINDS: tuple[Kind, ...] = ("hour", "day", "month", "total")
"""Shortest first."""
_LENGTH: dict[Kind, int] = {"hour": 13, "day": 10, "month": 7}
_REST: dict[Kind, str] = {"hour": ":00:00", "day": "T00:00:00", "month": "-01T00:00:00"}


def period_of(kind: Kind, now: float) -> str:
    """Return the period of a kind around a moment in seconds since the epoch.

    Raises:
        InputError: the moment has no date in the years 1 to 9999.

    """
    if kind == "total":
        return "total"
    try:
        # Rounded to microseconds, a moment just before midnight would be in the next day.
        moment = dt.datetime.fromtimestamp(math.floor(now), dt.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(
            f"The moment {now!r} has no date.", hint="Set the clock of this machine."
        ) from error
    return f"{kind}:{moment.isoformat()[: _LENGTH[kind]]}"


def bounds(period: str) -> tuple[float, float]:
    """Return where a period begins and where it has ended, in seconds since the epoch.

    Raises:
        InputError: it is no period.

    """
    if period == "total":
        return -math.inf, math.inf
    kind = kind_of(period)
    try:
        first = dt.datetime.fromisoformat(f"{period.partition(':')[2]}{_REST[kind]}+00:00")
    except ValueError as error:
        raise _wrong(period) from error
    hours = 1
    if kind != "hour":
        days = calendar.monthrange(first.year, first.month)[1] if kind == "month" else 1
        hours = 24 * days
    return first.timestamp(), first.timestamp() + 3600.0 * hours


def kind_of(period: str) -> Kind:
    """Return the kind of a period.

    Raises:
        InputError: it is no period.

    """
    if period == "total":
        return "total"
    kind, _, day = period.partition(":")
    for known, length in _LENGTH.items():
        if kind == known and len(day) == length:
            return known
    raise _wrong(period)


def within(period: str, kind: Kind) -> str | None:
    """Return the period of a kind that a period lies in; ``None`` where that kind is shorter."""
    if kind == "total":
        return "total"
    day = period.partition(":")[2]
    length = _LENGTH[kind]
    return f"{kind}:{day[:length]}" if len(day) >= length else None


def left_of(period: str, now: float) -> float:
    """Return which share of a period is still to come, 0 to 1; 1 for all time."""
    first, end = bounds(period)
    if math.isinf(end):
        return 1.0
    return min(1.0, max(0.0, (end - now) / (end - first)))


def _wrong(period: str) -> InputError:
    return InputError(
        f"{period[:80]!r} is no period.",
        hint="Write total, month:2026-11, day:2026-11-24 or hour:2026-11-24T19.",
    )
