"""Tasks, pools and packs as data: the pydantic models behind a pack file.

Every model is frozen and refuses unknown keys. Nothing here reads a file; ``edge.pack`` does.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from edge.policy.sections import (
    NAME,
    Caching,
    Deferred,
    Degrade,
    EscalateIf,
    GrammarSpec,
    LocalModel,
    Memory,
    Model,
    RuleCondition,
    TaskBudget,
    ToolRule,
)
from edge.types import Kind, SamplingParams

AllowCloud = Literal["never", "redacted", "raw"]
Below = Literal["escalate", "defer", "abstain"]
Period = Literal["day", "week", "month", "total"]

_FIELD = re.compile(r"\{(text|text_spaced)\}")
_DROPPED = re.compile(r'["\\{}\x00-\x1f\x7f]')
_MARK = re.compile(r"([^\w\s])")
_MICRO = 1_000_000


class Routing(Model):
    """When a local answer is kept and what happens otherwise.

    Attributes:
        keep_above: an answer is kept from this calibrated confidence on.
        risk: share of the kept answers that may be wrong. The threshold is then that of the
            calibration's certificate, and ``keep_above`` counts where there is none.
        contract: what is promised of that share; see ``edge.confidence.certificate``.
        below: what becomes of the others.
        keep_uncalibrated: keep valid answers that have no confidence.
        uncertified: with ``risk``, what an answer that no certificate covers is given back as
            when money or network is gone: itself, marked, or nothing.
        pool: whom to ask.
        then: name of a task whose local model is asked before the cloud is; its answers are never
            certified.
        escalate_if: rules that send an answer up whatever its confidence.
        value_usd: what a right answer is worth over a wrong one. With it an answer also goes up
            where that is worth more than it costs at the budget's current price.
        cloud_accuracy: probability that the pool is right, for ``value_usd``.
        premium_share: of this task's calls, at most so many go up because they are worth it.
        audit_rate: share of kept answers checked by the cloud; 0.02 with ``risk``, else 0.

    """

    keep_above: float = Field(default=0.7, ge=0.0, le=1.0)
    risk: float | None = Field(default=None, gt=0.0, lt=1.0)
    contract: Literal["kept_risk", "undetected_failures"] = "kept_risk"
    below: Below = "escalate"
    keep_uncalibrated: bool = True
    uncertified: Literal["return", "withhold"] = "return"
    pool: str = "default"
    then: str | None = None
    escalate_if: tuple[EscalateIf, ...] = ()
    value_usd: Decimal | None = Field(default=None, ge=0, max_digits=15, decimal_places=6)
    cloud_accuracy: float = Field(default=0.97, gt=0.0, le=1.0)
    premium_share: float = Field(default=1.0, ge=0.0, le=1.0)
    audit_rate: float | None = Field(default=None, ge=0.0, le=1.0)

    @property
    def rules(self) -> list[tuple[RuleCondition, str | None]]:
        """``escalate_if`` as pairs of a condition and whom to ask."""
        return [(rule.condition, rule.model) for rule in self.escalate_if]

    @property
    def may_replace(self) -> bool:
        """Whether a local answer may be withheld, or another tier's take its place."""
        return self.then is not None or self.withholds

    @property
    def withholds(self) -> bool:
        """Whether an answer that nothing promises is kept back."""
        return self.risk is not None and self.uncertified == "withhold"

    @property
    def audits(self) -> float:
        """The share of kept answers to check."""
        if self.audit_rate is not None:
            return self.audit_rate
        return 0.02 if self.risk is not None else 0.0


class PackRouting(Routing):
    """The routing of all tasks.

    Attributes:
        default_model: local model of the tasks that do not say which; ``model: null`` says none.

    """

    default_model: str | None = None


class Privacy(Model):
    """Whether the text of a task may leave the device; ``redacted`` needs a redactor."""

    allow_cloud: AllowCloud = "never"


class Budget(Model):
    """The hard cap on cloud spending in one period.

    Attributes:
        interactive_share: share of the cap that draining the queue leaves for calls as they come.

    """

    cap_usd: Decimal = Field(ge=0, max_digits=15, decimal_places=6)
    period: Period = "month"
    interactive_share: float = Field(default=0.0, ge=0.0, le=1.0)

    @property
    def cap_microusd(self) -> int:
        """The cap in millionths of a dollar."""
        return int(self.cap_usd * _MICRO)


class Price(Model):
    """Dollars per million tokens, as providers quote them."""

    input_usd_per_mtok: Decimal = Field(ge=0, max_digits=15, decimal_places=6)
    output_usd_per_mtok: Decimal = Field(ge=0, max_digits=15, decimal_places=6)


class PoolSpec(Model):
    """One OpenAI-compatible endpoint; ``base_url`` ends before ``/chat/completions``.

    Attributes:
        gateway: ``base_url`` is a gateway of the fleet, which counts money under leases of the hub.
            The price is then at least that of the dearest server behind it.

    """

    base_url: str = Field(pattern=r"^https?://[^\s?#]+$")
    model: str = Field(min_length=1)
    api_key_env: str | None = None
    price: Price
    timeout_s: float = Field(default=20.0, gt=0, le=600)
    retries: Literal[0, 1] = 1
    breaker_failures: int = Field(default=5, ge=1)
    breaker_cooldown_s: float = Field(default=30.0, gt=0)
    gateway: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of prompt text; only the template's own (``trusted``) may hold special tokens."""

    text: str
    trusted: bool


def spaced(text: str) -> str:
    """Return ``text`` in lower case with a space before every word and every mark.

    Quotes, backslashes, braces and control characters become spaces, so the result can stand in a
    JSON string as it is. A word then has the same tokens wherever it stands, which makes copying
    easy for a small model; grounding gives the original characters back.
    """
    words = _MARK.sub(r" \1 ", _DROPPED.sub(" ", text.lower())).split()
    return "".join(f" {word}" for word in words)


class Prompt(Model):
    """A versioned template with the fields ``{text}`` and ``{text_spaced}`` (see ``spaced``).

    The text that fills a field is never parsed for special tokens, so an input that spells one
    out stays plain text.
    """

    version: int = Field(ge=1)
    template: str = Field(min_length=1)
    add_bos: bool = True

    @field_validator("template")
    @classmethod
    def _known_fields(cls, template: str) -> str:
        if not _FIELD.search(template):
            raise ValueError("must hold {text} or {text_spaced}")
        return template

    @property
    def digest(self) -> str:
        """sha256 over version and wording: part of a calibration's key."""
        body = f"{self.version}\0{self.add_bos}\0{self.template}"
        return hashlib.sha256(body.encode()).hexdigest()

    def render(self, text: str) -> list[Segment]:
        """Return the prompt as segments, the filled-in ones untrusted."""
        values = {"text": text, "text_spaced": spaced(text)}
        parts = _FIELD.split(self.template)
        return [
            Segment(values[part], trusted=False) if index % 2 else Segment(part, trusted=True)
            for index, part in enumerate(parts)
            if part
        ]


class TaskInput(Model):
    """Limits on the text of one call."""

    max_chars: int = Field(default=20_000, ge=1)


class TaskSpec(Model):
    """One kind of work, named in a pack.

    Attributes:
        kind: what it produces.
        model: the local model's name; ``None`` sends every call up or into the queue.
        prompt: name of an entry in the pack's ``prompts`` (extract, generate, and classify with
            ``labels``).
        labels: what a decoder chooses from (classify); without them the model is a head.
        label_form: how a label is written after the prompt, with ``{label}`` in it; a model whose
            words begin with a space may need one before it.
        output_schema: JSON Schema of the answer (extract).
        constrain: the local model can only generate what fits ``output_schema`` (extract).
        grammar: the form of what the local model generates (generate).
        cloud_prompt: instruction for the pool; a plain one is made from the schema without it.
        stop: strings that end a generation.
        ground: extracted strings must occur in the input and take its exact characters.
        degrade: what it does where it misses its latency objective, or fails.
        deferred: how it waits where nobody can be asked at once.
        samples: example inputs for the demo.

    """

    kind: Kind
    description: str = ""
    model: str | None = None
    prompt: str | None = None
    labels: tuple[str, ...] = ()
    label_form: str = "{label}"
    output_schema: dict[str, Any] | None = None
    constrain: bool = False
    grammar: GrammarSpec | None = None
    cloud_prompt: str = ""
    stop: tuple[str, ...] = ()
    ground: bool = False
    input: TaskInput = TaskInput()
    sampling: SamplingParams = SamplingParams()
    budget: TaskBudget = TaskBudget()
    routing: Routing = Routing()
    privacy: Privacy = Privacy()
    caching: Caching = Caching()
    degrade: Degrade = Degrade()
    deferred: Deferred = Deferred()
    samples: tuple[str, ...] = ()

    @property
    def decodes(self) -> bool:
        """Whether a local model for it is a decoder."""
        return self.kind in {Kind.EXTRACT, Kind.GENERATE} or bool(self.labels)

    def asking(self, pool: str) -> TaskSpec:
        """Return the same task with another pool to ask."""
        routing = self.routing.model_copy(update={"pool": pool})
        return self.model_copy(update={"routing": routing})

    @model_validator(mode="after")
    def _whole(self) -> TaskSpec:
        needs_prompt = self.decodes and self.model is not None
        if needs_prompt and self.prompt is None:
            what = f"kind {self.kind}" + (" with labels" if self.labels else "")
            raise ValueError(f"a task of {what} and a local model needs a prompt")
        if self.kind is Kind.EXTRACT and self.output_schema is None:
            raise ValueError("a task of kind extract needs an output_schema")
        if self.constrain and self.kind is not Kind.EXTRACT:
            raise ValueError("only a task of kind extract can be constrained by its output_schema")
        if self.labels and self.kind is not Kind.CLASSIFY:
            raise ValueError("only a task of kind classify can have labels")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ValueError("labels must be at least two, all different")
        if "{label}" not in self.label_form:
            raise ValueError("label_form must hold {label}")
        if self.grammar is not None and self.kind is not Kind.GENERATE:
            raise ValueError("only a task of kind generate can have a grammar")
        exact = self.caching.exact_cache
        self.degrade.check(
            embeds=self.kind is Kind.EMBED,
            withholds=self.routing.below == "abstain" or self.routing.withholds,
            kept_s=exact.ttl_seconds if exact.enabled else None,
            most_tokens=self.budget.max_input_tokens,
        )
        return self


class Pack(Model):
    """A named set of tasks with everything they refer to.

    ``context`` declares what an app may tell of a call besides its text, for conditions.
    ``calibration`` names the file of a task's calibration, relative to the pack. ``task_budgets``,
    ``routing``, ``privacy`` and ``caching`` stand for all tasks; ``edge.pack`` has laid them under
    each task's own keys.
    """

    name: str = Field(pattern=NAME)
    version: int = Field(ge=1)
    description: str = ""
    budget: Budget | None = None
    context: dict[str, Literal["number", "text", "flag"]] = Field(default={})
    calibration: dict[str, str] = Field(default={})
    memory: Memory = Memory()
    models: dict[str, LocalModel] = Field(default={})
    pools: dict[str, PoolSpec] = Field(default={})
    prompts: dict[str, Prompt] = Field(default={})
    tools: dict[str, ToolRule] = Field(default={})
    task_budgets: TaskBudget = TaskBudget()
    routing: PackRouting = PackRouting()
    privacy: Privacy = Privacy()
    caching: Caching = Caching()
    tasks: dict[str, TaskSpec]

    @field_validator("tasks")
    @classmethod
    def _names(cls, tasks: dict[str, TaskSpec]) -> dict[str, TaskSpec]:
        for name in tasks:
            if not re.match(NAME, name):
                raise ValueError(f"task name {name!r} must match {NAME}")
        return tasks

    @model_validator(mode="after")
    def _references(self) -> Pack:
        strange = self.calibration.keys() - self.tasks.keys()
        if strange:
            raise ValueError(f"calibration names the unknown task {min(strange)!r}")
        for name, task in self.tasks.items():
            if task.prompt is not None and task.prompt not in self.prompts:
                raise ValueError(f"task {name} names the unknown prompt {task.prompt!r}")
            self._check_next(name, task)
            self._check_smaller(name, task)
            for rule in task.routing.escalate_if:
                if rule.model is not None and rule.model not in self.pools:
                    raise ValueError(f"task {name} escalates to the unknown pool {rule.model!r}")
        return self

    def _check_smaller(self, name: str, task: TaskSpec) -> None:
        above = {None, task.model}
        for step in task.degrade.steps:
            if step.smaller_model is None:
                continue
            other = self.tasks.get(step.smaller_model)
            if other is None or other.kind is not task.kind or other.model in above:
                raise ValueError(
                    f"task {name} degrades to {step.smaller_model!r}, which is no task of kind "
                    f"{task.kind} with another local model"
                )
            above.add(other.model)

    def _check_next(self, name: str, task: TaskSpec) -> None:
        then = task.routing.then
        if then is None:
            return
        after = self.tasks.get(then)
        if after is None or after.kind is not task.kind or after.model is None or then == name:
            raise ValueError(
                f"task {name} goes on with {then!r}, which is no other task of kind {task.kind} "
                "with a local model"
            )
        if after.routing.then is not None:
            raise ValueError(f"task {name} goes on with {then!r}, which goes on itself")
        risk, its = task.routing.risk, after.routing.risk
        if risk is not None and (its is None or its > risk):
            raise ValueError(
                f"task {name} has a risk of {risk:g} and goes on with {then!r}, which needs one "
                "that is not above it"
            )
