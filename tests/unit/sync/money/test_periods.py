import datetime as dt
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import InputError
from edge_sync.money.periods import KINDS, bounds, kind_of, left_of, period_of, within

NOON = dt.datetime(2026, 11, 24, 12, 30, tzinfo=dt.UTC).timestamp()
MOMENTS = st.floats(-6.2e10, 2.5e11).map(lambda at: round(at, 6))


@pytest.mark.parametrize(
    ("kind", "period", "hours"),
    [
        ("hour", "hour:2026-11-24T12", 1),
        ("day", "day:2026-11-24", 24),
        ("month", "month:2026-11", 720),
    ],
)
def test_a_period_has_a_key_and_ends(kind, period, hours):
    assert period_of(kind, NOON) == period
    first, end = bounds(period)
    assert first <= NOON < end
    assert end - first == hours * 3600


def test_all_time_has_no_end():
    assert period_of("total", NOON) == "total"
    assert bounds("total") == (-math.inf, math.inf)
    assert left_of("total", NOON) == 1.0


@given(kind=st.sampled_from(KINDS), now=MOMENTS)
def test_each_moment_lies_in_its_period(kind, now):
    period = period_of(kind, now)
    first, end = bounds(period)
    assert first <= now < end
    assert kind_of(period) == kind
    assert 0.0 <= left_of(period, now) <= 1.0


@given(now=MOMENTS, short=st.sampled_from(KINDS), long=st.sampled_from(KINDS))
def test_kinds_nest(now, short, long):
    shorter = KINDS.index(long) < KINDS.index(short)
    assert within(period_of(short, now), long) == (None if shorter else period_of(long, now))


@pytest.mark.parametrize(
    "period",
    ["", "week:2026-11", "month:2026-13", "month:2026-11-24", "day:2026-02-30", "hour:2026-11-24"],
)
def test_what_is_no_period_is_refused(period):
    with pytest.raises(InputError, match="is no period"):
        bounds(period)


@pytest.mark.parametrize("now", [math.nan, math.inf, 1e18])
def test_a_moment_without_a_date_is_refused(now):
    with pytest.raises(InputError, match="has no date"):
        period_of("day", now)
