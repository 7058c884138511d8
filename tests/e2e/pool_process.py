"""A pool on Ray in a process of its own, as ``edge-hub pool`` starts it."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "actions-q8_0" / "actions-q8_0.gguf"
START_LIMIT_S = 90.0
_COMMAND = "import sys; from edge_sync.cli.main import main; main()"


@dataclass
class Pool:
    """A running pool.

    Attributes:
        seen: processes that were ever below it, by id; Ray's move to other parents.

    """

    process: subprocess.Popen
    url: str
    log: Path
    seen: dict

    def events(self, name):
        lines = self.log.read_text("utf-8").splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return [each for each in told if each["event"] == name]

    def count(self, name):
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    def running(self):
        return httpx.get(f"{self.url}/healthz", trust_env=False).json()["replicas"]

    def below(self):
        """Return the processes below the command, as id to title."""
        parents, titles = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
                title = stat.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode()
                titles[int(stat.parent.name)] = title.strip()
            except (OSError, ValueError):
                continue
        found, more = {}, {self.process.pid}
        while more:
            more = {pid for pid, parent in parents.items() if parent in more}
            found |= {pid: titles.get(pid, "") for pid in more}
        self.seen |= found
        return found

    def replicas(self):
        return sorted(pid for pid, title in self.below().items() if "ServeReplica" in title)

    def busiest(self, during_s=0.1):
        """Return the replica that computes most now, which so has calls under way."""
        before = {pid: _ticks(pid) for pid in self.replicas()}
        time.sleep(during_s)
        return max(before, key=lambda pid: _ticks(pid) - before[pid])

    def end(self):
        """End it as an operator does; return its exit code."""
        self.below()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def left(self, within_s=10.0):
        """Return which of its processes are still there."""
        limit = time.monotonic() + within_s
        while (left := [pid for pid, title in self.seen.items() if _is(pid, title)]) and (
            time.monotonic() < limit
        ):
            time.sleep(0.1)
        return left


def _ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11])


def _is(pid, title):
    try:
        now = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return False
    return bool(now) and now.split(maxsplit=1)[0] == title.split(maxsplit=1)[0]


def configure(folder, **values):
    """Write pool.yaml and return its path."""
    one = {"name": "m", "model": str(MODEL), "template": "plain", "context": 512, "threads": 1,
           "replicas": {"min": 2, "max": 2}, "resources": {"cpus": 0.5},
           "health": {"period_s": 1}}  # fmt: skip
    path = folder / "pool.yaml"
    path.write_text(yaml.safe_dump(one | values), "utf-8")
    return path


@contextmanager
def pool(config):
    """Run ``edge-hub pool``, from ready until the end of the block."""
    folder = config.parent
    log, out = folder / "pool.log", folder / "pool.out"
    command = [sys.executable, "-c", _COMMAND, "pool", "--config", str(config)]
    # Ray keeps a token in the home folder, and temporary files here.
    env = {**os.environ, "PYTHONPATH": str(ROOT / "sync"), "HOME": str(folder)}
    with log.open("wb") as err, out.open("wb") as told:
        process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0"], stdout=told, stderr=err, env=env
        )
    running = Pool(process, "", log, {})
    try:
        running.url = _ready(running)
        running.below()
        yield running
    finally:
        if process.poll() is None:
            running.end()


def _ready(running):
    limit = time.monotonic() + START_LIMIT_S
    while running.process.poll() is None and time.monotonic() < limit:
        for told in running.events("listening"):
            return f"http://127.0.0.1:{told['port']}"
        time.sleep(0.1)
    running.process.kill()
    raise AssertionError(running.log.read_text("utf-8")[-4_000:])
