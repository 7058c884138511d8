"""A circuit breaker: a pool that keeps failing is left alone for a while.

closed -> open after so many failures in a row -> half open after the cool-down: one call may try,
and its outcome closes or opens the circuit again. Thread-safe; the clock comes in as an argument.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from edge.errors import CircuitOpen

State = Literal["closed", "open", "half-open"]


class Breaker:
    """The breaker of one pool.

    Args:
        failures: failures in a row that open the circuit.
        cooldown_s: how long it stays open.
        clock: seconds, monotonic.
        name: the pool's name, for the error.

    """

    def __init__(
        self,
        failures: int,
        cooldown_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str,
    ) -> None:
        self._name, self._limit, self._cooldown_s, self._clock = name, failures, cooldown_s, clock
        self._lock = threading.Lock()
        self._failed = 0
        self._opened_at: float | None = None
        self._probing = False

    @property
    def state(self) -> State:
        """The state now."""
        with self._lock:
            if self._opened_at is None:
                return "closed"
            return "half-open" if self._left() <= 0 else "open"

    def before(self) -> None:
        """Ask for leave to call; it ends with ``success``, ``failure`` or ``cancel``.

        Raises:
            CircuitOpen: the circuit is open, or half open and another call is trying.

        """
        with self._lock:
            if self._opened_at is None:
                return
            left = self._left()
            if left > 0 or self._probing:
                wait = f"for {left:.0f} more seconds" if left > 0 else "while one call tries it"
                raise CircuitOpen(f"Pool {self._name} failed repeatedly and is left alone {wait}.")
            self._probing = True

    def success(self) -> None:
        """Record that the pool answered."""
        with self._lock:
            self._failed, self._opened_at, self._probing = 0, None, False

    def failure(self) -> None:
        """Record that the pool failed."""
        with self._lock:
            self._failed += 1
            if self._probing or self._failed >= self._limit:
                self._opened_at = self._clock()
            self._probing = False

    def cancel(self) -> None:
        """Record that nothing was learned: the call never left or was broken off."""
        with self._lock:
            self._probing = False

    def _left(self) -> float:
        opened = self._clock() if self._opened_at is None else self._opened_at
        return opened + self._cooldown_s - self._clock()
