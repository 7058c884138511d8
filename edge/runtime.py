"""The runtime: the way of one task, step by step.

``Runtime.run`` reads as the list of steps; planning and deciding are pure (``edge.route``), the
local tier is ``edge.local``, money and the pool are ``edge.escalate``. Thread-safe. Opens no socket
when offline.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, overload

from edge.admit import Call, admit, check_context, check_label, check_text, task_named
from edge.backends.onnx.choice import FILE as DEVICE_CHOICES
from edge.calibrations import Calibrations
from edge.config import is_offline, state_folder
from edge.considering import Considered, Considering
from edge.drain import Drained, Draining
from edge.errors import GenerationError, InputError, StoreError
from edge.escalate import Escalation, Outcome
from edge.judge import is_right
from edge.local import LocalModels, LocalTask
from edge.oversight import Oversight
from edge.pack import find_pack, limit_memory, load_pack
from edge.record import Recorder, answer_digest
from edge.roster import all_tasks, check_models, model_store
from edge.route import Action, Circumstances, Plan, plan
from edge.spending import Spending
from edge.store.book import Book
from edge.store.states import States
from edge.store.traces import Traces
from edge.task import Pack
from edge.types import Choice, Draft, Json, Kind, Reason, Result

if TYPE_CHECKING:
    from edge.cloud.pool import Pool

Context: TypeAlias = Mapping[str, str | float | bool | None]
"""What an app tells of a call besides its text, by the names that the pack declares."""


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
            calibrations=Calibrations(store, state, carried=pack.calibration),
        )
        budget = pack.budget
        self.book = Book.open(
            state,
            cap_microusd=budget.cap_microusd if budget else None,
            period=budget.period if budget else "month",
        )
        self.traces = Traces.open(state)
        self.states = States.open(state)
        self.oversight = Oversight(self.states, self.models.calibrations)
        self._spending = Spending(
            self.states,
            budget,
            pack.pools,
            labels=self.models.labels,
            outlay=lambda: self.book.ledger.spent_microusd() + self.book.ledger.held_microusd(),
        )
        self._recorder = Recorder(pack, self.book, self.traces)
        self._considering = Considering(
            self._tasks, self.models, oversight=self.oversight, spending=self._spending
        )
        self._escalation = Escalation(self.book, open_pool=open_pool or self._open_pool)
        self._draining = Draining(
            self.book,
            self._tasks,
            self._escalation,
            labels=self.models.labels,
            circumstances=self._circumstances,
            audited=self._audited,
        )

    def run(self, task: str, text: str, *, context: Context | None = None) -> Result:
        """Answer one text.

        Args:
            task: the name of a task in the pack.
            text: the input.
            context: what the pack's conditions may look at besides, by declared name.

        Raises:
            ConfigError: there is no such task.
            InputError: the text is empty, too long, or not valid Unicode; or the context holds
                what the pack does not declare.
            ModelError: the local model is missing, damaged, or failed and nothing else may answer.
            StoreError: the state folder cannot be written.

        """
        call = self._admit(task, text, context)
        the_plan = plan(call.spec, self._circumstances(call))
        draft = self._considering.draft(call.local, text) if the_plan.local else None
        return self._finish(call, the_plan, draft)

    def map(
        self, task: str, texts: Sequence[str], *, context: Context | None = None
    ) -> list[Result]:
        """Answer several texts in order; all are admitted before the first is answered.

        Raises:
            InputError: ``texts`` is one text instead of several; else as ``run``.

        """
        task_named(self._tasks, task)  # says so, even where there is no text to answer
        if isinstance(texts, str | bytes):
            raise InputError(
                "The texts to map are one text, not a list of them.",
                hint="Call run, or pass a list.",
            )
        calls = [admit(self._tasks, task, text) for text in texts]
        return [self.run(call.name, call.text, context=context) for call in calls]

    async def arun(self, task: str, text: str, *, context: Context | None = None) -> Result:
        """Answer one text without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(self.run, task, text, context=context)

    def stream(self, task: str, text: str, *, context: Context | None = None) -> Iterator[Chunk]:
        """Yield a generated text as it comes and, last, a chunk with the result.

        Raises:
            InputError: the task is not of kind generate; else as ``run``.
            GenerationError: the model failed when a part of the text was out already.

        """
        call = self._admit(task, text, context)
        if call.spec.kind is not Kind.GENERATE:
            raise InputError(
                f"Task {task} is of kind {call.spec.kind}; only generate can be streamed.",
                hint="Call run instead.",
            )
        if call.spec.routing.may_replace:
            raise InputError(
                f"Task {task} cannot be streamed: its policy may withhold or replace the answer.",
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

    def correct(self, trace_id: str, right: Json) -> bool:
        """Say what the right answer to a task would have been.

        It is kept as a label, for ``edge simulate``. Users correct what is wrong and pass over what
        is right, so a correction alone raises no alarm; many of them are a warning.

        Args:
            trace_id: of the result.
            right: the right answer; the one given where it was right.

        Returns:
            whether users alone already correct more answers than the task's promise allows.

        Raises:
            InputError: there is no trace of that id, or it has no answer of this device.

        """
        tier, kept, digest = self._recorder.answer_of(trace_id)
        task = task_named(self._tasks, tier)
        check_label(task.name, right, self.models.labels(task))
        good = answer_digest(right) == digest
        return self.oversight.corrected(task, trace_id, right=good, kept=kept, at=time.time())

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
        self.states.close()
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

    def _admit(self, task: str, text: str, context: Context | None) -> Call:
        call = admit(self._tasks, task, text)
        return replace(call, context=check_context(context, self._pack.context))

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
        found = self._considering.consider(call, the_plan, draft)
        outcome = None
        if found.decision.action is Action.ESCALATE:
            outcome = self._escalate(call, the_plan, found)
        result = self._recorder.record(call, the_plan, found, outcome)
        if call.spec.routing.value_usd is not None:
            with suppress(StoreError):  # what only advises never costs an answer
                self._paid(call, the_plan, found, outcome)
        return result

    def _paid(self, call: Call, the_plan: Plan, found: Considered, outcome: Outcome | None) -> None:
        """Let the price of the budget follow what was spent."""
        self._spending.passed(
            call,
            outcome.cost_microusd if outcome else 0,
            premium=Reason.WORTH_ASKING in found.decision.reasons,
            reachable=the_plan.cloud_blocked is None,
        )

    def _escalate(self, call: Call, the_plan: Plan, found: Considered) -> Outcome:
        pool = found.decision.pool
        return self._escalation.ask(
            call.name,
            call.spec if pool is None else call.spec.asking(pool),
            call.text,
            trace_id=call.trace_id,
            labels=self.models.labels(call.local),
            draft=found.draft,
            calls_left=max(1, the_plan.calls_left - found.calls),
        )

    def _audited(self, call: Call, about: Mapping[str, Any], own: Json, answer: Json) -> None:
        """Take the cloud's word on a kept answer that was picked for an audit."""
        self.oversight.audited(
            self._tasks.get(str(about.get("tier")), call.local),
            call.trace_id,
            right=is_right(own, answer),
            propensity=float(about["propensity"]),
            rung=int(about["rung"]),
            answers=int(about["answers"]),
            at=time.time(),
        )

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
