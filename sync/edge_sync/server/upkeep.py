"""What must happen though nobody asks: signatures renewed, rollouts driven, gateways asked.

Two threads, as a gateway may keep one waiting. Any replica may do it at any time: each step first
looks whether it is still to be done.
"""

from __future__ import annotations

import threading

from sqlalchemy import Connection, select

from edge_sync.hub import rollouts
from edge_sync.hub.assigning import assign_again
from edge_sync.hub.budget import forgetting, rounds, telling, webhook
from edge_sync.hub.home import Hub, raise_fact
from edge_sync.server.logs import Log
from edge_sync.store.schema import assignments, groups
from edge_sync.trust.repository import Repository

EVERY_S = 1.0
RENEW_EVERY_S = 60.0


class Upkeep:
    """The threads, from ``start`` to ``stop``."""

    def __init__(self, hub: Hub, log: Log) -> None:
        self._hub = hub
        self._log = log
        self._alerts = telling.Alerts(hub, webhook.post, log.event)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="edge-hub-upkeep", daemon=True),
            threading.Thread(target=self._go_round, name="edge-hub-money", daemon=True),
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End before the next step."""
        self._stop.set()

    def _run(self) -> None:
        rounds_made = 0
        while not self._stop.wait(EVERY_S):
            try:
                if rounds_made % int(RENEW_EVERY_S / EVERY_S) == 0 and renew(self._hub):
                    self._log.event("metadata.renewed")
                if rounds_made % int(forgetting.EVERY_S / EVERY_S) == 0:
                    forgetting.forget(self._hub)
                rollouts.step(self._hub)
                self._alerts.step()
            except Exception as error:  # noqa: BLE001 - the next round may go well
                reason = f"{type(error).__name__}: {error}"
                self._log.event("upkeep.failed", level="error", reason=reason)
            rounds_made += 1

    def _go_round(self) -> None:
        """Ask the gateways, again and again."""
        money = rounds.Rounds(self._hub, self._log.event)
        try:
            while not self._stop.is_set():
                try:
                    money.step()
                except Exception as error:  # noqa: BLE001 - the next round may go well
                    if not self._stop.is_set():
                        reason = f"{type(error).__name__}: {error}"
                        self._log.event("money.failed", level="error", reason=reason)
                self._stop.wait(rounds.EVERY_S)
        finally:
            money.close()


def renew(hub: Hub) -> bool:
    """Sign anew what has less than half of its lifetime left; return whether there was something.

    Raises:
        ConfigError: a key is not there.
        StoreError: the database failed.

    """
    with hub.store.reading() as connection:
        repository = hub.signing(connection)
        if not repository.due(now=hub.clock()) and not _due_groups(hub, connection, repository):
            return False

    def work(connection: Connection) -> bool:
        before = hub.signing(connection)
        after = before.refresh(now=hub.clock())
        hub.keep(connection, after, before=before)
        due = _due_groups(hub, connection, after)
        for group in due:
            assign_again(hub, connection, after, group=group)
        changed = bool(due or after.changes(before))
        if changed:
            raise_fact(connection, "generation")
        return changed

    return hub.store.write(work)


def _due_groups(hub: Hub, connection: Connection, repository: Repository) -> list[str]:
    """Return the groups whose assignment must be made anew."""
    query = (
        select(groups.c.name, assignments.c.body)
        .join(assignments, assignments.c.serial == groups.c.serial)
        .order_by(groups.c.name)
    )
    return [
        str(name)
        for name, body in connection.execute(query)
        if repository.assignment_is_due(body.encode(), now=hub.clock())
    ]
