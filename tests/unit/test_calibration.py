"""Calibrated confidence: right numbers, one key only, never invented."""

import numpy as np
import pytest

from edge.confidence.calibration import (
    Calibration,
    CalibrationKey,
    expected_calibration_error,
    fit_calibration,
)
from edge.confidence.signals import generation_signals
from edge.errors import ConfigError, InputError
from edge.types import TokenStats

KEY = CalibrationKey("d" * 64, "action", "p" * 64)


def answers(count, seed=0):
    random = np.random.default_rng(seed)
    x, noise = random.standard_normal((2, count))
    truth = random.random(count) < 1 / (1 + np.exp(-(1.5 * x + 0.5)))
    signals = [{"a": float(v), "b": float(n)} for v, n in zip(x, noise, strict=True)]
    return signals, [bool(t) for t in truth], x


def test_it_recovers_the_odds_it_was_drawn_from():
    signals, correct, _ = answers(4000)
    made = fit_calibration(KEY, signals, correct=correct, features=("a", "b"))
    fresh, _, x = answers(500, seed=1)
    found = np.array([made.confidence(KEY, entry) for entry in fresh])
    assert np.abs(found - 1 / (1 + np.exp(-(1.5 * x + 0.5)))).max() < 0.08
    assert made.ece < 0.03


def test_another_key_or_a_missing_signal_gives_no_number():
    signals, correct, _ = answers(100)
    made = fit_calibration(KEY, signals, correct=correct, features=("a",))
    assert 0 < made.confidence(KEY, {"a": 0.0}) < 1
    for other in (
        CalibrationKey("e" * 64, "action", "p" * 64),
        CalibrationKey("d" * 64, "other", "p" * 64),
        CalibrationKey("d" * 64, "action", "q" * 64),
    ):
        assert made.confidence(other, {"a": 0.0}) is None
    assert made.confidence(KEY, {"b": 0.0}) is None
    assert made.confidence(KEY, {"a": float("nan")}) is None


def test_it_survives_the_disk_and_names_a_damaged_file(tmp_path):
    signals, correct, _ = answers(100)
    made = fit_calibration(KEY, signals, correct=correct, features=("a", "b"))
    made.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == made
    for text in ("{", "[]", '{"key": {}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.json"):
            Calibration.load(tmp_path / "bad.json")


@pytest.mark.parametrize("correct", [[True] * 30, [False] * 30, [True, False]])
def test_too_few_or_one_sided_labels_are_refused(correct):
    signals = [{"a": float(i)} for i in range(len(correct))]
    with pytest.raises(InputError, match="20"):
        fit_calibration(KEY, signals, correct=correct, features=("a",))


def test_separable_answers_do_not_run_away():
    signals = [{"a": float(i)} for i in range(40)]
    made = fit_calibration(KEY, signals, correct=[i >= 20 for i in range(40)], features=("a",))
    assert 0.9 < made.confidence(KEY, {"a": 39.0}) < 1


def test_calibration_error_of_a_known_case():
    confidence = np.array([0.9] * 10)
    assert expected_calibration_error(confidence, np.array([1.0] * 5 + [0.0] * 5)) == (
        pytest.approx(0.5, abs=0.11)
    )


def test_signals_of_a_generation():
    stats = [TokenStats(1, -0.1, 0.2, 3.0), TokenStats(2, -0.5, 0.9, 1.0)]
    found = generation_signals(stats, missing_fields=1)
    assert found["mean_logprob"] == pytest.approx(-0.3)
    assert (found["min_logprob"], found["max_entropy"], found["min_margin"]) == (-0.5, 0.9, 1.0)
    assert (found["tokens"], found["missing"]) == (2, 1)
    assert generation_signals([])["tokens"] == 0
