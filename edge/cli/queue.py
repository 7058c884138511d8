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
from edge.pack import find_pack, load_pack
from edge.store.queue import Queue
from edge.store.queued import QueuedTask

app = typer.Typer(no_args_is_help=True)
_SHOWN = 60
_ROWS = 100
_MOST = 2**31 - 1
_UNITS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))


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
        runtime.book.queue.expire()
        queued = runtime.book.queue.list(limit=most)
        more = sum(runtime.book.queue.counts().values()) - len(queued)
        left = runtime.book.ledger.leftover()
    if as_json:
        for entry in queued:
            show.print_json(
                {
                    "id": entry.id,
                    "task": entry.task,
                    "state": entry.state,
                    "reason": entry.reason,
                    "priority": entry.priority,
                    "answer_by": entry.answer_by,
                    "attempts": entry.attempts,
                    "error": entry.error,
                    "text": entry.text,
                    "provisional": entry.provisional,
                    "result": entry.result,
                    "late": entry.late,
                    "cost_microusd": entry.cost_microusd,
                }
            )
        return
    now = time.time()
    rows = (
        (
            entry.id[:12],
            entry.task,
            entry.state,
            entry.priority,
            _left(entry, now),
            _why(entry),
            escape(entry.text[:_SHOWN]),
        )
        for entry in queued
    )
    show.table("", ("id", "task", "state", "prio>", "left>", "why", "text"), rows)
    if more > 0:
        typer.echo(f"{more} more; --limit {len(queued) + more} shows all.")
    if left.synced:
        typer.echo(f"Left to spend: {show.dollars(left.remaining_microusd)}{left.known}.")
        for note in left.notes:
            typer.echo(note)


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
        unfinished = runtime.book.queue.unfinished()
    if as_json:
        due = pauses[0] if pauses else None
        show.print_json({**dataclasses.asdict(drained), "pausing": len(pauses), "due_at": due})
        return
    if drained == Drained() and not task_ids:
        typer.echo(f"Nothing was due{_until(pauses)}.")
    else:
        typer.echo(
            f"{drained.done} answered, {drained.waiting} still waiting, {drained.failed} given up"
            + (f", {drained.expired} expired" if drained.expired else "")
            + (f", {drained.cancelled} cancelled" if drained.cancelled else "")
        )
        for pool, why in drained.stopped.items():
            typer.echo(f"Pool {pool} was left alone after that: {why}.")
    own = load_pack(find_pack(pack)).name
    for name in sorted(unfinished.keys() - {own}):
        typer.echo(f"Of pack {name} {unfinished[name]} wait; name it with --pack to ask for them.")


def _why(entry: QueuedTask) -> str:
    """Return why a task is where it is, and how often it was tried."""
    tried = f" ({entry.attempts} tries)" if entry.attempts > 1 else ""
    return f"{entry.error or entry.reason}{tried}"


def _left(entry: QueuedTask, now: float) -> str:
    """Return how long an answer is still of use, in its two largest units; a dash for ever."""
    if entry.answer_by is None or entry.is_over:
        return "-"
    left_s = max(0, int(entry.answer_by - now))
    for unit_s, unit, below_s, below in _UNITS:
        if left_s >= unit_s:
            return f"{left_s // unit_s} {unit} {left_s % unit_s // below_s} {below}"
    return f"{left_s} s"


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
