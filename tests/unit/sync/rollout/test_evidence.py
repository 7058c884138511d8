from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sync.rollout.evidence import Columns, Sums, Work, gather, no_work, online
from edge_sync.rollout.terms import Terms

TERMS = Terms(soak_s=3600.0, grace_s=600.0)
START = 1_000_000.0


def columns(*rows):
    """Rows of wave, last seen (hours after the start), revision, since (likewise), refused."""
    wave, seen, revision, since, refused = zip(*rows, strict=True)
    return Columns(
        np.array(wave),
        START + 3600.0 * np.array(seen, float),
        np.array(revision),
        START + 3600.0 * np.array(since, float),
        np.array(refused, bool),
    )


def evidence(found, *, sums=None, starts=(START,), now=START + 3 * 3600.0, expected=2):
    nothing = no_work(len(found.wave))
    return gather(
        found,
        sums or Sums(nothing, nothing, nothing, nothing),
        TERMS,
        revision=7,
        starts=starts,
        last=False,
        expected=expected,
        paused_s=0.0,
        looked_s=0.0,
        now=now,
    )


@pytest.mark.parametrize(
    ("row", "counts"),
    [
        ((0, 2.9, 7, 0.1, False), {"activated": 1, "healthy": 1, "lost": 0, "silent": 0}),
        ((0, 2.9, 7, 2.5, False), {"activated": 1, "healthy": 0, "lost": 0, "silent": 0}),
        ((0, 0.2, 7, 0.1, False), {"activated": 1, "healthy": 0, "lost": 1, "silent": 1}),
        ((0, -0.1, 6, -9, False), {"activated": 0, "reached": 1, "lost": 1, "silent": 1}),
        ((0, -5.0, 6, -9, False), {"activated": 0, "reached": 0, "lost": 0, "silent": 0}),
        ((0, -inf, 0, -inf, False), {"living": 0, "reached": 0, "lost": 0}),
        ((0, 2.9, 6, -9, True), {"activated": 0, "refused": 1, "lost": 1, "silent": 0}),
        ((1, 2.9, 6, -9, False), {"devices": 0, "control_reached": 1, "control_silent": 0}),
        ((1, 0.2, 6, -9, False), {"devices": 0, "control_reached": 1, "control_silent": 1}),
    ],
)
def test_a_device_is_counted(row, counts):
    other = (1, 2.9, 6, -9, False) if row[0] == 0 else (0, 2.9, 7, 0.1, False)
    found = evidence(columns(row, other))
    base = evidence(columns(other))
    for name, count in counts.items():
        assert getattr(found, name) - (getattr(base, name) if row[0] else 0) == count, name


def test_a_device_that_was_offline_before_it_could_fetch_is_no_evidence():
    gone = [(0, -2.0, 6, -9, False)] * 20
    found = evidence(columns(*gone, (1, 2.9, 6, -9, False)), expected=0)
    assert (found.reached, found.silent, found.lost) == (0, 0, 0)


def test_in_the_last_wave_earlier_waves_are_the_control():
    rows = [(0, 5.9, 7, 0.1, False)] * 3 + [(1, 3.5, 7, 3.2, False)] * 4
    found = evidence(columns(*rows), starts=(START, START + 3 * 3600.0), now=START + 6 * 3600.0)
    assert (found.reached, found.silent) == (4, 4)
    assert (found.control_reached, found.control_silent) == (3, 0)


def test_the_same_devices_are_compared_over_as_many_tasks():
    old, new = no_work(2), no_work(2)
    old.table[:, 0] = 10_000, 10_000
    old.table[:, 1] = 100, 1_000
    new.table[:, 0] = 100, 900
    usual = old.like(new)
    assert usual.share("errors") == pytest.approx(0.091, abs=0.002)
    assert old.like(no_work(2)).tasks == 0.0
    assert no_work(2).like(new).tasks == 0.0


def test_a_device_with_little_past_says_little():
    old, new = no_work(2), no_work(2)
    old.table[:, 0] = 2, 1_000
    new.table[:, 0] = 500, 500
    new.table[:, 1] = 400, 5
    assert new.known(old).total().tasks == pytest.approx(502)
    assert new.known(no_work(2)).total().tasks == 1_000


def test_p95_is_the_upper_edge_of_its_bucket():
    work = no_work(1)
    work.table[0, 4 + 10] = 96
    work.table[0, 4 + 20] = 4
    assert work.total().p95_ms == pytest.approx(32.0)
    assert no_work(1).total().p95_ms == 0.0


def test_online_is_seen_within_the_grace():
    found = columns((0, -0.1, 6, -9, False), (0, -1, 6, -9, False), (1, 0, 6, -9, False))
    assert online(found, TERMS, wave=0, now=START) == 1
    assert online(found, TERMS, wave=1, now=START) == 2


ROW = st.tuples(
    st.integers(0, 2), st.floats(-10, 3), st.sampled_from([6, 7]), st.floats(-10, 3), st.booleans()
)


@given(st.lists(ROW, min_size=1, max_size=12), st.randoms())
def test_the_order_of_reports_does_not_matter(rows, random):
    table = np.arange(len(rows) * 36, dtype=float).reshape(len(rows), 36)
    order = list(range(len(rows)))
    random.shuffle(order)

    def found(at):
        work = Work(table[at])
        return evidence(columns(*(rows[n] for n in at)), sums=Sums(work, work, work, work))

    one, other = found(list(range(len(rows)))), found(order)
    for name in ("devices", "activated", "healthy", "lost", "reached", "silent", "failed"):
        assert getattr(one, name) == getattr(other, name)
    assert one.new.tasks == pytest.approx(other.new.tasks)
    assert one.usual.latency == pytest.approx(other.usual.latency)


@given(st.lists(ROW, min_size=1, max_size=12))
def test_counts_fit_into_each_other(rows):
    found = evidence(columns(*rows))
    assert found.silent <= found.reached <= len(rows)
    assert found.healthy + found.lost <= found.devices
    assert found.healthy <= found.activated
    assert found.control_silent <= found.control_reached
