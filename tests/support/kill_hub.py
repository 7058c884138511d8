"""The hub with a real gateway as a scenario of deaths, on SQLite or PostgreSQL.

Caps, syncs with wants and rows, seals and refunds, a cut, a backup, a copied device, the way back
after the database was set back, and a backup that is put back. A request that was not answered is
sent again as it was, as devices do; the next opening looks at the keys folder first, as the server
does.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import yaml
from inner_gateway import SECRET, InnerGateway
from kill_gateway import ident
from killing import Scenario
from sqlalchemy import Connection, Table, func, insert, select

from edge.errors import ConfigError, EdgeError
from edge_sync import keys
from edge_sync.gateway.refusals import Refused
from edge_sync.hub import audit
from edge_sync.hub.backup import backup
from edge_sync.hub.budget import books, gateways, leasekey, outside, recovery
from edge_sync.hub.budget.caps import remove_cap, set_cap
from edge_sync.hub.budget.granting import Granting
from edge_sync.hub.budget.rounds import Rounds
from edge_sync.hub.devices import check_enrolment, enrolling
from edge_sync.hub.enrolment import make_code
from edge_sync.hub.home import Hub, read_fact
from edge_sync.hub.restoring import restore
from edge_sync.hub.syncing import Arrival, take
from edge_sync.money.lease import Lease
from edge_sync.store import schema
from edge_sync.wire import EnrolRequest, LeaseUse, LedgerRow, SyncRequest, Want

NOW = 1_795_000_000.0
POOL, URL = "gpu", "http://gpu"
MONTH = "month:2026-11"


class Fleet:
    """A hub, its gateway and two devices whose leases are known by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub = Hub.open(folder / "hub", clock=lambda: NOW)
        self.gateway = inner_gateway(folder, self.hub)
        self.devices = json.loads((folder / "devices.json").read_text("utf-8"))
        self._name, self._drawn = "", count()
        self._granting = Granting(self.hub, draw=self._draw)
        # As the server does before it listens.
        recovery.look(self.hub)

    def sync(self, name: str, device: str, nonce: str = "", **values: Any) -> None:
        """Send a request, the same one under the same name; nonces and leases are named by it."""
        self._name, self._drawn = name, count()
        request = SyncRequest(
            device_id=self.devices[device]["id"],
            incarnation=1,
            request_id=ident(name),
            nonce=ident(f"nonce {nonce}") if nonce else self.devices[device]["nonce"],
            at=NOW,
            **values,
        )

        def work(connection: Connection) -> Any:
            nonces = partial(ident, f"nonce {name}")
            arrivals = [Arrival(request, NOW)]
            return take(connection, arrivals, nonces=nonces, granting=self._granting)[0]

        taken = self.hub.store.write(work)
        if isinstance(taken, EdgeError):
            raise taken
        outside.raise_granted(self.hub.keys, taken.granted)

    def spend(self, lease: str, cost: int) -> None:
        """Let the gateway take a call on a lease that a sync named."""
        with self.hub.store.reading() as connection:
            query = select(schema.leases.c.text).where(schema.leases.c.lease_id == ident(lease))
            text = connection.execute(query).scalar_one()
        try:
            self.gateway.hold(Lease.parse(text), cost, ident(f"hold on {lease}"))
        except Refused as refused:
            if refused.code not in {"unclear", "answered"}:
                raise
        self.gateway.settle(ident(f"hold on {lease}"), cost)

    def round(self) -> None:
        """Let the hub go round its gateways until nothing changes."""
        told: list[str] = []
        rounds = Rounds(self.hub, lambda what, **_: told.append(what),
                        transport=self.gateway.transport)  # fmt: skip
        for _ in range(3):
            rounds.step()
        rounds.close()
        assert "gateway.failed" not in told

    def back_up(self) -> None:
        """Take a backup under a name that is free."""
        path = next(path for number in count() if not (path := self.folder / f"b{number}").exists())
        backup(self.hub, path, who="ann")

    def set_back(self) -> None:
        """Begin the way back, once."""
        if outside.read(self.hub.keys).epoch == 1:
            recovery.begin(self.hub, why="a test")

    def remove_cap(self, scope: str) -> None:
        """Take a cap away, unless it is gone."""
        try:
            remove_cap(self.hub, scope, "month", who="ann")
        except ConfigError:
            with self.hub.store.reading() as connection:
                assert scope not in _column(connection, schema.budgets, "scope")

    def _draw(self) -> str:
        return ident(f"{self._name} lease {next(self._drawn)}")


class HubScenario(Scenario):
    """See the module; the hub's database is SQLite."""

    name = "hub"
    parted = True

    def database(self, folder: Path) -> str:
        """Return the URL of the database of a run."""
        return f"sqlite:///{folder / 'hub.db'}"

    def prepare(self, folder: Path) -> None:
        """Make a hub with a group, a gateway and two devices."""
        hub = Hub.create(folder / "hub", self.database(folder), clock=lambda: NOW)
        stops = json.dumps({"models": [], "tools": [], "tasks": []})
        row = {"name": "kiosks", "serial": 0, "stopped": stops}
        hub.store.write(lambda c: c.execute(insert(schema.groups).values(**row)) and None)
        gateway = inner_gateway(folder, hub)
        gateways.add(hub, POOL, url=URL, secret=SECRET, who="ann", transport=gateway.transport())
        code = make_code(hub, group="kiosks", uses=5, expires_s=3_600, who="ann").text
        found = {}
        for name in "ab":
            key = keys.make_key()
            request = EnrolRequest(code=code, public_key=key.public_key, name=f"kiosk {name}",
                                   signature=key.sign_enrolment(code))  # fmt: skip
            work = enrolling(hub, request, device_id=check_enrolment(request))
            found[name] = {"id": key.device_id, "nonce": hub.store.write(work).nonce}
        (folder / "devices.json").write_text(json.dumps(found), "utf-8")
        gateway.close()
        hub.close()

    def copied(self, template: Path, folder: Path) -> None:
        """Copy it, and let the hub's settings name the copy's database."""
        shutil.copytree(template, folder)
        path = folder / "hub" / "hub.yaml"
        settings = yaml.safe_load(path.read_text("utf-8"))
        path.write_text(yaml.safe_dump(settings | {"database": self.database(folder)}), "utf-8")

    def open(self, folder: Path) -> Fleet:
        """Open it."""
        return Fleet(folder)

    def calls(self, subject: Fleet) -> list[Callable[[], object]]:
        """Return the script."""
        f = subject
        first = [row("one", 30_000), row("two", 0, state="sent", held_microusd=9_000)]
        later = [row("two", 8_000), row("three", 1_000)]
        want = Want(pool=POOL, demand_microusd=100_000)
        done = LeaseUse(lease_id=ident("a1 lease 0"), used_microusd=30_000, done=True)

        def cap(scope: str, amount: int) -> Callable[[], object]:
            return lambda: set_cap(f.hub, scope, "month", amount, who="ann")

        return [
            cap("fleet", 2_000_000),
            cap("group:kiosks", 1_000_000),
            f.round,
            lambda: f.sync("a1", "a", wants=[want]),
            lambda: f.sync("a1", "a", wants=[want]),  # the answer was lost
            lambda: f.sync("b1", "b", wants=[want], rows=first),
            lambda: f.spend("a1 lease 0", 30_000),
            lambda: f.sync("a2", "a", "a1", wants=[want], uses=[done]),
            f.round,
            cap("fleet", 150_000),
            lambda: f.sync("b2", "b", "b1", wants=[want], rows=[*later, first[0]]),
            f.back_up,
            cap("fleet", 2_000_000),
            lambda: f.sync("b3", "b", "b1", wants=[want]),  # a copy of the disk
            f.round,
            lambda: f.spend("a2 lease 0", 7_000),
            f.set_back,
            f.round,
            lambda: f.sync("a3", "a", "a2", wants=[want]),
            lambda: f.remove_cap("group:kiosks"),
            lambda: restore(f.hub, f.folder / "b0", who="ann", replace=True),
            f.round,
            lambda: f.sync("a4", "a", "a3", wants=[want], rows=[row("four", 500)]),
        ]

    def seen(self, subject: Fleet) -> Any:
        """Return money and rows of the hub; of the audit log only that it is whole is asked."""
        known = outside.read(subject.hub.keys)
        with subject.hub.store.reading() as c:
            return {
                "budgets": _rows(c, schema.budgets, "scope", "kind", "amount_microusd"),
                "pots": _rows(c, schema.pots, "scope", "period", "cap_microusd", "free_microusd",
                              "open_microusd", "settled_microusd"),
                "leases": _rows(c, schema.leases, "lease_id", "device_id", "state",
                                "amount_microusd", "used_microusd", "told_microusd", "why_closed"),
                "wants": _rows(c, schema.wants, "device_id", "pool_id", "demand_microusd"),
                "rows": _rows(c, schema.ledger_rows, "row_id", "state", "cost_microusd", "receipt"),
                "redemptions": _rows(c, schema.redemptions, "hold_id", "state", "cost_microusd"),
                "devices": _rows(c, schema.devices, "id", "status", "nonce"),
                "granted": [read_fact(c, "granted"), known.granted],
                "restored": [(read_fact(c, "epoch") or 0) > 1, known.epoch > 1],
                "recovering": [read_fact(c, "recovering") or 0, int(known.recovering)],
                "caps": [len(known.caps), len(known.gateways)],
                "receipts": [read_fact(c, "receipt"), read_fact(c, "watermark")],
            }  # fmt: skip

    def between(self, found: Any, before: Any, after: Any) -> bool:
        """Return whether a call is whole or not at all; a round of gateways is a few changes."""
        if found in (before, after) or found == paused(before):
            return True
        same = all(before[name] == after[name] for name in ("budgets", "devices", "rows"))
        return same and all(
            value == before[name] or value == after[name] for name, value in found.items()
        )

    def ended(self, seen: Any) -> Any:
        """A request that came twice took a receipt for each."""
        return seen | {"receipts": [bool(at) for at in seen["receipts"]]}

    def check(self, subject: Fleet) -> None:
        """Books, register and audit log are exact, and each call has one lease at most."""
        with subject.hub.store.reading() as connection:
            assert books.unbalanced(connection) == ()
            open_ = [tuple(each) for each in _rows(connection, schema.leases, "device_id",
                                                   "pool_id", "task", "state")
                     if each[-1] == "open"]  # fmt: skip
            assert len(open_) == len(set(open_))
            granted = connection.execute(select(func.count()).select_from(schema.leases)).scalar()
            assert granted <= read_fact(connection, "granted")
            spent = sum(each[0] for each in _rows(connection, schema.leases, "used_microusd"))
        assert audit.verify(subject.hub.store) is None
        assert spent <= subject.gateway.totals()["redeemed_microusd"]


class PostgresHub(HubScenario):
    """The same on PostgreSQL: each run has a database made after the template's.

    Reads ``POSTGRES``, the URL of a server that is empty.
    """

    name = "hub-postgresql"

    def database(self, folder: Path) -> str:
        """Return the URL of a database named like the folder."""
        base, _, rest = os.environ["POSTGRES"].partition("/postgres?")
        return f"{base}/kill_{folder.name}?{rest}"

    def prepare(self, folder: Path) -> None:
        """Make the template's database first."""
        self._do(f"CREATE DATABASE kill_{folder.name}")
        super().prepare(folder)

    def copied(self, template: Path, folder: Path) -> None:
        """Copy folder and database."""
        make = f"CREATE DATABASE kill_{folder.name} TEMPLATE kill_{template.name}"
        for pause_s in (0.05, 0.2, 1.0, 5.0):
            try:
                self._do(make)
                break
            except psycopg.errors.ObjectInUse:  # whoever wrote the template is about to go
                time.sleep(pause_s)
        super().copied(template, folder)

    def removed(self, folder: Path) -> None:
        """Remove both; whoever died in it may still be connected."""
        self._do(f"DROP DATABASE kill_{folder.name} WITH (FORCE)")
        super().removed(folder)

    @staticmethod
    def _do(sql: str) -> None:
        with psycopg.connect(os.environ["POSTGRES"], autocommit=True) as connection:
            connection.execute(sql)


def inner_gateway(folder: Path, hub: Hub) -> InnerGateway:
    """Return a gateway that knows the hub's key."""
    key = leasekey.find(hub.keys)
    assert key is not None
    public = key.private.public_key().public_bytes_raw().hex()
    return InnerGateway(folder, POOL, keys={key.key_id: public}, clock=lambda: NOW)


def paused(seen: Any) -> Any:
    """Return what the next opening makes of a way back that only the keys folder knows of."""
    leases = [[*each[:2], "closing", *each[3:-1], "restore"] if each[2] == "open" else each
              for each in seen["leases"]]  # fmt: skip
    # What a device synced last may be lost, so its next nonce is taken as it comes.
    devices = [[name, status, "" if status == "active" else nonce]
               for name, status, nonce in seen["devices"]]  # fmt: skip
    return seen | {"leases": sorted(leases), "devices": devices, "recovering": [1, 1],
                   "restored": [True, True]}  # fmt: skip


def row(name: str, cost: int, **values: Any) -> LedgerRow:
    """Return a row of a device's ledger."""
    given = {"state": "settled", "held_microusd": 0, **values}
    return LedgerRow(row_id=ident(f"row {name}"), task="draft", pool=POOL, cost_microusd=cost,
                     at=NOW, **given)  # fmt: skip


def _rows(connection: Connection, table: Table, *columns: str) -> list[list[Any]]:
    query = select(*(table.c[name] for name in columns))
    return sorted(list(each) for each in connection.execute(query))


def _column(connection: Connection, table: Table, name: str) -> list[Any]:
    return [each for (each,) in _rows(connection, table, name)]


if __name__ == "__main__":
    from killing import main

    main({each.name: each for each in (HubScenario, PostgresHub)})
