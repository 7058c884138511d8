"""Which answers are worth keeping, how long, and under which key they are found again.

A key is a digest of everything besides the text that decides an answer: the task and its next tier
as pack and policy have them, prompts, the digests of models and calibrations, the pools, the
context, and the version of this package. What changes one of them finds none of the old answers.
Reads no text and keeps nothing.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edge.admit import Call
from edge.confidence.calibration import Calibration
from edge.local import LocalModels, LocalTask
from edge.policy.sections import SemanticCache
from edge.task import PoolSpec, TaskSpec
from edge.types import Kind, Reason, Result, Route

ENCODER = "minilm-l6-int8"
"""Whose vectors say which texts are similar."""

_KEPT = frozenset({Kind.CLASSIFY, Kind.EXTRACT, Kind.GENERATE})
# An extraction copies from its text: the answer to a similar text names what this one does not.
_SIMILAR = frozenset({Kind.CLASSIFY, Kind.GENERATE})
_CHANGES_NO_ANSWER = {"caching", "deferred", "degrade", "samples", "description"}


@dataclass(frozen=True, slots=True)
class Habit:
    """What is kept of a task's answers.

    Attributes:
        exact_s: for how many seconds the same text gets its answer again; ``None`` for never.
        stale_s: for how many seconds at most on a degrade step.
        similar: when similar texts get it; ``None`` for never.
        head_first: the task's own model is a head. It costs what looking for a similar text costs
            and knows more, so it is asked first.

    """

    exact_s: int | None
    stale_s: int
    similar: SemanticCache | None
    head_first: bool

    @property
    def longest_s(self) -> int:
        """How long an answer can be of use, seconds."""
        similar_s = self.similar.ttl_seconds if self.similar else 0
        return max(self.exact_s or 0, self.stale_s, similar_s)


def habit_of(spec: TaskSpec, *, may_embed: bool = True) -> Habit | None:
    """Return what is kept of a task's answers; ``None`` for nothing.

    A task that draws its words is asked for new ones. What a ``risk`` promises of an answer holds
    for no other text.

    Args:
        spec: the task.
        may_embed: similar texts can be told.

    """
    exact, similar = spec.caching.exact_cache, spec.caching.semantic_cache
    draws = spec.kind is not Kind.CLASSIFY and not math.isclose(spec.sampling.temperature, 0.0)
    if draws or spec.kind not in _KEPT:
        return None
    alike = similar.enabled and spec.kind in _SIMILAR and spec.routing.risk is None and may_embed
    if not exact.enabled and not alike:
        return None
    return Habit(
        exact_s=exact.ttl_seconds if exact.enabled else None,
        stale_s=max((step.cached or 0 for step in spec.degrade.steps), default=0),
        similar=similar if alike else None,
        head_first=is_head(spec),
    )


def similar_in(tasks: Mapping[str, LocalTask]) -> bool:
    """Whether an answer to any of these tasks may be given to similar texts."""
    habits = (habit_of(task.spec) for task in tasks.values())
    return any(habit is not None and habit.similar is not None for habit in habits)


def is_head(spec: TaskSpec) -> bool:
    """Whether a task's local model is a head."""
    return spec.kind is Kind.CLASSIFY and spec.model is not None and not spec.labels


def is_final(result: Result) -> bool:
    """Whether a result would be the same again, and no better one is to come."""
    if result.value is None or result.provisional:
        return False
    if result.route is Route.LOCAL:
        return Reason.INPUT_TRUNCATED not in result.reasons
    return result.route is Route.CLOUD


class Keys:
    """The keys of one standing. Safe to call from several threads.

    Args:
        tasks: by name.
        models: that answer them.
        pools: who else answers.

    """

    def __init__(
        self,
        tasks: Mapping[str, LocalTask],
        models: LocalModels,
        pools: Mapping[str, PoolSpec],
    ) -> None:
        self._tasks = tasks
        self._models = models
        self._pools = {name: (pool.base_url, pool.model) for name, pool in pools.items()}
        self._fitted: dict[str, tuple[Calibration, str]] = {}
        self._keys: dict[str, tuple[tuple[str, ...], str]] = {}

    def of(self, call: Call) -> str:
        """Return a call's key.

        Raises:
            ConfigError: a calibration cannot be read.
            ModelError: a calibration that a model brings has another digest than it should.

        """
        tiers = [call.local]
        if call.spec.routing.then is not None:
            tiers.append(self._tasks[call.spec.routing.then])
        fitted = tuple(self._calibration(tier) for tier in tiers)
        before = self._keys.get(call.name)
        if before is None or before[0] != fitted:
            said = [self._said(tier) for tier in tiers]
            seen = self._versions(ENCODER) if call.spec.caching.semantic_cache.enabled else None
            key = _digest([_edition(), call.name, fitted, said, self._pools, seen])
            self._keys[call.name] = before = (fitted, key)
        return _digest([before[1], dict(call.context)]) if call.context else before[1]

    def _calibration(self, tier: LocalTask) -> str:
        """Return the digest of a tier's calibration, which may change while a policy stays."""
        if tier.spec.model is None:
            return ""
        found = self._models.calibrations.of(tier.spec.model, tier.name)
        if found is None:
            return ""
        before = self._fitted.get(tier.name)
        if before is None or before[0] is not found:
            self._fitted[tier.name] = before = (found, _digest([asdict(found)]))
        return before[1]

    def _said(self, tier: LocalTask) -> list[Any]:
        """Return what a tier was told, and the digests of its models."""
        spec = tier.spec.model_dump(mode="json", exclude=_CHANGES_NO_ANSWER)
        prompt = tier.prompt.digest if tier.prompt else ""
        return [spec, prompt, self._versions(tier.spec.model) if tier.spec.model else []]

    def _versions(self, name: str) -> list[tuple[str, ...]]:
        store = self._models.loader.store
        encoder = store.manifest(name).encoder
        return [store.version(each) for each in (name, *([encoder.name] if encoder else []))]


@functools.cache
def _edition() -> str:
    """Return the version of this package: another one may answer otherwise."""
    return importlib.metadata.version("edge-runtime")


def _digest(body: list[Any]) -> str:
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
