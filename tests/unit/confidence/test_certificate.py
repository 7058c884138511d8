"""Promises hold as often as they say, keep most of what could be kept, and say no plainly."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.risk_control.fwer_control import control_fwer
from scipy.stats import binom, norm

from edge.confidence.certificate import Certificate, NotCertifiable, certify_scores
from edge.confidence.key import CalibrationKey
from edge.confidence.sequence import from_table, from_top, risk_table
from edge.errors import InputError

KEY = CalibrationKey("d" * 64, "action", "p" * 64)
DELTA = 0.1


class World:
    """Scores of wrong answers ~ N(0, 1), of right ones ~ N(d, 1), mapped onto 0..1."""

    def __init__(self, accuracy, auroc):
        self.accuracy, self.gap = accuracy, 2**0.5 * NormalDist().inv_cdf(auroc)

    def kept(self, threshold):
        at = norm.ppf(threshold)
        return self.accuracy * norm.sf(at - self.gap) + (1 - self.accuracy) * norm.sf(at)

    def risk(self, threshold):
        return (1 - self.accuracy) * norm.sf(norm.ppf(threshold)) / self.kept(threshold)

    def best(self, alpha):
        grid = norm.cdf(np.linspace(-6, 6, 4001))
        within = self.risk(grid) <= alpha
        return float(self.kept(grid[within][0]))

    def draw(self, random, count):
        right = random.random(count) < self.accuracy
        return norm.cdf(random.standard_normal(count) + self.gap * right), right


def table_of(world, count=5000):
    return risk_table(*world.draw(np.random.default_rng(99), count))


def resampled(world, *, n, alpha, table, runs, contract="kept_risk", seed=0):
    """Return (share of runs whose promise is false, mean kept share / best in hindsight)."""
    random = np.random.default_rng(seed)
    broken, kept = 0, 0.0
    for _ in range(runs):
        scores, right = world.draw(random, n)
        found = certify_scores(
            scores, right, key=KEY, alpha=alpha, delta=DELTA, contract=contract, table=table
        )
        if isinstance(found, Certificate):
            broken += world.risk(found.threshold) > alpha
            kept += world.kept(found.threshold)
    return broken / runs, kept / runs / world.best(alpha)


USUAL, USUAL_PACK = World(0.85, 0.85), World(0.84, 0.83)
SURE, SURE_PACK = World(0.96, 0.94), World(0.955, 0.93)


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1])
@pytest.mark.parametrize(
    ("world", "pack"),
    [(USUAL, USUAL_PACK), (SURE, SURE_PACK), (USUAL, World(0.92, 0.92)), (USUAL, None)],
)
def test_promises_break_no_more_often_than_said(world, pack, alpha):
    table = None if pack is None else table_of(pack)
    runs = 1000 if pack in {USUAL_PACK, SURE_PACK} else 200
    broken, _ = resampled(world, n=500, alpha=alpha, table=table, runs=runs)
    noise = binom.ppf(0.999, runs, DELTA) / runs
    assert broken <= noise


@pytest.mark.parametrize(
    ("world", "pack", "alpha", "n", "least"),
    [
        (USUAL, USUAL_PACK, 0.05, 500, 0.45),
        (USUAL, USUAL_PACK, 0.05, 1000, 0.78),
        (USUAL, USUAL_PACK, 0.1, 500, 0.85),
        (USUAL, USUAL_PACK, 0.1, 1000, 0.9),
        (SURE, SURE_PACK, 0.02, 500, 0.7),
        (SURE, SURE_PACK, 0.02, 1000, 0.85),
        (SURE, SURE_PACK, 0.05, 200, 0.85),
    ],
)
def test_most_of_what_hindsight_keeps_is_kept(world, pack, alpha, n, least):
    _, share = resampled(world, n=n, alpha=alpha, table=table_of(pack), runs=500)
    assert share >= least


def test_undetected_failures_hold_in_the_mean():
    random = np.random.default_rng(3)
    for alpha in (0.02, 0.05):
        losses = []
        for _ in range(1000):
            scores, right = USUAL.draw(random, 200)
            found = certify_scores(
                scores, right, key=KEY, alpha=alpha, contract="undetected_failures"
            )
            losses.append(USUAL.kept(found.threshold) * USUAL.risk(found.threshold))
            assert found.delta is None
        assert np.mean(losses) <= alpha + 3 * np.std(losses) / 1000**0.5
        assert np.mean(losses) >= alpha - 2 / 201


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.05, 0.1, 0.2]))
def test_the_threshold_is_that_of_fixed_sequence_testing(seed, alpha):
    scores, right = USUAL.draw(np.random.default_rng(seed), 300)
    table = table_of(USUAL_PACK, 500)
    order = from_table(table, 300, alpha=alpha, delta=DELTA)
    p_values = []
    for threshold in order:
        kept = scores >= threshold
        p_values.append(binom.cdf((kept & ~right).sum(), kept.sum(), alpha) if kept.any() else 1.0)
    passed = control_fwer(np.array(p_values), DELTA, fwer_method="fixed_sequence")
    found = certify_scores(scores, right, key=KEY, alpha=alpha, delta=DELTA, table=table)
    assert isinstance(found, Certificate) == bool(len(passed))
    if isinstance(found, Certificate):
        assert found.threshold == order[len(passed) - 1]
        kept = scores >= found.threshold
        assert (found.kept, found.errors) == (kept.sum(), (kept & ~right).sum())
        assert found.kept_share == found.kept / found.n


def test_a_certificate_without_an_error_is_not_missed():
    """29 kept answers without an error certify 10 % at delta 5 %; 28 do not."""
    table = risk_table([i / 100 for i in range(100)], [True] * 100)
    for count, promised in ((29, True), (28, False)):
        found = certify_scores(
            [0.5] * count, [True] * count, key=KEY, alpha=0.1, delta=0.05, table=table
        )
        assert isinstance(found, Certificate) == promised
    assert found.labels_needed == 1


def test_all_is_kept_where_all_may_be():
    scores, right = World(0.995, 0.9).draw(np.random.default_rng(0), 600)
    for table in (None, table_of(World(0.99, 0.9))):
        found = certify_scores(scores, right, key=KEY, alpha=0.05, table=table)
        assert found.kept_share == 1.0
        assert found.threshold <= 0.0


def test_no_says_what_would_help():
    scores, right = USUAL.draw(np.random.default_rng(5), 150)
    found = certify_scores(scores, right, key=KEY, alpha=0.02, table=table_of(USUAL_PACK))
    assert isinstance(found, NotCertifiable)
    assert found.labels_needed > 0
    assert 0.02 < found.alpha_possible < 0.2
    wrong = 1 - right.mean()
    assert found.escalation_share == pytest.approx((wrong - 0.02) / 0.98)
    text = str(found)
    assert text.startswith(f"not with these labels: {found.labels_needed} more are needed, or acc")
    assert f"accept {100 * found.alpha_possible:.3g} %" in text
    again = certify_scores(
        scores, right, key=KEY, alpha=found.alpha_possible, table=table_of(USUAL_PACK)
    )
    assert isinstance(again, Certificate)


def test_the_labels_needed_are_about_enough():
    random = np.random.default_rng(6)
    scores, right = USUAL.draw(random, 150)
    table = table_of(USUAL_PACK)
    needed = certify_scores(scores, right, key=KEY, alpha=0.05, table=table)
    assert isinstance(needed, NotCertifiable)
    whole = 3 * (150 + needed.labels_needed)
    passed = [
        isinstance(
            certify_scores(*USUAL.draw(random, whole), key=KEY, alpha=0.05, table=table),
            Certificate,
        )
        for _ in range(50)
    ]
    assert np.mean(passed) > 0.5


def test_few_labels_and_only_wrong_answers_promise_nothing():
    few = certify_scores([0.9] * 5, [True] * 5, key=KEY, alpha=0.05)
    assert isinstance(few, NotCertifiable)
    assert "5 labels are too few" in str(few)
    assert few.labels_needed == 45 - 5
    for contract in ("kept_risk", "undetected_failures"):
        wrong = certify_scores([0.5] * 200, [False] * 200, key=KEY, alpha=0.05, contract=contract)
        assert isinstance(wrong, NotCertifiable)
        assert wrong.labels_needed is None
    hopeless = certify_scores([0.5] * 30, [True] * 30, key=KEY, alpha=0.01)
    assert "more are needed" in str(hopeless)


@pytest.mark.parametrize(
    ("scores", "right", "options", "words"),
    [
        ([0.5, float("nan")] * 20, [True] * 40, {}, "finite"),
        ([-0.5] * 40, [True] * 40, {}, "at least 0"),
        ([0.5] * 40, [True] * 39, {}, "39 labels"),
        ([0.5] * 40, [True] * 40, {"alpha": 0.0}, "alpha 0.0"),
        ([0.5] * 40, [True] * 40, {"delta": 1.0}, "delta 1.0"),
        ([0.5] * 40, [True] * 40, {"contract": "all"}, "no contract"),
    ],
)
def test_bad_input_is_named(scores, right, options, words):
    with pytest.raises(InputError, match=words):
        certify_scores(scores, right, key=KEY, **{"alpha": 0.05, **options})


def test_the_digest_is_of_the_labels():
    scores, right = [0.9] * 100, [True] * 100
    one, same, other = (
        certify_scores(s, r, key=KEY, alpha=0.1)
        for s, r in ((scores, right), (scores, right), (scores, [*right[:-1], False]))
    )
    assert one == same
    assert other.labels_digest != one.labels_digest


def test_orders_fall_and_end_by_keeping_everything():
    for table in (table_of(USUAL_PACK), table_of(SURE_PACK), risk_table([0.5], [False])):
        for n in (20, 300, 5000):
            order = from_table(table, n, alpha=0.05, delta=DELTA)
            assert list(order) == sorted(set(order), reverse=True)
            assert order[-1] <= 0.0
    scores = np.linspace(0.1, 0.9, 50)
    order = from_top(scores, 1000, alpha=0.05, delta=DELTA)
    assert list(order) == sorted(set(order), reverse=True)
    assert order[-1] <= 0.0
    assert from_top(scores, 10, alpha=0.01, delta=DELTA) == (0.0,)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=300))
def test_a_table_of_risks_never_falls(answers):
    table = risk_table([c for c, _ in answers], [r for _, r in answers])
    assert list(table.risk) == sorted(table.risk)
    assert list(table.kept) == sorted(table.kept)
    assert list(table.threshold) == sorted(table.threshold, reverse=True)
    assert table.kept[-1] == 1.0
    assert table.risk[-1] == pytest.approx(np.mean([not r for _, r in answers]))


def test_a_table_needs_answers():
    with pytest.raises(InputError, match="needs answers"):
        risk_table([], [])
