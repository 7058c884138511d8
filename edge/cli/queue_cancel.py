"""``edge queue cancel``: gives up on tasks and keeps the record of it."""

from __future__ import annotations

from typing import Annotated

import typer

import edge
from edge.cli import show
from edge.cli.run import AsJson, Pack, State

_SAID = {
    "released": "cancelled; it is never sent",
    "in_flight": "cancelled while a pool is asked; its answer may be paid for and is not given out",
    "ended": "had ended before; nothing changed",
}


def cancel(
    task_ids: Annotated[
        list[str], typer.Argument(help="Ids, or the first characters of them; or trace ids.")
    ],
    *,
    pack: Pack = "kiosk",
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Cancel tasks: what waits is never sent, what is under way is not given out."""
    with edge.open(pack, state=state, offline=True) as runtime:
        found = {runtime.book.queue.find(each).id: None for each in task_ids}  # all or none
        outcomes = {task_id: runtime.cancel(task_id) for task_id in found}
    for task_id, outcome in outcomes.items():
        if as_json:
            show.print_json({"id": task_id, "outcome": outcome})
        else:
            typer.echo(f"{task_id[:12]} {_SAID[outcome]}")
