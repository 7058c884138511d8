"""Local decisions: which of its labels a text gets, and how probable each of them is.

A head answers from a sentence vector, a decoder from the log-probabilities of its labels. Tasks on
one decoder whose prompts begin alike share one pass over what they share. Knows nothing of routing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.backends.base import Decoder
from edge.backends.questions import Question, distribution
from edge.errors import ConfigError
from edge.task import Prompt, TaskSpec
from edge.types import Choice


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to a decoder.

    Attributes:
        name: the task's name.
        spec: the task, with labels.
        tokens: its prompt with the text in it.

    """

    name: str
    spec: TaskSpec
    tokens: tuple[int, ...]


def choose(decoder: Decoder, asked: Sequence[Asked]) -> list[Choice]:
    """Return a decision for every question, in order.

    Raises:
        ConfigError: two labels of a task are the same tokens for this model.
        InputError: a prompt does not fit the context.
        GenerationError: the engine failed.

    """
    prompt = _common([entry.tokens for entry in asked])
    if not prompt:
        return [choice for entry in asked for choice in choose(decoder, [entry])]
    end = _end(decoder)
    questions = [
        Question(entry.tokens[len(prompt) :], _label_tokens(decoder, entry), end) for entry in asked
    ]
    found = decoder.label_scores(prompt, questions)
    return [_as_choice(decoder, entry, scores) for entry, scores in zip(asked, found, strict=True)]


def signals(choice: Choice) -> dict[str, float]:
    """Return the numbers that tell a sure decision from a doubtful one.

    Keys: probability, margin (log-odds of the best label to the second), entropy (nats over the
    labels), log_mass.
    """
    shares = np.sort(np.array(list(choice.distribution.values())))[::-1]
    best, second = float(shares[0]), float(shares[1]) if len(shares) > 1 else 0.0
    held = shares[shares > 0]
    return {
        "probability": best,
        "margin": math.log(max(best, 1e-12) / max(second, 1e-12)),
        "entropy": float(-(held * np.log(held)).sum()),
        "log_mass": choice.log_mass,
    }


def wording(prompt: Prompt, spec: TaskSpec) -> str:
    """Return the digest of everything that was asked: part of a calibration's key."""
    body = "\0".join((prompt.digest, spec.label_form, *spec.labels))
    return hashlib.sha256(body.encode()).hexdigest()


def _common(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return what all rows begin with."""
    same = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        same += 1
    return tuple(rows[0][:same])


def _end(decoder: Decoder) -> int:
    if not decoder.end_tokens:
        raise ConfigError(
            f"Model {decoder.info.name} has no end token, which closes a label.",
            hint="Choose another model for decisions.",
        )
    return min(decoder.end_tokens)


def _label_tokens(decoder: Decoder, asked: Asked) -> tuple[tuple[int, ...], ...]:
    found: dict[tuple[int, ...], str] = {}
    for label in asked.spec.labels:
        written = asked.spec.label_form.replace("{label}", label)
        tokens = tuple(decoder.tokenize(written, add_bos=False))
        if not tokens or tokens in found:
            same = f"the same tokens as {found[tokens]!r}" if tokens else "no tokens"
            raise ConfigError(f"Label {label!r} of task {asked.name} has {same} for this model.")
        found[tokens] = label
    return tuple(found)


def _as_choice(decoder: Decoder, asked: Asked, scores: Sequence[float]) -> Choice:
    shares = distribution(scores)
    best = int(shares.argmax())
    top = max(scores)
    mass = top + math.log(sum(math.exp(score - top) for score in scores))
    return Choice(
        value=asked.spec.labels[best],
        distribution=dict(zip(asked.spec.labels, shares.tolist(), strict=True)),
        log_mass=min(mass, 0.0),
        model=decoder.info.name,
        digest=decoder.info.digest,
        device=decoder.info.device,
        tokens_in=len(asked.tokens),
    )
