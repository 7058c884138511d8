"""Signed assignments in the database: which policy a group or a device is to run.

Guarantees: a serial is used once and rises; an assignment names what is stopped in its group, and
the models of its policy. Works inside the transaction of a change and begins none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from edge.errors import ConfigError
from edge_sync.hub.home import Hub, raise_fact
from edge_sync.store.schema import assignments, devices, groups, policies, rollouts
from edge_sync.trust.assignment import Stopped
from edge_sync.trust.repository import Repository

UNDER_WAY = ("running", "paused")
"""States of a rollout in which some devices of a group have its policy and others do not."""


def group_names(connection: Connection) -> list[str]:
    """Return the names of all groups, sorted."""
    return sorted(connection.execute(select(groups.c.name)).scalars())


def chosen_groups(connection: Connection, names: Sequence[str] | None) -> list[str]:
    """Return the named groups, all of them for ``None``.

    Raises:
        ConfigError: one is not there, or there are none.

    """
    known = group_names(connection)
    if names is None:
        return known
    for name in names:
        if name not in known:
            raise ConfigError(
                f"There is no group {name!r}.",
                hint=f"Groups: {', '.join(known) or 'none'}; add one by `edge-hub groups add`.",
            )
    return sorted(set(names))


def assign_group(
    hub: Hub,
    connection: Connection,
    repository: Repository,
    *,
    group: str,
    revision: int,
    common: bool = True,
) -> int:
    """Sign an assignment for a group and keep it; return its serial.

    Args:
        hub: the hub, open.
        connection: inside a change.
        repository: as signed in this change so far.
        group: that is there.
        revision: a published policy; 0 for the pack's own.
        common: all of the group are to follow it at once; not so in a rollout.

    Raises:
        ConfigError: the policy or a model is not published, or the key is elsewhere.

    """
    serial = raise_fact(connection, "serial")
    now = hub.clock()
    body = repository.assign(
        serial=serial,
        now=now,
        group=group,
        revision=revision,
        models=models_of(connection, revision),
        stopped=stopped_in(connection, group),
    )
    connection.execute(
        insert(assignments).values(
            serial=serial, group_name=group, revision=revision, body=body.decode(), created_at=now
        )
    )
    if common:
        connection.execute(update(groups).where(groups.c.name == group).values(serial=serial))
    return serial


def assign_device(
    hub: Hub,
    connection: Connection,
    repository: Repository,
    *,
    device_id: str,
    revision: int,
) -> int:
    """Sign an assignment for one device and keep it; return its serial.

    It counts until its group gets a newer one. Arguments and errors are those of ``assign_group``.
    """
    group = group_of(connection, device_id)
    serial = raise_fact(connection, "serial")
    now = hub.clock()
    body = repository.assign(
        serial=serial,
        now=now,
        group=group,
        device=device_id,
        revision=revision,
        models=models_of(connection, revision),
        stopped=stopped_in(connection, group),
    )
    connection.execute(
        insert(assignments).values(
            serial=serial,
            group_name=group,
            device_id=device_id,
            revision=revision,
            body=body.decode(),
            created_at=now,
        )
    )
    return serial


def assign_again(hub: Hub, connection: Connection, repository: Repository, *, group: str) -> int:
    """Sign all that is in force in a group anew, with what is stopped now.

    Who had the policy of a rollout, or one of its own, has it afterwards too; return how many
    assignments were made.
    """
    before = common_serial(connection, group)
    own = _own(connection, group, above=before)
    serial = assign_group(
        hub, connection, repository, group=group, revision=revision_of(connection, before)
    )
    made = 1
    for row in rollouts_in(connection, group):
        pairs = json.loads(row["serials"])
        if pairs[group]["new"] > before:
            pairs[group] = {
                "old": serial,
                "new": assign_group(
                    hub,
                    connection,
                    repository,
                    group=group,
                    revision=revision_of(connection, pairs[group]["new"]),
                    common=False,
                ),
            }
            change = update(rollouts).where(rollouts.c.id == row["id"])
            connection.execute(change.values(serials=json.dumps(pairs)))
            made += 1
    for device_id, revision in own:
        assign_device(hub, connection, repository, device_id=device_id, revision=revision)
        made += 1
    return made


def require_no_rollout(connection: Connection, names: Iterable[str]) -> None:
    """Refuse groups in which a rollout is under way.

    Raises:
        ConfigError: there is one; what it is judged by would be gone.

    """
    for name in names:
        for row in rollouts_in(connection, name):
            raise ConfigError(
                f"Rollout {row['id']} is {row['state']} in group {name}.",
                hint=f"Wait for its end, or run `edge-hub rollout abort {row['id']}`.",
            )


def rollouts_in(connection: Connection, group: str) -> list[dict[str, Any]]:
    """Return the rollouts that are under way in a group."""
    query = select(rollouts).where(rollouts.c.state.in_(UNDER_WAY)).order_by(rollouts.c.id)
    rows = connection.execute(query).mappings()
    return [dict(row) for row in rows if group in json.loads(row["serials"])]


def common_serial(connection: Connection, group: str) -> int:
    """Return the serial of a group's assignment outside of rollouts; 0 for none."""
    query = select(groups.c.serial).where(groups.c.name == group)
    return int(connection.execute(query).scalar_one())


def highest_in(connection: Connection, group: str) -> int:
    """Return the highest revision that a group or a device moved into it is to run now."""
    serial = common_serial(connection, group)
    own = [revision for _, revision in _own(connection, group, above=serial)]
    return max(revision_of(connection, serial), *own, 0)


def revision_of(connection: Connection, serial: int) -> int:
    """Return the revision that an assignment names; 0 for the serial 0."""
    if serial == 0:
        return 0
    query = select(assignments.c.revision).where(assignments.c.serial == serial)
    return int(connection.execute(query).scalar_one())


def group_of(connection: Connection, device_id: str) -> str:
    """Return the group of a device that is there."""
    query = select(devices.c.group_name).where(devices.c.id == device_id)
    return str(connection.execute(query).scalar_one())


def stopped_in(connection: Connection, group: str) -> Stopped:
    """Return what is stopped in a group."""
    query = select(groups.c.stopped).where(groups.c.name == group)
    return Stopped.from_dict(json.loads(connection.execute(query).scalar_one()))


def models_of(connection: Connection, revision: int) -> dict[str, str]:
    """Return the models that a published policy names by digest, by name."""
    if revision == 0:
        return {}
    query = select(policies.c.document).where(policies.c.revision == revision)
    document = connection.execute(query).scalar()
    if document is None:
        raise ConfigError(
            f"There is no policy revision {revision}.", hint="See `edge-hub policy list`."
        )
    return named_models(json.loads(document)["sections"])


def named_models(sections: dict[str, Any]) -> dict[str, str]:
    """Return the models that the sections of a policy name by digest, by name."""
    found = sections.get("models") or {}
    return {name: entry["digest"] for name, entry in found.items() if entry.get("digest")}


def _own(connection: Connection, group: str, *, above: int) -> list[tuple[str, int]]:
    """Return the devices of a group that have a newer assignment of their own, and its revision."""
    newest = (
        select(assignments.c.device_id, func.max(assignments.c.serial).label("serial"))
        .where(assignments.c.device_id.is_not(None) & (assignments.c.serial > above))
        .group_by(assignments.c.device_id)
        .subquery()
    )
    rows = connection.execute(
        select(newest.c.device_id, assignments.c.revision)
        .join(assignments, assignments.c.serial == newest.c.serial)
        .join(devices, devices.c.id == newest.c.device_id)
        .where(devices.c.group_name == group)
        .order_by(newest.c.device_id)
    )
    return [(str(device), int(revision)) for device, revision in rows]
