"""The local tier: a task and a text in, a ``Draft`` out.

Loads each model once, on first use, after its digest has been checked; many first callers at once
load one copy. Knows heads, encoders and decoders; knows nothing of money, privacy or routing.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from edge.backends.base import Decoder, Encoder
from edge.backends.generate import Generation, generate, stream
from edge.backends.grounding import ground_object
from edge.backends.heads import Head, HeadOutput
from edge.confidence.calibration import Calibration, CalibrationKey
from edge.confidence.signals import generation_signals
from edge.errors import ConfigError, InputError, ModelError
from edge.store.weights import Manifest, ModelStore
from edge.task import Prompt, TaskSpec
from edge.types import Draft, Json, Kind, Usage

_T = TypeVar("_T")
_NOT_GROUNDED = frozenset({"intent"})
MAX_SEQUENCES = 2


@dataclass(frozen=True, slots=True)
class LocalTask:
    """A task with what its local model needs; ``prompt`` is ``None`` for heads and encoders."""

    name: str
    spec: TaskSpec
    prompt: Prompt | None = None


@dataclass
class _Loaded:
    """Models by name, each behind a lock of its own so that one load does not hold up another."""

    models: dict[str, Any] = field(default_factory=dict)
    locks: dict[str, threading.Lock] = field(default_factory=dict)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def get(self, name: str, load: Callable[[], _T]) -> _T:
        found = self.models.get(name)
        if found is None:
            with self.guard:
                lock = self.locks.setdefault(name, threading.Lock())
            with lock:
                found = self.models.get(name)
                if found is None:
                    found = self.models[name] = load()
        return cast("_T", found)


class LocalModels:
    """The models of one runtime.

    Args:
        store: where the models lie; it checks digests.
        threads: threads per forward pass; measured per model where ``None``.

    """

    def __init__(self, store: ModelStore, *, threads: int | None = None) -> None:
        self._store = store
        self._threads = threads
        self._loaded = _Loaded()
        self._closed = False

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
        if task.spec.kind in {Kind.CLASSIFY, Kind.EMBED}:
            return self._embed_or_classify(task, texts)
        return [self._generate(task, text) for text in texts]

    def stream(self, task: LocalTask, text: str) -> Iterator[str | Draft]:
        """Yield the pieces of a generated text as they come and, last, the draft."""
        decoder = self.decoder(self._model(task))
        tokens = self._prompt_tokens(task, decoder, text)
        steps = stream(
            decoder,
            tokens,
            params=task.spec.sampling,
            max_tokens=task.spec.budget.max_output_tokens,
            stop=task.spec.stop,
        )
        for step in steps:
            if isinstance(step, Generation):
                yield self._as_draft(task, decoder, step, text)
            else:
                yield step

    def labels(self, task: LocalTask) -> tuple[str, ...]:
        """Return the labels a classification task chooses from; empty without a local head."""
        if task.spec.kind is not Kind.CLASSIFY or task.spec.model is None:
            return ()
        return self.head(task.spec.model).labels

    def head(self, name: str) -> Head:
        """Return a loaded head."""
        return self._loaded.get(f"head:{name}", lambda: Head.load(self._store.path(name)))

    def encoder(self, name: str) -> Encoder:
        """Return a loaded encoder."""
        return self._loaded.get(f"encoder:{name}", lambda: self._open_encoder(name))

    def decoder(self, name: str) -> Decoder:
        """Return a loaded decoder."""
        return self._loaded.get(f"decoder:{name}", lambda: self._open_decoder(name))

    def close(self) -> None:
        """Free every model; calling twice is harmless."""
        self._closed = True
        for model in list(self._loaded.models.values()):
            if hasattr(model, "close"):
                model.close()
        self._loaded.models.clear()

    def _open_encoder(self, name: str) -> Encoder:
        from edge.backends.onnx import OnnxEncoder

        manifest = self._of_kind(name, "encoder")
        return OnnxEncoder.open(
            self._store.path(name),
            self._store.path(name, "tokenizer"),
            name=name,
            digest=manifest.digest,
            max_tokens=manifest.max_tokens or 256,
            threads=self._threads,
        )

    def _open_decoder(self, name: str) -> Decoder:
        manifest = self._of_kind(name, "decoder")
        if manifest.engine == "onnx":
            return self._open_onnx_decoder(name, manifest)
        from edge.backends.llamacpp import LlamaDecoder

        return LlamaDecoder.open(
            self._store.path(name),
            name=name,
            digest=manifest.digest,
            context=manifest.context or 2048,
            threads=self._threads,
            max_sequences=MAX_SEQUENCES,
        )

    def _open_onnx_decoder(self, name: str, manifest: Manifest) -> Decoder:
        from edge.backends.onnx_decoder import OnnxDecoder

        return OnnxDecoder.open(
            self._store.path(name),
            self._store.path(name, "tokenizer"),
            name=name,
            digest=manifest.digest,
            context=manifest.context or 1024,
            threads=self._threads,
        )

    def _of_kind(self, name: str, kind: str) -> Manifest:
        manifest = self._store.manifest(name)
        if manifest.kind != kind:
            raise ConfigError(f"Model {name} is a {manifest.kind}, but a {kind} is needed.")
        return manifest

    @staticmethod
    def _model(task: LocalTask) -> str:
        if task.spec.model is None:
            raise ConfigError(f"Task {task.name} names no local model.")
        return task.spec.model

    def _embed_or_classify(self, task: LocalTask, texts: Sequence[str]) -> list[Draft]:
        name = self._model(task)
        manifest = self._store.manifest(name)
        head = self.head(name) if manifest.kind == "head" else None
        encoder = self.encoder(manifest.encoder.name if manifest.encoder else name)
        counts = [encoder.count_tokens(text) for text in texts]
        limit = task.spec.budget.max_input_tokens
        vectors = encoder.embed(texts)
        if head is None:
            digest = encoder.info.digest
            values: list[Json] = [[float(x) for x in vector] for vector in vectors]
            outputs: list[HeadOutput | None] = [None] * len(texts)
        else:
            digest = _joint_digest(encoder.info.digest, manifest.digest)
            outputs = [head.predict(vector) for vector in vectors]
            values = [output.label for output in outputs if output is not None]
        calibrated = head is not None and head.calibrated_for(encoder.info.digest)
        return [
            Draft(
                value=value,
                model=name,
                digest=digest,
                device=encoder.info.device,
                usage=Usage(min(count, limit), 0),
                signals=_head_signals(output),
                confidence=output.confidence if output and calibrated else None,
                truncated=count > limit,
            )
            for value, output, count in zip(values, outputs, counts, strict=True)
        ]

    def _generate(self, task: LocalTask, text: str) -> Draft:
        decoder = self.decoder(self._model(task))
        generation = generate(
            decoder,
            self._prompt_tokens(task, decoder, text),
            params=task.spec.sampling,
            max_tokens=task.spec.budget.max_output_tokens,
            stop=task.spec.stop,
        )
        return self._as_draft(task, decoder, generation, text)

    def _prompt_tokens(self, task: LocalTask, decoder: Decoder, text: str) -> list[int]:
        if task.prompt is None:
            raise ConfigError(f"Task {task.name} has no prompt.")
        tokens: list[int] = []
        for index, segment in enumerate(task.prompt.render(text)):
            tokens += decoder.tokenize(
                segment.text,
                add_bos=index == 0 and task.prompt.add_bos,
                parse_special=segment.trusted,
            )
        limit = task.spec.budget.max_input_tokens
        if len(tokens) > limit:
            raise InputError(
                f"The prompt of task {task.name} has {len(tokens)} tokens; the limit is {limit}.",
                hint="Shorten the text or raise max_input_tokens.",
            )
        return tokens

    def _as_draft(
        self, task: LocalTask, decoder: Decoder, generation: Generation, text: str
    ) -> Draft:
        value: Json = generation.text.strip()
        missing: Sequence[str] = ()
        if task.spec.kind is Kind.EXTRACT:
            value, missing = _parsed(generation.text, text, ground=task.spec.ground)
        draft = Draft(
            value=value,
            model=decoder.info.name,
            digest=decoder.info.digest,
            device=decoder.info.device,
            usage=generation.usage,
            signals=generation_signals(generation.stats, missing_fields=len(missing)),
            text=generation.text,
            problem=_problem(generation, value, missing, task.spec.kind),
        )
        return self._calibrated(task, draft)

    def _calibrated(self, task: LocalTask, draft: Draft) -> Draft:
        calibration = self._calibration(draft.model, task.name)
        if calibration is None or task.prompt is None:
            return draft
        key = CalibrationKey(draft.digest, task.name, task.prompt.digest)
        return draft.with_confidence(calibration.confidence(key, draft.signals))

    def _calibration(self, model: str, task: str) -> Calibration | None:
        def load() -> tuple[Calibration | None]:
            role = f"calibration-{task}"
            listed = any(file.role == role for file in self._store.manifest(model).files)
            return (Calibration.load(self._store.path(model, role)) if listed else None,)

        return self._loaded.get(f"calibration:{model}:{task}", load)[0]


def _joint_digest(*digests: str) -> str:
    return hashlib.sha256(":".join(digests).encode()).hexdigest()


def _head_signals(output: HeadOutput | None) -> dict[str, float]:
    if output is None:
        return {}
    return {
        "probability": float(output.probability),
        "margin": float(output.margin),
        "similarity": float(output.similarity),
        "score": float(output.score),
    }


def _parsed(answer: str, source: str, *, ground: bool) -> tuple[Json, Sequence[str]]:
    """Return the JSON in an answer, its strings grounded, and the fields not in the input."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return None, ()
    if not ground or not isinstance(value, dict):
        return value, ()
    return ground_object(value, source, skip=_NOT_GROUNDED)


def _problem(generation: Generation, value: Json, missing: Sequence[str], kind: Kind) -> str | None:
    if generation.finish == "length":
        return "the answer did not end within max_output_tokens"
    if kind is Kind.EXTRACT and value is None:
        return "the answer is not JSON"
    return f"not in the input: {', '.join(missing)}" if missing else None
