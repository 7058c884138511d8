"""One attack, and the list that each attack adds itself to.

An attack prepares a hub and a device and returns the bundle that must be refused, or nothing where
that is the hub's own. ``tuf`` names the cases of python-tuf's tests that it matches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator import Device, HubSimulator

from edge.errors import EdgeError
from edge_sync.wire import Bundle

Prepare = Callable[[HubSimulator, Device], Bundle | None]


@dataclass(frozen=True)
class Attack:
    """One attack: what prepares it, the error it must meet, python-tuf's cases it matches."""

    name: str
    error: type[EdgeError]
    prepare: Prepare
    tuf: tuple[str, ...]

    def run(self) -> tuple[Device, Bundle]:
        """Return the device and the bundle that it must refuse."""
        sim = HubSimulator()
        device = Device(sim)
        return device, self.prepare(sim, device) or sim.bundle(device)


ATTACKS: list[Attack] = []


def attack(error: type[EdgeError], *tuf: str) -> Callable[[Prepare], Prepare]:
    def add(prepare: Prepare) -> Prepare:
        ATTACKS.append(Attack(prepare.__name__, error, prepare, tuf))
        return prepare

    return add
