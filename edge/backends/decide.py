"""Typed decisions: how probable is each label after a prompt, without generating one.

The labels of a question form a trie of tokens, each closed by an end token. Every inner node's row
of logits gives the log-probabilities of its children; a label's is the sum along its path, and over
the labels of a question they are normalised to a distribution (label-set likelihood). What computes
the rows is up to the engine; ``score_by_sequences`` serves engines that can only extend sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.backends.base import Decoder
from edge.errors import InputError

LogProbs = Callable[[Sequence[int]], list[float]]


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a prompt.

    Attributes:
        suffix: tokens between the shared prompt and the answer.
        labels: tokens of each label, without the end token; none may be empty.
        end: the token that closes a label.

    """

    suffix: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]
    end: int


@dataclass(slots=True)
class Node:
    """A node of a trie; the root has no token.

    Attributes:
        parent: index of the parent in the trie's list, -1 for the root.
        depth: tokens from the root.
        children: index by token; the end token leads to -1 - label.
        labels: indices of the labels below.

    """

    token: int
    parent: int
    depth: int
    children: dict[int, int] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)


def trie(question: Question) -> list[Node]:
    """Return the nodes of a question's labels, parents before children, the root first.

    Raises:
        InputError: a label is empty, or two are the same tokens.

    """
    nodes = [Node(-1, -1, 0)]
    for index, label in enumerate(question.labels):
        if not label:
            raise InputError(f"Label {index} has no tokens.")
        at = 0
        nodes[0].labels.append(index)
        for token in label:
            if token not in nodes[at].children:
                nodes[at].children[token] = len(nodes)
                nodes.append(Node(token, at, nodes[at].depth + 1))
            at = nodes[at].children[token]
            nodes[at].labels.append(index)
        if question.end in nodes[at].children:
            raise InputError(f"Label {index} is the same tokens as an earlier one.")
        nodes[at].children[question.end] = -1 - index
    return nodes


def label_scores(
    question: Question, nodes: Sequence[Node], row: Callable[[int], LogProbs]
) -> list[float]:
    """Return the log-probability of every label, its end token included.

    Args:
        question: what was asked.
        nodes: its trie.
        row: from a node's index to what reads log-probabilities off its row of logits.

    """
    reached = [0.0] * len(nodes)
    scores = [-math.inf] * len(question.labels)
    for index, node in enumerate(nodes):
        tokens = list(node.children)
        for token, value in zip(tokens, row(index)(tokens), strict=True):
            child = node.children[token]
            if child < 0:
                scores[-1 - child] = reached[index] + value
            else:
                reached[child] = reached[index] + value
    return scores


def distribution(scores: Sequence[float]) -> NDArray[np.float64]:
    """Return normalised probabilities, float64 ``[labels]``."""
    values = np.array(scores, dtype=np.float64)
    shares = np.exp(values - values.max())
    return np.asarray(shares / shares.sum())


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
        rows: dict[int, NDArray[np.float64]] = {}
        for label in question.labels:
            sequence = decoder.sequence()
            try:
                row, at = sequence.forward([*prompt, *question.suffix]), 0
                rows.setdefault(0, _log_softmax(row))
                for token in label:
                    row, at = sequence.forward([token]), nodes[at].children[token]
                    rows.setdefault(at, _log_softmax(row))
            finally:
                sequence.close()
        found.append(label_scores(question, nodes, _reader(rows)))
    return found


def _log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    values = row.astype(np.float64)
    values -= values.max()
    return np.asarray(values - np.log(np.exp(values).sum()))


def _reader(rows: Mapping[int, NDArray[np.float64]]) -> Callable[[int], LogProbs]:
    return lambda node: lambda tokens: [float(rows[node][token]) for token in tokens]
