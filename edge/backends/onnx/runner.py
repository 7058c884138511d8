"""One model's sessions, and the CPU's in their place where a device fails at run time.

A pass that a device fails on is repeated on the CPU. If it succeeds there, the model stays on the
CPU and its placement says why; if it fails there too, the input is at fault and the device stays.
Knows nothing of tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edge.backends.base import Placement
from edge.backends.onnx.session import Opened, engine_errors, open_session
from edge.errors import GenerationError, ModelError

FREE_AXES = ("batch", "sequence")
"""Names of the axes that a fixed size sets, to 1 and to the size."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Ask:
    """What was asked for when a model was opened.

    Attributes:
        path: the model file.
        name: the name it is known under.
        threads: threads inside one operator.
        device: a key of ``edge.backends.onnx.providers.PROVIDERS``.
        strict: a fallback is an error.

    """

    path: Path
    name: str
    threads: int
    device: str = "cpu"
    strict: bool = False

    def open(self, size: int | None = None, *, device: str | None = None) -> Opened:
        """Return a session, its free axes fixed where a size is given.

        Raises:
            LoadError: the file cannot be loaded.
            DeviceFallback: ``strict``, and the device does not take all of it.

        """
        return open_session(
            self.path,
            threads=self.threads,
            device=device or self.device,
            strict=self.strict,
            sizes={} if size is None else dict(zip(FREE_AXES, (1, size), strict=True)),
        )


class Runner:
    """Runs one model. Safe to call from several threads.

    Args:
        ask: what to open.
        first: its session of the first size, where it has been opened before.
        size: of the first session.

    """

    def __init__(self, ask: Ask, first: Opened | None = None, *, size: int | None = None) -> None:
        self._ask = ask
        self._device = ask.device
        first = ask.open(size) if first is None else first
        self._placement = first.placement
        self._sessions: dict[int | None, Opened] = {size: first}
        self._twins: dict[int | None, Opened] = {}
        self._lock = threading.Lock()
        self._closed = False
        self.session = first.session

    @property
    def placement(self) -> Placement:
        """Where the model runs now."""
        return self._placement

    def run(
        self, outputs: Sequence[str], feed: Mapping[str, Any], *, size: int | None = None
    ) -> Sequence[Any]:
        """Run one pass; see ``attempt``."""
        found: Sequence[Any] = self.attempt(
            lambda opened: opened.session.run(outputs, feed), size=size
        )
        return found

    def attempt(self, work: Callable[[Opened], _T], *, size: int | None = None) -> _T:
        """Return what ``work`` makes of the session of a size, or of the CPU's.

        Raises:
            GenerationError: the model failed on this input.
            DeviceFallback: ``strict``, and only the CPU could do it.
            ModelError: the model is closed.

        """
        opened = self._opened(size)
        try:
            with engine_errors(self._ask.name):
                return work(opened)
        except GenerationError as error:
            if opened.placement.used == "cpu":
                raise
            return self._again(work, size, opened.placement, error)

    def close(self) -> None:
        """Free the sessions after the passes that run; calling twice is harmless."""
        with self._lock:
            self._closed = True
            self._sessions.clear()
            self._twins.clear()
            self.session = None

    def _opened(self, size: int | None) -> Opened:
        with self._lock:
            self._check_open()
            if size not in self._sessions:
                opened = self._ask.open(size, device=self._device)
                self._sessions[size] = opened
                if opened.placement.fallback and not self._placement.fallback:
                    self._placement = opened.placement
            return self._sessions[size]

    def _again(
        self,
        work: Callable[[Opened], _T],
        size: int | None,
        placement: Placement,
        error: GenerationError,
    ) -> _T:
        """Repeat a pass on the CPU and stay there if that helps."""
        twin = self._twin(size)
        with engine_errors(self._ask.name):
            found = work(twin)
        moved = Placement(
            placement.asked, "cpu", why=f"{placement.used} failed at run time: {error.message[:-1]}"
        )
        if self._ask.strict:
            moved.require(self._ask.name)
        with self._lock:
            self._check_open()
            if self._device != "cpu":
                self._device, self._placement = "cpu", moved
                self._sessions = self._twins
            self.session = twin.session
        return found

    def _twin(self, size: int | None) -> Opened:
        with self._lock:
            self._check_open()
            if size not in self._twins:
                self._twins[size] = self._ask.open(size, device="cpu")
            return self._twins[size]

    def _check_open(self) -> None:
        if self._closed:
            raise ModelError(f"{self._ask.name} is closed.", hint="Open it again.")
