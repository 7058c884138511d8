"""The state folder under SIGKILL, a full disk, a read-only folder, garbage and a newer schema."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from edge.errors import BudgetExceeded, StoreError
from edge.store.book import Book
from edge.store.db import migrate, open_database
from edge.store.traces import Traces

CAP = 100
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")


def run_child(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def open_book(folder: Path) -> Book:
    return Book.open(folder, cap_microusd=CAP, period="total")


DYING = """
import os, signal, sys
from pathlib import Path
from edge.store.book import Book

folder, point = Path(sys.argv[1]), sys.argv[2]

def reached(name):
    print(name, flush=True)
    if name == point:
        os.kill(os.getpid(), signal.SIGKILL)

book = Book.open(folder, cap_microusd=100, period="total")
task_id = book.queue.put(
    "triage", text="hello", payload={}, reason="offline", provisional=None, trace_id="trace"
)
reached("put")
book.queue.claim()
reached("claim")
hold = book.ledger.reserve("trace", task="triage", pool="gpu", worst_case_microusd=60)
reached("reserve")
book.ledger.mark_sent(hold)
reached("mark_sent")
reached("answer")
with book.transaction():
    book.ledger.settle(hold, 25, tokens_in=1, tokens_out=1)
    reached("settle")
    book.queue.complete(task_id, {"value": "spam"})
    reached("complete")
reached("commit")
"""

# point of death -> (state of the hold, spent, held, state of the task, is its hold unclear)
OUTCOMES = {
    "put": (None, 0, 0, "waiting", False),
    "claim": (None, 0, 0, "waiting", False),
    "reserve": ("released", 0, 0, "waiting", False),
    "mark_sent": ("unclear", 0, 60, "waiting", True),
    "answer": ("unclear", 0, 60, "waiting", True),
    "settle": ("unclear", 0, 60, "waiting", True),
    "complete": ("unclear", 0, 60, "waiting", True),
    "commit": ("settled", 25, 0, "done", False),
}


@posix
@pytest.mark.parametrize("point", OUTCOMES)
def test_a_killed_process_loses_nothing_and_pays_once(tmp_path, point):
    child = run_child(DYING, tmp_path, point)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert child.stdout.split()[-1] == point
    state, spent, held, task_state, is_unclear = OUTCOMES[point]
    for _ in range(2):
        with open_book(tmp_path) as book:
            holds, (task,) = book.ledger.holds(), book.queue.list()
            assert [hold.state for hold in holds] == ([state] if state else [])
            assert (book.ledger.spent_microusd(), book.ledger.held_microusd()) == (spent, held)
            assert (task.state, task.text) == (task_state, "hello")
            assert task.unclear_hold_id == (holds[0].id if is_unclear else None)
            with pytest.raises(BudgetExceeded):
                book.ledger.reserve(
                    "u", task="t", pool="p", worst_case_microusd=CAP - spent - held + 1
                )


@posix
def test_what_a_killed_process_claimed_is_claimable_by_one_that_was_open_all_along(tmp_path):
    with open_book(tmp_path) as book:
        assert run_child(DYING, tmp_path, "mark_sent").returncode == -signal.SIGKILL
        (task,) = book.queue.claim()
        assert (task.attempts, task.unclear_holds) == (2, 1)
        assert list((tmp_path / "owners").iterdir()) == [
            tmp_path / "owners" / f"{book._file.owner}.lock"
        ]


BUSY = """
import sys
from pathlib import Path
from edge.store.book import Book

book = Book.open(Path(sys.argv[1]), cap_microusd=10**9, period="total")
for number in range(10**6):
    task_id = book.queue.put(
        "t", text="x" * 5000, payload={}, reason="r", provisional=None, trace_id=str(number)
    )
    hold = book.ledger.reserve(str(number), task="t", pool="p", worst_case_microusd=10)
    book.ledger.mark_sent(hold)
    with book.transaction():
        book.ledger.settle(hold, 7, tokens_in=1, tokens_out=1)
        book.queue.complete(task_id, {})
    print(number, flush=True)
"""


@posix
@pytest.mark.parametrize("after_lines", [1, 4, 9])
def test_a_kill_at_any_moment_keeps_what_was_acknowledged(tmp_path, after_lines):
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", BUSY, str(tmp_path)], stdout=subprocess.PIPE
    ) as child:
        lines = [child.stdout.readline() for _ in range(after_lines)]
        killer = threading.Timer(0.002 * after_lines, child.kill)
        killer.start()
        lines += child.stdout.readlines()
        killer.join()
    assert child.returncode == -signal.SIGKILL
    acknowledged = int([line for line in lines if line.endswith(b"\n")][-1]) + 1
    with Book.open(tmp_path, cap_microusd=10**9, period="total") as book:
        settled, done = book.ledger.holds("settled"), book.queue.counts()["done"]
        assert len(settled) == done
        assert acknowledged <= done <= acknowledged + 1
        assert book.ledger.spent_microusd() == 7 * done
        assert len(book.ledger.holds()) - done <= 1
        with book._file.db.reading() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


FULL = """
import resource, signal, sys
from pathlib import Path
from edge.errors import StoreError
from edge.store.book import Book
from edge.store.traces import Traces

folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
book = Book.open(folder, cap_microusd=10**9, period="total")
traces = Traces.open(folder)
limit = (folder / "money.db").stat().st_size + 40_000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

def until_full(step):
    for number in range(2000):
        try:
            step(number)
        except StoreError as error:
            print(number, error, flush=True)
            return
    raise SystemExit("the disk never filled")

until_full(lambda n: book.queue.put(
    "t", text="x" * 3000, payload={}, reason="r", provisional=None, trace_id=str(n)))
assert len(book.queue.list(limit=10_000)) == book.queue.counts()["waiting"]
until_full(lambda n: book.ledger.reserve(
    "x" * 3000, task="t", pool="p", worst_case_microusd=1))
until_full(lambda n: traces.append(
    {"trace_id": str(n), "at": 0.0, "task": "t", "route": "local", "text": "x" * 3000}))
print(len(book.ledger.holds()), book.ledger.held_microusd(), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
book.queue.put("t", text="", payload={}, reason="r", provisional=None, trace_id="after")
traces.append({"trace_id": "after", "at": 0.0, "task": "t", "route": "local"})
"""


@posix
def test_a_full_disk_changes_nothing_and_work_goes_on_once_there_is_room(tmp_path):
    child = run_child(FULL, tmp_path)
    assert child.returncode == 0, child.stderr
    queue_line, ledger_line, traces_line, sums = child.stdout.splitlines()
    put, reserved, traced = (
        int(line.split()[0]) for line in (queue_line, ledger_line, traces_line)
    )
    assert put > 0
    assert "money.db cannot be used: the disk " in queue_line
    assert "Free some space" in queue_line
    assert "traces.db cannot be used: the disk " in traces_line
    assert sums == f"{reserved} {reserved}"
    with open_book(tmp_path) as book, Traces.open(tmp_path) as traces:
        assert book.queue.counts()["waiting"] == put + 1
        assert {hold.state for hold in book.ledger.holds()} <= {"released"}
        assert traces.summary()["count"] == traced + 1


READ_ONLY = """
import os, sys
from pathlib import Path
from edge.errors import StoreError
from edge.store.book import Book
from edge.store.traces import Traces

if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
for store in (lambda path: Book.open(path, cap_microusd=1, period="day"), Traces.open):
    try:
        store(Path(sys.argv[1]))
    except StoreError as error:
        print(error)
    else:
        raise SystemExit("it was written")
"""


@pytest.fixture
def read_only_folder():
    folder = Path(tempfile.mkdtemp())
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


@posix
@pytest.mark.parametrize("existing", [False, True])
def test_a_read_only_folder_is_named_and_left_alone(read_only_folder, existing):
    folder = read_only_folder
    if existing:
        open_book(folder).close()
        Traces.open(folder).close()
        for path in [*folder.rglob("*.db"), *folder.rglob("*.lock")]:
            path.chmod(0o444)
        (folder / "owners").chmod(0o555)
    folder.chmod(0o555)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    child = run_child(READ_ONLY, folder)
    assert child.returncode == 0, child.stderr + child.stdout
    money, traces = child.stdout.splitlines()
    assert str(folder / "money.db") in money
    assert str(folder / "traces.db") in traces
    assert "writable" in money
    assert "writable" in traces
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("opened", [open_book, Traces.open])
def test_a_file_in_the_place_of_the_folder_is_named(tmp_path, opened):
    place = tmp_path / "state"
    place.write_text("not a folder")
    with pytest.raises(StoreError, match="state is not a folder"):
        opened(place)
    assert place.read_text() == "not a folder"


@pytest.mark.parametrize(("name", "opened"), [("money.db", open_book), ("traces.db", Traces.open)])
@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_garbage_is_refused_and_not_overwritten(tmp_path, name, opened, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=f"{name} cannot be used.*never overwritten"):
        opened(tmp_path)
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize(("name", "opened"), [("money.db", open_book), ("traces.db", Traces.open)])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("INSERT INTO migrations VALUES (99, '_later')", "newer edge-runtime"),
        ("UPDATE migrations SET name = '_other' WHERE number = 1", "'_other' as schema 1"),
    ],
)
def test_a_schema_from_elsewhere_is_refused(tmp_path, name, opened, change, named):
    opened(tmp_path).close()
    with sqlite3.connect(tmp_path / name) as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(StoreError, match=named):
        opened(tmp_path)


def test_a_failing_migration_leaves_the_file_at_the_one_before(tmp_path):
    def _first(tables):
        tables.create_table("a", {"id": int})

    def _second(tables):
        tables.create_table("b", {"id": int})
        tables.execute("INSERT INTO nowhere VALUES (1)")

    db = open_database(tmp_path / "x.db", durable=True)
    with pytest.raises(StoreError, match="nowhere"):
        migrate(db, [_first, _second])
    assert db.inspect()["rows"] == {"migrations": 1, "a": 0}
    with pytest.raises(StoreError, match="nowhere"):
        migrate(db, [_first, _second])
    migrate(db, [_first])
    db.close()


def test_a_file_locked_too_long_is_named_and_then_usable(tmp_path):
    path = tmp_path / "x.db"
    first = open_database(path, durable=True)
    second = open_database(path, durable=True, busy_timeout_s=0.05)
    with (
        first.transaction(),
        pytest.raises(StoreError, match="another process keeps it locked"),
        second.transaction(),
    ):
        pass
    with second.transaction() as connection:
        connection.execute("CREATE TABLE t (x)")
    first.close()
    second.close()


def test_an_inner_failure_undoes_the_inner_part_only(tmp_path):
    db = open_database(tmp_path / "x.db", durable=True)

    def fails() -> None:
        with db.transaction() as connection:
            connection.execute("INSERT INTO t VALUES (2)")
            raise KeyError

    with db.transaction() as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(KeyError):
            fails()
        connection.execute("INSERT INTO t VALUES (3)")
    assert [row["x"] for row in db.query("SELECT x FROM t")] == [1, 3]
    db.close()


def test_money_is_durable_and_private(tmp_path):
    with open_book(tmp_path / "a" / "b") as book:
        assert book.inspect()["journal_mode"] == "delete"
        assert book.inspect()["wal_reset_bug"] is False
        with book._file.db.reading() as connection:
            assert connection.execute("PRAGMA synchronous").fetchone() == (3,)
        if os.name == "posix":
            modes = {
                path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("a/b/**/*")
            }
            assert modes.pop("owners") == 0o700
            assert set(modes.values()) == {0o600}
