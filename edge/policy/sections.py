"""Sections of packs and policies as data: budgets of a task, rules, caches, tools, models.

Every model is frozen and refuses unknown keys; ``checked`` names what is wrong by its place.
"""

from __future__ import annotations

from typing import Any, TypeVar

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
    """What one task may use.

    Attributes:
        max_model_calls: local and cloud calls together.
        max_input_tokens: of the prompt.
        max_output_tokens: of the answer.
        max_tool_ms: milliseconds for one call of a tool; no limit where ``None``.
        p95_latency_slo_ms: what 19 of 20 answers should take at most; a wish that is measured
            against, never a deadline.

    """

    max_model_calls: int = Field(default=2, ge=1, le=16)
    max_input_tokens: int = Field(default=256, ge=1)
    max_output_tokens: int = Field(default=128, ge=1)
    max_tool_ms: int | None = Field(default=None, ge=1)
    p95_latency_slo_ms: int | None = Field(default=None, ge=1)


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
