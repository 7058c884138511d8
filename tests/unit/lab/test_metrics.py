"""Metrics against their definitions, scikit-learn and known identities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, roc_auc_score

from edge.errors import InputError
from edge.lab import metrics

answers = st.lists(
    st.tuples(st.integers(0, 20).map(lambda i: i / 20), st.booleans()), min_size=2, max_size=60
).filter(lambda found: len({right for _, right in found}) == 2)


def parts(found):
    return np.array([c for c, _ in found]), np.array([float(r) for _, r in found])


@given(answers)
def test_auroc_and_brier_are_those_of_scikit_learn(found):
    confidence, right = parts(found)
    assert metrics.auroc(confidence, right) == pytest.approx(roc_auc_score(right, confidence))
    assert metrics.brier(confidence, right) == pytest.approx(brier_score_loss(right, confidence))


@given(answers)
def test_augrc_is_an_identity_of_auroc_and_accuracy(found):
    confidence, right = parts(found)
    a = right.mean()
    expected = (1 - metrics.auroc(confidence, right)) * a * (1 - a) + (1 - a) ** 2 / 2
    assert metrics.augrc(confidence, right) == pytest.approx(expected)


@given(answers)
def test_hindsight_keeps_the_most_a_threshold_can(found):
    confidence, right = parts(found)
    for risk in (0.0, 0.1, 0.3):
        shares = [0.0]
        for threshold in confidence:
            kept = confidence >= threshold
            if (1 - right[kept]).sum() <= risk * kept.sum():
                shares.append(kept.mean())
        assert metrics.kept_share(confidence, right, risk=risk) == pytest.approx(max(shares))


def test_a_small_case_by_hand():
    confidence, right = [0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]
    curve = metrics.risk_coverage(confidence, right)
    assert curve.share.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.value.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert metrics.aurc(confidence, right) == pytest.approx(1 / 3)
    assert metrics.e_aurc(confidence, right) == pytest.approx(1 / 3 - (0.5 + 0.5 * np.log(0.5)))
    assert metrics.caught_errors(confidence, right, escalated=0.25) == 0.5
    sent = metrics.deferral_curve(confidence, right, cloud_correct=[1, 1, 1, 1])
    assert sent.value.tolist() == [0.5, 0.75, 0.75, 1.0, 1.0]
    assert sent.at(0.125) == 0.625
    assert metrics.apgr(sent) == pytest.approx((0.25 + 0.5 + 0.75 + 1) / 4)
    assert metrics.cpt(sent, gap=0.5) == 0.25
    assert metrics.cpt(sent, gap=0.8) == 0.75


def test_a_perfect_order_has_no_excess_and_a_random_one_half_the_gap():
    right = np.array([1.0] * 900 + [0.0] * 100)
    assert metrics.e_aurc(right + np.linspace(0, 1e-3, 1000), right) == pytest.approx(0, abs=1e-3)
    level = metrics.deferral_curve(np.zeros(1000), right, cloud_correct=np.ones(1000))
    assert metrics.apgr(level) == pytest.approx(0.5)


def test_the_published_operating_points():
    """Binormal, local 80 %, AUROC 0.85, an independent cloud of 97 %: APGR .83, AUGRC 43.8e-3."""
    random = np.random.default_rng(0)
    right = random.random(40000) < 0.8
    scores = random.standard_normal(40000) + 2**0.5 * norm.ppf(0.85) * right
    cloud = random.random(40000) < 0.97
    curve = metrics.deferral_curve(scores, right, cloud_correct=cloud)
    assert metrics.apgr(curve) == pytest.approx(0.830, abs=0.03)
    assert metrics.augrc(scores, right) == pytest.approx(43.8e-3, abs=2e-3)
    assert [curve.at(r) for r in (0.05, 0.1, 0.3)] == pytest.approx([0.84, 0.87, 0.937], abs=0.01)


def smoothed(confidence, right, width):
    """Return the smoothed error by its definition: images of each answer mirrored at 0 and 1."""
    at = (np.arange(1000) + 0.5) / 1000
    total = np.zeros(1000)
    for period in range(-2, 3):
        for mirrored in (confidence, -confidence):
            total += norm.pdf(at[:, None], 2 * period + mirrored, width) @ (right - confidence)
    return np.abs(total / len(right)).mean()


@pytest.mark.parametrize("sharper", [0.5, 1.0, 3.0])
def test_smooth_ece_is_the_fixed_point_of_its_definition(sharper):
    random = np.random.default_rng(0)
    odds = random.standard_normal(400) * 2 + 1
    right = (random.random(400) < 1 / (1 + np.exp(-odds))).astype(float)
    confidence = 1 / (1 + np.exp(-sharper * odds))
    found = metrics.smooth_ece(confidence, right)
    assert smoothed(confidence, right, found) == pytest.approx(found, rel=0.01)


def test_calibration_errors_of_known_cases():
    confidence = np.full(100, 0.9)
    right = np.array([1.0, 0.0] * 50)
    assert metrics.ece(confidence, right, bins=1) == pytest.approx(0.4)
    assert metrics.smooth_ece([0.5] * 10, [1, 0] * 5) < 0.001
    assert 0.3 < metrics.smooth_ece(confidence, right) <= 0.4


@pytest.mark.parametrize(
    ("confidence", "right", "words"),
    [
        ([], [], "at least one"),
        ([0.5, float("nan")], [1, 0], "finite"),
        ([0.5], [1, 0], "1 answers need 1"),
        ([0.5, 0.6], [1, 2], "0 or 1"),
        ([0.5, 0.6], [1, 1], "both right and wrong"),
    ],
)
def test_what_has_no_auroc_gives_no_number(confidence, right, words):
    with pytest.raises(InputError, match=words):
        metrics.auroc(confidence, right)


def test_what_has_no_meaning_gives_no_number():
    with pytest.raises(InputError, match=r"within 0\.\.1"):
        metrics.ece([1.5], [1])
    with pytest.raises(InputError, match="No answer is wrong"):
        metrics.caught_errors([0.5], [1], escalated=0.1)
    with pytest.raises(InputError, match="no gap"):
        metrics.apgr(metrics.deferral_curve([0.5, 0.6], [1, 1], cloud_correct=[1, 0]))
    curve = metrics.deferral_curve([0.5, 0.6], [1, 0], cloud_correct=[1, 1])
    with pytest.raises(InputError, match="No share"):
        metrics.cpt(curve, gap=1.5)
