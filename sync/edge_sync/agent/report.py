"""A device's report to its hub: put together once, sent until it is answered, then acknowledged.

Guarantees that a report which was answered, but whose answer was lost, is sent again byte for byte,
so that the hub counts it once. Pure but for reading the state folder's files.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edge.store.leases import Leases
from edge.store.states import States
from edge.store.traces import Traces
from edge_sync.agent import health, money, rows
from edge_sync.agent.memory import Memory, Pending
from edge_sync.wire import Have, SyncReply, SyncRequest

GZIP_FROM_BYTES = 1_000
SHORTEST_SYNC_S, LONGEST_SYNC_S = 1.0, 86_400.0
_WAITING = "SELECT count(*) AS n FROM queued WHERE state IN ('waiting', 'claimed')"


@dataclass(slots=True)
class Records:
    """The files of a state folder that a report is made of; the agent's own connections."""

    folder: Path
    traces: Traces
    states: States
    leases: Leases

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open what is there.

        Raises:
            StoreError: the folder cannot be used.

        """
        with ExitStack() as opened:
            traces = opened.enter_context(Traces.open(folder))
            states = States.open(folder)
            opened.callback(states.close)
            leases = Leases.open(folder)
            opened.pop_all()
        return cls(folder, traces, states, leases)

    def close(self) -> None:
        """Close the files."""
        self.traces.close()
        self.states.close()
        self.leases.close()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a report says of the device beside its records.

    Attributes:
        at: the device's own clock, seconds since the epoch.
        now: the hub's time, as far as it was attested.

    """

    at: float
    now: float
    runtime: str
    pack: str
    have: Have
    models: Mapping[str, str]

    @property
    def told(self) -> str:
        """What the hub should hear of at once when it changes."""
        models = ",".join(f"{name}@{digest}" for name, digest in sorted(self.models.items()))
        return f"{self.have.revision}.{self.have.serial}.{models}"


@dataclass(frozen=True, slots=True)
class Composed:
    """A report, and whether more is left to tell."""

    pending: Pending
    more: bool


def compose(memory: Memory, records: Records, facts: Facts, *, draw: Callable[[], str]) -> Composed:
    """Put a report together.

    Args:
        memory: of an enrolled device.
        records: to count.
        facts: of the device.
        draw: a random id.

    Raises:
        StoreError: a file of the state folder cannot be read.

    """
    counted = health.take(records.traces, records.states, memory.counted)
    file = records.leases.db
    taken = rows.take(file, records.traces, memory.rows)
    told = money.tell(records.leases, now=facts.now, next_sync_s=memory.next_sync_s)
    request = SyncRequest(
        device_id=memory.device_id,
        incarnation=memory.incarnation,
        request_id=draw(),
        nonce=memory.nonce,
        at=facts.at,
        runtime=facts.runtime,
        pack=facts.pack,
        have=facts.have,
        refused=list(memory.refusals),
        health=counted.health,
        rows=taken.rows,
        waiting=file.query(_WAITING)[0]["n"],
        models=dict(facts.models),
        wants=told.wants,
        uses=told.uses,
    )
    pending = Pending(
        request_id=request.request_id,
        body=request.model_dump_json(exclude_defaults=True),
        told=facts.told,
        refusals=len(memory.refusals),
        counted=counted.after,
        rows=taken.after,
        low=taken.low,
    )
    return Composed(pending, counted.more or taken.more)


def packed(body: str) -> tuple[bytes, dict[str, str]]:
    """Return a body as it is sent, and the headers that say how."""
    plain = body.encode()
    headers = {"Content-Type": "application/json"}
    if len(plain) < GZIP_FROM_BYTES:
        return plain, headers
    return gzip.compress(plain, mtime=0), headers | {"Content-Encoding": "gzip"}


def acknowledge(memory: Memory, pending: Pending, reply: SyncReply) -> Memory:
    """Return what to remember once a report was answered.

    A hub that was set back to a backup takes a higher epoch; a receipt below an earlier one tells
    of it sooner.
    """
    after = rows.acknowledged(
        pending.rows, pending.low, receipt=reply.receipt, watermark=reply.watermark
    )
    if reply.receipt < memory.receipt or 0 < memory.epoch < reply.epoch:
        after = rows.after_restore(after)
    return memory.but(
        nonce=reply.nonce,
        token=reply.token,
        receipt=reply.receipt,
        watermark=reply.watermark,
        epoch=max(memory.epoch, reply.epoch),
        quarantined=reply.quarantined,
        next_sync_s=min(max(SHORTEST_SYNC_S, reply.next_sync_s), LONGEST_SYNC_S),
        counted=pending.counted,
        rows=after,
        refusals=memory.refusals[pending.refusals :],
        told=pending.told,
        pending=None,
    )
