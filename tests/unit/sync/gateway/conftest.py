"""A register in memory, and what is asked of it."""

import hashlib

import pytest

from edge_sync.gateway.records import Ask
from edge_sync.gateway.register import Register
from edge_sync.money.lease import Lease

DEVICE = "d" * 32
NOW = 1_000.0


def ident(name):
    return hashlib.sha256(str(name).encode()).hexdigest()[:32]


def lease(name="lease", **values):
    given = {"lease_id": ident(name), "scope": "fleet", "period": "total", "device_id": DEVICE,
             "pool_id": "pool", "epoch": 1, "amount_microusd": 100, "not_after": 2_000,
             "policy_version": 1, "key_id": "k1", "signature": "0" * 128}  # fmt: skip
    return Lease(**{**given, **values})


def ask(hold="hold", most=10, *, of=None, request="request", now=NOW):
    return Ask(of or lease(), "hub", ident(hold), ident(request), most, now)


def admitted(path):
    """Return a register that its hub has told its epoch."""
    made = Register.open(path)
    made.write(lambda book: book.fence("hub", 0))
    return made


@pytest.fixture
def register(memory_path):
    made = admitted(memory_path / "gateway.db")
    yield made
    made.close()
