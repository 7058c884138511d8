"""Binomial tails and bounds against scipy and MAPIE."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy.stats import beta, binom

from edge.confidence.binomial import fewest_trials, lower_tail, most_errors, upper_bound
from edge.errors import InputError

trials = st.integers(1, 3000)
risks = st.floats(0.001, 0.999)
levels = st.floats(1e-6, 0.5)


@given(trials, st.floats(0, 1), risks)
def test_the_tail_is_that_of_scipy(n, share, risk):
    errors = int(share * n)
    assert lower_tail(errors, n, risk=risk) == pytest.approx(
        binom.cdf(errors, n, risk), rel=1e-9, abs=1e-300
    )


@given(trials, st.floats(0, 1), levels)
def test_the_bound_is_the_quantile_of_a_beta(n, share, delta):
    errors = min(int(share * n), n - 1)
    expected = beta.ppf(1 - delta, errors + 1, n - errors)
    assert upper_bound(errors, n, delta=delta) == pytest.approx(expected, rel=1e-9)


@given(trials, risks, levels)
def test_the_most_errors_are_the_last_that_refute(n, risk, delta):
    found = most_errors(n, risk=risk, delta=delta)
    assert found == -1 or lower_tail(found, n, risk=risk) <= delta * (1 + 1e-9)
    assert found == n or lower_tail(found + 1, n, risk=risk) > delta * (1 - 1e-9)


@given(st.integers(50, 2000), st.floats(0.01, 0.3), st.floats(0, 1))
def test_it_is_the_p_value_of_learn_then_test_for_outcomes_of_0_and_1(n, alpha, share):
    errors = int(share * alpha * n)
    # The oracle rounds n * rate up, so a rate a rounding error too high counts one error more.
    rate = np.array([max(errors - 1e-6, 0.0) / n])
    oracle = compute_hoeffding_bentkus_p_value(rate, n, alpha, binary=True)
    assert lower_tail(errors, n, risk=alpha) == pytest.approx(float(np.ravel(oracle)[0]), rel=1e-6)


@pytest.mark.parametrize(
    ("risk", "clean", "two"), [(0.01, 299, 628), (0.02, 149, 313), (0.05, 59, 124), (0.1, 29, 61)]
)
def test_published_numbers_of_labels(risk, clean, two):
    assert fewest_trials(0.0, risk=risk, delta=0.05) == clean
    assert most_errors(clean - 1, risk=risk, delta=0.05) == -1
    assert most_errors(two, risk=risk, delta=0.05) == 2
    assert most_errors(two - 1, risk=risk, delta=0.05) == 1


def test_the_edges():
    assert lower_tail(-1, 5, risk=0.5) == 0.0
    assert lower_tail(5, 5, risk=0.5) == 1.0
    assert (lower_tail(2, 5, risk=0.0), lower_tail(2, 5, risk=1.0)) == (1.0, 0.0)
    assert upper_bound(0, 0, delta=0.1) == upper_bound(5, 5, delta=0.1) == 1.0
    assert most_errors(0, risk=0.05, delta=0.1) == -1
    assert fewest_trials(0.05, risk=0.05, delta=0.1) == float("inf")
    for bad in ({"risk": 1.5}, {"risk": float("nan")}):
        with pytest.raises(InputError, match="binomial"):
            lower_tail(1, 5, **bad)
