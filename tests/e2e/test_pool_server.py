"""Escalation to a real OpenAI-compatible server in a process of its own, with real money rules."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import edge
from edge.runtime import Drained
from edge.types import Reason, Route

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "actions-q8_0" / "actions-q8_0.gguf"
TEXT = "play some jazz by miles davis"
START_LIMIT_S = 60.0

PACK = """
name: field
version: 1
budget: {{cap_usd: {cap}, period: total}}
task_budgets: {{max_output_tokens: 24}}
privacy: {{allow_cloud: raw}}
pools:
  default:
    base_url: {url}/v1
    model: actions
    price: {{input_usd_per_mtok: 2, output_usd_per_mtok: 8}}
tasks:
  reply:
    kind: generate
    cloud_prompt: Confirm in one sentence.
  spam:
    kind: classify
    model: sms-spam-head
    routing: {{keep_above: 1.0}}
"""


class Server:
    """``python -m llama_cpp.server``; can be stopped and started again on the same port."""

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "llama_cpp.server", "--model", str(MODEL)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--n_threads", "1"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.log.parent,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        limit = time.monotonic() + START_LIMIT_S
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > limit:
                self.stop()
                pytest.fail(f"The server did not start:\n{self.log.read_text('utf-8')[-2000:]}")
            time.sleep(0.05)

    def answers(self):
        try:
            return httpx.get(f"{self.url}/v1/models", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def asked(self):
        """Return how many completions were asked for, by the server's own log."""
        return self.log.read_text("utf-8").count("POST /v1/chat/completions")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(running):
    if running.process is None:
        running.start()
    return running


@pytest.fixture
def pack(server, tmp_path):
    return write_pack(tmp_path, server)


def write_pack(folder, server, cap="0.01"):
    path = folder / "pack.yaml"
    path.write_text(PACK.format(url=server.url, cap=cap), "utf-8")
    return path


def usage_of(server, system, text):
    """Return what the server counts when it is asked the same directly."""
    turns = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    body = {"messages": turns, "max_tokens": 24, "temperature": 0.0}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, trust_env=False, timeout=60)
    usage = answer.json()["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"]


def test_a_task_without_a_local_model_is_answered_and_paid_for(server, pack, tmp_path):
    with edge.open(pack, state=tmp_path / "state", offline=False) as runtime:
        result = runtime.run("reply", TEXT)
        assert result.route is Route.CLOUD
        assert result.reasons == (Reason.NO_LOCAL_MODEL, Reason.ESCALATED)
        assert isinstance(result.value, str)
        assert (result.device, result.model, result.confidence) == ("cloud", "actions", None)
        assert not result.provisional
        counted = usage_of(server, "Confirm in one sentence.", TEXT)
        assert (result.tokens_in, result.tokens_out) == counted
        (hold,) = runtime.book.ledger.holds()
        assert (hold.state, hold.tokens_in, hold.tokens_out) == ("settled", *counted)
        assert result.cost_microusd == 2 * counted[0] + 8 * counted[1] > 0
        assert hold.cost_microusd == runtime.book.ledger.spent_microusd() == result.cost_microusd
        assert hold.worst_case_microusd >= hold.cost_microusd
        assert runtime.book.ledger.held_microusd() == 0
        assert runtime.traces.get(result.trace_id)["cost_microusd"] == result.cost_microusd


def test_a_doubtful_local_answer_escalates(server, pack, tmp_path):
    with edge.open(pack, state=tmp_path / "state", offline=False, threads=1) as runtime:
        result = runtime.run("spam", "see you at noon then")
        assert result.reasons[0] is Reason.LOW_CONFIDENCE
        assert result.cost_microusd == runtime.book.ledger.spent_microusd() > 0
        (hold,) = runtime.book.ledger.holds()
        assert (hold.task, hold.state) == ("spam", "settled")
        if result.route is Route.CLOUD:
            assert result.value in {"ham", "spam"}
            return
        # So small a model hardly ever names a label; asking again would only be paid for again.
        assert (result.route, result.value) == (Route.DEFERRED, "ham")
        assert Reason.INVALID_OUTPUT in result.reasons
        assert (result.model, result.provisional) == ("sms-spam-head", False)


def test_a_cap_too_small_sends_nothing(server, tmp_path):
    asked = server.asked()
    pack = write_pack(tmp_path, server, cap="0.0001")
    with edge.open(pack, state=tmp_path / "state", offline=False) as runtime:
        result = runtime.run("reply", TEXT)
        assert (result.route, result.value) == (Route.DEFERRED, None)
        assert result.reasons[1:] == (Reason.BUDGET_EXCEEDED, Reason.QUEUED)
        assert runtime.book.ledger.holds() == []
        assert runtime.drain() == Drained(waiting=1)
    assert server.asked() == asked


def test_offline_sends_nothing_and_the_command_asks_later(server, pack, tmp_path):
    asked, state = server.asked(), tmp_path / "state"
    with edge.open(pack, state=state, offline=True) as runtime:
        result = runtime.run("reply", TEXT)
        assert result.reasons[1:] == (Reason.OFFLINE, Reason.QUEUED)
    assert server.asked() == asked
    options = ["--pack", str(pack), "--state", str(state), "--json"]
    command = [sys.executable, "-c", "from edge.cli.main import main; main()"]
    done = subprocess.run(
        [*command, "queue", "retry", result.task_id[:12], *options],
        capture_output=True,
        check=False,
        env={**os.environ, "EDGE_OFFLINE": "0"},
    )
    assert done.returncode == 0, done.stderr
    counts = {"done": 1, "waiting": 0, "failed": 0}
    told = json.loads(done.stdout)
    assert {name: told[name] for name in counts} == counts
    assert (told["pausing"], told["due_at"], told["stopped"]) == (0, None, {})
    assert server.asked() == asked + 1
    with edge.open(pack, state=state, offline=True) as runtime:
        entry = runtime.book.queue.get(result.task_id)
        assert (entry.state, bool(entry.result["text"])) == ("done", True)
        assert entry.result["cost_microusd"] == runtime.book.ledger.spent_microusd()


def test_what_a_stopped_server_could_not_answer_is_answered_when_it_is_back(server, pack, tmp_path):
    with edge.open(pack, state=tmp_path / "state", offline=False) as runtime:
        server.stop()
        result = runtime.run("reply", TEXT)
        assert result.route is Route.DEFERRED
        assert result.reasons[1:] == (Reason.CLOUD_FAILED, Reason.QUEUED)
        assert [hold.state for hold in runtime.book.ledger.holds()] == ["released"]
        assert runtime.book.queue.get(result.task_id).state == "waiting"
        server.start()
        asked = server.asked()
        assert runtime.drain() == Drained(done=1)
        entry = runtime.book.queue.get(result.task_id)
        assert (entry.state, entry.attempts) == ("done", 1)
        assert entry.result["cost_microusd"] == runtime.book.ledger.spent_microusd() > 0
        assert [hold.state for hold in runtime.book.ledger.holds()] == ["released", "settled"]
        assert runtime.drain() == runtime.drain([result.task_id]) == Drained()
        assert server.asked() == asked + 1
