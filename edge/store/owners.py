"""Who is alive: one locked file per open state folder.

An owner is one opening of the state folder, named by a random id and alive exactly as long as the
operating system holds its lock on ``owners/<id>.lock``. A killed process loses the lock at once and
a reused process id changes nothing. Enter and probe inside the same database transaction kind, so
that nobody sees the file between its creation and its lock. Network file systems without locks are
not supported.
"""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

from edge.store.db import translated

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        """Take an exclusive lock without waiting; return whether it was free."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        """Take an exclusive lock without waiting; return whether it was free."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class Owner:
    """The lock of this opening of the state folder.

    Attributes:
        id: random, never used twice.

    """

    def __init__(self, folder: Path) -> None:
        self.id = uuid.uuid4().hex
        self._path = folder / f"{self.id}.lock"
        with translated(self._path):
            folder.mkdir(mode=0o700, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            _try_lock(self._descriptor)

    def leave(self) -> None:
        """Give the lock up; rows of this owner then belong to a dead one."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        with translated(self._path):
            os.close(descriptor)


def listed(folder: Path) -> set[str]:
    """Return the ids that have a lock file."""
    with translated(folder):
        return {path.stem for path in folder.glob("*.lock")}


def is_dead(folder: Path, owner_id: str) -> bool:
    """Return whether nobody holds the owner's lock; a missing file counts as dead.

    Raises:
        StoreError: the file is there and cannot be opened.

    """
    path = folder / f"{owner_id}.lock"
    with translated(path):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            return _try_lock(descriptor)
        finally:
            os.close(descriptor)


def forget(folder: Path, owner_id: str) -> None:
    """Remove a dead owner's lock file."""
    path = folder / f"{owner_id}.lock"
    with translated(path):
        path.unlink(missing_ok=True)
