"""What does a call cost in the device's own books, and how much disk does a month offline take?

Money: one call is three commits (hold, sent, settled), each on disk when it returns (rollback
journal, synchronous=EXTRA), paid from a lease. A bare SQLite commit of one row with the same
settings is timed in turns with it. The books are filled first, so that sums have rows to add up.

Disk: 30 days without a hub at 1,000 tasks a day, of which 100 leave: 50 are answered by the pool,
through a lease, and 50 wait in the queue with a text of 200 characters. One task in a hundred is
corrected by a user. Every task leaves its trace, as a real one of the kiosk pack, with another id.
What is counted is the whole state folder. No answer cache is on.
"""

from __future__ import annotations

import argparse
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _common import Row, at_most, main

import edge
from edge.store.book import Book
from edge.store.db import Database, open_database
from edge.store.leases import Leases, Offer
from edge.store.states import States
from edge.store.traces import Traces

DAYS, TASKS, PAID, WAITING = 30, 1_000, 50, 50
DAY_S = 86_400.0
BEGAN = 1_780_000_000.0
TEXT = "is there a branch near the harbour that is open on sunday afternoon? " * 3
WORST, COST = 900, 120


def percentile(seconds: list[float], share: float) -> float:
    """Return the nearest rank in milliseconds."""
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))] * 1e3


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def give(folder: Path) -> None:
    """Put a lease in that pays for everything here."""
    leases = Leases.open(folder)
    leases.replace([Offer("a" * 32, "default", "", 10**12, BEGAN + 400 * DAY_S, "{}")])
    leases.close()


def pay(book: Book, *, trace_id: str) -> float:
    """Hold, send and settle; return the seconds of hold and settle alone."""
    began = time.perf_counter()
    hold = book.ledger.reserve(
        trace_id, task="assistant_intent", pool="default", worst_case_microusd=WORST, gateway=True
    )
    held = time.perf_counter()
    book.ledger.mark_sent(hold, b"x" * 600)
    sent = time.perf_counter()
    book.ledger.settle(hold, COST, tokens_in=80, tokens_out=4)
    return held - began + time.perf_counter() - sent


def bare(db: Database) -> None:
    """Commit one row."""
    with db.transaction() as connection:
        connection.execute("INSERT INTO rows VALUES (?)", (uuid.uuid4().hex,))


def money(folder: Path, calls: int) -> Iterator[Row]:
    """Time calls in turns with bare commits."""
    give(folder)
    db = open_database(folder / "bare.db", durable=True)
    with db.transaction() as connection:
        connection.execute("CREATE TABLE rows (x TEXT)")
    with Book.open(folder, cap_microusd=10**12, period="month") as book:
        with book.transaction():
            for _ in range(3_000):
                pay(book, trace_id=uuid.uuid4().hex)
        books, wholes, commits = [], [], []
        for _ in range(calls):
            began = time.perf_counter()
            books.append(pay(book, trace_id=uuid.uuid4().hex))
            wholes.append(time.perf_counter() - began)
            commits.append(timed(lambda: bare(db)))
    db.close()
    yield at_most("hold + settle, p99", percentile(books, 0.99), 12, "ms")
    yield Row("hold + settle, p50", round(percentile(books, 0.5), 3), "ms")
    yield Row("hold + sent + settle, p99", round(percentile(wholes, 0.99), 3), "ms")
    yield Row("a bare commit, p50", round(percentile(commits, 0.5), 3), "ms")
    yield Row("a bare commit, p99", round(percentile(commits, 0.99), 3), "ms")
    median = percentile(wholes, 0.5) / max(percentile(commits, 0.5), 1e-9)
    yield Row("hold + sent + settle in bare commits, p50", round(median, 2), "commits")


def a_trace(folder: Path) -> dict[str, Any]:
    """Return the trace of a real task."""
    with edge.open("kiosk", state=folder, offline=True) as runtime:
        result = runtime.run("assistant_intent", TEXT)
        trace = runtime.traces.get(result.trace_id)
    if trace is None:
        raise SystemExit("the task left no trace")
    trace.pop("seq", None)
    return trace


def month(folder: Path, days: int) -> None:
    """Fill a state folder with what so many days leave there."""
    give(folder)
    trace, now = a_trace(folder), [BEGAN]
    states = States.open(folder)
    with (
        Book.open(folder, cap_microusd=None, period="month", clock=lambda: now[0]) as book,
        Traces.open(folder) as traces,
    ):
        for day in range(days):
            now[0] = BEGAN + day * DAY_S
            ids = [uuid.uuid4().hex for _ in range(TASKS)]
            traces.append_all({**trace, "trace_id": each, "at": now[0]} for each in ids)
            for each in ids[:: TASKS // 10]:
                states.label(each, task="spam", right=False, source="user", at=now[0])
            with book.transaction():
                for each in ids[:PAID]:
                    pay(book, trace_id=each)
                for each in ids[PAID : PAID + WAITING]:
                    wait(book, each)
    states.close()


def wait(book: Book, trace_id: str) -> None:
    """Queue a task."""
    book.queue.put(
        "assistant_intent",
        text=TEXT[:200],
        payload={},
        reason="budget_exceeded",
        provisional="transfer",
        trace_id=trace_id,
    )


def sizes(folder: Path) -> dict[str, int]:
    """Return bytes by file."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


def disk(folder: Path, days: int) -> Iterator[Row]:
    """Measure what a month takes."""
    empty = folder / "empty"
    give(empty)
    a_trace(empty)
    before = sum(sizes(empty).values())
    month(folder / "full", days)
    after = sizes(folder / "full")
    whole = before + (sum(after.values()) - before) * DAYS / days
    yield at_most("state folder after 30 days offline", whole / 1e6, 50, "MB")
    for name, rows in (("traces.db", TASKS), ("money.db", PAID + WAITING)):
        each = (after[name] - sizes(empty).get(name, 0)) / (rows * days)
        yield Row(f"{name}, a row", round(each), "bytes")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows."""
    calls, days = (250, 6) if arguments.quick else (2_000, DAYS)
    with TemporaryDirectory(prefix="edge-ledger-") as folder:
        yield from money(Path(folder) / "money", calls)
        yield from disk(Path(folder) / "disk", days)


if __name__ == "__main__":
    main("ledger", measure)
