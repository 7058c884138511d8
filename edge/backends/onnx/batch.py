"""Gathers what several threads ask at once into one pass; no thread of its own, no waiting time.

The first caller leads: it runs its own rows at once. Who comes meanwhile waits, and one of them
runs all that waited. A lone caller never waits. Knows nothing of models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.errors import EdgeError

Rows = Sequence[Sequence[int]]
Vectors = NDArray[np.float32]


@dataclass(eq=False, slots=True)
class _Call:
    """One caller's rows and, once ``done``, its vectors or its error."""

    rows: Rows
    done: bool = False
    found: Vectors | None = None
    error: EdgeError | None = None

    def result(self) -> Vectors:
        if self.error is not None:
            raise self.error
        assert self.found is not None  # noqa: S101  # a call that is done has one of the two
        return self.found


class Gatherer:
    """Runs callers' rows together. Safe to call from several threads.

    Args:
        work: returns one vector per row, float32 ``[rows, dimensions]``.
        most: rows after which no further caller joins a pass.

    """

    def __init__(self, work: Callable[[Rows], Vectors], *, most: int) -> None:
        self._work = work
        self._most = most
        self._turn = threading.Condition()
        self._waiting: list[_Call] = []
        self._led = False

    def run(self, rows: Rows) -> Vectors:
        """Return one vector per row; raises what ``work`` raises on these rows."""
        call = _Call(rows)
        with self._turn:
            self._waiting.append(call)
            self._turn.wait_for(lambda: call.done or not self._led)
            if call.done:
                return call.result()
            self._led = True
            joined = self._take(call)
        try:
            self._lead(joined)
        finally:
            with self._turn:
                self._led = False
                self._turn.notify_all()
        return call.result()

    def _take(self, own: _Call) -> list[_Call]:
        """Return the leader's call and those that waited longest, as many as fit."""
        self._waiting.remove(own)
        joined, rows = [own], len(own.rows)
        while self._waiting and rows + len(self._waiting[0].rows) <= self._most:
            rows += len(self._waiting[0].rows)
            joined.append(self._waiting.pop(0))
        return joined

    def _lead(self, joined: list[_Call]) -> None:
        try:
            found = self._work([row for call in joined for row in call.rows])
        except EdgeError as error:
            self._one_by_one(joined, error)
        except BaseException:  # such as an interrupt, which is the leader's alone
            with self._turn:
                self._waiting[:0] = joined[1:]
            raise
        else:
            start = 0
            for call in joined:
                call.found, call.done = found[start : start + len(call.rows)], True
                start += len(call.rows)

    def _one_by_one(self, joined: list[_Call], error: EdgeError) -> None:
        """Run each call alone, so that one caller's input does not fail the others."""
        for call in joined:
            try:
                if len(joined) == 1:
                    raise error
                call.found = self._work(call.rows)
            except EdgeError as own:
                call.error = own
            call.done = True
