"""``keys/money.json`` as a scenario of power cuts, and scenarios that must be found careless."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kill_device import Device, Opened
from kill_gateway import Gateway, ident, lease
from killing import Scenario

from edge_sync.gateway.records import Ask
from edge_sync.gateway.register import Register
from edge_sync.hub.budget import outside
from edge_sync.hub.budget.outside import Gate
from edge_sync.money.caps import Cap, Scope

GATE = Gate("big", "https://pool.example", "gateway")


class Outside(Scenario):
    """Numbers of leases, caps, gateways and an epoch, noted one after the other."""

    name = "outside"

    def open(self, folder: Path) -> Path:
        """Return the folder of keys."""
        keys = folder / "keys"
        keys.mkdir(exist_ok=True)
        outside.read(keys)
        return keys

    def calls(self, subject: Path) -> list[Callable[[], object]]:
        """Return the script."""

        def noted(**values: Any) -> Callable[[], object]:
            return lambda: outside.change(subject, lambda before: replace(before, **values))

        caps = [Cap(Scope(), "month", 5), Cap(Scope(group="kiosks"), "day", 3)]
        return [
            noted(epoch=1),
            noted(caps=tuple(caps[:1])),
            noted(gateways=(GATE,)),
            *(lambda at=at: outside.raise_granted(subject, at) for at in range(1, 6)),
            noted(caps=tuple(caps)),
            noted(epoch=2, recovering=True),
            noted(recovering=False),
            lambda: outside.raise_granted(subject, 6),
        ]

    def seen(self, subject: Path) -> Any:
        """Return what the file holds."""
        return asdict(outside.read(subject))


class Hasty(Outside):
    """Puts a file in place that is not synced."""

    name = "hasty"

    def calls(self, subject: Path) -> list[Callable[[], object]]:
        """Return the script."""

        def noted(granted: int) -> None:
            beside = subject / "beside"
            body = {"epoch": 1, "granted": granted, "recovering": False, "caps": [], "gateways": []}
            beside.write_text(json.dumps(body), "utf-8")
            beside.replace(subject / outside.NAME)

        return [lambda at=at: noted(at) for at in range(1, 4)]


class Unsynced(Gateway):
    """The register on a disk that SQLite is told to trust."""

    name = "unsynced"

    def open(self, folder: Path) -> Register:
        """Open the register."""
        register = super().open(folder)
        register.write(lambda book: None)
        register._connection.execute("PRAGMA synchronous = OFF")
        return register


class Unlisted(Device):
    """``money.db`` where the end of a transaction is synced and the folder is not."""

    name = "unlisted"

    def open(self, folder: Path) -> Opened:
        """Open it."""
        opened = super().open(folder)
        for db in (opened.leases.db, opened.book._file.db):
            with db.reading() as connection:
                connection.execute("PRAGMA synchronous = FULL")
        return opened


class Rash(Gateway):
    """Says that a call is over before it is committed."""

    name = "rash"

    def calls(self, subject: Register) -> list[Callable[[], object]]:
        """Return the script."""
        asks = [Ask(lease("one"), "hub", ident(name), "r", 1, 1.0) for name in "abc"]

        def begun(ask: Ask) -> None:
            if subject._connection.in_transaction:
                subject.commit()
            subject.begin([lambda book: book.hold(ask)])

        def admitted() -> None:
            subject.begin([lambda book: book.fence("hub", 1)])
            subject.commit()

        return [admitted, *(lambda ask=ask: begun(ask) for ask in asks), subject.commit]

    def seen(self, subject: Register) -> Any:
        """Return the holds, within the transaction that is open."""
        rows = subject._connection.execute("SELECT hold_id, state FROM holds")
        return {"holds": [[*row, None, ""] for row in rows.fetchall()]}

    def ended(self, seen: Any) -> Any:
        """How it ends does not matter."""

    def check(self, subject: Register) -> None:
        """Nothing can be asked in between."""


SCENARIOS = {
    each.name: each for each in (Gateway, Device, Outside, Hasty, Unsynced, Unlisted, Rash)
}

if __name__ == "__main__":
    from killing import main

    main(SCENARIOS)
