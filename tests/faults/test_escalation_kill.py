"""A process killed at every point of an escalation: the money and the task are found again."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

import edge
from edge.cli.main import app
from edge.runtime import Drained

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL"),
    pytest.mark.timeout(60),
]

FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder in memory
TEXT, OTHER = "is the shop open on friday?", "where is the nearest shop?"
COST = 30 * 1 + 4 * 10
ANSWER = json.dumps(
    {
        "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 4},
    }
).encode()

# Dies right after the named step has returned, wherever that is.
CHILD = """
import os, signal, sys
from pathlib import Path
from edge.cloud.pool import Pool
from edge.pack import load_pack
from edge.runtime import Runtime

pack_file, folder, point, text = sys.argv[1:]

def reached(name):
    if name == point:
        os.kill(os.getpid(), signal.SIGKILL)

def watch(owner, method, name):
    step = getattr(owner, method)
    def watched(*arguments, **options):
        result = step(*arguments, **options)
        reached(name)
        return result
    setattr(owner, method, watched)

def open_pool(name):
    pool = Pool(name, pack.pools[name], env={})
    watch(pool, "complete", "answered")
    return pool

pack = load_pack(Path(pack_file))
with Runtime(pack, Path(folder), offline=False, open_pool=open_pool) as runtime:
    watch(runtime.book.queue, "claim", "claimed")
    watch(runtime.book.queue, "complete", "completed")
    watch(runtime.book.queue, "put", "queued")
    watch(runtime.book.ledger, "reserve", "reserved")
    watch(runtime.book.ledger, "mark_sent", "marked")
    watch(runtime.book.ledger, "settle", "settled")
    watch(runtime.book.ledger, "leave_unclear", "unclear")
    watch(runtime.traces, "append", "traced")
    runtime.run("reply", text) if text else runtime.drain()
    reached("returned")
"""


class Handler(BaseHTTPRequestHandler):
    """Answers, or kills its client: when asked, amid the answer, or right after it."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests += 1
        if self.server.point == "requested":
            return self.server.kill()
        half = len(ANSWER) // 2
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER[:half])
        if self.server.point == "half answered":
            return self.server.kill()
        self.wfile.write(ANSWER[half:])
        return self.server.kill() if self.server.point == "all sent" else None

    def log_message(self, *arguments):
        """Stay silent."""


class Server(HTTPServer):
    point, status, requests = "", 200, 0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.child, self.started = None, threading.Event()

    def kill(self):
        self.started.wait()
        os.kill(self.child.pid, signal.SIGKILL)


@pytest.fixture
def server():
    with Server() as opened:
        thread = threading.Thread(target=opened.serve_forever, args=(0.01,))
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir=FAST) as made:
        yield Path(made)


@pytest.fixture
def pack(server, tmp_path):
    document = {
        "name": "field",
        "version": 1,
        "budget": {"cap_usd": "0.010000", "period": "total"},
        "task_budgets": {"max_output_tokens": 16},
        "privacy": {"allow_cloud": "raw"},
        "pools": {
            "default": {
                "base_url": f"http://127.0.0.1:{server.server_port}/v1",
                "model": "small",
                "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 10},
            }
        },
        "tasks": {"reply": {"kind": "generate"}},
    }
    path = tmp_path / "pack.yaml"
    path.write_text(json.dumps(document), "utf-8")
    return path


def queue_one(pack, folder):
    with edge.open(pack, state=folder, offline=True) as runtime:
        return runtime.run("reply", TEXT).task_id


def die(server, pack, folder, point, text=""):
    """Run the child to its death."""
    server.point = point
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CHILD, str(pack), str(folder), point, text],
        stderr=subprocess.PIPE,
    ) as child:
        server.child = child
        server.started.set()
        _, told = child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL, told.decode()
    server.point = ""


@contextmanager
def reopened(server, pack, folder):
    """Yield the runtime of the next start; before and after, the books cover every request."""
    with edge.open(pack, state=folder, offline=False) as runtime:
        covers(runtime.book.ledger, server)
        yield runtime
        covers(runtime.book.ledger, server)


def covers(ledger, server):
    assert ledger.spent_microusd() + ledger.held_microusd() >= COST * server.requests


def money(runtime):
    """Return (states of the holds, spent, held in units of the worst case)."""
    ledger = runtime.book.ledger
    holds = ledger.holds()
    worst = holds[0].worst_case_microusd if holds else 1
    return [h.state for h in holds], ledger.spent_microusd(), ledger.held_microusd() / worst


def listed(pack, folder):
    shown = CliRunner().invoke(
        app, ["queue", "list", "--pack", str(pack), "--state", str(folder), "--json"]
    )
    assert shown.exit_code == 0
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    return [(row["id"], row["state"], row["text"]) for row in rows]


UNSENT = (["released"], 0, 0)
UNCLEAR = (["unclear"], 0, 1)
SETTLED = (["settled"], COST, 0)

# point of death -> (states of holds, spent, held), state of the task
DRAINING = {
    "claimed": (([], 0, 0), "waiting"),
    "reserved": (UNSENT, "waiting"),
    "marked": (UNCLEAR, "waiting"),
    "requested": (UNCLEAR, "waiting"),
    "half answered": (UNCLEAR, "waiting"),
    "answered": (UNCLEAR, "waiting"),
    "settled": (UNCLEAR, "waiting"),
    "completed": (UNCLEAR, "waiting"),
    "returned": (SETTLED, "done"),
}


@pytest.mark.parametrize("point", DRAINING)
def test_killed_while_draining(server, pack, folder, point):
    left, state = DRAINING[point]
    task_id = queue_one(pack, folder)
    die(server, pack, folder, point)
    for _ in range(2):
        with reopened(server, pack, folder) as runtime:
            assert money(runtime) == left
    assert listed(pack, folder) == [(task_id, state, TEXT)]
    asked = server.requests
    with reopened(server, pack, folder) as runtime:
        unclear = left == UNCLEAR
        free = state == "waiting" and not unclear
        assert runtime.drain() == Drained(done=free, failed=unclear)
        assert server.requests == asked + free
        assert runtime.drain() == Drained()
        # A person may decide to risk paying twice; the unclear hold stays on the books.
        assert runtime.drain([task_id]) == Drained(done=unclear)
        entry = runtime.book.queue.get(task_id)
        assert (entry.state, entry.result["text"]) == ("done", "yes")
        assert money(runtime)[1:] == (COST, left[2])


def test_killed_the_moment_the_answer_was_sent(server, pack, folder):
    task_id = queue_one(pack, folder)
    die(server, pack, folder, "all sent")
    with reopened(server, pack, folder) as runtime:
        entry = runtime.book.queue.get(task_id)
        assert (money(runtime), entry.state) in ((UNCLEAR, "waiting"), (SETTLED, "done"))
    assert server.requests == 1


# point of death -> (status of the server, what is left in the ledger, tasks queued by the call)
RUNNING = {
    "reserved": (200, UNSENT, 0),
    "marked": (200, UNCLEAR, 0),
    "requested": (200, UNCLEAR, 0),
    "half answered": (200, UNCLEAR, 0),
    "answered": (200, UNCLEAR, 0),
    "settled": (200, SETTLED, 0),
    "traced": (200, SETTLED, 0),
    "unclear": (500, UNCLEAR, 0),
    "queued": (500, UNCLEAR, 1),
}


@pytest.mark.parametrize("point", RUNNING)
def test_killed_while_running(server, pack, folder, point):
    server.status, left, queued = RUNNING[point]
    task_id = queue_one(pack, folder)
    die(server, pack, folder, point, OTHER)
    for _ in range(2):
        with reopened(server, pack, folder) as runtime:
            assert money(runtime) == left
    found = listed(pack, folder)
    assert found[0] == (task_id, "waiting", TEXT)
    assert [row[1:] for row in found[1:]] == [("waiting", OTHER)] * queued
    server.status = 200
    with reopened(server, pack, folder) as runtime:
        assert runtime.drain() == Drained(done=1, failed=queued)
        assert money(runtime)[1:] == (left[1] + COST, left[2])
        assert runtime.book.queue.get(task_id).result["text"] == "yes"


def test_what_a_killed_process_held_stays_out_of_reach(server, pack, folder):
    document = json.loads(pack.read_text("utf-8"))
    document["budget"]["cap_usd"] = "0.000400"
    pack.write_text(json.dumps(document), "utf-8")
    queue_one(pack, folder)
    die(server, pack, folder, "requested")
    with reopened(server, pack, folder) as runtime:
        assert money(runtime) == UNCLEAR
        result = runtime.run("reply", OTHER)
        assert edge.Reason.BUDGET_EXCEEDED in result.reasons
        assert server.requests == 1
        (hold,) = runtime.book.ledger.holds("unclear")
        runtime.book.ledger.resolve(hold.id, COST)
        assert runtime.run("reply", OTHER).route == "cloud"
        assert money(runtime)[1] == 2 * COST
