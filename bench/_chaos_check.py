"""Whether device, gateway, hub and provider tell the same story of the same money."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from edge_sync.gateway.calls import hold_id
from edge_sync.hub.home import Hub
from edge_sync.store.schema import ledger_rows, redemptions
from edge_sync.wire import MAX_ROWS

_UNDECIDED = frozenset({"reserved", "sent", "unclear"})


class Register:
    """The gateway's register, as its admin endpoints show it.

    Args:
        url: of the gateway.
        secret: that it wants.

    """

    def __init__(self, url: str, secret: str) -> None:
        self._client = httpx.Client(
            base_url=f"{url}/v1/register/",
            headers={"Authorization": f"Bearer {secret}"},
            timeout=20,
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return every hold."""
        found: dict[str, dict[str, Any]] = {}
        after = 0
        while page := self._get("rows", after=after, limit=MAX_ROWS)["rows"]:
            found.update({row["hold_id"]: row for row in page})
            after = page[-1]["seq"]
        return list(found.values())

    def reconcile(self, hold: str, actual_microusd: int) -> None:
        """Say what an unclear hold came to."""
        body = {"hold_id": hold, "actual_microusd": actual_microusd}
        self._client.post("reconcile", json=body).raise_for_status()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _get(self, name: str, **query: int) -> dict[str, Any]:
        answer = self._client.get(name, params=query)
        answer.raise_for_status()
        told: dict[str, Any] = answer.json()
        return told


@dataclass(frozen=True)
class Books:
    """What each party has written down, by hold.

    Attributes:
        device: (state, cost) of the devices' own rows, by the gateway's id of the hold.
        hub_told: the same rows as the hub has them from the devices.
        gateway: the gateway's rows.
        hub_read: the same rows as the hub has them from the gateway.

    """

    device: Mapping[str, tuple[str, int]]
    hub_told: Mapping[str, tuple[str, int]]
    gateway: Mapping[str, tuple[str, int]]
    hub_read: Mapping[str, tuple[str, int]]


def read_books(states: Mapping[str, Path], hub: Hub, register: Register) -> Books:
    """Read all books now.

    Args:
        states: state folder by device id.
        hub: open.
        register: of the gateway.

    """
    device: dict[str, tuple[str, int]] = {}
    names: dict[str, str] = {}
    for device_id, folder in states.items():
        for row_id, state, cost in _holds(folder):
            names[row_id] = hold_id(device_id, row_id)
            device[names[row_id]] = (state, cost)
    with hub.store.reading() as connection:
        told = connection.execute(
            select(ledger_rows.c.row_id, ledger_rows.c.state, ledger_rows.c.cost_microusd)
        ).all()
        read = connection.execute(
            select(redemptions.c.hold_id, redemptions.c.state, redemptions.c.cost_microusd)
        ).all()
    rows = register.rows()
    return Books(
        device,
        {names.get(row[0], f"unknown {row[0]}"): (row[1], row[2]) for row in told},
        {row["hold_id"]: (row["state"], row["actual"] or 0) for row in rows},
        {row[0]: (row[1], row[2]) for row in read},
    )


def differences(books: Books) -> Iterator[str]:
    """Yield what does not agree, a sentence each."""
    for hold, mine in books.device.items():
        if books.hub_told.get(hold) != mine:
            yield f"hold {hold} is {mine} on its device, {books.hub_told.get(hold)} at the hub"
        if mine[0] in _UNDECIDED:
            yield f"hold {hold} is still {mine[0]} on its device"
        theirs = books.gateway.get(hold)
        paid = theirs is not None and theirs[0] == "settled" and theirs[1] > 0
        if paid and theirs is not None and mine != ("settled", theirs[1]):
            yield f"hold {hold} is {mine} on its device, {theirs} at the gateway"
        if mine[0] == "settled" and mine[1] > 0 and not paid:
            yield f"hold {hold} is {mine} on its device, {theirs} at the gateway"
    for hold, theirs in books.gateway.items():
        if books.hub_read.get(hold) != theirs:
            yield f"hold {hold} is {theirs} at the gateway, {books.hub_read.get(hold)} at the hub"
        if hold not in books.device:
            yield f"hold {hold} of the gateway is on no device"
    for hold in books.hub_told.keys() - books.device.keys():
        yield f"row {hold} of the hub is on no device"


def lost_or_doubled(books: Books, billed: Mapping[str, int]) -> Sequence[str]:
    """Return the sales that the gateway has no row for, or has for less than was billed."""
    return [
        hold
        for hold, cost in billed.items()
        if hold not in books.gateway or books.gateway[hold][1] < cost
    ]


def _holds(folder: Path) -> list[tuple[str, str, int]]:
    with closing(sqlite3.connect(folder / "money.db", timeout=20)) as connection:
        return connection.execute("SELECT id, state, cost_microusd FROM holds").fetchall()
