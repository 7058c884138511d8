"""A fleet of real processes under random kills and cut lines: does the budget hold, does it agree?

Ten device processes with sixteen threads each, two replicas of the hub on PostgreSQL and a gateway
before a provider that keeps its own bill. Devices, replicas and gateway are killed with SIGKILL,
lines are cut or fall silent, PostgreSQL is stopped as by a power cut, the provider cuts, hangs,
lies and fails. The cap always binds. Then all is healed, and everybody must tell the same story.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from _chaos_fleet import Fleet, ends, start
from _chaos_parties import Party
from _common import Row, main

SEED = 20261129
FULL_S, QUICK_S = 600.0, 15.0
DEVICES, THREADS = 10, 16
QUICK_DEVICES, QUICK_THREADS = 3, 4
FAULTS = 0.06
RAISE_EVERY_S = 10.0
MICROUSD_PER_S_AND_DEVICE = 200
ROOM_MICROUSD = 10**7


class Storm:
    """Random trouble.

    Args:
        fleet: to trouble.
        rng: draws it.

    """

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self._fleet = fleet
        self._rng = rng
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._down: set[str] = set()
        self.events: dict[str, int] = {}

    def blow(self, seconds: float) -> None:
        """Make trouble for so long, then heal all of it."""
        fleet = self._fleet
        end = time.monotonic() + seconds
        step = round(MICROUSD_PER_S_AND_DEVICE * len(fleet.devices) * RAISE_EVERY_S)
        raised = time.monotonic()
        while (now := time.monotonic()) < end:
            if now - raised > RAISE_EVERY_S:
                raised = now
                fleet.raise_cap(step)  # less than is asked for, so that it binds
                fleet.reconcile()
            self._trouble()
            pause = time.monotonic() + self._rng.uniform(0.3, 1.7)
            while time.monotonic() < pause:
                self._heal(time.monotonic())
                self._supervise()
                time.sleep(0.05)
        self._heal(float("inf"))
        fleet.provider.faults = 0.0
        self._supervise()
        for server in [*fleet.replicas, fleet.gateway]:
            server.ready()

    def _trouble(self) -> None:
        """Make one kind of trouble, healed some time later."""
        fleet, draw = self._fleet, self._rng.random()
        if draw < 0.35:
            self._kill(self._rng.choice(fleet.devices), "device killed")
        elif draw < 0.5:
            self._kill(self._rng.choice(fleet.replicas), "hub replica killed")
        elif draw < 0.6:
            self._kill(fleet.gateway, "gateway killed")
        elif draw < 0.62:
            self._count("PostgreSQL stopped at once")
            fleet.postgres.restart()
        else:
            self._cut()

    def _cut(self) -> None:
        fleet = self._fleet
        lines = [line for device in fleet.devices for line in device.lines]
        line = self._rng.choice([*lines, fleet.gateway_line, fleet.gateway_line])
        silent = self._rng.random() < 0.5
        self._count("line silent" if silent else "line cut")
        fleet.links.cut(line, "silent" if silent else "refused")
        self._later(self._rng.uniform(1, 12), lambda: fleet.links.cut(line, "open"))

    def _kill(self, party: Party, what: str) -> None:
        if party.process is not None and party.process.poll() is None:
            self._count(what)
            party.kill()
            self._down.add(party.name)
            self._later(self._rng.uniform(0.2, 3), lambda: self._up(party))

    def _up(self, party: Party) -> None:
        party.start()
        self._down.discard(party.name)

    def _supervise(self) -> None:
        """Start again what has ended by itself, such as a hub without its database."""
        fleet = self._fleet
        for party in [*fleet.replicas, fleet.gateway, *fleet.devices]:
            ended = party.process is not None and party.process.poll() is not None
            if ended and party.name not in self._down:
                self._count("ended by itself, started again")
                party.start()

    def _heal(self, now: float) -> None:
        due = [step for at, step in self._due if at <= now]
        self._due = [(at, step) for at, step in self._due if at > now]
        for step in due:
            step()

    def _later(self, after_s: float, step: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + after_s, step))

    def _count(self, what: str) -> None:
        self.events[what] = self.events.get(what, 0) + 1


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    seconds = float(arguments.seconds or (QUICK_S if arguments.quick else FULL_S))
    devices = QUICK_DEVICES if arguments.quick else DEVICES
    threads = QUICK_THREADS if arguments.quick else THREADS
    seed = int(arguments.seed or SEED)
    ran = f"{devices}, {threads}, {seconds:g}, {seed}"
    yield Row("devices, threads each, seconds, seed", ran, "")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        fleet = start(folder, stack, devices=devices, threads=threads, faults=FAULTS, seed=seed)
        storm = Storm(fleet, random.Random(seed))  # noqa: S311 - no secret
        storm.blow(seconds)
        used, cap = fleet.provider.bill.total, fleet.cap["now"]
        for what, count in sorted(storm.events.items()):
            yield Row(what, count, "times")
        yield Row("share of the binding cap sold under trouble", round(100 * used / cap, 1), "%")
        fleet.raise_cap(ROOM_MICROUSD)
        yield from ends(fleet)


if __name__ == "__main__":
    main("chaos", measure, options={"--seconds": "of trouble", "--seed": "of the trouble"})
