"""A call with an idempotency key is answered once, however often it is made.

Guarantees: the same key with the same task, text and context gives the first result, or what has
become of the task that was queued for it; with another input it is an ``InputError``. Callers at
once wait for the first one. Where its process was killed the call is made again under the same
trace, but no pool is asked once more where one may have been paid already. Holds across restarts,
for as long as ``edge.store.repeats`` keeps the key.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

from edge.errors import InputError, StoreError
from edge.store.book import Book
from edge.store.queued import QueuedTask
from edge.store.repeats import Repeat
from edge.types import Reason, Result, Route

Asked: TypeAlias = tuple[str, str, Mapping[str, object]]
"""Task, text and context."""

MOST_CHARS = 200
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


class Answer(Protocol):
    """Makes a call."""

    def __call__(self, *, trace_id: str, paid: bool) -> Result:
        """Return its result; no pool is asked where one may have been ``paid`` for it before."""


class Repeating:
    """The calls of one runtime that have a key.

    Args:
        book: queue and keys.
        pack: whose calls they are; a key of another pack over the same folder is not this one's.
        result_of: returns what is known of a queued task as a result.
        allowed: returns of a result what may be given out by now.
        sleep: waits for so many seconds.

    """

    def __init__(
        self,
        book: Book,
        *,
        pack: str,
        result_of: Callable[[QueuedTask], Result],
        allowed: Callable[[Result], Result] = lambda result: result,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._book = book
        self._pack = pack
        self._result_of = result_of
        self._allowed = allowed
        self._sleep = sleep

    def once(self, key: str, asked: Asked, answer: Answer) -> Result:
        """Return what a key's call gave, or make it.

        Args:
            key: of the call.
            asked: task, text and context, made sure to be valid.
            answer: makes the call.

        Raises:
            InputError: the key is none, or belongs to another task or input.
            StoreError: the state folder cannot be written; nothing was asked.

        """
        check_key(key)
        task, digest, trace_id = asked[0], _digest(self._pack, *asked[1:]), uuid.uuid4().hex
        pause_s = _FIRST_PAUSE_S
        while True:
            repeat = self._book.repeats.begin(
                key, task=task, input_sha256=digest, trace_id=trace_id
            )
            if repeat.state != "running":
                break
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if repeat.result is None:
            return self._allowed(self._run(key, repeat, answer))
        queued = self._book.queue.of_trace(repeat.trace_id)
        ended = queued is not None and queued.is_over
        found = self._result_of(queued) if queued and ended else result_from(repeat.result)
        return self._allowed(found)

    def _run(self, key: str, repeat: Repeat, answer: Answer) -> Result:
        try:
            queued = self._book.queue.of_trace(repeat.trace_id) if repeat.again else None
            # Its process was killed between queueing and telling.
            result = (
                self._result_of(queued)
                if queued
                else answer(trace_id=repeat.trace_id, paid=repeat.paid)
            )
            self._book.repeats.finish(key, result.as_dict())
        except BaseException:
            with suppress(StoreError):  # it must not hide the cause
                self._book.repeats.leave(key)
            raise
        return result


def check_key(key: str) -> None:
    """Make sure that a key can be one.

    Raises:
        InputError: it is no text, empty or too long.

    """
    fits = isinstance(key, str) and key.strip() and len(key) <= MOST_CHARS
    if not fits or any("\ud800" <= each <= "\udfff" for each in key):
        raise InputError(
            f"The idempotency key must be a text of 1 to {MOST_CHARS} characters of Unicode.",
            hint="Pass for example a UUID, made once for each thing the user does.",
        )


def result_from(kept: Mapping[str, Any]) -> Result:
    """Return the result whose ``as_dict`` was kept."""
    interval = kept["interval"]
    return Result(
        **{
            **kept,
            "route": Route(kept["route"]),
            "reasons": tuple(Reason(reason) for reason in kept["reasons"]),
            "interval": None if interval is None else (interval[0], interval[1]),
        }
    )


def _digest(pack: str, text: str, context: Mapping[str, object]) -> str:
    told = json.dumps([pack, text, sorted(context.items())], ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()
