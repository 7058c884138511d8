"""Calibrating from labelled answers: who fits, who certifies, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from edge.confidence.calibration import Calibration
from edge.confidence.certificate import Certificate, NotCertifiable
from edge.confidence.fusion import Prior, row_digest
from edge.confidence.key import CalibrationKey
from edge.errors import InputError
from edge.lab.calibrating import Answer, calibrate, features_of, points, reliability
from edge.types import Kind

KEY = CalibrationKey("m" * 64, "spam")


def answers(count, *, wrong=0.1, seed=0, apart=2.0):
    """Return answers whose margin is higher where they are right."""
    random = np.random.default_rng(seed)
    right = random.random(count) >= wrong
    margin = random.normal(size=count) + apart * right
    near = random.random(count)
    return [
        Answer(
            f"text {at}",
            {"margin": float(margin[at]), "similarity": float(near[at])},
            right=bool(right[at]),
            cost_microusd=1000,
        )
        for at in range(count)
    ]


def made(rows, **changed):
    wanted = {"features": ["margin"], "risk": 0.1, **changed}
    return calibrate(KEY, rows, **wanted)


def test_no_row_both_fits_and_certifies():
    found = made(answers(600))
    assert isinstance(found.outcome, Certificate)
    assert found.fitted + found.outcome.n == 600
    speaking = {row_digest(each.text) for each in found.answers}
    assert not speaking & set(found.calibration.seen)
    assert len(speaking) == len(found.confidence) == found.outcome.n


def test_the_certificate_and_stricter_ones_are_in_the_calibration():
    found = made(answers(3000))
    alphas = [each.alpha for each in found.calibration.certificates]
    assert alphas[0] == 0.1
    assert set(alphas) <= {0.1, 0.075, 0.05, 0.035, 0.025}
    assert len(alphas) > 1
    assert found.calibration.certificate(0.1) == found.outcome
    thresholds = [each.threshold for each in found.calibration.certificates]
    assert thresholds == sorted(thresholds)


def test_a_refusal_promises_nothing_and_is_calibrated_all_the_same():
    found = made(answers(200, wrong=0.4, apart=0.5), risk=0.01)
    assert isinstance(found.outcome, NotCertifiable)
    assert str(found.outcome).startswith("not with these labels")
    assert found.calibration.certificates == ()
    assert found.calibration.confidence(KEY, {"margin": 1.0}) is not None


def test_the_same_answers_make_the_same_bytes(tmp_path):
    for name in "ab":
        made(answers(300)).calibration.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert Calibration.load(tmp_path / "a") == made(answers(300)).calibration


def test_the_reference_is_what_a_watch_will_see():
    found = made(answers(400))
    reference = found.calibration.reference
    seen = zip(found.answers, found.confidence.tolist(), strict=True)
    pairs = sorted((each.text, each.signals["similarity"], sure) for each, sure in seen)
    pairs.sort(key=lambda pair: row_digest(pair[0]))
    assert reference["similarity"] == tuple(round(near, 4) for _, near, _ in pairs)
    assert reference["confidence"] == tuple(round(sure, 4) for _, _, sure in pairs)


def test_the_reference_does_not_depend_on_the_order_of_the_file():
    rows = answers(4000)
    falling = sorted(rows, key=lambda each: each.signals["similarity"])
    near = made(falling).calibration.reference["similarity"]
    assert near == made(falling[::-1]).calibration.reference["similarity"]
    assert np.mean(near) == pytest.approx(0.5, abs=0.05)


def test_copies_that_differ_in_case_or_white_space_are_one_row():
    rows = answers(400)
    copies = [replace(each, text=f"  {each.text.upper()} ") for each in rows]
    found = made([*rows, *copies])
    assert found.fitted + len(found.answers) == 400
    assert {each.text for each in found.answers} <= {each.text for each in rows}


@pytest.mark.parametrize("risk", [0.0512345678, 1e-5])
def test_the_asked_risk_is_certified_as_it_was_asked(risk):
    found = made(answers(2000, apart=6.0), risk=risk)
    if isinstance(found.outcome, Certificate):
        assert found.calibration.certificate(risk) == found.outcome
        assert found.outcome.alpha == risk
    else:
        assert found.outcome.labels_needed > 100_000


def test_without_similarity_the_watch_sees_the_confidence():
    rows = [replace(each, signals={"margin": each.signals["margin"]}) for each in answers(400)]
    reference = made(rows).calibration.reference
    assert reference["similarity"] == reference["confidence"]


def test_the_reference_is_bounded():
    assert len(made(answers(2400)).calibration.reference["confidence"]) == 1000


def test_an_invalid_answer_is_given_up_and_neither_fits_nor_certifies():
    rows = answers(400)
    rows = [replace(e, valid=False, signals={}) if at % 10 == 0 else e for at, e in enumerate(rows)]
    found = made(rows)
    assert (found.rows, found.valid) == (400, 360)
    assert found.fitted + len(found.confidence) == 360
    assert found.fitted + len(found.answers) < 400
    (all_kept, *_) = points(found, cloud_accuracy=1.0)
    assert all_kept.kept == pytest.approx(len(found.confidence) / len(found.answers))
    assert all_kept.usd_per_1000 == pytest.approx(1.0 * all_kept.escalated)


def test_figures_are_of_the_rows_held_back():
    found = made(answers(2000, apart=6.0))
    assert found.error_auroc > 0.98
    assert found.smooth_ece < 0.05


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [replace(e, right=True) for e in rows], "All 200 valid answers are right"),
        (lambda rows: [replace(e, right=False) for e in rows], "All 200 valid answers are wrong"),
        (
            lambda rows: [replace(rows[0], signals={"margin": float("nan")}), *rows[1:]],
            "signal margin of 1 of 200 answers is missing or not finite",
        ),
        (
            lambda rows: [replace(rows[0], signals={}), *rows[1:]],
            "signal margin of 1 of 200 answers is missing or not finite",
        ),
        (lambda rows: rows[:30], "20 are needed, some right and some wrong"),
    ],
)
def test_answers_that_cannot_be_calibrated_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        made(change(answers(200)))


def test_no_signal_at_all():
    with pytest.raises(InputError, match="no signal that a confidence could be fitted on"):
        made(answers(100), features=[])


def test_a_part_that_is_all_right_cannot_fit():
    rows = answers(60, wrong=0.0)
    fit_rows = {e.text for e in made(answers(400)).answers}
    odd = next(each for each in rows if each.text in fit_rows)
    rows = [replace(each, right=each.text != odd.text) for each in rows]
    with pytest.raises(InputError, match="0 of them wrong"):
        made(rows)


def test_the_prior_is_named():
    prior = Prior("shipped", ("margin",), (0.0,), (1.0,), (2.0,), 0.5)
    assert made(answers(300), prior=prior).calibration.prior == "shipped"


def test_points_go_from_all_kept_to_few_and_count_what_they_cost():
    found = made(answers(1000))
    rows = points(found, cloud_accuracy=0.97)
    assert rows[0].kept == 1.0
    assert rows[0].usd_per_1000 == 0.0
    assert rows[0].accuracy == pytest.approx(found.correct.mean())
    assert [each.kept for each in rows] == sorted((e.kept for e in rows), reverse=True)
    for each in rows:
        kept = found.confidence >= each.threshold
        assert each.wrong == pytest.approx((~found.correct[kept]).mean())
        assert each.usd_per_1000 == pytest.approx(1000 * 1000 / 1e6 * each.escalated)
    (certified,) = [each for each in rows if each.promised == 0.1]
    assert certified.kept == pytest.approx(found.outcome.kept_share)


def test_without_a_pool_there_is_no_price():
    rows = [replace(each, cost_microusd=None) for each in answers(300)]
    assert {each.usd_per_1000 for each in points(made(rows), cloud_accuracy=0.97)} == {None}


def test_reliability_covers_every_answer_held_back():
    found = made(answers(500))
    bins = reliability(found)
    assert sum(each.count for each in bins) == len(found.confidence)
    assert [each.confidence for each in bins] == sorted(each.confidence for each in bins)
    right = sum(each.accuracy * each.count for each in bins)
    assert right == pytest.approx(found.correct.sum())


@pytest.mark.parametrize(
    ("kind", "labels", "signals", "wanted"),
    [
        (Kind.CLASSIFY, False, ("score", "margin", "log_odds"), ["log_odds", "margin"]),
        (Kind.CLASSIFY, True, ("probability", "log_mass"), ["probability", "log_mass"]),
        (Kind.EXTRACT, False, ("missing", "min_margin", "odd"), ["min_margin", "missing"]),
    ],
)
def test_which_signals_are_fused(kind, labels, signals, wanted):
    rows = [dict.fromkeys(signals, 1.0), dict.fromkeys((*signals, "missing"), 1.0)]
    assert features_of(kind, rows, labels=labels) == wanted
