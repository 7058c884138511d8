"""Decoders in ONNX files with past and present key values, run by ONNX Runtime.

Which inputs a graph has, how its key values are laid out and which present belongs to which past
is read off the graph. Each sequence holds its own past, which passes from call to call without a
copy, in the device's memory where it has one. Forward passes of one model take turns. Knows nothing
of sampling or prompts.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edge.backends.base import ModelInfo
from edge.backends.label_loop import score_by_sequences
from edge.backends.onnx.auto import as_chosen, resolve_device
from edge.backends.onnx.past import Past, advance
from edge.backends.onnx.runner import Ask, Runner
from edge.backends.onnx.session import Opened
from edge.backends.onnx.tokens import encode_all, load_tokenizer, token_pieces
from edge.backends.questions import Question
from edge.backends.threads import fixed_threads
from edge.errors import InputError, LoadError, ModelError

_TYPES = {
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}
_PLAIN_INPUTS = frozenset({"input_ids", "attention_mask", "position_ids"})
_LOGITS_RANK = 3


@dataclass(frozen=True, slots=True)
class _Graph:
    """A decoder graph's inputs and outputs.

    Attributes:
        plain: type of each input that is not a past.
        past: empty past per input name.
        present: output names, in the order of ``past``.
        logits: name of the output with the logits, and its width.

    """

    plain: dict[str, Any]
    past: dict[str, NDArray[Any]]
    present: tuple[str, ...]
    logits: str
    vocab_size: int


class OnnxDecoder:
    """A causal language model in one ONNX file. Use ``open``; see ``edge.backends.base.Decoder``.

    Safe to call from several threads.
    """

    def __init__(
        self,
        runner: Runner,
        graph: _Graph,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        bos_token: int | None,
        end_tokens: Collection[int],
        io_binding: bool | None = None,
    ) -> None:
        self._runner = runner
        self._bind = io_binding
        self._graph = graph
        self._tokenizer = tokenizer
        self._info = info
        self._bos_token = bos_token
        self._end_tokens = frozenset(end_tokens)
        self._pieces, self._control = token_pieces(tokenizer)
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        model: Path,
        tokenizer: Path,
        *,
        name: str,
        digest: str,
        context: int = 2048,
        bos_token: int | None = None,
        end_tokens: Collection[int] = (),
        threads: int | None = None,
        device: str = "cpu",
        strict: bool = False,
        io_binding: bool | None = None,
        memory: Path | None = None,
    ) -> OnnxDecoder:
        """Load a decoder.

        Args:
            model: a graph from token ids and past key values to logits and present ones.
            tokenizer: a ``tokenizer.json``.
            name: the name it is known under.
            digest: sha256 of the model file.
            context: tokens one sequence may hold.
            bos_token: the token a prompt begins with; see ``genai_tokens``.
            end_tokens: tokens that end a generation.
            threads: threads per forward pass; 1 where ``None`` and ``EDGE_THREADS`` is not set.
            device: a key of ``edge.backends.onnx.providers.PROVIDERS``, or ``auto`` for the
                fastest one present.
            strict: a fallback to the CPU, of one node too, is an error; without it the reason is
                in ``info.placement``.
            io_binding: whether key values are bound to the session; where ``None``, where the
                device has a memory of its own. The answers are the same.
            memory: the file that remembers what ``auto`` chose.

        Raises:
            LoadError: a file is missing, broken or of the wrong kind.
            DeviceFallback: ``strict``, and the device is not there or does not take all of it.

        """
        words = load_tokenizer(tokenizer)
        ask = Ask(model, name, fixed_threads(threads) or 1, device, strict)

        def probe(opened: Opened) -> NDArray[Any]:
            graph = _read_graph(model, opened.session)
            return _advance(opened, graph, [0], 0, dict(graph.past), bind=io_binding)[0]

        ask, why = resolve_device(ask, digest, probe, memory=memory)
        runner = Runner(ask, as_chosen(ask.open(), why))
        graph = _read_graph(model, runner.session)
        info = ModelInfo(
            name=name,
            engine="onnx",
            digest=digest,
            device=runner.placement.used,
            context=context,
            vocab_size=graph.vocab_size,
            threads=ask.threads,
        )
        return cls(
            runner,
            graph,
            words,
            info,
            bos_token=bos_token,
            end_tokens=end_tokens,
            io_binding=io_binding,
        )

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        placement = self._runner.placement
        return dataclasses.replace(self._info, device=placement.used, placement=placement)

    def label_scores(
        self, prompt: Sequence[int], questions: Sequence[Question]
    ) -> list[list[float]]:
        """Return every label's log-probability, computed one label after another."""
        return score_by_sequences(self, prompt, questions)

    @property
    def scheduler(self) -> None:
        """Generations run through the loop in Python."""
        return None

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a generation."""
        return self._end_tokens

    def tokenize(
        self, text: str, *, add_bos: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the tokens of ``text``; see ``edge.backends.base.Decoder``.

        Raises:
            InputError: the text holds half of a surrogate pair.

        """
        with self._lock:
            self._tokenizer.encode_special_tokens = not parse_special
            tokens = list(encode_all(self._tokenizer, [text], special=False)[0].ids)
        return [self._bos_token, *tokens] if add_bos and self._bos_token is not None else tokens

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return one token's bytes; empty for control tokens unless ``special``.

        Raises:
            InputError: the token is not in the vocabulary.

        """
        if not 0 <= token < max(self._info.vocab_size, len(self._pieces)):
            raise InputError(f"Token {token} is not in the vocabulary of {self._info.name}.")
        if token >= len(self._pieces) or (token in self._control and not special):
            return b""
        return self._pieces[token]

    def sequence(self) -> OnnxSequence:
        """Open an empty sequence.

        Raises:
            ModelError: the model is closed.

        """
        if self._runner.session is None:
            raise ModelError(f"{self._info.name} is closed.", hint="Open it again.")
        return OnnxSequence(self, dict(self._graph.past))

    def close(self) -> None:
        """Free the model; calling twice is harmless, and a running forward pass ends first."""
        with self._lock:
            self._runner.close()

    def forward(
        self, tokens: Sequence[int], length: int, past: Past
    ) -> tuple[NDArray[np.float32], Past]:
        """Return the last row and the new past; for ``OnnxSequence`` only."""
        self._check(tokens, length)
        with self._lock:
            logits, present = self._runner.attempt(
                lambda opened: _advance(opened, self._graph, tokens, length, past, bind=self._bind)
            )
        row: NDArray[np.float32] = np.ascontiguousarray(logits[0, -1], np.float32)
        row.flags.writeable = False
        return row, present

    def _check(self, tokens: Sequence[int], length: int) -> None:
        total, limit = length + len(tokens), self._info.context
        if not tokens:
            raise InputError("A forward pass needs at least one token.")
        if min(tokens) < 0 or max(tokens) >= self._info.vocab_size:
            raise InputError(
                f"Tokens must be between 0 and {self._info.vocab_size - 1}; "
                f"{min(tokens)} to {max(tokens)} were given."
            )
        if total > limit:
            raise InputError(
                f"The sequence would hold {total} tokens; the context of {self._info.name} "
                f"holds {limit}.",
                hint="Shorten the text.",
            )


class OnnxSequence:
    """One sequence of an ``OnnxDecoder``; see ``edge.backends.base.DecoderSequence``."""

    def __init__(self, decoder: OnnxDecoder, past: Past) -> None:
        self._decoder = decoder
        self._past: Past | None = past
        self._length = 0

    def __len__(self) -> int:
        """Return the number of tokens held."""
        return self._length

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append ``tokens`` and return the row of logits after the last one.

        A read-only float32 ``[vocab_size]`` array. After an error the sequence is as before.

        Raises:
            InputError: there are no tokens, one is not in the vocabulary, or the sequence would
                outgrow the context.
            GenerationError: the engine failed.
            ModelError: the sequence or the model is closed.

        """
        if self._past is None:
            raise ModelError("The sequence is closed.", hint="Open a new one.")
        row, self._past = self._decoder.forward(tokens, self._length, self._past)
        self._length += len(tokens)
        return row

    def close(self) -> None:
        """Drop the past; calling twice is harmless."""
        self._past = None


@dataclass(frozen=True, slots=True)
class GenaiTokens:
    """What a ``genai_config.json`` says of a decoder's tokens."""

    context: int
    bos_token: int | None
    end_tokens: frozenset[int]


def genai_tokens(path: Path) -> GenaiTokens:
    """Read the token facts of a ``genai_config.json``.

    Raises:
        LoadError: the file is missing or not such a file.

    """
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
        ends = model["eos_token_id"]
        bos = model.get("bos_token_id")
        return GenaiTokens(
            context=int(model["context_length"]),
            bos_token=None if bos is None else int(bos),
            end_tokens=frozenset(ends if isinstance(ends, list) else [int(ends)]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{path} is not a usable genai_config.json: {error!r}.") from error


def _advance(
    opened: Opened,
    graph: _Graph,
    tokens: Sequence[int],
    length: int,
    past: Past,
    *,
    bind: bool | None,
) -> tuple[NDArray[Any], Past]:
    return advance(
        opened,
        _plain(graph, tokens, length),
        past,
        logits=graph.logits,
        present=graph.present,
        bind=bind,
    )


def _plain(graph: _Graph, tokens: Sequence[int], length: int) -> dict[str, NDArray[Any]]:
    total = length + len(tokens)
    values = {
        "input_ids": np.array([tokens]),
        "attention_mask": np.ones((1, total)),
        "position_ids": np.arange(length, total)[None],
    }
    return {name: values[name].astype(kind) for name, kind in graph.plain.items()}


def _read_graph(model: Path, session: Any) -> _Graph:
    inputs = {entry.name: entry for entry in session.get_inputs()}
    outputs = {entry.name: entry for entry in session.get_outputs()}
    logits = outputs.get("logits")
    if "input_ids" not in inputs or logits is None or len(logits.shape) != _LOGITS_RANK:
        raise LoadError(
            f"{model} is not a decoder: its inputs are {sorted(inputs)} and its outputs are "
            f"{sorted(outputs)}."
        )
    if not isinstance(logits.shape[-1], int):
        raise LoadError(f"{model} does not say how many tokens it knows.")
    pasts = [name for name in inputs if name not in _PLAIN_INPUTS]
    presents = [_present_of(name) for name in pasts]
    if unpaired := [name for name in presents if name not in outputs]:
        raise LoadError(f"{model} is not a decoder with key values: it has no output {unpaired}.")
    return _Graph(
        plain={name: _type_of(model, inputs[name]) for name in inputs if name in _PLAIN_INPUTS},
        past={name: _empty_past(model, inputs[name]) for name in pasts},
        present=tuple(presents),
        logits="logits",
        vocab_size=logits.shape[-1],
    )


def _present_of(past: str) -> str:
    if past.startswith("past_key_values"):
        return past.replace("past_key_values", "present", 1)
    return past.replace("past", "present", 1)


def _type_of(model: Path, entry: Any) -> Any:
    if entry.type not in _TYPES:
        raise LoadError(f"{model} has the input {entry.name} of the type {entry.type}.")
    return _TYPES[entry.type]


def _empty_past(model: Path, entry: Any) -> NDArray[Any]:
    """Return a past of no tokens: fixed axes as they are, one sequence, an empty length."""
    shape = [
        axis if isinstance(axis, int) else 1 if "batch" in str(axis) else 0 for axis in entry.shape
    ]
    if shape.count(0) != 1:
        raise LoadError(f"{model} has the input {entry.name} of the shape {entry.shape}.")
    return np.empty(shape, _type_of(model, entry))
