"""The local tier: a task and a text in, a ``Draft`` out.

Each model is loaded on first use, after its digest has been checked, and stays within the pack's
memory budget. Knows heads, encoders and decoders; knows nothing of money, privacy or routing.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge.answering import (
    NOT_GROUNDED,
    grammar_of,
    is_copied,
    matcher_of,
    parsed,
    problem_of,
    read_prompt,
    tokens_by_field,
)
from edge.backends.base import Decoder, Encoder, ModelInfo
from edge.backends.generate import Generation, Options, generate, stream
from edge.backends.heads import Head, HeadOutput
from edge.backends.residency import Residency
from edge.calibrations import Calibrations
from edge.choosing import Asked, choose
from edge.choosing import signals as choice_signals
from edge.choosing import wording as question_digest
from edge.confidence.coverage import coverage
from edge.confidence.fields import doubtful, field_signals
from edge.confidence.key import CalibrationKey
from edge.confidence.likely import likely
from edge.confidence.signals import generation_signals
from edge.errors import ConfigError, ModelError
from edge.loading import Loader
from edge.policy.rules import Rule
from edge.policy.sections import Memory, TaskBudget
from edge.store.weights import ModelStore
from edge.task import Prompt, TaskSpec
from edge.types import Choice, Draft, Json, Kind, SamplingParams, Usage

if TYPE_CHECKING:
    from edge.backends.structure.grammars import Grammar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LocalTask:
    """A task with what its local model needs.

    Attributes:
        prompt: ``None`` for heads and encoders.
        rules: when its answers go up whatever their confidence.
        cancel: asked before each step of a generation; ``None`` lets it end by itself.
        grammar: what the answer is constrained to, from the task; ``None`` for any text.

    Raises:
        ConfigError: the task's grammar or schema cannot be enforced.

    """

    name: str
    spec: TaskSpec
    prompt: Prompt | None = None
    rules: tuple[Rule, ...] = ()
    cancel: Callable[[], bool] | None = field(default=None, compare=False)
    grammar: Grammar | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grammar", grammar_of(self.name, self.spec))

    def within(self, budget: TaskBudget, cancel: Callable[[], bool] | None) -> LocalTask:
        """Return the task under the bounds of one call; the same where they are its own."""
        if budget is self.spec.budget and cancel is self.cancel:
            return self
        made = copy.copy(self)  # with the grammar, which takes long to make
        if budget is not self.spec.budget:
            spec = self.spec.model_copy(update={"budget": budget})
            object.__setattr__(made, "spec", spec)
        object.__setattr__(made, "cancel", cancel)
        return made


class _Read(NamedTuple):
    """Texts as an encoder read them: ``counts`` tokens each, of which ``limit`` at most."""

    info: ModelInfo
    limit: int
    counts: list[int]
    vectors: NDArray[np.float32]


class LocalModels:
    """The models of one runtime.

    Args:
        store: where the models lie; it checks digests.
        threads: threads per forward pass; measured per model where ``None``.
        memory: how much memory they may take together, and how long they stay.
        choices, snapshots: see ``edge.loading.Loader``.
        calibrations: those that the models bring where ``None``.
        residency: shares what is in memory with other views of the models; ``memory`` then counts
            for nothing.

    Attributes:
        calibrations: what turns signals into confidence.
        loader: loads a model, or tells how much memory it will take.
        residency: which models are in memory.

    """

    def __init__(
        self,
        store: ModelStore,
        *,
        threads: int | None = None,
        memory: Memory | None = None,
        choices: Path | None = None,
        snapshots: Path | None = None,
        calibrations: Calibrations | None = None,
        residency: Residency | None = None,
    ) -> None:
        self._store = store
        self.calibrations = calibrations or Calibrations(store, None)
        self._closed = False
        memory = memory or Memory()
        self.loader = Loader(store, threads, choices, snapshots)
        self.residency = residency or Residency(
            memory.budget_bytes, keep_alive_s=memory.keep_alive_s, pinned=memory.pin
        )

    def draft(self, task: LocalTask, text: str) -> Draft:
        """Answer one text.

        Raises:
            ModelError: the model cannot be loaded or failed on this input.
            InputError: the text is longer than the task's budget.

        """
        return self.draft_many(task, [text])[0]

    def draft_many(self, task: LocalTask, texts: Sequence[str]) -> list[Draft]:
        """Answer several texts in order; heads and encoders run them as one batch."""
        if self._closed:
            raise ModelError("The runtime is closed.", hint="Open a new one.")
        if task.spec.labels:
            return [self._chosen(task, text) for text in texts]
        if task.spec.kind in {Kind.CLASSIFY, Kind.EMBED}:
            return self._embed_or_classify(task, texts)
        return [self._generate(task, text) for text in texts]

    def stream(self, task: LocalTask, text: str) -> Iterator[str | Draft]:
        """Yield the pieces of a generated text as they come and, last, the draft."""
        with self.decoder(self._model(task)) as decoder:
            tokens, options = _asked(task, decoder, text)
            for step in stream(decoder, tokens, **options):
                if isinstance(step, Generation):
                    yield self._as_draft(task, decoder, step, text)
                else:
                    yield step

    def choose(self, tasks: Sequence[LocalTask], text: str) -> list[Choice]:
        """Return how probable every label of each classification task is, in the tasks' order.

        Raises:
            ConfigError: a task has no local model or its labels are no choice for it.
            InputError: the text is longer than a task's budget.
            ModelError: a model cannot be loaded or failed on this input.

        """
        found: dict[str, Choice] = {}
        decoders: dict[str, list[LocalTask]] = {}
        for task in tasks:
            if task.spec.labels:
                decoders.setdefault(self._model(task), []).append(task)
            else:
                found[task.name] = self._by_head(task, text)
        for name, group in decoders.items():
            with self.decoder(name) as decoder:
                asked = [
                    Asked(
                        task.name,
                        task.spec,
                        read_prompt(task.name, task.spec, task.prompt, decoder, text).tokens,
                    )
                    for task in group
                ]
                made = choose(decoder, asked)
            found |= {task.name: choice for task, choice in zip(group, made, strict=True)}
        return [found[task.name] for task in tasks]

    def _by_head(self, task: LocalTask, text: str) -> Choice:
        name = self._model(task)
        manifest = self.loader.of_kind(name, "head")
        reference = manifest.encoder
        read = self._embedded(task, reference.name if reference else name, [text])
        with self.head(name) as head:
            output = head.predict(read.vectors[0], text)
            shares = [float(share) for share in output.probabilities]
            return Choice(
                value=output.label,
                distribution=dict(zip(head.labels, shares, strict=True)),
                log_mass=0.0,
                model=name,
                digest=_joint_digest(read.info.digest, manifest.digest),
                device=read.info.device,
                tokens_in=min(read.counts[0], read.limit),
            )

    def _chosen(self, task: LocalTask, text: str) -> Draft:
        (choice,) = self.choose([task], text)
        draft = Draft(
            value=choice.value,
            model=choice.model,
            digest=choice.digest,
            device=choice.device,
            usage=Usage(choice.tokens_in, 0),
            signals=choice_signals(choice),
            candidates=likely(choice.distribution.items()),
        )
        return self._calibrated(task, draft)

    def labels(self, task: LocalTask) -> tuple[str, ...]:
        """Return the labels a classification task chooses from; empty without a local model."""
        if task.spec.labels:
            return task.spec.labels
        if task.spec.kind is not Kind.CLASSIFY or task.spec.model is None:
            return ()
        with self.head(task.spec.model) as head:
            return head.labels

    def head(self, name: str) -> AbstractContextManager[Head]:
        """Lend a head: ``with models.head(name) as head``; loaded where it is not in memory."""
        return self._lend(name, "head", self.loader.head)

    def encoder(self, name: str) -> AbstractContextManager[Encoder]:
        """Lend an encoder, as ``head``."""
        return self._lend(name, "encoder", self.loader.encoder)

    def decoder(self, name: str) -> AbstractContextManager[Decoder]:
        """Lend a decoder, as ``head``."""
        return self._lend(name, "decoder", self.loader.decoder)

    def close(self) -> None:
        """Free every model; calling twice is harmless."""
        self._closed = True
        self.residency.close()

    def _lend(self, name: str, kind: str, load: Callable[[str], _T]) -> AbstractContextManager[_T]:
        self.loader.of_kind(name, kind)
        return self.residency.lease(
            name,
            lambda: load(name),
            estimate=lambda: self.loader.estimate(name),
            version=self._store.version(name),
        )

    @staticmethod
    def _model(task: LocalTask) -> str:
        if task.spec.model is None:
            raise ConfigError(f"Task {task.name} names no local model.")
        return task.spec.model

    def _embed_or_classify(self, task: LocalTask, texts: Sequence[str]) -> list[Draft]:
        name = self._model(task)
        manifest = self._store.manifest(name)
        # One lease at a time: under a small budget the head may need the encoder's room.
        read = self._embedded(task, manifest.encoder.name if manifest.encoder else name, texts)
        info, limit = read.info, read.limit
        digest, calibrated = info.digest, False
        values: list[Json] = [[float(x) for x in vector] for vector in read.vectors]
        outputs: list[HeadOutput | None] = [None] * len(texts)
        labels: tuple[str, ...] = ()
        if manifest.kind == "head":
            with self.head(name) as head:
                outputs = [head.predict(*pair) for pair in zip(read.vectors, texts, strict=True)]
                calibrated = head.calibrated_for(info.digest)
                labels = head.labels
            digest = _joint_digest(info.digest, manifest.digest)
            values = [output.label for output in outputs if output is not None]
        drafts = [
            Draft(
                value=value,
                model=name,
                digest=digest,
                device=info.device,
                usage=Usage(min(count, limit), 0),
                signals=output.signals if output else {},
                confidence=output.confidence if output and calibrated else None,
                truncated=count > limit,
                candidates=likely(_shares(labels, output)),
            )
            for value, output, count in zip(values, outputs, read.counts, strict=True)
        ]
        return [self._calibrated(task, draft) for draft in drafts]

    def _embedded(self, task: LocalTask, encoder: str, texts: Sequence[str]) -> _Read:
        """Embed texts as far as the task's budget and the encoder read them."""
        with self.encoder(encoder) as model:
            limit = min(task.spec.budget.max_input_tokens, model.info.context)
            counts = [model.count_tokens(text) for text in texts]
            return _Read(model.info, limit, counts, model.embed(texts, max_tokens=limit))

    def _generate(self, task: LocalTask, text: str) -> Draft:
        with self.decoder(self._model(task)) as decoder:
            tokens, options = _asked(task, decoder, text)
            return self._as_draft(task, decoder, generate(decoder, tokens, **options), text)

    def _as_draft(
        self, task: LocalTask, decoder: Decoder, generation: Generation, text: str
    ) -> Draft:
        value: Json = generation.text.strip()
        missing: Sequence[str] = ()
        if task.spec.kind is Kind.EXTRACT:
            value, missing = parsed(generation.text, text, ground=task.spec.ground)
        tokens = tokens_by_field(decoder, generation) if isinstance(value, dict) else {}
        # A forced token says nothing of how sure the model is, and has no numbers.
        chosen = [entry for entry in generation.stats if not math.isnan(entry.logprob)]
        signals = generation_signals(chosen, missing_fields=len(missing), fields=tokens.values())
        if task.spec.kind is Kind.EXTRACT and task.spec.ground:
            signals |= coverage(value, text, skip=NOT_GROUNDED)
        fields = {
            name: field_signals(each, copied=is_copied(name, missing) if task.spec.ground else None)
            for name, each in tokens.items()
        }
        draft = Draft(
            value=value,
            model=decoder.info.name,
            digest=decoder.info.digest,
            device=decoder.info.device,
            usage=generation.usage,
            signals=signals,
            text=generation.text,
            problem=problem_of(generation, value, missing, task.spec.kind),
            fields=fields,
            doubtful=doubtful(fields, left_out=signals.get("left_out", 0.0)),
        )
        return self._calibrated(task, draft)

    def _calibrated(self, task: LocalTask, draft: Draft) -> Draft:
        """Return a draft with the confidence of the task's calibration, where there is one."""
        calibration = self.calibrations.of(draft.model, task.name)
        if calibration is None:
            return draft
        found = calibration.judge(calibration_key(task, draft), draft.signals)
        if found is None:
            return draft.with_confidence(None)
        return draft.with_confidence(found.value, interval=(found.low, found.high))


def calibration_key(task: LocalTask, draft: Draft) -> CalibrationKey:
    """Return what a calibration of a task's answers holds for: model, task and wording."""
    if task.prompt is None:
        return CalibrationKey(draft.digest, task.name)
    wording = task.prompt.digest
    if task.spec.labels:
        wording = question_digest(task.prompt, task.spec)
    if task.grammar is not None:
        wording = _joint_digest(wording, task.grammar.digest)
    if task.spec.sampling != SamplingParams() or task.spec.stop:
        wording = _joint_digest(wording, repr((task.spec.sampling, task.spec.stop)))
    return CalibrationKey(draft.digest, task.name, wording)


def _asked(task: LocalTask, decoder: Decoder, text: str) -> tuple[Sequence[int], Options]:
    """Return the prompt's tokens and how the task wants them answered."""
    prompt = read_prompt(task.name, task.spec, task.prompt, decoder, text)
    matcher = matcher_of(task.name, task.grammar, decoder)
    return prompt.tokens, Options(
        shared=prompt.shared,
        params=task.spec.sampling,
        max_tokens=task.spec.budget.max_output_tokens,
        stop=task.spec.stop,
        cancel=task.cancel,
        allowed=matcher.allowed if matcher else None,
        forced=matcher.forced if matcher else None,
    )


def _shares(labels: Sequence[str], output: HeadOutput | None) -> list[tuple[str, float]]:
    """Return each label of a head with its probability; empty without an output."""
    if output is None:
        return []
    return list(zip(labels, output.probabilities.tolist(), strict=True))


def _joint_digest(*digests: str) -> str:
    return hashlib.sha256(":".join(digests).encode()).hexdigest()
