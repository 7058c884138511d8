"""Promises over a calibration: checks that the labels may speak, then certifies.

A promise needs labels that the calibration was not fitted on. Rows are named, a calibration
remembers the names it was fitted on, and ``held_back`` splits by name before anything is fitted,
so that a row falls on the same side every time. Does not know whether coming traffic is like the
labelled answers; that is the fine print of every promise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from edge.confidence.calibration import Calibration
from edge.confidence.certificate import Certificate, Contract, NotCertifiable, certify_scores
from edge.confidence.fusion import row_digest
from edge.confidence.key import CalibrationKey
from edge.errors import InputError

_SIDES = 1 << 64


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer whose outcome is known.

    Attributes:
        row: names the input: ``edge.confidence.fusion.row_name`` of its text, or a digest of that.
        signals: what was read while answering.
        correct: whether the answer was right.

    """

    row: str
    signals: Mapping[str, float]
    correct: bool


def labelled(
    row: str, signals: Mapping[str, float], *, found: str, gold: str, labels: Collection[str]
) -> Labelled:
    """Return an answer over labels, compared with its true label.

    Raises:
        InputError: the true label is not one of the task's.

    """
    if gold not in labels:
        raise InputError(
            f"The label {gold!r} of {row[:40]!r} is not one of the task's {len(labels)} labels."
        )
    return Labelled(row, signals, found == gold)


def held_back(
    answers: Sequence[Labelled], *, share: float = 0.5
) -> tuple[list[Labelled], list[Labelled]]:
    """Return (to fit on, to certify on): about ``share`` of the rows, by their digests, in order.

    Repeated rows fall on one side; there only the first of them is taken.
    """
    sides: tuple[list[Labelled], list[Labelled]] = ([], [])
    met: set[str] = set()
    for each in answers:
        digest = row_digest(each.row)
        if digest not in met:
            met.add(digest)
            sides[int(digest, 16) < share * _SIDES].append(each)
    return sides


def certify(
    calibration: Calibration,
    answers: Sequence[Labelled],
    *,
    key: CalibrationKey,
    alpha: float,
    delta: float = 0.1,
    contract: Contract = "kept_risk",
    fitted_elsewhere: bool = False,
) -> Certificate | NotCertifiable:
    """Return a promise over the answers that a calibration keeps, or why there is none.

    Args:
        calibration: the map whose confidences are compared with the threshold. Its table of risks
            orders the tests.
        answers: held back from every fit.
        key: what the answers were produced with.
        alpha: the bound asked for, within 0..1.
        delta: accepted probability that the labels mislead; not for ``undetected_failures``.
        contract: which promise; see ``edge.confidence.certificate``.
        fitted_elsewhere: the caller's word that none of the answers was used to fit the
            calibration; needed where it does not remember its rows.

    Raises:
        InputError: the calibration is another model's, task's or prompt's; it was fitted on some
            of these rows, or does not remember its rows; a row occurs twice; a signal is missing
            or not finite; alpha or delta is outside 0..1.

    """
    if key != calibration.key:
        raise InputError(
            f"The calibration is not of the model, task and prompt of these answers to {key.task}.",
            hint="Fit a calibration for this model and prompt.",
        )
    digests = [row_digest(each.row) for each in answers]
    _check_apart(calibration, digests, fitted_elsewhere=fitted_elsewhere)
    ordered = [each for _, each in sorted(zip(digests, answers, strict=True), key=lambda p: p[0])]
    confidence = [calibration.confidence(key, each.signals) for each in ordered]
    known = [value for value in confidence if value is not None]
    if len(known) != len(confidence):
        raise InputError(
            f"{len(confidence) - len(known)} of {len(confidence)} answers lack a finite signal of "
            f"{', '.join(calibration.features)}."
        )
    return certify_scores(
        known,
        [each.correct for each in ordered],
        key=key,
        alpha=alpha,
        delta=delta,
        contract=contract,
        table=calibration.risks,
    )


def _check_apart(
    calibration: Calibration, digests: Sequence[str], *, fitted_elsewhere: bool
) -> None:
    if len(set(digests)) != len(digests):
        raise InputError(
            f"{len(digests) - len(set(digests))} of {len(digests)} rows are repeated; a repeated "
            "row is not another observation.",
            hint="Drop repeated inputs, as held_back does.",
        )
    if calibration.seen is None and not fitted_elsewhere:
        raise InputError(
            "The calibration does not remember its rows, so they may be among these answers.",
            hint="Fit it with rows=, or pass fitted_elsewhere=True where that is certain.",
        )
    both = len(set(digests).intersection(calibration.seen or ()))
    if both:
        raise InputError(
            f"The calibration was fitted on {both} of these {len(digests)} rows.",
            hint="Certify on rows that held_back kept apart.",
        )


def with_certificate(calibration: Calibration, certificate: Certificate) -> Calibration:
    """Return the calibration with a promise in place of one of the same contract and alpha.

    Raises:
        InputError: the promise is over another model, task or prompt.

    """
    if certificate.key != calibration.key:
        raise InputError("A certificate cannot join the calibration of another key.")
    kept = tuple(
        each
        for each in calibration.certificates
        if (each.contract, each.alpha) != (certificate.contract, certificate.alpha)
    )
    return replace(calibration, certificates=(*kept, certificate))
