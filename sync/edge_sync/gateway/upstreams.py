"""The servers behind the gateway: which of them is asked, and how they fare.

Each call goes to the server with the fewest calls under way for its weight; the weight falls with
the share of errors and with a p95 beyond the best one's. A server that fails several times in a row
is left alone (``edge.cloud.breaker``), one that answers 429 as long as it says. No call is sent
twice at once. A second attempt is for calls that were certainly not processed, and at most 2 % of
all calls, beyond a first few, get one. Knows no money but prices.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from edge.cloud.breaker import Breaker
from edge.errors import CircuitOpen
from edge_sync.gateway.bounds import Price
from edge_sync.gateway.client import Client
from edge_sync.gateway.config import UpstreamSettings, secret

RETRY_SHARE = 0.02
RETRY_RESERVE = 10.0
LONGEST_PAUSE_S = 300.0
_KEPT = 64
_REFRESH = 8
_LEAST_HEALTH = 0.05


@dataclass(slots=True)
class Health:
    """The last outcomes of one server.

    Attributes:
        p95_s: of the time to the head of an answer; 0 before there was one.
        errors: share of calls that failed, 0 to 1.

    """

    p95_s: float = 0.0
    errors: float = 0.0
    _outcomes: deque[float | None] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _since: int = 0

    def note(self, seconds: float | None) -> None:
        """Add an outcome: how long it took, or ``None`` for a failure."""
        self._outcomes.append(seconds)
        self._since += 1
        if seconds is None or self._since >= _REFRESH or len(self._outcomes) < _REFRESH:
            self._since = 0
            times = sorted(each for each in self._outcomes if each is not None)
            self.errors = 1 - len(times) / len(self._outcomes)
            self.p95_s = times[int(0.95 * (len(times) - 1))] if times else self.p95_s


@dataclass(slots=True)
class Upstream:
    """One server.

    Attributes:
        settings: of ``gateway.yaml``.
        client: its connections.
        key_header: the line with its key; empty without one.
        under_way: calls now.
        paused_until: on the pool's clock; it asked for a pause.

    """

    settings: UpstreamSettings
    client: Client
    breaker: Breaker
    key_header: str
    price: Price
    health: Health = field(default_factory=Health)
    under_way: int = 0
    paused_until: float = 0.0

    @property
    def name(self) -> str:
        """Its name."""
        return self.settings.name

    def score(self, best_p95_s: float) -> float:
        """Return how much it has to do for its weight; less is better."""
        slow = best_p95_s / self.health.p95_s if self.health.p95_s > 0 < best_p95_s else 1.0
        worth = max(_LEAST_HEALTH, (1 - self.health.errors) * slow)
        return (self.under_way + 1) / (self.settings.weight * worth)


class Pool:
    """All servers of the pool.

    Args:
        upstreams: at least one.
        clock: monotonic seconds.

    """

    def __init__(
        self, upstreams: Collection[Upstream], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.upstreams = tuple(upstreams)
        self.retries = 0
        self._clock = clock
        self._retry_tokens = RETRY_RESERVE

    @classmethod
    def of(
        cls,
        settings: Collection[UpstreamSettings],
        env: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> Pool:
        """Return the pool of the settings.

        Raises:
            ConfigError: a URL is none, or the key of a server is missing.

        """
        return cls([_upstream(each, env, clock) for each in settings], clock=clock)

    def most_microusd(self, tokens_in: int, tokens_out: int) -> int:
        """Return what so many tokens cost at the dearest server."""
        return max(each.price.cost_microusd(tokens_in, tokens_out) for each in self.upstreams)

    def begin(self, tried: Collection[str] = ()) -> Upstream | None:
        """Choose a server for a call; ``None`` where none can be asked now.

        The call ends with ``succeeded``, ``failed``, ``paused`` or ``left``.

        Args:
            tried: names of those that are left out.

        """
        now = self._clock()
        open_ = [
            each for each in self.upstreams if each.name not in tried and each.paused_until <= now
        ]
        best = min((each.health.p95_s for each in open_ if each.health.p95_s > 0), default=0.0)
        for each in sorted(open_, key=lambda one: one.score(best)):
            try:
                each.breaker.before()
            except CircuitOpen:
                continue
            each.under_way += 1
            return each
        return None

    def first(self) -> Upstream | None:
        """Choose a server for a new call, which adds to what may be tried again."""
        self._retry_tokens = min(RETRY_RESERVE, self._retry_tokens + RETRY_SHARE)
        return self.begin()

    def again(self, tried: Collection[str]) -> Upstream | None:
        """Choose a server for the second attempt of a call that was certainly not processed."""
        if self._retry_tokens < 1:
            return None
        chosen = self.begin(tried)
        if chosen is not None:
            self._retry_tokens -= 1
            self.retries += 1
        return chosen

    def succeeded(self, upstream: Upstream, seconds: float) -> None:
        """Note an answer, and how long its head took."""
        upstream.under_way -= 1
        upstream.breaker.success()
        upstream.health.note(seconds)

    def failed(self, upstream: Upstream) -> None:
        """Note that a server failed."""
        upstream.under_way -= 1
        upstream.breaker.failure()
        upstream.health.note(None)

    def paused(self, upstream: Upstream, seconds: float) -> None:
        """Note that a server asked to be left alone."""
        upstream.under_way -= 1
        upstream.breaker.cancel()
        upstream.paused_until = self._clock() + min(seconds, LONGEST_PAUSE_S)

    def left(self, upstream: Upstream) -> None:
        """Note that a call was broken off for reasons that are not the server's."""
        upstream.under_way -= 1
        upstream.breaker.cancel()

    def wait_s(self) -> int:
        """Return in how many seconds it is worth asking again, at least 1."""
        now = self._clock()
        pauses = [each.paused_until - now for each in self.upstreams]
        return max(1, round(min(max(0.0, each) for each in pauses)))

    def close(self) -> None:
        """End all connections."""
        for each in self.upstreams:
            each.client.close()


def _upstream(
    settings: UpstreamSettings, env: Mapping[str, str], clock: Callable[[], float]
) -> Upstream:
    key = secret(env, settings.api_key_env) if settings.api_key_env else ""
    return Upstream(
        settings,
        Client(settings.base_url),
        Breaker(settings.failures, settings.cooldown_s, clock, name=settings.name),
        f"Authorization: Bearer {key}\r\n" if key else "",
        Price(settings.input_microusd_per_mtok, settings.output_microusd_per_mtok),
    )
