"""Which models are in memory: loaded on first use, unloaded to stay within a budget.

Guarantees: many first callers at once load one copy, and one load does not hold up another
model's; the estimates of all models in memory, those on their way in and out included, never
exceed the budget; a model that is in use or pinned is never unloaded to make room. The least
recently used one goes first. Estimates come from the caller: knows nothing of files or engines.
Thread-safe.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, cast

from edge.backends.heap import trim
from edge.errors import Busy, LoadError, ModelError

_T = TypeVar("_T")
State = Literal["loading", "ready", "leaving"]
Later = Callable[[float, Callable[[], None]], Callable[[], None]]
"""Runs something after so many seconds; returns what cancels it."""

PATIENCE_S = 0.25
"""After so long without room, models that might give way take no new callers ..."""
HOPELESS_S = 5.0
"""... until so long: one that has not come free by then is held by a stream, not by the crowd."""
_TICK_S = 0.05
_MB = 1_000_000

Key: TypeAlias = tuple[str, Hashable]
"""A model's name and its version."""


def later(delay_s: float, work: Callable[[], None]) -> Callable[[], None]:
    """Run ``work`` on a daemon thread after a delay; return what cancels it."""
    timer = threading.Timer(delay_s, work)
    timer.daemon = True
    timer.start()
    return timer.cancel


@dataclass(frozen=True, slots=True)
class Resident:
    """One model in memory.

    Attributes:
        bytes_estimated: what it was taken to need before it was loaded.
        in_use: callers that use it now.
        idle_s: seconds since its last use began or ended.
        state: ``loading``, ``ready``, or ``leaving`` while it is being unloaded.

    """

    name: str
    bytes_estimated: int
    in_use: int
    idle_s: float
    pinned: bool
    state: State


@dataclass(eq=False, slots=True)
class _Entry:
    name: str
    version: Hashable
    pinned: bool
    used_at: float
    uses: int = 1
    bytes: int = 0
    model: Any = None
    state: State = "loading"

    @property
    def idle(self) -> bool:
        return self.state == "ready" and self.uses == 0 and not self.pinned

    @property
    def key(self) -> Key:
        return self.name, self.version


class Residency:
    """The models of one runtime.

    Args:
        budget_bytes: for the estimates of all models together; no limit where ``None``.
        clock: monotonic seconds.
        keep_alive_s: a model leaves so long after its last use; never where ``None``.
        pinned: names of models that stay once they are loaded.
        wait_s: how long a caller waits until models in use make room.
        after: runs something after a delay.

    """

    def __init__(
        self,
        budget_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        keep_alive_s: float | None = None,
        pinned: Collection[str] = (),
        wait_s: float = 30.0,
        after: Later = later,
    ) -> None:
        self.budget_bytes = budget_bytes
        self._clock = clock
        self._keep_alive_s = keep_alive_s
        self._pinned = frozenset(pinned)
        self._wait_s = wait_s
        self._after = after
        self._turn = threading.Condition()  # re-entrant: a collected stream gives its model back
        self._entries: dict[Key, _Entry] = {}
        self._retired: frozenset[Key] = frozenset()
        self._hungry: dict[Key, float] = {}  # who waits for room, and since when
        self._cancel: Callable[[], None] | None = None
        self._closed = False

    @contextlib.contextmanager
    def lease(
        self,
        name: str,
        load: Callable[[], _T],
        *,
        estimate: Callable[[], int] = lambda: 0,
        version: Hashable = None,
    ) -> Iterator[_T]:
        """Use a model; it stays in memory until the ``with`` block ends.

        Hold one lease at a time in a thread: a second one may need the first one's room.

        Args:
            name: of the model.
            load: loads it, where it is not in memory; its ``close``, if any, frees it.
            estimate: returns the bytes it will take; asked before ``load``.
            version: tells models of one name apart; another one is another model.

        Raises:
            LoadError: it does not fit the budget even alone, or beside what is pinned.
            Busy: models in use did not make room in time.
            ModelError: everything was closed.

        """
        entry = self._take((name, version), load, estimate)
        try:
            yield cast("_T", entry.model)
        finally:
            self._give_back(entry)

    def report(self) -> tuple[Resident, ...]:
        """Return what is in memory, by name."""
        with self._turn:
            now = self._clock()
            return tuple(
                Resident(e.name, e.bytes, e.uses, now - e.used_at, e.pinned, e.state)
                for e in sorted(self._entries.values(), key=lambda entry: entry.name)
            )

    def unload(self, name: str) -> bool:
        """Unload a model now, pinned or not; ``False`` where it is in use or not in memory."""
        with self._turn:
            found = [e for e in self._entries.values() if e.name == name]
            leaving = [e for e in found if not e.uses and e.state == "ready"]
            for entry in leaving:
                entry.state = "leaving"
        self._free(leaving)
        return bool(leaving)

    def retire(self, keys: Collection[Key]) -> None:
        """Unload these, pinned or not, once nobody uses them; those named before may stay again."""
        with self._turn:
            self._retired = frozenset(keys)
            leaving = self._leaving()
        self._free(leaving)

    def _leaving(self) -> list[_Entry]:
        """Mark what is retired and not in use as leaving, and return it."""
        found = [
            e
            for key, e in self._entries.items()
            if key in self._retired and e.state == "ready" and not e.uses
        ]
        for entry in found:
            entry.state = "leaving"
        return found

    def sweep(self) -> None:
        """Unload the models whose keep-alive has passed; happens by itself in time."""
        if self._keep_alive_s is None:
            return
        with self._turn:
            past = self._clock() - self._keep_alive_s
            due = [e for e in self._entries.values() if e.idle and e.used_at <= past]
            for entry in due:
                entry.state = "leaving"
        self._free(due)

    def close(self) -> None:
        """Unload every model, also those in use; calling twice is harmless."""
        with self._turn:
            self._closed = True
            cancel, self._cancel = self._cancel, None
            here = [e for e in self._entries.values() if e.state == "ready"]
            for entry in here:
                entry.state = "leaving"
            self._turn.notify_all()
        if cancel is not None:
            cancel()
        self._free(here)

    def _take(self, key: Key, load: Callable[[], Any], estimate: Callable[[], int]) -> _Entry:
        """Return the model's entry, one use more; load it where nobody has."""
        with self._turn:
            while True:
                self._check_open()
                entry = self._entries.get(key)
                if entry is None:
                    break
                held_back = self._held_back(entry)
                if entry.state == "ready" and not held_back:
                    entry.uses += 1
                    entry.used_at = self._clock()
                    return entry
                self._turn.wait(_TICK_S if held_back else None)
            entry = self._entries[key] = _Entry(*key, key[0] in self._pinned, self._clock())
        try:
            size = estimate()
            self._make_room(entry, size)
            model = load()
            trim()  # of what only loading needed
            self._settle(entry, model)
        except BaseException:
            self._remove(entry)
            raise
        return entry

    def _settle(self, entry: _Entry, model: Any) -> None:
        """Let others use a model that was just loaded."""
        with self._turn:
            if not self._closed:
                entry.model, entry.state = model, "ready"
                entry.used_at = self._clock()
                self._turn.notify_all()
                return
        _close(model)
        self._check_open()

    def _give_back(self, entry: _Entry) -> None:
        with self._turn:
            entry.uses -= 1
            entry.used_at = self._clock()
            leaving = self._leaving() if entry.key in self._retired else []
            if entry.idle:
                self._turn.notify_all()
                self._wake_in(self._keep_alive_s)
        self._free(leaving)

    def _wake_in(self, delay_s: float | None) -> None:
        """See to it that models whose keep-alive passes are unloaded."""
        if delay_s is not None and self._cancel is None and not self._closed:
            self._cancel = self._after(delay_s, self._wake)

    def _wake(self) -> None:
        with self._turn:
            self._cancel = None
        self.sweep()
        with self._turn:
            idle = [entry.used_at for entry in self._entries.values() if entry.idle]
            if idle and self._keep_alive_s is not None:
                self._wake_in(max(0.0, min(idle) + self._keep_alive_s - self._clock()))

    def _held_back(self, entry: _Entry) -> bool:
        """Whether a model takes no new callers, so that someone who has waited long gets room."""
        if not self._hungry or entry.pinned:
            return False
        waited_s = self._clock() - min(self._hungry.values())
        return PATIENCE_S < waited_s < HOPELESS_S

    def _make_room(self, entry: _Entry, size: int) -> None:
        """Unload what is idle until ``size`` bytes are free, and set them aside."""
        since = self._clock()
        try:
            while (leaving := self._next_step(entry, size, since)) is not None:
                self._free(leaving)
        finally:
            with self._turn:
                self._hungry.pop(entry.key, None)

    def _next_step(self, entry: _Entry, size: int, since: float) -> list[_Entry] | None:
        """Return what must leave first; ``None`` once the bytes are set aside."""
        with self._turn:
            while True:
                self._check_open()
                self._check_fits(entry, size)
                leaving = self._victims(size)
                if leaving is not None:
                    break
                if self._clock() - since > self._wait_s:
                    raise self._busy(entry, size)
                self._hungry[entry.key] = since
                self._turn.wait(_TICK_S)
            if not leaving:
                entry.bytes = size
                return None
            for each in leaving:
                each.state = "leaving"
            return leaving

    def _victims(self, size: int) -> list[_Entry] | None:
        """Return the least recently used models that make room; ``None`` where none can now."""
        if self.budget_bytes is None:
            return []
        over = size + sum(e.bytes for e in self._entries.values()) - self.budget_bytes
        chosen: list[_Entry] = []
        idle = (e for e in self._entries.values() if e.idle and e.bytes)
        for entry in sorted(idle, key=lambda entry: entry.used_at):
            if over <= 0:
                break
            chosen.append(entry)
            over -= entry.bytes
        return chosen if over <= 0 else None

    def _check_fits(self, entry: _Entry, size: int) -> None:
        if self.budget_bytes is None:
            return
        pinned = [e for e in self._entries.values() if e.pinned and e is not entry]
        taken = sum(e.bytes for e in pinned)
        if size + taken <= self.budget_bytes:
            return
        names = ", ".join(sorted(e.name for e in pinned))
        beside = f", of which {_mb(taken)} MB are pinned by {names}" if taken else ""
        raise LoadError(
            f"Model {entry.name} needs about {_mb(size)} MB; the memory budget is "
            f"{_mb(self.budget_bytes)} MB{beside}.",
            hint=f"Raise the pack's memory.budget_mb or memory_mb{', unpin one' if taken else ''}, "
            "or take a smaller model or context.",
        )

    def _busy(self, entry: _Entry, size: int) -> Busy:
        users = ", ".join(sorted(e.name for e in self._entries.values() if e.uses and e.bytes))
        return Busy(
            f"Model {entry.name} needs about {_mb(size)} MB of the memory budget, which models in "
            f"use hold: {users or 'none'}.",
            hint="End open streams, or raise the pack's memory.budget_mb or memory_mb.",
        )

    def _free(self, leaving: Iterable[_Entry]) -> None:
        """Close models that are marked as leaving, without holding up the others' callers."""
        with contextlib.ExitStack() as steps:
            for entry in leaving:
                # Run from the last to the first, also where one fails.
                steps.callback(self._remove, entry)
                steps.callback(trim)
                steps.callback(_close, entry.model)
                entry.model = None

    def _remove(self, entry: _Entry) -> None:
        with self._turn:
            if self._entries.get(entry.key) is entry:
                del self._entries[entry.key]
            self._turn.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise ModelError("The runtime is closed.", hint="Open a new one.")


def _close(model: Any) -> None:
    if hasattr(model, "close"):
        model.close()


def _mb(size: int) -> str:
    return f"{size / _MB:.1f}"
