"""The runtime: the way of one task, step by step.

``Runtime.run`` reads as the list of steps; planning and deciding are pure (``edge.route``), the
local tier is ``edge.local``, money and the pool are ``edge.escalate``. A call takes what is in
force once (``edge.standing``) and goes by it to its end. Thread-safe; offline no socket is opened.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, overload

from edge import extensions
from edge.activation import Activation
from edge.admit import Wait, admit, check_context, check_text, check_wait, task_named
from edge.deferred import Deferred
from edge.drain import Drained
from edge.errors import InputError
from edge.local import LocalModels, LocalTask
from edge.overlay import Document, Policy, lay
from edge.oversight import Oversight
from edge.quality import Quality
from edge.record import answer_digest
from edge.roster import fit
from edge.route import plan
from edge.standing import Ground, Standing
from edge.task import Pack
from edge.tooling import Tooled, Tooling
from edge.types import Choice, Chunk, Draft, Json, Kind, Reason, Result

if TYPE_CHECKING:
    from edge.cloud.pool import Pool

__all__ = ["Chunk", "Context", "Drained", "Runtime"]

Context: TypeAlias = Mapping[str, str | float | bool | None]
"""What an app tells of a call besides its text, by the names that the pack declares."""


class Runtime(Deferred, Tooled):
    """Answers the tasks of a pack; made by ``edge.open``."""

    def __init__(
        self,
        pack: Pack,
        state: Path,
        *,
        offline: bool,
        threads: int | None = None,
        open_pool: Callable[[str], Pool] | None = None,
        policy: Document | Policy | None = None,
    ) -> None:
        self._agent: Any = None
        fitted = fit(pack if policy is None else lay(pack, policy), state)
        self._ground = ground = Ground.open(
            pack, state, offline=offline, threads=threads, open_pool=open_pool
        )
        try:
            self._activation = Activation(ground, pack, own=policy, fitted=fitted)
        except BaseException:
            ground.close()
            raise
        self.book, self.traces, self.states = ground.book, ground.traces, ground.states
        self.policies, self.cache = ground.policies, ground.cache
        self._see_to_what_waits(pack.name)
        self._tooling = Tooling()

    @property
    def models(self) -> LocalModels:
        """The models as the policy in force has them."""
        return self._activation.standing.models

    @property
    def oversight(self) -> Oversight:
        """The watches over the answers that are kept."""
        return self._activation.standing.oversight

    @property
    def quality(self) -> Quality:
        """The breakers of tasks that declare how they degrade."""
        return self._activation.standing.quality

    @property
    def policy_revision(self) -> int:
        """Revision of the fleet's policy that the next call goes by; 0 without one."""
        return self._activation.now().revision

    @property
    def policy_problem(self) -> str | None:
        """Why the stored policy is not in force; ``None`` where it is, or there is none."""
        return self._activation.problem

    def activate(
        self,
        document: bytes | None,
        *,
        stopped: Mapping[str, Sequence[str]] | None = None,
        tightened: bool | None = None,
        check: bool = True,
        trust: Mapping[str, bytes] | None = None,
        etag: str | None = None,
    ) -> None:
        """Put a policy in force, here and for every other runtime over this state folder.

        It is laid over the pack, and the models answer samples and golden cases first. Calls that
        have begun end as they began; a lower cap counts for them too. On any error the old policy
        stays; that the policy was refused is noted.

        Args:
            document: a compiled, verified policy. What is ``None`` stays, here and below.
            stopped: what the fleet stops: names under ``models``, ``tools`` and ``tasks``.
            tightened: the policy has expired, so nothing new may leave.
            check: answer samples and golden cases first.
            trust: trusted metadata to store in the same transaction.
            etag: what the hub calls this state.

        Raises:
            Busy: there is no room for a model now.
            ConfigError: it is no policy, or does not fit the pack; or the app brought its own.
            ModelError: a model that it names is missing or damaged.
            PolicyError: it fails the self-check.
            VersionRollback: a higher revision is in force.
            StoreError: the state folder cannot be written.

        """
        self._activation.activate(
            document, stopped=stopped, tightened=tightened, check=check, trust=trust, etag=etag
        )

    def run(
        self,
        task: str,
        text: str,
        *,
        context: Context | None = None,
        priority: int | None = None,
        deadline_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Result:
        """Answer one text.

        Args:
            task: the name of a task in the pack.
            text: the input.
            context: what the pack's conditions may look at besides, by declared name.
            priority: where it has to wait, 0 to 9, the higher the sooner; ``None``: as its task.
            deadline_s: for how many seconds from now an answer that has to wait is of use.
            idempotency_key: the same key with the same input gives the first result again, or what
                has become of its queued task; ``edge.store.repeats`` says for how long.

        Raises:
            ConfigError: there is no such task.
            InputError: the text is empty, too long, or not valid Unicode; the context holds what
                the pack does not declare; another argument is none, or the key is another input's.
            ModelError: the local model is missing, damaged, or failed and nothing else may answer.
            StoreError: the state folder cannot be written.

        """
        standing = self._activation.now()
        wait = check_wait(task_named(standing.tasks, task).spec, priority, deadline_s)
        answer = functools.partial(self._answer, standing, task, text, context, wait)
        if idempotency_key is None:
            return answer()
        admit(standing.tasks, task, text)  # bad input takes no key
        told = check_context(context, standing.pack.context)
        return self._repeating.once(idempotency_key, (task, text, told), answer)

    def map(
        self,
        task: str,
        texts: Sequence[str],
        *,
        context: Context | None = None,
        priority: int | None = None,
        deadline_s: float | None = None,
    ) -> list[Result]:
        """Answer several texts in order; all are admitted before the first is answered.

        For each text ``deadline_s`` runs from when its turn comes.

        Raises:
            InputError: ``texts`` is one text instead of several; else as ``run``.

        """
        standing = self._activation.now()
        wait = check_wait(task_named(standing.tasks, task).spec, priority, deadline_s)
        if isinstance(texts, str | bytes):
            raise InputError(
                "The texts to map are one text, not a list of them.",
                hint="Call run, or pass a list.",
            )
        calls = [admit(standing.tasks, task, text) for text in texts]
        still = self._activation.still
        return [self._answer(still(standing), task, call.text, context, wait) for call in calls]

    async def arun(
        self,
        task: str,
        text: str,
        *,
        context: Context | None = None,
        priority: int | None = None,
        deadline_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Result:
        """Answer one text without blocking the event loop; as ``run``."""
        import asyncio

        return await asyncio.to_thread(
            self.run,
            task,
            text,
            context=context,
            priority=priority,
            deadline_s=deadline_s,
            idempotency_key=idempotency_key,
        )

    def stream(self, task: str, text: str, *, context: Context | None = None) -> Iterator[Chunk]:
        """Yield a generated text as it comes and, last, a chunk with the result.

        Raises:
            InputError: the task is not of kind generate; else as ``run``.
            GenerationError: the model failed when a part of the text was out already.

        """
        standing = self._activation.now()
        spec = task_named(standing.tasks, task).spec
        if spec.kind is not Kind.GENERATE:
            raise InputError(
                f"Task {task} is of kind {spec.kind}; only generate can be streamed.",
                hint="Call run instead.",
            )
        if spec.routing.may_replace:
            raise InputError(
                f"Task {task} cannot be streamed: its policy may withhold or replace the answer.",
                hint="Call run instead.",
            )
        call = standing.admit(task, text, context)
        with standing.traced(call):
            looked = standing.lookup.find(call)
            if looked.result is not None:
                yield from (Chunk(str(looked.result.value)), Chunk("", looked.result))
                return
            the_plan = plan(call.spec, standing.world.of(call))
            draft = None
            for piece in standing.considering.pieces(call, the_plan):
                if isinstance(piece, Draft):
                    draft = piece
                else:
                    yield Chunk(piece)
            result = standing.finish(call, the_plan, draft, looked)
        yield Chunk("", result)

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
            PolicyError: the fleet stopped a task or its model.

        """
        standing = self._activation.now()
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        calls = [admit(standing.tasks, name, text) for name in names]
        for call in calls:
            standing.check_runs(call)
            if call.spec.kind is not Kind.CLASSIFY:
                raise InputError(
                    f"Task {call.name} is of kind {call.spec.kind}; only classify can decide.",
                    hint="Call run instead.",
                )
        found = standing.models.choose([call.local for call in calls], text)
        return found[0] if isinstance(tasks, str) else found

    def embed(self, texts: Sequence[str], *, model: str = "minilm-l6-int8") -> list[list[float]]:
        """Return one unit vector per text.

        Args:
            texts: what to embed.
            model: the name of an encoder.

        Raises:
            ConfigError: there is no such encoder.
            InputError: ``texts`` is one text, or one of them is no text, empty, or no Unicode.
            ModelError: the model cannot be loaded or failed.
            PolicyError: the fleet stopped the model.

        """
        if isinstance(texts, str | bytes):
            raise InputError(
                "The texts to embed are one text, not a list of them.", hint="Pass a list."
            )
        for text in (texts := list(texts)):
            check_text(text, max_chars=sys.maxsize, task="embed")
        standing = self._activation.now()
        standing.check_model(model)
        with standing.models.encoder(model) as encoder:
            vectors = encoder.embed(texts)
        return [[float(x) for x in vector] for vector in vectors]

    def correct(self, trace_id: str, right: Json) -> bool:
        """Say what the right answer to a task would have been.

        A wrong answer leaves the cache; the word is kept as a label, for ``edge simulate``. Users
        pass over what is right, so one correction raises no alarm; many of them are a warning.

        Args:
            trace_id: of the result.
            right: the right answer; the one given where it was right.

        Returns:
            whether users alone already correct more answers than the task's promise allows.

        Raises:
            InputError: there is no trace of that id, or it has no answer of this device.

        """
        standing = self._activation.now()
        meant = standing.lookup.corrected(trace_id, right)
        if meant is None:
            return False
        tier, kept, digest = standing.recorder.answer_of(meant)
        task = task_named(standing.tasks, tier)
        good = answer_digest(right) == digest
        return standing.oversight.corrected(task, meant, right=good, kept=kept, at=time.time())

    def tasks(self) -> dict[str, LocalTask]:
        """Return the tasks by name."""
        return dict(self._activation.now().tasks)

    def close(self) -> None:
        """End the agent; free models, clients and files. Calling twice is harmless."""
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.close()
        self._ground.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def join(self, hub: str) -> None:
        """Let the fleet's agent look after this runtime's policy; offline it is left out.

        Raises:
            ConfigError: the agent is not installed, or the address is none.

        """
        if not self._ground.offline:
            start = extensions.load(extensions.AGENTS, "hub")
            self._agent = start(self, hub, pack=self._activation.standing.pack.name)

    def _answer(
        self,
        standing: Standing,
        task: str,
        text: str,
        context: Context | None,
        wait: Wait,
        *,
        trace_id: str | None = None,
        paid: bool = False,
    ) -> Result:
        """Answer one text; no pool is asked where one may have been ``paid`` for it before."""
        call = standing.admit(task, text, context)
        call = replace(call, wait=wait, trace_id=trace_id or call.trace_id)
        with standing.traced(call):
            looked = standing.lookup.find(call)
            if looked.result is not None:
                return looked.result
            the_plan = plan(call.spec, standing.world.of(call))
            if paid:
                the_plan = the_plan.without_pools(Reason.MAYBE_BILLED)
            draft = standing.considering.draft(call, the_plan)
            return standing.finish(call, the_plan, draft, looked)
