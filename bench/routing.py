"""How many calls of a strong model does it take to keep 95 % of its accuracy, chosen by the prompt?

Right and wrong answers of a weak and a strong model on MMLU and GSM8K are known beforehand. The
router sees the prompt alone, before anything is generated: the shipped encoder's vector, a dozen
counts of characters and words, and for MMLU the subject. A logistic map says how likely the weak
model is wrong; every prompt is scored by a map fitted on other folds, equal prompts in one fold.
The strength of its pull, 300 for both sets, was picked from 30, 100, 300 and 1,000 by such
cross-validated figures: they lay between 53 and 55 % on MMLU, 55 and 62 % on GSM8K. The share of
calls is the least at which the order reaches the target, which takes hindsight as for any curve;
the interval is a bootstrap over prompts. The first run embeds 8,654 prompts in some minutes and
keeps the vectors.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from _common import Row, at_most, main, shared
from _vectors import kept_at, vectors
from numpy.typing import NDArray

from edge.confidence.logistic import fit_logistic

Floats = NDArray[np.float64]
Ints = NDArray[np.int_]

TARGET = 0.95
BARS = {"mmlu": 0.55, "gsm8k": 0.70}
SHOWN = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_FOLDS = 5
_REPEATS = {"mmlu": 2, "gsm8k": 10}
_PULL = 300.0  # of the logistic map, over columns of about unit variance
_VECTOR_SCALE = 10.0  # a unit vector's 384 numbers have a standard deviation of about 0.05
_SUBJECT_SCALE = 3.0
_NEIGHBOURS = 40
_STEPS = r"\b(half|twice|times|percent|each|per|more|less|total|rest|remain\w*)\b"


@dataclass(frozen=True)
class Prompts:
    """Prompts of one set with the outcomes of both models, 0 or 1, ``[n]``."""

    name: str
    texts: Sequence[str]
    subject: NDArray[np.str_]
    weak: Floats
    strong: Floats


def read(name: str) -> Prompts:
    """Return a set's prompts."""
    texts, subjects, weak, strong = [], [], [], []
    for path in sorted(shared("data", "routing").glob(f"{name}*.jsonl")):
        # Some prompts hold separators that str.splitlines takes for the end of a line.
        for line in path.read_text("utf-8").split("\n"):
            if not line:
                continue
            row = json.loads(line)
            texts.append(str(row["prompt"]))
            subjects.append(path.stem)
            weak.append(float(bool(row["weak_ok"])))
            strong.append(float(bool(row["strong_ok"])))
    return Prompts(name, texts, np.array(subjects), np.array(weak), np.array(strong))


def counts_of(text: str) -> list[float]:
    """Return what can be counted in a prompt."""
    words = text.split()
    return [
        float(np.log1p(len(text))),
        float(np.log1p(len(words))),
        float(len(re.findall(r"\d+", text))),
        sum(each.isdigit() for each in text) / max(len(text), 1),
        float(text.count("\n")),
        float(text.count("?")),
        float(text.count("%") + text.count("$")),
        sum(map(len, words)) / max(len(words), 1),
        float(len(re.findall(_STEPS, text))),
        float(any(word in text for word in ("NOT", "EXCEPT"))),
        len({word.lower() for word in words}) / max(len(words), 1),
        float(text.count(".")),
        float(text.count(",")),
    ]


def columns(prompts: Prompts, embedded: Floats, *, subject: bool) -> Floats:
    """Return what the map looks at, ``[prompts, columns]``."""
    counts = np.array([counts_of(text) for text in prompts.texts])
    counts = (counts - counts.mean(axis=0)) / np.maximum(counts.std(axis=0), 1e-9)
    parts = [embedded * _VECTOR_SCALE, counts]
    if subject:
        names = np.unique(prompts.subject)
        parts.append((prompts.subject[:, None] == names) * _SUBJECT_SCALE)
    return np.column_stack(parts)


def folds(prompts: Prompts, seed: int) -> Ints:
    """Return a fold per prompt; equal prompts share one."""
    number = {text: at for at, text in enumerate(dict.fromkeys(prompts.texts))}
    drawn = np.random.default_rng(seed).integers(_FOLDS, size=len(number))
    found: Ints = drawn[[number[text] for text in prompts.texts]]
    return found


def routed(prompts: Prompts, table: Floats, *, repeats: int) -> Floats:
    """Return how likely the weak model is wrong, in log-odds made without a prompt's own fold.

    The mean over ``repeats`` ways to fold.
    """
    wrong = 1.0 - prompts.weak
    odds = np.zeros(len(wrong))
    for seed in range(repeats):
        fold = folds(prompts, seed)
        for out in range(_FOLDS):
            inside = fold != out
            weights = fit_logistic(table[inside], wrong[inside], l2=_PULL)
            odds[~inside] += (table[~inside] @ weights[:-1] + weights[-1]) / repeats
    return odds


def neighbours(prompts: Prompts, embedded: Floats) -> Floats:
    """Return the share of the 40 nearest prompts of other folds that the weak model got wrong."""
    fold, found = folds(prompts, 0), np.empty(len(prompts.weak))
    for out in range(_FOLDS):
        inside = np.flatnonzero(fold != out)
        near = embedded[fold == out] @ embedded[inside].T
        closest = np.argpartition(-near, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
        found[fold == out] = 1.0 - prompts.weak[inside[closest]].mean(axis=1)
    return found


def by_subject(prompts: Prompts) -> Floats:
    """Return the share of prompts of a subject, in other folds, that the weak model got wrong."""
    fold, found = folds(prompts, 0), np.empty(len(prompts.weak))
    for out in range(_FOLDS):
        for name in np.unique(prompts.subject):
            same = prompts.subject == name
            rest = same & (fold != out)
            found[same & (fold == out)] = 1.0 - prompts.weak[rest].mean()
    return found


def curve(order: Floats, weak: Floats, strong: Floats) -> Floats:
    """Return the accuracy with the first 0, 1, … n prompts sent up, highest ``order`` first."""
    first = np.argsort(-order, kind="stable")
    gained = np.concatenate([[0.0], np.cumsum((strong - weak)[first])])
    found: Floats = weak.mean() + gained / len(weak)
    return found


def calls(order: Floats, weak: Floats, strong: Floats) -> float:
    """Return the least share of calls whose accuracy is the target."""
    reached = curve(order, weak, strong) >= TARGET * strong.mean() - 1e-12
    return float(np.argmax(reached) / len(weak))


def interval(order: Floats, prompts: Prompts, draws: int) -> tuple[float, float]:
    """Return the 5 and 95 % quantiles of the share over resampled prompts."""
    random, found = np.random.default_rng(0), []
    for _ in range(draws):
        at = random.integers(len(order), size=len(order))
        found.append(calls(order[at], prompts.weak[at], prompts.strong[at]))
    low, high = np.quantile(found, (0.05, 0.95))
    return float(low), float(high)


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    for name in BARS:
        prompts = read(name)
        if arguments.quick and not kept_at(f"routing-{name}", prompts.texts).is_file():
            yield Row(f"{name} strong calls", "no vectors yet; run once without --quick", "")
            continue
        embedded = vectors(f"routing-{name}", prompts.texts).astype(float)
        draws, repeats = (200, 1) if arguments.quick else (1000, _REPEATS[name])
        yield from _of_one(prompts, embedded, draws=draws, repeats=repeats)


def _of_one(prompts: Prompts, embedded: Floats, *, draws: int, repeats: int) -> Iterator[Row]:
    name, weak, strong = prompts.name, prompts.weak, prompts.strong
    yield Row(f"{name} accuracy, weak (n {len(weak)})", round(float(weak.mean()), 4), "")
    yield Row(f"{name} accuracy, strong", round(float(strong.mean()), 4), "")
    has_subjects = len(np.unique(prompts.subject)) > 1
    order = routed(prompts, columns(prompts, embedded, subject=has_subjects), repeats=repeats)
    told = f"{name} strong calls to {TARGET:.0%}"
    yield at_most(told, calls(order, weak, strong), BARS[name])
    low, high = interval(order, prompts, draws)
    yield Row(f"{told}: 5 % quantile", round(low, 4), "")
    yield Row(f"{told}: 95 % quantile", round(high, 4), "")
    others = {"nearest prompts": neighbours(prompts, embedded)}
    if has_subjects:
        others["subject alone"] = by_subject(prompts)
        if repeats > 1:
            plain = columns(prompts, embedded, subject=False)
            others["without the subject"] = routed(prompts, plain, repeats=repeats)
    others["oracle"] = strong - weak
    for rule, each in others.items():
        yield Row(f"{told}: {rule}", round(calls(each, weak, strong), 4), "")
    gap = strong.mean() - weak.mean()
    random = (TARGET * strong.mean() - weak.mean()) / gap
    yield Row(f"{told}: random", round(float(random), 4), "")
    routes, best = curve(order, weak, strong), curve(strong - weak, weak, strong)
    for share in SHOWN:
        at = round(share * len(weak))
        line = f"{routes[at]:.4f} routed, {weak.mean() + share * gap:.4f} random, {best[at]:.4f}"
        yield Row(f"{name} accuracy at {share:.0%} strong calls", f"{line} oracle", "")


if __name__ == "__main__":
    main("routing", measure)
