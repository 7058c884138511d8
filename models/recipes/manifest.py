"""Writes a model's `manifest.json`: what it is, where it came from, and what was measured."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """Return the digest of a file in lower-case hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of the packages that made the model."""
    return {name: importlib.metadata.version(name) for name in packages}


def write_manifest(folder: Path, facts: dict[str, Any], files: Sequence[tuple[str, str]]) -> None:
    """Write `manifest.json` into ``folder``.

    Args:
        folder: where the files lie.
        facts: everything but the files.
        files: (role, file name) pairs; sizes and digests are taken here.

    """
    listed = [
        {
            "path": name,
            "role": role,
            "sha256": sha256(folder / name),
            "bytes": (folder / name).stat().st_size,
        }
        for role, name in files
    ]
    whole = {"name": folder.name, **facts, "files": listed}
    (folder / "manifest.json").write_text(json.dumps(whole, indent=2) + "\n", "utf-8")
