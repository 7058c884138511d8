"""An event loop that never waits: where nothing is left to do, its time moves to the next timer.

All of a world runs in one thread: what the code hands to other threads is run at once.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


class _Jump(selectors.SelectSelector):
    """Moves the time by as long as it was to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("Something waits for what nobody will do.")
        self.at += timeout
        return []


class Loop(asyncio.SelectorEventLoop):
    """The loop; its time begins at 0."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.at

    def run_in_executor(self, _executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Run it at once."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
            future.set_exception(error)
        return future

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
        return self.call_soon(*args, **kwargs)

    def pass_(self, seconds: float) -> None:
        """Let time go by."""
        self.run_until_complete(asyncio.sleep(seconds))

    def cancel(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """End tasks."""
        gone = list(tasks)
        for task in gone:
            task.cancel()
        self.run_until_complete(asyncio.gather(*gone, return_exceptions=True))


class Runner:
    """Stands for ``asyncio.Runner`` over a loop that others use too."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        """Leave the loop to the others."""


class Inline(Executor):
    """Runs what it is given at once."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
            future.set_exception(error)
        return future

    def map(self, fn: Callable[..., T], *iterables: Iterable[Any], **_: Any) -> Iterator[T]:
        return iter([fn(*each) for each in zip(*iterables, strict=True)])
