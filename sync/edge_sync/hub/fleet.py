"""Devices and groups, as an admin sees and changes them.

Knows nothing of how devices sync; that is ``edge_sync.hub.syncing``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, or_, select, update

from edge.errors import ConfigError, InputError
from edge_sync.hub.assigning import (
    assign_device,
    assign_group,
    chosen_groups,
    common_serial,
    group_of,
    revision_of,
)
from edge_sync.hub.home import Hub
from edge_sync.hub.policies import bring_back
from edge_sync.hub.stops import stopped_everywhere
from edge_sync.hub.view import read_view
from edge_sync.store.schema import devices, groups
from edge_sync.trust.assignment import Stopped

ONLINE_S = 900.0
"""A device is online where it was heard of within this time: three syncs of 300 s."""
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_SHORTEST = 4


@dataclass(frozen=True, slots=True)
class Device:
    """One device; times in seconds since the epoch.

    Attributes:
        status: active, quarantined or revoked.
        revision: of the policy in force, as it reported; 0 for the pack's own.
        refused: the last policy that it would not take: revision, reason, at; may be empty.
        models: digest by name, as it reported.
        waiting: tasks in its queue.

    """

    id: str
    name: str
    group: str
    status: str
    enrolled_at: float
    last_seen_at: float | None
    clock_skew_s: float | None
    runtime: str
    pack: str
    revision: int
    revision_since: float | None
    serial: int
    refused: Mapping[str, Any]
    models: Mapping[str, str]
    waiting: int

    def online(self, now: float) -> bool:
        """Whether it was heard of lately."""
        return self.last_seen_at is not None and now - self.last_seen_at < ONLINE_S


@dataclass(frozen=True, slots=True)
class Group:
    """A group of devices.

    Attributes:
        revision: that all are to run outside of a rollout; 0 for the pack's own.
        stopped: names by kind.

    """

    name: str
    devices: int
    revision: int
    stopped: Mapping[str, list[str]]


def list_devices(hub: Hub, *, group: str | None = None) -> list[Device]:
    """Return all devices by name, or those of a group."""
    query = select(devices).order_by(devices.c.name, devices.c.id)
    if group is not None:
        query = query.where(devices.c.group_name == group)
    with hub.store.reading() as connection:
        return [_device(dict(row)) for row in connection.execute(query).mappings()]


def find_device(hub: Hub, named: str) -> Device:
    """Return the device of a name, an id, or the beginning of an id of at least 4 digits.

    A whole id wins: devices name themselves, and none may hide another behind its name.

    Raises:
        ConfigError: there is none, or more than one.

    """
    wanted = or_(devices.c.id == named, devices.c.name == named)
    if len(named) >= _SHORTEST and re.fullmatch("[0-9a-f]+", named):
        wanted = or_(wanted, devices.c.id.startswith(named))
    first = select(devices).where(wanted).order_by(devices.c.id != named, devices.c.id).limit(10)
    with hub.store.reading() as connection:
        rows = list(connection.execute(first).mappings())
    exact = [row for row in rows if row["id"] == named]
    rows = exact or rows
    if len(rows) == 1:
        return _device(dict(rows[0]))
    if not rows:
        raise ConfigError(
            f"There is no device {named!r}.", hint="`edge-hub devices list` shows all."
        )
    listed = ", ".join(f"{row['name']} {row['id'][:8]}" for row in rows)
    raise ConfigError(f"{named!r} are several devices: {listed}.", hint="Name one by its id.")


def revoke(hub: Hub, device: Device, *, who: str) -> None:
    """Shut a device out for good: the hub answers its key no more.

    Raises:
        ConfigError: it is revoked already.

    """
    if device.status == "revoked":
        raise ConfigError(f"{device.name} is revoked already.", hint="Nothing had to be changed.")
    change = update(devices).where(devices.c.id == device.id).values(status="revoked")

    def work(connection: Connection) -> None:
        connection.execute(change)

    hub.change(who, "device.revoke", about=device.id, detail={"name": device.name}, work=work)


def move(hub: Hub, device: Device, *, group: str, who: str) -> int:
    """Put a device into another group, with what that runs, and return the revision it gets.

    Versions never fall on a device: where the group runs an older revision than the device may
    have by now, the older content is published as a new one. Where the group runs none, the
    device keeps what it has, and 0 is returned; it is told of its group all the same.

    Raises:
        ConfigError: no such group, or it is in it, or it is revoked.

    """
    if device.status == "revoked":
        raise ConfigError(f"{device.name} is revoked.", hint="Enrol it anew into the other group.")
    if device.group == group:
        raise ConfigError(f"{device.name} is in {group} already.", hint="Name another group.")

    def work(connection: Connection) -> int:
        chosen_groups(connection, [group])
        held = _assigned(connection, device.id)
        connection.execute(
            update(devices).where(devices.c.id == device.id).values(group_name=group)
        )
        repository = hub.signing(connection)
        serial = common_serial(connection, group)
        if serial == 0:  # renewals go by the assignment of the group
            assign_group(hub, connection, repository, group=group, revision=0)
        revision = revision_of(connection, serial)
        if 0 < revision < max(held, device.revision):
            made, repository = bring_back(
                hub, connection, revision, message=f"For {device.name}, moved", author=who
            )
            revision = made.revision
        assign_device(hub, connection, repository, device_id=device.id, revision=revision or held)
        return revision

    return hub.change(
        who,
        "device.move",
        about=device.id,
        detail=lambda revision: {
            "name": device.name,
            "from": device.group,
            "to": group,
            "revision": revision,
        },
        work=work,
    )


def _assigned(connection: Connection, device_id: str) -> int:
    """Return the revision that a device is to run; it may not have reported it yet."""
    view = read_view(connection)
    return revision_of(connection, view.serial(device_id, group_of(connection, device_id)))


def list_groups(hub: Hub) -> list[Group]:
    """Return all groups by name."""
    counts = (
        select(devices.c.group_name, func.count().label("devices"))
        .where(devices.c.status != "revoked")
        .group_by(devices.c.group_name)
        .subquery()
    )
    query = (
        select(groups, counts.c.devices)
        .outerjoin(counts, counts.c.group_name == groups.c.name)
        .order_by(groups.c.name)
    )
    with hub.store.reading() as connection:
        rows = connection.execute(query).mappings().all()
        return [
            Group(
                name=row["name"],
                devices=int(row["devices"] or 0),
                revision=revision_of(connection, int(row["serial"])),
                stopped=json.loads(row["stopped"]),
            )
            for row in rows
        ]


def add_group(hub: Hub, name: str, *, who: str) -> None:
    """Add an empty group; what is stopped in all others is stopped in it too.

    Raises:
        InputError: the name is none.
        ConfigError: it is there already.

    """
    if not _GROUP.fullmatch(name):
        raise InputError(
            f"{name!r} cannot be a group's name.",
            hint="Use up to 64 letters, digits and the marks . _ -",
        )

    def work(connection: Connection) -> None:
        if connection.execute(select(groups.c.name).where(groups.c.name == name)).first():
            raise ConfigError(f"There is a group {name} already.", hint="Choose another name.")
        stopped = stopped_everywhere(connection)
        held = json.dumps(stopped.as_dict())
        connection.execute(insert(groups).values(name=name, serial=0, stopped=held))
        if stopped != Stopped():
            assign_group(hub, connection, hub.signing(connection), group=name, revision=0)

    hub.change(who, "group.add", about=name, detail={}, work=work)


def _device(row: dict[str, Any]) -> Device:
    return Device(
        **{name: row[name] for name in Device.__slots__ if name in row and name not in _JSON},
        group=row["group_name"],
        refused=json.loads(row["refused"]),
        models=json.loads(row["models"]),
    )


_JSON = frozenset({"refused", "models"})
