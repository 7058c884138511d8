"""Calibrated confidence: right numbers, one key only, never invented."""

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from edge.confidence.calibration import Calibration
from edge.confidence.certificate import Certificate, NotCertifiable
from edge.confidence.fusion import Prior, fit_calibration, row_name
from edge.confidence.key import CalibrationKey
from edge.confidence.promise import Labelled, certify, held_back, labelled, with_certificate
from edge.confidence.signals import generation_signals
from edge.errors import ConfigError, InputError
from edge.types import TokenStats

KEY = CalibrationKey("d" * 64, "action", "p" * 64)
OTHERS = (
    CalibrationKey("e" * 64, "action", "p" * 64),
    CalibrationKey("d" * 64, "other", "p" * 64),
    CalibrationKey("d" * 64, "action", "q" * 64),
)
SHIPPED = Path(__file__).parents[3] / "models" / "actions-q8_0" / "calibration-action.json"


def answers(count, seed=0, slope=1.5):
    random = np.random.default_rng(seed)
    x, noise = random.standard_normal((2, count))
    truth = random.random(count) < 1 / (1 + np.exp(-(slope * x + 0.5)))
    signals = [{"a": float(v), "b": float(n)} for v, n in zip(x, noise, strict=True)]
    return signals, [bool(t) for t in truth], x


def rows(count, seed=0):
    signals, correct, _ = answers(count, seed, slope=3.0)
    return [
        Labelled(f"{seed}-{i}", s, c) for i, (s, c) in enumerate(zip(signals, correct, strict=True))
    ]


def fitted_on(found, **options):
    return fit_calibration(
        KEY,
        [each.signals for each in found],
        correct=[each.correct for each in found],
        features=("a", "b"),
        rows=[each.row for each in found],
        **options,
    )


@pytest.mark.parametrize(("count", "stage"), [(900, "platt"), (4000, "isotonic")])
def test_it_recovers_the_odds_it_was_drawn_from(count, stage):
    signals, correct, _ = answers(count)
    made = fit_calibration(KEY, signals, correct=correct, features=("a", "b"))
    fresh, _, x = answers(500, seed=1)
    found = np.array([made.confidence(KEY, entry) for entry in fresh])
    assert np.abs(found - 1 / (1 + np.exp(-(1.5 * x + 0.5)))).mean() < 0.04
    assert made.ece < 0.04
    assert made.last.stage == stage


def test_a_judgement_holds_its_value():
    for count in (60, 1500):
        signals, correct, _ = answers(count)
        made = fit_calibration(KEY, signals, correct=correct, features=("a", "b"))
        for entry in answers(200, seed=2)[0]:
            judged = made.judge(KEY, entry)
            assert 0 <= judged.low <= judged.value <= judged.high <= 1
            assert judged.value == made.confidence(KEY, entry)


def test_confidence_rises_strictly_with_the_log_odds_after_every_stage():
    for count in (100, 1500):
        signals, correct, _ = answers(count)
        made = fit_calibration(KEY, signals, correct=correct, features=("a",))
        found = [made.confidence(KEY, {"a": float(x)}) for x in np.linspace(-3, 3, 200)]
        assert all(low < high for low, high in itertools.pairwise(found))


def test_another_key_or_a_missing_signal_gives_no_number():
    signals, correct, _ = answers(100)
    made = fit_calibration(KEY, signals, correct=correct, features=("a",))
    assert 0 < made.confidence(KEY, {"a": 0.0}) < 1
    for other in OTHERS:
        assert made.confidence(other, {"a": 0.0}) is None
        assert made.judge(other, {"a": 0.0}) is None
    for bad in ({"b": 0.0}, {"a": float("nan")}, {"a": float("inf")}):
        assert made.confidence(KEY, bad) is None
        assert made.judge(KEY, bad) is None


def test_few_labels_stay_near_the_prior_and_many_leave_it():
    prior = Prior("pack", ("a", "b"), (0.0, 0.0), (1.0, 1.0), (1.5, 0.0), 0.5)
    distance = {}
    for count in (30, 5000):
        signals, correct, _ = answers(count, seed=3, slope=0.5)
        for name, used in (("with", prior), ("without", None)):
            made = fit_calibration(KEY, signals, correct=correct, features=("a", "b"), prior=used)
            distance[count, name] = abs(made.weights[0] / made.scale[0] - 1.5)
        assert made.prior_labels == 0.0
    assert distance[30, "with"] < 0.35 < distance[30, "without"]
    assert distance[5000, "with"] > 0.85
    signals, correct, _ = answers(30, seed=3, slope=0.5)
    strong = replace(prior, labels=1e6)
    stronger = fit_calibration(KEY, signals, correct=correct, features=("a", "b"), prior=strong)
    assert stronger.weights == pytest.approx(prior.weights, abs=1e-3)
    assert (stronger.prior, stronger.prior_labels) == ("pack", 1e6)


def test_a_prior_is_taken_from_a_calibration_and_names_other_signals():
    made = fitted_on(rows(400))
    prior = Prior.of(made, name="shipped")
    assert prior.weights == pytest.approx([made.last.slope * w for w in made.weights])
    signals, correct, _ = answers(60)
    with pytest.raises(InputError, match="prior shipped is over a, b, not over b"):
        fit_calibration(KEY, signals, correct=correct, features=("b",), prior=prior)


def test_it_survives_the_disk_to_the_bit_and_names_a_damaged_file(tmp_path):
    for count in (100, 1200):
        fit, certifying = held_back(rows(2 * count))
        made = fitted_on(fit)
        promise = certify(made, certifying, key=KEY, alpha=0.3)
        made = with_certificate(made, promise)
        made.save(tmp_path / "c.json")
        again = Calibration.load(tmp_path / "c.json")
        assert again == made
        for entry in answers(50, seed=4)[0]:
            assert again.judge(KEY, entry) == made.judge(KEY, entry)
    for text in ("{", "[]", '{"key": {}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.json"):
            Calibration.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 3}, "format is 3"),
        ({"mean": [0.0]}, "differ in length"),
        ({"scale": [0.0, 1.0]}, "not above 0"),
        ({"bias": float("nan")}, "not finite"),
        ({"last": {"stage": "magic", "knots": []}}, "magic"),
        ({"last": {"stage": "isotonic", "knots": []}}, "knots"),
        ({"interval": {"low": [0.0], "high": [1.0]}}, "intervals"),
        ({"surprise": 1}, "surprise"),
        ({"certificates": [{}]}, "key"),
    ],
)
def test_an_impossible_file_is_refused(tmp_path, change, words):
    body = json.loads(json.dumps(asdict(fitted_on(rows(100)))))
    (tmp_path / "c.json").write_text(json.dumps({**body, **change}))
    with pytest.raises(ConfigError, match=words):
        Calibration.load(tmp_path / "c.json")


@pytest.fixture(scope="module")
def certified():
    fit, certifying = held_back(rows(600))
    made = fitted_on(fit)
    promise = certify(made, certifying, key=KEY, alpha=0.2)
    return json.loads(json.dumps(asdict(with_certificate(made, promise))))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("threshold", value) for value in (-1, float("nan"), "0.1", None, True)),
        *(("alpha", value) for value in (0, 1, -1, float("nan"), "much", None)),
        *(("delta", value) for value in (0, 1, 5, "0.1")),
        *(("kept", value) for value in (10**9, -1, 1.5, None)),
        *(("errors", value) for value in (10**6, -1, True)),
        *(("n", value) for value in (1, "300")),
        *(("kept_share", value) for value in (-0.1, 5, float("nan"))),
        *(("labels_digest", value) for value in (5, None)),
        *(("contract", value) for value in ("other", None, ["kept_risk"])),
    ],
)
def test_a_file_with_an_impossible_certificate_is_refused(tmp_path, certified, field, value):
    (promise,) = certified["certificates"]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**certified, "certificates": [{**promise, field: value}]}))
    with pytest.raises(
        ConfigError, match=f"cannot be used: a certificate has an impossible.*{field}"
    ):
        Calibration.load(path)


@pytest.mark.parametrize(
    "change",
    [
        *({name: 10**400} for name in ("bias", "n", "ece")),
        *({name: [10**400] * 2} for name in ("mean", "weights")),
        {"n": "many"},
        {"n": -1},
        {"ece": 7.0},
        {"n": None},
        {"reference": {"confidence": [float("nan")]}},
        {"reference": {"confidence": [10**400]}},
        {"reference": {"confidence": "abc"}},
        {"reference": [1]},
        {"certificates": None},
        {"certificates": "abc"},
        {"last": {"stage": "platt", "slope": -1.0, "offset": 0.0, "knots": []}},
        {"last": {"stage": "platt", "slope": "1", "offset": 0.0, "knots": []}},
        {"last": {"stage": "isotonic", "knots": [[0, 5.0], [1, 7.0]]}},
        {"last": {"stage": "isotonic", "knots": [[0, 0.9], [1, 0.1]]}},
        {"last": {"stage": "isotonic", "knots": [[0, -0.1], [1, 0.1]]}},
        {"interval": {"low": [2.0] * 257, "high": [2.0] * 257}},
        {"risks": {"threshold": [0.5], "kept": [], "risk": [0.1]}},
        {"risks": {"threshold": [None], "kept": [0.1], "risk": [0.1]}},
    ],
)
def test_a_file_that_could_not_be_evaluated_is_refused(tmp_path, certified, change):
    (tmp_path / "c.json").write_text(json.dumps({**certified, **change}))
    with pytest.raises(ConfigError, match="cannot be used: "):
        Calibration.load(tmp_path / "c.json")


def test_a_file_with_a_possible_certificate_loads(tmp_path, certified):
    (tmp_path / "c.json").write_text(json.dumps(certified))
    made = Calibration.load(tmp_path / "c.json")
    assert made.certificate(0.2) == made.certificates[0]
    assert json.loads(json.dumps(asdict(made))) == certified


def test_of_several_promises_the_one_tested_for_the_asked_risk_is_taken():
    fit, certifying = held_back(rows(2000))
    made = fitted_on(fit)
    first = certify(made, certifying, key=KEY, alpha=0.1)
    lucky = replace(first, alpha=0.05, kept_share=1.0, threshold=0.0)
    made = with_certificate(with_certificate(made, first), lucky)
    assert made.certificate(0.1) == made.certificate(0.3) == first
    assert made.certificate(0.07) == lucky
    again = replace(first, kept_share=1.0)
    assert replace(made, certificates=(first, again)).certificate(0.1) == first


def test_case_width_and_white_space_do_not_make_another_row():
    assert row_name("  Set a\tTIMER ") == row_name("set a timer") == row_name("\uff53et a timer")
    assert row_name("set a timer") != row_name("set the timer")


def test_files_of_the_first_format_load_and_know_no_interval(tmp_path):
    whole = asdict(fitted_on(rows(100), stage="none"))
    first = ("key", "features", "mean", "scale", "weights", "bias", "n", "ece")
    (tmp_path / "c.json").write_text(json.dumps({name: whole[name] for name in first}))
    made = Calibration.load(tmp_path / "c.json")
    judged = made.judge(KEY, dict(zip(made.features, made.mean, strict=True)))
    assert (made.format, made.seen, made.interval) == (1, None, None)
    assert judged.value == pytest.approx(1 / (1 + np.exp(-made.bias)))
    assert (judged.low, judged.high) == (0.0, 1.0)


def test_the_shipped_calibration_loads():
    made = Calibration.load(SHIPPED)
    judged = made.judge(made.key, dict(zip(made.features, made.mean, strict=True)))
    assert 0 <= judged.low <= judged.value <= judged.high <= 1


@pytest.mark.parametrize("correct", [[True] * 30, [False] * 30, [True, False]])
def test_too_few_or_one_sided_labels_are_refused(correct):
    signals = [{"a": float(i)} for i in range(len(correct))]
    with pytest.raises(InputError, match="20"):
        fit_calibration(KEY, signals, correct=correct, features=("a",))


def test_separable_answers_do_not_run_away():
    signals = [{"a": float(i)} for i in range(40)]
    made = fit_calibration(KEY, signals, correct=[i >= 20 for i in range(40)], features=("a",))
    assert 0.9 < made.confidence(KEY, {"a": 39.0}) < 1


def test_a_repeated_row_is_refused():
    signals, correct, _ = answers(40)
    with pytest.raises(InputError, match="40 answers need 40 different row names, not 1"):
        fit_calibration(KEY, signals, correct=correct, features=("a",), rows=["same"] * 40)


def test_a_row_always_falls_on_the_same_side():
    whole = rows(1000)
    fit, certifying = held_back([*whole, *whole])
    assert len(fit) + len(certifying) == 1000
    assert 400 < len(fit) < 600
    assert held_back(whole[::-1])[0][::-1] == fit
    assert held_back(whole, share=0.0)[1] == []


def test_a_promise_is_kept_with_the_calibration():
    fit, certifying = held_back(rows(2000))
    made = fitted_on(fit)
    promise = certify(made, certifying, key=KEY, alpha=0.1)
    assert isinstance(promise, Certificate)
    assert made.certificate(0.1) is None
    made = with_certificate(with_certificate(made, promise), promise)
    assert made.certificates == (promise,)
    assert made.certificate(0.1) == made.certificate(0.2) == promise
    assert made.certificate(0.05) is None
    assert made.certificate(0.1, contract="undetected_failures") is None
    with pytest.raises(InputError, match="another key"):
        with_certificate(made, replace(promise, key=OTHERS[0]))


def test_labels_that_may_not_speak_are_refused():
    fit, certifying = held_back(rows(600))
    made = fitted_on(fit)
    silent = [replace(certifying[0], signals={"a": float("nan"), "b": 0.0}), *certifying[1:]]
    for found, used, key, words in (
        (made, certifying, OTHERS[0], "not of the model"),
        (made, [*certifying, fit[0]], KEY, "fitted on 1 of these"),
        (made, [*certifying, certifying[0]], KEY, "1 of .* rows are repeated"),
        (made, silent, KEY, "1 of .* lack a finite signal"),
        (replace(made, seen=None), certifying, KEY, "does not remember"),
    ):
        with pytest.raises(InputError, match=words):
            certify(found, used, key=key, alpha=0.1)
    trusted = certify(
        replace(made, seen=None), certifying, key=KEY, alpha=0.2, fitted_elsewhere=True
    )
    assert isinstance(trusted, Certificate)
    assert isinstance(certify(made, certifying[:5], key=KEY, alpha=0.1), NotCertifiable)


def test_the_order_of_the_labels_does_not_matter():
    fit, certifying = held_back(rows(1000))
    made = replace(fitted_on(fit), risks=None)
    assert certify(made, certifying, key=KEY, alpha=0.2) == certify(
        made, certifying[::-1], key=KEY, alpha=0.2
    )


def test_a_label_outside_the_task_is_named():
    assert labelled("x", {}, found="a", gold="a", labels=("a", "b")).correct
    assert not labelled("x", {}, found="b", gold="a", labels=("a", "b")).correct
    with pytest.raises(InputError, match="'c' of 'x' is not one of the task's 2 labels"):
        labelled("x", {}, found="a", gold="c", labels=("a", "b"))


def test_signals_of_a_generation():
    stats = [TokenStats(1, -0.1, 0.2, 3.0), TokenStats(2, -0.5, 0.9, 1.0)]
    found = generation_signals(stats, missing_fields=1)
    assert found["mean_logprob"] == pytest.approx(-0.3)
    assert (found["min_logprob"], found["max_entropy"], found["min_margin"]) == (-0.5, 0.9, 1.0)
    assert (found["tokens"], found["missing"]) == (2, 1)
    assert generation_signals([])["tokens"] == 0
