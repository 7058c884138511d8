"""Calibrated confidence: the artefact that turns signals into the probability of being right.

A calibration is valid for one key only: model digest, task, and prompt digest. Asked for another
key it gives no number. Evaluating uses plain floats in a fixed order: the same bits on replay and
on every thread count. Fitting is in ``edge.confidence.fusion``, the promises over a fitted
calibration in ``edge.confidence.promise``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from edge.confidence.certificate import Certificate, Contract, impossible, is_number
from edge.confidence.isotonic import CELLS, VennAbers, interpolated
from edge.confidence.key import CalibrationKey
from edge.confidence.logistic import log_odds, probability
from edge.confidence.sequence import RiskTable
from edge.errors import ConfigError

__all__ = ["FORMAT", "Calibration", "CalibrationKey", "Confidence", "LastStage", "Stage"]

FORMAT = 2
_PLATT_SHARE = 0.1  # of an isotonic confidence: keeps the order of answers within a step
_UNUSABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
    OverflowError,
)
Stage = Literal["none", "platt", "isotonic"]


@dataclass(frozen=True, slots=True)
class Confidence:
    """The probability that an answer is right.

    Attributes:
        value: the estimate, 0..1, exclusive.
        low, high: the Venn-Abers interval, widened to hold ``value``; 0 and 1 where the
            calibration carries none. It is wide where few labels speak of such answers.

    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LastStage:
    """A monotone map from fused log-odds to a confidence.

    Attributes:
        stage: which map; ``none`` is the logistic function alone.
        slope, offset: of Platt's map over the log-odds.
        knots: (log-odds, probability) of the isotonic map; rising.

    """

    stage: Stage = "none"
    slope: float = 1.0
    offset: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def probability(self, odds: float) -> float:
        """Return the confidence for log-odds, 0..1, exclusive but for rounding."""
        platt = probability(self.slope * odds + self.offset)
        if self.stage != "isotonic":
            return platt
        return (1.0 - _PLATT_SHARE) * interpolated(self.knots, odds) + _PLATT_SHARE * platt


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted map.

    Attributes:
        features: names of the signals, in the order of ``weights``.
        mean, scale: what standardises each signal.
        weights, bias: of the logistic function over standardised signals.
        n: labelled answers it was fitted on.
        ece: expected calibration error by 5-fold cross-fitting, 10 equal-mass bins, 0..1.
        last: what the fused log-odds pass through last.
        interval: the Venn-Abers table; ``None`` in files of the first format.
        risks: kept risks of the rows it was fitted on; they order later tests.
        prior: name or digest of the prior the weights were pulled towards; empty for none.
        prior_labels: how many labels that prior counted as.
        seen: digests of the rows it was fitted on; ``None`` where they were not named.
        certificates: promises made over this very map.
        reference: numbers of answers held back, by name (``similarity``, ``confidence``); what a
            watch compares later answers with.
        format: version of the file, 1 or 2.

    """

    key: CalibrationKey
    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    n: int
    ece: float
    last: LastStage = LastStage()
    interval: VennAbers | None = None
    risks: RiskTable | None = None
    prior: str = ""
    prior_labels: float = 0.0
    seen: tuple[str, ...] | None = None
    certificates: tuple[Certificate, ...] = ()
    reference: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    format: int = FORMAT

    def confidence(self, key: CalibrationKey, signals: Mapping[str, float]) -> float | None:
        """Return the probability of being right; ``None`` for another key or a missing signal."""
        odds = self._odds(key, signals)
        return None if odds is None else self.last.probability(odds)

    def judge(self, key: CalibrationKey, signals: Mapping[str, float]) -> Confidence | None:
        """Return the confidence and its interval.

        ``None`` for another key, and for a signal that is missing or not finite.
        """
        odds = self._odds(key, signals)
        if odds is None:
            return None
        value = self.last.probability(odds)
        if self.interval is None:
            return Confidence(value, 0.0, 1.0)
        low, high = self.interval.interval(odds)
        return Confidence(value, min(low, value), max(high, value))

    def certificate(self, alpha: float, *, contract: Contract = "kept_risk") -> Certificate | None:
        """Return the promise of a contract with the laxest bound within ``alpha``, if any.

        Of equal bounds it is the first. Which one keeps most is not asked: each was tested at its
        own delta, and the best of several tests fails more often than one does.
        """
        within = [
            each
            for each in self.certificates
            if each.contract == contract and each.alpha <= alpha and each.key == self.key
        ]
        return max(within, key=lambda each: each.alpha, default=None)

    def _odds(self, key: CalibrationKey, signals: Mapping[str, float]) -> float | None:
        if key != self.key:
            return None
        row = []
        for name in self.features:
            value = signals.get(name)
            if value is None or not isfinite(value):
                return None
            row.append(float(value))
        return log_odds(row, self.weights, bias=self.bias, mean=self.mean, scale=self.scale)

    def save(self, path: Path) -> None:
        """Write the calibration as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a calibration, of this format or the first.

        Raises:
            ConfigError: the file is missing, is not one, is of a later format, or holds what no
                calibration and no certificate can.

        """
        try:
            body = json.loads(path.read_text("utf-8"))
            missing = _missing(body)
            if missing:
                raise ConfigError(
                    f"The calibration {path} cannot be used: it lacks {', '.join(missing)}.",
                    hint="Fit it again.",
                )
            return _whole(cls(**_values(body)))
        except _UNUSABLE as error:
            raise ConfigError(
                f"The calibration {path} cannot be used: {error}.", hint="Fit it again."
            ) from error


def _missing(body: object) -> list[str]:
    """Return which fields of the first format a JSON value lacks."""
    names = [
        each.name
        for each in fields(Calibration)
        if each.default is MISSING and each.default_factory is MISSING
    ]
    return [name for name in names if name not in body] if isinstance(body, dict) else names


def _values(body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a calibration from its JSON."""
    made = {"format": 1, **body, "key": CalibrationKey(**body["key"])}
    for name in ("features", "mean", "scale", "weights", "seen"):
        if made.get(name) is not None:
            made[name] = tuple(made[name])
    if "last" in body:
        knots = tuple((float(score), float(level)) for score, level in body["last"]["knots"])
        made["last"] = LastStage(**{**body["last"], "knots": knots})
    if body.get("interval") is not None:
        made["interval"] = VennAbers(**{k: tuple(v) for k, v in body["interval"].items()})
    if body.get("risks") is not None:
        made["risks"] = RiskTable(**{k: tuple(v) for k, v in body["risks"].items()})
    made["reference"] = {
        name: tuple(map(float, values)) for name, values in body.get("reference", {}).items()
    }
    made["certificates"] = tuple(
        Certificate(**{**each, "key": CalibrationKey(**each["key"])})
        for each in body.get("certificates", ())
    )
    return made


def _whole(made: Calibration) -> Calibration:
    """Return a calibration that can be evaluated and whose promises can be ones.

    Raises:
        ValueError: lengths, numbers or the format are not possible.
        OverflowError: a whole number is beyond every float.

    """
    if made.format not in {1, FORMAT}:
        raise ValueError(f"its format is {made.format}, not 1 or {FORMAT}")
    if len({len(made.features), len(made.mean), len(made.scale), len(made.weights)}) != 1:
        raise ValueError("features, mean, scale and weights differ in length")
    numbers = [*made.mean, *made.scale, *made.weights, made.bias, made.ece, made.n]
    numbers += [value for values in made.reference.values() for value in values]
    if not all(map(is_number, numbers)) or min(made.scale, default=1.0) <= 0.0:
        raise ValueError("a number is not finite, or a scale is not above 0")
    if made.n < 0 or not 0.0 <= made.ece <= 1.0:
        raise ValueError("a number of labels is below 0, or an error is not within 0..1")
    _check_last(made.last)
    _check_tables(made)
    for each in made.certificates:
        wrong = impossible(each)
        if wrong is not None:
            raise ValueError(f"a certificate has an impossible {wrong}")
    return made


def _check_last(last: LastStage) -> None:
    """Make sure that a last stage gives probabilities, and never turns the order round."""
    if last.stage not in {"none", "platt", "isotonic"}:
        raise ValueError(f"there is no last stage {last.stage!r}")
    knots, levels = list(last.knots), [level for _, level in last.knots]
    numbers = [last.slope, last.offset, *(number for knot in knots for number in knot)]
    if not all(map(is_number, numbers)) or last.slope < 0.0:
        raise ValueError("a number of the last stage is not finite, or its slope is below 0")
    if last.stage == "isotonic" and (not knots or knots != sorted(set(knots))):
        raise ValueError("an isotonic stage needs rising knots")
    if levels != sorted(levels) or not all(0.0 <= level <= 1.0 for level in levels):
        raise ValueError("the levels of the knots do not rise within 0..1")


def _check_tables(made: Calibration) -> None:
    """Make sure that intervals are shares, and that the kept risks are numbers."""
    table, risks = made.interval, made.risks
    if table is not None:
        if not len(table.low) == len(table.high) == CELLS:
            raise ValueError(f"the intervals are not {CELLS}")
        if not all(is_number(end) and 0.0 <= end <= 1.0 for end in (*table.low, *table.high)):
            raise ValueError("an end of an interval is not within 0..1")
    if risks is not None:
        if len({len(risks.threshold), len(risks.kept), len(risks.risk)}) != 1:
            raise ValueError("the columns of the kept risks differ in length")
        if not all(map(is_number, (*risks.threshold, *risks.kept, *risks.risk))):
            raise ValueError("a kept risk is not finite")
