"""A world of the fleet's money in one process: real hub, gateways and devices, and a provider.

The network, the clocks of all parties, deaths and disks are the world's to play with; nothing waits
and nothing runs beside. A world begins as a copy of one that was made once: a hub with two caps and
two gateways, and two devices that have joined. What must hold is in ``world_checks``.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from world_device import DeviceSide, pack_for
from world_gateway import SECRET, Gateway
from world_hub import GROUP, HubSide
from world_loop import Loop
from world_net import Network
from world_provider import Provider, Way

from edge_sync.hub import fleet
from edge_sync.hub.budget import gateways, leasekey
from edge_sync.hub.home import CONFIG, Hub

NOW = 2_000_000_000.0
POOLS = ("big", "small")
FLEET, GROUP_CAP = "fleet", f"group:{GROUP}"
CAPS = ((FLEET, "total", 163_457), (GROUP_CAP, "hour", 140_001))
MONEY = {"parts": 2, "least_microusd": 10_000}
DEVICES, MOST_DEVICES = 2, 4
_MOST_SYNCS = 10
SHM = Path("/dev/shm")  # noqa: S108 - a folder in memory


class World:
    """One world, to be closed.

    Attributes:
        network, provider, hub, gateways, devices: its parties.
        copies: disks of devices, each with the device's place.
        caps: as they were set last, by scope and kind.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = Loop()
        self._away: dict[str, float] = {}
        self._seeds = iter(range(1_000_000))
        self.network, self.provider = Network(self.loop), Provider()
        self.pack = pack_for(list(POOLS))
        self.hub = HubSide(
            self.loop, folder / "hub", self.network, clock=self._clock("hub"),
            seed=next(self._seeds),
        )  # fmt: skip
        self.network.place("hub", self._to_hub)
        key = leasekey.find(self.hub.hub.keys)
        self.gateways = {
            name: Gateway(
                self.loop, folder / f"{name}.db", name, keys={key.key_id: key.public_key},
                clock=self._clock(name), provider=self.provider,
            )
            for name in POOLS
        }  # fmt: skip
        for name, gateway in self.gateways.items():
            self.network.place(name, gateway.arrive)
            self.network.place(f"hub>{name}", gateway.arrive)
        self.devices: list[DeviceSide] = []
        self.copies: list[tuple[int, Path]] = []
        for at in range(DEVICES):
            self.devices.append(self._device(folder / f"device{at}"))

    def close(self) -> None:
        """End all parties and forget the folder."""
        for device in self.devices:
            device.close()
        for gateway in self.gateways.values():
            gateway.close()
        self.hub.close()
        self.loop.close()

    def ask(self, at: int, task: str, way: Way, share: float) -> Any:
        """Let a device ask a pool; a gateway that dies of it stays down."""
        self.provider.way, self.provider.share = way, share
        outcome = self.devices[at].ask(task)
        self.provider.way = Way.FINE
        return outcome

    def jump(self, party: str, seconds: float) -> None:
        """Set a party's clock off by so much."""
        self._away[party] = seconds

    def copy_disk(self, at: int) -> None:
        """Take a copy of a device's disk."""
        to = self.folder / f"disk{next(self._seeds)}"
        self.devices[at].copy_disk(to)
        self.copies.append((at, to))

    def set_back(self, number: int) -> None:
        """Put a copy of a disk back."""
        at, disk = self.copies[number % len(self.copies)]
        self.devices[at].whole = False
        self.devices[at].set_back(disk)

    def clone(self, number: int) -> None:
        """Start a copy of a disk beside the device."""
        at, disk = self.copies[number % len(self.copies)]
        self.devices[at].whole = False
        to = self.folder / f"device{next(self._seeds)}"
        shutil.copytree(disk, to)
        made = self._device(to)
        made.whole = False
        self.devices.append(made)

    def wipe(self, at: int) -> None:
        """Lose a disk; the device joins anew, as another one."""
        device = self.devices[at]
        device.whole = False
        device.wipe()
        device.join(self.hub.code())

    def heal(self) -> None:
        """End all faults: clocks right, links up, processes running, the bill looked at."""
        self.network.heal()
        self._away.clear()
        self.provider.way = Way.FINE
        for gateway in self.gateways.values():
            gateway.back()
        self.hub.again()
        for device in self.devices:
            device.kill()

    def round(self) -> None:
        """Let everybody do once what is due."""
        self.hub.step()
        self.hub.reconcile(self.provider.billed)
        for device in self.devices:
            device.clear()
            self._sync(device)

    def _sync(self, device: DeviceSide) -> None:
        """Let a device sync until it has told all, as its agent does."""
        for _ in range(_MOST_SYNCS):
            done = device.sync()
            code = getattr(done, "code", "")
            if code == "unknown_device":  # the hub was set back to before it joined
                device.agent.rejoin(self.hub.code())
            elif code != "replayed" and not getattr(done, "more", False):
                return

    def _device(self, folder: Path) -> DeviceSide:
        name = folder.name
        return DeviceSide(
            self.loop, folder, self.network, pack=self.pack, clock=self._clock(name),
            boot=self.loop.time, seed=next(self._seeds) + 1_000_000 * len(str(self.folder)),
        )  # fmt: skip

    def _clock(self, party: str) -> Callable[[], float]:
        return lambda: NOW + self.loop.time() + self._away.get(party, 0.0)

    async def _to_hub(self, request: Any) -> Any:
        return await self.hub.arrive(request)


def new_world() -> World:
    """Return a world that nothing has happened in yet."""
    folder = Path(tempfile.mkdtemp(dir=SHM if SHM.is_dir() else None))
    made = _template()
    shutil.copytree(made, folder, dirs_exist_ok=True)
    config = folder / "hub" / CONFIG
    config.write_text(config.read_text("utf-8").replace(str(made), str(folder)), "utf-8")
    return World(folder)


@cache
def _template() -> Path:
    """Make a world's folders, once for a process."""
    folder = Path(tempfile.mkdtemp(dir=SHM if SHM.is_dir() else None))
    home = folder / "hub"
    with Hub.create(home, clock=lambda: NOW) as hub:
        fleet.add_group(hub, GROUP, who="test")
    config = home / CONFIG
    settings = yaml.safe_load(config.read_text("utf-8")) | {"money": MONEY}
    config.write_text(yaml.safe_dump(settings), "utf-8")
    world = World(folder)
    for scope, kind, amount in CAPS:
        world.hub.set_cap(scope, kind, amount)
    for name in POOLS:
        line = world.network.end(f"hub>{name}")
        gateways.add(
            world.hub.hub, name, url=f"http://{name}", secret=SECRET, who="test", transport=line
        )
    world.hub.publish()
    world.hub.step()
    for device in world.devices:
        device.join(world.hub.code())
    world.close()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
