"""Traces: what goes in comes out, reports, and what is refused."""

from __future__ import annotations

import stat
import sys

import pytest

from edge.errors import InputError, StoreError
from edge.store.db import open_migrated
from edge.store.traces import COLUMNS, MIGRATIONS, Traces


@pytest.fixture
def traces(tmp_path):
    with Traces.open(tmp_path / "state") as opened:
        yield opened


def trace(trace_id: str = "t", **changes) -> dict:
    return {"trace_id": trace_id, "at": 1.5, "task": "spam", "route": "local"} | changes


def test_every_column_comes_back(traces):
    full = trace(
        model="tiny",
        device="cpu",
        confidence=0.9,
        cost_microusd=2**40,
        latency_ms=1.25,
        tokens_in=3,
        tokens_out=2,
        reasons=("confident",),
        input_sha256="ab",
        input_chars=9,
        text="née",
        detail={"signals": {"margin": 1.0}},
        policy=7,
    )
    assert set(full) == set(COLUMNS)
    traces.append(full)
    assert traces.get("t") == full | {"reasons": ["confident"]}
    assert traces.get("nobody") is None


def test_a_text_is_kept_only_where_it_is_passed(traces):
    traces.append(trace(input_sha256="ab", input_chars=9))
    kept = traces.get("t")
    assert (kept["text"], kept["cost_microusd"], kept["confidence"]) == (None, 0, None)
    assert (kept["reasons"], kept["detail"]) == ([], {})


def test_the_latest_row_of_an_id_stays(traces):
    traces.append(trace("a"))
    traces.append(trace("b"))
    traces.append(trace("a", route="cloud"))
    assert [(row["trace_id"], row["route"]) for row in traces.latest(9)] == [
        ("a", "cloud"),
        ("b", "local"),
    ]


def test_what_came_after_a_number_comes_oldest_first(traces):
    traces.append_all(
        trace(str(n), policy=n, latency_ms=float(n), cost_microusd=2 * n) for n in range(5)
    )
    first, second = traces.after(0, 2)
    assert first == {
        "seq": 1,
        "trace_id": "0",
        "at": 1.5,
        "task": "spam",
        "route": "local",
        "latency_ms": 0.0,
        "cost_microusd": 0,
        "policy": 0,
    }
    assert [row["policy"] for row in traces.after(second["seq"], 9)] == [2, 3, 4]
    traces.append(trace("4", policy=9))
    assert [row["policy"] for row in traces.after(5, 9)] == [9]
    assert list(traces.after(6, 9)) == []


def test_a_file_of_the_first_schema_gets_the_column(tmp_path):
    old = open_migrated(tmp_path / "traces.db", MIGRATIONS[:1])
    with old.reading() as connection:
        connection.execute(
            "INSERT INTO traces (trace_id, at, task, route, cost_microusd, latency_ms, tokens_in, "
            "tokens_out, input_chars, reasons, detail) "
            "VALUES ('old', 1.0, 'spam', 'local', 0, 1.0, 0, 0, 5, '[]', '{}')"
        )
    old.close()
    with Traces.open(tmp_path) as opened:
        opened.append(trace("new", policy=3))
        assert [row["policy"] for row in opened.latest(9)] == [3, 0]


def test_latest_and_prune(traces):
    traces.append_all(trace(str(number), task="ab"[number % 2]) for number in range(6))
    assert [row["trace_id"] for row in traces.latest(2)] == ["5", "4"]
    assert [row["trace_id"] for row in traces.latest(9, task="a")] == ["4", "2", "0"]
    assert traces.prune(4) == 2
    assert [row["trace_id"] for row in traces.latest(9)] == ["5", "4", "3", "2"]
    with pytest.raises(InputError):
        traces.prune(-1)


def test_a_summary_counts_routes_cost_and_latency(traces):
    traces.append_all(
        trace(str(n), latency_ms=float(n), route="local" if n <= 15 else "cloud", cost_microusd=n)
        for n in range(1, 21)
    )
    traces.append(trace("other", task="other", latency_ms=1e6))
    assert traces.summary("spam") == {
        "count": 20,
        "routes": {"local": 15, "cloud": 5},
        "cost_microusd": 210,
        "p50_ms": 10.0,
        "p95_ms": 19.0,
    }
    assert traces.summary()["count"] == 21
    nothing = {"count": 0, "routes": {}, "cost_microusd": 0, "p50_ms": None, "p95_ms": None}
    assert traces.summary("nobody") == nothing


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task": None}, "task"),
        ({"colour": "red"}, "colour"),
        ({"at": "noon"}, "at"),
        ({"tokens_in": 2**63}, "tokens_in"),
        ({"text": b"bytes"}, "text"),
        ({"detail": {"k": object()}}, "detail"),
    ],
)
def test_what_does_not_fit_is_named(traces, changes, named):
    with pytest.raises(InputError, match=named):
        traces.append(trace(**changes))
    with pytest.raises(InputError, match=named):
        traces.append_all([trace("good"), trace(**changes)])
    assert traces.latest(9) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
def test_files_are_private(tmp_path, traces):
    traces.append(trace())
    folder = tmp_path / "state"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 3


def test_inspect_names_the_journal_and_the_rows(traces):
    traces.append(trace())
    report = traces.inspect()
    assert (report["journal_mode"], report["rows"]) == ("wal", {"migrations": 2, "traces": 1})


def test_a_closed_store_says_so(tmp_path):
    traces = Traces.open(tmp_path)
    traces.close()
    traces.close()
    with pytest.raises(StoreError, match="closed"):
        traces.append(trace())
