"""Calibrated confidence: a logistic map from signals to the probability of being right.

A calibration is valid for one key only: model digest, task, and prompt digest. Asked for another
key it gives no number. Fitting is L2-penalised logistic regression by Newton's method on
standardised signals (Platt 1999, with several inputs).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.confidence.signals import as_row
from edge.errors import ConfigError, InputError

_BINS = 10


@dataclass(frozen=True, slots=True)
class CalibrationKey:
    """What a calibration was measured on; it holds for nothing else.

    Attributes:
        model_digest: sha256 of the weights, and so of their quantization.
        task: the task's name.
        prompt_digest: sha256 of the prompt's version and wording; empty for a head.

    """

    model_digest: str
    task: str
    prompt_digest: str = ""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted map.

    Attributes:
        features: names of the signals, in the order of ``weights``.
        mean, scale: what standardises each signal.
        weights, bias: of the logistic function over standardised signals.
        n: labelled answers it was fitted on.
        ece: expected calibration error by 5-fold cross-fitting, 10 equal-mass bins, 0..1.

    """

    key: CalibrationKey
    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    n: int
    ece: float

    def confidence(self, key: CalibrationKey, signals: Mapping[str, float]) -> float | None:
        """Return the probability of being right; ``None`` for another key or a missing signal."""
        row = as_row(signals, self.features)
        if key != self.key or row is None:
            return None
        standard = (np.array(row) - self.mean) / self.scale
        return float(_sigmoid(np.clip(standard, -6.0, 6.0) @ np.array(self.weights) + self.bias))

    def save(self, path: Path) -> None:
        """Write the calibration as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a calibration.

        Raises:
            ConfigError: the file is missing or is not one.

        """
        try:
            body = json.loads(path.read_text("utf-8"))
            missing = _missing(body)
            if missing:
                raise ConfigError(
                    f"The calibration {path} cannot be used: it lacks {', '.join(missing)}.",
                    hint="Fit it again.",
                )
            body["key"] = CalibrationKey(**body["key"])
            for name in ("features", "mean", "scale", "weights"):
                body[name] = tuple(body[name])
            return cls(**body)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(
                f"The calibration {path} cannot be used: {error}.", hint="Fit it again."
            ) from error


def _missing(body: object) -> list[str]:
    """Return which fields of a calibration a JSON value lacks."""
    names = [each.name for each in fields(Calibration)]
    return [name for name in names if name not in body] if isinstance(body, dict) else names


def fit_calibration(
    key: CalibrationKey,
    signals: Sequence[Mapping[str, float]],
    *,
    correct: Sequence[bool],
    features: Sequence[str],
    l2: float = 1.0,
) -> Calibration:
    """Fit a map from labelled answers.

    Args:
        key: what the answers were produced with.
        signals: one mapping per answer.
        correct: whether each answer was right.
        features: which signals to use.
        l2: strength of the pull towards zero weights, in units of one observation.

    Raises:
        InputError: fewer than 20 answers, all right or all wrong, or a missing signal.

    """
    rows = [as_row(entry, features) for entry in signals]
    truth = np.array(correct, dtype=float)
    if len(rows) != len(truth) or any(row is None for row in rows):
        raise InputError(f"Every answer needs the signals {', '.join(features)} and a label.")
    if len(rows) < 20 or truth.min() == truth.max():  # noqa: PLR2004
        raise InputError("A calibration needs at least 20 answers, some right and some wrong.")
    table = np.array(rows, dtype=float)
    mean, scale = table.mean(axis=0), table.std(axis=0)
    scale[scale < 1e-9] = 1.0  # noqa: PLR2004
    standard = np.clip((table - mean) / scale, -6.0, 6.0)
    weights = _newton(standard, truth, l2)
    return Calibration(
        key=key,
        features=tuple(features),
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        weights=tuple(weights[:-1].tolist()),
        bias=float(weights[-1]),
        n=len(rows),
        ece=expected_calibration_error(_cross_fitted(standard, truth, l2), truth),
    )


def expected_calibration_error(
    confidence: NDArray[np.float64], correct: NDArray[np.float64], *, bins: int = _BINS
) -> float:
    """Return the mean gap between confidence and accuracy over equal-mass bins, 0..1."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [abs(confidence[part].mean() - correct[part].mean()) * len(part) for part in parts]
    return float(sum(gaps) / max(len(order), 1))


def _cross_fitted(
    table: NDArray[np.float64], truth: NDArray[np.float64], l2: float, folds: int = 5
) -> NDArray[np.float64]:
    """Return each row's probability under a map fitted without its fold."""
    probability = np.empty(len(truth))
    fold = np.arange(len(truth)) % folds
    for held_out in range(folds):
        weights = _newton(table[fold != held_out], truth[fold != held_out], l2)
        part = table[fold == held_out]
        probability[fold == held_out] = _sigmoid(part @ weights[:-1] + weights[-1])
    return probability


def _newton(
    table: NDArray[np.float64], truth: NDArray[np.float64], l2: float
) -> NDArray[np.float64]:
    """Return the weights and, last, the unpenalised bias."""
    design = np.column_stack([table, np.ones(len(table))])
    penalty = np.full(design.shape[1], l2)
    penalty[-1] = 1e-6
    weights = np.zeros(design.shape[1])
    for _ in range(50):
        probability = _sigmoid(design @ weights)
        gradient = design.T @ (probability - truth) + penalty * weights
        curvature = probability * (1.0 - probability)
        hessian = (design.T * curvature) @ design + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        weights -= np.clip(step, -4.0, 4.0)
        if np.abs(step).max() < 1e-9:  # noqa: PLR2004
            break
    return weights


def _sigmoid(value: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(value)))
