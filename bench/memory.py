"""Does memory stay level while models come and go, and over many requests?

A small decoder, and an encoder with a head, are loaded, run and unloaded again and again, the way
a memory budget does it; then every task of the shipped pack answers in turn. Each part runs in a
process of its own. Its level is the resident memory, read between two rounds; the bar is on how
far the last one lies above that after the first ten, in percent.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from _common import Row, at_most, main

import edge
from edge.backends.generate import generate
from edge.backends.llama.decoder import LlamaDecoder
from edge.backends.residency import Residency
from edge.config import models_folder
from edge.local import LocalModels
from edge.store.weights import ModelStore
from edge.types import SamplingParams

STATM = Path("/proc/self/statm")
PAGE = 4096
FIRST = 10
DECODER, ENCODER, HEAD = "actions-q8_0", "minilm-l6-int8", "banking77-head"
SAID = "play some jazz by miles davis"
Levels = list[int]


def resident() -> int:
    """Return the bytes this process holds in memory."""
    return int(STATM.read_text().split()[1]) * PAGE


def decoder_cycles(count: int) -> Levels:
    """Load, run and unload a decoder; return the level after each round."""
    path = ModelStore(models_folder()).path(DECODER)
    house, levels = Residency(), []

    def load() -> LlamaDecoder:
        return LlamaDecoder.open(path, name=DECODER, digest="0" * 64, context=128, threads=1)

    for _ in range(count):
        with house.lease(DECODER, load) as decoder:
            tokens = decoder.tokenize(f"<utt> {SAID}<again> {SAID}<draft>", parse_special=True)
            generate(decoder, tokens, params=SamplingParams(temperature=0.0), max_tokens=8)
        del decoder
        house.unload(DECODER)
        levels.append(resident())
    return levels


def encoder_cycles(count: int) -> Levels:
    """Load, run and unload an encoder and a head; return the level after each round."""
    models, levels = LocalModels(ModelStore(models_folder()), threads=1), []
    for _ in range(count):
        with models.encoder(ENCODER) as encoder:
            (vector,) = encoder.embed([SAID])
        with models.head(HEAD) as head:
            head.predict(vector)
        del encoder, head
        models.residency.unload(ENCODER)
        models.residency.unload(HEAD)
        levels.append(resident())
    return levels


def requests(count: int) -> Levels:
    """Let every task of the pack answer in turn; return the level after each request."""
    levels = []
    with (
        tempfile.TemporaryDirectory() as state,
        edge.open(state=state, offline=True, threads=1) as runtime,
    ):
        tasks = {name: itertools.cycle(task.spec.samples) for name, task in runtime.tasks().items()}
        for name in itertools.islice(itertools.cycle(tasks), count):
            runtime.run(name, next(tasks[name]))
            levels.append(resident())
    gc.collect()
    return levels


def apart(part: Callable[[int], Levels], count: int) -> Levels:
    """Run a part in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(part, (count,))


def rows(name: str, levels: Levels) -> Iterator[Row]:
    """Yield the growth of one part and what it is measured against."""
    first, last = levels[FIRST - 1], levels[-1]
    yield at_most(f"{name}: growth", (last / first - 1) * 100, 5.0, "%")
    yield Row(f"{name}: rounds", len(levels), "")
    yield Row(f"{name}: level after {FIRST}", round(first / 1e6, 1), "MB")
    yield Row(f"{name}: level at the end", round(last / 1e6, 1), "MB")
    later = levels[FIRST:]
    half = len(later) // 2
    drift = (statistics.median(later[half:]) - statistics.median(later[:half])) / half
    yield Row(f"{name}: drift in the later half", round(drift / 1e3, 2), "kB a round")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows."""
    if not STATM.is_file():
        print("skipped: resident memory is read from /proc, which is not here", file=sys.stderr)
        return
    quick = arguments.quick
    yield from rows("decoder", apart(decoder_cycles, 60 if quick else 1000))
    yield from rows("encoder and head", apart(encoder_cycles, 40 if quick else 1000))
    yield from rows("requests", apart(requests, 500 if quick else 10_000))


if __name__ == "__main__":
    main("memory", measure)
