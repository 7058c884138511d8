"""What does a pool of replicas on Ray carry, beside its engine alone?

The same calls, answers held to a JSON schema of about 180 tokens from the decoder that ships, go to
the engine in this process, and over HTTP to `edge-hub pool` with one replica and with two. Every
engine has one thread and four sequences. The callers run on the same machine, which has as many
cores for all of it together as the report says: with two cores two replicas share them with Ray,
the pool's own process and the callers, so what is seen is the price of the way, and hardly what
more machines would give.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import yaml
from _common import ROOT, Row, main

from edge_sync.pool.asked import Asked, End, Event, read_asked
from edge_sync.pool.config import read_settings
from edge_sync.pool.engine import EdgeEngine

MODEL = ROOT / "models" / "actions-q8_0" / "actions-q8_0.gguf"
MANY = 8
START_S = 120.0
_COMMAND = "from edge_sync.cli.main import main; main()"
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
_NUMBERS = {"type": "array", "minItems": 60, "maxItems": 60, "items": _NUMBER}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": _NUMBERS}}


@dataclass(frozen=True)
class Load:
    """How a kind of call fared."""

    rate: float
    p50_ms: float
    p95_ms: float
    tokens_s: float


def body(at: int) -> dict[str, Any]:
    """Return a call."""
    turn = {"role": "user", "content": f"play some jazz by {at % 7}"}
    return {"messages": [turn], "response_format": _FORMAT, "temperature": 0, "max_tokens": 250}


def load(ask: Callable[[int], int], *, callers: int, during_s: float) -> Load:
    """Ask again and again from so many callers; ``ask`` returns the tokens of its answer."""
    end = time.perf_counter() + during_s

    def caller(at: int) -> list[tuple[float, int]]:
        found = []
        while (began := time.perf_counter()) < end:
            tokens = ask(at)
            found.append((time.perf_counter() - began, tokens))
            at += callers
        return found

    began = time.perf_counter()
    with ThreadPoolExecutor(callers) as threads:
        calls = [each for some in threads.map(caller, range(callers)) for each in some]
    took_s = time.perf_counter() - began
    times = sorted(1_000 * each for each, _ in calls)
    last = len(times) - 1
    return Load(len(times) / took_s, times[last // 2], times[int(0.95 * last)],
                sum(tokens for _, tokens in calls) / took_s)  # fmt: skip


def configure(folder: Path, replicas: int) -> Path:
    """Write pool.yaml and return its path."""
    whole = {"name": "m", "model": str(MODEL), "template": "plain", "context": 512, "threads": 1,
             "replicas": {"min": replicas, "max": replicas},
             "resources": {"cpus": 0.5}}  # fmt: skip
    path = folder / "pool.yaml"
    path.write_text(yaml.safe_dump(whole), "utf-8")
    return path


def alone(config: Path) -> tuple[EdgeEngine, Callable[[int], int]]:
    """Return the engine in this process, and what asks it."""
    engine = EdgeEngine(read_settings(config))

    def asked(at: int) -> Asked:
        return read_asked(json.dumps(body(at)).encode(), model="m", most_tokens=250, seed=1)

    def ask(at: int) -> int:
        events: list[Event] = []
        engine.run(asked(at), events.append, lambda: False)
        if not isinstance(events[-1], End):
            raise SystemExit(f"the engine failed: {events[-1]}")
        return events[-1].tokens_out

    return engine, ask


@contextmanager
def pool(config: Path) -> Iterator[Callable[[int], int]]:
    """Run the pool until the end of the block; give what asks it."""
    log = config.with_name("pool.log")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "sync")}
    command = [sys.executable, "-c", _COMMAND, "pool", "--config", str(config)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0"], stderr=file, stdout=subprocess.DEVNULL, env=env
        )
    try:
        url = f"{_ready(process, log)}/v1/chat/completions"
        with httpx.Client(timeout=60, trust_env=False) as client:

            def ask(at: int) -> int:
                answer = client.post(url, json=body(at)).raise_for_status().json()
                return int(answer["usage"]["completion_tokens"])

            yield ask
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    limit = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < limit:
        for line in log.read_text("utf-8").splitlines():
            if '"listening"' in line:
                return f"http://127.0.0.1:{json.loads(line)['port']}"
        time.sleep(0.1)
    raise SystemExit(f"the pool did not start:\n{log.read_text('utf-8')[-2_000:]}")


def rows(name: str, ask: Callable[[int], int], during_s: float) -> Iterator[Row]:
    """Yield what one way of asking gives: a single caller, then many."""
    load(ask, callers=MANY, during_s=during_s / 4)
    for callers in (1, MANY):
        found = load(ask, callers=callers, during_s=during_s)
        where = f"{name}, {callers} caller{'s' if callers > 1 else ''}"
        yield Row(f"{where}: calls", round(found.rate, 1), "/s")
        yield Row(f"{where}: tokens", round(found.tokens_s), "/s")
        yield Row(f"{where}: p50", round(found.p50_ms, 1), "ms")
        yield Row(f"{where}: p95", round(found.p95_ms, 1), "ms")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield all rows."""
    during_s = 3.0 if arguments.quick else 15.0
    with TemporaryDirectory(prefix="edge-pool-bench-") as name:
        folder = Path(name)
        engine, ask = alone(configure(folder, 1))
        yield from rows("engine alone", ask, during_s)
        engine.close()
        for replicas in (1, 2):
            with pool(configure(folder, replicas)) as asking:
                told = f"pool, {replicas} replica{'s' if replicas > 1 else ''}"
                yield from rows(told, asking, during_s)


if __name__ == "__main__":
    main("pool", measure)
