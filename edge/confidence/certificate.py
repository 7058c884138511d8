"""Promises about kept answers, each with its proof, or a plain no.

Two contracts:

``kept_risk``: with probability 1 - delta over the labels, P(wrong | kept) <= alpha.
    Proof: thresholds are tested in an order fixed beforehand, and testing stops at the first that
    fails. Above a fixed threshold the kept labels are independent draws, so their errors are
    binomial and the exact tail (Clopper and Pearson 1934) wrongly passes it with probability at
    most delta. A false promise needs the first threshold of the order that is truly above alpha to
    pass: one test, so no correction is due. Source: fixed-sequence testing in Learn then Test,
    Angelopoulos et al. 2021.
``undetected_failures``: the expected share of all tasks that are kept and wrong is <= alpha. The
    mean is over the labels and the next task; a single set of labels may do worse.
    Proof: the loss 1{wrong and kept} falls as the threshold rises and is at most 1, so conformal
    risk control holds: n/(n+1) R + 1/(n+1) <= alpha. Source: Angelopoulos et al. 2022.

Both speak of traffic like the labelled answers (exchangeable with them) and of scores made without
these labels. The module cannot see whether that is so; ``edge.confidence.promise`` checks what can
be checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, isfinite, nextafter
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edge.confidence.binomial import fewest_trials, most_errors, upper_bound
from edge.confidence.key import CalibrationKey
from edge.confidence.sequence import RiskTable, from_table, from_top
from edge.errors import InputError

Contract = Literal["kept_risk", "undetected_failures"]
Floats = NDArray[np.float64]

_FEWEST = 20
_PLACING = 0.1  # of the labels: without a table their scores place the thresholds
_FEWEST_PLACING = 30
_GRID = 0.005  # in which the possible alpha is sought


@dataclass(frozen=True, slots=True)
class Certificate:
    """A promise that holds for answers with a confidence of at least ``threshold``.

    Attributes:
        contract: what is promised; see the module.
        alpha: the bound, 0..1.
        delta: probability that the labels mislead; ``None`` for a promise of the mean.
        n: labels used, kept or not.
        kept, errors: of these, at or above the threshold; of those, wrong.
        kept_share: kept / n.
        threshold: keep an answer whose confidence is at least this.
        labels_digest: sha256 over the confidences and labels, in order.
        key: what the labels were produced with.

    """

    contract: Contract
    alpha: float
    delta: float | None
    n: int
    kept: int
    errors: int
    kept_share: float
    threshold: float
    labels_digest: str
    key: CalibrationKey


def impossible(found: Certificate) -> str | None:
    """Return which field no certificate can have, such as one read from a file; ``None`` if none.

    Raises:
        OverflowError: a whole number is beyond every float.

    """
    counts = (found.errors, found.kept, found.n)
    whole = all(isinstance(each, int) and not isinstance(each, bool) for each in counts)
    fits = {
        "contract": found.contract in get_args(Contract),
        "alpha": is_number(found.alpha) and 0.0 < found.alpha < 1.0,
        "delta": found.delta is None or (is_number(found.delta) and 0.0 < found.delta < 1.0),
        "errors, kept or n": whole and 0 <= found.errors <= found.kept <= found.n,
        "kept_share": is_number(found.kept_share) and 0.0 <= found.kept_share <= 1.0,
        "threshold": is_number(found.threshold) and found.threshold >= 0.0,
        "labels_digest": isinstance(found.labels_digest, str),
    }
    return next((name for name, fine in fits.items() if not fine), None)


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and no truth value.

    Raises:
        OverflowError: it is a whole number beyond every float.

    """
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


@dataclass(frozen=True, slots=True)
class NotCertifiable:
    """No promise, and what would help. The remedies are estimates, not promises.

    Attributes:
        reason: why, in one clause.
        labels_needed: how many more labels like these would do; ``None`` where no number would.
        alpha_possible: about the least alpha, in steps of 0.5 %, that these labels pass. A promise
            at that alpha needs labels not looked at yet. ``None`` where there is none.
        escalation_share: (mu - alpha) / (1 - alpha) at error rate mu: the least share of tasks
            that any method must give up (feasibility law, arXiv 2606.29054); ``None`` unknown.

    """

    reason: str
    labels_needed: int | None = None
    alpha_possible: float | None = None
    escalation_share: float | None = None

    def __str__(self) -> str:
        if self.labels_needed is None and self.alpha_possible is None:
            return f"not with these labels: {self.reason}"
        remedies = []
        if self.labels_needed is not None:
            remedies.append(f"{self.labels_needed} more are needed")
        if self.alpha_possible is not None:
            remedies.append(f"accept {100 * self.alpha_possible:.3g} %")
        text = f"not with these labels: {', or '.join(remedies)} ({self.reason})"
        if self.escalation_share:
            text += f"; at least {100 * self.escalation_share:.2g} % must be given up in any case"
        return text


def certify_scores(
    confidence: Sequence[float],
    correct: Sequence[bool],
    *,
    key: CalibrationKey,
    alpha: float,
    delta: float = 0.1,
    contract: Contract = "kept_risk",
    table: RiskTable | None = None,
) -> Certificate | NotCertifiable:
    """Return a promise over answers whose scores were made without these labels.

    Args:
        confidence: one finite number per answer, higher is surer, at least 0.
        correct: whether each answer was right.
        key: what they were produced with.
        alpha: the bound asked for, within 0..1.
        delta: accepted probability of a false promise; only for ``kept_risk``.
        contract: which promise.
        table: kept risks known from other data. Without one, the scores of the first tenth of the
            answers (at least 30) place the thresholds and certify nothing: shuffle first.

    Raises:
        InputError: lengths that differ, a confidence that is not finite, alpha or delta outside
            0..1, or an unknown contract.

    """
    scores, right = _checked(confidence, correct, alpha=alpha, delta=delta)
    if len(scores) < _FEWEST:
        return NotCertifiable(
            f"{len(scores)} labels are too few to say anything",
            labels_needed=max(_FEWEST, ceil(fewest_trials(0.0, risk=alpha, delta=delta)))
            - len(scores),
        )
    if contract == "undetected_failures":
        found = _controlled(scores, right, alpha=alpha)
    elif contract == "kept_risk":
        found = _tested(scores, right, alpha=alpha, delta=delta, table=table)
    else:
        raise InputError(f"There is no contract {contract!r}.", hint="Use kept_risk.")
    if isinstance(found, NotCertifiable):
        return found
    threshold, scores, right = found
    kept = scores >= threshold
    return Certificate(
        contract=contract,
        alpha=alpha,
        delta=delta if contract == "kept_risk" else None,
        n=len(scores),
        kept=int(kept.sum()),
        errors=int((kept & ~right).sum()),
        kept_share=float(kept.mean()),
        threshold=threshold,
        labels_digest=_digest(scores, right),
        key=key,
    )


def _checked(
    confidence: Sequence[float], correct: Sequence[bool], *, alpha: float, delta: float
) -> tuple[Floats, NDArray[np.bool_]]:
    scores = np.asarray(confidence, dtype=float)
    if len(scores) != len(correct):
        raise InputError(f"{len(scores)} confidences cannot have {len(correct)} labels.")
    if not np.isfinite(scores).all() or (scores < 0).any():
        raise InputError("Every answer needs a finite confidence of at least 0 to be certified.")
    if not 0.0 < alpha < 1.0 or not 0.0 < delta < 1.0:
        raise InputError(f"No promise can have alpha {alpha} and delta {delta}.")
    return scores, np.asarray(correct, dtype=bool)


_Found = tuple[float, Floats, NDArray[np.bool_]]


def _tested(
    scores: Floats,
    right: NDArray[np.bool_],
    *,
    alpha: float,
    delta: float,
    table: RiskTable | None,
) -> _Found | NotCertifiable:
    """Return the laxest threshold that fixed-sequence testing reaches, and what it was tested on.

    The order comes from the table, or from scores set apart; never from a label used to test.
    """
    placing: Floats = scores[:0]
    if table is None:
        apart = min(len(scores) // 2, max(_FEWEST_PLACING, floor(_PLACING * len(scores))))
        placing, scores, right = scores[:apart], scores[apart:], right[apart:]

    def order(bound: float) -> tuple[float, ...]:
        if table is None:
            return from_top(placing, len(scores), alpha=bound, delta=delta)
        return from_table(table, len(scores), alpha=bound, delta=delta)

    found = _last_passed(scores, right, order(alpha), alpha=alpha, delta=delta)
    if found is not None:
        return found, scores, right
    wrong = float((~right).mean())
    kept, errors = _counts(scores, right, order(alpha)[0])

    def passes(bound: float) -> bool:
        return _last_passed(scores, right, order(bound), alpha=bound, delta=delta) is not None

    return NotCertifiable(
        f"of {kept} answers at the first threshold {errors} are wrong, so up to "
        f"{100 * upper_bound(errors, kept, delta=delta):.3g} % may be",
        labels_needed=_labels_needed(scores, right, order(alpha), alpha=alpha, delta=delta),
        alpha_possible=_alpha_possible(passes, alpha),
        escalation_share=max(0.0, (wrong - alpha) / (1.0 - alpha)),
    )


def _counts(scores: Floats, right: NDArray[np.bool_], threshold: float) -> tuple[int, int]:
    kept = scores >= threshold
    return int(kept.sum()), int((kept & ~right).sum())


def _last_passed(
    scores: Floats,
    right: NDArray[np.bool_],
    order: Sequence[float],
    *,
    alpha: float,
    delta: float,
) -> float | None:
    """Return the last threshold before the first failure; ``None`` where the first fails."""
    passed: float | None = None
    for threshold in order:
        kept, errors = _counts(scores, right, threshold)
        if errors > most_errors(kept, risk=alpha, delta=delta):
            break
        passed = threshold
    return passed


def _alpha_possible(passes: Callable[[float], bool], alpha: float) -> float | None:
    """Return an alpha in whole steps that passes while the step below does not."""
    low, high = floor(alpha / _GRID), floor(1.0 / _GRID) - 1
    if not passes(round(high * _GRID, 4)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if passes(round(middle * _GRID, 4)):
            high = middle
        else:
            low = middle
    return round(high * _GRID, 4)


def _labels_needed(
    scores: Floats,
    right: NDArray[np.bool_],
    order: Sequence[float],
    *,
    alpha: float,
    delta: float,
) -> int | None:
    """Return how many more labels pass some threshold, should the shares stay as they are."""
    needed = inf
    for threshold in order:
        kept, errors = _counts(scores, right, threshold)
        if kept:
            trials = fewest_trials(errors / kept, risk=alpha, delta=delta)
            needed = min(needed, trials * len(scores) / kept - len(scores))
    return max(1, ceil(needed)) if isfinite(needed) else None


def _controlled(
    scores: Floats, right: NDArray[np.bool_], *, alpha: float
) -> _Found | NotCertifiable:
    """Return the laxest threshold of conformal risk control."""
    allowed = floor(alpha * (len(scores) + 1) + 1e-12) - 1
    if allowed < 0:
        return NotCertifiable(
            f"{len(scores)} labels cannot speak of {100 * alpha:.3g} %",
            labels_needed=ceil(1.0 / alpha) - 1 - len(scores),
            alpha_possible=ceil(1.0 / (len(scores) + 1) / _GRID) * _GRID,
        )
    wrong = np.sort(scores[~right])[::-1]
    threshold = 0.0 if len(wrong) <= allowed else nextafter(float(wrong[allowed]), inf)
    if not (scores >= threshold).any():
        return NotCertifiable("the surest answers are wrong; nothing would be kept")
    return threshold, scores, right


def _digest(scores: Floats, right: NDArray[np.bool_]) -> str:
    lines = (f"{score!r} {int(good)}" for score, good in zip(scores.tolist(), right, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
