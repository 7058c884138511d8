"""From answers with known outcome to a calibration, its certificate, and what both are worth.

A part of the rows fits the confidence, the others speak for it: no row does both, and every figure
reported is of rows that the fit has not seen. An answer that is not valid is never kept; it is
left out of fit and certificate and counts among what is given up. Pure: runs no model, opens no
file. Does not know whether coming traffic is like the labelled rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge.confidence.calibration import Calibration
from edge.confidence.certificate import Certificate, Contract, NotCertifiable
from edge.confidence.fusion import FEWEST, Prior, fit_calibration, row_digest, row_name
from edge.confidence.key import CalibrationKey
from edge.confidence.promise import Labelled, certify, held_back, with_certificate
from edge.errors import InputError
from edge.lab import metrics
from edge.types import Kind

STRICTER = (0.75, 0.5, 0.35, 0.25)
"""Shares of the asked risk that are certified too: what a watch can step to."""

LEAST_RISK = 1e-5
"""Below it a promise takes more than 100,000 kept answers without one error."""

_CHOSEN = ("log_odds", "margin", "similarity")
_DECIDED = ("probability", "margin", "entropy", "log_mass")
_GENERATED = ("mean_logprob", "min_margin", "missing", "partial", "left_out", "overlap")
_KEPT = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
_REFERENCE = 1000
_BINS = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the local model whose outcome is known.

    Attributes:
        text: the input, which names the row.
        signals: what was read while answering.
        right: whether it is the right answer.
        valid: whether it could be an answer at all; otherwise it is never kept.
        cost_microusd: the most that asking the pool instead could cost; ``None`` without a pool.

    """

    text: str
    signals: Mapping[str, float]
    right: bool
    valid: bool = True
    cost_microusd: int | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """What a threshold comes to on the rows held back; all shares are of these, 0..1.

    Attributes:
        threshold: keep answers of at least this confidence.
        kept: share kept.
        wrong: share of the kept that is wrong; 0 where nothing is kept.
        usd_per_1000: of asking the pool for the others, at the worst case; ``None`` without one.
        accuracy: of kept and escalated answers together.
        promised: the bound that is certified here; ``None`` where none is.

    """

    threshold: float
    kept: float
    wrong: float
    usd_per_1000: float | None
    accuracy: float
    promised: float | None = None

    @property
    def escalated(self) -> float:
        """The share that is not kept."""
        return 1.0 - self.kept


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of like confidence: their mean confidence, the share that is right, how many."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibration and what is known of it.

    Attributes:
        calibration: with its certificates and the reference of a watch.
        outcome: the certificate asked for, or why there is none.
        rows, right, valid: of all answers.
        fitted: valid answers it was fitted on.
        answers: held back, valid or not.
        confidence, correct: of the valid ones held back, in the same order.
        error_auroc, smooth_ece: on those; ``None`` where they are all right or all wrong.

    """

    calibration: Calibration
    outcome: Certificate | NotCertifiable
    rows: int
    right: int
    valid: int
    fitted: int
    answers: tuple[Answer, ...]
    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]
    error_auroc: float | None
    smooth_ece: float | None


def calibrate(
    key: CalibrationKey,
    answers: Sequence[Answer],
    *,
    features: Sequence[str],
    risk: float,
    delta: float = 0.1,
    contract: Contract = "kept_risk",
    share: float = 0.5,
    prior: Prior | None = None,
) -> Calibrated:
    """Fit on a part of the answers and certify on the others.

    Args:
        key: what the answers were produced with.
        answers: each text once; of those that differ only in case or white space the first counts.
        features: which signals to use; see ``features_of``.
        risk: the bound asked for, from ``LEAST_RISK`` to below 1.
        delta: accepted probability that the labels mislead.
        contract: what is promised; see ``edge.confidence.certificate``.
        share: of the answers that certify.
        prior: weights to be pulled towards.

    Raises:
        InputError: too few answers, all right or all wrong, a text that occurs twice, or a signal
            that is missing or not finite.

    """
    _check(answers, features)
    first = {row_name(each.text): each for each in reversed(answers)}
    sides = held_back([_row(each) for each in answers], share=share)
    fit, speak = ([first[each.row] for each in side] for side in sides)
    known = [each for each in speak if each.valid]
    calibration = _fitted(key, [a for a in fit if a.valid], features, prior)
    confidence = [calibration.confidence(key, each.signals) for each in known]
    sure = np.array([value for value in confidence if value is not None])
    correct = np.array([each.right for each in known], dtype=bool)
    calibration = replace(calibration, reference=_reference(known, sure))
    calibration, outcome = _promised(calibration, known, risk, delta=delta, contract=contract)
    both = 0 < correct.sum() < len(correct)
    return Calibrated(
        calibration=calibration,
        outcome=outcome,
        rows=len(answers),
        right=sum(each.right and each.valid for each in answers),
        valid=sum(each.valid for each in answers),
        fitted=calibration.n,
        answers=tuple(speak),
        confidence=sure,
        correct=correct,
        error_auroc=metrics.auroc(sure, correct) if both else None,
        smooth_ece=metrics.smooth_ece(sure, correct) if both else None,
    )


def features_of(kind: Kind, signals: Sequence[Mapping[str, float]], *, labels: bool) -> list[str]:
    """Return which signals to fuse: those of a fixed list that every answer carries.

    Args:
        kind: of the task.
        signals: of the answers, at least one.
        labels: whether a decoder chose from labels, rather than a head.

    """
    chosen = _DECIDED if labels else _CHOSEN
    wanted = chosen if kind is Kind.CLASSIFY else _GENERATED
    return [name for name in wanted if all(name in each for each in signals)]


def points(
    found: Calibrated, *, cloud_accuracy: float, shares: Sequence[float] = _KEPT
) -> list[Point]:
    """Return what thresholds come to, from keeping all down; certified ones among them."""
    order = np.sort(found.confidence)[::-1]
    if not len(order):
        return []
    at = {float(order[max(1, round(len(order) * each)) - 1]): None for each in shares}
    promised = {each.threshold: each.alpha for each in found.calibration.certificates}
    return [
        _point(found, threshold, cloud_accuracy, promised.get(threshold))
        for threshold in sorted({**at, **promised})
    ]


def reliability(found: Calibrated, *, bins: int = _BINS) -> list[Bin]:
    """Return groups of about equal size, by rising confidence."""
    parts = np.array_split(np.argsort(found.confidence, kind="stable"), bins)
    return [
        Bin(float(found.confidence[p].mean()), float(found.correct[p].mean()), len(p))
        for p in parts
        if len(p)
    ]


def _check(answers: Sequence[Answer], features: Sequence[str]) -> None:
    valid = [each for each in answers if each.valid]
    right = sum(each.right for each in valid)
    if right in {0, len(valid)}:
        what = "wrong" if right == 0 else "right"
        raise InputError(
            f"All {len(valid)} valid answers are {what}, so nothing tells right from wrong.",
            hint="Add rows that the model gets " + ("right." if right == 0 else "wrong."),
        )
    if not features:
        raise InputError("The answers carry no signal that a confidence could be fitted on.")
    for name in features:
        bad = sum(not np.isfinite(each.signals.get(name, np.nan)) for each in valid)
        if bad:
            raise InputError(
                f"The signal {name} of {bad} of {len(valid)} answers is missing or not finite.",
                hint="Check the model; its numbers cannot be trusted.",
            )


def _fitted(
    key: CalibrationKey, fit: Sequence[Answer], features: Sequence[str], prior: Prior | None
) -> Calibration:
    right = sum(each.right for each in fit)
    if len(fit) < FEWEST or right in {0, len(fit)}:
        raise InputError(
            f"The part to fit on has {len(fit)} valid answers, {len(fit) - right} of them wrong; "
            f"{FEWEST} are needed, some right and some wrong.",
            hint="Label more rows, or give the fit more of them with --share.",
        )
    return fit_calibration(
        key,
        [each.signals for each in fit],
        correct=[each.right for each in fit],
        features=features,
        prior=prior,
        rows=[row_name(each.text) for each in fit],
    )


def _promised(
    calibration: Calibration,
    known: Sequence[Answer],
    risk: float,
    *,
    delta: float,
    contract: Contract,
) -> tuple[Calibration, Certificate | NotCertifiable]:
    """Return the calibration with the certificate asked for, and stricter ones beside it."""
    rows = [_row(each) for each in known]
    asked: Certificate | NotCertifiable | None = None
    for each in (1.0, *STRICTER):
        # The rounding is for people; the one asked for stays what it is.
        alpha = risk if each == 1.0 else float(f"{risk * each:.6g}")
        found = certify(
            calibration, rows, key=calibration.key, alpha=alpha, delta=delta, contract=contract
        )
        asked = asked or found
        if isinstance(asked, NotCertifiable):
            # A stricter one that passed by chance would stand in for the one asked for.
            return calibration, asked
        if isinstance(found, Certificate):
            calibration = with_certificate(calibration, found)
    if asked is None:
        raise InputError(f"No promise was asked for at risk {risk}.")
    return calibration, asked


def _row(answer: Answer) -> Labelled:
    return Labelled(row_name(answer.text), answer.signals, answer.right)


def _reference(
    known: Sequence[Answer], confidence: NDArray[np.float64]
) -> dict[str, tuple[float, ...]]:
    """Return what a watch compares later answers with; an answer's confidence where it has none.

    In the order of the rows' digests, which is random: a file sorted by label would otherwise leave
    whole labels out, and a watch would take them for drift.
    """
    digests = [row_digest(row_name(each.text)) for each in known]
    order = sorted(range(len(known)), key=digests.__getitem__)[:_REFERENCE]
    sure = [float(confidence[at]) for at in order]
    near = [known[at].signals.get("similarity", own) for at, own in zip(order, sure, strict=True)]
    return {
        "similarity": tuple(round(value, 4) for value in near),
        "confidence": tuple(round(value, 4) for value in sure),
    }


def _point(
    found: Calibrated, threshold: float, cloud_accuracy: float, promised: float | None
) -> Point:
    own = iter(zip(found.confidence.tolist(), found.correct.tolist(), strict=True))
    kept = wrong = cost = 0
    priced = all(each.cost_microusd is not None for each in found.answers)
    for each in found.answers:
        sure, right = next(own) if each.valid else (-1.0, False)
        if sure >= threshold:
            kept, wrong = kept + 1, wrong + (not right)
        else:
            cost += each.cost_microusd or 0
    count = len(found.answers)
    return Point(
        threshold=threshold,
        kept=kept / count,
        wrong=wrong / kept if kept else 0.0,
        usd_per_1000=cost / count / 1e3 if priced else None,
        accuracy=(kept - wrong + cloud_accuracy * (count - kept)) / count,
        promised=promised,
    )
