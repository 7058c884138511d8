"""Ledger and queue over one file, and the transaction that spans both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from edge.store.ledger import Ledger, Period
from edge.store.money import MoneyFile
from edge.store.queue import MAX_WAITING, Queue
from edge.store.repeats import Repeats


class Book:
    """The money and the waiting work of one state folder.

    Attributes:
        ledger: holds on the budget.
        queue: tasks that wait.
        repeats: calls by their idempotency key.

    """

    def __init__(
        self, file: MoneyFile, *, cap_microusd: int | None, period: Period, max_waiting: int
    ) -> None:
        self._file = file
        self.ledger = Ledger(file, cap_microusd=cap_microusd, period=period)
        self.queue = Queue(file, max_waiting=max_waiting)
        self.repeats = Repeats(file)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        cap_microusd: int | None,
        period: Period,
        max_waiting: int = MAX_WAITING,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open or create both; see ``Ledger.open``.

        Raises:
            InputError: the cap or the period is not valid.
            StoreError: the folder cannot be used.

        """
        file = MoneyFile(folder, clock=clock)
        try:
            return cls(file, cap_microusd=cap_microusd, period=period, max_waiting=max_waiting)
        except BaseException:
            file.close()
            raise

    def limit(self, *, cap_microusd: int | None, period: Period) -> None:
        """Set another cap from now on; below what is spent it refuses every new hold.

        Raises:
            InputError: the cap or the period is not valid.

        """
        if (cap_microusd, period) != (self.ledger.cap_microusd, self.ledger.period):
            self.ledger = Ledger(self._file, cap_microusd=cap_microusd, period=period)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the enclosed calls of ledger and queue one change: all of them or none.

        Raises:
            StoreError: the change cannot be written; nothing of it remains.

        """
        with self._file.transaction():
            yield

    def recover(self) -> int:
        """Put the rows of dead owners right; opening and claiming do so by themselves."""
        return self._file.recover()

    def inspect(self) -> dict[str, object]:
        """Return the file's path, SQLite version, journal mode and rows per table."""
        return self._file.db.inspect()

    def close(self) -> None:
        """Close the file; unfinished holds and claims are put right by the next opening."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
