"""The pool's own count, for Prometheus. Counts are of this process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.process_collector import ProcessCollector

from edge_sync.pool.asked import End


class Metrics:
    """The families and their values."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.answered = Counter("edge_pool_answered", "Whole answers.", registry=registry)
        self.failed = Counter(
            "edge_pool_failed", "Calls without an answer.", ["code"], registry=registry
        )
        self.tokens_in = Counter("edge_pool_tokens_in", "Of whole answers.", registry=registry)
        self.tokens_out = Counter("edge_pool_tokens_out", "Of whole answers.", registry=registry)
        self.again = Counter(
            "edge_pool_asked_again", "Replicas that died with a call.", registry=registry
        )
        self.under_way = Gauge("edge_pool_under_way", "Calls now.", registry=registry)

    def note(self, end: End) -> None:
        """Count an answer."""
        self.answered.inc()
        self.tokens_in.inc(end.tokens_in)
        self.tokens_out.inc(end.tokens_out)

    def text(self) -> bytes:
        """Return all values in Prometheus' text format."""
        return generate_latest(self.registry)
