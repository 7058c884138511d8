"""``edge queue``: the tasks that wait for a network or a budget."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Annotated, Optional

import typer
from rich.markup import escape

import edge
from edge.cli import show
from edge.cli.run import AsJson, Offline, Pack, State
from edge.drain import Drained
from edge.store.queue import Queue

app = typer.Typer(no_args_is_help=True)
_SHOWN = 60
_ROWS = 100
_MOST = 2**31 - 1


@app.command("list")
def list_tasks(
    *,
    pack: Pack = "kiosk",
    state: State = None,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="How many at most; 100 in a table without, all as JSON."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the tasks in the queue, the oldest first."""
    most = min(limit or (_MOST if as_json else _ROWS), _MOST)
    with edge.open(pack, state=state, offline=True) as runtime:
        queued = runtime.book.queue.list(limit=most)
        more = sum(runtime.book.queue.counts().values()) - len(queued)
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
    if more > 0:
        typer.echo(f"{more} more; --limit {len(queued) + more} shows all.")


@app.command("retry")
def retry(
    task_ids: Annotated[
        list[str] | None, typer.Argument(help="Ids or their beginnings; all that are due without.")
    ] = None,
    *,
    pack: Pack = "kiosk",
    state: State = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Ask the cloud for waiting tasks; naming one also repeats an attempt with unclear outcome."""
    with edge.open(pack, state=state, offline=offline or None) as runtime:
        most = len(task_ids) if task_ids else _due(runtime.book.queue)
        drained = runtime.drain(task_ids or None, limit=most)
        pauses = runtime.book.queue.pauses()
    if as_json:
        due = pauses[0] if pauses else None
        show.print_json({**dataclasses.asdict(drained), "pausing": len(pauses), "due_at": due})
    elif drained == Drained() and not task_ids:
        typer.echo(f"Nothing was due{_until(pauses)}.")
    else:
        typer.echo(
            f"{drained.done} answered, {drained.waiting} still waiting, {drained.failed} given up"
        )


def _due(queue: Queue) -> int:
    """Return how many tasks may be due; one put back meanwhile is not asked for twice."""
    counts = queue.counts()
    return counts.get("waiting", 0) + counts.get("claimed", 0) - len(queue.pauses())


def _until(pauses: Sequence[float]) -> str:
    """Return how many wait in their pause, and until when by the local clock."""
    if not pauses:
        return ""
    times = [time.strftime("%H:%M", time.localtime(until)) for until in pauses]
    what = "1 waits" if len(times) == 1 else f"{len(times)} wait"
    first = "" if times[0] == times[-1] else ", the first"
    return f": {what}{first} until {times[0]}"
