"""The rounds that the hub makes of all its gateways, and of its own keys folder.

Guarantees: gateways are asked side by side, so that one which hangs keeps no other waiting for
longer than an answer may take; what one does wrong is shown at its row and in the log. Any replica
may go round at any time. What is due with one gateway, ``sealing`` knows; after a database was set
back, ``recovery`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import httpx

from edge.errors import EdgeError, StoreError
from edge_sync.hub.budget import gateways, recovery, sealing
from edge_sync.hub.budget.asking import Asking
from edge_sync.hub.budget.gateways import Gateway
from edge_sync.hub.home import Hub, read_fact

EVERY_S = 1.0
_AT_ONCE = 8


class Rounds:
    """Goes round all gateways; one for a process, one round at a time.

    Args:
        hub: the hub, open.
        tell: writes a line of the log.
        transport: makes what carries the requests to a URL; the network where ``None``.

    """

    def __init__(
        self,
        hub: Hub,
        tell: Callable[..., None],
        *,
        transport: Callable[[str], httpx.BaseTransport] | None = None,
    ) -> None:
        self._hub = hub
        self._tell = tell
        self._transport = transport
        self._executor = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="edge-hub-gateway")
        self._lines: dict[str, tuple[tuple[str, str], Asking]] = {}

    def step(self) -> None:
        """Go round once.

        Raises:
            ConfigError: the file in the keys folder cannot be read.
            StoreError: the database or the keys folder failed.

        """
        if recovery.look(self._hub):
            self._tell("budget.restored", level="warning")
        sealing.close_ended(self._hub)
        with self._hub.store.reading() as connection:
            gates = gateways.counting(connection)
            recovering = bool(read_fact(connection, "recovering"))
        lines = self._open(gates)
        if not recovering:
            list(self._executor.map(lambda gate: self._tend(gate, lines), gates))
        elif recovery.recover(self._hub, lines, self._executor):
            self._tell("budget.recovered")

    def close(self) -> None:
        """End after the round under way."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        for _, line in self._lines.values():
            line.close()

    def _tend(self, gate: Gateway, lines: dict[str, Asking]) -> None:
        if gate.pool_id not in lines:
            return
        try:
            sealing.tend(self._hub, gate, lines[gate.pool_id])
        except StoreError:
            raise
        except EdgeError as error:
            gateways.note_error(self._hub, gate, error)
            if not gate.error:
                self._tell("gateway.failed", level="error", pool=gate.pool_id, reason=str(error))

    def _open(self, gates: Iterable[Gateway]) -> dict[str, Asking]:
        """Return a line to each gateway whose secret is here; those of before are used again."""
        found: dict[str, Asking] = {}
        for gate in gates:
            try:
                secret = gateways.read_secret(self._hub.keys, gate.pool_id)
                mark = (gate.url, secret)
                known, line = self._lines.get(gate.pool_id, (None, None))
                if line is None or known != mark:
                    carry = self._transport(gate.url) if self._transport else None
                    line = Asking(gate.url, secret, pool_id=gate.pool_id, transport=carry)
                    self._keep(gate.pool_id, mark, line)
                found[gate.pool_id] = line
            except EdgeError as error:
                gateways.note_error(self._hub, gate, error)
        return found

    def _keep(self, pool_id: str, mark: tuple[str, str], line: Asking) -> None:
        old = self._lines.get(pool_id)
        self._lines[pool_id] = (mark, line)
        if old is not None:
            old[1].close()
