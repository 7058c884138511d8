"""Metrics of confidence and of escalation, each defined once.

Everywhere: ``confidence`` is higher for surer answers, ``correct`` is 0/1 or boolean, both ``[n]``;
answers with equal confidence count as in random order. A value that is not finite, lengths that
differ, or no answers at all are an ``InputError``; a metric that the answers do not define (one
class only) is one too, never a number. Pure numpy; knows no model and no file.

Sources: RouteLLM (APGR, CPT), Geifman and El-Yaniv (AURC, E-AURC), Traub et al. 2024 (AUGRC),
Guo et al. 2017 (ECE), Blasiok and Nakkiran 2023 (smooth ECE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.confidence.reliability import expected_calibration_error
from edge.errors import InputError

Floats = NDArray[np.float64]
Numbers = Sequence[Any] | NDArray[Any]

_BINS = 15
_CELLS = 2000
_HALVINGS = 40


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a curve over shares of tasks.

    Attributes:
        share: of tasks kept, or sent up; rising, within 0..1.
        value: what the curve shows at each share.

    """

    share: Floats
    value: Floats

    def at(self, share: float) -> float:
        """Return the value at a share, by straight lines between points."""
        return float(np.interp(share, self.share, self.value))


def auroc(confidence: Numbers, correct: Numbers) -> float:
    """Return the chance that a right answer has more confidence than a wrong one; ties half."""
    scores, right = _checked(confidence, correct)
    return separation(scores[right == 1], scores[right == 0])


def separation(high: Numbers, low: Numbers) -> float:
    """Return the chance that a value of ``high`` exceeds one of ``low``, ties counted half."""
    above, below = _finite(high), np.sort(_finite(low))
    if not len(above) or not len(below):
        raise InputError("An AUROC needs both right and wrong answers.")
    ranks = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
    return float(ranks.mean() / 2 / len(below))


def risk_coverage(confidence: Numbers, correct: Numbers) -> Curve:
    """Return the share of wrong answers among the surest k, for k = 1..n."""
    wrong = _wrong_so_far(confidence, correct)
    kept = np.arange(1, len(wrong) + 1)
    return Curve(kept / len(wrong), wrong / kept)


def aurc(confidence: Numbers, correct: Numbers) -> float:
    """Return the mean over k = 1..n of the risk of the surest k answers."""
    return float(risk_coverage(confidence, correct).value.mean())


def e_aurc(confidence: Numbers, correct: Numbers) -> float:
    """Return AURC less that of a perfect order, e + (1 - e) ln(1 - e) at error rate e."""
    _, right = _checked(confidence, correct)
    mean = float(right.mean())
    perfect = 1.0 - mean + (mean * np.log(mean) if mean > 0 else 0.0)
    return aurc(confidence, correct) - float(perfect)


def augrc(confidence: Numbers, correct: Numbers) -> float:
    """Return the mean over coverage of P(wrong and kept): the area by the trapezoid rule.

    Equal to (1 - AUROC) a (1 - a) + (1 - a)^2 / 2 at accuracy a.
    """
    wrong = np.concatenate([[0.0], _wrong_so_far(confidence, correct)])
    return float(np.trapezoid(wrong / (len(wrong) - 1)) / (len(wrong) - 1))


def brier(confidence: Numbers, correct: Numbers) -> float:
    """Return the mean squared gap between a probability and the outcome."""
    scores, right = _probabilities(confidence, correct)
    return float(np.square(scores - right).mean())


def ece(confidence: Numbers, correct: Numbers, *, bins: int = _BINS) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal mass."""
    scores, right = _probabilities(confidence, correct)
    return expected_calibration_error(scores, right, bins=bins)


def smooth_ece(confidence: Numbers, correct: Numbers) -> float:
    """Return the calibration error smoothed at the width where error and width agree.

    At width sigma it is the integral over 0..1 of |mean residual under a Gaussian kernel reflected
    at 0 and 1|. It falls as sigma rises, so the width that equals it is found by halving.
    """
    scores, right = _probabilities(confidence, correct)
    spot = np.minimum((scores * _CELLS).astype(int), _CELLS - 1)
    residual = np.bincount(spot, weights=right - scores, minlength=_CELLS) / len(scores)
    low, high = 1.0 / _CELLS, 1.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if _smoothed(residual, middle) > middle:
            low = middle
        else:
            high = middle
    return _smoothed(residual, high)


def _smoothed(residual: Floats, width: float) -> float:
    """Return the integral of the absolute smoothed residual.

    Reflection at both ends makes the kernel diagonal under the cosine transform: a real Fourier
    transform of the residual beside its mirror image.
    """
    mirrored = np.concatenate([residual, residual[::-1]])
    waves = np.arange(_CELLS + 1) * np.pi
    kernel = np.exp(-0.5 * np.square(waves * width))
    smooth = np.fft.irfft(np.fft.rfft(mirrored) * kernel, 2 * _CELLS)
    return float(np.abs(smooth[:_CELLS]).sum())


def kept_share(confidence: Numbers, correct: Numbers, *, risk: float) -> float:
    """Return the largest share of surest answers whose risk is within ``risk``, in hindsight.

    Answers of equal confidence are kept or given up together, as by a threshold.
    """
    scores, right = _checked(confidence, correct)
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) != 0, True)
    kept = np.arange(1, len(scores) + 1)
    within = ends & ((1.0 - right[order]).cumsum() <= risk * kept)
    return float(kept[within].max(initial=0) / len(scores))


def caught_errors(confidence: Numbers, correct: Numbers, *, escalated: float) -> float:
    """Return the share of wrong answers among the least sure ``escalated`` share of all, 0..1."""
    wrong = np.concatenate([[0.0], _wrong_so_far(confidence, correct)])
    if wrong[-1] == 0:
        raise InputError("No answer is wrong, so there is no error to catch.")
    share = np.arange(len(wrong)) / (len(wrong) - 1)
    return float(1.0 - np.interp(1.0 - escalated, share, wrong) / wrong[-1])


def deferral_curve(confidence: Numbers, correct: Numbers, *, cloud_correct: Numbers) -> Curve:
    """Return A(r): accuracy when the share r of least sure answers is the cloud's; r = 0..1."""
    scores, right = _checked(confidence, correct)
    cloud = _outcomes(cloud_correct, len(right))
    gain = np.cumsum(_in_order(scores, cloud - right))
    gains = np.concatenate([[0.0], gain])
    share = np.arange(len(gains)) / len(right)
    return Curve(share, right.mean() + gains / len(right))


def pgr(curve: Curve) -> Curve:
    """Return the share of the gap between local and cloud accuracy closed at each share sent up.

    May exceed 1 where the local model is right and the cloud wrong.

    Raises:
        InputError: the cloud is not better than the local model.

    """
    weak, strong = curve.value[0], curve.value[-1]
    if strong <= weak:
        raise InputError("There is no gap to close: the cloud is not better than the local model.")
    return Curve(curve.share, (curve.value - weak) / (strong - weak))


def apgr(curve: Curve) -> float:
    """Return the area under PGR over the share sent up, by the trapezoid rule; random is 0.5."""
    closed = pgr(curve)
    return float(np.trapezoid(closed.value, closed.share))


def cpt(curve: Curve, *, gap: float) -> float:
    """Return the least share of calls to the cloud that closes ``gap`` (0..1) of the gap."""
    closed = pgr(curve)
    reached = int(np.argmax(closed.value >= gap - 1e-12))
    if closed.value[reached] < gap - 1e-12:
        raise InputError(f"No share of calls closes {gap} of the gap.")
    return float(closed.share[reached])


def _checked(confidence: Numbers, correct: Numbers) -> tuple[Floats, Floats]:
    scores = _finite(confidence)
    if not len(scores):
        raise InputError("A metric needs at least one answer.")
    return scores, _outcomes(correct, len(scores))


def _finite(values: Numbers) -> Floats:
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise InputError("A metric needs a list of finite numbers; drop what has no confidence.")
    return found


def _outcomes(correct: Numbers, count: int) -> Floats:
    right = _finite(correct)
    if len(right) != count or not np.isin(right, (0.0, 1.0)).all():
        raise InputError(f"{count} answers need {count} outcomes, each 0 or 1.")
    return right


def _probabilities(confidence: Numbers, correct: Numbers) -> tuple[Floats, Floats]:
    scores, right = _checked(confidence, correct)
    if scores.min() < 0.0 or scores.max() > 1.0:
        raise InputError("A calibration error needs probabilities within 0..1.")
    return scores, right


def _in_order(scores: Floats, values: Floats) -> Floats:
    """Return the values by rising score; equal scores share the mean of their values."""
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=values) / counts
    return np.repeat(means, counts)


def _wrong_so_far(confidence: Numbers, correct: Numbers) -> Floats:
    """Return how many of the surest 1..n answers are wrong, in the mean over orders of ties."""
    scores, right = _checked(confidence, correct)
    found: Floats = np.cumsum(_in_order(-scores, 1.0 - right))
    return found
