"""Waiting for an answer that something else may make pointless."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

EVERY_S = 1.0
"""So often it is looked at whether the wait is still worth it."""

T = TypeVar("T")


class Ended(Exception):  # noqa: N818 - says what it is
    """The wait was ended before there was an answer."""


async def unless(work: Coroutine[Any, Any, T], pointless: Callable[[], bool]) -> T:
    """Wait for some work, and cancel it once it is pointless.

    Args:
        work: what is waited for.
        pointless: looked at every ``EVERY_S``; what it raises ends the wait as well.

    Raises:
        Ended: it became pointless.

    """
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=EVERY_S))[0]:
            if pointless():
                raise Ended
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
