"""Devices, many and one, read from the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, func, or_, select

from edge_sync.hub.budget.exposure import DeviceLease, read_leases
from edge_sync.store.schema import assignments, devices, groups, health, ledger_rows
from edge_sync.web import formats
from edge_sync.web.activity import DAY_HOURS, ONLINE_S, Activity, by_hour, hour_of, read, total
from edge_sync.web.paging import PER_PAGE, Page, bounds
from edge_sync.web.states import DEVICE_WORDS, State, of_charge, of_device, of_lease

_CHARGES = 20


@dataclass(frozen=True, slots=True)
class Device:
    """One device's line."""

    id: str
    name: str
    state: State
    status: str
    group: str
    revision: int
    seen: float | None
    activity: Activity

    def __getattr__(self, name: str) -> Any:
        """Figures of what it did in the last 24 hours."""
        return getattr(self.activity, name)


@dataclass(frozen=True, slots=True)
class Charge:
    """A row of the device's ledger."""

    at: float
    task: str
    pool: str
    tag: State
    held: int
    cost: int
    revision: int


@dataclass(frozen=True, slots=True)
class OneDevice:
    """All that the page of one device shows."""

    line: Device
    refused: Mapping[str, Any]
    since: float | None
    assigned: int | None
    enrolled: float
    skew: float | None
    runtime: str
    pack: str
    waiting: int
    models: Mapping[str, str]
    tasks_spark: str
    cloud_spark: str
    by_revision: list[Any]
    rows: list[Charge]
    leases: list[Lease]

    def __getattr__(self, name: str) -> Any:
        """What its line in the list shows."""
        return getattr(self.line, name)


@dataclass(frozen=True, slots=True)
class Lease:
    """A right to spend of the device."""

    of: DeviceLease
    tag: State

    def __getattr__(self, name: str) -> Any:
        """Its figures."""
        return getattr(self.of, name)


@dataclass(frozen=True, slots=True)
class ByRevision:
    """What a device did under one policy."""

    revision: int
    activity: Activity

    def __getattr__(self, name: str) -> Any:
        """Figures of what it did."""
        return getattr(self.activity, name)


def device_list(connection: Connection, query: Mapping[str, str], now: float) -> Page:
    """Return a page of devices that fit the filter, the latest heard first."""
    asked = {name: query.get(name, "") for name in ("q", "group", "state")}
    where = _where(asked, now)
    count = connection.execute(select(func.count()).select_from(devices).where(*where)).scalar_one()
    number, skip = bounds(query.get("page", ""), count)
    found = (
        connection.execute(
            select(devices)
            .where(*where)
            .order_by(devices.c.last_seen_at.desc().nulls_last(), devices.c.name)
            .limit(PER_PAGE)
            .offset(skip)
        )
        .mappings()
        .all()
    )
    ids = [row["id"] for row in found]
    done = read(
        connection,
        health.c.device_id.in_(ids),
        health.c.hour > hour_of(now) - DAY_HOURS,
        by=lambda row: row["device_id"],
    )
    content = {
        "devices": [_line(row, done.get(row["id"], Activity()), now) for row in found],
        "groups": sorted(connection.execute(select(groups.c.name)).scalars()),
        "states": DEVICE_WORDS,
    }
    return Page(count, number, asked, content)


def one_device(connection: Connection, device_id: str, now: float) -> OneDevice | None:
    """Return one device, or ``None`` where there is none of that id."""
    row = connection.execute(select(devices).where(devices.c.id == device_id)).mappings().first()
    if row is None:
        return None
    last = hour_of(now)
    week = read(
        connection,
        health.c.device_id == device_id,
        health.c.hour > last - 7 * DAY_HOURS,
        by=lambda part: (part["revision"], part["hour"]),
    )
    hours = {at: total(part for (_, h), part in week.items() if h == at) for _, at in week}
    day = total(part for at, part in hours.items() if at > last - DAY_HOURS)
    revisions = sorted({revision for revision, _ in week}, reverse=True)
    return OneDevice(
        line=_line(row, day, now),
        refused=json.loads(row["refused"]),
        since=row["revision_since"],
        assigned=connection.execute(
            select(assignments.c.revision).where(assignments.c.serial == row["serial"])
        ).scalar(),
        enrolled=row["enrolled_at"],
        skew=row["clock_skew_s"],
        runtime=row["runtime"],
        pack=row["pack"],
        waiting=row["waiting"],
        models=json.loads(row["models"]),
        tasks_spark=formats.spark(by_hour(hours, now, lambda part: float(part.tasks))),
        cloud_spark=formats.spark(by_hour(hours, now, lambda part: part.cloud_share)),
        by_revision=[
            ByRevision(each, total(part for (of, _), part in week.items() if of == each))
            for each in revisions
        ],
        rows=_charges(connection, device_id),
        leases=[
            Lease(each, of_lease(each.state, each.why_closed))
            for each in read_leases(connection, device_id)
        ],
    )


def _where(asked: Mapping[str, str], now: float) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if asked["q"]:
        found.append(
            or_(
                devices.c.name.icontains(asked["q"], autoescape=True),
                devices.c.id.startswith(asked["q"].lower(), autoescape=True),
            )
        )
    if asked["group"]:
        found.append(devices.c.group_name == asked["group"])
    heard = devices.c.last_seen_at > now - ONLINE_S
    states: dict[str, list[ColumnElement[bool]]] = {
        "online": [devices.c.status == "active", heard, devices.c.refused == "{}"],
        "offline": [
            devices.c.status == "active",
            or_(~heard, devices.c.last_seen_at.is_(None)),
            devices.c.refused == "{}",
        ],
        "refused": [devices.c.status == "active", devices.c.refused != "{}"],
        "quarantined": [devices.c.status == "quarantined"],
        "revoked": [devices.c.status == "revoked"],
    }
    return found + states.get(asked["state"], [])


def _line(row: RowMapping, done: Activity, now: float) -> Device:
    seen = row["last_seen_at"]
    state = of_device(
        row["status"],
        refused=row["refused"] != "{}",
        online=seen is not None and now - seen < ONLINE_S,
    )
    return Device(
        row["id"],
        row["name"],
        state,
        row["status"],
        row["group_name"],
        row["revision"],
        seen,
        done,
    )


def _charges(connection: Connection, device_id: str) -> list[Charge]:
    query = (
        select(ledger_rows)
        .where(ledger_rows.c.device_id == device_id)
        .order_by(ledger_rows.c.at.desc())
        .limit(_CHARGES)
    )
    return [
        Charge(
            row["at"],
            row["task"],
            row["pool"],
            of_charge(row["state"]),
            row["held_microusd"],
            row["cost_microusd"],
            row["revision"],
        )
        for row in connection.execute(query).mappings()
    ]
