"""Alerts: a cap of which half, 80 % or all is spent or held.

Guarantees: one entry ``budget.alert`` in the audit log for each pot and level, however many
replicas look; a pot that passes several levels at once is told of at the highest. After a cap was
raised the levels above its new share are told of anew. Sends nothing; that is
``edge_sync.hub.budget.telling``.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, update

from edge_sync.hub import audit
from edge_sync.hub.budget import standing
from edge_sync.hub.budget.standing import CapStanding
from edge_sync.hub.home import Hub
from edge_sync.store.schema import pots

LEVELS = (50, 80, 100)
"""In percent of the cap."""
WHAT = "budget.alert"
_REARM = 10
"""Percentage points that a share must fall below a level before that is told of again: a hold that
is released does not ring twice, a cap that was raised does."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A pot that passed a level; ``escrow`` names pools within it where no gateway counts."""

    scope: str
    period: str
    percent: int
    spent_microusd: int
    held_microusd: int
    cap_microusd: int
    escrow: str


def level_of(used_microusd: int, cap_microusd: int) -> int:
    """Return the highest level that is reached; 0 for none."""
    if used_microusd <= 0:
        return 0
    return max((each for each in LEVELS if 100 * used_microusd >= each * cap_microusd), default=0)


def told_level(cap: CapStanding) -> int:
    """Return the level that a pot should stand at: what it passed, or less where it fell."""
    level = level_of(cap.used_microusd, cap.cap_microusd)
    if level >= cap.alerted:
        return level
    slack = cap.cap_microusd * _REARM // 100
    kept = max(level, level_of(cap.used_microusd + slack, cap.cap_microusd))
    return min(cap.alerted, kept)


def check(hub: Hub) -> list[Alert]:
    """Note what passed a level since the last check, and return it.

    Raises:
        StoreError: the database failed; nothing was noted.

    """
    with hub.store.reading() as connection:
        if not _moved(connection, hub.clock()):
            return []
    return hub.store.write(lambda connection: _note(connection, hub.clock()))


def _moved(connection: Connection, now: float) -> list[CapStanding]:
    caps = standing.read(connection, now=now, unmet=False).caps
    return [cap for cap in caps if told_level(cap) != cap.alerted]


def _note(connection: Connection, now: float) -> list[Alert]:
    # Read again: another replica may have been first.
    found = []
    for cap in _moved(connection, now):
        level = told_level(cap)
        key = (pots.c.scope == cap.scope) & (pots.c.period == cap.period)
        connection.execute(update(pots).where(key).values(alerted=level))
        if level < cap.alerted:
            continue
        alert = Alert(
            cap.scope,
            cap.period,
            level,
            cap.spent_microusd,
            cap.held_microusd,
            cap.cap_microusd,
            ", ".join(cap.escrow),
        )
        detail = {name: getattr(alert, name) for name in Alert.__slots__}
        audit.append(connection, at=now, who="hub", what=WHAT, about=cap.scope, detail=detail)
        found.append(alert)
    return found
