"""Pooling, isotonic knots and Venn-Abers intervals."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from edge.confidence.isotonic import (
    CELLS,
    cell,
    fit_isotonic,
    fit_venn_abers,
    interpolated,
    pooled,
)
from edge.errors import InputError

pairs = st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1, max_size=60)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0.01, 100)), min_size=1, max_size=80))
def test_pooling_is_isotonic_regression(points):
    values, weights = [v for v, _ in points], [w for _, w in points]
    found = pooled(values, weights)
    oracle = IsotonicRegression().fit_transform(range(len(values)), values, sample_weight=weights)
    assert found == pytest.approx(oracle.tolist(), abs=1e-6)
    assert all(a <= b for a, b in itertools.pairwise(found))
    assert pooled(found, weights) == pytest.approx(found)


@pytest.mark.parametrize(
    ("values", "weights"), [([1.0], []), ([float("nan")], [1.0]), ([1.0], [0.0])]
)
def test_what_cannot_be_pooled_is_refused(values, weights):
    with pytest.raises(InputError):
        pooled(values, weights)


@given(pairs)
def test_knots_rise_and_a_look_up_never_falls(points):
    scores = np.array([score for score, _ in points])
    knots = fit_isotonic(scores, np.array([float(right) for _, right in points]))
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(knots))
    levels = [interpolated(knots, score) for score in np.linspace(-10, 10, 50)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(levels))
    assert 0.0 <= levels[0] <= levels[-1] <= 1.0


@given(pairs, st.floats(-20, 20))
def test_an_interval_is_two_isotonic_fits(points, score):
    table = fit_venn_abers([s for s, _ in points], [float(r) for _, r in points])
    low, high = table.interval(score)
    rounded = [cell(s) for s, _ in points] + [cell(score)]
    for answer, found in ((0.0, low), (1.0, high)):
        truth = [float(right) for _, right in points] + [answer]
        assert found == pytest.approx(
            float(IsotonicRegression().fit(rounded, truth).predict([cell(score)])[0]), abs=2e-6
        )
    without = IsotonicRegression(out_of_bounds="clip").fit(rounded[:-1], [r for _, r in points])
    assert low <= high
    assert low - 2e-6 <= float(without.predict([cell(score)])[0]) <= high + 2e-6


def test_intervals_do_not_fall_with_the_score_and_narrow_with_labels():
    random = np.random.default_rng(0)
    widths = []
    for count in (100, 3000):
        scores = random.standard_normal(count) * 2
        right = random.random(count) < 1 / (1 + np.exp(-scores))
        table = fit_venn_abers(scores.tolist(), right.astype(float).tolist())
        assert len(table.low) == len(table.high) == CELLS
        assert list(table.low) == sorted(table.low)
        assert list(table.high) == sorted(table.high)
        widths.append(np.mean([np.diff(table.interval(s))[0] for s in (-1.0, 0.0, 1.0)]))
    assert widths[1] < widths[0] / 3


def test_intervals_hold_the_true_chance_in_the_mean():
    """E[low] <= E[right] <= E[high] over calibration sets and test answers: Vovk et al. 2015."""
    random = np.random.default_rng(1)
    low, high, right = [], [], []
    for _ in range(60):
        scores = random.standard_normal(140) * 2
        truth = random.random(140) < 1 / (1 + np.exp(-2 * scores - 1))  # the scores are not odds
        table = fit_venn_abers(scores[:100].tolist(), truth[:100].astype(float).tolist())
        ends = [table.interval(score) for score in scores[100:]]
        low += [end[0] for end in ends]
        high += [end[1] for end in ends]
        right += truth[100:].tolist()
    slack = 3 * np.std(right) / np.sqrt(len(right))
    assert np.mean(low) - slack <= np.mean(right) <= np.mean(high) + slack
    assert np.mean(high) - np.mean(low) < 0.15
