"""Processes that drain, die by SIGKILL and come back: each task is told, none is paid twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

import edge
from edge.cli.main import app
from edge.errors import InputError

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL"),
    pytest.mark.timeout(60),
]

TEXTS = [f"question {number}" for number in range(3)]
COST = 30 * 1 + 4 * 10

# Writes each result that its function took; dies right after the named step has returned.
CHILD = """
import os, signal, sys
import edge

pack, folder, point, told = sys.argv[1:]
steps = 0

def reached(name):
    global steps
    steps += name == point
    if name == point and steps == 2:
        os.kill(os.getpid(), signal.SIGKILL)

def watch(owner, method, name):
    step = getattr(owner, method)
    def watched(*arguments, **options):
        result = step(*arguments, **options)
        reached(name)
        return result
    setattr(owner, method, watched)

def take(result):
    with open(told, "a") as file:
        print(result.task_id, result.value, *result.reasons, file=file)
    reached("told")

with edge.open(pack, state=folder, offline=False) as runtime:
    watch(runtime.book.queue, "claim", "claimed")
    watch(runtime.book.ledger, "mark_sent", "marked")
    watch(runtime.book.queue, "complete", "completed")
    watch(runtime.book.queue, "take", "taken")
    runtime.on_upgrade(take)
    print("ready", flush=True)
    runtime.drain()
"""


class Provider(ThreadingHTTPServer):
    """A server that answers and counts what it bills; knows nothing of the rest.

    Attributes:
        billed: how often each text was.
        status: of its answers; others than 200 bill nothing.
        kill_at: kills ``child`` when it has billed this text.

    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.billed, self.kill_at, self.child = Counter(), None, None
        self.status = 200


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        if self.server.status != HTTPStatus.OK:
            self.send_response(self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.server.billed[text] += 1
        if text == self.server.kill_at:
            os.kill(self.server.child.pid, signal.SIGKILL)
            return
        content = json.dumps(
            {
                "choices": [{"message": {"content": text.upper()}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 30, "completion_tokens": 4},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        """Stay silent."""


@pytest.fixture
def provider():
    with Provider() as opened:
        thread = threading.Thread(target=opened.serve_forever, args=(0.01,))
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


@pytest.fixture
def pack(provider, tmp_path):
    document = {
        "name": "field",
        "version": 1,
        "budget": {"cap_usd": "0.010000", "period": "total"},
        "task_budgets": {"max_output_tokens": 16},
        "privacy": {"allow_cloud": "raw"},
        "pools": {
            "default": {
                "base_url": f"http://127.0.0.1:{provider.server_port}/v1",
                "model": "small",
                "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 10},
            }
        },
        "tasks": {"reply": {"kind": "generate"}},
    }
    path = tmp_path / "pack.yaml"
    path.write_text(json.dumps(document), "utf-8")
    return path


def ask(pack, folder, **how):
    """Queue the texts; return the ids of their tasks."""
    with edge.open(pack, state=folder, offline=True) as runtime:
        results = [runtime.run("reply", text, idempotency_key=text, **how) for text in TEXTS]
        return [result.task_id for result in results]


def run(provider, pack, folder, told, point="", kill_at=None):
    """Run the child to its end; return how it ended."""
    provider.kill_at = kill_at
    command = [sys.executable, "-W", "error", "-c", CHILD, pack, folder, point, told]
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        provider.child = child
        child.stdout.readline()
        _, problem = child.communicate(timeout=30)
    assert child.returncode in {0, -signal.SIGKILL}, problem.decode()
    provider.kill_at = None
    return child.returncode


def told_of(path):
    """Return what was told, by id of the task."""
    found = {}
    for line in path.read_text("utf-8").splitlines():
        task_id, _, rest = line.partition(" ")
        found.setdefault(task_id, []).append(rest)
    return found


@pytest.mark.parametrize("point", ["claimed", "marked", "completed", "told", "taken", "billed"])
def test_killed_while_it_drains(provider, pack, memory_path, point):
    folder, told = memory_path / "state", memory_path / "told.txt"
    told.touch()
    ids = ask(pack, folder)
    kill_at = TEXTS[1] if point == "billed" else None
    assert run(provider, pack, folder, told, point, kill_at) == -signal.SIGKILL
    before = told_of(told)
    assert run(provider, pack, folder, told) == 0
    found = told_of(told)
    assert set(found) == set(ids)
    assert max(provider.billed.values()) == 1
    # Nobody knows what became of the one that had been sent, so it is not sent again.
    unclear = point in {"marked", "completed", "billed"}
    words = {ids[at]: f"{text.upper()} escalated" for at, text in enumerate(TEXTS)}
    if unclear:
        words[ids[1]] = "None maybe_billed"
    assert {task_id: lines[-1] for task_id, lines in found.items()} == words
    # Only what was told and not acknowledged is told again, and that in the same words.
    again = ids[1] if point == "told" else None
    assert {task_id for task_id, lines in found.items() if len(lines) > 1} <= {again}
    assert all(found[task_id][: len(lines)] == lines for task_id, lines in before.items())
    with edge.open(pack, state=folder, offline=True) as runtime:
        ledger = runtime.book.ledger
        assert ledger.spent_microusd() == COST * (len(ids) - unclear)
        assert [hold.trace_id for hold in ledger.holds("unclear")] == [
            runtime.book.queue.get(ids[1]).trace_id
        ] * unclear
        for text, task_id in zip(TEXTS, ids, strict=True):
            assert runtime.run("reply", text, idempotency_key=text).task_id == task_id
        assert len(runtime.book.queue.list()) == len(ids)
        assert runtime.book.queue.untold() == []


def test_two_processes_drain_and_one_is_killed(provider, pack, memory_path):
    folder, told, mine = memory_path / "state", memory_path / "told.txt", []
    told.touch()
    ids = ask(pack, folder)
    with edge.open(pack, state=folder, offline=False) as runtime:
        runtime.on_upgrade(lambda result: mine.append(result.task_id))
        assert run(provider, pack, folder, told, "claimed") == -signal.SIGKILL
        runtime.drain()
    assert run(provider, pack, folder, told) == 0
    assert {*mine, *told_of(told)} == set(ids)
    assert sorted(provider.billed.values()) == [1, 1, 1]


def test_cancelled_from_another_process(provider, pack, memory_path):
    folder, told = memory_path / "state", memory_path / "told.txt"
    told.touch()
    ids = ask(pack, folder)
    script = "from edge.cli.main import main; main()"
    command = [sys.executable, "-c", script, "queue", "cancel", ids[1][:12], "--json"]
    done = subprocess.run(
        [*command, "--pack", str(pack), "--state", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"id": ids[1], "outcome": "released"}
    assert run(provider, pack, folder, told) == 0
    assert told_of(told)[ids[1]] == ["None cancelled"]
    assert provider.billed == {TEXTS[0]: 1, TEXTS[2]: 1}


def command(pack, folder, *arguments):
    """Run ``edge queue …`` in this process."""
    places = ("--pack", str(pack), "--state", str(folder))
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["queue", *arguments, *places])


def rows(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_queue_is_shown_with_what_is_left_and_cancelled_by_id(pack, memory_path):
    ids = ask(pack, memory_path, priority=8, deadline_s=90_000)
    shown = command(pack, memory_path, "list").stdout
    assert "waiting" in shown
    assert "1 d 0 h" in shown
    listed = rows(command(pack, memory_path, "list", "--json"))
    assert [(row["priority"], row["answer_by"] > 0) for row in listed] == [(8, True)] * 3
    wrong = command(pack, memory_path, "cancel", ids[0], "nosuch")
    assert isinstance(wrong.exception, InputError)
    assert "'nosuch' does not exist" in str(wrong.exception)
    done = command(pack, memory_path, "cancel", ids[0][:12], ids[0])
    assert done.stdout == f"{ids[0][:12]} cancelled; it is never sent\n"
    again = rows(command(pack, memory_path, "cancel", *ids[:2], "--json"))
    assert [row["outcome"] for row in again] == ["ended", "released"]
    assert command(pack, memory_path, "cancel").exit_code == 2
    states = [row["state"] for row in rows(command(pack, memory_path, "list", "--json"))]
    assert states == ["cancelled", "cancelled", "waiting"]


def test_retry_leaves_the_tasks_of_another_pack_and_says_so(provider, pack, memory_path):
    ask(pack, memory_path)
    other = pack.with_name("other.yaml")
    other.write_text(pack.read_text("utf-8").replace('"field"', '"shop"'), "utf-8")
    assert command(other, memory_path, "retry").stdout == (
        "Nothing was due.\nOf pack field 3 wait; name it with --pack to ask for them.\n"
    )
    assert not provider.billed
    assert command(pack, memory_path, "retry").stdout.startswith("3 answered")


def test_retry_says_what_was_left_alone_and_what_expired(provider, pack, memory_path):
    ask(pack, memory_path)
    with edge.open(pack, state=memory_path, offline=True) as runtime:
        brief = runtime.run("reply", "brief", deadline_s=0.01)
        assert runtime.wait(brief.trace_id, timeout_s=30).reasons == (edge.Reason.EXPIRED,)
        brief = runtime.run("reply", "brief too", deadline_s=0.01)
        over = runtime.book.queue.get(brief.task_id).answer_by
    while time.time() < over:
        time.sleep(0.005)
    provider.status = 429
    said = command(pack, memory_path, "retry").stdout
    assert said == (
        "0 answered, 1 still waiting, 0 given up, 1 expired\n"
        "Pool default was left alone after that: cloud_failed.\n"
    )
