"""Periods of a device's own cap: a day, a week from Monday, a month, or all time, in UTC."""

from __future__ import annotations

import calendar
import datetime as dt
import math
from typing import Literal, TypeAlias

Period: TypeAlias = Literal["day", "week", "month", "total"]
DAY_S = 86_400

PERIOD_SQL: dict[Period, str] = {
    "day": "strftime('%Y-%m-%d', reserved_at, 'unixepoch')",
    "week": "strftime('%Y-%m-%d', reserved_at, 'unixepoch', '-6 days', 'weekday 1')",
    "month": "strftime('%Y-%m', reserved_at, 'unixepoch')",
    "total": "'total'",
}
"""Names the period of a row by its ``reserved_at``; a week by its Monday."""


def period_bounds(now: float, period: Period) -> tuple[float, float]:
    """Return where the period around ``now`` begins and ends, in seconds since the epoch (UTC)."""
    if period == "total":
        return 0.0, math.inf
    first = dt.datetime.fromtimestamp(now, dt.UTC).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    days = 1
    if period == "week":
        first -= dt.timedelta(days=first.weekday())
        days = 7
    if period == "month":
        first = first.replace(day=1)
        days = calendar.monthrange(first.year, first.month)[1]
    return first.timestamp(), (first + dt.timedelta(days=days)).timestamp()
