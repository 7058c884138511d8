"""``edge queue drop``: gives up on tasks that wait."""

from __future__ import annotations

from typing import Annotated

import typer

import edge
from edge.cli import show
from edge.cli.run import AsJson, Pack, State
from edge.errors import InputError


def drop(
    task_ids: Annotated[
        list[str] | None, typer.Argument(help="Ids, or the first characters of them.")
    ] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Drop all that wait or were given up.")
    ] = False,
    pack: Pack = "kiosk",
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Delete tasks that wait or were given up, with their texts; answers stay."""
    if bool(task_ids) == everything:
        raise InputError("Name the tasks to drop, or pass --all.", hint="See `edge queue list`.")
    with edge.open(pack, state=state, offline=True) as runtime:
        queue = runtime.book.queue
        chosen = [queue.resolve(each) for each in task_ids or ()]
        count = queue.drop(None if everything else chosen)
    if as_json:
        show.print_json({"dropped": count})
    else:
        typer.echo(f"{count} dropped")
