"""The calibrations of one runtime: which one speaks for a task's answers, and where a new one goes.

A pack's own come first, then the state folder's, where ``edge calibrate`` puts them, then those
that a model brings. A calibration says itself what it was measured on; one that was measured on
something else gives no number. Knows nothing of thresholds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from edge.confidence.calibration import Calibration
from edge.errors import StoreError
from edge.store.weights import ModelStore

_FOLDER = "calibrations"


class Calibrations:
    """Calibrations by model and task; each file is read once. Safe to call from several threads.

    Args:
        store: the models, some of which bring calibrations.
        state: the state folder; ``None`` for what the models bring alone.
        carried: files that the pack names, by task; read at once.

    Raises:
        ConfigError: a file that the pack names is not a calibration.

    """

    def __init__(
        self, store: ModelStore, state: Path | None, *, carried: Mapping[str, str] | None = None
    ) -> None:
        self._store = store
        self._carried = {
            task: Calibration.load(Path(path)) for task, path in (carried or {}).items()
        }
        self._folder = state / _FOLDER if state else None
        self._lock = threading.Lock()
        self._read: dict[tuple[str, str], Calibration | None] = {}

    def of(self, model: str, task: str) -> Calibration | None:
        """Return what was fitted for a model and task.

        Raises:
            ConfigError: the file is not a calibration.
            IntegrityError: a model's file has another digest than the manifest says.

        """
        if task in self._carried:
            return self._carried[task]
        with self._lock:
            if (model, task) not in self._read:
                self._read[model, task] = self._load(model, task)
            return self._read[model, task]

    def keep(self, task: str, calibration: Calibration) -> Path:
        """Put a task's calibration into the state folder, in place of an earlier one.

        Raises:
            StoreError: there is no state folder, or it cannot be written.

        """
        if self._folder is None:
            raise StoreError("There is no state folder for a calibration.", hint="Open with one.")
        path = self._folder / f"{task}.json"
        part = path.with_suffix(".part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            calibration.save(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}.") from error
        with self._lock:
            self._read.clear()
        return path

    def _load(self, model: str, task: str) -> Calibration | None:
        own = self._folder / f"{task}.json" if self._folder else None
        if own is not None and own.is_file():
            return Calibration.load(own)
        role = f"calibration-{task}"
        if any(file.role == role for file in self._store.manifest(model).files):
            return Calibration.load(self._store.path(model, role))
        return None
