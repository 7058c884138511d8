"""Sections of packs and policies as data: budgets of a task, rules, caches, tools, models.

Every model is frozen and refuses unknown keys; ``checked`` names what is wrong by its place.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema

from edge.errors import ConfigError, InputError
from edge.policy.written import read_tree

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$"
"""What names of tasks and models look like."""

_YEAR_S = 31_536_000
_M = TypeVar("_M", bound=BaseModel)


class Model(BaseModel):
    """What all sections have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def checked(
    model: type[_M], values: dict[str, Any], what: str, *, under: tuple[str, ...] = ()
) -> _M:
    """Return the model of plain values.

    Args:
        model: what they must be.
        values: keys and values.
        what: names their origin in an error.
        under: place of the values in it.

    Raises:
        ConfigError: they do not fit; place and reason are named.

    """
    try:
        return model.model_validate(values)
    except InputError as error:
        raise ConfigError(f"{what} is wrong: {error.message}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in (*under, *first["loc"])) or "the top level"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key"
        more = error.error_count() - 1
        tail = f" ({more} more)" if more else ""
        raise ConfigError(f"{what} is wrong at {place}: {message}{tail}.") from error


class TaskBudget(Model):
    """What one user action may use; see ``edge.allowance``.

    Attributes:
        max_model_calls: local calls and attempts at a pool together.
        max_input_tokens: of one local call's prompt.
        max_output_tokens: of one call's answer.
        max_total_input_tokens: of all calls together; no limit of its own where ``None``.
        max_total_output_tokens: of all calls together, as above.
        max_tool_ms: milliseconds for all tools of one answer together; no limit where ``None``.
        deadline_ms: from admission to the end of the last call; no limit where ``None``.
        p95_latency_slo_ms: what 19 of 20 answers should take at most; where more take longer the
            task goes down its ``degrade`` steps.

    """

    max_model_calls: int = Field(default=2, ge=1, le=16)
    max_input_tokens: int = Field(default=256, ge=1)
    max_output_tokens: int = Field(default=128, ge=1)
    max_total_input_tokens: int | None = Field(default=None, ge=1)
    max_total_output_tokens: int | None = Field(default=None, ge=1)
    max_tool_ms: int | None = Field(default=None, ge=1)
    deadline_ms: int | None = Field(default=None, ge=1)
    p95_latency_slo_ms: int | None = Field(default=None, ge=1)


class DegradeStep(Model):
    """One step down; exactly one of the fields.

    Attributes:
        smaller_model: task of the same kind whose local model answers instead.
        shorter_context: so many tokens of the input are read.
        cached: an answer to the same text that is at most so many seconds old is given again.
        best_effort: nobody else is asked; what the device has is given as provisional.

    """

    smaller_model: str | None = None
    shorter_context: int | None = Field(default=None, ge=1)
    cached: int | None = Field(default=None, ge=1, le=10 * _YEAR_S)
    best_effort: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> DegradeStep:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"a step needs exactly one of {names}")
        return self


class Degrade(Model):
    """What a task does where it misses its latency objective, or fails; see ``edge.degrade``.

    Attributes:
        steps: one below the other; each keeps those above it in force.
        window: answers looked at. More than 1 in 20 of them late or failed is one step down.
        window_s: an older answer is not looked at.
        recover_s: after so many healthy seconds the step above is tried.
        probes: answers in a row that must be in time there, to step up.

    """

    steps: tuple[DegradeStep, ...] = ()
    window: int = Field(default=40, ge=1, le=10_000)
    window_s: float = Field(default=300.0, gt=0, le=_YEAR_S, allow_inf_nan=False)
    recover_s: float = Field(default=60.0, gt=0, le=_YEAR_S, allow_inf_nan=False)
    probes: int = Field(default=3, ge=1, le=1_000)

    def check(self, *, embeds: bool, withholds: bool, kept_s: int | None, most_tokens: int) -> None:
        """Make sure that each step can do something for a task, and contradicts none of its keys.

        Args:
            embeds: its answers are vectors.
            withholds: it keeps back what it is not sure of.
            kept_s: how long an answer is given again without a step; ``None`` for never.
            most_tokens: that it reads without a step.

        Raises:
            ValueError: one does not.

        """
        for number, step in enumerate(self.steps, 1):
            last = number == len(self.steps)
            at = f"degrade.steps: step {number}"
            if step.smaller_model is not None and embeds:
                raise ValueError(f"{at}: vectors of two models cannot be compared")
            if step.shorter_context is not None and step.shorter_context >= most_tokens:
                raise ValueError(
                    f"{at}: shorter_context is {step.shorter_context}, which is not below the "
                    f"{most_tokens} tokens read before"
                )
            if step.cached is not None and kept_s is None:
                raise ValueError(f"{at}: cached needs caching.exact_cache.enabled")
            if step.cached is not None and kept_s is not None and step.cached <= kept_s:
                raise ValueError(
                    f"{at}: cached is {step.cached}, which is not above the {kept_s} seconds that "
                    "an answer is given again before"
                )
            if step.best_effort and withholds:
                raise ValueError(
                    f"{at}: best_effort gives what below: abstain or uncertified: withhold keeps "
                    "back"
                )
            if step.best_effort and not last:
                raise ValueError(f"{at}: best_effort must be the last step")
            most_tokens = step.shorter_context or most_tokens
            kept_s = step.cached or kept_s


class Deferred(Model):
    """How a task waits where nobody can be asked at once.

    Attributes:
        priority: 0 to 9; the higher, the sooner its turn comes. See ``edge.store.queued``.
        expires_s: an answer that comes later than this is dropped; never where ``None``.

    """

    priority: int = Field(default=5, ge=0, le=9)
    expires_s: float | None = Field(default=None, gt=0, le=10 * _YEAR_S, allow_inf_nan=False)


class RuleCondition(Model):
    """A condition of a rule: its text, and its tree where a compiled policy brings one.

    Attributes:
        text: as it is written; canonical where there is a tree.
        tree: what ``edge.policy.written.write_tree`` gives; it says the same as the text.

    """

    text: str
    tree: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"text": value}
        if not isinstance(value, dict | RuleCondition):
            raise ValueError(f"must be text in quotes, not {type(value).__name__}")  # noqa: TRY004
        return value

    @model_validator(mode="after")
    def _same(self) -> RuleCondition:
        if self.tree is None:
            return self
        try:
            told = str(read_tree(self.tree))
        except ConfigError as error:
            raise ValueError(error.message) from error
        if told != self.text:
            raise ValueError("its text and its tree say different things")
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the schema of what a person writes: the text alone."""
        return {"type": "string"}


class EscalateIf(Model):
    """A rule of the policy: ask the cloud where a condition is known to hold.

    Attributes:
        condition: over ``confidence``, the signals and what the pack declares in ``context``; see
            ``edge.policy.conditions``.
        model: name of the pool to ask; the task's own where ``None``.

    """

    condition: RuleCondition
    model: str | None = None


class ExactCache(Model):
    """Answers kept for the same input again.

    Attributes:
        ttl_seconds: how long an answer is kept.

    """

    enabled: bool = False
    ttl_seconds: int = Field(default=86_400, ge=1, le=10 * _YEAR_S)


class SemanticCache(ExactCache):
    """Answers kept for inputs that mean nearly the same.

    Attributes:
        similarity_threshold: cosine from which on two inputs count as the same.

    """

    similarity_threshold: float = Field(default=0.92, gt=0.0, le=1.0)


class Caching(Model):
    """Which answers are kept, and how long."""

    exact_cache: ExactCache = ExactCache()
    semantic_cache: SemanticCache = SemanticCache()


class GrammarSpec(Model):
    """The form of a generated text; exactly one of the fields.

    Attributes:
        regex: a regular expression that matches the whole text.
        lark: a context-free grammar in llguidance's variant of Lark.
        choices: the texts to choose from.

    """

    regex: str | None = None
    lark: str | None = None
    choices: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one(self) -> GrammarSpec:
        if sum(given is not None for given in (self.regex, self.lark, self.choices)) != 1:
            raise ValueError("needs exactly one of regex, lark and choices")
        return self


class Memory(Model):
    """How much memory the loaded models may take together, and how long they stay.

    Attributes:
        budget_mb: megabytes (10^6 bytes) for all of them; no limit where ``None``.
        keep_alive_s: a model leaves so long after its last use; never where ``None``.
        pin: names of models that stay once they are loaded.

    """

    budget_mb: float | None = Field(default=None, gt=0, le=1e9, allow_inf_nan=False)
    keep_alive_s: float | None = Field(default=None, ge=0, le=31_536_000, allow_inf_nan=False)
    pin: tuple[str, ...] = ()

    @property
    def budget_bytes(self) -> int | None:
        """The budget in bytes."""
        return None if self.budget_mb is None else int(self.budget_mb * 1e6)


class ToolRule(Model):
    """Whether a tool may be called."""

    allow: bool = True


class LocalModel(Model):
    """A model beside the shipped ones; exactly one of the fields.

    Attributes:
        folder: holds its ``manifest.json``.
        digest: sha256 of the ``manifest.json`` of a model that the fleet's agent fetches; see
            ``edge.config.assigned_folder``.

    """

    folder: str | None = None
    digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _one(self) -> LocalModel:
        if (self.folder is None) == (self.digest is None):
            raise ValueError("needs exactly one of folder and digest")
        return self
