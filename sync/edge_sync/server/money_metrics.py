"""What Prometheus is told of the fleet's money: caps, pools, alerts. No label names a device.

Caps of single devices are left out; all comes from the database and is the same for every replica.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy import Connection

from edge_sync.hub.budget import standing, telling
from edge_sync.money.caps import Scope

_MICRO = 1_000_000


class MoneyMetrics:
    """The families and their values.

    Args:
        registry: that they are part of.

    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._dollars = Gauge(
            "edge_hub_budget_dollars",
            "A cap in its running period; the parts but cap add up to it.",
            ["scope", "per", "part"],
            registry=registry,
        )
        self._leases = Gauge(
            "edge_hub_budget_leases", "Leases that are not sealed.", ["pool"], registry=registry
        )
        self._answered = Gauge(
            "edge_hub_budget_gateway_seen_seconds",
            "When a pool's gateway answered last, in seconds since the epoch; 0 for never.",
            ["pool"],
            registry=registry,
        )
        self._silent = Gauge(
            "edge_hub_budget_gateway_silent",
            "1 where a pool's gateway does not answer.",
            ["pool"],
            registry=registry,
        )
        self._recovering = Gauge(
            "edge_hub_budget_recovering",
            "1 while nothing is granted as the database was set back.",
            registry=registry,
        )
        self._waiting = Gauge(
            "edge_hub_budget_alerts_waiting",
            "Alerts that the webhook has not taken yet.",
            registry=registry,
        )

    def read(self, connection: Connection, *, now: float) -> None:
        """Read all values; ``now`` in seconds since the epoch."""
        found = standing.read(connection, now=now, unmet=False)
        for family in (self._dollars, self._leases, self._answered, self._silent):
            family.clear()
        for cap in found.caps:
            if not Scope.parse(cap.scope).device:
                for part, amount in {"cap": cap.cap_microusd, **cap.parts()}.items():
                    self._dollars.labels(cap.scope, cap.kind, part).set(amount / _MICRO)
        for pool in found.pools:
            self._leases.labels(pool.pool).set(pool.leases)
            if pool.grade == "gateway":
                self._answered.labels(pool.pool).set(pool.seen_at or 0)
                self._silent.labels(pool.pool).set(pool.silent)
        self._recovering.set(found.recovering)
        self._waiting.set(telling.waiting(connection))
