import json
from types import SimpleNamespace

import pytest
from sqlalchemy import insert, select

from edge_sync.hub import fleet, policies
from edge_sync.hub.home import Hub
from edge_sync.hub.view import build_bundle, read_view
from edge_sync.store.schema import devices, ledger_rows, metadata_files, tables
from edge_sync.trust.trusted import Trusted
from edge_sync.wire import Bundle

NOW = 1_795_550_400.0  # 2026-11-24 20:00 UTC


class Clock:
    def __init__(self):
        self.at = NOW

    def __call__(self):
        return self.at


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def hub(database, memory_path, clock):
    """Return a hub on each database, with the groups kiosks and lab."""
    with Hub.create(memory_path / "hub", database, clock=clock) as hub:
        for name in ("kiosks", "lab"):
            fleet.add_group(hub, name, who="test")
        yield hub


@pytest.fixture
def dump(hub):
    """Return a function that gives all rows of all tables."""

    def rows():
        with hub.store.reading() as connection:
            return {
                table.name: connection.execute(select(table)).fetchall()
                for table in tables.sorted_tables
            }

    return rows


@pytest.fixture
def device(hub):
    """Return a function that puts a device into the database."""

    def add(number, *, group="kiosks", **values):
        row = {
            "id": f"{number:032x}",
            "name": f"kiosk-{number}",
            "group_name": group,
            "public_key": f"{number:064x}",
            "status": "active",
            "enrolled_at": NOW - 86_400,
            "incarnation": 1,
            "nonce": "",
            "runtime": "0.1.0",
            "pack": "kiosk",
            "revision": 0,
            "serial": 0,
            "refused": "{}",
            "models": "{}",
            "waiting": 0,
        }
        hub.store.write(lambda c: c.execute(insert(devices).values(**{**row, **values})))
        return row["id"]

    return add


@pytest.fixture
def spend(hub):
    """Return a function that reports one ledger row of a device."""

    def add(device_id, microusd, *, at=NOW, state="settled"):
        row = {
            "row_id": f"{hash((device_id, microusd, at, state)) % 16**8:032x}",
            "device_id": device_id,
            "task": "support_intent",
            "pool": "gpu",
            "state": state,
            "held_microusd": 0 if state == "settled" else microusd,
            "cost_microusd": microusd if state == "settled" else 0,
            "at": at,
            "revision": 0,
            "receipt": 1,
        }
        hub.store.write(lambda c: c.execute(insert(ledger_rows).values(**row)))

    return add


@pytest.fixture
def publish(hub):
    """Return a function that publishes a policy's text."""

    def make(text, *, at_once=(), message="why"):
        checked = policies.check(hub, text.encode(), what="policy.yaml")
        return policies.publish(hub, checked, message=message, who="ann", at_once=at_once)

    return make


@pytest.fixture
def fetched(hub):
    """Return a function that gives what a device accepts of the hub now, from its first root on."""

    def accept(device_id, group):
        with hub.store.reading() as connection:
            root = metadata_files.c.body
            first = select(root).where(
                (metadata_files.c.role == "root") & (metadata_files.c.version == 1)
            )
            trusted = Trusted.start(bytes(connection.execute(first).scalar_one()), fingerprint=None)
            view = read_view(connection)
            serial = view.serial(device_id, group)
            text = build_bundle(connection, view, root=1, serial=serial, with_policy=True)
        bundle = Bundle.model_validate_json(text)
        accepted = trusted.accept(bundle, device_id=device_id, group=group, now=hub.clock())
        document = accepted.document_bytes
        return SimpleNamespace(
            assignment=accepted.assignment,
            sections=json.loads(document)["sections"] if document else None,
        )

    return accept
