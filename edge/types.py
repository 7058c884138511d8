"""The frozen values that pass between the steps: requests, signals, verdicts, results.

Plain data, no behaviour beyond small conversions, no I/O. Money is integer micro-dollars
(``*_microusd``), time is seconds (``*_s``) or milliseconds (``*_ms``), confidence is a calibrated
probability of being right in 0..1 or ``None`` where no calibration applies.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias, Union

from edge.errors import InputError

_MAX_WINDOW, _TOKENS = 2**24, 2**31

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

    CACHED = "cached"
    SIMILAR = "similar"
    CONFIDENT = "confident"
    CERTIFIED = "certified"
    LOW_CONFIDENCE = "low_confidence"
    UNCERTIFIED = "uncertified"
    WITHHELD = "withheld"
    CONDITION = "condition"
    WORTH_ASKING = "worth_asking"
    NEXT_TIER = "next_tier"
    AUDITED = "audited"
    WATCH_ALARM = "watch_alarm"
    UNCALIBRATED = "uncalibrated"
    INVALID_OUTPUT = "invalid_output"
    NO_LOCAL_MODEL = "no_local_model"
    LOCAL_MODEL_FAILED = "local_model_failed"
    INPUT_TRUNCATED = "input_truncated"
    PRIVACY_NEVER = "privacy_never"
    REDACTION_UNAVAILABLE = "redaction_unavailable"
    OFFLINE = "offline"
    NO_POOL = "no_pool"
    POOL_MISCONFIGURED = "pool_misconfigured"
    BUDGET_EXCEEDED = "budget_exceeded"
    CIRCUIT_OPEN = "circuit_open"
    CLOUD_FAILED = "cloud_failed"
    CLOUD_REJECTED = "cloud_rejected"
    CLOUD_TIMEOUT = "cloud_timeout"
    NONE_FITS = "none_fits"
    CALL_LIMIT = "call_limit"
    TOKEN_LIMIT = "token_limit"  # noqa: S105 - a count of tokens, no secret
    DEADLINE = "deadline"
    DEGRADED = "degraded"
    SMALLER_MODEL = "smaller_model"
    SHORTER_CONTEXT = "shorter_context"
    STALE = "stale"
    BEST_EFFORT = "best_effort"
    TOOL_TIMEOUT = "tool_timeout"
    TOOL_FAILED = "tool_failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    LATE = "late"
    MAYBE_BILLED = "maybe_billed"
    QUEUED = "queued"
    QUEUE_FULL = "queue_full"
    ESCALATED = "escalated"
    STOPPED = "stopped"
    TOOL_DENIED = "tool_denied"
    POLICY_EXPIRED = "policy_expired"


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

    The order is fixed. Bias, penalties (repetition, then frequency and presence) and DRY change
    single logits; the allowed-token mask follows. With ``temperature=0`` the best token is taken.
    Otherwise top-n-sigma, top-k, typical, top-p, min-p and XTC cut in turn, each at temperature 1
    over what the one before left; then the temperature, then the draw. With ``mirostat_tau > 0``
    Mirostat 2.0 at the temperature replaces all the cuts.

    Attributes:
        temperature: >= 0; 0 is greedy.
        top_k: keep the k best tokens; 0 keeps all.
        top_p: keep the smallest set of best tokens whose mass is at least this; 1 keeps all.
        min_p: keep tokens at least this share of the best one's probability; 0 keeps all
            (Nguyen et al. 2024, arXiv:2407.01082).
        typical_p: keep the most typical tokens up to this mass; 1 keeps all
            (Meister et al. 2022, arXiv:2202.00666).
        top_n_sigma: keep logits within so many standard deviations of the unchanged row below the
            best; 0 keeps all (Tang et al. 2024, arXiv:2411.07641).
        xtc_probability: chance of leaving out all but the last of the tokens above
            ``xtc_threshold``, 0..1; 0 is off.
        xtc_threshold: share of the probability, 0..1; above 0.5 turns XTC off.
        dynamic_temperature_range: the temperature moves by up to this with the entropy; 0 is off.
        dynamic_temperature_exponent: shape of that move, above 0.
        mirostat_tau: the surprise in bits that Mirostat 2.0 aims at; 0 is off
            (Basu et al. 2020, arXiv:2007.14966).
        mirostat_eta: its learning rate.
        repetition_penalty: > 0; positive logits are divided by it, negative ones multiplied
            (Keskar et al. 2019, arXiv:1909.05858); 1 is off.
        frequency_penalty: subtracted once per earlier occurrence.
        presence_penalty: subtracted once where the token occurred at all.
        penalty_last_n: how many of the latest tokens count, at most 2**24; 0 turns the penalties
            off.
        dry_multiplier: strength of DRY, which lowers tokens that go on with a repetition; 0 is off.
        dry_base: its growth with each repeated token, above 1.
        dry_allowed_length: repetitions shorter than this are free, 1..2**24.
        dry_last_n: how many of the latest tokens DRY looks at, at most 2**24.
        dry_breakers: tokens across which nothing counts as a repetition.
        logit_bias: (token, what is added to its logit) pairs; -inf forbids a token. Tokens are
            0..2**31-1.
        seed: 0..2**64-1; the same seed, row and history give the same token everywhere.

    Raises:
        InputError: a value is outside its range.

    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynamic_temperature_range: float = 0.0
    dynamic_temperature_exponent: float = 1.0
    mirostat_tau: float = 0.0
    mirostat_eta: float = 0.1
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = 1024
    dry_breakers: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (holds, wanted) in _RANGES.items():
            value = getattr(self, name)
            if not _fits(holds, value):
                raise InputError(f"Sampling parameter {name} is {value!r} but must be {wanted}.")


def _fits(holds: Callable[[Any], bool], value: object) -> bool:
    try:
        return holds(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _between(low: float, high: float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: low <= value <= high), f"between {low:g} and {high:g}"


_FINITE: tuple[Callable[[Any], bool], str] = (math.isfinite, "finite")
_NOT_NEGATIVE: tuple[Callable[[Any], bool], str] = (
    lambda value: 0 <= value < math.inf,
    "a finite number >= 0",
)
_COUNT: tuple[Callable[[Any], bool], str] = (lambda value: value >= 0, "an integer >= 0")
_WINDOW: tuple[Callable[[Any], bool], str] = (
    lambda value: 0 <= value <= _MAX_WINDOW,
    "an integer between 0 and 2**24",
)
_ABOVE_0: tuple[Callable[[Any], bool], str] = (
    lambda value: 0 < value < math.inf,
    "above 0 and finite",
)
_SHARE: tuple[Callable[[Any], bool], str] = (
    lambda value: 0 < value <= 1,
    "above 0 and at most 1",
)
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": _NOT_NEGATIVE,
    "top_k": _COUNT,
    "top_p": _SHARE,
    "min_p": _between(0, 1),
    "typical_p": _SHARE,
    "top_n_sigma": _NOT_NEGATIVE,
    "xtc_probability": _between(0, 1),
    "xtc_threshold": _between(0, 1),
    "dynamic_temperature_range": _NOT_NEGATIVE,
    "dynamic_temperature_exponent": _ABOVE_0,
    "mirostat_tau": _NOT_NEGATIVE,
    "mirostat_eta": _NOT_NEGATIVE,
    "repetition_penalty": _ABOVE_0,
    "frequency_penalty": _FINITE,
    "presence_penalty": _FINITE,
    "penalty_last_n": _WINDOW,
    "dry_multiplier": _NOT_NEGATIVE,
    "dry_base": (lambda value: 1 < value < math.inf, "above 1 and finite"),
    "dry_allowed_length": (
        lambda value: 1 <= value <= _MAX_WINDOW,
        "an integer between 1 and 2**24",
    ),
    "dry_last_n": _WINDOW,
    "logit_bias": (
        lambda pairs: all(0 <= token < _TOKENS and bias < math.inf for token, bias in pairs),
        "pairs of a token in 0..2**31-1 and a number below infinity",
    ),
    "seed": (lambda value: 0 <= value < 2**64, "between 0 and 2**64 - 1"),
}


class TokenStats(NamedTuple):
    """What the sampler read off the unmasked row for one token (natural logarithms).

    Everything but ``token`` is NaN, 1 or 0 where a sampler was made without statistics.

    Attributes:
        token: the vocabulary id that was chosen.
        logprob: log-probability of ``token`` under the unmasked, untempered row.
        entropy: entropy of that row in nats.
        margin: logit of the best token minus that of the second best, >= 0.
        log_sum_exp: logarithm of the sum of exponentials of the row.
        collision: sum of the squared probabilities, 0..1.
        allowed_mass: probability of the allowed tokens before the mask, 0..1; 1 without a mask.
        rank: how many tokens of the row have a larger logit than ``token``.

    """

    token: int
    logprob: float
    entropy: float
    margin: float
    log_sum_exp: float = math.nan
    collision: float = math.nan
    allowed_mass: float = 1.0
    rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A typed decision: how probable each label is, without a generated token.

    Attributes:
        value: the most probable label.
        distribution: every label's probability; they sum to 1. Not calibrated: see
            ``Result.confidence`` for that.
        log_mass: log-probability of all labels together, for a decoder; how far the model means to
            answer with one of them at all. 0 for a head.
        model: name of the model that answered.
        digest: sha256 of its weights (and head).
        device: for example ``cpu``.
        tokens_in: tokens of the prompt; those that several questions share count for each.

    """

    value: str
    distribution: dict[str, float]
    log_mass: float
    model: str
    digest: str
    device: str
    tokens_in: int


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
        interval: within which that probability lies (Venn-Abers), where the calibration says so.
        text: the answer as generated, before parsing; empty for heads and encoders.
        truncated: the input was cut to the task's limit.
        problem: why the draft cannot be a valid answer, or ``None``.
        candidates: labels of a classification that are still likely, best first; empty where
            nothing is known of that.
        fields: signals of the single fields of an extraction, by name.
        doubtful: names of the fields of an extraction that are not trusted.

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
    interval: tuple[float, float] | None = None
    candidates: tuple[str, ...] = ()
    fields: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    doubtful: tuple[str, ...] = ()

    def with_confidence(
        self, confidence: float | None, *, interval: tuple[float, float] | None = None
    ) -> Draft:
        """Return the same draft with a calibrated confidence."""
        return dataclasses.replace(self, confidence=confidence, interval=interval)


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
        value: the answer; for a deferred task the local one where it is valid, or ``None``.
        confidence: calibrated probability of being right in 0..1, or ``None``.
        certified: whether a risk certificate covers this answer.
        provisional: whether a better answer is still to come from the queue, or this one is only
            the best effort of a degraded task.
        cost_microusd: money spent on this task in millionths of a dollar.
        reasons: why it went this way, most decisive first.
        task_id: key under which a deferred task waits in the queue, else ``None``.
        interval: within which the confidence lies (Venn-Abers); ``None`` where it is not known.

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
    interval: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        plain = dataclasses.asdict(self)
        plain["route"] = self.route.value
        plain["reasons"] = [reason.value for reason in self.reasons]
        return plain


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed text; the last one is empty and carries the result."""

    text: str
    result: Result | None = None
