"""What the nodes of a simulated fleet say to each other, and which mistakes they can be given."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, TypeAlias, Union

from edge_sync.money.account import Report
from edge_sync.money.lease import Lease


class Bug(Enum):
    """A mistake that a simulation can be given; the rules themselves have no such switch."""

    RECLAIM = "an expired lease is taken back without asking the gateway"
    SEQUENCE = "rows are told apart by device and sequence number"
    RELEASE = "a hold is released when the answer does not come in time"
    ASYNCHRONOUS = "a closed lease is refunded by the rows that have arrived"
    NO_EPOCH = "a restored hub goes on in the same epoch"
    FLOAT = "money is dollars in floating point"
    ETAG = "the version is stored before what it names is in force"


class Row(NamedTuple):
    """A call that was paid: a row of the ledger."""

    row_id: str
    device_id: str
    seq: int
    lease_id: str
    cost: int


class Sync(NamedTuple):
    """Device to hub."""

    origin: int
    device_id: str
    request_id: str
    nonce: str
    demand: int
    pool_id: str
    given_back: tuple[str, ...]
    rows: tuple[Row, ...]
    etag: int


class Reply(NamedTuple):
    """Hub to device; ``receipts`` of rows count within an epoch, up to the watermark they are safe.

    ``policy`` is ``None`` where the device's etag names the one in force.
    """

    origin: int
    request_id: str
    nonce: str
    epoch: int
    leases: tuple[Lease, ...]
    receipts: tuple[tuple[str, int], ...]
    watermark: int
    etag: int
    policy: int | None


class Replayed(NamedTuple):
    """Hub to device: this sync was answered long ago; make a new one."""

    origin: int
    request_id: str


class Call(NamedTuple):
    """Device to gateway; the key is the idempotency key."""

    origin: int
    lease: Lease
    key: str
    request_hash: str
    most: int
    seq: int


class Answer(NamedTuple):
    """Gateway to device: the state of a call, and what its lease has left at a version."""

    origin: int
    key: str
    state: str
    cost: int
    lease_id: str
    remaining: int
    version: int


class Ask(NamedTuple):
    """Gateway to provider."""

    pool_id: str
    key: str
    most: int


class Billed(NamedTuple):
    """Provider to gateway."""

    pool_id: str
    key: str
    cost: int


class SealAsk(NamedTuple):
    """Hub to gateway."""

    pool_id: str
    lease_id: str
    epoch: int


class Sealed(NamedTuple):
    """Gateway to hub: the final count."""

    lease_id: str
    used: int


class Fence(NamedTuple):
    """Hub to gateway: a new epoch."""

    pool_id: str
    epoch: int


class Fenced(NamedTuple):
    """Gateway to hub: every lease of an older epoch."""

    pool_id: str
    epoch: int
    reports: tuple[Report, ...]


class Pull(NamedTuple):
    """Hub to gateway: the rows of its log from a position on."""

    pool_id: str
    position: int


class Pulled(NamedTuple):
    """Gateway to hub."""

    pool_id: str
    position: int
    rows: tuple[Row, ...]


Message: TypeAlias = Union[
    Sync, Reply, Replayed, Call, Answer, Ask, Billed, SealAsk, Sealed, Fence, Fenced, Pull, Pulled
]
