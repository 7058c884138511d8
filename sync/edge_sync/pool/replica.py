"""One copy of the model, as Ray runs it in a process of its own.

Guarantees: each call ends with ``End`` or ``Failed``; a call that nobody waits for any more is
ended within a step of the model. Knows neither Ray nor HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from edge_sync.pool.asked import Asked, Event, Failed, Text
from edge_sync.pool.config import Settings
from edge_sync.pool.engine import open_engine


class Replica:
    """Answers calls, ``settings.ongoing`` at once.

    Args:
        settings: of the pool.

    Raises:
        EdgeError: the engine cannot be opened.

    """

    def __init__(self, settings: Settings) -> None:
        self._engine = open_engine(settings)
        self._threads = ThreadPoolExecutor(settings.ongoing, thread_name_prefix="call")

    async def answer(self, asked: Asked) -> AsyncIterator[list[Event]]:
        """Yield the events of an answer, those together that came together.

        Nothing is yielded before the end where the request is for a whole answer.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event] = asyncio.Queue()
        gone = threading.Event()

        def put(event: Event) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, event)

        def run() -> None:
            try:
                self._engine.run(asked, put, gone.is_set)
            except Exception as error:  # noqa: BLE001 - the caller must hear of an end
                put(Failed(500, "engine_failed", f"{type(error).__name__}: {error}"))

        self._threads.submit(run)
        events: list[Event] = []
        try:
            while True:
                events.append(await queue.get())
                while not queue.empty():
                    events.append(queue.get_nowait())
                ended = not isinstance(events[-1], Text)
                if ended or asked.stream:
                    yield events
                    events = []
                if ended:
                    return
        finally:
            gone.set()

    def check_health(self) -> None:
        """Raise where the engine does not work any more; Ray replaces the replica then."""
        self._engine.check()

    def __del__(self) -> None:
        """End the engine; Ray calls this when a replica has no more calls."""
        if hasattr(self, "_threads"):
            self._threads.shutdown(wait=False)
            self._engine.close()
