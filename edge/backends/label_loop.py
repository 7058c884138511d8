"""Scores of labels, one label after another: for engines that can only extend a sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge.backends.base import Decoder
from edge.backends.questions import Question, bounded_scores, trie


def score_by_sequences(
    decoder: Decoder, prompt: Sequence[int], questions: Sequence[Question]
) -> list[list[float]]:
    """Score with one sequence a label: for engines without a batch of branches.

    Raises:
        InputError: as ``trie``; or the prompt does not fit.
        GenerationError: the engine failed.

    """
    found = []
    for question in questions:
        nodes = trie(question)
        known: dict[int, dict[int, float]] = {}
        for label in question.labels:
            sequence, at = decoder.sequence(), 0
            try:
                row = sequence.forward([*prompt, *question.suffix])
                for token in (*label, None):
                    known.setdefault(at, _log_probs(row, nodes[at].children))
                    if token is not None:
                        row, at = sequence.forward([token]), nodes[at].children[token]
            finally:
                sequence.close()
        found.append(bounded_scores(question, nodes, known))
    return found


def _log_probs(row: NDArray[np.float32], tokens: Iterable[int]) -> dict[int, float]:
    values = row.astype(np.float64)
    values -= values.max()
    log_sum = np.log(np.exp(values).sum())
    return {token: float(values[token] - log_sum) for token in tokens}
