"""Models that a policy assigns: fetched piece by piece, checked piece by piece, shelved whole.

Guarantees: a byte counts only once the signed index vouches for its piece of 1 MiB; a cut download
goes on where it was cut, also after a restart; a folder ``<name>@<12 digits of the digest>`` is
there only when all of its files are. Knows nothing of hubs, mirrors and engines.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from pydantic import ValidationError

from edge.config import assigned_folder
from edge.errors import (
    EdgeError,
    HubDistrusted,
    HubUnreachable,
    IntegrityError,
    StoreError,
    SyncError,
)
from edge.store.weights import MANIFEST
from edge_sync.wire import CHUNK_BYTES, ModelFile, ModelIndex

VERSIONS_KEPT = 2
"""How many versions of a model stay on the device: the one in use and the one before."""

SPARE_BYTES = 32_000_000
"""So much of the disk is left to others."""

_PARTS = ".part"
_NOT_IN_A_PATH = ("\\", ":", "\0")
Source = Callable[[str, int, Callable[[bytes], None]], None]
"""Fetches a file of a model from a byte on, and hands its bytes on as they come."""


def read_index(text: bytes, *, name: str, digest: str) -> ModelIndex:
    """Read an index that the fleet's signatures vouch for.

    Raises:
        HubDistrusted: it is of another model, or not one that can be fetched safely.

    """
    try:
        index = ModelIndex.model_validate_json(text)
    except ValidationError as error:
        raise _wrong(name, str(error.errors()[0]["msg"])) from error
    if (index.name, index.digest) != (name, digest):
        raise _wrong(name, f"it is of {index.name}@{index.digest[:12]}")
    for file in index.files:
        _check_file(name, file)
    if len({file.path for file in index.files}) < len(index.files):
        raise _wrong(name, "it lists a file twice")
    if not any(file.path == MANIFEST and file.sha256 == digest for file in index.files):
        raise _wrong(name, "its manifest is not the assigned one")
    return index


@dataclass(frozen=True, slots=True)
class Shelf:
    """The fleet's models in a state folder."""

    state: Path

    def folder(self, name: str, digest: str) -> Path:
        """Return where a model lies once it is here."""
        return assigned_folder(self.state, name, digest)

    def has(self, name: str, digest: str) -> bool:
        """Return whether a model is here whole."""
        return (self.folder(name, digest) / MANIFEST).is_file()

    def drop(self, name: str, digest: str) -> None:
        """Remove a model that is of no use."""
        shutil.rmtree(self.folder(name, digest), ignore_errors=True)

    def fetch(self, index: ModelIndex, sources: Collection[Source]) -> Path:
        """Bring a model here and return its folder.

        Args:
            index: what was signed.
            sources: tried in turn; each goes on where the one before has ended.

        Raises:
            HubUnreachable: no source gave all of it; what came is kept for the next time.
            IntegrityError: the last source gave other bytes.
            StoreError: the disk is full or refuses.

        """
        final = self.folder(index.name, index.digest)
        part = self.state / "models" / _PARTS / final.name
        with _disk(part):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
            _check_room(part, index)
            for file in index.files:
                _fetch(part / file.path, file, f"{index.name}/{index.digest}", sources)
            _sync_folder(part)
            if final.exists():  # without its manifest, so nobody uses it
                shutil.rmtree(final)
            part.replace(final)
            _sync_folder(final.parent)
        return final

    def tidy(self, name: str, in_use: str) -> list[str]:
        """Keep the last two versions of a model and return the folders that went.

        Args:
            name: of the model.
            in_use: digest of the version in use, which stays whatever its age.

        """
        used = self.folder(name, in_use)
        with suppress(OSError):
            os.utime(used)  # the one before it is the one that was in use before
        found = [each for each in used.parent.glob(f"{name}@*") if each != used]
        found.sort(key=lambda each: each.stat().st_mtime_ns, reverse=True)
        old = found[VERSIONS_KEPT - 1 :]
        for folder in (*old, *(used.parent / _PARTS).glob(f"{name}@*")):
            shutil.rmtree(folder, ignore_errors=True)
        return [folder.name for folder in old]


def _fetch(path: Path, file: ModelFile, place: str, sources: Collection[Source]) -> None:
    """Fetch what is missing of one file; the last source's failure is the one that is told."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    failure: EdgeError = HubUnreachable(f"There is no place to fetch {place} from.")
    for source in sources:
        with _Writer.open(path, file) as writer:
            if writer.done:
                return
            try:
                source(f"{place}/{file.path}", writer.at, writer.take)
                writer.finish()
            except (SyncError, IntegrityError) as error:
                failure = error
            else:
                return
    raise failure


class _Writer:
    """Writes one file, a checked piece at a time, from where it was left.

    Attributes:
        at: how many checked bytes are there.

    """

    def __init__(self, handle: IO[bytes], wanted: ModelFile) -> None:
        self._handle = handle
        self._wanted = wanted
        self._whole = hashlib.sha256()
        self._buffer = bytearray()
        self.at = 0

    @classmethod
    @contextmanager
    def open(cls, path: Path, wanted: ModelFile) -> Iterator[_Writer]:
        """Open the file behind the last piece that is right."""
        with path.open("r+b" if path.exists() else "w+b") as handle:
            writer = cls(handle, wanted)
            while (piece := handle.read(CHUNK_BYTES)) and writer._is_next(piece):
                writer._count(piece)
            handle.seek(writer.at)
            handle.truncate()
            yield writer
            handle.flush()
            os.fsync(handle.fileno())

    @property
    def done(self) -> bool:
        return self.at == self._wanted.bytes

    def take(self, data: bytes) -> None:
        self._buffer += data
        while not self.done and len(self._buffer) >= self._next_bytes:
            piece = bytes(self._buffer[: self._next_bytes])
            if not self._is_next(piece):
                raise IntegrityError(
                    f"Piece {self.at // CHUNK_BYTES} of {self._wanted.path} has another digest "
                    "than the fleet's signed index says.",
                    hint="Check the mirror, or what stands between.",
                )
            self._handle.write(piece)
            self._count(piece)
            del self._buffer[: len(piece)]
        if self.done and self._buffer:
            raise IntegrityError(f"{self._wanted.path} is longer than {self._wanted.bytes} bytes.")

    def finish(self) -> None:
        if not self.done:
            raise HubUnreachable(
                f"The download of {self._wanted.path} was cut at byte {self.at} "
                f"of {self._wanted.bytes}."
            )
        if self._whole.hexdigest() != self._wanted.sha256:
            raise IntegrityError(f"{self._wanted.path} has another digest than its pieces.")

    @property
    def _next_bytes(self) -> int:
        return min(CHUNK_BYTES, self._wanted.bytes - self.at)

    def _is_next(self, piece: bytes) -> bool:
        if len(piece) != self._next_bytes:
            return False
        wanted = self._wanted.chunks[self.at // CHUNK_BYTES]
        return hashlib.sha256(piece).hexdigest() == wanted

    def _count(self, piece: bytes) -> None:
        self._whole.update(piece)
        self.at += len(piece)


def _check_file(name: str, file: ModelFile) -> None:
    pure = PurePosixPath(file.path)
    if (
        pure.is_absolute()
        or ".." in pure.parts
        or any(mark in file.path for mark in _NOT_IN_A_PATH)
    ):
        raise _wrong(name, f"{file.path!r} leaves the model's folder")
    if len(file.chunks) != -(-file.bytes // CHUNK_BYTES):
        raise _wrong(name, f"{file.path} has {len(file.chunks)} pieces for {file.bytes} bytes")


def _wrong(name: str, reason: str) -> HubDistrusted:
    return HubDistrusted(f"The index of the model {name} is not usable: {reason}.")


def _check_room(folder: Path, index: ModelIndex) -> None:
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    needed = sum(file.bytes for file in index.files) - there + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"The model {index.name} needs {needed // 10**6} MB, but {free // 10**6} MB are free.",
            hint="Free some space; what was fetched is kept.",
        )


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        reason = "the disk is full" if full else error.strerror or str(error)
        raise StoreError(
            f"{folder} cannot be written: {reason}.",
            hint="Free some space and make it writable; what was fetched is kept.",
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
