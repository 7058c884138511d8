"""What the hub's tables know of a rollout's devices, as the columns and sums of the judgement.

Reads and changes nothing. Of large waves the health of a sample is read, drawn by each device's
place in the rollout, which is as good as by lot. Does not know what follows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor, inf

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, RowMapping, func, select

from edge_sync.rollout.evidence import Columns, Sums, Work, no_work
from edge_sync.rollout.waves import Wave, place, wave_of
from edge_sync.store.schema import assignments, devices, groups, health
from edge_sync.wire import LATENCY_BUCKETS

PAST_HOURS = 14 * 24
SAMPLED = 500
_PAGE = 500


@dataclass(frozen=True)
class Observed:
    """The devices of a rollout's groups, in the order of the columns."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    columns: Columns

    def seated(self, waves: Sequence[Wave], *, rollout: int) -> Observed:
        """Return the devices in the waves of a rollout of this id."""
        first = [
            wave_of(waves, rollout=rollout, device_id=name, group=group)
            for name, group in zip(self.ids, self.groups, strict=True)
        ]
        return replace(self, columns=replace(self.columns, wave=np.array(first, np.int64)))


def observe(
    connection: Connection,
    *,
    rollout: int,
    revision: int,
    names: Sequence[str],
    waves: Sequence[Wave],
) -> Observed:
    """Return the devices of groups; without the revoked, and those with a policy of their own."""
    own = _own(connection, names)
    fields = ("id", "group_name", "last_seen_at", "revision", "revision_since", "refused")
    rows = connection.execute(
        select(*(devices.c[name] for name in fields))
        .where(devices.c.group_name.in_(names) & (devices.c.status != "revoked"))
        .order_by(devices.c.id)
    )
    kept = [tuple(row) for row in rows if row[0] not in own]
    ids, groups_of, seen, held, since, refused = zip(*kept, strict=True) if kept else [()] * 6
    columns = Columns(
        wave=np.zeros(len(ids), np.int64),
        last_seen=_times(seen),
        revision=np.array(held, np.int64),
        since=_times(since),
        refused=np.array([_names(text, revision) for text in refused], np.bool_),
    )
    return Observed(ids, groups_of, columns).seated(waves, rollout=rollout)


def _names(refused: str, revision: int) -> bool:
    return refused != "{}" and json.loads(refused).get("revision") == revision


def read_sums(
    connection: Connection,
    observed: Observed,
    *,
    rollout: int,
    revision: int,
    starts: Sequence[float],
) -> Sums:
    """Return the health of the devices, by the whole hours that it is reported in.

    Args:
        connection: to read with.
        observed: the devices.
        rollout: its id.
        revision: the new one.
        starts: when each wave so far began.

    """
    first, current = (floor(at / 3_600.0) for at in (starts[0], starts[-1]))
    tables = {name: no_work(len(observed.ids)).table for name in ("new", "old", "while", "late")}
    sample = set(_sample(observed, rollout, len(starts) - 1))
    index = {name: number for number, name in enumerate(observed.ids) if name in sample}
    for row in _rows(connection, list(index), since=first - PAST_HOURS):
        values = _values(row)
        number = index[row["device_id"]]
        if row["revision"] == revision:
            tables["new"][number] += values
            if row["hour"] >= current:
                tables["late"][number] += values
        else:
            tables["old" if row["hour"] < first else "while"][number] += values
    return Sums(*(Work(tables[name]) for name in ("new", "old", "while", "late")))


def _sample(observed: Observed, rollout: int, wave: int) -> list[str]:
    """Return up to ``SAMPLED`` devices each of the waves before, of this wave and of later ones."""
    found: list[str] = []
    at = observed.columns.wave
    for part in (at < wave, at == wave, at > wave):
        names = [observed.ids[number] for number in np.flatnonzero(part)]
        if len(names) > SAMPLED:
            names = sorted(names, key=lambda name: place(rollout, name[::-1]))[:SAMPLED]
        found += names
    return found


def _rows(connection: Connection, ids: Sequence[str], *, since: int) -> list[RowMapping]:
    found: list[RowMapping] = []
    for start in range(0, len(ids), _PAGE):
        query = select(health).where(
            health.c.device_id.in_(ids[start : start + _PAGE]) & (health.c.hour >= since)
        )
        found += connection.execute(query).mappings().all()
    return found


def _values(row: RowMapping) -> NDArray[np.float64]:
    latency = json.loads(row["latency"])[:LATENCY_BUCKETS]
    counts = [row["tasks"], row["errors"], row["cloud"] + row["deferred"], row["corrections"]]
    return np.array(counts + latency + [0] * (LATENCY_BUCKETS - len(latency)), np.float64)


def _times(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([-inf if value is None else value for value in values], np.float64)


def _own(connection: Connection, names: Sequence[str]) -> set[str]:
    """Return the devices whose own assignment is newer than their group's."""
    newest = (
        select(assignments.c.device_id, func.max(assignments.c.serial).label("serial"))
        .where(assignments.c.device_id.is_not(None))
        .group_by(assignments.c.device_id)
        .subquery()
    )
    rows = connection.execute(
        select(newest.c.device_id)
        .join(devices, devices.c.id == newest.c.device_id)
        .join(groups, groups.c.name == devices.c.group_name)
        .where(devices.c.group_name.in_(names) & (newest.c.serial > groups.c.serial))
    )
    return {str(name) for (name,) in rows}
