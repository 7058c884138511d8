"""Typed decisions: how probable is each label after a prompt, without generating one.

The labels of a question form a trie of tokens, each closed by an end token. Every inner node's row
of logits gives the log-probabilities of its children; a label's is the sum along its path, and over
the labels of a question they are normalised to a distribution (label-set likelihood). What computes
the rows is up to the engine: see ``llama_decide`` and, for engines that can only extend sequences,
``label_loop``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.errors import InputError

NEGLIGIBLE = 14.0
"""Nats below the best at which a label is not followed further: less than a millionth."""


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


def likely(
    nodes: Sequence[Node], reached: dict[int, float], known: Mapping[int, Mapping[int, float]]
) -> list[int]:
    """Return the nodes to compute next, parents first; none once the rest cannot matter.

    A node matters while the log-probability that reaches it, which bounds every label below it, is
    within ``NEGLIGIBLE`` of the best label or bound. Below a node of a single label all of its path
    is asked for at once.

    Args:
        nodes: a trie.
        reached: filled with the log-probability of reaching each node.
        known: log-probabilities of children by token, for the nodes computed so far.

    """
    best, waiting = -math.inf, []
    for index, node in enumerate(nodes):
        if index not in reached:
            continue
        if index not in known:
            waiting.append(index)
            best = max(best, reached[index])
            continue
        for token, value in known[index].items():
            child = node.children[token]
            best = max(best, reached[index] + value) if child < 0 else best
            if child >= 0:
                reached[child] = reached[index] + value
    wave = [index for index in waiting if reached[index] > best - NEGLIGIBLE]
    return sorted(set(wave).union(*(_path_below(nodes, index) for index in wave)))


def _path_below(nodes: Sequence[Node], index: int) -> list[int]:
    found = []
    while len(nodes[index].labels) == 1:
        (child,) = nodes[index].children.values()
        if child < 0:
            break
        found.append(child)
        index = child
    return found


def bounded_scores(
    question: Question, nodes: Sequence[Node], known: Mapping[int, Mapping[int, float]]
) -> list[float]:
    """Return every label's log-probability, its end token included.

    A label whose path was not followed to its end has the log-probability of the part that was: an
    upper bound, too small to matter beside the best.
    """
    scores = [-math.inf] * len(question.labels)
    reached = [0.0] * len(nodes)
    for index, node in enumerate(nodes):
        for token, child in node.children.items():
            value = reached[index] + known.get(index, {}).get(token, 0.0)
            if child < 0:
                scores[-1 - child] = value
            else:
                reached[child] = value
    return scores


def distribution(scores: Sequence[float]) -> NDArray[np.float64]:
    """Return normalised probabilities, float64 ``[labels]``."""
    values = np.array(scores, dtype=np.float64)
    shares = np.exp(values - values.max())
    return np.asarray(shares / shares.sum())
