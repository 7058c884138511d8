"""Sentence encoders in ONNX files, run by ONNX Runtime.

By default every text has a forward pass of its own: dynamically quantized graphs scale all that
shares a pass together, and the same text must give the same vector whatever stands beside it. Safe
to call from several threads. Knows nothing of heads or labels. ``OnnxDecoder`` is reached from
here and lives in a module of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from edge.backends.base import ModelInfo
from edge.backends.hf_tokens import encode_all, load_tokenizer
from edge.backends.onnx_decoder import OnnxDecoder
from edge.backends.onnx_session import open_session, run_session
from edge.backends.threads import choose_threads, fixed_threads, thread_candidates
from edge.errors import InputError, LoadError, ModelError

__all__ = ["OnnxDecoder", "OnnxEncoder"]

_KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_OUTPUT_RANK = 2
_PROBE_TEXT = "why has my new card not arrived yet, it has been more than two weeks?"


class OnnxEncoder:
    """A sentence encoder whose graph ends in one unit vector per text. Use ``open``."""

    def __init__(
        self, session: Any, tokenizer: Tokenizer, info: ModelInfo, *, max_batch: int = 1
    ) -> None:
        self._session: Any = session
        self._tokenizer = tokenizer
        self._info = info
        self._max_batch = max_batch
        self._inputs = [entry.name for entry in session.get_inputs()]
        self._output = _output(session).name

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
        max_batch: int = 1,
    ) -> OnnxEncoder:
        """Load an encoder.

        Args:
            model: a graph with the inputs ``input_ids`` and ``attention_mask`` (and maybe
                ``token_type_ids``), int64 ``[batch, length]``, and an output ``[batch, width]``.
            tokenizer: a ``tokenizer.json``.
            name: the name it is known under.
            digest: sha256 of the model file.
            max_tokens: longer texts are cut to this, the closing special tokens kept.
            threads: threads per forward pass; measured where ``None``.
            device: see ``edge.backends.onnx_session.PROVIDERS``.
            max_batch: the most texts of one length in a forward pass. Above 1 is faster, but the
                vectors of a dynamically quantized graph then depend on their neighbours.

        Raises:
            LoadError: a file is missing, broken or of the wrong kind.
            DeviceFallback: the device is not there.
            InputError: ``max_batch`` or ``max_tokens`` is too small.

        """
        if max_batch < 1 or max_tokens < 1:
            raise InputError(f"max_batch ({max_batch}) and max_tokens ({max_tokens}) start at 1.")
        words = load_tokenizer(tokenizer)
        fixed = fixed_threads(threads)
        if fixed is None:
            session, chosen = _fastest(model, words, device)
        else:
            session, chosen = open_session(model, threads=fixed, device=device), fixed
            _check_inputs(model, session)
        info = ModelInfo(
            name=name,
            engine="onnx",
            digest=digest,
            device=device,
            context=max_tokens,
            dimensions=_width(model, session),
            threads=chosen,
        )
        return cls(session, words, info, max_batch=max_batch)

    @property
    def info(self) -> ModelInfo:
        """What is known of the model; ``context`` is the most tokens read of a text."""
        return self._info

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one unit vector per text, float32 ``[len(texts), dimensions]``.

        Raises:
            InputError: a text holds half of a surrogate pair.
            GenerationError: the engine failed.
            ModelError: the encoder is closed.

        """
        session = self._open_session()
        rows = [self._ids(encoding) for encoding in encode_all(self._tokenizer, texts)]
        vectors = np.empty((len(rows), self._info.dimensions), np.float32)
        for group in self._groups(rows):
            feed = self._feed([rows[index] for index in group])
            found = run_session(session.run, [self._output], feed, name=self._info.name)[0]
            norms = np.linalg.norm(found, axis=1, keepdims=True)
            vectors[group] = found / np.maximum(norms, np.finfo(np.float32).tiny)
        return vectors

    def count_tokens(self, text: str) -> int:
        """Return how many tokens ``text`` has before truncation, special tokens included.

        Raises:
            InputError: the text holds half of a surrogate pair.

        """
        return len(encode_all(self._tokenizer, [text])[0].ids)

    def close(self) -> None:
        """Free the model; calling twice is harmless, and a running ``embed`` ends first."""
        self._session = None

    def _open_session(self) -> Any:
        session = self._session
        if session is None:
            raise ModelError(f"{self._info.name} is closed.", hint="Open it again.")
        return session

    def _ids(self, encoding: Encoding) -> list[int]:
        """Return the token ids, cut in the text and not in the special tokens that close it."""
        ids, limit = encoding.ids, self._info.context
        if len(ids) <= limit:
            return list(ids)
        closing = 0
        while closing < limit and encoding.special_tokens_mask[-1 - closing]:
            closing += 1
        return [*ids[: limit - closing], *ids[len(ids) - closing :]]

    def _groups(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return indices of rows of one length, at most ``max_batch`` together."""
        groups: list[list[int]] = []
        for index in sorted(range(len(rows)), key=lambda index: len(rows[index])):
            last = groups[-1] if groups else []
            if last and len(last) < self._max_batch and len(rows[last[0]]) == len(rows[index]):
                last.append(index)
            else:
                groups.append([index])
        return groups

    def _feed(self, rows: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
        return _feed(rows, self._inputs)


def _feed(rows: Sequence[Sequence[int]], inputs: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    ids = np.array(rows, np.int64)
    columns = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    return {name: columns[name] for name in inputs}


def _fastest(model: Path, tokenizer: Tokenizer, device: str) -> tuple[Any, int]:
    """Return the session with the fastest thread count; the other ones are dropped."""
    sessions: dict[int, Any] = {}
    probe = [encode_all(tokenizer, [_PROBE_TEXT])[0].ids]

    def session_with(threads: int) -> Any:
        if threads not in sessions:
            sessions[threads] = open_session(model, threads=threads, device=device)
            _check_inputs(model, sessions[threads])
        return sessions[threads]

    def measure(threads: int) -> float:
        session = session_with(threads)
        feed = _feed(probe, [entry.name for entry in session.get_inputs()])
        begin = time.perf_counter()
        run_session(session.run, [_output(session).name], feed, name=model.name)
        return time.perf_counter() - begin

    chosen = choose_threads(measure, candidates=thread_candidates())
    return session_with(chosen), chosen


def _check_inputs(model: Path, session: Any) -> None:
    names = {entry.name for entry in session.get_inputs()}
    if not {"input_ids"} <= names <= _KNOWN_INPUTS:
        raise LoadError(f"{model} is not a sentence encoder: its inputs are {sorted(names)}.")


def _output(session: Any) -> Any:
    outputs = session.get_outputs()
    return next((entry for entry in outputs if entry.name == "embedding"), outputs[0])


def _width(model: Path, session: Any) -> int:
    shape = _output(session).shape
    if len(shape) != _OUTPUT_RANK or not isinstance(shape[1], int):
        raise LoadError(f"{model} is not a sentence encoder: its output has the shape {shape}.")
    return shape[1]
