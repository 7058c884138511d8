from math import comb, exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sync.rollout.mixture import log_capital, more_by_chance


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("limit", [0.03, 0.2, 0.7])
def test_the_capital_is_the_average_likelihood_ratio(above, limit):
    grid = np.linspace(limit, 1.0, 200_001) if above else np.linspace(0.0, limit, 200_001)
    for hits, trials in ((0, 0), (0, 7), (3, 11), (12, 12), (40, 90)):
        ratio = (grid / limit) ** hits * ((1 - grid) / (1 - limit)) ** (trials - hits)
        found = exp(log_capital(hits, trials, limit=limit, above=above))
        assert found == pytest.approx(float(np.mean(ratio)), rel=1e-3, abs=1e-9)


def test_the_capital_is_fair_at_the_limit():
    """At the limit its mean is 1 after any number of tasks: it is a martingale."""
    for limit in (0.05, 0.3):
        for above in (True, False):
            mean = sum(
                comb(30, k) * limit**k * (1 - limit) ** (30 - k)
                * exp(log_capital(k, 30, limit=limit, above=above))
                for k in range(31)
            )  # fmt: skip
            assert mean == pytest.approx(1.0, rel=1e-6)


def test_looking_all_the_time_seldom_finds_what_is_not_there():
    random = np.random.default_rng(5)
    found = 0
    for _ in range(200):
        hits = np.cumsum(random.random(400) < 0.05)
        capital = [log_capital(hits[n - 1], n, limit=0.05, above=True) for n in range(1, 401, 4)]
        found += max(capital) >= log(20)
    assert found <= 20


def test_a_clear_difference_is_found():
    assert log_capital(100, 1000, limit=0.04, above=True, clump=2) > log(2000)
    assert log_capital(10, 1000, limit=0.04, above=False, clump=2) > log(50)
    assert log_capital(100, 1000, limit=0.04, above=False) < 0


def test_tasks_in_clumps_say_less():
    whole = log_capital(50, 500, limit=0.04, above=True)
    assert 0 < log_capital(50, 500, limit=0.04, above=True, clump=5) < whole


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_fishers_test_is_the_hypergeometric_tail(a, b, c, d):
    these, of = a + b, c + d
    hits = a + c
    whole = comb(these + of, these)
    exact = sum(
        comb(hits, k) * comb(these + of - hits, these - k) for k in range(a, min(hits, these) + 1)
    )
    found = more_by_chance(a, these, others=c, of=of)
    assert found == pytest.approx(exact / whole, rel=1e-6, abs=1e-12)
