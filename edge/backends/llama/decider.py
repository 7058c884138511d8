"""Decisions on a GGUF model: one pass over the prompt, then the branches that can still matter.

A context of its own over the model's weights, made on first use, with one KV cache for all
branches: a token that several labels share is computed once and seen by each. Rows are read where
llama.cpp put them. One decision at a time.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edge._native.sampling import log_probs_at
from edge.backends.llama.handles import FailedError, Handles
from edge.backends.questions import Node, Question, bounded_scores, likely, trie
from edge.errors import InputError

ROWS = 64
"""Rows of logits one pass may give, and sequences: llama.cpp keeps room for a row of each."""

MOST_BRANCHES = ROWS - 1


class Decider:
    """Scores labels on one loaded model. Safe to call from several threads.

    Args:
        handles: the model.
        threads: of a forward pass.

    """

    def __init__(self, handles: Handles, *, threads: int) -> None:
        self._handles = handles
        self._threads = threads
        self._lock = threading.Lock()
        self._context: Any = None

    def scores(self, prompt: Sequence[int], questions: Sequence[Question]) -> list[list[float]]:
        """Return the log-probability of every label of every question.

        Args:
            prompt: at least one token, read once for all questions.
            questions: each with its own end of the prompt and its own labels.

        Raises:
            InputError: no prompt, a prompt that does not fit, or labels that are no choice.
            FailedError: a forward pass failed.

        """
        tries = [trie(question) for question in questions]
        deepest = max(node.depth for nodes in tries for node in nodes)
        longest = max(len(question.suffix) for question in questions)
        if not prompt or len(prompt) + longest + deepest > self._handles.limit:
            raise InputError(
                f"The prompt of {len(prompt)} tokens and the labels do not fit the context of "
                f"{self._handles.limit} tokens.",
                hint="Shorten the text.",
            )
        with self._lock, self._handles.context_lock:
            run = _Run(self._handles, self._open())
            try:
                return run.scores(prompt, list(zip(questions, tries, strict=True)))
            finally:
                run.clear()

    def close(self) -> None:
        """Free the context; the model must still be there."""
        with self._lock:
            context, self._context = self._context, None
            if context:
                self._handles.lib.llama_free(context)

    def _open(self) -> Any:
        if self._context is None:
            self._context = self._handles.branching_context(ROWS)
            self._handles.lib.llama_set_n_threads(self._context, self._threads, self._threads)
        return self._context


class _Run:
    """One call: the prompt in sequence 0, a question's suffix and every label in one each."""

    def __init__(self, handles: Handles, context: Any) -> None:
        self._handles = handles
        self._lib = handles.lib
        self._context = context
        self._memory = handles.lib.llama_get_memory(context)
        self._batch = _Batch(handles.lib, handles.batch)
        self._most = min(ROWS, handles.batch)

    def clear(self) -> None:
        """Forget everything."""
        self._lib.llama_memory_clear(self._memory, False)  # noqa: FBT003

    def scores(
        self, prompt: Sequence[int], asked: Sequence[tuple[Question, list[Node]]]
    ) -> list[list[float]]:
        """Return every question's scores."""
        self._read(prompt[:-1], 0, 0, last=False)
        found: list[list[float]] = []
        for question, nodes in asked:
            scores = [0.0] * len(question.labels)
            for labels in _groups(len(question.labels)):
                part = replace(question, labels=tuple(question.labels[i] for i in labels))
                own = nodes if len(labels) == len(question.labels) else trie(part)
                for index, value in zip(labels, self._question(prompt, part, own), strict=True):
                    scores[index] = value
            found.append(scores)
        return found

    def _question(
        self, prompt: Sequence[int], question: Question, nodes: list[Node]
    ) -> list[float]:
        """Read the prompt's last token, a question's suffix and its trie, and forget them again.

        The cells of the prompt are shared with every label, not copied.
        """
        known: dict[int, dict[int, float]] = {}
        start = len(prompt) - 1
        row = self._read([*prompt[-1:], *question.suffix], start, 0, last=True)
        self._keep(known, nodes, 0, row)
        base = len(prompt) + len(question.suffix)
        for label in range(len(question.labels)):
            self._lib.llama_memory_seq_cp(self._memory, 0, label + 1, -1, -1)
        reached = {0: 0.0}
        while wave := likely(nodes, reached, known):
            for index in wave[: self._most]:
                node = nodes[index]
                sequences = [label + 1 for label in node.labels]
                self._batch.add(node.token, base + node.depth - 1, sequences, row=True)
            self._decode()
            for place, index in enumerate(wave[: self._most]):
                self._keep(known, nodes, index, self._address(place))
        for label in range(len(question.labels)):
            self._lib.llama_memory_seq_rm(self._memory, label + 1, -1, -1)
        self._lib.llama_memory_seq_rm(self._memory, 0, start, -1)
        return bounded_scores(question, nodes, known)

    def _keep(
        self, known: dict[int, dict[int, float]], nodes: list[Node], index: int, row: int
    ) -> None:
        tokens = list(nodes[index].children)
        values = log_probs_at(row, self._handles.vocab_size, tokens)
        known[index] = dict(zip(tokens, values, strict=True))

    def _read(self, tokens: Sequence[int], position: int, sequence: int, *, last: bool) -> int:
        """Append tokens to a sequence; return the address of the last one's row where asked."""
        for start in range(0, len(tokens), self._handles.batch):
            part = tokens[start : start + self._handles.batch]
            for offset, token in enumerate(part):
                final = last and start + offset == len(tokens) - 1
                self._batch.add(token, position + start + offset, [sequence], row=final)
            self._decode()
        return self._address(-1) if last else 0

    def _decode(self) -> None:
        status = self._lib.llama_decode(self._context, self._batch.take())
        if status != 0:
            raise FailedError(f"llama_decode gave code {status}")

    def _address(self, place: int) -> int:
        pointer = self._lib.llama_get_logits_ith(self._context, place)
        return ctypes.cast(pointer, ctypes.c_void_p).value or 0


class _Batch:
    """A ``llama_batch`` whose tokens may belong to several sequences."""

    def __init__(self, lib: Any, size: int) -> None:
        self._lib = lib
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._counts = np.zeros(size, np.int32)
        self._output = np.zeros(size, np.int8)
        self._pointers = (ctypes.POINTER(ctypes.c_int32) * size)()
        self._owned: list[Any] = []
        self._count = 0

    def add(self, token: int, position: int, sequences: Sequence[int], *, row: bool) -> None:
        """Append one token."""
        at = self._count
        self._tokens[at], self._positions[at] = token, position
        self._counts[at], self._output[at] = len(sequences), row
        ids = (ctypes.c_int32 * len(sequences))(*sequences)
        self._owned.append(ids)
        self._pointers[at] = ctypes.cast(ids, ctypes.POINTER(ctypes.c_int32))
        self._count += 1

    def take(self) -> Any:
        """Return the batch and start a new one; valid until the next ``add``."""
        int32 = ctypes.POINTER(ctypes.c_int32)
        made = self._lib.llama_batch(
            n_tokens=self._count,
            token=self._tokens.ctypes.data_as(int32),
            embd=None,
            pos=self._positions.ctypes.data_as(int32),
            n_seq_id=self._counts.ctypes.data_as(int32),
            seq_id=ctypes.cast(self._pointers, ctypes.POINTER(int32)),
            logits=self._output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        self._kept, self._owned, self._count = self._owned, [], 0
        return made


def _groups(labels: int) -> Iterator[range]:
    for start in range(0, labels, MOST_BRANCHES):
        yield range(start, min(start + MOST_BRANCHES, labels))
