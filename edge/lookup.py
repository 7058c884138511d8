"""The step before the plan: an answer that was given before is given again, at no cost.

The same text gets its answer again with all that was known of it. A similar one gets it without a
confidence, since that was another text's. Only what would be answered the same way again is kept:
see ``docs/caching.md``. A head is asked before similar texts are: it costs what looking costs, and
knows more. A cache that cannot be read or written is no cache; it costs no answer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.admit import Call, check_label
from edge.alike import marks
from edge.considering import Considered
from edge.errors import ModelError, StoreError
from edge.keeping import ENCODER, Keys, habit_of, is_final, is_head
from edge.local import LocalModels, LocalTask
from edge.oversight import Oversight
from edge.policy.sections import SemanticCache
from edge.record import about_input, answer_digest, degraded_detail
from edge.route import denied
from edge.store.cache import Cache, Kept
from edge.store.traces import Traces
from edge.task import PoolSpec
from edge.types import Json, Reason, Result, Route


@dataclass(frozen=True, slots=True)
class Looked:
    """What looking came to.

    Attributes:
        result: the answer that was found, its trace written; ``None`` where there is none.
        key: digest of what decides the answer besides the text; empty where nothing is kept.
        input_sha256: of the text.
        vector: of the text, where it was needed already.

    """

    result: Result | None = None
    key: str = ""
    input_sha256: str = ""
    vector: NDArray[np.float32] | None = None


NOT_LOOKED = Looked()


class Lookup:
    """The cache as one standing uses it. Safe to call from several threads.

    Args:
        cache: of the state folder.
        tasks: by name.
        models: that answer them, and whose encoder says what is similar.
        oversight: what is promised of kept answers now.
        traces: where a hit leaves its row.
        pools: who else answers.
        runs: whether a task's local model may be asked.
        stopped: tasks that the fleet stopped.
        tools: names of tools that may not be called.
        may_embed: the encoder is not stopped.
        revision: of the policy in force, 0 for none.
        clock: seconds.

    """

    def __init__(
        self,
        cache: Cache,
        tasks: Mapping[str, LocalTask],
        models: LocalModels,
        *,
        oversight: Oversight,
        traces: Traces,
        pools: Mapping[str, PoolSpec],
        runs: Callable[[str], bool],
        stopped: Collection[str] = (),
        tools: Mapping[str, Reason] | None = None,
        may_embed: bool = True,
        revision: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._tasks = tasks
        self._models = models
        self._oversight = oversight
        self._traces = traces
        self._keys = Keys(tasks, models, pools)
        self._runs = runs
        self._tools = tools or {}
        self._revision = revision
        self._clock = clock
        habits = {name: habit_of(task.spec, may_embed=may_embed) for name, task in tasks.items()}
        self._habits = {
            name: habit for name, habit in habits.items() if habit and name not in stopped
        }

    def find(self, call: Call) -> Looked:
        """Look for an answer before anything runs.

        Raises:
            ConfigError: a calibration cannot be read.
            StoreError: the trace of a hit cannot be written.

        """
        habit = self._habits.get(call.name)
        if habit is None:
            return NOT_LOOKED
        digest = hashlib.sha256(call.text.encode()).hexdigest()
        looked = Looked(key=self._keys.of(call), input_sha256=digest)
        if habit.exact_s is not None:
            kept = self._same(call, looked, max(habit.exact_s, call.stance.stale_s or 0))
            if kept is not None:
                return replace(looked, result=self._given(call, kept, None))
        return looked if habit.head_first else self._similar(call, looked)

    def instead(self, call: Call, looked: Looked) -> Looked:
        """Look for the answer to a similar text where a head's own does not stand.

        Raises:
            StoreError: the trace of a hit cannot be written.

        """
        habit = self._habits.get(call.name)
        if habit is None or not looked.key or not habit.head_first:
            return looked
        return self._similar(call, looked)

    def remember(self, call: Call, looked: Looked, found: Considered, result: Result) -> None:
        """Keep an answer that would be given again; one that cannot be kept costs nothing."""
        habit = self._habits.get(call.name)
        if habit is None or not looked.key or not is_final(result) or call.stance.step:
            return  # what a degrade step made is not what the task says
        tier = None if result.route is Route.CLOUD else found.tier
        vector = None
        if habit.similar is not None and self._is_dear(tier):
            vector = self._vector(call.text) if looked.vector is None else looked.vector
        if habit.exact_s is None and vector is None:
            return
        kept = Kept(
            task=call.name,
            key=looked.key,
            input_sha256=looked.input_sha256,
            value=result.value,
            confidence=result.confidence,
            interval=result.interval,
            certified=result.certified,
            route=result.route.value,
            tier=tier,
            model=result.model,
            device=result.device,
            trace_id=result.trace_id,
            policy=self._revision,
            vector=vector,
            marks=0 if vector is None else marks(call.text),
        )
        with suppress(StoreError):
            self._cache.put(kept, at=self._clock(), ttl_s=habit.longest_s)

    def corrected(self, trace_id: str, right: Json) -> str | None:
        """Forget a kept answer that somebody corrects.

        Returns:
            the trace of the device's answer that the word is about; ``None`` where it is about an
            answer of the cloud, or about one that was given to a similar text.

        Raises:
            InputError: the right answer is no label of the task, or no JSON.
            StoreError: the state folder cannot be used.

        """
        trace = self._traces.get(trace_id)
        if trace is None:
            return trace_id
        detail, digest = trace["detail"], answer_digest(right)
        task = self._tasks.get(detail.get("tier") or trace["task"])
        if task is not None:
            check_label(task.name, right, self._models.labels(task))
        again = trace["route"] == Route.CACHE
        origin = str(detail["from"]) if again else trace_id
        kept = self._cache.of_trace(origin)
        wrong = kept is not None and answer_digest(kept.value) != digest
        if wrong:
            self._cache.forget_trace(origin)
        if again:
            device = detail["tier"] and "similarity" not in detail and self._traces.get(origin)
            return origin if device else None
        return None if wrong and "answer_sha256" not in detail else trace_id

    def _same(self, call: Call, looked: Looked, ttl_s: int) -> Kept | None:
        now = self._clock()
        with suppress(StoreError):
            kept = self._cache.same(looked.key, looked.input_sha256, since=now - ttl_s, until=now)
            if kept is not None and self._may_give(call, kept):
                self._cache.used(kept.seq, now)
                return kept
        return None

    def _similar(self, call: Call, looked: Looked) -> Looked:
        policy, found = self._habits[call.name].similar, None
        with suppress(StoreError):
            if policy is None or not self._cache.has_vectors(looked.key):
                return looked
            looked = replace(looked, vector=self._vector(call.text))
            if looked.vector is not None:
                found = self._nearest(call, looked.key, looked.vector, policy)
        return looked if found is None else replace(looked, result=self._given(call, *found))

    def _nearest(
        self, call: Call, key: str, vector: NDArray[np.float32], policy: SemanticCache
    ) -> tuple[Kept, float] | None:
        now = self._clock()
        found = self._cache.similar(
            key,
            vector,
            marks=marks(call.text),
            threshold=policy.similarity_threshold,
            since=now - policy.ttl_seconds,
            until=now,
        )
        if found is None or not self._may_give(call, found[0]):
            return None
        self._cache.used(found[0].seq, now)
        return found

    def _may_give(self, call: Call, kept: Kept) -> bool:
        """Whether a kept answer may still be given: nothing of it stopped, its promise in force."""
        if denied(call.spec, kept.value, self._tools):
            return False
        if kept.tier is None:
            return True
        if not self._runs(kept.tier):
            return False
        threshold = self._oversight.terms(self._tasks[kept.tier], call.context).threshold
        return threshold is None or (kept.confidence or 0.0) >= threshold

    def _given(self, call: Call, kept: Kept, similarity: float | None) -> Result:
        """Return the result of a hit, its trace written."""
        same = similarity is None
        result = Result(
            value=kept.value,
            confidence=kept.confidence if same else None,
            certified=kept.certified and same,
            route=Route.CACHE,
            provisional=False,
            model=kept.model,
            device=kept.device,
            cost_microusd=0,
            latency_ms=(time.perf_counter() - call.started) * 1e3,
            tokens_in=0,
            tokens_out=0,
            trace_id=call.trace_id,
            reasons=self._reasons(call, kept, same=same),
            task=call.name,
            interval=kept.interval if same else None,
        )
        detail: dict[str, Any] = {"from": kept.trace_id, "policy": kept.policy, "tier": kept.tier}
        detail |= degraded_detail(call)
        if not same:
            detail["similarity"] = similarity
        self._traces.append(
            about_input(call)
            | {
                "at": time.time(),
                "route": result.route.value,
                "model": result.model,
                "device": result.device,
                "confidence": result.confidence,
                "latency_ms": result.latency_ms,
                "reasons": [reason.value for reason in result.reasons],
                "detail": detail,
                "policy": self._revision,
            }
        )
        return result

    def _reasons(self, call: Call, kept: Kept, *, same: bool) -> tuple[Reason, ...]:
        """Return why: an answer past its time is given on a degrade step alone."""
        if not same:
            return (Reason.SIMILAR, *call.stance.reasons[:1])
        usual_s = self._habits[call.name].exact_s or 0
        is_old = kept.made_at <= self._clock() - usual_s
        stale = (Reason.STALE,) if is_old and call.stance.stale_s else ()
        return (Reason.CACHED, *stale, *call.stance.reasons[:1])

    def _is_dear(self, tier: str | None) -> bool:
        """Whether an answer cost more than looking for a similar one does."""
        return tier is None or not is_head(self._tasks[tier].spec)

    def _vector(self, text: str) -> NDArray[np.float32] | None:
        """Return the vector of a text; ``None`` where it does not speak for the whole text."""
        with suppress(ModelError), self._models.encoder(ENCODER) as encoder:
            if encoder.count_tokens(text) <= encoder.info.context:
                (vector,) = encoder.embed([text])
                return np.asarray(vector, np.float32)
        return None
