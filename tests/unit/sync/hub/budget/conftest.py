import json

import pytest
from inner_gateway import SECRET, InnerGateway
from sqlalchemy import insert, select

from edge_sync.hub.budget import books, caps, leasekey, outside
from edge_sync.hub.budget import gateways as registry
from edge_sync.hub.budget.granting import Granting
from edge_sync.hub.budget.rounds import Rounds
from edge_sync.hub.home import read_fact
from edge_sync.hub.syncing import Arrival, take
from edge_sync.money.lease import Lease
from edge_sync.store.schema import gateways
from edge_sync.wire import LeaseUse, Want

from ..conftest import Device  # noqa: TID252 - one kind of device for all tests of the hub

POOL = "gpu"


class Spender(Device):
    """A device that wants money, and keeps the leases it was answered."""

    granting: Granting | None = None
    leases: tuple[Lease, ...] = ()

    def want(self, demand=100_000, *, uses=(), pool=POOL, task="", **values):
        wants = [Want(pool=pool, task=task, demand_microusd=demand)]
        return self.sync(wants=wants, uses=list(uses), **values)

    def done(self, *, used=0, open_=0):
        """Return how the device's one lease stands once it makes no call on it any more."""
        (lease,) = self.leases
        return LeaseUse(lease_id=lease.lease_id, used_microusd=used, done=True, open=open_)

    def sync(self, **values):
        taken = ask(self.hub, self.granting, self.request(**values))
        self.nonce = taken.nonce
        self.leases = tuple(map(Lease.parse, taken.leases))
        return taken


def ask(hub, granting, *requests):
    """Take requests in one transaction; return the one result, or all."""
    arrivals = [Arrival(request, hub.clock()) for request in requests]
    results = hub.store.write(lambda c: take(c, arrivals, granting=granting))
    return results[0] if len(results) == 1 else results


def look(hub, work):
    with hub.store.reading() as connection:
        return work(connection)


def pots(hub):
    """Return cap, free, open and settled by scope and period."""
    found = look(hub, books.all_pots)
    return {
        f"{pot.scope.text()} {pot.period}": (
            pot.cap_microusd, pot.free_microusd, pot.open_microusd, pot.settled_microusd
        )
        for pot in found
    }  # fmt: skip


def held(hub):
    """Return all rights, the oldest first."""
    return look(hub, lambda c: books.rights(c, states=("open", "closing", "sealed")))


def add_pool(hub, pool=POOL, *, grade="gateway"):
    row = {"pool_id": pool, "url": "https://gpu.test", "grade": grade, "epoch": 1, "rows_after": 0,
           "totals": "{}", "error": "", "added_by": "test", "added_at": 0.0}  # fmt: skip
    hub.store.write(lambda c: c.execute(insert(gateways).values(**row)))


def entries_of(hub, table, what):
    query = select(table).where(table.c.what == what)
    return [
        json.loads(row["detail"]) for row in look(hub, lambda c: c.execute(query).mappings().all())
    ]


@pytest.fixture
def pool(hub):
    add_pool(hub)
    return POOL


@pytest.fixture
def granting(hub):
    return Granting(hub)


@pytest.fixture
def key(hub):
    return leasekey.find(hub.keys)


@pytest.fixture
def spender(hub, code, granting, pool):
    """Return a function that lets a device join that wants money."""

    def join():
        device = Spender(hub)
        device.granting = granting
        device.enrol(code)
        return device

    return join


@pytest.fixture(autouse=True)
def balanced(request):
    """See after each test of a hub that the books are exact."""
    hub = request.getfixturevalue("hub") if "hub" in request.fixturenames else None
    yield
    assert hub is None or look(hub, books.unbalanced) == ()


class Payer(Spender):
    """A device whose leases are noted outside of the database, as the server does."""

    def sync(self, **values):
        taken = super().sync(**values)
        outside.raise_granted(self.hub.keys, taken.granted)
        return taken


class Fleet:
    """A hub with a cap of a dollar a month, its gateways, and the rounds that it makes of them."""

    def __init__(self, hub, code, granting):
        self.hub, self._code, self._granting = hub, code, granting
        self.gateways = {}
        self.lines = []
        self.rounds = Rounds(
            hub, lambda *args, **_: self.lines.append(args[0]), transport=self._transport
        )

    def add(self, gateway):
        url = f"http://{gateway.pool}"
        self.gateways[url] = gateway
        carry = gateway.transport()
        registry.add(self.hub, gateway.pool, url=url, secret=SECRET, who="ann", transport=carry)

    def join(self):
        device = Payer(self.hub)
        device.granting = self._granting
        device.enrol(self._code)
        return device

    def step(self):
        self.rounds.step()

    def row(self, pool=POOL):
        return look(self.hub, lambda connection: registry.find(connection, pool))

    def fact(self, name):
        return look(self.hub, lambda connection: read_fact(connection, name))

    def states(self):
        return {
            each.right.lease_id: (each.right.state, each.why_closed, each.right.used_microusd)
            for each in held(self.hub)
        }

    def money(self):
        """Return cap, free, open and settled of the fleet's pot."""
        (found,) = pots(self.hub).values()
        return found

    def _transport(self, url):
        return self.gateways[url].transport()


@pytest.fixture
def new_gateway(hub, key, memory_path):
    """Return a function that starts a gateway."""
    made = []

    def start(pool=POOL):
        keys = {key.key_id: key.public_key}
        made.append(InnerGateway(memory_path, pool, keys=keys, clock=hub.clock))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def gateway(new_gateway):
    return new_gateway()


@pytest.fixture
def gated(hub, code, granting, gateway):
    made = Fleet(hub, code, granting)
    caps.set_cap(hub, "fleet", "month", 1_000_000, who="ann")
    made.add(gateway)
    made.step()
    yield made
    made.rounds.close()
