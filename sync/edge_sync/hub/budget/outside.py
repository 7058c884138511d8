"""``keys/money.json``: what of the money must outlive the database.

Guarantees: the file is whole at every moment and on disk when a write returns; epoch, number of
leases and number of changes in it never fall. The hub writes it after its commit and before a lease
leaves, so a database that has less of any of them than the file was set back. Every replica has a
file of its own. Knows no tables and decides nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import ConfigError, EdgeError, StoreError
from edge_sync.keys import write_private
from edge_sync.money.caps import Cap, Caps, Scope
from edge_sync.money.periods import Kind

NAME = "money.json"
_LOCK = "money.lock"
_MAX_BYTES = 10_000_000

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        """Wait for an exclusive lock; closing the descriptor gives it back."""
        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        """Wait for an exclusive lock; closing the descriptor gives it back."""
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@dataclass(frozen=True, slots=True)
class Gate:
    """Where a pool's money is counted; without a URL where its grade is ``escrow``."""

    pool_id: str
    url: str
    grade: str


@dataclass(frozen=True, slots=True)
class Outside:
    """What the file holds.

    Attributes:
        epoch: that leases are granted in; 0 before the first.
        granted: leases granted so far, over all epochs.
        recovering: the gateways have not all been asked since the database was set back.
        changes: how often caps and gateways were changed.

    """

    epoch: int = 0
    granted: int = 0
    recovering: bool = False
    caps: tuple[Cap, ...] = ()
    gateways: tuple[Gate, ...] = ()
    changes: int = 0

    def ahead_of(self, *, epoch: int, granted: int, changes: int) -> bool:
        """Return whether a database with these numbers was set back.

        Read the file before the database: a lease that is granted meanwhile is then only there.
        """
        return self.epoch > epoch or self.granted > granted or self.changes > changes


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Cap(_Strict):
    scope: str
    kind: Kind
    amount_microusd: int


class _Gate(_Strict):
    pool_id: str
    url: str
    grade: str


class _File(_Strict):
    epoch: Annotated[int, Field(ge=0)]
    granted: Annotated[int, Field(ge=0)]
    recovering: bool
    caps: list[_Cap]
    gateways: list[_Gate]
    changes: Annotated[int, Field(ge=0)] = 0


def read(keys: Path) -> Outside:
    """Read the file of a keys folder; one that is not there holds nothing.

    Raises:
        ConfigError: it cannot be read, or is not what this module writes.

    """
    path = keys / NAME
    try:
        with path.open("rb") as file:
            found = _File.model_validate_json(file.read(_MAX_BYTES))
        caps = [Cap(Scope.parse(each.scope), each.kind, each.amount_microusd)
                for each in found.caps]  # fmt: skip
        return Outside(
            found.epoch,
            found.granted,
            found.recovering,
            Caps.of(caps).caps,
            tuple(Gate(**each.model_dump()) for each in found.gateways),
            found.changes,
        )
    except FileNotFoundError:
        return Outside()
    except (OSError, ValidationError, EdgeError) as error:
        reason = getattr(error, "strerror", None) or "it does not hold what the hub writes there"
        raise ConfigError(
            f"File {path} cannot be read: {reason}.",
            hint="Copy it from another replica or the last copy of the keys folder: without it "
            "a database that was set back would not be noticed.",
        ) from error


def change(keys: Path, step: Callable[[Outside], Outside]) -> Outside:
    """Write what a step makes of the file, and return it; nobody else changes it meanwhile.

    Args:
        keys: the folder.
        step: may read the database and must not write it; what it raises leaves the file alone.

    Raises:
        ConfigError: what is there cannot be read.
        StoreError: it cannot be written.

    """
    with _locked(keys):
        before = read(keys)
        return _put(keys, before, step(before))


def raise_granted(keys: Path, granted: int) -> None:
    """Note how many leases were granted; call it after the commit, before any of them leaves.

    Raises:
        ConfigError: what is there cannot be read.
        StoreError: it cannot be written; the leases must not leave.

    """
    change(keys, lambda before: replace(before, granted=max(before.granted, granted)))


def _put(keys: Path, before: Outside, outside: Outside) -> Outside:
    after = replace(
        outside,
        epoch=max(before.epoch, outside.epoch),
        granted=max(before.granted, outside.granted),
        changes=max(before.changes, outside.changes),
        caps=tuple(sorted(outside.caps, key=lambda cap: (cap.scope.text(), cap.kind))),
    )
    if after != before:
        write_private(keys / NAME, _text(after))
    return after


def _text(outside: Outside) -> bytes:
    body = {
        "epoch": outside.epoch,
        "granted": outside.granted,
        "recovering": outside.recovering,
        "caps": [
            {"scope": cap.scope.text(), "kind": cap.kind, "amount_microusd": cap.amount_microusd}
            for cap in outside.caps
        ],
        "gateways": [
            {"pool_id": gate.pool_id, "url": gate.url, "grade": gate.grade}
            for gate in outside.gateways
        ],
        "changes": outside.changes,
    }
    return json.dumps(body, indent=1).encode() + b"\n"


@contextmanager
def _locked(keys: Path) -> Iterator[None]:
    """Keep other processes and threads of this machine from changing the file meanwhile."""
    path = keys / _LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        try:
            _lock(descriptor)
        except OSError as error:
            raise _unusable(path, error) from error
        yield
    finally:
        os.close(descriptor)


def _unusable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"File {path} cannot be locked: {error.strerror or error}.",
        hint="Make the hub's keys folder writable for the user that runs it.",
    )
