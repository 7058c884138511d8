"""The fleet at a glance, read from the database."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Double, cast, func, select

from edge_sync.store.schema import devices, groups, health, policies, rollouts
from edge_sync.web import formats
from edge_sync.web.activity import (
    DAY_HOURS,
    ONLINE_S,
    Activity,
    by_hour,
    hour_of,
    read,
    total,
)
from edge_sync.web.budget_view import attention
from edge_sync.web.notices import Notice

_COLORS = ("f1", "f2", "f3", "f4", "f5")


@dataclass(frozen=True, slots=True)
class Group:
    """One group's line."""

    name: str
    devices: int
    online: int
    revision: int | None
    activity: Activity

    def __getattr__(self, name: str) -> Any:
        """Figures of what it did."""
        return getattr(self.activity, name)


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that the first page shows."""

    total: int
    online: int
    newest: float | None
    activity: Activity
    tasks_spark: str
    cloud_spark: str
    versions: list[formats.Part]
    spend: int
    cap: int | None
    spend_bar: list[formats.Part]
    groups: list[Group]
    notices: list[Notice]

    @property
    def online_share(self) -> float | None:
        """Share of the devices that are online."""
        return self.online / self.total if self.total else None

    def __getattr__(self, name: str) -> Any:
        """Figures of what it did."""
        return getattr(self.activity, name)


def fleet(connection: Connection, now: float) -> Fleet:
    """Return the fleet at a glance."""
    rows = [
        row
        for row in connection.execute(
            select(
                devices.c.id,
                devices.c.group_name,
                devices.c.status,
                devices.c.last_seen_at,
                devices.c.revision,
                devices.c.refused,
            )
        ).mappings()
        if row["status"] != "revoked"
    ]
    done = read(
        connection,
        health.c.hour > hour_of(now) - DAY_HOURS,
        by=lambda row: (row["group_name"], row["hour"]),
    )
    hours = {
        hour: total(part for (_, at), part in done.items() if at == hour)
        for hour in {at for _, at in done}
    }
    seen = [row["last_seen_at"] for row in rows if row["last_seen_at"] is not None]
    caps = _caps(connection)
    known = [cap for row in rows if (cap := caps.get(row["revision"])) is not None]
    cap = sum(known) if known else None
    spend = _spend(connection, now)
    return Fleet(
        total=len(rows),
        online=sum(_is_online(row["last_seen_at"], now) for row in rows),
        newest=max(seen, default=None),
        activity=total(hours.values()),
        tasks_spark=formats.spark(by_hour(hours, now, lambda part: float(part.tasks))),
        cloud_spark=formats.spark(by_hour(hours, now, lambda part: part.cloud_share)),
        versions=_versions(Counter(row["revision"] for row in rows), len(rows)),
        spend=spend,
        cap=cap,
        spend_bar=_spend_bar(spend, cap),
        groups=_groups(connection, rows, done, now),
        notices=[*attention(connection, now), *_notices(connection, rows)],
    )


def _is_online(seen: float | None, now: float) -> bool:
    return seen is not None and now - seen < ONLINE_S


def _caps(connection: Connection) -> dict[int, int | None]:
    """Return the cap of a device in micro-dollars by policy."""
    found: dict[int, int | None] = {}
    for revision, document in connection.execute(select(policies.c.revision, policies.c.document)):
        budget = json.loads(document).get("sections", {}).get("budget") or {}
        cap = budget.get("cap_usd")
        found[revision] = None if cap is None else int(Decimal(str(cap)) * 1_000_000)
    return found


def _spend(connection: Connection, now: float) -> int:
    month = dt.datetime.fromtimestamp(now, dt.UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    # As a float: what a device makes up must not overflow the sum of all.
    cost = func.sum(cast(health.c.cost_microusd, Double))
    query = select(func.coalesce(cost, 0)).where(health.c.hour >= hour_of(month.timestamp()))
    return int(connection.execute(query).scalar_one())


def _spend_bar(spend: int, cap: int | None) -> list[formats.Part]:
    if not cap:
        return []
    color = "fbad" if spend >= cap else "fwarn" if spend >= 0.8 * cap else "fgood"
    return formats.parts([("spent", spend, color)], cap)


def _versions(counts: Counter[int], whole: int) -> list[formats.Part]:
    """Return the newest four versions, and the others together."""
    newest = sorted(counts, reverse=True)
    shown = newest[: len(_COLORS) - 1]
    named = [
        (formats.version(revision) if revision else "no policy", counts[revision], color)
        for revision, color in zip(shown, _COLORS, strict=False)
    ]
    rest = sum(counts[revision] for revision in newest[len(shown) :])
    return formats.parts([*named, ("older", rest, _COLORS[-1])], whole)


def _groups(
    connection: Connection, rows: list[Any], done: dict[tuple[str, int], Activity], now: float
) -> list[Group]:
    names = set(connection.execute(select(groups.c.name)).scalars())
    names |= {row["group_name"] for row in rows}
    found = []
    for name in sorted(names):
        own = [row for row in rows if row["group_name"] == name]
        most = Counter(row["revision"] for row in own).most_common(1)
        found.append(
            Group(
                name,
                len(own),
                sum(_is_online(row["last_seen_at"], now) for row in own),
                most[0][0] if most else None,
                total(part for (group, _), part in done.items() if group == name),
            )
        )
    return found


def _notices(connection: Connection, rows: list[Any]) -> list[Notice]:
    found = [
        Notice(
            "bad", f"Rollout {row.id} was halted: {row.reason}", f"/rollouts/{row.id}", "Look at it"
        )
        for row in connection.execute(
            select(rollouts)
            .where(rollouts.c.state == "halted")
            .order_by(rollouts.c.id.desc())
            .limit(1)
        )
    ]
    refused = sum(row["refused"] != "{}" for row in rows)
    if refused:
        text = f"{formats.counted(refused, 'device')} refused the policy assigned to it."
        found.append(Notice("bad", text, "/devices?state=refused", "Show"))
    twins = sum(row["status"] == "quarantined" for row in rows)
    if twins:
        text = f"{formats.counted(twins, 'device')} in quarantine: cloned, or set back."
        found.append(Notice("warn", text, "/devices?state=quarantined", "Show"))
    for name, stopped in connection.execute(select(groups.c.name, groups.c.stopped)):
        what = [
            f"{kind[:-1]} {each}" for kind, some in json.loads(stopped).items() for each in some
        ]
        if what:
            found.append(Notice("warn", f"Stopped in group {name}: {', '.join(what)}."))
    return found
