"""The labels that are still likely after a classification, as few as hold nearly all of it.

Pure arithmetic over shares; they need not be calibrated, ``ENOUGH`` is.
"""

from __future__ import annotations

from collections.abc import Iterable

ENOUGH = 0.99
"""Summed probability at which the labels left out are no longer likely."""
MOST = 10
"""More labels than this are no short list."""


def likely(shares: Iterable[tuple[str, float]], *, enough: float = ENOUGH) -> tuple[str, ...]:
    """Return the fewest labels whose probabilities come to ``enough``, best first.

    Args:
        shares: (label, probability) pairs that sum to 1.
        enough: 0..1.

    Returns:
        At most ``MOST`` labels; none where it would take more.

    """
    found, held = [], 0.0
    for label, share in sorted(shares, key=lambda pair: pair[1], reverse=True)[:MOST]:
        found.append(label)
        held += share
        if held >= enough:
            return tuple(found)
    return ()
