"""Calls by their idempotency key: what was asked first, and what it gave.

    running -> known          running -> open (its process ended, or the call raised) -> running

Guarantees: of all threads and processes one runs a key at a time; what ``finish`` acknowledged is
on disk; a key is bound to its task and input as long as it is kept. Kept are the latest 10,000 keys
for 30 days each; one that runs, or whose task still waits, is kept beyond that. Knows no queue
beyond that, and keeps of the input its sha256 alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from edge.errors import InputError
from edge.store.money import MoneyFile
from edge.store.queued import dump

KEPT_KEYS = 10_000
KEPT_S = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class Repeat:
    """What a key came to.

    Attributes:
        state: ``mine``: to be run now. ``running``: somebody runs it. ``known``: see ``result``.
        trace_id: under which it is, or was first, run.
        again: somebody began to run it before and came to no end.
        paid: a request of it may have been billed.
        result: what it gave.

    """

    state: Literal["mine", "running", "known"]
    trace_id: str
    again: bool = False
    paid: bool = False
    result: dict[str, Any] | None = None


class Repeats:
    """The keys of one state folder; safe to share between threads and processes."""

    def __init__(self, file: MoneyFile, *, kept_keys: int = KEPT_KEYS) -> None:
        self._file = file
        self._kept_keys = kept_keys

    def begin(self, key: str, *, task: str, input_sha256: str, trace_id: str) -> Repeat:
        """Take a key to run its call, or learn what came of it; durable when it returns.

        Raises:
            InputError: the key belongs to another task or input.
            StoreError: the file cannot be written; nothing is taken.

        """
        with self._file.transaction() as connection:
            self._file.recover()
            row = connection.execute(
                "SELECT task, input_sha256, trace_id, owner, result FROM repeats WHERE key = ?",
                (key,),
            ).fetchone()
            if row is None:
                self._prune()
                connection.execute(
                    "INSERT INTO repeats (key, task, input_sha256, trace_id, owner, at) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (key, task, input_sha256, trace_id, self._file.owner, self._file.clock()),
                )
                return Repeat("mine", trace_id)
            if row[:2] != (task, input_sha256):
                what = f"another task, {row[0]}" if row[0] != task else "another input or pack"
                raise InputError(
                    f"The idempotency key {key!r} was used for {what}.",
                    hint="Use a new key for a new question.",
                )
            first, owner, result = row[2:]
            if result is not None:
                return Repeat("known", first, result=json.loads(result))
            if owner is not None:
                return Repeat("running", first)
            connection.execute(
                "UPDATE repeats SET owner = ? WHERE key = ?", (self._file.owner, key)
            )
            (holds,) = connection.execute(
                "SELECT count(*) FROM holds WHERE trace_id = ? AND state <> 'released'", (first,)
            ).fetchone()
            return Repeat("mine", first, again=True, paid=holds > 0)

    def finish(self, key: str, result: dict[str, Any]) -> None:
        """Keep what a key's call gave; durable when it returns.

        Raises:
            InputError: the result is no JSON.

        """
        text = dump("result", result)
        with self._file.transaction() as connection:
            connection.execute(
                "UPDATE repeats SET result = ?, owner = NULL WHERE key = ?", (text, key)
            )

    def leave(self, key: str) -> None:
        """Let the next one run a key: this call came to no end."""
        with self._file.transaction() as connection:
            connection.execute("UPDATE repeats SET owner = NULL WHERE key = ?", (key,))

    def _prune(self) -> None:
        with self._file.transaction() as connection:
            connection.execute(
                "DELETE FROM repeats WHERE owner IS NULL "
                "AND (at < ? OR seq <= (SELECT max(seq) FROM repeats) - ?) "
                "AND trace_id NOT IN "
                "(SELECT trace_id FROM queued WHERE state IN ('waiting', 'claimed'))",
                (self._file.clock() - KEPT_S, self._kept_keys - 1),
            )
