"""What every device should hold, in memory: read again when ``generation`` has risen.

A view is one moment of the database. From it follow, without asking the database: the assignment
of a device (its own, a rollout's or its group's), the version tag of what it should hold, and the
bundle of signed metadata that leads there. Knows nothing of HTTP and signs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, func, select

from edge_sync.hub.home import newest_metadata, read_fact
from edge_sync.rollout.waves import Wave, from_json, wave_of
from edge_sync.store.schema import (
    assignments,
    devices,
    groups,
    metadata_files,
    policies,
    rollouts,
)
from edge_sync.wire import Bundle, Have

LIVE = ("running", "paused", "halted")


@dataclass(frozen=True, slots=True)
class Known:
    """What the hub must know of a device before it asks the database."""

    group: str
    status: str
    public_key: str


@dataclass(frozen=True, slots=True)
class Staged:
    """A rollout that is not over.

    Attributes:
        wave: the last one that has begun, from 0.
        serials: of the new assignment, by group.

    """

    id: int
    wave: int
    waves: tuple[Wave, ...]
    serials: Mapping[str, int]


@dataclass(frozen=True)
class View:
    """One moment of the hub.

    Attributes:
        groups: serial of each group outside of a rollout.
        own: serial of each device that has an assignment of its own.
        roots: all versions of the root metadata from the first, as text.
        metadata: the other signed metadata in force, as text, by role.
        timestamp: version of the timestamp in force.
        devices: all that have joined; others may be added as they turn up.

    """

    generation: int
    groups: Mapping[str, int]
    own: Mapping[str, int]
    rollouts: tuple[Staged, ...]
    roots: tuple[str, ...]
    metadata: Mapping[str, str]
    timestamp: int
    devices: dict[str, Known]
    bundles: dict[tuple[int, int, bool], bytes] = field(default_factory=dict)

    def serial(self, device_id: str, group: str) -> int:
        """Return the serial of the assignment that a device should hold; 0 for none."""
        common = self.groups.get(group, 0)
        own = self.own.get(device_id, 0)
        if own > common:
            return own
        for rollout in self.rollouts:
            # One that was stopped has left a newer assignment to the whole group.
            new = rollout.serials.get(group, 0)
            if new > common and self._reached(rollout, device_id, group):
                return new
        return common

    @staticmethod
    def _reached(rollout: Staged, device_id: str, group: str) -> bool:
        wave = wave_of(rollout.waves, rollout=rollout.id, device_id=device_id, group=group)
        return wave <= rollout.wave

    def have(self, device_id: str, group: str) -> Have:
        """Return the versions that a device should hold; without the revision."""
        serial = self.serial(device_id, group)
        return Have(root=len(self.roots), timestamp=self.timestamp, serial=serial)

    def etag(self, device_id: str, group: str) -> str:
        """Return what stands in ``ETag`` for a device."""
        return f'"{len(self.roots)}.{self.timestamp}.{self.serial(device_id, group)}"'


def read_view(connection: Connection) -> View:
    """Read a view from the database."""
    newest = newest_metadata(connection)
    versions = connection.execute(
        select(metadata_files.c.body)
        .where(metadata_files.c.role == "root")
        .order_by(metadata_files.c.version)
    )
    return View(
        generation=read_fact(connection, "generation") or 0,
        groups={
            str(name): int(serial)
            for name, serial in connection.execute(select(groups.c.name, groups.c.serial))
        },
        own=_own(connection),
        rollouts=_rollouts(connection),
        roots=tuple(bytes(body).decode() for (body,) in versions),
        metadata={role: body.decode() for role, body in newest.items() if role != "root"},
        timestamp=json.loads(newest["timestamp"])["signed"]["version"],
        devices=_devices(connection),
    )


def _own(connection: Connection) -> dict[str, int]:
    newest = (
        select(assignments.c.device_id, func.max(assignments.c.serial))
        .where(assignments.c.device_id.is_not(None))
        .group_by(assignments.c.device_id)
    )
    return {str(device): int(serial) for device, serial in connection.execute(newest)}


def _rollouts(connection: Connection) -> tuple[Staged, ...]:
    live = (
        select(rollouts.c.id, rollouts.c.wave, rollouts.c.waves, rollouts.c.serials)
        .where(rollouts.c.state.in_(LIVE))
        .order_by(rollouts.c.id.desc())
    )
    return tuple(
        Staged(
            id=int(number),
            wave=int(wave),
            waves=from_json(json.loads(waves)),
            serials={group: int(pair["new"]) for group, pair in json.loads(serials).items()},
        )
        for number, wave, waves, serials in connection.execute(live)
    )


def _devices(connection: Connection) -> dict[str, Known]:
    rows = connection.execute(
        select(devices.c.id, devices.c.group_name, devices.c.status, devices.c.public_key)
    )
    return {str(name): Known(group, status, key) for name, group, status, key in rows}


def find_device(connection: Connection, device_id: str) -> Known | None:
    """Return one device, for those that have joined since the view was read."""
    row = connection.execute(
        select(devices.c.group_name, devices.c.status, devices.c.public_key).where(
            devices.c.id == device_id
        )
    ).first()
    return None if row is None else Known(*row)


def read_assignment(connection: Connection, serial: int) -> tuple[str, int]:
    """Return an assignment as signed, and the revision it names."""
    row = connection.execute(
        select(assignments.c.body, assignments.c.revision).where(assignments.c.serial == serial)
    ).one()
    return str(row.body), int(row.revision)


def build_bundle(
    connection: Connection, view: View, *, root: int, serial: int, with_policy: bool
) -> bytes:
    """Return a bundle as JSON, from memory where one for the same versions was built before.

    Args:
        connection: to read the policy with.
        view: the moment to build it for.
        root: version of the root that the device holds.
        serial: of the assignment it should hold; above 0.
        with_policy: whether the document goes along.

    """
    root = min(max(root, 0), len(view.roots))
    key = (root, serial, with_policy)
    if key in view.bundles:
        return view.bundles[key]
    body, revision = read_assignment(connection, serial)
    document = select(policies.c.document).where(policies.c.revision == revision)
    bundle = Bundle(
        roots=list(view.roots[root:]),
        timestamp=view.metadata["timestamp"],
        snapshot=view.metadata["snapshot"],
        targets=view.metadata["targets"],
        assignment=body,
        policy=connection.execute(document).scalar() if with_policy else None,
    )
    view.bundles[key] = bundle.model_dump_json().encode()
    return view.bundles[key]
