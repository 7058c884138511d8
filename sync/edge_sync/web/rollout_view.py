"""Rollouts, many and one, read from the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, func, select

from edge_sync.rollout.waves import Wave, from_json, wave_of
from edge_sync.store.schema import devices, rollouts
from edge_sync.web import formats
from edge_sync.web.paging import PER_PAGE, Page, bounds
from edge_sync.web.states import State, of_rollout

_SHARES = (
    ("Failed tasks", "error_share", formats.percent),
    ("Escalated", "escalation_share", formats.percent),
    ("Corrected by people", "correction_share", formats.percent),
    ("Latency p95", "p95_ms", formats.milliseconds),
    ("Tasks", "tasks", formats.big),
)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout's line."""

    id: int
    state: str
    tag: State
    revision: int
    previous: int
    groups: tuple[str, ...]
    waves: tuple[Wave, ...]
    wave: int
    reason: str
    author: str
    at: float

    @property
    def open(self) -> bool:
        """Whether it can still be changed."""
        return self.state in {"running", "paused"}


@dataclass(frozen=True, slots=True)
class WaveProgress:
    """How far a wave is."""

    name: str
    tag: State
    devices: int
    active: int
    refused: int
    parts: list[formats.Part]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure under the new version and what it is compared with."""

    name: str
    new: str
    old: str


@dataclass(frozen=True, slots=True)
class OneRollout:
    """All that the page of one rollout shows."""

    line: Rollout
    waves: list[WaveProgress]
    figures: list[Figure]

    def __getattr__(self, name: str) -> Any:
        """What its line in the list shows."""
        return getattr(self.line, name)


def rollout_list(connection: Connection, query: Mapping[str, str]) -> Page:
    """Return a page of rollouts, the newest first."""
    count = connection.execute(select(func.count()).select_from(rollouts)).scalar_one()
    number, skip = bounds(query.get("page", ""), count)
    rows = connection.execute(
        select(rollouts).order_by(rollouts.c.id.desc()).limit(PER_PAGE).offset(skip)
    ).mappings()
    return Page(count, number, {}, {"rollouts": [_line(row) for row in rows]})


def one_rollout(connection: Connection, rollout_id: int) -> OneRollout | None:
    """Return one rollout, or ``None`` where there is none of that number."""
    row = connection.execute(select(rollouts).where(rollouts.c.id == rollout_id)).mappings().first()
    if row is None:
        return None
    line = _line(row)
    return OneRollout(line, _progress(connection, line), _figures(json.loads(row["progress"])))


def _line(row: RowMapping) -> Rollout:
    return Rollout(
        row["id"],
        row["state"],
        of_rollout(row["state"]),
        row["revision"],
        row["previous"],
        tuple(json.loads(row["groups"])),
        from_json(json.loads(row["waves"])),
        row["wave"],
        row["reason"],
        row["created_by"],
        row["created_at"],
    )


def _progress(connection: Connection, line: Rollout) -> list[WaveProgress]:
    """Count the devices of each wave that run, or refused, the new version."""
    counts = [[0, 0, 0] for _ in line.waves]
    rows = connection.execute(
        select(devices.c.id, devices.c.group_name, devices.c.revision, devices.c.refused).where(
            devices.c.group_name.in_(line.groups), devices.c.status != "revoked"
        )
    )
    for device_id, group, revision, refused in rows:
        at = wave_of(line.waves, rollout=line.id, device_id=device_id, group=group)
        counts[at][0] += 1
        if revision == line.revision:
            counts[at][1] += 1
        elif json.loads(refused).get("revision") == line.revision:
            counts[at][2] += 1
    return [
        WaveProgress(
            f"Wave {at + 1}: {wave}",
            _wave_state(at, line),
            whole,
            active,
            refused,
            formats.parts([("active", active, "fgood"), ("refused", refused, "fbad")], whole),
        )
        for at, (wave, (whole, active, refused)) in enumerate(zip(line.waves, counts, strict=True))
    ]


def _wave_state(at: int, line: Rollout) -> State:
    if at > line.wave:
        return State("waiting" if line.open else "not begun")
    if at < line.wave or line.state == "done":
        return State("done", "good")
    return State("in progress", "good") if line.state == "running" else of_rollout(line.state)


def _figures(progress: Mapping[str, Any]) -> list[Figure]:
    new, old = progress.get("new"), progress.get("usual")
    if not isinstance(new, dict) or not isinstance(old, dict) or not new.get("tasks"):
        return []
    found = [
        Figure(name, shown(new.get(key)), shown(old.get(key)) if old.get("tasks") else formats.DASH)
        for name, key, shown in _SHARES
    ]
    found.append(
        Figure(
            "Silent devices",
            f"{progress.get('silent', 0)} of {progress.get('reached', 0)}",
            f"{progress.get('control_silent', 0)} of {progress.get('control_reached', 0)}",
        )
    )
    return found
