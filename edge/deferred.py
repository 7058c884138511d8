"""The part of a runtime that sees to work that waits: draining, results, cancelling, repeats.

Thread-safe; starts no thread. Functions given to ``on_upgrade`` run in the thread that calls
``drain`` or ``on_upgrade``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncGenerator, Callable, Sequence

from edge.activation import Activation
from edge.drain import Drained
from edge.errors import InputError
from edge.repeating import Repeating
from edge.store.book import Book
from edge.store.queue import Cancelled
from edge.types import Result
from edge.upgrades import Failed, Upgrades, allowed, raise_first, result_of


class Deferred:
    """What ``Runtime`` offers for tasks that could not be answered at once."""

    book: Book
    _activation: Activation
    _upgrades: Upgrades
    _repeating: Repeating

    def _see_to_what_waits(self, pack: str) -> None:
        in_force = self._activation.now
        self._upgrades = Upgrades(self.book.queue, pack=pack, standing=in_force)
        self._repeating = Repeating(
            self.book,
            pack=pack,
            result_of=lambda queued: result_of(queued, in_force()),
            allowed=lambda result: allowed(result, in_force()),
        )

    def drain(self, task_ids: Sequence[str] | None = None, *, limit: int = 100) -> Drained:
        """Ask the cloud for queued tasks whose time has come, by priority, deadline and age.

        A pool that fails or has no money is left alone for the rest of the pass. What comes of each
        task is handed to the functions of ``on_upgrade``; the first exception of one is raised at
        the end of the pass, and its result comes again with the next.

        Args:
            task_ids: only these, by id or its beginning, or by trace id; due at once, even if given
                up or if an earlier attempt may have been billed.
            limit: how many at most.

        Raises:
            InputError: no queued task has such an id, or several have; or the ids are one text.

        """
        if isinstance(task_ids, str | bytes):
            raise InputError(
                "The ids to drain are one text, not a list of them.", hint="Pass a list of ids."
            )
        in_force = self._activation.now
        failed: Failed = {}
        drained = in_force().draining.drain(
            task_ids,
            limit=limit,
            latest=lambda: in_force().draining,
            ended=functools.partial(self._upgrades.deliver, failed),
        )
        raise_first(failed)
        return drained

    def on_upgrade(self, fn: Callable[[Result], object]) -> None:
        """Hand what becomes of queued tasks to a function, those that wait for it already at once.

        It is called with each result at least once, across restarts: a result counts as taken when
        the function has returned. It is called in the thread that calls ``drain`` or this method,
        one result at a time; an exception of it is raised there, and its result comes again.
        A result without an answer says why in its ``reasons``: ``expired``, ``cancelled``, or what
        the pool refused.

        Args:
            fn: takes a result.

        Raises:
            InputError: it cannot be called.

        """
        if not callable(fn):
            raise InputError(
                f"What is to take upgrades is of type {type(fn).__name__}, which cannot be called.",
                hint="Pass a function that takes one result.",
            )
        self._upgrades.on(fn)

    def upgrades(self, *, poll_s: float = 1.0, follow: bool = True) -> AsyncGenerator[Result, None]:
        """Return an async iterator over what becomes of queued tasks, the oldest first.

        At least once, as ``on_upgrade``: a result counts as taken when the next one is asked for.
        It looks into the state folder from a thread of asyncio's pool; ``drain`` asks the cloud.

        Args:
            poll_s: how often to look, seconds.
            follow: wait for more; else end where nothing is left to take.

        Raises:
            InputError: poll_s is no number above 0.

        """
        if not _is_number(poll_s) or not poll_s > 0:
            raise InputError(
                f"The poll_s is {poll_s!r}, which is no number of seconds above 0.",
                hint="Pass how often to look, for example 1.",
            )
        return self._upgrades.stream(poll_s=poll_s, follow=follow)

    def wait(self, task: str, *, timeout_s: float) -> Result | None:
        """Wait until a queued task has ended, here or in another process; asks nobody itself.

        Args:
            task: ``Result.trace_id`` or ``Result.task_id``.
            timeout_s: how long at most; 0 looks once.

        Returns:
            what came of it, which then counts as taken; ``None`` where it has not ended.

        Raises:
            InputError: no queued task has such an id, or the timeout is no number.

        """
        if not _is_number(timeout_s):
            raise InputError(
                f"The timeout_s is {timeout_s!r}, which is no number of seconds.",
                hint="Pass how long to wait at most; 0 looks once.",
            )
        return self._upgrades.wait(task, timeout_s)

    def cancel(self, task: str) -> Cancelled:
        """Give up on a queued task.

        Args:
            task: ``Result.trace_id``, or ``Result.task_id`` or its beginning.

        Returns:
            ``released``: it waited, and is never sent from now on. ``in_flight``: a pool is being
            asked; the answer may be paid for, is recorded so, and is not given out. ``ended``: it
            had ended before, and nothing changed.

        Raises:
            InputError: no queued task has such an id, or several have.

        """
        queue = self.book.queue
        return queue.cancel(queue.find(task).id)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)
