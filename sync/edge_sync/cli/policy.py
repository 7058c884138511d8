"""``edge-hub policy``: published, shown, compared, brought back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from edge.cli import show
from edge.errors import ConfigError, InputError
from edge.overlay import Change
from edge_sync.cli import rehearsal
from edge_sync.cli.common import (
    AsJson,
    Groups,
    Home,
    Styled,
    Yes,
    ago,
    confirm,
    count,
    day_time,
    facts,
    opened,
    table,
    told,
    who,
)
from edge_sync.hub import policies, revisions, rollouts
from edge_sync.hub.assigning import chosen_groups, require_no_rollout
from edge_sync.hub.home import Hub
from edge_sync.hub.policies import Checked
from edge_sync.hub.revisions import Published
from edge_sync.rollout.waves import parse_waves

app = typer.Typer(no_args_is_help=True)
MAX_BYTES = 1_000_000
_SHOWN = 48
_NONE = "No policies yet: edge-hub policy publish FILE --message WHY"
_Message = Annotated[str, typer.Option("--message", "-m", help="Why, for people.")]
_Waves = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Roll out by waves, as 5,25,100 or lab,25,100."),
]
_Now = Annotated[bool, typer.Option("--now", help="All devices of the groups at once.")]
_PACKS = "A pack that devices run, by name or file; may be given again. As reported without."


@app.command("publish")
def publish(
    file: Annotated[Path, typer.Argument(help="The policy, in YAML.")],
    *,
    message: _Message,
    group: Groups = None,
    waves: _Waves = None,
    now: _Now = False,
    pack: Annotated[Optional[list[str]], typer.Option(help=_PACKS)] = None,  # noqa: UP045
    traces: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A state folder with recorded tasks to simulate."),
    ] = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Check a policy, show what it changes, ask, sign and publish it.

    With --waves or --now it goes out; without, edge-hub rollout start does it later.
    """
    text = _read(file)
    with opened(home) as hub, _refusals_noted(hub, file.name):
        names = _targets(hub, group, waves=waves, now=now)
        checked = policies.check(hub, text, what=file.name, packs=pack or [])
        old = revisions.newest(hub)
        changes = policies.changes(old, checked)
        tried = rehearsal.rehearse(checked.packs.values(), traces) if traces else []
        if not as_json:
            _print_checked(old, checked, changes)
            if traces:
                rehearsal.print_rehearsal(tried)
        confirm(f"Publish{_where(names, waves=waves, now=now)}?", yes=yes)
        at_once = names if now else []
        made = policies.publish(hub, checked, message=message, who=who(), at_once=at_once)
        rollout = _roll_out(hub, made, group, waves)
    if as_json:
        show.print_json({**_plain(made), "changes": _listed(changes), "rollout": rollout})
        return
    _print_made(made, names, rollout=rollout, now=now)


@app.command("list")
def list_policies(
    *,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 50,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show published policies, the newest first."""
    with opened(home) as hub:
        found = revisions.list_policies(hub, limit=limit)
        run_by, now = revisions.groups_by_revision(hub), hub.clock()
    if as_json:
        for each in found:
            show.print_json({**_plain(each), "groups": run_by.get(each.revision, [])})
        return
    rows = (
        (
            each.revision,
            ago(each.created_at, now),
            each.author,
            ", ".join(run_by.get(each.revision, [])) or "-",
            each.message,
        )
        for each in found
    )
    table("", ("revision>", "published", "by", "run by", "message"), rows, empty=_NONE)


@app.command("show")
def show_policy(
    revision: Annotated[Optional[int], typer.Argument(help="The newest without.")] = None,  # noqa: UP045
    *,
    source: Annotated[bool, typer.Option("--source", help="The YAML alone, to save it.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show one policy: who published it when and why, and its text."""
    with opened(home) as hub:
        found = revisions.get(hub, revision)
        run_by, now = revisions.groups_by_revision(hub), hub.clock()
    if as_json:
        more = {"source": found.source, "groups": run_by.get(found.revision, [])}
        show.print_json({**_plain(found), **more})
        return
    if source:
        typer.echo(found.source, nl=False)
        return
    facts(
        [
            ("revision", found.revision),
            ("message", found.message),
            ("restores", found.restores and f"revision {found.restores}"),
            ("by", found.author),
            ("at", f"{day_time(found.created_at)} ({ago(found.created_at, now)})"),
            ("run by", ", ".join(run_by.get(found.revision, [])) or "no group as a whole"),
            ("sha256", found.digest),
        ]
    )
    told("")
    told(found.source.rstrip())


@app.command("diff")
def diff(
    before: Annotated[int, typer.Argument(help="A revision; 0 for no policy.", min=0)],
    after: Annotated[int, typer.Argument(help="Another revision.", min=1)],
    *,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs between two policies, one key a line."""
    with opened(home) as hub:
        old = revisions.get(hub, before) if before else None
        changes = policies.changes(old, revisions.get(hub, after))
    if as_json:
        for each in _listed(changes):
            show.print_json(each)
        return
    _print_changes(f"From {_named(before)} to revision {after}", changes)


@app.command("restore")
def restore(
    revision: Annotated[int, typer.Argument(help="Whose content comes back.", min=1)],
    *,
    message: Annotated[Optional[str], typer.Option("--message", "-m", help="Why.")] = None,  # noqa: UP045
    group: Groups = None,
    waves: _Waves = None,
    now: _Now = False,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Publish the content of an earlier revision as a new one."""
    with opened(home) as hub:
        old, new = revisions.newest(hub), revisions.get(hub, revision)
        names = _targets(hub, group, waves=waves, now=now)
        changes = policies.changes(old, new)
        if not as_json:
            _print_changes(f"What changes from {_named(old.revision if old else 0)}", changes)
        confirm(f"Restore revision {revision}{_where(names, waves=waves, now=now)}?", yes=yes)
        at_once = names if now else []
        made = policies.restore(hub, revision, who=who(), message=message, at_once=at_once)
        rollout = _roll_out(hub, made, group, waves)
    if as_json:
        show.print_json({**_plain(made), "changes": _listed(changes), "rollout": rollout})
        return
    _print_made(made, names, rollout=rollout, now=now)


@contextmanager
def _refusals_noted(hub: Hub, name: str) -> Iterator[None]:
    """Put into the audit log why a policy was refused, before the admin is told."""
    try:
        yield
    except ConfigError as error:
        policies.note_refusal(hub, name, who=who(), reason=str(error))
        raise


def _read(path: Path) -> bytes:
    """Return a file's bytes, or one byte more than a policy may have."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _targets(hub: Hub, group: list[str] | None, *, waves: str | None, now: bool) -> list[str]:
    """Return the groups it is to go to, after a check of what goes with what."""
    if now and waves is not None:
        raise InputError("--now and --waves exclude each other.", hint="Pass one of them.")
    if group and not now and waves is None:
        raise InputError("--group says where, but nothing says how.", hint="Add --waves or --now.")
    if waves is not None:
        parse_waves(waves)
    if not now and waves is None:
        return []
    with hub.store.reading() as connection:
        names = chosen_groups(connection, group)
        require_no_rollout(connection, names)
    return names


def _roll_out(hub: Hub, made: Published, group: list[str] | None, waves: str | None) -> int | None:
    if waves is None:
        return None
    return rollouts.start(hub, made.revision, who=who(), names=group, waves=waves).id


def _where(names: Sequence[str], *, waves: str | None, now: bool) -> str:
    if now:
        return f", and let all devices of {', '.join(names)} run it at once"
    return f", and roll it out to {', '.join(names)} in waves of {waves}" if waves else ""


def _print_checked(old: Published | None, checked: Checked, changes: list[Change]) -> None:
    _print_changes(f"What changes from {_named(old.revision if old else 0)}", changes)
    told(f"It fits the pack {', the pack '.join(sorted(checked.packs))}.")
    if checked.strange:
        told(f"Not checked, not here: {', '.join(checked.strange)}. Pass them as --pack FILE.")


def _print_made(made: Published, names: Sequence[str], *, rollout: int | None, now: bool) -> None:
    told(f"Published revision {made.revision}.")
    if rollout is not None:
        told(f"Rollout {rollout} has begun: edge-hub rollout status {rollout}")
    elif now:
        told(f"All devices of {', '.join(names)} get it now.")
    else:
        told(f"No device runs it yet: edge-hub rollout start {made.revision}")


def _print_changes(title: str, changes: list[Change]) -> None:
    if not changes:
        told(f"{title}: nothing.")
        return
    rows = (
        (each.path, _value(each.before, "red"), _value(each.after, "green")) for each in changes
    )
    table(f"{title}: {count(len(changes), 'key')}", ("key", "before", "after"), rows)


def _value(value: Any, colour: str) -> Styled:
    from rich.markup import escape

    if value is None:
        return Styled("[dim]-[/dim]")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    short = " ".join(text.split())
    short = short if len(short) <= _SHOWN else f"{short[: _SHOWN - 1]}…"
    return Styled(f"[{colour}]{escape(short)}[/{colour}]")


def _named(revision: int) -> str:
    return f"revision {revision}" if revision else "the pack alone"


def _plain(made: Published) -> dict[str, Any]:
    hidden = {"source", "document"}
    return {name: value for name, value in asdict(made).items() if name not in hidden}


def _listed(changes: list[Change]) -> list[dict[str, Any]]:
    return [asdict(each) for each in changes]
