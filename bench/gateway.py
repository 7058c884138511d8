"""What does the gateway of a pool carry, and what does it add to a call?

The gateway is a process of its own on one core, with its register on the disk of the temporary
folder; the devices and a trivial upstream run in this process on another. Calls were signed before
the clock starts; the gateway verifies every signature, and every hold and every settlement is on
disk before what follows it. The answer to a call is waited for before its connection asks again.

Latency is measured in turns on one connection each: the upstream directly, then through the
gateway. What it adds is a percentile of the one less the median of the other, so that no noise of
the upstream is taken off. An upstream's events carry the time they were sent at; how late they
come says whether a stream passes unbuffered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from _common import Row, at_least, at_most, main
from _gateway_load import Serving, Trivial, calls, configure, request, serving, upstream
from _hub_load import connect, drive

GATEWAY_CORE, LOAD_CORE = 0, 1
LINES = 64
DEVICES = 100
PLAIN = b'{"messages": [{"role": "user", "content": "Is it raining?"}], "max_tokens": 64}'


async def rate(running: Serving, requests: list[bytes]) -> tuple[float, float]:
    """Return calls a second of the wall clock, and of the gateway's processor time."""
    lines = [await connect(running.port) for _ in range(LINES)]
    draw = iter(requests)
    began, used = time.perf_counter(), running.cpu_s
    statuses = await drive(lines, lambda: next(draw, None))
    wall_s, cpu_s = time.perf_counter() - began, running.cpu_s - used
    for line in lines:
        line.close()
    if set(statuses) != {200}:
        raise SystemExit(f"the gateway answered {sorted(set(statuses))}")
    return len(statuses) / wall_s, len(statuses) / max(cpu_s, 1e-9)


async def in_turns(running: Serving, port: int, requests: list[bytes]) -> tuple[list[float], float]:
    """Return sorted seconds through the gateway, and the median of the upstream alone."""
    through, direct = await connect(running.port), await connect(port)
    plain = request(PLAIN, "")
    seconds, alone = [], []
    for each in requests:
        for line, sent, times in ((direct, plain, alone), (through, each, seconds)):
            began = time.perf_counter()
            answer = await line.ask(sent)
            times.append(time.perf_counter() - began)
            if answer.status != 200:
                raise SystemExit(f"status {answer.status}: {answer.body[:200]!r}")
    for line in (through, direct):
        line.close()
    warm = len(seconds) // 10
    return sorted(seconds[warm:]), statistics.median(alone[warm:])


async def streamed(port: int, sent: bytes) -> tuple[list[float], float]:
    """Return the seconds that each event of a stream took, and when the first one came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    writer.write(sent)
    late, first = [], 0.0
    while True:
        line = await reader.readline()
        if not line:
            raise SystemExit("a stream was cut")
        if line.startswith(b"data: [DONE]"):
            break
        if not line.startswith(b"data: "):
            continue
        choices = json.loads(line[6:])["choices"]
        if choices:
            now = time.perf_counter()
            late.append(now - float(choices[0]["delta"]["content"]))
            first = first or now - began
    writer.close()
    return late, first


async def measured(base: Path, *, quick: bool) -> list[Row]:
    """Measure all rows."""
    server, port = await upstream()
    many, few = (6_000, 600) if quick else (40_000, 3_000)
    with serving(configure(base, port), core=GATEWAY_CORE) as running:
        await rate(running, calls(500, devices=DEVICES))
        wall, cpu = await rate(running, calls(many, devices=DEVICES))
        through, alone = await in_turns(running, port, calls(few, devices=DEVICES))
        late: list[float] = []
        for each in calls(3 if quick else 20, devices=3, stream=True):
            events, _ = await streamed(running.port, each)
            late += events
    server.close()
    return _rows(wall, cpu, through, alone, sorted(late))


def _rows(
    wall: float, cpu: float, through: list[float], alone: float, late: list[float]
) -> list[Row]:
    def at(times: list[float], share: float) -> float:
        return times[int(share * (len(times) - 1))]

    count = f"{LINES} connections, trivial upstream, durable holds and settlements"
    return [
        at_least(f"calls on one core, {count}", wall, 1_500.0, "/s"),
        Row("the same by the gateway's processor time", round(cpu, 1), "/cpu s"),
        Row("upstream alone, p50", round(1_000 * alone, 3), "ms"),
        at_most("added by the gateway, p50", 1_000 * (at(through, 0.5) - alone), 3.0, "ms"),
        at_most("added by the gateway, p99", 1_000 * (at(through, 0.99) - alone), 15.0, "ms"),
        Row("an event of a stream on its way, p50", round(1_000 * at(late, 0.5), 3), "ms"),
        at_most(
            f"an event of a stream on its way, p99, one every {1_000 * Trivial.GAP_S:g} ms",
            1_000 * at(late, 0.99), 1_000 * Trivial.GAP_S, "ms",
        ),
    ]  # fmt: skip


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield all rows."""
    os.sched_setaffinity(0, {LOAD_CORE})
    with TemporaryDirectory(prefix="edge-gateway-bench-") as folder:
        work: Any = measured(Path(folder), quick=arguments.quick)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            yield from runner.run(work)


if __name__ == "__main__":
    main("gateway", measure)
