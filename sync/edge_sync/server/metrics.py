"""What Prometheus is told; no label names a device.

Counts of this process; ``devices online``, ``generation`` and rollouts come from the database and
are the same for every replica.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from sqlalchemy import func, select

from edge_sync.hub.home import Hub, read_fact
from edge_sync.server.money_metrics import MoneyMetrics
from edge_sync.store.schema import devices, rollouts

ONLINE_S = 900.0
"""A device that synced within three periods of five minutes counts as online."""
KEPT_S = 2.0
STATES = ("running", "paused", "halted", "aborted", "done")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)


class Metrics:
    """The families and their values.

    Args:
        hub: the hub, open.
        monotonic: seconds that never step back.

    """

    def __init__(self, hub: Hub, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._hub = hub
        self._monotonic = monotonic
        self._read_at = -KEPT_S
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "edge_hub_requests", "Requests.", ["path", "code"], registry=self.registry
        )
        self.sync_seconds = Histogram(
            "edge_hub_sync_seconds", "Time of a sync.", buckets=_SECONDS, registry=self.registry
        )
        self.shed = Counter("edge_hub_shed", "Requests answered with 429.", registry=self.registry)
        self.rows = Counter(
            "edge_hub_rows_stored", "Ledger rows taken from devices.", registry=self.registry
        )
        self.polls = Gauge("edge_hub_long_polls", "Devices that wait.", registry=self.registry)
        self.queued = Gauge(
            "edge_hub_writes_waiting", "Writes that wait for their turn.", registry=self.registry
        )
        self.online = Gauge(
            "edge_hub_devices_online", "Devices that synced lately.", registry=self.registry
        )
        self.generation = Gauge(
            "edge_hub_generation", "Number of the last change.", registry=self.registry
        )
        self.rollouts = Gauge(
            "edge_hub_rollouts", "Rollouts by state.", ["state"], registry=self.registry
        )
        self._money = MoneyMetrics(self.registry)

    def text(self) -> bytes:
        """Return all values in Prometheus' text format; blocks on the database.

        Raises:
            StoreError: the database cannot be read.

        """
        now = self._monotonic()
        if now - self._read_at >= KEPT_S:
            self._read()
            self._read_at = now
        self.queued.set(self._hub.store.waiting)
        return generate_latest(self.registry)

    def _read(self) -> None:
        since = self._hub.clock() - ONLINE_S
        online = select(func.count()).select_from(devices).where(devices.c.last_seen_at > since)
        by_state = select(rollouts.c.state, func.count()).group_by(rollouts.c.state)
        with self._hub.store.reading() as connection:
            self.online.set(connection.execute(online).scalar_one())
            self.generation.set(read_fact(connection, "generation") or 0)
            found = {str(state): int(count) for state, count in connection.execute(by_state)}
            self._money.read(connection, now=self._hub.clock())
        for state in STATES:
            self.rollouts.labels(state).set(found.get(state, 0))
