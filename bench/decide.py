"""Choosing 1 of 20 labels: a decision beside generating the label as JSON, in turns, medians.

Both answer the same prompt on one thread, and both keep the prompt's fixed part. The JSON is one
object with one key, constrained to the 20 labels, so that it always ends; greedy. On the shipped
actions model, and on a random model of about 150 MB, built here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from _common import ROOT, Row, at_least, main
from _models import random_llama

from edge.backends.constrain import constrain
from edge.backends.generate import generate
from edge.backends.grammars import Grammar
from edge.backends.llamacpp import LlamaDecoder
from edge.backends.questions import Question
from edge.types import SamplingParams

LABELS = (
    "card arrival",
    "card lost",
    "card stolen",
    "card swallowed",
    "cash withdrawal",
    "change pin",
    "exchange rate",
    "failed transfer",
    "pending payment",
    "pending top up",
    "refund",
    "request statement",
    "reverted payment",
    "terminate account",
    "top up by card",
    "top up limit",
    "transfer fee",
    "transfer timing",
    "verify identity",
    "wrong amount",
)
PROMPT = "<utt> my card was swallowed by the machine<again> my card was swallowed by the machine"


def works(decoder: LlamaDecoder) -> dict[str, Callable[[], object]]:
    """Return both ways of choosing."""
    prompt = decoder.tokenize(PROMPT, parse_special=True)
    labels = tuple(tuple(decoder.tokenize(f" {label}", add_bos=False)) for label in LABELS)
    question = Question((), labels, next(iter(decoder.end_tokens)))
    schema = {
        "type": "object",
        "properties": {"label": {"enum": list(LABELS)}},
        "required": ["label"],
        "additionalProperties": False,
    }
    grammar = constrain(decoder, Grammar.json_schema(schema))

    def as_json() -> object:
        matcher = grammar.matcher()
        return generate(
            decoder,
            prompt,
            params=SamplingParams(),
            max_tokens=64,
            allowed=matcher.allowed,
            forced=matcher.forced,
        )

    def free() -> object:
        bias = tuple((token, float("-inf")) for token in decoder.end_tokens)
        return generate(decoder, prompt, params=SamplingParams(logit_bias=bias), max_tokens=16)

    return {
        "decide": lambda: decoder.label_scores(prompt, [question]),
        "JSON, constrained, forced tokens in one pass": as_json,
        "16 tokens, free": free,
    }


def compare(name: str, path: Path, rounds: int) -> Iterator[Row]:
    """Yield one model's rows."""
    decoder = LlamaDecoder.open(path, name=name, digest="", context=512, threads=1)
    found: dict[str, list[float]] = {}
    asked = works(decoder)
    for at in range(rounds + 1):
        for label, work in asked.items():
            start = time.perf_counter()
            work()
            if at:
                found.setdefault(label, []).append((time.perf_counter() - start) * 1e3)
    medians = {label: statistics.median(times) for label, times in found.items()}
    for label, value in medians.items():
        yield Row(f"{name}: {label}", round(value, 2), "ms")
    decide, as_json, free = medians.values()
    yield at_least(f"{name}: JSON / decide", as_json / decide, 5.0, "x")
    yield Row(f"{name}: 16 tokens / decide", round(free / decide, 2), "x")
    decoder.close()


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    rounds = 7 if arguments.quick else 25
    yield from compare("actions", ROOT / "models" / "actions-q8_0" / "actions-q8_0.gguf", rounds)
    path = random_llama("random-150m", vocab=32_000, width=1024, layers=8, hidden=2816)
    yield from compare("random 150 MB", path, max(rounds // 4, 2))


if __name__ == "__main__":
    main("decide", measure)
