"""The way from the event loop to the store's writer and back, bounded and in order.

At most ``PARALLEL`` requests are worked on at once, so that a storm of them neither delays those
that have their answer ready nor fills the memory with half-done work; the others wait in the order
they came, up to a bound on their number and bytes. Leases leave once their number is noted.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from edge_sync.hub.budget import outside
from edge_sync.hub.refusals import Refused
from edge_sync.store.database import Store
from edge_sync.store.writing import Handler

PARALLEL = 256
MAX_WAITING = 50_000
MAX_WAITING_BYTES = 512_000_000
_RETRY_S = (5, 30)


class Places:
    """Turns at being worked on, and the bound on those who wait for one.

    Args:
        shed: is told of each request that is turned away.
        draw: the seconds to stay away, within a range.

    """

    def __init__(
        self, shed: Callable[[], None], *, draw: Callable[[int, int], int] = random.randint
    ) -> None:
        self._turns = asyncio.Semaphore(PARALLEL)
        self._waiting = 0
        self._bytes = 0
        self._shed = shed
        self._draw = draw

    @asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[None]:
        """Wait for a turn with a request of ``size`` bytes.

        Raises:
            Refused: too many wait.

        """
        if self._waiting >= MAX_WAITING or self._bytes + size > MAX_WAITING_BYTES:
            self._shed()
            raise Refused(
                "too_many",
                f"{self._waiting} requests wait at this hub.",
                hint="Come back later; nothing was taken.",
                retry_after_s=self._draw(*_RETRY_S),
            )
        self._waiting += 1
        self._bytes += size
        try:
            async with self._turns:
                yield
        finally:
            self._waiting -= 1
            self._bytes -= size


class Bridge:
    """Awaits writes; the loop is woken once for all that were committed together.

    Args:
        store: the hub's database.

    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._over: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._lock = threading.Lock()
        self._called = False

    async def write(self, handler: Handler, item: Any) -> Any:
        """Run one write, see ``Store.submit``, and return its result after the commit.

        Raises:
            Exception: its failure.

        """
        future: asyncio.Future[Any] = self._loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            with self._lock:
                self._over.append((future, result, error))
                call, self._called = not self._called, True
            if call:
                self._loop.call_soon_threadsafe(self._wake)

        self._store.submit(handler, item, settle)
        return await future

    def _wake(self) -> None:
        with self._lock:
            over, self._over = self._over, deque()
            self._called = False
        for future, result, error in over:
            if future.done():  # its request was given up
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


class Grants:
    """Notes outside of the database how many leases were granted, once for many that wait.

    Args:
        keys: the hub's keys folder.

    """

    def __init__(self, keys: Path) -> None:
        self._keys = keys
        self._noted = 0
        self._lock = asyncio.Lock()

    async def note(self, granted: int) -> None:
        """Return once at least so many are noted, durably.

        Raises:
            EdgeError: they are not; no lease of theirs may leave.

        """
        if granted <= self._noted:
            return
        async with self._lock:
            if granted > self._noted:
                await asyncio.to_thread(outside.raise_granted, self._keys, granted)
                self._noted = granted
