"""What the register keeps: its tables, and the values that go in and out of its rules.

Money in micro-dollars, times in seconds since the epoch. Knows no rule but the tables' own checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

from edge_sync.money.lease import Lease

Flag: TypeAlias = Literal["", "over", "no_usage", "bad_usage", "refused", "reconciled"]

SCHEMA = (
    """CREATE TABLE leases (
        lease_id TEXT PRIMARY KEY,
        scope TEXT NOT NULL, period TEXT NOT NULL, device_id TEXT NOT NULL,
        epoch INTEGER NOT NULL, amount INTEGER NOT NULL,
        held INTEGER NOT NULL CHECK (held >= 0),
        redeemed INTEGER NOT NULL CHECK (redeemed >= 0),
        open INTEGER NOT NULL CHECK (open >= 0),
        sealed INTEGER NOT NULL DEFAULT 0,
        first_at REAL NOT NULL, sealed_at REAL,
        CHECK (held + redeemed <= amount)) WITHOUT ROWID""",
    """CREATE TABLE holds (
        hold_id TEXT PRIMARY KEY,
        lease_id TEXT NOT NULL, request_hash TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('held', 'unclear', 'settled', 'released')),
        most INTEGER NOT NULL CHECK (most >= 0),
        actual INTEGER CHECK (actual BETWEEN 0 AND most),
        reported INTEGER, flag TEXT NOT NULL DEFAULT '',
        begun_at REAL NOT NULL, ended_at REAL,
        seq INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE UNIQUE INDEX holds_seq ON holds (seq)",
    "CREATE INDEX holds_lease ON holds (lease_id)",
    """CREATE TABLE answers (
        hold_id TEXT PRIMARY KEY, status INTEGER NOT NULL, kind TEXT NOT NULL,
        body BLOB NOT NULL, at REAL NOT NULL)""",
    "CREATE INDEX answers_at ON answers (at)",
    "CREATE TABLE epochs (hub TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE revoked (device_id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID",
    """CREATE TABLE adjustments (
        adjustment_id TEXT PRIMARY KEY, hold_id TEXT NOT NULL,
        amount INTEGER NOT NULL CHECK (amount > 0), reason TEXT NOT NULL, at REAL NOT NULL
        ) WITHOUT ROWID""",
    "CREATE INDEX adjustments_hold ON adjustments (hold_id)",
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that wants to be forwarded.

    Attributes:
        lease: what pays, its signature checked.
        hub: name of the hub that granted it.
        hold_id: digest of device and idempotency key.
        request_hash: digest of what is asked.
        most_microusd: the most it can cost.
        now: seconds since the epoch.

    """

    lease: Lease
    hub: str
    hold_id: str
    request_hash: str
    most_microusd: int
    now: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A stored answer.

    Attributes:
        status: of HTTP.
        kind: content type.
        body: as it was sent.
        cost_microusd: what it was settled at; ``None`` before it is stored.

    """

    status: int
    kind: str
    body: bytes
    cost_microusd: int | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A lease at this gateway; money in micro-dollars.

    ``used`` is what it has cost or still can; it is final once the lease is sealed and no hold is
    open. ``amount_microusd`` is 0 for a lease that was sealed before it was ever shown here.
    """

    lease_id: str
    device_id: str
    scope: str
    period: str
    epoch: int
    amount_microusd: int
    held_microusd: int
    redeemed_microusd: int
    open: int
    sealed: bool

    @classmethod
    def of(cls, row: Sequence[Any]) -> Self:
        """Return what a row of the table says, its columns in the order of the fields."""
        return cls(**{**dict(zip(cls.__slots__, row, strict=True)), "sealed": bool(row[-1])})

    @property
    def used_microusd(self) -> int:
        """Redeemed and held."""
        return self.redeemed_microusd + self.held_microusd

    @property
    def final(self) -> bool:
        """Whether ``used`` cannot change any more."""
        return self.sealed and self.open == 0


@dataclass(frozen=True, slots=True)
class Settled:
    """What a hold came to; ``excess`` is what was reported above its maximum."""

    actual_microusd: int
    excess_microusd: int
    flag: str
