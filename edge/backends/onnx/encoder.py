"""Sentence encoders in ONNX files, run by ONNX Runtime.

By default every text has a forward pass of its own: dynamically quantized graphs scale all that
shares a pass together, and the same text must give the same vector whatever stands beside it. Safe
to call from several threads. Knows nothing of heads or labels.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edge.backends.base import ModelInfo
from edge.backends.onnx.auto import as_chosen, resolve_device
from edge.backends.onnx.batch import Gatherer
from edge.backends.onnx.rows import cut, feed, groups
from edge.backends.onnx.runner import Ask, Runner
from edge.backends.onnx.session import Opened, run_session
from edge.backends.onnx.tokens import encode_all, load_tokenizer
from edge.backends.threads import choose_threads, fixed_threads, thread_candidates
from edge.errors import InputError, LoadError, ModelError

_KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_TYPES = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}
_OUTPUT_RANK = 2
_PROBE_TEXT = "why has my new card not arrived yet, it has been more than two weeks?"


class OnnxEncoder:
    """A sentence encoder whose graph ends in one unit vector per text. Use ``open``."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        max_batch: int = 1,
        buckets: Sequence[int] = (),
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._info = info
        self._max_batch = max_batch
        self._buckets = tuple(sorted(buckets))
        self._inputs = _inputs(runner.session)
        self._output = _output(runner.session).name
        self._together = Gatherer(self._vectors, most=max_batch) if max_batch > 1 else None

    @classmethod
    def open(
        cls,
        model: Path,
        tokenizer: Path,
        *,
        name: str,
        digest: str,
        max_tokens: int = 256,
        threads: int | None = None,
        device: str = "cpu",
        strict: bool = False,
        max_batch: int = 1,
        buckets: Sequence[int] = (),
        memory: Path | None = None,
    ) -> OnnxEncoder:
        """Load an encoder.

        Args:
            model: a graph with the inputs ``input_ids`` and ``attention_mask`` (and maybe
                ``token_type_ids``), int32 or int64 ``[batch, length]``, and an output ``[batch,
                width]``.
            tokenizer: a ``tokenizer.json``.
            name: the name it is known under.
            digest: sha256 of the model file.
            max_tokens: longer texts are cut to this, the closing special tokens kept.
            threads: threads per forward pass; measured on the CPU where ``None``, else 1.
            device: a key of ``edge.backends.onnx.providers.PROVIDERS``, or ``auto`` for the
                fastest one present.
            strict: a fallback to the CPU, of one node too, is an error; without it the reason is
                in ``info.placement``.
            max_batch: the most texts in a forward pass, those of other threads that call
                meanwhile included. Above 1 the vectors of a dynamically quantized graph depend on
                their neighbours.
            buckets: token counts that the graph's free axes ``batch`` (1) and ``sequence`` are
                fixed to, for devices that need fixed shapes; a text is padded to the next one.
            memory: the file that remembers what ``auto`` chose.

        Raises:
            LoadError: a file is missing, broken or of the wrong kind.
            DeviceFallback: ``strict``, and the device is not there or does not take all of it.
            InputError: ``max_batch``, ``max_tokens`` or a bucket is too small, or both are given.

        """
        _check_sizes(max_batch, max_tokens, buckets)
        words = load_tokenizer(tokenizer)
        fixed = fixed_threads(threads)
        size = min(buckets, default=None)
        probe = encode_all(words, [_PROBE_TEXT])[0]

        def measured(opened: Opened) -> NDArray[Any]:
            return _probe(model, opened.session, cut(probe, size or max_tokens), size)

        ask = Ask(model, name, fixed or 1, device, strict)
        ask, why = resolve_device(ask, digest, measured, size=size, memory=memory)
        if fixed is None and ask.device == "cpu":
            ask, opened = _fastest_threads(ask, measured, size)
        else:
            opened = ask.open(size)
        runner = Runner(ask, as_chosen(opened, why), size=size)
        _check_inputs(model, runner.session)
        info = ModelInfo(
            name=name,
            engine="onnx",
            digest=digest,
            device=runner.placement.used,
            context=min(max_tokens, max(buckets, default=max_tokens)),
            dimensions=_width(model, runner.session),
            threads=ask.threads,
        )
        return cls(runner, words, info, max_batch=max_batch, buckets=buckets)

    @property
    def info(self) -> ModelInfo:
        """What is known of the model; ``context`` is the most tokens read of a text."""
        placement = self._runner.placement
        return dataclasses.replace(self._info, device=placement.used, placement=placement)

    def embed(self, texts: Sequence[str], *, max_tokens: int | None = None) -> NDArray[np.float32]:
        """Return one unit vector per text, float32 ``[len(texts), dimensions]``.

        Args:
            texts: what to embed.
            max_tokens: read fewer tokens of a text than the encoder can, the closing special
                tokens kept.

        Raises:
            InputError: a text holds half of a surrogate pair.
            GenerationError: the engine failed.
            DeviceFallback: the encoder is ``strict`` and the device failed.
            ModelError: the encoder is closed.

        """
        if self._runner.session is None:
            raise ModelError(f"{self._info.name} is closed.", hint="Open it again.")
        limit = min(max_tokens or self._info.context, self._info.context)
        rows = [cut(encoding, limit) for encoding in encode_all(self._tokenizer, texts)]
        return self._vectors(rows) if self._together is None else self._together.run(rows)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens ``text`` has before truncation, special tokens included.

        Raises:
            InputError: the text holds half of a surrogate pair.

        """
        return len(encode_all(self._tokenizer, [text])[0].ids)

    def close(self) -> None:
        """Free the model; calling twice is harmless, and a running ``embed`` ends first."""
        self._runner.close()

    def _vectors(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        vectors = np.empty((len(rows), self._info.dimensions), np.float32)
        for group in groups([len(row) for row in rows], most=self._max_batch):
            longest = len(rows[group[-1]])
            size = next((bucket for bucket in self._buckets if longest <= bucket), None)
            inputs = feed([rows[index] for index in group], self._inputs, size=size)
            found = self._runner.run([self._output], inputs, size=size)[0]
            norms = np.linalg.norm(found, axis=1, keepdims=True)
            vectors[group] = found / np.maximum(norms, np.finfo(np.float32).tiny)
        return vectors


def _check_sizes(max_batch: int, max_tokens: int, buckets: Sequence[int]) -> None:
    if min(max_batch, max_tokens, *buckets) < 1:
        raise InputError(
            f"max_batch ({max_batch}), max_tokens ({max_tokens}) and buckets ({list(buckets)}) "
            "start at 1."
        )
    if buckets and max_batch > 1:
        raise InputError(
            f"An encoder with buckets has one text a pass; max_batch is {max_batch}.",
            hint="Leave out one of the two.",
        )


def _probe(model: Path, session: Any, row: Sequence[int], size: int | None) -> NDArray[Any]:
    """Return the vector of one row."""
    _check_inputs(model, session)
    inputs = feed([row], _inputs(session), size=size)
    found: NDArray[Any] = run_session(
        session.run, [_output(session).name], inputs, name=model.name
    )[0]
    return found


def _fastest_threads(
    ask: Ask, probe: Callable[[Opened], NDArray[Any]], size: int | None
) -> tuple[Ask, Opened]:
    """Return the ask and the session with the fastest thread count on the CPU."""
    sessions: dict[int, tuple[Ask, Opened]] = {}

    def session_with(threads: int) -> tuple[Ask, Opened]:
        if threads not in sessions:
            asked = dataclasses.replace(ask, threads=threads)
            sessions[threads] = asked, asked.open(size)
        return sessions[threads]

    def measure(threads: int) -> float:
        _, opened = session_with(threads)
        begin = time.perf_counter()
        probe(opened)
        return time.perf_counter() - begin

    return session_with(choose_threads(measure, candidates=thread_candidates()))


def _check_inputs(model: Path, session: Any) -> None:
    found = {entry.name: entry.type for entry in session.get_inputs()}
    if not {"input_ids"} <= found.keys() <= _KNOWN_INPUTS:
        raise LoadError(f"{model} is not a sentence encoder: its inputs are {sorted(found)}.")
    if unknown := sorted(set(found.values()) - _TYPES.keys()):
        raise LoadError(f"{model} is not a sentence encoder: its inputs are of type {unknown}.")


def _inputs(session: Any) -> dict[str, Any]:
    return {entry.name: _TYPES[entry.type] for entry in session.get_inputs()}


def _output(session: Any) -> Any:
    outputs = session.get_outputs()
    return next((entry for entry in outputs if entry.name == "embedding"), outputs[0])


def _width(model: Path, session: Any) -> int:
    shape = _output(session).shape
    if len(shape) != _OUTPUT_RANK or not isinstance(shape[1], int):
        raise LoadError(f"{model} is not a sentence encoder: its output has the shape {shape}.")
    return shape[1]
