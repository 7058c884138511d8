"""What a device did, as counts by policy and hour: its traces and its users' corrections.

Counts only, never a text. Each trace is counted once: what comes after a row's number is new, and
the answer of a task that had waited is a new row. Knows nothing of hubs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge.store.states import States
from edge.store.traces import ERROR, Traces
from edge_sync.agent.memory import Counted
from edge_sync.wire import LATENCY_BUCKETS, Health

MAX_TRACES = 20_000
"""How many traces one report counts at most; the next one takes the rest."""

MAX_HOURS = 500
"""How many pairs of policy and hour one report holds at most."""

_BOUNDS = [2 ** (step / 2) for step in range(LATENCY_BUCKETS - 1)]
_ROUTES = {
    "cache": "cached",
    "local": "local",
    "cloud": "cloud",
    "deferred": "deferred",
    "abstained": "abstained",
    ERROR: "errors",
}
_HOUR_S, _LAST_HOUR = 3_600, 10**8 - 1
_Key = tuple[int, int]


@dataclass
class _Sum:
    counts: Counter[str] = field(default_factory=Counter)
    latency: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)


@dataclass(frozen=True, slots=True)
class Taken:
    """Counts since the last report.

    Attributes:
        after: to go on with.
        more: whether some are left for the next report.

    """

    health: list[Health]
    after: Counted
    more: bool


def take(traces: Traces, states: States, since: Counted) -> Taken:
    """Count what came since the last report.

    Raises:
        StoreError: a file cannot be read.

    """
    if since.traces and not any(traces.after(since.traces - 1, 1)):
        since = Counted(labels=since.labels)  # another file lies there now
    labels = states.corrections_after(since.labels, MAX_TRACES)
    of_trace = policies_of(traces, {row["trace_id"] for row in labels})
    corrections = [(of_trace[row["trace_id"]], row["at"], row["seq"]) for row in labels]
    return count(traces.after(since.traces, MAX_TRACES), corrections, since)


def count(
    rows: Iterable[Mapping[str, Any]], corrections: Iterable[tuple[int, float, int]], since: Counted
) -> Taken:
    """Count traces, and corrections as (policy, seconds since the epoch, row number)."""
    sums: dict[_Key, _Sum] = {}
    traces_seq, labels_seq, more, seen = since.traces, since.labels, False, 0
    for row in rows:
        key = _key(row["policy"], row["at"])
        if key not in sums and len(sums) == MAX_HOURS:
            more = True
            break
        _add(sums.setdefault(key, _Sum()), row)
        traces_seq, seen = row["seq"], seen + 1
    for policy, at, seq in corrections:
        key = _key(policy, at)
        if key not in sums and len(sums) == MAX_HOURS:
            more = True
            break
        sums.setdefault(key, _Sum()).counts["corrections"] += 1
        labels_seq = seq
    health = [_health(key, each) for key, each in sorted(sums.items())]
    return Taken(health, Counted(traces=traces_seq, labels=labels_seq), more or seen == MAX_TRACES)


def policies_of(traces: Traces, trace_ids: Iterable[str]) -> dict[str, int]:
    """Return the policy that each trace was answered under, 0 for none, by trace id.

    Raises:
        StoreError: the file cannot be read.

    """
    found = {trace_id: traces.get(trace_id) for trace_id in trace_ids}
    return {trace_id: trace["policy"] if trace else 0 for trace_id, trace in found.items()}


def bucket(latency_ms: float) -> int:
    """Return the bucket of a latency, see ``wire.LATENCY_BUCKETS``."""
    return bisect_right(_BOUNDS, latency_ms)


def _add(into: _Sum, row: Mapping[str, Any]) -> None:
    into.counts["tasks"] += 1
    into.counts[_ROUTES.get(row["route"], "errors")] += 1
    into.counts["cost_microusd"] += row["cost_microusd"]
    if row["route"] != ERROR:
        into.latency[bucket(row["latency_ms"])] += 1


def _health(key: _Key, each: _Sum) -> Health:
    return Health(revision=key[0], hour=key[1], latency=each.latency, **each.counts)


def _key(policy: int, at: float) -> _Key:
    return policy, min(max(0, int(at // _HOUR_S)), _LAST_HOUR)
