"""Decoders in GGUF files, run by llama.cpp through its low-level C interface.

Weights are memory-mapped. A file is checked in plain Python before the library sees it. Forward
passes of one model take turns; each sequence has a KV cache of the full context. Logits are read
in place, without a copy, unless several sequences share the model. Knows nothing of sampling or
prompts.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from edge.backends.base import ModelInfo
from edge.backends.footprint import shape_of_gguf
from edge.backends.gguf import check_gguf
from edge.backends.llama.decider import Decider
from edge.backends.llama.engine import open_engine
from edge.backends.llama.handles import FailedError, Handles, closed_error
from edge.backends.llama.library import accelerators, llama_library
from edge.backends.llama.placement import (
    free_bytes,
    layer_sizes,
    layers_that_fit,
    place_layers,
    use_gpu,
)
from edge.backends.llama.prefixes import Snapshots
from edge.backends.questions import Question
from edge.backends.scheduler import Scheduler
from edge.backends.threads import choose_threads, fixed_threads, thread_candidates
from edge.errors import Busy, GenerationError, InputError, LoadError

PREFIX_SEQUENCES = 2
"""Sequences beyond the callers' own that keep prompts' beginnings."""

_PROBE_TOKENS = 16
_PROBE_SLACK_S = 0.005
_TOKEN_BUDGET_S = 0.03
_PROMPT_BUDGET_S = 0.05


class LlamaDecoder:
    """A causal language model in one GGUF file. Use ``open``; see ``edge.backends.base.Decoder``.

    Safe to call from several threads.
    """

    def __init__(
        self,
        handles: Handles,
        info: ModelInfo,
        *,
        wait_s: float = 60.0,
        snapshots: Path | None = None,
    ) -> None:
        self._handles = handles
        self._info = info
        self._wait_s = wait_s
        own = handles.sequences - PREFIX_SEQUENCES
        self._free = list(range(own - 1, -1, -1))
        self._turn = threading.Condition()
        vocab, lib = handles.vocab, handles.lib
        self._bos = int(lib.llama_vocab_bos(vocab)) if lib.llama_vocab_get_add_bos(vocab) else -1
        self._end_tokens = frozenset(
            token for token in range(info.vocab_size) if lib.llama_vocab_is_eog(vocab, token)
        )
        self._decider = Decider(handles, threads=info.threads)
        self._release = weakref.finalize(self, _free, handles, self._decider)
        engine = open_engine(handles, self._end_tokens)
        self._scheduler = (
            None
            if engine is None
            else Scheduler(
                info.name,
                engine,
                _Sequences(self._free, self._turn),
                context_lock=handles.context_lock,
                closed=lambda: handles.closed,
                spare=range(own, handles.sequences),
                prefixes=None
                if snapshots is None
                else Snapshots(snapshots, handles, digest=info.digest),
                wait_s=wait_s,
            )
        )

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        name: str,
        digest: str,
        context: int = 2048,
        threads: int | None = None,
        max_sequences: int = 1,
        device: str = "cpu",
        gpu_layers: int | None = None,
        strict: bool = False,
        wait_s: float = 60.0,
        snapshots: Path | None = None,
    ) -> LlamaDecoder:
        """Load a model.

        Args:
            path: a GGUF file whose digest has been checked.
            name: the name it is known under.
            digest: sha256 of the file.
            context: tokens one sequence may hold; cut to what the model was trained for.
            threads: threads per forward pass; measured where ``None``, see
                ``edge.backends.threads``.
            max_sequences: sequences that may be open at once; each takes memory for a context.
            device: ``cpu``; ``gpu`` for as many layers as fit the free memory of the GPUs; or
                ``auto`` for that where there is a GPU.
            gpu_layers: so many layers instead; llama.cpp counts the output as the last one.
            strict: a fallback to the CPU, of one layer too, is an error; without it the reason is
                in ``info.placement``.
            wait_s: how long ``sequence`` waits for one to come free.
            snapshots: folder where the KV cache of prompts' beginnings outlives the process.

        Raises:
            LoadError: the file is missing, truncated, not GGUF, or not a decoder.
            DeviceFallback: no device is called so; or ``strict``, and the GPU is not there or
                does not take all layers.
            InputError: ``context`` or ``max_sequences`` is below 1.

        """
        if context < 1 or max_sequences < 1:
            raise InputError(f"context ({context}) and max_sequences ({max_sequences}) start at 1.")
        fixed = fixed_threads(threads)
        sizes = check_gguf(path).sizes
        lib = llama_library()
        gpu = use_gpu(name, device, built=_has_gpu(lib), strict=strict)
        handles = _load(lib, path, context, max_sequences, sizes=sizes, gpu=gpu, layers=gpu_layers)
        try:
            placement = place_layers(
                device, gpu=gpu, offloaded=handles.offloaded, layers=handles.gpu_layers
            )
            if strict:
                placement.require(name)
            generating, reading = _choose(handles, fixed)
            handles.set_threads(generating, reading)
            info = ModelInfo(
                name=name,
                engine="llamacpp",
                digest=digest,
                device=placement.used,
                context=handles.limit,
                vocab_size=handles.vocab_size,
                threads=generating,
                placement=placement,
            )
            return cls(handles, info, wait_s=wait_s, snapshots=snapshots)
        except BaseException:
            handles.free()
            raise

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._info

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a generation."""
        return self._end_tokens

    @property
    def scheduler(self) -> Scheduler | None:
        """Runs generations without Python per token; ``None`` where the library does not fit."""
        return self._scheduler

    def tokenize(
        self, text: str, *, add_bos: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the tokens of ``text``.

        Args:
            text: any characters; NUL is one of them.
            add_bos: put the first token before it where the vocabulary asks for one.
            parse_special: read special tokens that are written out.

        Raises:
            InputError: the text holds half of a surrogate pair.
            ModelError: the model is closed.

        """
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"The text holds half of a surrogate pair at character {error.start}."
            ) from error
        tokens = self._handles.tokenize(raw, parse_special=parse_special)
        return [self._bos, *tokens] if add_bos and self._bos >= 0 else tokens

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return one token's bytes; empty for control tokens unless ``special``.

        Raises:
            InputError: the token is not in the vocabulary.
            ModelError: the model is closed.

        """
        return self._handles.piece(token, special=special)

    def sequence(self) -> LlamaSequence:
        """Open an empty sequence, waiting for one to come free.

        Raises:
            Busy: none came free in time.
            ModelError: the model is closed.

        """
        with self._turn:
            ready = self._turn.wait_for(lambda: self._free or self._handles.closed, self._wait_s)
            if self._handles.closed:
                raise closed_error(self._info.name)
            if not ready:
                raise Busy(f"All sequences of {self._info.name} are taken.")
            return LlamaSequence(self, self._free.pop())

    def label_scores(
        self, prompt: Sequence[int], questions: Sequence[Question]
    ) -> list[list[float]]:
        """Return the log-probability of every label of every question; generates nothing.

        Args:
            prompt: tokens that all questions begin with, read once.
            questions: see ``edge.backends.questions``.

        Raises:
            InputError: the prompt does not fit, or the labels are no choice.
            GenerationError: the engine failed.
            ModelError: the model is closed.

        """
        try:
            return self._decider.scores(prompt, questions)
        except FailedError as error:
            raise GenerationError(f"{self._info.name} failed on this input: {error}.") from error

    def close(self) -> None:
        """Free the model after the running forward pass; calling twice is harmless."""
        self._release()
        with self._turn:
            self._turn.notify_all()

    def forward(self, sequence: int, position: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens to a sequence; for ``LlamaSequence`` only."""
        total, limit = position + len(tokens), self._info.context
        if total > limit:
            raise InputError(
                f"The sequence would hold {total} tokens; the context of {self._info.name} "
                f"holds {limit}.",
                hint="Shorten the text.",
            )
        try:
            return self._handles.decode(sequence, position, tokens)
        except FailedError as error:
            raise GenerationError(f"{self._info.name} failed on this input: {error}.") from error

    def take_back(self, sequence: int) -> None:
        """Give a sequence's cells back; for ``LlamaSequence`` only."""
        self._handles.forget(sequence, 0)
        with self._turn:
            self._free.append(sequence)
            self._turn.notify()


class _Sequences:
    """The free sequences of a decoder, for its scheduler."""

    def __init__(self, free: list[int], turn: threading.Condition) -> None:
        self._free = free
        self._turn = turn

    def try_take(self) -> int | None:
        """Return the lowest free sequence, or ``None``."""
        with self._turn:
            if not self._free:
                return None
            lowest = min(self._free)
            self._free.remove(lowest)
            return lowest

    def give(self, sequence: int) -> None:
        """Take a sequence back."""
        with self._turn:
            self._free.append(sequence)
            self._turn.notify()


class LlamaSequence:
    """One sequence of a ``LlamaDecoder``; see ``edge.backends.base.DecoderSequence``."""

    def __init__(self, decoder: LlamaDecoder, number: int) -> None:
        self._decoder: LlamaDecoder | None = decoder
        self._name = decoder.info.name
        self._number = number
        self._length = 0

    def __len__(self) -> int:
        """Return the number of tokens held."""
        return self._length

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append ``tokens`` and return the row of logits after the last one.

        A read-only float32 ``[vocab_size]`` view, valid until the next call on this sequence, and
        until the model is closed.

        Raises:
            InputError: there are no tokens, one is not in the vocabulary, or the sequence would
                outgrow the context; the sequence is as before.
            GenerationError: the engine failed; the sequence is as before.
            ModelError: the sequence or the model is closed.

        """
        if self._decoder is None:
            raise closed_error(self._name)
        row = self._decoder.forward(self._number, self._length, tokens)
        self._length += len(tokens)
        return row

    def close(self) -> None:
        """Give the KV cells back; calling twice is harmless."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            decoder.take_back(self._number)

    def __del__(self) -> None:
        self.close()


def _has_gpu(lib: ModuleType) -> bool:
    """Whether llama.cpp was built for a GPU and sees one."""
    built = bool(lib.llama_supports_gpu_offload())
    return built and any(each.kind in {"gpu", "igpu"} for each in accelerators(lib))


def _load(
    lib: ModuleType,
    path: Path,
    context: int,
    sequences: int,
    *,
    sizes: Mapping[str, int],
    gpu: bool,
    layers: int | None,
) -> Handles:
    """Load with as many layers on the GPU as fit; where that fails, with half as many, or none."""
    total = sequences + PREFIX_SEQUENCES
    if not gpu:
        layers = 0
    elif layers is None:
        shape = shape_of_gguf(path)
        cache = shape.bytes(context=context, sequences=total) if shape else 0
        layers = layers_that_fit(layer_sizes(sizes, cache=cache), free_bytes(accelerators(lib)))
    while True:
        try:
            return Handles(lib, path, context, sequences, spare=PREFIX_SEQUENCES, gpu_layers=layers)
        except LoadError:
            # Between asking for the free memory and taking it another program may have come.
            if layers == 0:
                raise
            layers //= 2


def _free(handles: Handles, decider: Decider) -> None:
    decider.close()
    handles.free()


def _choose(handles: Handles, fixed: int | None) -> tuple[int, int]:
    """Return the threads for one token and for a prompt."""
    if fixed is not None:
        return fixed, fixed

    def chosen(tokens: int, budget_s: float) -> int:
        fastest_s = float("inf")

        def measure(threads: int) -> float:
            nonlocal fastest_s
            # Threads that wait for each other on a busy machine can take 1,000 times longer.
            taken_s = handles.probe(tokens, threads, limit_s=2 * fastest_s + _PROBE_SLACK_S)
            fastest_s = min(fastest_s, taken_s)
            return taken_s

        return choose_threads(measure, candidates=thread_candidates(), budget_s=budget_s)

    return chosen(1, _TOKEN_BUDGET_S), chosen(min(_PROBE_TOKENS, handles.limit), _PROMPT_BUDGET_S)
