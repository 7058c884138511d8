"""The agent: a thread that keeps one device in step with its hub until it is closed.

Waits in the hub's long poll or on an event, and looks at the ledger once a second meanwhile: money
that runs low is asked for at once, and ever more rarely in vain. Nothing that goes wrong here
reaches the app: work goes on under the last good policy, and ``status`` says what is wrong.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from edge.errors import EdgeError, HubUnreachable
from edge_sync.agent import pauses
from edge_sync.agent.activation import Change
from edge_sync.agent.device import Device, Round
from edge_sync.agent.exchange import Exchange, HubRefused

LONG_POLL_S = 55
_SOON_S = 0.5
_HUNGRY_S = 5.0
"""So soon the hub is asked for money that ran out, and twice as long each time it has none."""
_CLOSE_S = 5.0
_log = logging.getLogger("edge.agent")
_log.addHandler(logging.NullHandler())  # an app that does not listen is not written to


@dataclass(frozen=True, slots=True)
class Status:
    """What an agent knows of its own work.

    Attributes:
        enrolled: whether the device is in a fleet.
        syncs: reports that were answered since the start.
        rounds: exchanges with the hub that went well.
        change: what the last one led to.
        error: why the last one failed; ``None`` where it went well.
        ended: whether the agent has given up, or was closed.

    """

    enrolled: bool = False
    syncs: int = 0
    rounds: int = 0
    change: Change = Change.NONE
    error: EdgeError | None = None
    ended: bool = False


class Agent:
    """Runs a device's steps; made by ``edge_sync.agent.start.start``.

    Args:
        device: the agent closes it.
        exchange: of that device.
        code: enrolment code; needed until the device has joined.
        name: what people call the device.
        boot_s: seconds since boot.
        draw: uniform in 0..1.

    """

    def __init__(
        self,
        device: Device,
        exchange: Exchange,
        *,
        code: str = "",
        name: str = "",
        boot_s: Callable[[], float],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._device = device
        self._exchange = exchange
        self._code = code
        self._name = name
        self._boot_s = boot_s
        self._draw = draw
        self._due = 0.0
        self._hungry_s = _HUNGRY_S
        self._hungry_from = 0.0
        self._failures = 0
        self._rejoining = False
        self._status = Status()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edge-agent", daemon=True)

    @property
    def status(self) -> Status:
        """What the agent knows of its own work now."""
        with self._changed:
            return self._status

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def wait(self, until: Callable[[Status], bool], timeout_s: float) -> bool:
        """Wait for something to become true of the status; return whether it did."""
        with self._changed:
            return self._changed.wait_for(lambda: until(self._status), timeout_s)

    def close(self) -> None:
        """End the thread and the request that runs; calling twice is harmless."""
        self._stop.set()
        self._exchange.stop()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_S)

    def turn(self) -> float:
        """Do what is due now; return the seconds to wait before the next turn.

        Raises:
            EdgeError: it failed.

        """
        memory = self._device.memory()
        if self._code and not memory.enrolled:
            memory = self._device.enrol(self._code, self._name)
        self._note(enrolled=memory.enrolled)
        began_s = self._boot_s()
        left_s = self._due - began_s
        hungry = self._hungry()
        if left_s <= 0 or hungry:
            return self._synced(self._device.sync(), hungry=hungry)
        wait_s = max(1, min(LONG_POLL_S, int(left_s)))
        pause_s = self._done(self._device.ask(wait_s, until=self._hungry))
        # A hub that does not let anybody wait must not be asked without end.
        return pause_s if self._boot_s() - began_s > _SOON_S else max(pause_s, _SOON_S)

    def _hungry(self) -> bool:
        """Whether money has run low, and the hub was not asked for some just now."""
        return self._boot_s() >= self._hungry_from and self._device.low()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                pause_s = self._tried()
                if pause_s is None:
                    return
                self._stop.wait(pause_s)
        finally:
            self._device.close()
            self._note(ended=True)

    def _tried(self) -> float | None:
        """Do a turn; return the seconds to wait, or ``None`` where there is no point in more."""
        try:
            pause_s = self.turn()
        except EdgeError as error:
            return None if self._stop.is_set() else self._failed(error)
        except Exception:  # noqa: BLE001 - a dead thread would leave the device without a policy
            _log.exception("The fleet's agent failed; it goes on.")
            return self._failed(HubUnreachable("The agent failed; its log says why."))
        self._failures, self._rejoining = 0, False
        return pause_s

    def _failed(self, error: EdgeError) -> float | None:
        self._failures += 1
        self._note(error=error)
        _log.warning("%s", error)
        if isinstance(error, HubRefused):
            self._due = 0.0
            if error.code == "unknown_device" and self._rejoined():
                return _SOON_S
        try:
            self._device.tighten()
        except EdgeError as problem:
            _log.warning("%s", problem)
        if pauses.is_final(error):
            return None
        return pauses.after(error, self._failures, self._draw)

    def _rejoined(self) -> bool:
        """Join again where the hub was set back to a time before this device joined."""
        if not self._code or self._rejoining:
            return False
        self._rejoining = True  # once; a hub that forgets it again must not be asked without end
        try:
            self._device.rejoin(self._code, self._name)
        except EdgeError as error:
            self._rejoining = not isinstance(error, HubUnreachable)
            _log.warning("%s", error)
            return False
        return True

    def _synced(self, done: Round, *, hungry: bool) -> float:
        next_s = self._device.memory().next_sync_s
        self._due = self._boot_s() + pauses.until_sync(next_s, self._draw)
        in_vain = hungry and not done.granted
        self._hungry_s = min(2 * self._hungry_s, next_s) if in_vain else _HUNGRY_S
        self._hungry_from = self._boot_s() + self._hungry_s
        self._note(syncs=self.status.syncs + 1)
        return self._done(done)

    def _done(self, done: Round) -> float:
        if done.change in {Change.ACTIVATED, Change.REFUSED}:
            _log.info("The fleet's policy was %s.", done.change.value)
        self._note(error=None, change=done.change, rounds=self.status.rounds + 1)
        if not done.more:
            return 0.0
        self._due = 0.0
        return 0.0 if done.change is not Change.NONE else _SOON_S

    def _note(self, **changes: object) -> None:
        with self._changed:
            self._status = replace(self._status, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()
