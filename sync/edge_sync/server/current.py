"""What the server knows at this moment, kept up to date, and who waits for news.

A thread looks at ``generation`` five times a second and reads a new view when it has risen; devices
that wait for another policy than they hold are then woken, in the order they came. The view is
immutable but for its caches and is taken once per request.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass

from edge_sync.hub.home import Hub, read_fact
from edge_sync.hub.view import Known, View, build_bundle, find_device, read_view
from edge_sync.server.logs import Log
from edge_sync.trust.repository import Repository

POLL_S = 0.2


@dataclass(eq=False, slots=True)
class Waiter:
    """A device that waits for a version tag other than the one it has."""

    device_id: str
    group: str
    etag: str
    woken: asyncio.Future[bool]


class Current:
    """The newest view, the signer of times, and the waiting devices.

    Attributes:
        view: of the database.
        signer: over the metadata of that view.
        trouble: why the database cannot be read now; empty where it can.

    """

    def __init__(self, hub: Hub, log: Log) -> None:
        self.hub = hub
        self.log = log
        self.waiters: set[Waiter] = set()
        self.ended = False
        self.trouble = ""
        self.view, self.signer = self._read()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="edge-hub-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch; inside the event loop that serves."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def end(self) -> None:
        """Stop watching and let all waiting devices go."""
        self.ended = True
        self._stop.set()
        for waiter in self.waiters:
            if not waiter.woken.done():
                waiter.woken.set_result(False)

    async def device(self, device_id: str) -> Known | None:
        """Return a device; one that joined since the view was read is looked up."""
        view = self.view
        known = view.devices.get(device_id)
        if known is None and len(device_id) == 32 and device_id.isalnum():  # noqa: PLR2004 - as wire.Id
            known = await asyncio.to_thread(self._look_up, device_id)
            if known is not None:
                view.devices[device_id] = known
        return known

    async def bundle(self, view: View, *, root: int, serial: int, with_policy: bool) -> bytes:
        """Return a bundle as JSON; built at most once for each view and combination."""
        root = min(max(root, 0), len(view.roots))
        found = view.bundles.get((root, serial, with_policy))
        if found is not None:
            return found
        return await asyncio.to_thread(self._build, view, root, serial, with_policy)

    def _look_up(self, device_id: str) -> Known | None:
        with self.hub.store.reading() as connection:
            return find_device(connection, device_id)

    def _build(self, view: View, root: int, serial: int, with_policy: bool) -> bytes:
        with self.hub.store.reading() as connection:
            return build_bundle(connection, view, root=root, serial=serial, with_policy=with_policy)

    def _read(self) -> tuple[View, Repository]:
        with self.hub.store.reading() as connection:
            return read_view(connection), self.hub.signing(connection)

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - the old view serves until the next look
                if not self.trouble:
                    self.log.event("database.trouble", level="error", reason=str(error))
                self.trouble = str(error) or type(error).__name__

    def _look(self) -> None:
        with self.hub.store.reading() as connection:
            generation = read_fact(connection, "generation") or 0
        if self.trouble:
            self.trouble = ""
            self.log.event("database.back")
        if generation != self.view.generation and self._loop is not None:
            view, signer = self._read()
            with suppress(RuntimeError):  # the loop has ended in between
                self._loop.call_soon_threadsafe(self._take, view, signer)

    def _take(self, view: View, signer: Repository) -> None:
        self.view, self.signer = view, signer
        self.log.event("view", generation=view.generation, waiting=len(self.waiters))
        for waiter in self.waiters:
            known = view.devices.get(waiter.device_id)
            group = waiter.group if known is None else known.group
            gone = known is not None and known.status == "revoked"
            offers = view.serial(waiter.device_id, group)
            moved = offers and view.etag(waiter.device_id, group) != waiter.etag
            if (gone or moved) and not waiter.woken.done():
                waiter.woken.set_result(True)
