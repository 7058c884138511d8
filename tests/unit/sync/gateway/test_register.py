import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge.errors import StoreError
from edge_sync.gateway.book import Book
from edge_sync.gateway.refusals import Refused
from edge_sync.gateway.register import Register, Turns

from .conftest import NOW, admitted, ask, ident, lease

SYNC = Path(__file__).resolve().parents[4] / "sync"


def standing(register, name="lease"):
    return register.write(lambda book: book.standing(ident(name)))


def test_threads_together_hold_no_more_than_the_lease(register):
    taken = []

    def work(thread):
        for at in range(40):
            name = f"{thread}.{at}"
            asked = ask(name, 3)
            try:
                register.write(lambda book, asked=asked: book.hold(asked))
            except Refused:
                continue
            taken.append(name)
            if at % 2:
                register.write(lambda book, name=name: book.settle(ident(name), 1, now=NOW))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    register.write(Book.check)
    found = standing(register)
    assert 97 < found.used_microusd <= 100
    rows = register.write(lambda book: book.rows(after=0, limit=1_000))
    assert {row["hold_id"] for row in rows} == {ident(name) for name in taken}


def test_turns_of_a_loop_share_commits_and_tell_each_its_own(register):
    async def work():
        turns = Turns(register)
        asks = [ask(at, 3) for at in range(50)]
        outcomes = await asyncio.gather(
            *(turns.write(lambda book, each=each: book.hold(each)) for each in asks),
            return_exceptions=True,
        )
        turns.close()
        return outcomes

    commits = []
    commit = register.commit
    register.commit = lambda: (commits.append(1), commit())
    outcomes = asyncio.run(work())
    assert [outcome is None for outcome in outcomes] == [True] * 33 + [False] * 17
    assert {outcome.code for outcome in outcomes[33:]} == {"exhausted"}
    assert len(commits) <= 2
    assert standing(register).held_microusd == 99


def test_a_write_that_fails_fails_alone(register):
    def bad(book):
        book.hold(ask("bad", 5))
        raise ValueError("no")

    outcomes = register.begin([lambda book: book.hold(ask("a")), bad, lambda book: 7])
    register.commit()
    assert [result for result, _ in outcomes] == [None, None, 7]
    assert isinstance(outcomes[1][1], StoreError)
    assert standing(register).held_microusd == 10


def test_a_commit_that_fails_leaves_nothing(register):
    outcomes = register.begin([lambda book: book.hold(ask("a"))])
    assert outcomes == [(None, None)]
    register._connection.execute("ROLLBACK")  # as SQLite does by itself on a full disk
    with pytest.raises(StoreError):
        register.commit()
    assert standing(register) is None
    register.write(lambda book: book.hold(ask("b")))
    assert standing(register).held_microusd == 10


def test_one_process_has_the_file(register):
    command = (
        "import sys; from pathlib import Path;"
        "from edge_sync.gateway.register import Register; Register.open(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, str(register.path)],
        env={**os.environ, "PYTHONPATH": str(SYNC)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "StoreError" in done.stderr


def test_a_register_that_does_not_add_up_is_not_opened(memory_path):
    path = memory_path / "bad.db"
    register = admitted(path)
    register.write(lambda book: book.hold(ask()))
    register.write(lambda book: book._run("UPDATE leases SET held = held - 1"))
    register.close()
    with pytest.raises(StoreError, match="does not add up"):
        Register.open(path)


# Prints each hold and settle once it is on disk, from four threads, until it is killed.
CRASHING = """
import sys, threading
from pathlib import Path
from edge_sync.gateway.records import Ask
from edge_sync.gateway.register import Register
from edge_sync.money.lease import Lease
register = Register.open(Path(sys.argv[1]))
register.write(lambda book: book.fence("hub", 1))
lease = Lease(
    sys.argv[3], "fleet", "total", "d" * 32, "pool", 1, 1_000_000, 2_000, 1, "k", "0" * 128
)
def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()
def work(thread):
    at = 0
    while True:
        at += 1
        hold = f"{sys.argv[2]}{thread:02x}{at:06x}".zfill(32)
        register.write(lambda book: book.hold(Ask(lease, "hub", hold, "r", 7, 1.0)))
        say("held", hold)
        if at % 3:
            register.write(lambda book: book.settle(hold, at % 8, now=1.0))
            say("settled", hold, at % 8)
for thread in range(4):
    threading.Thread(target=work, args=(thread,)).start()
"""


def test_killed_in_a_loop_no_acknowledged_hold_or_settle_is_missing(memory_path):
    path, draw = memory_path / "gateway.db", random.Random(7)  # noqa: S311
    told = []
    for round_ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", CRASHING, str(path), f"{round_:02x}", ident("lease")],
            env={**os.environ, "PYTHONPATH": str(SYNC)},
            stdout=subprocess.PIPE,
            text=True,
        )
        told += [process.stdout.readline().split() for _ in range(draw.randrange(5, 60))]
        process.send_signal(signal.SIGKILL)
        told += [line.split() for line in process.stdout.read().splitlines(keepends=True)
                 if line.endswith("\n")]  # fmt: skip
        process.stdout.close()
        process.wait()
        register = Register.open(path)
        rows = register.write(lambda book: book.rows(after=0, limit=100_000))
        found = register.write(lambda book: book.standing(ident("lease")))
        register.close()
        by_id = {row["hold_id"]: row for row in rows}
        for what, hold, *actual in told:
            assert hold in by_id
            if what == "settled":
                assert (by_id[hold]["state"], by_id[hold]["actual"]) == (
                    "settled",
                    min(7, int(actual[0])),
                )
        assert found.used_microusd <= found.amount_microusd
        assert {row["state"] for row in rows} <= {"settled", "unclear"}
    assert len(told) > 25


def test_leases_are_told_apart(register):
    register.write(lambda book: book.hold(ask("a", of=lease("one"))))
    register.write(lambda book: book.hold(ask("b", of=lease("two"))))
    assert [standing(register, name).held_microusd for name in ("one", "two")] == [10, 10]
    totals = register.write(lambda book: book.totals())
    assert (totals["held_microusd"], totals["leases"], totals["open"]) == (20, 2, 2)
