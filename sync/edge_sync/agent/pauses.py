"""How long to wait before asking a hub again: pure rules over what went wrong and a random number.

Full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): a fleet whose
hub comes back does not come back all at once.
"""

from __future__ import annotations

from collections.abc import Callable

from edge.errors import ConfigError, EdgeError, HubDistrusted, PolicyError
from edge_sync.agent.exchange import HubBusy, HubRefused

FIRST_S, LONGEST_S = 2.0, 300.0
"""Of pauses after a hub did not answer."""

DISTRUST_FIRST_S, DISTRUST_LONGEST_S = 60.0, 3_600.0
"""Of pauses after an answer that fails verification: asking again soon does not make it right."""

SPREAD = 0.2
"""How much earlier or later than told a device comes back, as a share."""

_FOR_GOOD = frozenset({"bad_code", "expired_code", "duplicate_device"})
_AT_ONCE = frozenset({"expired_token", "replayed"})

Draw = Callable[[], float]
"""Uniform in 0..1."""


def is_final(error: EdgeError) -> bool:
    """Whether asking again cannot help before a person has done something."""
    if isinstance(error, HubRefused):
        return error.code in _FOR_GOOD
    return isinstance(error, ConfigError)


def after(error: EdgeError, failures: int, draw: Draw) -> float:
    """Return the seconds to wait after a failure.

    Args:
        error: the last one.
        failures: how many there were in a row, with this one.
        draw: uniform in 0..1.

    """
    if isinstance(error, HubBusy) and error.retry_after_s is not None:
        return error.retry_after_s * (1 + SPREAD * draw())
    if isinstance(error, HubRefused) and error.code in _AT_ONCE and failures == 1:
        return 0.0
    first, longest = FIRST_S, LONGEST_S
    if isinstance(error, HubDistrusted | HubRefused | PolicyError):
        first, longest = DISTRUST_FIRST_S, DISTRUST_LONGEST_S
    most = min(longest, first * 2.0 ** min(failures - 1, 30))
    return most * draw()


def until_sync(next_sync_s: float, draw: Draw) -> float:
    """Return in how many seconds to sync again."""
    return next_sync_s * (1 + SPREAD * (2 * draw() - 1))
