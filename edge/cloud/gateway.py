"""A pool behind a gateway of the fleet: what a call carries there, and what the gateway says.

The gateway counts the money of its pool under leases that a hub signed. Guarantees: a cost that it
tells is taken only where it is an amount; a refusal counts as certainly unbilled only where the
gateway itself says so, never where something in front of it answered. Knows no key: who signs calls
comes from the fleet's side, by entry point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge import extensions
from edge.cloud.chat import read_json
from edge.errors import (
    AnswerLost,
    CloudError,
    CloudRejected,
    CloudServerError,
    CloudTimeout,
    LeaseRefused,
    RateLimited,
)

COST_HEADER, DEADLINE_HEADER = "edge-cost-microusd", "Edge-Deadline"

ENDED = frozenset({"expired_lease", "fenced", "sealed"})
"""Refusals that a lease gets for ever: a call with a new key is never billed after one."""

_MOST_MICROUSD = 10**15
_LEASE = ENDED | {"bad_lease", "foreign_lease", "exhausted", "revoked"}
_REQUEST = frozenset({"bad_request", "bad_signature", "unbounded", "too_large", "not_found"})
_LATER = frozenset({"too_many", "unavailable", "too_slow"})
_OPEN = frozenset({"answered", "in_progress", "unclear", "conflict", "upstream_failed"})
_ANSWER_MARGIN = 0.1
_LONGEST_MARGIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Right:
    """The lease that pays for a call: its id, and its text as the hub signed it."""

    lease_id: str
    text: str


class Signer(Protocol):
    """Signs calls with the device's key."""

    def check(self) -> None:
        """Make sure that there is a key.

        Raises:
            ConfigError: there is none; the device has not joined a fleet.

        """

    def headers(self, body: bytes, *, lease_id: str, lease: str, key: str) -> Mapping[str, str]:
        """Return what a call carries beside its body.

        Args:
            body: as it is sent.
            lease_id: of the lease that pays.
            lease: its text.
            key: the idempotency key.

        """


def signer(state: Path) -> Signer:
    """Return what signs calls for the device of a state folder.

    Raises:
        ConfigError: the fleet's side is not installed.

    """
    made: Signer = extensions.load(extensions.SIGNERS, "hub")(state)
    return made


def within(left_s: float) -> str:
    """Return the deadline to tell, in seconds: a little short, so that a refusal still arrives."""
    margin_s = min(_ANSWER_MARGIN * left_s, _LONGEST_MARGIN_S)
    return f"{max(0.0, left_s - margin_s):.3f}"


def told_cost(headers: Mapping[str, str]) -> int | None:
    """Return what a call cost as the gateway says, in micro-dollars; ``None`` where it does not."""
    text = headers.get(COST_HEADER, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(_MOST_MICROUSD))):
        return None
    return min(int(text), _MOST_MICROUSD)


def refusal(pool: str, headers: Mapping[str, str], body: bytes) -> CloudError | None:
    """Return what a refusal of the gateway means; ``None`` where it is not the gateway's own.

    Args:
        pool: the pool's name.
        headers: looked up in lower case.
        body: as far as it could be read.

    """
    answer = read_json(body)
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict) or error.get("type") != "edge_gateway":
        return None
    code = error.get("code")
    if code in _LEASE:
        return LeaseRefused(f"The gateway of pool {pool} refused the lease ({code}).", code=code)
    if code in _REQUEST:
        return CloudRejected(f"The gateway of pool {pool} refused the request ({code}).")
    if code in _LATER:
        return RateLimited(f"The gateway of pool {pool} cannot take the call now ({code}).")
    return _unsettled(pool, str(code), told_cost(headers))


def _unsettled(pool: str, code: str, cost: int | None) -> CloudError:
    """Return the error of a request that may have been billed, or was."""
    if code == "answered" and cost is not None:
        return AnswerLost(
            f"Pool {pool} answered this request before; the answer is not kept any more.",
            cost_microusd=cost,
        )
    if code == "upstream_late":
        return CloudTimeout(f"Pool {pool} did not answer its gateway before the deadline.")
    known = code if code in _OPEN else "?"
    return CloudServerError(f"The gateway of pool {pool} has no answer to give ({known}).")
