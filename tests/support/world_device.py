"""A device of a world: its real agent, ledger and calls over a real state folder.

Replaced are its clocks, the network, and the runtime, of which only what a policy needs is here.
It may be killed at any transaction of any of its files.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from world_loop import Loop, Runner
from world_net import Gone, Network
from world_provider import IN_MICROUSD_PER_MTOK, OUT_MICROUSD_PER_MTOK

from edge.cloud.pool import Pool
from edge.errors import EdgeError
from edge.escalate import Escalation, Outcome
from edge.overlay import load_document
from edge.store.book import Book
from edge.store.db import Database
from edge.store.ledger import Hold, Need
from edge.store.policies import Policies
from edge.store.rights import USED
from edge.task import Pack
from edge_sync.agent.device import Round, Senses
from edge_sync.agent.signing import Signing
from edge_sync.agent.start import open_device
from edge_sync.trust.trusted import Trusted

# A value that is loaded from the same bytes is the same; verifying it takes a third of a sync.
Trusted.load = cache(Trusted.load)

SIZES = (10, 30)
"""The most tokens of an answer; each is a task of its own size."""
TEXT = "is the shop open?"


def pack_for(pools: list[str]) -> Pack:
    """Return a pack with a task for each pool and size."""
    million = 1_000_000
    price = {
        "input_usd_per_mtok": IN_MICROUSD_PER_MTOK / million,
        "output_usd_per_mtok": OUT_MICROUSD_PER_MTOK / million,
    }
    at = {
        name: {"base_url": f"http://{name}/v1", "model": "m", "price": price, "gateway": True,
               "breaker_failures": 1_000, "timeout_s": 10}
        for name in pools
    }  # fmt: skip
    tasks = {
        f"{name}{size}": {"kind": "generate", "budget": {"max_output_tokens": size},
                          "routing": {"pool": name}, "privacy": {"allow_cloud": "raw"}}
        for name in pools for size in SIZES
    }  # fmt: skip
    return Pack.model_validate({"name": "field", "version": 1, "pools": at, "tasks": tasks})


class Runs:
    """Puts a policy in force as a runtime does, without models."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    def activate(
        self,
        document: bytes,
        *,
        stopped: Any = None,
        tightened: Any = None,
        check: bool = True,
        trust: Any = None,
        etag: str | None = None,
    ) -> None:
        loaded = load_document(document)
        self._policies.activate(
            revision=loaded.revision, document=document, stopped=stopped or {}, at=0.0,
            tightened=bool(tightened), trust=trust, etag=etag,
        )  # fmt: skip


class DeviceSide:
    """A device over a folder.

    Attributes:
        whole: its disk was never copied, set back or wiped, so that its rows are all it did.
        steps_left: transactions until it is killed; ``None`` where it is not.

    """

    def __init__(
        self,
        loop: Loop,
        folder: Path,
        network: Network,
        *,
        pack: Pack,
        clock: Callable[[], float],
        boot: Callable[[], float],
        seed: int,
    ) -> None:
        self.folder, self.pack = folder, pack
        self._loop, self._network, self._clock, self._boot = loop, network, clock, boot
        self._draw = random.Random(seed)  # noqa: S311
        self.whole = True
        self.steps_left: int | None = None
        self.open()

    @property
    def id(self) -> str:
        return self.agent.memory().device_id

    def open(self) -> None:
        """Start its processes."""
        self.book = Book.open(self.folder, cap_microusd=None, period="total", clock=self._clock)
        self.policies = Policies.open(self.folder)
        runs = Runs(self.policies)
        self.agent, self._exchange = open_device(
            runs,
            "http://hub",
            state=self.folder,
            pack="field",
            env={},
            transport=self._network.end("hub"),
            senses=Senses(own_s=self._clock, boot_s=self._boot, draw=self._id),
        )
        self._exchange._runner.close()
        self._exchange._runner = Runner(self._loop)
        self.agent._records.leases._clock = self._clock
        self._escalation = Escalation(self.book, open_pool=self._open_pool)
        needs = [
            Need(
                spec.routing.pool,
                name,
                gateway=True,
                call_microusd=2_000 * spec.budget.max_output_tokens,
            )
            for name, spec in self.pack.tasks.items()
        ]
        self.book.ledger.expect(needs)
        self._files = [self.book._file.db, self.agent._records.leases.db, self.policies._db,
                       self.agent._policies._db]  # fmt: skip
        for file in self._files:
            file.transaction = _counted(self, file)

    def close(self) -> None:
        """End its processes, in whatever state its rows are."""
        self.steps_left = None
        self._escalation.close()
        self.agent.close()
        self.policies.close()
        self.book.close()

    def ask(self, task: str) -> Outcome | None:
        """Ask a pool; ``None`` where it was killed."""
        spec = self.pack.tasks[task]
        with self._living():
            return self._escalation.ask(task, spec, TEXT, trace_id=self._id())
        return None

    def clear(self) -> None:
        """Ask gateways what became of calls whose outcome is unclear."""
        with self._living():
            for hold in self.book.ledger.unclear_requests(50):
                self._escalation.clear(hold)

    def sync(self) -> Round | EdgeError | None:
        """Sync once; return what went wrong, if anything; ``None`` where it was killed."""
        with self._living():
            try:
                return self.agent.sync()
            except EdgeError as error:
                return error
        return None

    def join(self, code: str) -> None:
        """Join the fleet."""
        with self._living():
            try:
                self.agent.enrol(code)
            except EdgeError:
                return

    def kill(self) -> None:
        """Die between two steps, and start again."""
        self.close()
        self.open()

    def copy_disk(self, to: Path) -> None:
        """Copy its disk."""
        shutil.copytree(self.folder, to)

    def set_back(self, disk: Path) -> None:
        """Put an earlier copy of its disk in place."""
        self.close()
        shutil.rmtree(self.folder)
        shutil.copytree(disk, self.folder)
        self.open()

    def wipe(self) -> None:
        """Lose the disk."""
        self.close()
        shutil.rmtree(self.folder)
        self.open()

    def holds(self) -> list[Hold]:
        return self.book.ledger.holds()

    def shown(self) -> dict[str, int]:
        """Return what it shows as left of each open lease."""
        with self.book._file.db.reading() as connection:
            left = f"amount_microusd - ({USED})"
            sql = f"SELECT lease_id, {left} FROM leases WHERE state = 'open'"  # noqa: S608
            return dict(connection.execute(sql).fetchall())

    def _open_pool(self, name: str) -> Pool:
        return Pool(
            name,
            self.pack.pools[name],
            env={},
            transport=self._network.end(name),
            clock=self._loop.time,
            sleep=self._loop.pass_,
            rng=lambda: 0.5,
            wall=self._clock,
            signer=Signing(self.folder),
        )

    @contextmanager
    def _living(self) -> Iterator[None]:
        """Run a step; where it is killed in it, it starts again."""
        try:
            yield
        except (Gone, EdgeError):
            if self.steps_left != 0:
                raise
        finally:
            dead, self.steps_left = self.steps_left == 0, None
            if dead:
                self.kill()

    def _id(self) -> str:
        return f"{self._draw.getrandbits(128):032x}"


def _counted(device: DeviceSide, file: Database) -> Callable[[], Any]:
    """Return the file's transaction, before or after which its device may be killed."""
    begin = type(file).transaction.__get__(file)

    @contextmanager
    def transaction() -> Iterator[Any]:
        inside = file._connection.in_transaction if not file._closed else False
        if not inside:
            _step(device)
        with begin() as connection:
            yield connection
        if not inside:
            _step(device)

    return transaction


def _step(device: DeviceSide) -> None:
    if device.steps_left is None:
        return
    if device.steps_left > 0:
        device.steps_left -= 1
    if device.steps_left == 0:
        # Nothing that the code does on its way out reaches the disk any more.
        for file in device._files:
            file.close()
        raise Gone
