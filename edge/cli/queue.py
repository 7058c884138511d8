"""``edge queue``: the tasks that wait for a network or a budget."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

import edge
from edge.cli import show
from edge.cli.run import AsJson, Offline, Pack, State

app = typer.Typer(no_args_is_help=True)
_SHOWN = 60


@app.command("list")
def list_tasks(*, pack: Pack = "kiosk", state: State = None, as_json: AsJson = False) -> None:
    """Show the tasks in the queue, the oldest first."""
    with edge.open(pack, state=state, offline=True) as runtime:
        queued = runtime.book.queue.list()
    if as_json:
        for entry in queued:
            show.print_json(
                {
                    "id": entry.id,
                    "task": entry.task,
                    "state": entry.state,
                    "reason": entry.reason,
                    "attempts": entry.attempts,
                    "error": entry.error,
                    "text": entry.text,
                    "provisional": entry.provisional,
                    "result": entry.result,
                }
            )
        return
    rows = (
        (
            entry.id[:12],
            entry.task,
            entry.state,
            entry.error or entry.reason,
            entry.attempts,
            escape(entry.text[:_SHOWN]),
        )
        for entry in queued
    )
    show.table("", ("id", "task", "state", "why", "attempts>", "text"), rows)


@app.command("retry")
def retry(
    task_ids: Annotated[
        list[str] | None, typer.Argument(help="Ids; all that are due without.")
    ] = None,
    *,
    pack: Pack = "kiosk",
    state: State = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Ask the cloud for waiting tasks; naming one also repeats an attempt with unclear outcome."""
    with edge.open(pack, state=state, offline=offline or None) as runtime:
        known = [entry.id for entry in runtime.book.queue.list(limit=100_000)]
        chosen = [full for short in task_ids or () for full in known if full.startswith(short)]
        drained = runtime.drain(chosen if task_ids else None)
    if as_json:
        show.print_json(
            {"done": drained.done, "waiting": drained.waiting, "failed": drained.failed}
        )
    else:
        typer.echo(
            f"{drained.done} answered, {drained.waiting} still waiting, {drained.failed} given up"
        )
