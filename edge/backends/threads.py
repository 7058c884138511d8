"""How many threads a model's forward pass gets: measured, not counted.

The number of cores says little: on a small model two threads can be several times slower than
one, and a busy machine has fewer cores than it shows. The caller gives the measurement; nothing
here reads a clock. Knows nothing of engines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from edge.errors import ConfigError

BUDGET_S = 0.1
"""Measured seconds after which a candidate is tried only once."""

ENOUGH_FASTER = 0.9
"""More threads are worth their energy only below this share of the time of fewer."""

_REPEATS = 3
_HOPELESS = 2.0
_ENV = "EDGE_THREADS"


def choose_threads(
    measure: Callable[[int], float],
    *,
    candidates: Sequence[int],
    budget_s: float = BUDGET_S,
) -> int:
    """Return the candidate with the fastest forward pass, fewer threads in doubt.

    Args:
        measure: runs one forward pass with so many threads and returns its seconds. The first
            call warms up and does not count; then each candidate has up to three, of which the
            fastest counts.
        candidates: thread counts, fewest first; once one brings nothing the larger ones are not
            tried.
        budget_s: seconds of measurement after which each candidate has only one pass.

    """
    best, best_s = candidates[0], float("inf")
    if len(candidates) == 1:
        return best
    spent_s = measure(best)
    for threads in candidates:
        fastest_s = float("inf")
        for _ in range(_REPEATS):
            taken_s = measure(threads)
            spent_s += taken_s
            fastest_s = min(fastest_s, taken_s)
            if spent_s >= budget_s or taken_s > _HOPELESS * best_s:
                break
        if fastest_s >= best_s * ENOUGH_FASTER:
            break
        best, best_s = threads, fastest_s
    return best


def thread_candidates(cores: int | None = None) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and the number of cores this process may use.

    Args:
        cores: the number to use instead of asking the system.

    """
    if cores is None:
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    counts = {1, cores}
    count = 2
    while count < cores:
        counts.add(count)
        count *= 2
    return tuple(sorted(counts))


def fixed_threads(threads: int | None, env: Mapping[str, str] = os.environ) -> int | None:
    """Return the thread count that was asked for, or ``None`` where it is to be measured.

    Args:
        threads: an explicit count; where ``None``, ``EDGE_THREADS`` counts.
        env: the environment to read.

    Raises:
        ConfigError: the count is not a positive integer.

    """
    text = env.get(_ENV, "") if threads is None else str(threads)
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        where = _ENV if threads is None else "threads"
        raise ConfigError(f"{where} is {text!r} but must be an integer of at least 1.")
    return int(text)
