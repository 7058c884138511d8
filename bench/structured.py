"""What does structured output cost, and does it keep its word?

300 JSON schemas from a seeded generator. On a vocabulary of 152k tokens random rows of logits stand
for the model; on the shipped model the real ones. For each token drawn, the whole cost of the
constraint counts: following the text, looking for forced tokens, the mask. It is processor time of
the thread, so what else the machine does is left out. Every answer is checked with jsonschema.

The large vocabulary comes as `--vocab FILE`: a GGUF file of a vocabulary alone, such as
vendor/llama.cpp/models/ggml-vocab-qwen2.gguf in the source distribution of llama-cpp-python.
Without it those rows are skipped.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from _common import SHARED, Row, at_least, at_most, main, read_rows
from _schemas import schemas
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from quality import call

from edge.backends.base import Decoder, ModelInfo
from edge.backends.generate import Generation, generate
from edge.backends.grounding import ground_object
from edge.backends.llama.decoder import LlamaDecoder
from edge.backends.llama.library import llama_library
from edge.backends.structure.constraint import Constraint, constrain
from edge.backends.structure.grammars import Grammar
from edge.config import models_folder
from edge.judge import plain
from edge.store.weights import ModelStore
from edge.task import spaced
from edge.types import SamplingParams

Floats = NDArray[np.float32]
T = TypeVar("T")
COUNT = 300
SEED = 20
MODEL = "actions-q8_0"
MOST_TOKENS = 400
CLOSERS = {b'"': 12.0, b"}": 9.0, b"]": 9.0, b"@": 9.0, b",": 4.0}
NO = False
# Greedy, but whoever says the same for ever comes to say something else.
LOOSE = SamplingParams(frequency_penalty=0.4, penalty_last_n=128)
SAID = (
    "add clem burke to my playlist pre-party r&b jams",
    "book a table for four at the cave in boston",
    "will it be chilly in weldon on friday",
    "play some jazz by miles davis",
    "rate this novel four stars out of six",
    "find the movie schedule for the closest cinema",
)


class RandomModel:
    """A vocabulary without weights; its rows are noise in which what closes a value stands out."""

    scheduler = None

    def __init__(self, path: Path) -> None:
        lib = self._lib = llama_library()
        params = lib.llama_model_default_params()
        params.vocab_only = True
        self._model = lib.llama_model_load_from_file(bytes(path), params)
        if not self._model:
            print(f"{path} is no vocabulary that llama.cpp can load", file=sys.stderr)
            raise SystemExit(2)
        self._vocab = lib.llama_model_get_vocab(self._model)
        size = int(lib.llama_vocab_n_tokens(self._vocab))
        self.pieces = [self._piece(token) for token in range(size)]
        self.end_tokens = frozenset(
            t for t in range(size) if lib.llama_vocab_is_eog(self._vocab, t)
        )
        self.info = ModelInfo(path.stem, "bench", "0" * 64, "cpu", 1 << 20, vocab_size=size)
        noise = np.random.default_rng(SEED)
        self.rows = [noise.standard_normal(size, np.float32) for _ in range(16)]
        for token, bias in closing(self).items():
            for row in self.rows:
                row[token] += bias
        self.turn = 0

    def _piece(self, token: int) -> bytes:
        room = ctypes.create_string_buffer(512)
        count = self._lib.llama_token_to_piece(self._vocab, token, room, 512, 0, NO)
        return room.raw[: max(count, 0)]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return one token's bytes."""
        del special
        return self.pieces[token]

    def tokenize(
        self, text: str, *, add_bos: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the tokens of a text."""
        del add_bos
        raw = text.encode()
        out = (ctypes.c_int32 * (len(raw) + 8))()
        count = self._lib.llama_tokenize(
            self._vocab, raw, len(raw), out, len(out), NO, parse_special
        )
        return out[:count]

    def sequence(self) -> RandomSequence:
        """Begin anew, with rows in another order each turn."""
        return RandomSequence(self.rows, self.turn)

    def close(self) -> None:
        """Free the vocabulary."""
        self._lib.llama_model_free(self._model)


class RandomSequence:
    """One sequence: the row depends on how many tokens came before, and the turn."""

    def __init__(self, rows: Sequence[Floats], turn: int) -> None:
        self._rows, self._turn, self._length = rows, turn, 0

    def forward(self, tokens: Sequence[int]) -> Floats:
        """Take tokens in and return the next row."""
        self._length += len(tokens)
        return self._rows[(self._length * 5 + self._length // 16 + self._turn) % len(self._rows)]

    def close(self) -> None:
        """Nothing is held."""


def closing(decoder: Decoder) -> dict[int, float]:
    """Return what is added to the logits of tokens that end a value, so that answers end."""
    found = {}
    for token in range(decoder.info.vocab_size):
        piece = decoder.piece(token)
        most = max((bias for mark, bias in CLOSERS.items() if mark in piece), default=0.0)
        if most and b":" not in piece:
            found[token] = most
    return found


@dataclass
class Tally:
    """What was measured over all schemas of one vocabulary."""

    compile_ms: list[float] = field(default_factory=list)
    mask_us: list[float] = field(default_factory=list)
    tokens: int = 0
    forced: int = 0
    done: int = 0
    wrong: list[str] = field(default_factory=list)
    same: int = 0

    def answer(self, decoder: Decoder, schema: Any, constraint: Constraint, params: Any) -> str:
        """Generate once under a schema, with the clock on the constraint, and check the answer."""
        matcher = constraint.matcher()
        spent = 0.0

        def timed(work: Callable[[Sequence[int]], T]) -> Callable[[Sequence[int]], T]:
            def call(tokens: Sequence[int]) -> T:
                nonlocal spent
                begin = time.thread_time()
                found = work(tokens)
                spent += time.thread_time() - begin
                return found

            return call

        follow = timed(matcher.allowed)

        def allowed(tokens: Sequence[int]) -> NDArray[np.uint32]:
            nonlocal spent
            mask = follow(tokens)
            self.mask_us.append(spent * 1e6)
            spent = 0.0
            return mask

        made = run(decoder, params, allowed=allowed, forced=timed(matcher.forced))
        self.tokens += len(made.tokens)
        self.forced += sum(math.isnan(entry.logprob) for entry in made.stats)
        self.done += made.finish == "stop"
        if made.finish == "stop" and (problem := invalid(schema, made.text)):
            self.wrong.append(f"{problem}: {made.text[:200]}")
        return made.text


def invalid(schema: Any, text: str) -> str | None:
    """Return why an answer does not fit its schema."""
    checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    try:
        first = next(iter(checker.iter_errors(json.loads(text))), None)
    except ValueError as error:
        return str(error)
    return None if first is None else first.message[:200]


def run(decoder: Decoder, params: SamplingParams, **options: Any) -> Generation:
    """Generate from a prompt that any vocabulary has."""
    prompt = decoder.tokenize(" book a table", add_bos=False)
    return generate(decoder, prompt, params=params, max_tokens=MOST_TOKENS, **options)


def under_schemas(decoder: Decoder, params: SamplingParams, turns: int) -> Tally:
    """Answer every schema, with forced tokens at once and one by one."""
    tally = Tally()
    constrain(decoder, Grammar.choices(["warm"]))
    for at, schema in enumerate(schemas(COUNT, SEED)):
        begin = time.perf_counter()
        constraint = constrain(decoder, Grammar.json_schema(schema))
        tally.compile_ms.append((time.perf_counter() - begin) * 1e3)
        for turn in range(turns):
            if isinstance(decoder, RandomModel):
                decoder.turn = at + 7 * turn
            text = tally.answer(decoder, schema, constraint, params)
        slowly = run(decoder, params, allowed=constraint.matcher().allowed)
        tally.same += slowly.text == text
    return tally


def judged(name: str, tally: Tally) -> Iterator[Row]:
    """Yield the rows of one vocabulary."""
    median, rare, worst = np.percentile(tally.mask_us, [50, 99, 100])
    yield at_most(f"{name} mask p50", median, 50.0, "us")
    yield at_most(f"{name} mask p99", rare, 1000.0, "us")
    yield Row(f"{name} mask worst", round(float(worst), 1), "us")
    yield Row(f"{name} masks", len(tally.mask_us), "")
    compiled = np.percentile(tally.compile_ms, [50, 99])
    yield Row(f"{name} compile p50", round(float(compiled[0]), 3), "ms")
    yield Row(f"{name} compile p99", round(float(compiled[1]), 3), "ms")
    yield at_most(f"{name} answers that break their schema", len(tally.wrong), 0)
    yield Row(f"{name} answers complete in {MOST_TOKENS} tokens", tally.done, "")
    yield Row(f"{name} tokens forced", round(tally.forced / tally.tokens, 4), "of all")
    share = tally.same / COUNT
    yield at_least(f"{name} same text without fast-forward", share, 1.0, "of schemas")
    for wrong in tally.wrong[:3]:
        print(wrong, file=sys.stderr)


def speed(decoder: Decoder, rounds: int) -> Iterator[Row]:
    """Yield tokens a second under a schema beside free ones: the same answers, in turns.

    The share is the median over the turns, since both of one turn meet the same machine.
    """
    schema = json.loads((models_folder() / MODEL / "schema.json").read_text("utf-8"))
    grammars = (None, Grammar.json_schema(schema, order="any"))
    prompts = [prompt(decoder, text) for text in SAID]
    pairs = [(tokens, *(answer(decoder, tokens, each) for each in grammars)) for tokens in prompts]
    equal = [tokens for tokens, free, held in pairs if free.tokens == held.tokens]
    count = sum(len(free.tokens) for tokens, free, _ in pairs if tokens in equal)
    rates: tuple[list[float], list[float]] = ([], [])
    for at in range(rounds):
        for tokens in equal:
            for which in (at % 2, 1 - at % 2):
                begin = time.perf_counter()
                made = answer(decoder, tokens, grammars[which])
                rates[which].append(len(made.tokens) / (time.perf_counter() - begin))
    free, held = (statistics.median(each) for each in rates)
    share = statistics.median(under / alone for alone, under in zip(*rates, strict=True))
    yield Row(f"{MODEL} free", round(free, 1), "tokens/s")
    yield Row(f"{MODEL} under its schema", round(held, 1), "tokens/s")
    yield at_least(f"{MODEL} under its schema / free ({count} tokens)", share, 0.9)


def kept(decoder: Decoder, count: int) -> Iterator[Row]:
    """Yield how many calls of snips are right as a whole: free, and under the task's schema."""
    path = SHARED.joinpath("data", "snips", "bench.jsonl")
    if not path.exists():
        yield Row("snips exact match", "skipped: data/snips is not in ../shared", "")
        return
    rows = read_rows(path)[:count]
    schema = json.loads((models_folder() / MODEL / "schema.json").read_text("utf-8"))
    grammars = {
        "free": None,
        "under its schema": Grammar.json_schema(schema, order="any"),
        "under its schema, in its order": Grammar.json_schema(schema),
    }
    for name, grammar in grammars.items():
        right = sum(exact(decoder, row, grammar) for row in rows)
        yield Row(f"snips exact match {name} (n {len(rows)})", round(right / len(rows), 4), "")


def exact(decoder: Decoder, row: dict[str, Any], grammar: Grammar | None) -> bool:
    """Return whether the model's call for a row of snips is the gold one."""
    made = answer(decoder, prompt(decoder, row["text"]), grammar)
    try:
        value, _ = ground_object(json.loads(made.text), row["text"], skip={"intent"})
    except ValueError:
        return False
    return plain(value) == plain(call(row))


def answer(decoder: Decoder, tokens: Sequence[int], grammar: Grammar | None) -> Generation:
    """Return the greedy answer to a prompt, under a grammar or free."""
    matcher = None if grammar is None else constrain(decoder, grammar).matcher()
    return generate(
        decoder,
        tokens,
        params=SamplingParams(),
        max_tokens=64,
        allowed=matcher.allowed if matcher else None,
        forced=matcher.forced if matcher else None,
    )


def prompt(decoder: Decoder, text: str) -> list[int]:
    """Return the tokens of the shipped model's prompt for a call."""
    said = decoder.tokenize(spaced(text), add_bos=False)
    marks = [decoder.tokenize(f"<{m}>", add_bos=False, parse_special=True) for m in MARKS]
    return [*decoder.tokenize(""), *marks[0], *said, *marks[1], *said, *marks[2]]


MARKS = ("utt", "again", "answer")


def shipped() -> LlamaDecoder:
    """Return the shipped model."""
    store = ModelStore(models_folder())
    digest = store.manifest(MODEL).digest
    return LlamaDecoder.open(store.path(MODEL), name=MODEL, digest=digest, threads=1)


def vocabulary_file() -> Path | None:
    """Take ``--vocab FILE`` out of the arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--vocab", type=Path)
    found, sys.argv[1:] = parser.parse_known_args()
    path: Path | None = found.vocab
    return path


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    turns = 1 if arguments.quick else 5
    if VOCABULARY is None:
        yield Row("vocabulary of 152k", "skipped: give --vocab FILE", "")
    else:
        large = RandomModel(VOCABULARY)
        name = f"{round(large.info.vocab_size / 1000)}k"
        yield from judged(name, under_schemas(large, LOOSE, turns))
    decoder = shipped()
    params = dataclasses.replace(LOOSE, logit_bias=tuple(closing(decoder).items()))
    yield from judged(MODEL, under_schemas(decoder, params, 1))
    yield from speed(decoder, 41 if arguments.quick else 201)
    yield from kept(decoder, 100 if arguments.quick else 1000)
    decoder.close()


VOCABULARY = vocabulary_file()

if __name__ == "__main__":
    main("structured", measure)
