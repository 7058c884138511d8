"""Fits a calibration: signals fused by a logistic map near a prior, then a last monotone stage.

Below 1,000 labels the last stage is Platt's map over the log-odds (Platt 1999, with a pull towards
leaving them as they are), from there on isotonic. The last stage, the intervals and the table of
risks are fitted on log-odds made out of fold, so that no answer judges itself. Deterministic.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.confidence.calibration import Calibration, LastStage, Stage
from edge.confidence.isotonic import fit_isotonic, fit_venn_abers
from edge.confidence.key import CalibrationKey
from edge.confidence.logistic import CLIP, fit_logistic
from edge.confidence.reliability import expected_calibration_error
from edge.confidence.sequence import risk_table
from edge.confidence.signals import as_row
from edge.errors import InputError

Floats = NDArray[np.float64]

FEWEST = 20
ISOTONIC_FROM = 1000
PRIOR_LABELS = 100.0
_FOLDS = 5
_LAST_LABELS = 20.0  # what leaving the log-odds as they are counts as
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class Prior:
    """Weights fitted elsewhere, on more tasks or more answers.

    Attributes:
        name: what they are, kept in the calibration; a digest or a file's name.
        features, mean, scale, weights, bias: as in ``Calibration``.
        labels: how many labels of the device they count as.

    """

    name: str
    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    labels: float = PRIOR_LABELS

    @classmethod
    def of(cls, shipped: Calibration, *, name: str, labels: float = PRIOR_LABELS) -> Prior:
        """Return the weights of a calibration fitted for another key."""
        return cls(
            name=name,
            features=shipped.features,
            mean=shipped.mean,
            scale=shipped.scale,
            weights=tuple(shipped.last.slope * weight for weight in shipped.weights),
            bias=shipped.last.slope * shipped.bias + shipped.last.offset,
            labels=labels,
        )


def row_name(text: str) -> str:
    """Return what names a text as a row: the same where only case, width or white space differ.

    Texts that differ in no more than that are one observation, not two.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def row_digest(name: str) -> str:
    """Return the short digest by which a calibration remembers a row."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fit_calibration(
    key: CalibrationKey,
    signals: Sequence[Mapping[str, float]],
    *,
    correct: Sequence[bool],
    features: Sequence[str],
    l2: float = 1.0,
    prior: Prior | None = None,
    rows: Sequence[str] | None = None,
    stage: Stage | None = None,
) -> Calibration:
    """Fit a map from labelled answers.

    Args:
        key: what the answers were produced with.
        signals: one mapping per answer.
        correct: whether each answer was right.
        features: which signals to use.
        l2: strength of the pull on each weight, in units of one observation.
        prior: weights to be pulled towards; zero weights where ``None``.
        rows: what names each answer's input (its text, or a digest of it). A calibration that
            knows its rows cannot be certified on one of them.
        stage: the last stage; by the number of labels where ``None``.

    Raises:
        InputError: fewer than 20 answers, all right or all wrong, a missing signal, a row that
            occurs twice, or a prior over other signals.

    """
    table, truth = _table(signals, correct, features)
    seen = _named(rows, len(truth))
    if prior is None:
        mean, scale = table.mean(axis=0), table.std(axis=0)
        scale[scale < _TINY] = 1.0
    elif prior.features != tuple(features):
        raise InputError(
            f"The prior {prior.name} is over {', '.join(prior.features)}, not over "
            f"{', '.join(features)}."
        )
    else:
        mean, scale = np.array(prior.mean), np.array(prior.scale)
    standard = np.clip((table - mean) / scale, -CLIP, CLIP)
    weights = _fused(standard, truth, l2, prior)
    odds = _out_of_fold(standard, truth, l2, prior)
    stage = stage or ("platt" if len(truth) < ISOTONIC_FROM else "isotonic")
    last = _last_stage(odds, truth, stage)
    judged = [last.probability(each) for each in odds.tolist()]
    return Calibration(
        key=key,
        features=tuple(features),
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        weights=tuple(weights[:-1].tolist()),
        bias=float(weights[-1]),
        n=len(truth),
        ece=expected_calibration_error(_judged_out_of_fold(odds, truth, stage), truth),
        last=last,
        interval=fit_venn_abers(odds.tolist(), truth.tolist()),
        risks=risk_table(judged, list(truth > 0)),
        prior="" if prior is None else prior.name,
        prior_labels=0.0 if prior is None else prior.labels,
        seen=seen,
    )


def _table(
    signals: Sequence[Mapping[str, float]], correct: Sequence[bool], features: Sequence[str]
) -> tuple[Floats, Floats]:
    rows = [as_row(entry, features) for entry in signals]
    truth = np.array(correct, dtype=float)
    if len(rows) != len(truth) or any(row is None for row in rows):
        raise InputError(f"Every answer needs the signals {', '.join(features)} and a label.")
    if len(rows) < FEWEST or truth.min() == truth.max():
        raise InputError("A calibration needs at least 20 answers, some right and some wrong.")
    return np.array(rows, dtype=float), truth


def _named(rows: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    """Return the sorted digests of the rows."""
    if rows is None:
        return None
    found = sorted({row_digest(name) for name in rows})
    if len(rows) != count or len(found) != count:
        raise InputError(
            f"{count} answers need {count} different row names, not {len(found)}.",
            hint="Name each input once; drop repeated inputs.",
        )
    return tuple(found)


def _fused(standard: Floats, truth: Floats, l2: float, prior: Prior | None) -> Floats:
    if prior is None:
        return fit_logistic(standard, truth, l2=l2)
    towards = np.array([*prior.weights, prior.bias])
    return fit_logistic(standard, truth, l2=l2, towards=towards, labels=prior.labels)


def _out_of_fold(standard: Floats, truth: Floats, l2: float, prior: Prior | None) -> Floats:
    """Return each row's log-odds under weights fitted without its fold."""
    odds = np.empty(len(truth))
    fold = np.arange(len(truth)) % _FOLDS
    for out in range(_FOLDS):
        weights = _fused(standard[fold != out], truth[fold != out], l2, prior)
        odds[fold == out] = standard[fold == out] @ weights[:-1] + weights[-1]
    return odds


def _platt(odds: Floats, truth: Floats) -> tuple[float, float]:
    """Return slope and offset; a slope of 0 where higher odds do not mean more right answers."""
    found = fit_logistic(
        odds[:, None], truth, towards=np.array([1.0, 0.0]), labels=_LAST_LABELS
    ).tolist()
    if found[0] > 0.0:
        return found[0], found[1]
    mean = float(truth.mean())
    return 0.0, float(np.log(mean) - np.log1p(-mean))


def _last_stage(odds: Floats, truth: Floats, stage: Stage) -> LastStage:
    """Return the monotone map that turns fused log-odds into a confidence."""
    if stage == "none":
        return LastStage()
    slope, offset = _platt(odds, truth)
    knots = fit_isotonic(odds, truth) if stage == "isotonic" else ()
    return LastStage(stage=stage, slope=slope, offset=offset, knots=knots)


def _judged_out_of_fold(odds: Floats, truth: Floats, stage: Stage) -> Floats:
    """Return each row's confidence under a last stage fitted without its fold."""
    found = np.empty(len(truth))
    fold = np.arange(len(truth)) % _FOLDS
    for out in range(_FOLDS):
        last = _last_stage(odds[fold != out], truth[fold != out], stage)
        found[fold == out] = [last.probability(each) for each in odds[fold == out].tolist()]
    return found
