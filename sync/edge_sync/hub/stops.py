"""The kill switch: one model, one tool or one task must not run, in a group or everywhere.

What is stopped is part of every assignment, so it reaches a device with its next look, wins over
any policy and outlives new ones. Knows nothing of what a model, a tool or a task is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from edge.errors import ConfigError, InputError
from edge_sync.hub.assigning import assign_again, chosen_groups, stopped_in
from edge_sync.hub.home import Hub
from edge_sync.store.schema import groups
from edge_sync.trust.assignment import Stopped

KINDS = ("model", "tool", "task")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")


@dataclass(frozen=True, slots=True)
class Change:
    """What a stop did.

    Attributes:
        groups: those in which it changed something.
        assignments: how many were signed for it.

    """

    groups: tuple[str, ...]
    assignments: int


def stop(hub: Hub, kind: str, name: str, *, who: str, only: Sequence[str] | None = None) -> Change:
    """Stop a model, tool or task at once, in the named groups or in all for ``None``.

    Raises:
        InputError: no such kind, or no name.
        ConfigError: no such group; or it is stopped there already.

    """
    return _change(hub, kind, name, who=who, only=only, stopping=True)


def unstop(
    hub: Hub, kind: str, name: str, *, who: str, only: Sequence[str] | None = None
) -> Change:
    """Let it run again.

    Raises:
        InputError: no such kind, or no name.
        ConfigError: no such group; or it is not stopped there.

    """
    return _change(hub, kind, name, who=who, only=only, stopping=False)


def list_stopped(hub: Hub) -> dict[str, Stopped]:
    """Return what is stopped, by group, where something is."""
    with hub.store.reading() as connection:
        rows = connection.execute(select(groups.c.name, groups.c.stopped).order_by(groups.c.name))
        found = {str(name): Stopped.from_dict(json.loads(text)) for name, text in rows}
    return {name: stopped for name, stopped in found.items() if stopped != Stopped()}


def stopped_everywhere(connection: Connection) -> Stopped:
    """Return what is stopped in every group; nothing where there is no group."""
    texts = connection.execute(select(groups.c.stopped)).scalars()
    trees = [Stopped.from_dict(json.loads(text)).as_dict() for text in texts]
    kinds = [f"{kind}s" for kind in KINDS]
    common = {kind: [set(tree[kind]) for tree in trees] for kind in kinds}
    return Stopped.from_dict(
        {kind: sorted(set.intersection(*sets)) if sets else [] for kind, sets in common.items()}
    )


def _change(
    hub: Hub, kind: str, name: str, *, who: str, only: Sequence[str] | None, stopping: bool
) -> Change:
    if kind not in KINDS:
        raise InputError(f"A {kind} cannot be stopped.", hint=f"Name one of {', '.join(KINDS)}.")
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot be the name of a {kind}.", hint="Check the spelling.")

    def work(connection: Connection) -> Change:
        repository = hub.signing(connection)
        touched, made = [], 0
        for group in chosen_groups(connection, only):
            before = stopped_in(connection, group)
            after = _with(before, kind, name, stopping=stopping)
            if after == before:
                continue
            text = json.dumps(after.as_dict())
            connection.execute(update(groups).where(groups.c.name == group).values(stopped=text))
            made += assign_again(hub, connection, repository, group=group)
            touched.append(group)
        if not touched:
            raise _nothing(kind, name, stopping=stopping)
        return Change(tuple(touched), made)

    return hub.change(
        who,
        f"{kind}.{'stop' if stopping else 'unstop'}",
        about=name,
        detail=lambda change: {"groups": list(change.groups)},
        work=work,
    )


def _with(stopped: Stopped, kind: str, name: str, *, stopping: bool) -> Stopped:
    tree = stopped.as_dict()
    rest = [each for each in tree[f"{kind}s"] if each != name]
    return Stopped.from_dict({**tree, f"{kind}s": [*rest, name] if stopping else rest})


def _nothing(kind: str, name: str, *, stopping: bool) -> ConfigError:
    if stopping:
        return ConfigError(
            f"The {kind} {name} is stopped there already.", hint="Nothing had to be changed."
        )
    return ConfigError(
        f"The {kind} {name} is not stopped there.", hint="See `edge-hub status` for what is."
    )
