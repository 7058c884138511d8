"""What Prometheus is told; no label names a device. Counts are of this process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from edge_sync.gateway.records import Settled
from edge_sync.gateway.upstreams import Pool

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)


class Metrics:
    """The families and their values."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.calls = Counter(
            "edge_gateway_calls", "Calls by the status of their answer.", ["code"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "edge_gateway_call_seconds", "Time of a call.", buckets=_SECONDS, registry=registry
        )
        self.settled = Counter(
            "edge_gateway_settled_microusd", "What calls cost.", registry=registry
        )
        self.flags = Counter(
            "edge_gateway_flags", "Holds that were not settled by a plain usage.", ["flag"],
            registry=registry,
        )  # fmt: skip
        self.excess = Counter(
            "edge_gateway_excess_microusd",
            "Reported above the maximum of a hold: the provider bills more than it may.",
            registry=registry,
        )
        self.unclear = Counter(
            "edge_gateway_unclear", "Holds kept since their outcome is unclear.", registry=registry
        )
        self.retries = Gauge("edge_gateway_retries", "Second attempts.", registry=registry)
        self.under_way = Gauge(
            "edge_gateway_under_way", "Calls now.", ["upstream"], registry=registry
        )
        self.p95 = Gauge(
            "edge_gateway_upstream_p95_seconds", "To the head of an answer.", ["upstream"],
            registry=registry,
        )  # fmt: skip
        self.errors = Gauge(
            "edge_gateway_upstream_errors", "Share of the last calls.", ["upstream"],
            registry=registry,
        )  # fmt: skip

    def note(self, settled: Settled) -> None:
        """Count a settled hold."""
        self.settled.inc(settled.actual_microusd)
        if settled.flag:
            self.flags.labels(settled.flag).inc()
        if settled.excess_microusd:
            self.excess.inc(settled.excess_microusd)

    def text(self, pool: Pool) -> bytes:
        """Return all values in Prometheus' text format."""
        self.retries.set(pool.retries)
        for each in pool.upstreams:
            self.under_way.labels(each.name).set(each.under_way)
            self.p95.labels(each.name).set(each.health.p95_s)
            self.errors.labels(each.name).set(each.health.errors)
        return generate_latest(self.registry)
