"""Sends alerts to a webhook, each until it was taken.

What is to be sent are the entries ``budget.alert`` of the audit log after the last one that the
other side took; where that stands is one fact in the database. Guarantees: every alert since the
webhook was set up arrives at least once and in order, over restarts and by one replica at a time; a
failure is a line of the log, is kept with its reason until it is over, and blocks nothing else. The
webhook's address is told to nobody: it may hold a secret.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from edge.errors import EdgeError
from edge_sync.hub import audit
from edge_sync.hub.budget import alerts
from edge_sync.hub.budget.amounts import dollars
from edge_sync.hub.home import Hub
from edge_sync.store.schema import audit as entries
from edge_sync.store.schema import facts

FACT = "alerts"
CHECK_EVERY_S = 15.0
CLAIM_S = 60.0
"""For so long no other replica sends."""
_FIRST_WAIT_S, _LONGEST_WAIT_S, _DOUBLINGS = 5.0, 600.0, 7
Post = Callable[[str, Mapping[str, Any]], str]
"""(address, body) -> what went wrong, empty where it was taken; must end within ``CLAIM_S``."""
Event = Callable[..., None]
"""(name, level=…, values by name): writes a line of the log."""


@dataclass(frozen=True, slots=True)
class Sent:
    """How far sending has come.

    Attributes:
        seq: of the last entry that was taken, or of the log when the webhook was set up.
        tries: that failed since.
        error: of the last one; empty where it went well.
        next_at: not before then, in seconds since the epoch.

    """

    seq: int
    tries: int = 0
    error: str = ""
    next_at: float = 0.0

    def failed(self, error: str, now: float) -> Sent:
        """Return it after an attempt that failed: longer and longer waits, up to ten minutes."""
        wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(self.tries, _DOUBLINGS))
        return replace(self, tries=self.tries + 1, error=error[:200], next_at=now + wait_s)


class Alerts:
    """Looks for alerts and sends them; one for each process.

    Args:
        hub: the hub, open.
        post: sends one.
        event: writes the log.
        monotonic: seconds that never step back.

    Attributes:
        sender: the thread that sends, or did last.

    """

    def __init__(
        self,
        hub: Hub,
        post: Post,
        event: Event,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hub = hub
        self._post = post
        self._event = event
        self._monotonic = monotonic
        self._checked_at = -CHECK_EVERY_S
        self.sender: threading.Thread | None = None

    def step(self) -> None:
        """Look, at most every ``CHECK_EVERY_S``, and send in the background.

        Raises:
            StoreError: the database failed.

        """
        now = self._monotonic()
        if now - self._checked_at < CHECK_EVERY_S or (self.sender and self.sender.is_alive()):
            return
        self._checked_at = now
        set_up(self._hub)
        for alert in alerts.check(self._hub):
            self._event("budget.alert", level="warning", **asdict(alert))
        if self._hub.settings.alerts.webhook and self._any():
            self.sender = threading.Thread(target=self.send, name="edge-hub-alerts", daemon=True)
            self.sender.start()

    def _any(self) -> bool:
        with self._hub.store.reading() as connection:
            return waiting(connection) > 0

    def send(self) -> None:
        """Send what waits, until all was taken or one was not."""
        try:
            while (entry := _claim(self._hub)) is not None:
                error = self._post(self._hub.settings.alerts.webhook, _body(self._hub, entry))
                _settle(self._hub, entry.seq, error)
                if error:
                    self._event("alert.failed", level="error", reason=error)
        except EdgeError as error:
            self._event("alert.failed", level="error", reason=str(error))


def set_up(hub: Hub) -> None:
    """Begin to send where a webhook was set up; forget where it was taken away.

    Raises:
        StoreError: the database failed.

    """
    wanted = bool(hub.settings.alerts.webhook)
    with hub.store.reading() as connection:
        if (_read(connection) is not None) is wanted:
            return

    def work(connection: Connection) -> None:
        if not wanted:
            connection.execute(delete(facts).where(facts.c.name == FACT))
        elif _read(connection) is None:
            begun = json.dumps(asdict(Sent(audit.head(connection).seq)))
            connection.execute(insert(facts).values(name=FACT, value=begun))

    hub.store.write(work)


def progress(connection: Connection) -> Sent | None:
    """Return how far sending has come; ``None`` where there is no webhook."""
    return _read(connection)


def waiting(connection: Connection) -> int:
    """Return how many alerts were not taken yet; 0 where there is no webhook."""
    sent = _read(connection)
    return 0 if sent is None else len(_pending(connection, sent))


def _pending(connection: Connection, sent: Sent) -> list[int]:
    query = (
        select(entries.c.seq)
        .where(entries.c.seq > sent.seq, entries.c.what == alerts.WHAT)
        .order_by(entries.c.seq)
    )
    return list(connection.execute(query).scalars())


def _claim(hub: Hub) -> audit.Entry | None:
    """Return the next entry to send, kept from other replicas for a while."""

    def work(connection: Connection) -> int | None:
        sent = _read(connection)
        if sent is None or sent.next_at > hub.clock():
            return None
        pending = _pending(connection, sent)
        if not pending:
            return None
        _write(connection, replace(sent, next_at=hub.clock() + CLAIM_S))
        return pending[0]

    seq = hub.store.write(work)
    return None if seq is None else audit.page(hub.store, limit=1, before=seq + 1)[0]


def _settle(hub: Hub, seq: int, error: str) -> None:
    def work(connection: Connection) -> None:
        sent = _read(connection)
        if sent is not None:
            _write(connection, sent.failed(error, hub.clock()) if error else Sent(seq))

    hub.store.write(work)


def _body(hub: Hub, entry: audit.Entry) -> dict[str, Any]:
    """Return what is sent; ``text`` is what chat services show."""
    detail = entry.detail
    used = detail["spent_microusd"] + detail["held_microusd"]
    words = (
        f"{detail['percent']} % of the budget of {detail['scope']} for {detail['period']} is used: "
        f"{dollars(used)} of {dollars(detail['cap_microusd'])}."
    )
    if detail["escrow"]:
        words += f" Escrow-grade, so without a gateway's count: {detail['escrow']}."
    return {
        "event": alerts.WHAT,
        "hub": hub.url,
        "seq": entry.seq,
        "at": entry.at,
        "text": words,
        **detail,
    }


def _read(connection: Connection) -> Sent | None:
    found = connection.execute(select(facts.c.value).where(facts.c.name == FACT)).scalar()
    return None if found is None else Sent(**json.loads(found))


def _write(connection: Connection, sent: Sent) -> None:
    value = json.dumps(asdict(sent))
    connection.execute(update(facts).where(facts.c.name == FACT).values(value=value))
