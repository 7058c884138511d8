"""The frozen values that pass between the steps: requests, signals, verdicts, results.

Plain data, no behaviour beyond small conversions, no I/O. Money is integer micro-dollars
(``*_microusd``), time is seconds (``*_s``) or milliseconds (``*_ms``), confidence is a calibrated
probability of being right in 0..1 or ``None`` where no calibration applies.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias, Union

from edge.errors import InputError

Json: TypeAlias = Union[bool, int, float, str, list["Json"], dict[str, "Json"], None]


class Route(StrEnum):
    """Where an answer came from."""

    CACHE = "cache"
    LOCAL = "local"
    CLOUD = "cloud"
    DEFERRED = "deferred"
    ABSTAINED = "abstained"


class Reason(StrEnum):
    """Why a task went the way it went; a Result carries one or more."""

    CONFIDENT = "confident"
    LOW_CONFIDENCE = "low_confidence"
    UNCALIBRATED = "uncalibrated"
    INVALID_OUTPUT = "invalid_output"
    NO_LOCAL_MODEL = "no_local_model"
    LOCAL_MODEL_FAILED = "local_model_failed"
    INPUT_TRUNCATED = "input_truncated"
    PRIVACY_NEVER = "privacy_never"
    REDACTION_UNAVAILABLE = "redaction_unavailable"
    OFFLINE = "offline"
    NO_POOL = "no_pool"
    BUDGET_EXCEEDED = "budget_exceeded"
    CIRCUIT_OPEN = "circuit_open"
    CLOUD_FAILED = "cloud_failed"
    CLOUD_REJECTED = "cloud_rejected"
    CLOUD_TIMEOUT = "cloud_timeout"
    CALL_LIMIT = "call_limit"
    QUEUED = "queued"
    ESCALATED = "escalated"


class Kind(StrEnum):
    """What a task produces."""

    CLASSIFY = "classify"
    EXTRACT = "extract"
    GENERATE = "generate"
    EMBED = "embed"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call."""

    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn from a row of logits.

    The order is fixed: logit penalties over the last ``penalty_last_n`` tokens (repetition, then
    frequency and presence), then top-k, top-p and min-p on the penalised row, then temperature,
    then the draw. ``temperature=0`` takes the best token and ignores all after the penalties.

    Attributes:
        temperature: >= 0; 0 is greedy.
        top_k: keep the k best tokens; 0 keeps all.
        top_p: keep the smallest set of best tokens whose mass is at least this; 1 keeps all.
        min_p: keep tokens at least this share of the best one's probability; 0 keeps all.
        repetition_penalty: > 0; positive logits are divided by it, negative ones multiplied
            (Keskar et al. 2019, arXiv:1909.05858); 1 is off.
        frequency_penalty: subtracted once per earlier occurrence.
        presence_penalty: subtracted once where the token occurred at all.
        penalty_last_n: how many of the latest tokens count; 0 turns the penalties off.
        seed: 0..2**64-1; the same seed, row and history give the same token everywhere.

    Raises:
        InputError: a value is outside its range.

    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        ranges: tuple[tuple[str, bool, str], ...] = (
            ("temperature", 0.0 <= self.temperature < math.inf, "a finite number >= 0"),
            ("top_k", self.top_k >= 0, "an integer >= 0"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            ("repetition_penalty", 0.0 < self.repetition_penalty < math.inf, "above 0"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "finite"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "finite"),
            ("penalty_last_n", self.penalty_last_n >= 0, "an integer >= 0"),
            ("seed", 0 <= self.seed < 2**64, "between 0 and 2**64 - 1"),
        )
        for name, holds, wanted in ranges:
            if not holds:
                value = getattr(self, name)
                raise InputError(f"Sampling parameter {name} is {value!r} but must be {wanted}.")


@dataclass(frozen=True, slots=True)
class TokenStats:
    """What the sampler read off the unmasked row for one token (natural logarithms).

    Attributes:
        token: the vocabulary id that was chosen.
        logprob: log-probability of ``token`` under the unmasked, untempered row.
        entropy: entropy of that row in nats.
        margin: logit of the best token minus that of the second best, >= 0.

    """

    token: int
    logprob: float
    entropy: float
    margin: float


@dataclass(frozen=True, slots=True)
class Draft:
    """What a local model proposes, before anything judges it.

    Attributes:
        value: a label, a JSON object, a text, or a list of floats.
        signals: named numbers the confidence is computed from; see ``edge.confidence``.
        model: name of the model that answered.
        digest: sha256 of its weights (and head), the key of a calibration.
        device: for example ``cpu``.
        confidence: calibrated probability of being right where the model carries a calibration.
        text: the answer as generated, before parsing; empty for heads and encoders.
        truncated: the input was cut to the task's limit.
        problem: why the draft cannot be a valid answer, or ``None``.

    """

    value: Json
    model: str
    digest: str
    device: str
    usage: Usage = Usage()
    signals: dict[str, float] = field(default_factory=dict)
    confidence: float | None = None
    text: str = ""
    truncated: bool = False
    problem: str | None = None

    def with_confidence(self, confidence: float | None) -> Draft:
        """Return the same draft with a calibrated confidence."""
        return dataclasses.replace(self, confidence=confidence)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What judging a draft came to."""

    valid: bool
    confidence: float | None
    reasons: tuple[Reason, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One answered, deferred or withheld task.

    Attributes:
        value: the answer; for a deferred task the provisional local answer, or ``None``.
        confidence: calibrated probability of being right in 0..1, or ``None``.
        certified: whether a risk certificate covers this answer.
        provisional: whether a better answer is still to come from the queue.
        cost_microusd: money spent on this task in millionths of a dollar.
        reasons: why it went this way, most decisive first.
        task_id: key under which a deferred task waits in the queue, else ``None``.

    """

    value: Json
    confidence: float | None
    certified: bool
    route: Route
    provisional: bool
    model: str | None
    device: str | None
    cost_microusd: int
    latency_ms: float
    tokens_in: int
    tokens_out: int
    trace_id: str
    reasons: tuple[Reason, ...]
    task: str = ""
    task_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        plain = dataclasses.asdict(self)
        plain["route"] = self.route.value
        plain["reasons"] = [reason.value for reason in self.reasons]
        return plain
