"""Copy-constrained decoding: which tokens may come next so that an answer is a grounded call.

An answer opens with an intent; each key belongs to that intent and comes once; each value is a run
of tokens as it stands in the utterance. Pure: takes and returns token ids. The model's own greedy
answers are measured without it; this is the extra row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Grammar:
    """The structure tokens of calls, as ids.

    Attributes:
        keys: for each intent token the key tokens it may have.
        quote: the token that closes a value.
        brace: the token that closes the call.
        end: the token that ends the generation.

    """

    keys: Mapping[int, frozenset[int]]
    quote: int
    brace: int
    end: int


def grammar(vocabulary: Mapping[str, int], slots: Mapping[str, Iterable[str]]) -> Grammar:
    """Return the grammar of a vocabulary; ``slots`` names every intent's slots."""
    keys = {
        vocabulary[f'{{"intent": "{intent}"']: frozenset(
            vocabulary[f', "{name}": "'] for name in names
        )
        for intent, names in slots.items()
    }
    return Grammar(keys, vocabulary['"'], vocabulary["}"], vocabulary["</s>"])


def allowed(rules: Grammar, utterance: Sequence[int], answer: Sequence[int]) -> set[int]:
    """Return the tokens that may follow ``answer`` for an utterance's tokens."""
    if not answer:
        return set(rules.keys)
    keys = rules.keys[answer[0]]
    value: list[int] | None = None
    used: set[int] = set()
    for token in answer[1:]:
        if token == rules.brace:
            return {rules.end}
        if value is None:
            used.add(token)
            value = []
        elif token == rules.quote:
            value = None
        else:
            value.append(token)
    if value is None:
        return {rules.brace, *(keys - used)}
    if not value:
        return set(utterance)
    return {rules.quote, *_following(utterance, value)}


def _following(utterance: Sequence[int], value: Sequence[int]) -> set[int]:
    size, run = len(value), list(value)
    return {
        utterance[start + size]
        for start in range(len(utterance) - size)
        if list(utterance[start : start + size]) == run
    }
