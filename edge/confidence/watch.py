"""The watch over answers kept on the device: audits, drift, and the threshold in force.

Three tests run at once, each valid at every moment (Ville's inequality), so that looking after each
task costs nothing: audited answers against the promised risk, and two label-free ones of whether
similarity and confidence still look like the calibration's. An alarm of any of them takes the next
stricter certified threshold; only a new calibration leads back.

Promises: over one epoch (10,000 tasks by default) a false alarm comes with probability at most
``false_alarm``, 5 %. Does not know what a task is, asks nothing, keeps nothing: every step takes a
state and returns one. Chance comes in as tickets, which a trace id fixes, so a replay is the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Self, get_args

import numpy as np

from edge.confidence.betting import RISKS, Bets, Drift, audit_factor, count, no_bets, number
from edge.confidence.certificate import Contract
from edge.errors import ConfigError, StoreError

# How the allowed false alarms are shared out between audits, similarity and confidence.
_SHARES = {"audits": 0.4, "similarity": 0.3, "confidence": 0.3}
_SIMILARITY = {"low": -1.0, "high": 1.0}
_CONFIDENCE = {"low": 0.0, "high": 1.0}
# Corrections below this are too few to warn of.
_FEW = 5


def ticket(seed: str, trace_id: str, purpose: str) -> float:
    """Return a number in [0, 1), uniform over trace ids, and the same for the same words."""
    text = f"{seed}\0{trace_id}\0{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()[:6], "big") / 2**48


@dataclass(frozen=True, slots=True)
class Audit:
    """Whether a kept answer is to be checked, and with what probability it was to be."""

    chosen: bool
    propensity: float


@dataclass(frozen=True, slots=True)
class Auditor:
    """Picks kept answers to be checked.

    Attributes:
        seed: of this device; another one picks other tasks.
        rate: probability of a check, above 0.
        near_rate: the same within ``band`` above the threshold, where errors are.
        band: width of that zone in confidence; 0 for none.

    """

    seed: str
    rate: float = 0.02
    near_rate: float = 0.02
    band: float = 0.0

    def __post_init__(self) -> None:
        if not (0.0 < self.rate <= 1.0 and 0.0 < self.near_rate <= 1.0):
            raise ConfigError(
                f"The audit rates {self.rate:g} and {self.near_rate:g} are not in 0..1.",
                hint="Set them above 0 and at most 1; 0.02 is usual.",
            )

    def pick(self, trace_id: str, margin: float = math.inf) -> Audit:
        """Decide on one kept answer; ``margin`` is its confidence minus the threshold."""
        propensity = self.near_rate if margin < self.band else self.rate
        return Audit(ticket(self.seed, trace_id, "audit") < propensity, propensity)


class Cause(StrEnum):
    """Which test raised an alarm."""

    AUDITS = "audits"
    SIMILARITY = "similarity"
    CONFIDENCE = "confidence"


@dataclass(frozen=True, slots=True)
class Alarm:
    """A test says that the traffic no longer keeps the promise.

    Attributes:
        cause: the test.
        evidence: its wealth; so many to one against nothing having changed.
        before, after: the thresholds; ``after`` is ``None`` where nothing is kept any more.

    """

    cause: Cause
    evidence: float
    before: float
    after: float | None

    def __str__(self) -> str:
        what = {
            Cause.AUDITS: "audited answers are wrong more often than promised",
            Cause.SIMILARITY: "inputs are less like the calibration's than before",
            Cause.CONFIDENCE: "answers are less sure than before",
        }[self.cause]
        then = "nothing is kept" if self.after is None else f"kept from {self.after:g} up"
        return f"{what} ({self.evidence:.0f} to 1); {then} instead of from {self.before:g}"


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """What is promised and how it is watched.

    Attributes:
        alpha: the promised risk. Where audits compare with answers that are wrong with probability
            eta themselves, certify and watch alpha - eta.
        ladder: certified thresholds, rising; the first is in force at the start.
        rate: the usual propensity of an audit, above 0; 1 audits everything.
        false_alarm: probability of any false alarm within an epoch.
        horizon: tasks of an epoch.
        contract: of what alpha is a share: of kept answers, or (``undetected_failures``) of all
            tasks, of which those not kept count as no failure.

    """

    alpha: float
    ladder: tuple[float, ...]
    rate: float = 0.02
    false_alarm: float = 0.05
    horizon: int = 10_000
    contract: Contract = "kept_risk"

    def __post_init__(self) -> None:
        shares = (self.alpha, self.false_alarm)
        if not (all(0.0 < share < 1.0 for share in shares) and 0.0 < self.rate <= 1.0):
            raise ConfigError(
                f"A watch needs alpha and false_alarm between 0 and 1, not {shares}, and a rate "
                f"above 0 and at most 1, not {self.rate}.",
                hint="Set alpha 0.05, rate 0.02, false_alarm 0.05.",
            )
        if self.horizon < 1 or self.contract not in get_args(Contract):
            raise ConfigError(
                f"A watch needs a horizon of 1 or more, not {self.horizon}, and a contract, not "
                f"{self.contract!r}.",
                hint=f"Set horizon 10000 and one of the contracts {get_args(Contract)}.",
            )
        finite = all(math.isfinite(each) for each in self.ladder)
        if not (self.ladder and finite and list(self.ladder) == sorted(set(self.ladder))):
            raise ConfigError(
                f"The ladder {self.ladder} of a watch does not rise from a first threshold.",
                hint="List certified thresholds from the laxest to the strictest, each once.",
            )


@dataclass(frozen=True, slots=True)
class Watch:
    """The state of the watch; plain values that survive a restart.

    ``seen`` takes every task, ``passed`` each whose answer is not kept, ``kept`` each kept answer
    that is not audited, ``audited`` each outcome of an audit, in any order. Lost outcomes make the
    test less sharp but never false, as long as they are not lost because of what they would have
    been. Outcomes held back and taken all at once are bets in the wrong place: those of up to a
    tenth of the horizon do no harm, those of a quarter raise false alarms, so leave them out.

    A user's correction is no outcome: users correct what is wrong and pass over what is right, so
    it would count towards an alarm without ever counting against. It only raises ``warned``. Where
    the corrected answer was also picked for an audit, the audit's outcome is wrong, as for any.

    Attributes:
        rung: index of the threshold in force; ``len(ladder)`` where nothing is kept.
        answers: since the last step, of what the promise is a share: kept answers, or all tasks.
        corrections: by users, since the last step.

    """

    plan: WatchPlan
    audits: Bets
    similarity: Drift
    confidence: Drift
    rung: int = 0
    answers: int = 0
    corrections: int = 0

    @classmethod
    def start(
        cls, plan: WatchPlan, similarities: Sequence[float], *, confidences: Sequence[float]
    ) -> Self:
        """Begin after a calibration, with the similarities (-1..1) and confidences it saw."""
        return cls(
            plan=plan,
            audits=no_bets(RISKS),
            similarity=Drift.start(similarities, **_SIMILARITY),
            confidence=Drift.start(confidences, **_CONFIDENCE),
        )

    @property
    def threshold(self) -> float | None:
        """The least confidence that is kept; ``None`` where nothing is."""
        return self.plan.ladder[self.rung] if self.rung < len(self.plan.ladder) else None

    @property
    def warned(self) -> bool:
        """Whether users alone already correct more answers than are promised to be wrong."""
        return self.corrections >= _FEW and self.corrections > self.plan.alpha * self.answers

    def seen(
        self, similarity: float, confidence: float, *, tickets: tuple[float, float]
    ) -> tuple[Self, Alarm | None]:
        """Take one task's similarity and confidence, kept or not; two tickets break ties."""
        if self.threshold is None:
            return self, None
        horizon = self.plan.horizon
        after = replace(
            self,
            similarity=self.similarity.after(similarity, tickets[0], horizon=horizon),
            confidence=self.confidence.after(confidence, tickets[1], horizon=horizon),
        )
        return after._judged()  # noqa: SLF001

    def passed(self) -> Self:
        """Take one task whose answer was not kept; a promise about kept answers ignores it."""
        if self.plan.contract == "kept_risk" or self.threshold is None:
            return self
        # It is known, without an audit, to be no undetected failure.
        return replace(self._bet(0.0), answers=self.answers + 1)

    def kept(self) -> Self:
        """Take one kept answer that was not picked for an audit."""
        return replace(self._bet(0.0), answers=self.answers + 1)

    def audited(self, *, wrong: bool, propensity: float, rung: int) -> tuple[Self, Alarm | None]:
        """Take the outcome of an audit of an answer kept at ``rung``; another rung's is left out.

        Raises:
            ConfigError: the propensity is not in (0, 1].

        """
        if not 0.0 < propensity <= 1.0:
            raise ConfigError(
                f"An audit's propensity {propensity:g} is not above 0 and at most 1.",
                hint="Pass on the propensity that the auditor gave.",
            )
        if rung != self.rung or self.threshold is None:
            return self, None
        after = self._bet(wrong / propensity)
        return replace(after, answers=self.answers + 1)._judged()  # noqa: SLF001

    def corrected(self) -> Self:
        """Take a user's correction of a kept answer."""
        return replace(self, corrections=self.corrections + 1)

    def _bet(self, loss: float) -> Self:
        factor = audit_factor(np.array(loss), alpha=self.plan.alpha, rate=self.plan.rate)
        return replace(self, audits=self.audits.after(factor, self.plan.horizon))

    def _judged(self) -> tuple[Self, Alarm | None]:
        totals = {
            Cause.AUDITS: self.audits.total,
            Cause.SIMILARITY: self.similarity.bets.total,
            Cause.CONFIDENCE: self.confidence.bets.total,
        }
        for cause, total in totals.items():
            if total >= bar(cause, self.plan.false_alarm):
                return self._stepped(cause, total)
        return self, None

    def _stepped(self, cause: Cause, evidence: float) -> tuple[Self, Alarm]:
        after = replace(self, audits=no_bets(RISKS), rung=self.rung + 1, answers=0, corrections=0)
        if cause is not Cause.AUDITS:
            # One change is one alarm: from here on only a further change counts as drift, and
            # audits say whether the stricter threshold is strict enough.
            after = replace(
                after, similarity=self.similarity.rebased(), confidence=self.confidence.rebased()
            )
        before = self.plan.ladder[self.rung]
        return after, Alarm(cause, evidence, before=before, after=after.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Return the state that ``to_dict`` wrote, also once through JSON.

        Raises:
            StoreError: it is none.

        """
        try:
            return cls._read(body)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise StoreError(
                f"The saved state of a watch cannot be used: {error!r}.",
                hint="Once it is removed, the watch starts anew from the calibration.",
            ) from error

    @classmethod
    def _read(cls, body: Mapping[str, Any]) -> Self:
        plan = _plan(body["plan"])
        horizon = plan.horizon
        rung = count(body["rung"])
        if rung > len(plan.ladder):
            raise ValueError(f"rung {rung} is above a ladder of {len(plan.ladder)}")
        return cls(
            plan=plan,
            audits=Bets.from_dict(body["audits"], kinds=len(RISKS), horizon=horizon),
            similarity=Drift.from_dict(body["similarity"], horizon=horizon, **_SIMILARITY),
            confidence=Drift.from_dict(body["confidence"], horizon=horizon, **_CONFIDENCE),
            rung=rung,
            answers=count(body["answers"]),
            corrections=count(body["corrections"]),
        )


def bar(cause: Cause, false_alarm: float) -> float:
    """Return the wealth at which a test alarms, so that all three keep to ``false_alarm``."""
    return 1.0 / (_SHARES[cause] * false_alarm)


def _plan(body: Mapping[str, Any]) -> WatchPlan:
    ladder = tuple(number(each) for each in body["ladder"])
    return WatchPlan(**{**body, "ladder": ladder, "horizon": count(body["horizon"])})
