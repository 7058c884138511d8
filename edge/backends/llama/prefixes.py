"""KV snapshots of prompts' beginnings, so that a new process need not read them again.

A snapshot is a file of its own: one line of JSON that says what it belongs to (weights, context,
cache types, rope, library, processor, tokens) with the checksum of the rest, and the rest as
llama.cpp wrote it. It is used only where all of that is equal; anything else, and any damage, is a
miss. Written to a temporary file and renamed; the least recently used files go when the folder
outgrows its cap. Holds the fixed part of prompts only, never a caller's text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from edge.backends.llama.handles import Handles

CAP_BYTES = 256 * 2**20
_FORMAT = 1
_SUFFIX = ".kv"


class Snapshots:
    """The snapshots of one loaded model; used while its context lock is held.

    Args:
        folder: made on first use; several processes may share it.
        handles: the model.
        digest: sha256 of its weights.
        cap_bytes: the most that all files of the folder may take together.

    """

    def __init__(
        self, folder: Path, handles: Handles, *, digest: str, cap_bytes: int = CAP_BYTES
    ) -> None:
        self._folder = folder
        self._handles = handles
        self._cap_bytes = cap_bytes
        self._owner = {"format": _FORMAT, "weights": digest, **handles.kv_identity}

    def load(self, tokens: tuple[int, ...], sequence: int) -> bool:
        """Fill an empty sequence with ``tokens``; ``False`` where there is no sound snapshot."""
        path = self._path(tokens)
        try:
            head, _, body = path.read_bytes().partition(b"\n")
            facts = json.loads(head)
            sound = facts == self._facts(tokens, body)
        except (OSError, ValueError):
            return False
        if not sound or not self._handles.set_sequence_state(sequence, body):
            with contextlib.suppress(OSError):
                path.unlink()
            return False
        with contextlib.suppress(OSError):
            os.utime(path)
        return True

    def save(self, tokens: tuple[int, ...], sequence: int) -> None:
        """Keep what a sequence holds; a full disk or a missing right loses only the snapshot."""
        body = self._handles.sequence_state(sequence)
        if not body or len(body) > self._cap_bytes:
            return
        head = json.dumps(self._facts(tokens, body)).encode()
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(
                dir=self._folder, prefix="part-", delete=False
            ) as file:
                file.write(head + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).replace(self._path(tokens))
            self._trim()

    def _facts(self, tokens: tuple[int, ...], body: bytes) -> dict[str, Any]:
        return {
            **self._owner,
            "tokens": list(tokens),
            "sha256": hashlib.sha256(body).hexdigest(),
        }

    def _path(self, tokens: tuple[int, ...]) -> Path:
        named = json.dumps([self._owner, list(tokens)], sort_keys=True).encode()
        return self._folder / f"{hashlib.sha256(named).hexdigest()[:32]}{_SUFFIX}"

    def _trim(self) -> None:
        """Remove the least recently used files beyond the cap, and parts of dead writers."""
        files = [(path.stat(), path) for path in self._folder.iterdir() if path.is_file()]
        total = sum(facts.st_size for facts, _ in files)
        for facts, path in sorted(files, key=lambda entry: entry[0].st_mtime_ns):
            if total <= self._cap_bytes:
                break
            path.unlink(missing_ok=True)
            total -= facts.st_size
