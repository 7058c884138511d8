"""vLLM as an engine, with a stand-in that takes its documented arguments and speaks its interface.

vLLM itself needs a GPU; what is tested is everything around it: that it is started as documented,
asked and read, and that neither process outlives the other.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edge.errors import ConfigError, LoadError
from edge_sync.pool.asked import Asked, End, Message, Text
from edge_sync.pool.child import ChildEngine, free_port, vllm
from edge_sync.pool.config import Settings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ends groups of processes")
SYNC = Path(__file__).resolve().parents[4] / "sync"
SETTINGS = Settings(
    name="m", engine="vllm", model="org/model", context=64, arguments=("--seed", "1")
)
ASKED = Asked((Message("user", "ok"),), max_tokens=5, seed=3, numbers={"temperature": 0.5},
              stop=("x",), schema={"type": "object"})  # fmt: skip
STAND_IN = """#!{python}
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
folder = os.path.dirname(os.path.abspath(__file__))
given = dict(zip(sys.argv[3::2], sys.argv[4::2]))
with open(os.path.join(folder, "started"), "w") as file:
    json.dump([os.getpid(), *sys.argv[1:]], file)
if "--fail" in given:
    sys.exit(3)

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def say(self, status, text, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def do_GET(self):
        self.say(200, b"{{}}")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        asked = json.loads(body)
        with open(os.path.join(folder, "asked"), "wb") as file:
            file.write(body)
        if asked["messages"][0]["content"] == "die":
            os._exit(1)
        if asked["messages"][0]["content"] != "ok":
            return self.say(400, b'{{"error": {{"message": "too long"}}}}')
        told = [{{"choices": [{{"delta": {{"role": "assistant", "content": ""}}}}]}}]
        told += [{{"choices": [{{"delta": {{"content": word}}}}]}} for word in ("a", "b")]
        told += [{{"choices": [{{"delta": {{}}, "finish_reason": "length"}}]}}]
        told += [{{"choices": [], "usage": {{"prompt_tokens": 4, "completion_tokens": 2}}}}]
        lines = ["data: " + json.dumps(each) for each in told] + ["data: [DONE]"]
        self.say(200, "\\n\\n".join([*lines, ""]).encode(), "text/event-stream")

HTTPServer((given["--host"], int(given["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put the stand-in where ``vllm`` is looked for; return its folder."""
    path = tmp_path / "vllm"
    path.write_text(STAND_IN.format(python=sys.executable), "utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(SYNC))
    return tmp_path


def run(engine, asked=ASKED):
    events = []
    engine.run(asked, events.append, lambda: False)
    return events


def started(folder):
    return json.loads((folder / "started").read_text())


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(pid, within_s=10.0):
    limit = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < limit:
        time.sleep(0.02)
    return not alive(pid)


def test_it_is_started_as_documented_asked_and_read(program):
    engine = vllm(SETTINGS)
    try:
        pid, *arguments = started(program)
        port = arguments[arguments.index("--port") + 1]
        assert arguments == [
            "serve", "org/model", "--host", "127.0.0.1", "--port", port, "--served-model-name", "m",
            "--max-model-len", "64", "--seed", "1",
        ]  # fmt: skip
        assert run(engine) == [Text("a"), Text("b"), End("length", 4, 2)]
        assert json.loads((program / "asked").read_text()) == {
            "model": "m", "messages": [{"role": "user", "content": "ok"}], "max_tokens": 5,
            "seed": 3, "stream": True, "stream_options": {"include_usage": True},
            "temperature": 0.5, "stop": ["x"], "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}},
            },
        }  # fmt: skip
        (refused,) = run(engine, Asked((Message("user", "long"),), max_tokens=5, seed=3))
        assert (refused.status, "too long" in refused.message) == (400, True)
        engine.check()
    finally:
        engine.close()
    assert gone(pid)


def test_where_the_server_dies_its_replica_is_told(program):
    dead = threading.Event()
    port = str(free_port())
    command = [str(program / "vllm"), "serve", "m", "--host", "127.0.0.1", "--port", port]
    engine = ChildEngine(command, f"http://127.0.0.1:{port}/v1", name="m", died=dead.set)
    try:
        (failed,) = run(engine, Asked((Message("user", "die"),), max_tokens=5, seed=3))
        assert failed.status == 500
        assert dead.wait(10)
    finally:
        engine.close()


def test_where_the_replica_is_killed_the_server_ends(program):
    code = (
        "from edge_sync.pool.child import vllm\n"
        "from edge_sync.pool.config import Settings\n"
        "import time\n"
        "vllm(Settings(name='m', engine='vllm', model='m'))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        pid, *_ = started(program)
        assert alive(pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert gone(pid)


def test_a_server_that_does_not_start_is_told(program):
    with pytest.raises(LoadError, match="ended with code 3"):
        vllm(SETTINGS.model_copy(update={"arguments": ("--fail", "1")}))


def test_without_vllm_the_remedy_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pip install vllm"):
        vllm(SETTINGS)
