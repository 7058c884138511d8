"""The runtime: the way of one task, step by step.

``Runtime.run`` reads as the list of steps; planning and deciding are pure (``edge.route``), the
local tier is ``edge.local``, money and the pool are ``edge.escalate``. Thread-safe. Opens no socket
when offline.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

from edge.admit import Call, admit, check_text
from edge.backends.onnx_choice import FILE as DEVICE_CHOICES
from edge.config import is_offline, state_folder
from edge.drain import Drained, Draining
from edge.errors import Busy, GenerationError, InputError
from edge.escalate import FINAL, Escalation, Outcome
from edge.judge import judge
from edge.local import LocalModels, LocalTask
from edge.pack import find_pack, limit_memory, load_pack
from edge.roster import all_tasks, check_models, model_store
from edge.route import Action, Circumstances, Decision, Plan, decide, plan
from edge.store.book import Book
from edge.store.traces import Traces
from edge.task import Pack
from edge.types import Choice, Draft, Json, Kind, Reason, Result, Route, Verdict

if TYPE_CHECKING:
    from edge.cloud.pool import Pool

_ROUTES = {Action.KEEP: Route.LOCAL, Action.ABSTAIN: Route.ABSTAINED}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed text; the last one is empty and carries the result."""

    text: str
    result: Result | None = None


class Runtime:
    """Answers the tasks of a pack; made by ``edge.open``."""

    def __init__(
        self,
        pack: Pack,
        state: Path,
        *,
        offline: bool,
        threads: int | None = None,
        open_pool: Callable[[str], Pool] | None = None,
    ) -> None:
        self._pack = pack
        self._state = state
        self._offline = offline
        self._tasks = all_tasks(pack, state)
        store = model_store(pack, state)
        check_models(self._tasks, store)
        self.models = LocalModels(
            store,
            threads=threads,
            memory=pack.memory,
            choices=state / DEVICE_CHOICES,
            snapshots=state / "kv",
        )
        budget = pack.budget
        self.book = Book.open(
            state,
            cap_microusd=budget.cap_microusd if budget else None,
            period=budget.period if budget else "month",
        )
        self.traces = Traces.open(state)
        self._escalation = Escalation(self.book, open_pool=open_pool or self._open_pool)
        self._draining = Draining(
            self.book,
            self._tasks,
            self._escalation,
            labels=self.models.labels,
            circumstances=self._circumstances,
        )

    def run(self, task: str, text: str) -> Result:
        """Answer one text.

        Args:
            task: the name of a task in the pack.
            text: the input.

        Raises:
            ConfigError: there is no such task.
            InputError: the text is empty, too long, or not valid Unicode.
            ModelError: the local model is missing, damaged, or failed and nothing else may answer.
            StoreError: the state folder cannot be written.

        """
        call = admit(self._tasks, task, text)
        the_plan = plan(call.spec, self._circumstances(call))
        draft = self._generate(call) if the_plan.local else None
        return self._finish(call, the_plan, draft)

    def map(self, task: str, texts: Sequence[str]) -> list[Result]:
        """Answer several texts in order; all are admitted before the first is answered.

        Raises:
            InputError: ``texts`` is one text instead of several; else as ``run``.

        """
        if task not in self._tasks:
            admit(self._tasks, task, "")  # says so, even where there is no text to answer
        if isinstance(texts, str | bytes):
            raise InputError(
                "The texts to map are one text, not a list of them.",
                hint="Call run, or pass a list.",
            )
        calls = [admit(self._tasks, task, text) for text in texts]
        return [self.run(call.name, call.text) for call in calls]

    async def arun(self, task: str, text: str) -> Result:
        """Answer one text without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(self.run, task, text)

    def stream(self, task: str, text: str) -> Iterator[Chunk]:
        """Yield a generated text as it comes and, last, a chunk with the result.

        Raises:
            InputError: the task is not of kind generate; else as ``run``.
            GenerationError: the model failed when a part of the text was out already.

        """
        call = admit(self._tasks, task, text)
        if call.spec.kind is not Kind.GENERATE:
            raise InputError(
                f"Task {task} is of kind {call.spec.kind}; only generate can be streamed.",
                hint="Call run instead.",
            )
        the_plan = plan(call.spec, self._circumstances(call))
        draft = None
        for piece in self._pieces(call) if the_plan.local else ():
            if isinstance(piece, Draft):
                draft = piece
            else:
                yield Chunk(piece)
        yield Chunk("", self._finish(call, the_plan, draft))

    @overload
    def decide(self, tasks: str, text: str) -> Choice: ...

    @overload
    def decide(self, tasks: list[str] | tuple[str, ...], text: str) -> list[Choice]: ...

    def decide(self, tasks: str | list[str] | tuple[str, ...], text: str) -> Choice | list[Choice]:
        """Return how probable each label of a classification task is, on the device.

        No token is generated, nothing is escalated, queued or recorded. Several tasks on one
        decoder share one pass over the beginning that their prompts share.

        Args:
            tasks: the name of a task of kind classify, or several names.
            text: the input.

        Raises:
            ConfigError: there is no such task, or it has no local model.
            InputError: a task is of another kind, or the text cannot be answered.
            ModelError: a model cannot be loaded or failed on this input.

        """
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        calls = [admit(self._tasks, name, text) for name in names]
        for call in calls:
            if call.spec.kind is not Kind.CLASSIFY:
                raise InputError(
                    f"Task {call.name} is of kind {call.spec.kind}; only classify can decide.",
                    hint="Call run instead.",
                )
        found = self.models.choose([call.local for call in calls], text)
        return found[0] if isinstance(tasks, str) else found

    def embed(self, texts: Sequence[str], *, model: str = "minilm-l6-int8") -> list[list[float]]:
        """Return one unit vector per text.

        Args:
            texts: what to embed.
            model: the name of an encoder.

        Raises:
            ConfigError: there is no such encoder.
            InputError: ``texts`` is one text instead of several, or one of them is no text, empty,
                or not valid Unicode.
            ModelError: the model cannot be loaded or failed.

        """
        if isinstance(texts, str | bytes):
            raise InputError(
                "The texts to embed are one text, not a list of them.", hint="Pass a list."
            )
        texts = list(texts)
        for text in texts:
            check_text(text, max_chars=sys.maxsize, task="embed")
        with self.models.encoder(model) as encoder:
            vectors = encoder.embed(texts)
        return [[float(x) for x in vector] for vector in vectors]

    def tasks(self) -> dict[str, LocalTask]:
        """Return the tasks by name."""
        return dict(self._tasks)

    def drain(self, task_ids: Sequence[str] | None = None, *, limit: int = 100) -> Drained:
        """Ask the cloud for queued tasks whose time has come.

        Args:
            task_ids: only these, by id or its beginning; due at once, even if given up or if an
                earlier attempt may have been billed.
            limit: how many at most.

        Raises:
            InputError: no queued task has such an id, or several have.

        """
        return self._draining.drain(task_ids, limit=limit)

    def close(self) -> None:
        """Free models, clients and files; calling twice is harmless."""
        self.models.close()
        self._escalation.close()
        self.traces.close()
        self.book.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _circumstances(self, call: Call) -> Circumstances:
        return Circumstances(
            offline=self._offline, has_pool=call.spec.routing.pool in self._pack.pools
        )

    def _generate(self, call: Call) -> Draft | None:
        """Ask the local model; a failure on this input is no draft, a broken model is an error."""
        try:
            return self.models.draft(call.local, call.text)
        except GenerationError:
            return None

    def _pieces(self, call: Call) -> Iterator[str | Draft]:
        """Stream from the local model; a failure before any text is no draft, as in ``run``."""
        begun = False
        try:
            for piece in self.models.stream(call.local, call.text):
                begun = True
                yield piece
        except GenerationError:
            if begun:
                raise

    def _finish(self, call: Call, the_plan: Plan, draft: Draft | None) -> Result:
        """Judge, decide, escalate where it was decided so, and record."""
        missing = Reason.LOCAL_MODEL_FAILED if the_plan.local else Reason.NO_LOCAL_MODEL
        nothing = Verdict(valid=False, confidence=None, reasons=(missing,))
        verdict = judge(call.spec, draft) if draft else nothing
        decision = decide(call.spec, the_plan, draft, verdict)
        outcome = self._escalate(call) if decision.action is Action.ESCALATE else None
        return self._record(call, draft, verdict, decision, outcome)

    def _escalate(self, call: Call) -> Outcome:
        return self._escalation.ask(
            call.name,
            call.spec,
            call.text,
            trace_id=call.trace_id,
            labels=self.models.labels(call.local),
        )

    def _record(
        self,
        call: Call,
        draft: Draft | None,
        verdict: Verdict,
        decision: Decision,
        outcome: Outcome | None,
    ) -> Result:
        """Put what must wait into the queue, write the trace, and return the result."""
        reasons = decision.reasons + ((outcome.reason,) if outcome else ())
        answered = outcome.draft if outcome else None
        action, queue = decision.action, decision.queue
        if outcome is not None and answered is None:
            action, queue = Action.DEFER, outcome.reason not in FINAL
        own = draft.value if draft and verdict.valid and action is not Action.ABSTAIN else None
        task_id = self._queue(call, reasons[-1], own) if action is Action.DEFER and queue else None
        if action is Action.DEFER and queue:
            reasons += (Reason.QUEUED if task_id else Reason.QUEUE_FULL,)
        shown = answered or draft
        result = Result(
            value=answered.value if answered else own,
            confidence=None if answered else verdict.confidence,
            certified=False,
            route=Route.CLOUD if answered else _ROUTES.get(action, Route.DEFERRED),
            provisional=task_id is not None,
            model=shown.model if shown else None,
            device=shown.device if shown else None,
            cost_microusd=outcome.cost_microusd if outcome else 0,
            latency_ms=(time.perf_counter() - call.started) * 1e3,
            tokens_in=shown.usage.tokens_in if shown else 0,
            tokens_out=shown.usage.tokens_out if shown else 0,
            trace_id=call.trace_id,
            reasons=reasons,
            task=call.name,
            task_id=task_id,
        )
        self.traces.append(_trace(result, call.text, draft))
        return result

    def _queue(self, call: Call, why: Reason, provisional: Json) -> str | None:
        """Let a task wait; ``None`` where the queue is full, which costs no answer."""
        try:
            return self.book.queue.put(
                call.name,
                text=call.text,
                payload={"pack": self._pack.name, "pack_version": self._pack.version},
                reason=why.value,
                provisional=provisional,
                trace_id=call.trace_id,
            )
        except Busy:
            return None

    def _open_pool(self, name: str) -> Pool:
        from edge.cloud.pool import Pool  # an HTTP client, once a task leaves the device

        return Pool(name, self._pack.pools[name], env=os.environ)


def open_runtime(
    pack: str | os.PathLike[str] = "kiosk",
    *,
    state: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    threads: int | None = None,
    memory_mb: float | None = None,
) -> Runtime:
    """Open a runtime over a pack.

    Args:
        pack: the name of a shipped pack, or a YAML file.
        state: folder for ledger, queue and traces; the platform's usual place where ``None``.
        offline: open no socket; ``EDGE_OFFLINE`` decides where ``None``.
        threads: threads per forward pass; measured per model where ``None``.
        memory_mb: megabytes for all loaded models together; the pack's ``memory`` decides where
            ``None``.

    Raises:
        ConfigError: the pack cannot be read, something in it is wrong, or a task's model is
            missing or of the wrong kind.
        LoadError: the manifest of a model is not valid.
        StoreError: the state folder cannot be used.

    """
    loaded = limit_memory(load_pack(find_pack(os.fspath(pack))), memory_mb)
    return Runtime(loaded, state_folder(state), offline=is_offline(offline), threads=threads)


def _trace(result: Result, text: str, draft: Draft | None) -> dict[str, Any]:
    """Return a trace's row; neither the input's text nor the answer is in it."""
    return {
        "trace_id": result.trace_id,
        "at": time.time(),
        "task": result.task,
        "route": result.route.value,
        "model": result.model,
        "device": result.device,
        "confidence": result.confidence,
        "cost_microusd": result.cost_microusd,
        "latency_ms": result.latency_ms,
        "tokens_in": result.tokens_in,
        "tokens_out": result.tokens_out,
        "reasons": [reason.value for reason in result.reasons],
        "input_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "input_chars": len(text),
        "text": None,
        "detail": {"signals": draft.signals, "digest": draft.digest} if draft else {},
    }
