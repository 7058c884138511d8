"""One rollout as a row: read, written, and never written over what somebody else wrote.

Knows the table and no rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update

from edge.errors import ConfigError
from edge_sync.rollout.terms import Terms
from edge_sync.rollout.waves import Wave, from_json, to_json
from edge_sync.store.schema import rollouts


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout.

    Attributes:
        revision: of the policy that goes out.
        previous: the revision before, of the first group; 0 for the pack's own policy.
        restores: the revision that brought the content before back, after a halt.
        state: running, paused, halted, aborted or done.
        wave: from 0.
        reason: why it is in this state, for a person.
        progress: figures of the last judgement, and what the next one needs.
        serials: by group, of the assignments ``old`` and ``new``.

    """

    id: int
    revision: int
    previous: int
    restores: int | None
    groups: tuple[str, ...]
    waves: tuple[Wave, ...]
    terms: Terms
    state: str
    wave: int
    wave_since: float
    reason: str
    progress: Mapping[str, Any]
    serials: Mapping[str, Mapping[str, int]]
    created_by: str
    created_at: float
    ended_at: float | None

    @property
    def starts(self) -> tuple[float, ...]:
        """When each wave so far began, seconds since the epoch."""
        return tuple(self.progress["starts"])

    def summary(self) -> dict[str, Any]:
        """Return what a person or a program is shown."""
        return {
            "id": self.id,
            "state": self.state,
            "revision": self.revision,
            "previous": self.previous,
            "restores": self.restores,
            "groups": list(self.groups),
            "waves": [str(wave) for wave in self.waves],
            "wave": self.wave + 1,
            "wave_since": self.wave_since,
            "reason": self.reason,
            "progress": dict(self.progress),
            "created_by": self.created_by,
            "created_at": self.created_at,
            "ended_at": self.ended_at,
        }


class Stale(Exception):  # noqa: N818 - no error: another process made the step
    """The rollout is not any more what was judged."""


def require_same(connection: Connection, before: Rollout) -> None:
    """Make sure that nobody took a step since a rollout was read.

    Raises:
        Stale: somebody did.

    """
    now = read(connection, before.id)
    same = (now.state, now.wave, now.progress) == (before.state, before.wave, before.progress)
    if not same:
        raise Stale


def add(connection: Connection, rollout: Rollout) -> None:
    """Write a new rollout."""
    connection.execute(insert(rollouts).values(**_row(rollout)))


def write(connection: Connection, after: Rollout, *, before: Rollout) -> None:
    """Write a rollout over what it was.

    Raises:
        Stale: it is not any more what it was.

    """
    require_same(connection, before)
    row = _row(after)
    # A kill switch may have signed the assignments anew since they were read.
    del row["serials"]
    connection.execute(update(rollouts).where(rollouts.c.id == after.id).values(**row))


def read(connection: Connection, rollout_id: int | None) -> Rollout:
    """Return a rollout, the newest for ``None``.

    Raises:
        ConfigError: there is none.

    """
    query = select(rollouts).order_by(rollouts.c.id.desc()).limit(1)
    if rollout_id is not None:
        query = query.where(rollouts.c.id == rollout_id)
    row = connection.execute(query).mappings().first()
    if row is None:
        named = "rollout yet" if rollout_id is None else f"rollout {rollout_id}"
        raise ConfigError(f"There is no {named}.", hint="See `edge-hub rollout list`.")
    return from_row(dict(row))


def _row(rollout: Rollout) -> dict[str, Any]:
    values = {name: getattr(rollout, name) for name in Rollout.__slots__}
    values["groups"] = json.dumps(rollout.groups)
    values["waves"] = json.dumps(to_json(rollout.waves))
    values["terms"] = json.dumps(rollout.terms.to_dict())
    values["progress"] = json.dumps(dict(rollout.progress))
    values["serials"] = json.dumps(rollout.serials)
    return values


def from_row(row: Mapping[str, Any]) -> Rollout:
    """Return a rollout of the values of its row."""
    values = {name: row[name] for name in Rollout.__slots__}
    values["groups"] = tuple(json.loads(row["groups"]))
    values["waves"] = from_json(json.loads(row["waves"]))
    values["terms"] = Terms.from_dict(json.loads(row["terms"]))
    values["progress"] = json.loads(row["progress"])
    values["serials"] = json.loads(row["serials"])
    return Rollout(**values)
