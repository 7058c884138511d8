"""The runtime: the way of one task, step by step.

``Runtime.run`` reads as the list of steps; planning and deciding are pure (``edge.route``), the
local tier is ``edge.local``, money and the pool are ``edge.escalate``. A call takes what is in
force once (``edge.standing``) and goes by it to its end. Thread-safe; offline no socket is opened.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, overload

from edge import extensions
from edge.activation import Activation, read_own
from edge.admit import admit, check_text, task_named
from edge.config import is_offline, state_folder
from edge.drain import Drained
from edge.errors import InputError
from edge.local import LocalModels, LocalTask
from edge.overlay import Document, Policy, lay
from edge.oversight import Oversight
from edge.pack import find_pack, limit_memory, load_pack
from edge.record import answer_digest
from edge.roster import fit
from edge.route import plan
from edge.standing import Ground, Standing
from edge.task import Pack
from edge.types import Choice, Draft, Json, Kind, Result

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

    @property
    def models(self) -> LocalModels:
        """The models as the policy in force has them."""
        return self._activation.standing.models

    @property
    def oversight(self) -> Oversight:
        """The watches over the answers that are kept."""
        return self._activation.standing.oversight

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
        return self._run(self._activation.now(), task, text, context)

    def map(
        self, task: str, texts: Sequence[str], *, context: Context | None = None
    ) -> list[Result]:
        """Answer several texts in order; all are admitted before the first is answered.

        Raises:
            InputError: ``texts`` is one text instead of several; else as ``run``.

        """
        standing = self._activation.now()
        task_named(standing.tasks, task)  # says so, even where there is no text to answer
        if isinstance(texts, str | bytes):
            raise InputError(
                "The texts to map are one text, not a list of them.",
                hint="Call run, or pass a list.",
            )
        calls = [admit(standing.tasks, task, text) for text in texts]
        still = self._activation.still
        return [self._run(still(standing), call.name, call.text, context) for call in calls]

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
        standing = self._activation.now()
        call = standing.admit(task, text, context)
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
        with standing.traced(call):
            looked = standing.lookup.find(call)
            if looked.result is not None:
                yield from (Chunk(str(looked.result.value)), Chunk("", looked.result))
                return
            the_plan = plan(call.spec, standing.world.of(call))
            draft = None
            pieces = standing.considering.pieces(call.local, text) if the_plan.local else ()
            for piece in pieces:
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

    def drain(self, task_ids: Sequence[str] | None = None, *, limit: int = 100) -> Drained:
        """Ask the cloud for queued tasks whose time has come.

        Args:
            task_ids: only these, by id or its beginning; due at once, even if given up or if an
                earlier attempt may have been billed.
            limit: how many at most.

        Raises:
            InputError: no queued task has such an id, or several have.

        """
        in_force = self._activation.now
        return in_force().draining.drain(task_ids, limit=limit, latest=lambda: in_force().draining)

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

    def _run(self, standing: Standing, task: str, text: str, context: Context | None) -> Result:
        call = standing.admit(task, text, context)
        with standing.traced(call):
            looked = standing.lookup.find(call)
            if looked.result is not None:
                return looked.result
            the_plan = plan(call.spec, standing.world.of(call))
            draft = standing.considering.draft(call.local, text) if the_plan.local else None
            return standing.finish(call, the_plan, draft, looked)


def open_runtime(
    pack: str | os.PathLike[str] = "kiosk",
    *,
    state: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    threads: int | None = None,
    memory_mb: float | None = None,
    policy: str | os.PathLike[str] | None = None,
    hub: str | None = None,
) -> Runtime:
    """Open a runtime over a pack.

    Args:
        pack: the name of a shipped pack, or a YAML file.
        state: folder for ledger, queue and traces; the platform's usual place where ``None``.
        offline: open no socket; ``EDGE_OFFLINE`` decides where ``None``.
        threads: threads per forward pass; measured per model where ``None``.
        memory_mb: megabytes for all loaded models together; the pack decides where ``None``.
        policy: a policy to lay over the pack, as YAML or compiled; it wins over the fleet's, but
            not over what the fleet stops.
        hub: address of the fleet's hub, whose agent then keeps the policy up to date; offline
            nothing is asked, and the last policy stays in force.

    Raises:
        ConfigError: the pack or the policy cannot be read, something in it is wrong, or a task's
            model is missing or of the wrong kind; or the fleet's agent is not installed.
        LoadError: the manifest of a model is not valid.
        StoreError: the state folder cannot be used.

    """
    loaded = limit_memory(load_pack(find_pack(os.fspath(pack))), memory_mb)
    runtime = Runtime(
        loaded,
        state_folder(state),
        offline=is_offline(offline),
        threads=threads,
        policy=None if policy is None else read_own(Path(policy)),
    )
    if hub is not None:
        try:
            runtime.join(hub)
        except BaseException:
            runtime.close()
            raise
    return runtime
