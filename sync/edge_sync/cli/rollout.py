"""``edge-hub rollout``: a published policy goes out by waves."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from edge.cli import show
from edge.errors import InputError
from edge_sync.cli.common import (
    AsJson,
    Groups,
    Home,
    Styled,
    ago,
    day_time,
    facts,
    opened,
    table,
    who,
)
from edge_sync.hub import rollouts
from edge_sync.hub.rollout_record import Rollout

app = typer.Typer(no_args_is_help=True)
_Id = Annotated[int, typer.Argument(help="Number of the rollout.")]
_Why = Annotated[str, typer.Option("--reason", help="Why, for people.")]
_NONE = "No rollouts yet: edge-hub rollout start REVISION"
_COLOURS = {
    "running": "green",
    "paused": "yellow",
    "halted": "red",
    "aborted": "red",
    "done": "green",
}


@app.command("start")
def start(
    revision: Annotated[int, typer.Argument(help="A published policy.", min=1)],
    *,
    group: Groups = None,
    waves: Annotated[
        str, typer.Option(help="Rising percentages, groups before them: lab,5,25,100.")
    ] = "5,25,100",
    term: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A limit of the judgement, as soak_s=3600; may be given again."),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Begin a rollout with its first wave."""
    terms = dict(_term(each) for each in term or [])
    with opened(home) as hub:
        made = rollouts.start(hub, revision, who=who(), names=group, waves=waves, terms=terms)
        _print(made, hub.clock(), as_json=as_json)


@app.command("status")
def status(
    rollout: Annotated[Optional[int], typer.Argument(help="The newest without.")] = None,  # noqa: UP045
    *,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show how a rollout stands, and why."""
    with opened(home) as hub:
        _print(rollouts.get(hub, rollout), hub.clock(), as_json=as_json)


@app.command("list")
def list_rollouts(
    *,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 50,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show rollouts, the newest first."""
    with opened(home) as hub:
        found, now = rollouts.list_rollouts(hub, limit=limit), hub.clock()
    if as_json:
        for each in found:
            show.print_json(each.summary())
        return
    rows = (
        (
            each.id,
            each.revision,
            state(each),
            f"{each.wave + 1} of {len(each.waves)}",
            ", ".join(each.groups),
            ago(each.created_at, now),
            each.created_by,
        )
        for each in found
    )
    table("", ("rollout>", "policy>", "state", "wave", "groups", "begun", "by"), rows, empty=_NONE)


@app.command("pause")
def pause(rollout: _Id, *, reason: _Why = "", home: Home = None, as_json: AsJson = False) -> None:
    """Begin no further wave until it is resumed."""
    with opened(home) as hub:
        _print(rollouts.pause(hub, rollout, who=who(), reason=reason), hub.clock(), as_json=as_json)


@app.command("resume")
def resume(rollout: _Id, *, home: Home = None, as_json: AsJson = False) -> None:
    """Go on after a pause."""
    with opened(home) as hub:
        _print(rollouts.resume(hub, rollout, who=who()), hub.clock(), as_json=as_json)


@app.command("abort")
def abort(rollout: _Id, *, reason: _Why = "", home: Home = None, as_json: AsJson = False) -> None:
    """End it, and bring the devices back to what they ran before."""
    with opened(home) as hub:
        _print(rollouts.abort(hub, rollout, who=who(), reason=reason), hub.clock(), as_json=as_json)


def state(rollout: Rollout) -> Styled:
    """Return the state in colour."""
    colour = _COLOURS.get(rollout.state, "yellow")
    return Styled(f"[{colour}]{rollout.state}[/{colour}]")


def _print(rollout: Rollout, now: float, *, as_json: bool) -> None:
    if as_json:
        show.print_json(rollout.summary())
        return
    facts(
        [
            ("rollout", rollout.id),
            ("state", state(rollout)),
            ("policy", _policies(rollout)),
            ("groups", ", ".join(rollout.groups)),
            ("why", rollout.reason),
            ("begun", f"{day_time(rollout.created_at)} by {rollout.created_by}"),
            ("ended", rollout.ended_at and day_time(rollout.ended_at)),
        ]
    )
    starts = rollout.starts
    rows = (
        (
            at + 1,
            str(wave),
            _progress(rollout, at),
            ago(starts[at], now) if at < len(starts) else "-",
        )
        for at, wave in enumerate(rollout.waves)
    )
    table("", ("wave>", "of devices>", "state", "begun"), rows)


def _policies(rollout: Rollout) -> str:
    before = f"revision {rollout.previous}" if rollout.previous else "the pack alone"
    back = f"; back as revision {rollout.restores}" if rollout.restores else ""
    return f"from {before} to revision {rollout.revision}{back}"


def _progress(rollout: Rollout, at: int) -> Styled:
    if at < rollout.wave or (at == rollout.wave and rollout.state == "done"):
        return Styled("[green]done[/green]")
    if at > rollout.wave:
        return Styled("[dim]-[/dim]")
    return state(rollout)


def _term(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError as error:
        raise InputError(
            f"--term {text} sets no number.", hint="Write it as soak_s=3600."
        ) from error
