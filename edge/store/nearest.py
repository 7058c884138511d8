"""Vectors in memory, searched whole for the nearest: an index over rows that are kept elsewhere.

A search looks at every vector (one product of matrix and vector), so the answer is exact. What it
returns may be gone from where the rows are kept; whoever finds that drops it here. Not safe to
share between threads without a lock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_FIRST_ROOM = 64
_DIGITS = 3  # two bytes a number keep the cosine of two unit vectors to about 0.0002


class Nearest:
    """Vectors by the numbers of their rows.

    Attributes:
        latest: the highest number there was; 0 before the first.

    """

    def __init__(self) -> None:
        self.latest = 0
        self._count = 0
        self._seqs = np.zeros(0, np.int64)
        self._marks = np.zeros(0, np.int64)
        self._made_at = np.zeros(0, np.float64)
        self._vectors = np.zeros((0, 0), np.float32)

    def __len__(self) -> int:
        return self._count

    def add(
        self,
        seqs: Sequence[int],
        marks: Sequence[int],
        made_at: Sequence[float],
        vectors: NDArray[np.floating],
    ) -> None:
        """Add vectors, in the order of their numbers, which are above ``latest``.

        Args:
            seqs: numbers of their rows.
            marks: only what has the same marks is found.
            made_at: when, seconds.
            vectors: ``[len(seqs), dimensions]``, each of length 1, the same dimensions each time.

        """
        if not seqs:
            return
        first, self._count = self._count, self._count + len(seqs)
        self._make_room(vectors.shape[1])
        rows = slice(first, self._count)
        self._seqs[rows], self._marks[rows], self._made_at[rows] = seqs, marks, made_at
        self._vectors[rows] = vectors
        self.latest = seqs[-1]

    def best(
        self, vector: NDArray[np.float32], *, marks: int, since: float, until: float
    ) -> tuple[int, float] | None:
        """Return (number, cosine) of the nearest vector with the same marks.

        Args:
            vector: float32 ``[dimensions]``, of length 1.
            marks: see ``add``.
            since: it was made after that, seconds.
            until: and not after that.

        Returns:
            the cosine to three decimals, -1..1; ``None`` where there is no such vector.

        """
        if not self._count:
            return None
        rows = slice(0, self._count)
        made_at = self._made_at[rows]
        fits = (self._marks[rows] == marks) & (made_at > since) & (made_at <= until)
        if not fits.any():
            return None
        cosines = np.where(fits, self._vectors[rows] @ vector, -math.inf)
        found = int(cosines.argmax())
        return int(self._seqs[found]), round(float(cosines[found]), _DIGITS)

    def drop(self, seq: int) -> None:
        """Never return a number again."""
        self._made_at[: self._count][self._seqs[: self._count] == seq] = math.inf

    def _make_room(self, dimensions: int) -> None:
        room = len(self._seqs)
        if room >= self._count:
            return
        more = max(self._count, 2 * room, _FIRST_ROOM) - room
        self._seqs = np.pad(self._seqs, (0, more))
        self._marks = np.pad(self._marks, (0, more))
        self._made_at = np.pad(self._made_at, (0, more))
        grown = np.zeros((room + more, dimensions), np.float32)
        if room:
            grown[:room] = self._vectors
        self._vectors = grown
