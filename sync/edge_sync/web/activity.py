"""What devices did, summed: the figures that every page of the dashboard shows.

Reads the table ``health`` and nothing else. A share of nothing is ``None``, never 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, select

from edge_sync.store.schema import devices, health

HOUR_S, DAY_HOURS = 3_600.0, 24
ONLINE_S = 900.0
"""A device counts as online for three sync intervals after it was last heard."""
_COUNTS = (
    "tasks",
    "errors",
    "cached",
    "local",
    "cloud",
    "deferred",
    "abstained",
    "corrections",
    "cost_microusd",
)


@dataclass(slots=True)
class Activity:
    """Counts of some devices over some hours."""

    tasks: int = 0
    errors: int = 0
    cached: int = 0
    local: int = 0
    cloud: int = 0
    deferred: int = 0
    abstained: int = 0
    corrections: int = 0
    cost_microusd: int = 0
    latency: list[int] = field(default_factory=list)

    def add(self, row: RowMapping) -> None:
        """Count one row of ``health`` in."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + row[name])
        counts = json.loads(row["latency"])
        self.latency.extend([0] * (len(counts) - len(self.latency)))
        for at, count in enumerate(counts):
            self.latency[at] += count

    @property
    def cost(self) -> int:
        """Micro-dollars."""
        return self.cost_microusd

    @property
    def cloud_share(self) -> float | None:
        """Share of the tasks that the cloud answered."""
        return self.cloud / self.tasks if self.tasks else None

    @property
    def error_share(self) -> float | None:
        """Share of the tasks that failed."""
        return self.errors / self.tasks if self.tasks else None

    @property
    def per_success(self) -> float | None:
        """Micro-dollars for each task that was answered and not corrected."""
        good = self.cached + self.local + self.cloud - self.corrections
        return self.cost_microusd / good if good > 0 else None

    @property
    def p95_ms(self) -> float | None:
        """The 95 % quantile of the latencies: upper edge of its bucket, in milliseconds."""
        whole = sum(self.latency)
        passed = 0
        for at, count in enumerate(self.latency):
            passed += count
            if whole and passed >= 0.95 * whole:
                return float(2 ** (at / 2))
        return None


def hour_of(now: float) -> int:
    """Return the whole hours since 1970."""
    return int(now // HOUR_S)


def read(
    connection: Connection,
    *where: ColumnElement[bool],
    by: Callable[[RowMapping], Any],
) -> dict[Any, Activity]:
    """Return the activity of the rows that fit, by a key of each row.

    A row has the columns of ``health`` and the device's ``group_name``.
    """
    query = select(health, devices.c.group_name).join(devices, devices.c.id == health.c.device_id)
    found: dict[Any, Activity] = {}
    for row in connection.execute(query.where(*where)).mappings():
        found.setdefault(by(row), Activity()).add(row)
    return found


def total(parts: Iterable[Activity]) -> Activity:
    """Return the sum of several."""
    whole = Activity()
    for part in parts:
        for name in _COUNTS:
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
        whole.latency.extend([0] * (len(part.latency) - len(whole.latency)))
        for at, count in enumerate(part.latency):
            whole.latency[at] += count
    return whole


def by_hour(
    parts: dict[int, Activity], now: float, value: Callable[[Activity], float | None]
) -> list[float | None]:
    """Return a value for each of the last 24 hours, the oldest first."""
    last = hour_of(now)
    return [
        value(parts[hour]) if hour in parts else None
        for hour in range(last - DAY_HOURS + 1, last + 1)
    ]
