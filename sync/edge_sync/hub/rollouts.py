"""Rollouts: a policy goes out wave by wave, and comes back by itself where a wave is bad.

Guarantees: a transition is one transaction with its audit entry, and is made only from the state it
was judged in, so that the hub may die between any two and several may take the same step at once; a
group has one rollout at a time; revisions only rise, a return to the last good content included.
Pausing stops judgements and waves; devices of waves that have begun still get the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, func, select

from edge.errors import ConfigError
from edge_sync.hub.assigning import (
    assign_group,
    chosen_groups,
    common_serial,
    highest_in,
    require_no_rollout,
    revision_of,
)
from edge_sync.hub.home import Hub
from edge_sync.hub.observed import Observed, observe, read_sums
from edge_sync.hub.returning import give_back, make_common
from edge_sync.hub.revisions import find
from edge_sync.hub.rollout_record import (
    Rollout,
    Stale,
    add,
    from_row,
    read,
    require_same,
    write,
)
from edge_sync.rollout.evidence import gather, online
from edge_sync.rollout.judgement import Advance, Halt, Wait, judge
from edge_sync.rollout.terms import Terms, next_look_s
from edge_sync.rollout.waves import (
    Wave,
    announcement,
    choose_id,
    parse_waves,
)
from edge_sync.store.schema import rollouts

OPEN = ("running", "paused")
WHO = "rollout"
"""Who stands in the audit log for what a judgement did."""
_LOOKED_AT_A_SECOND = 2_000.0


def start(
    hub: Hub,
    revision: int,
    *,
    who: str,
    names: Sequence[str] | None = None,
    waves: str = "5,25,100",
    terms: Mapping[str, Any] | None = None,
) -> Rollout:
    """Begin to roll a published policy out, with its first wave.

    Args:
        hub: the hub, open.
        revision: of the policy.
        who: for the audit log.
        names: of groups; all for ``None``.
        waves: see ``parse_waves``.
        terms: those that are not to be as usual, see ``Terms``.

    Raises:
        ConfigError: no such revision or group, a rollout is under way there, a group has this
            revision or a newer one, or the waves or terms are wrong.

    """
    planned, agreed = parse_waves(waves), Terms.from_dict(terms or {})

    def work(connection: Connection) -> Rollout:
        find(connection, revision)
        chosen = chosen_groups(connection, names)
        _require(connection, revision, chosen, planned)
        bare = Rollout(
            id=0,
            revision=revision,
            previous=revision_of(connection, common_serial(connection, chosen[0])),
            restores=None,
            groups=tuple(chosen),
            waves=planned,
            terms=agreed,
            state="running",
            wave=0,
            wave_since=hub.clock(),
            reason="",
            progress={},
            serials={},
            created_by=who[:64],
            created_at=hub.clock(),
            ended_at=None,
        )
        return _begin(hub, connection, bare)

    return hub.change(
        who,
        "rollout.start",
        about=lambda made: f"rollout {made.id}",
        detail=lambda made: {
            "revision": revision,
            "previous": made.previous,
            "groups": list(made.groups),
            "waves": [str(wave) for wave in planned],
            "terms": dict(terms or {}),
        },
        work=work,
    )


def _require(
    connection: Connection, revision: int, names: Sequence[str], waves: Sequence[Wave]
) -> None:
    if not names:
        raise ConfigError("There is no group to roll out to.", hint="Run `edge-hub groups add`.")
    require_no_rollout(connection, names)
    for name in names:
        held = highest_in(connection, name)
        if held >= revision:
            raise ConfigError(
                f"Group {name} has revision {held}; devices refuse to go to {revision}.",
                hint=f"Publish the content of {revision} anew: `edge-hub policy restore`.",
            )
    unknown = {name for wave in waves for name in wave.groups} - set(names)
    if unknown:
        raise ConfigError(
            f"The waves name {', '.join(sorted(unknown))}, not of this rollout.",
            hint="Name groups of the rollout in its waves.",
        )


def _begin(hub: Hub, connection: Connection, bare: Rollout) -> Rollout:
    """Sign its assignments, choose its id, and write it down with its first wave begun."""
    now, repository, serials = bare.wave_since, hub.signing(connection), {}
    for name in bare.groups:
        old = common_serial(connection, name)
        new = assign_group(
            hub, connection, repository, group=name, revision=bare.revision, common=False
        )
        serials[name] = {"old": old, "new": new}
    fleet = _observe(connection, bare)
    on = fleet.columns.last_seen >= now - bare.terms.grace_s
    known = [(name, "", bool(each)) for name, each in zip(fleet.ids, on, strict=True)]
    last = connection.execute(select(func.max(rollouts.c.id))).scalar() or 0
    made = replace(bare, id=choose_id(last, bare.waves, known), serials=serials)
    seen = fleet.seated(made.waves, rollout=made.id)
    size = int((seen.columns.wave == 0).sum())
    begun = replace(made, progress=_fresh(made, seen, [now]), reason=announcement(0, size))
    add(connection, begun)
    return begun


def _fresh(rollout: Rollout, seen: Observed, starts: Sequence[float]) -> dict[str, Any]:
    wave = len(starts) - 1
    expected = online(seen.columns, rollout.terms, wave=wave, now=starts[-1])
    return {"starts": list(starts), "expected": expected, "paused_s": 0.0, "looked_s": 0.0}


def pause(hub: Hub, rollout_id: int, *, who: str, reason: str = "") -> Rollout:
    """Stop waves and judgements until it is resumed.

    Raises:
        ConfigError: there is none of this number, or it is not running.

    """
    told = reason.strip() or f"Paused by {who}."

    def change(_: Connection, old: Rollout) -> Rollout:
        progress = {**old.progress, "paused_at": hub.clock()}
        return replace(old, state="paused", reason=told, progress=progress)

    return _by_hand(hub, rollout_id, "pause", ("running",), who=who, change=change)


def resume(hub: Hub, rollout_id: int, *, who: str) -> Rollout:
    """Go on after a pause; the time of the pause counts for no deadline.

    Raises:
        ConfigError: there is none of this number, or it is not paused.

    """

    def change(_: Connection, old: Rollout) -> Rollout:
        progress = dict(old.progress)
        progress["paused_s"] += max(0.0, hub.clock() - progress.pop("paused_at"))
        return replace(old, state="running", reason=f"Resumed by {who}.", progress=progress)

    return _by_hand(hub, rollout_id, "resume", ("paused",), who=who, change=change)


def abort(hub: Hub, rollout_id: int, *, who: str, reason: str = "") -> Rollout:
    """End it and bring back what its groups had before.

    Raises:
        ConfigError: there is none of this number, or it has ended.

    """
    told = reason.strip() or f"Aborted by {who}."

    def change(connection: Connection, old: Rollout) -> Rollout:
        return _returned(hub, connection, replace(old, state="aborted", reason=told))

    return _by_hand(hub, rollout_id, "abort", OPEN, who=who, change=change)


def get(hub: Hub, rollout_id: int | None = None) -> Rollout:
    """Return a rollout, the newest for ``None``.

    Raises:
        ConfigError: there is none.

    """
    with hub.store.reading() as connection:
        return read(connection, rollout_id)


def list_rollouts(hub: Hub, *, limit: int = 50) -> list[Rollout]:
    """Return rollouts, the newest first."""
    query = select(rollouts).order_by(rollouts.c.id.desc()).limit(limit)
    with hub.store.reading() as connection:
        return [from_row(dict(row)) for row in connection.execute(query).mappings()]


def step(hub: Hub) -> list[Rollout]:
    """Judge what is due, and return the rollouts that went on or ended.

    Any process may call it at any time, as often as it likes; the server does every second.

    Raises:
        StoreError: the database failed; the step is made at the next call.

    """
    query = select(rollouts).where(rollouts.c.state == "running").order_by(rollouts.c.id)
    with hub.store.reading() as connection:
        running = [from_row(dict(row)) for row in connection.execute(query).mappings()]
    changed = [_judged(hub, one) for one in running if _elapsed(one, hub.clock()) >= _due(one)]
    return [one for one in changed if one is not None]


def _elapsed(rollout: Rollout, now: float) -> float:
    return now - rollout.wave_since - float(rollout.progress["paused_s"])


def _due(rollout: Rollout) -> float:
    """Return the age of the wave at the next look; large fleets take longer to look at."""
    looking_s = float(rollout.progress.get("devices", 0)) / _LOOKED_AT_A_SECOND
    return next_look_s(float(rollout.progress["looked_s"])) + looking_s


def _judged(hub: Hub, rollout: Rollout) -> Rollout | None:
    """Judge one rollout and make the step that follows; ``None`` where it waits."""
    now = hub.clock()
    with hub.store.reading() as connection:
        seen = _observe(connection, rollout)
        key = {"rollout": rollout.id, "revision": rollout.revision}
        sums = read_sums(connection, seen, starts=rollout.starts, **key)
    evidence = gather(
        seen.columns,
        sums,
        rollout.terms,
        revision=rollout.revision,
        starts=rollout.starts,
        last=rollout.wave == len(rollout.waves) - 1,
        expected=int(rollout.progress["expected"]),
        paused_s=float(rollout.progress["paused_s"]),
        looked_s=float(rollout.progress["looked_s"]),
        now=now,
    )
    found = judge(evidence, rollout.terms)
    kept = {**rollout.progress, **found.figures, "looked_s": evidence.elapsed_s}
    judged = replace(rollout, reason=found.reason, progress=kept)
    try:
        return _made(hub, rollout, judged, found, now)
    except Stale:
        return None


def _made(
    hub: Hub, before: Rollout, judged: Rollout, found: Advance | Wait | Halt, now: float
) -> Rollout | None:
    """Make the step that was judged, in one transaction."""
    if isinstance(found, Wait):
        hub.store.write(lambda connection: write(connection, judged, before=before))
        return None
    what = "halt" if isinstance(found, Halt) else "advance"

    def work(connection: Connection) -> Rollout:
        require_same(connection, before)
        if isinstance(found, Halt):
            after = _returned(hub, connection, replace(judged, state="halted"))
        elif judged.wave == len(judged.waves) - 1:
            after = _done(hub, connection, replace(judged, state="done", ended_at=now))
        else:
            after = _next(connection, judged, now)
        write(connection, after, before=before)
        return after

    return hub.change(
        WHO,
        f"rollout.{what}",
        about=f"rollout {before.id}",
        detail=lambda after: {
            "wave": before.wave + 1,
            "state": after.state,
            "reason": found.reason,
            "restored_as": after.restores,
        },
        work=work,
    )


def _next(connection: Connection, judged: Rollout, now: float) -> Rollout:
    """Return the rollout with its next wave begun."""
    starts, wave = [*judged.starts, now], judged.wave + 1
    seen = _observe(connection, judged)
    size = int((seen.columns.wave <= wave).sum())
    reason = f"{judged.reason} {announcement(wave, size)}"
    progress = {**judged.progress, **_fresh(judged, seen, starts)}
    return replace(judged, wave=wave, wave_since=now, reason=reason, progress=progress)


def _done(hub: Hub, connection: Connection, judged: Rollout) -> Rollout:
    """Make the new assignment that of everyone in the groups."""
    for name in judged.groups:
        new = read(connection, judged.id).serials[name]["new"]
        make_common(hub, connection, group=name, serial=new, who=WHO)
    return judged


def _returned(hub: Hub, connection: Connection, ended: Rollout) -> Rollout:
    """Give every group what it had before, and return the ended rollout."""
    why = f"Returns from revision {ended.revision}: rollout {ended.id} {ended.state}"
    restored = give_back(hub, connection, ended, who=WHO, why=why)
    return replace(ended, restores=restored, ended_at=hub.clock())


def _by_hand(
    hub: Hub,
    rollout_id: int,
    verb: str,
    states: Sequence[str],
    *,
    who: str,
    change: Callable[[Connection, Rollout], Rollout],
) -> Rollout:
    def work(connection: Connection) -> Rollout:
        old = read(connection, rollout_id)
        if old.state not in states:
            raise ConfigError(
                f"Rollout {old.id} is {old.state}; only one that is {' or '.join(states)} can be "
                f"taken to {verb}.",
                hint="See `edge-hub rollout status`.",
            )
        new = change(connection, old)
        write(connection, new, before=old)
        return new

    return hub.change(
        who,
        f"rollout.{verb}",
        about=f"rollout {rollout_id}",
        detail=lambda new: {
            "wave": new.wave + 1,
            "state": new.state,
            "reason": new.reason,
            "restored_as": new.restores,
        },
        work=work,
    )


def _observe(connection: Connection, rollout: Rollout) -> Observed:
    return observe(
        connection,
        rollout=rollout.id,
        revision=rollout.revision,
        names=rollout.groups,
        waves=rollout.waves,
    )
