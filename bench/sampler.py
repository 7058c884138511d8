"""What does drawing one token cost? The compiled sampler beside numpy and llama.cpp's own chain.

All get the same rows in turns; medians. Rows are peaked as a language model's (a few hundred tokens
stand out of noise), and flat (noise alone); the bars are the same on both. llama.cpp's chain is
given the time it takes to fill its array of candidates, as its callers must. The bare maximum is
numpy's over the same row. Every call from Python counts, for all of them. A turn is 24 draws in a
row on warm caches; drawn once each between the others, the chain took two to three times as long.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from _common import Row, at_least, at_most, main
from numpy.typing import NDArray

from edge.backends.llama.library import llama_library
from edge.sampling import ReferenceSampler, Sampler, instruction_sets
from edge.types import SamplingParams

Floats = NDArray[np.float32]
Work = Callable[[Floats], object]
HISTORY = range(64)
SLOW = "numpy chain"
CHAIN = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
PENALISED = SamplingParams(**CHAIN, repetition_penalty=1.1)  # type: ignore[arg-type]
PLAIN = SamplingParams(**CHAIN)  # type: ignore[arg-type]
TOP_P = SamplingParams(temperature=0.8, top_p=0.95)


def llama_chain(params: SamplingParams, vocab: int) -> Work:
    """Return llama.cpp's sampler chain for the same parameters."""
    llama = llama_library()
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    parts = []
    if params.repetition_penalty != 1.0:
        parts.append(llama.llama_sampler_init_penalties(vocab, 64, 1.1, 0.0, 0.0))
    if params.top_k:
        parts.append(llama.llama_sampler_init_top_k(params.top_k))
    parts.append(llama.llama_sampler_init_top_p(params.top_p, 1))
    if params.min_p:
        parts.append(llama.llama_sampler_init_min_p(params.min_p, 1))
    parts += [llama.llama_sampler_init_temp(params.temperature), llama.llama_sampler_init_dist(1)]
    for part in parts:
        llama.llama_sampler_chain_add(chain, part)
    for token in HISTORY:
        llama.llama_sampler_accept(chain, token)
    kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
    table = np.zeros(vocab, dtype=kind)
    ids = np.arange(vocab, dtype=np.int32)
    pointer = ctypes.cast(table.ctypes.data, ctypes.POINTER(llama.llama_token_data))
    array = llama.llama_token_data_array(data=pointer, size=vocab, selected=-1, sorted=False)

    def draw(row: Floats) -> object:
        table["id"], table["logit"] = ids, row
        array.size, array.selected, array.sorted = vocab, -1, False
        llama.llama_sampler_apply(chain, ctypes.byref(array))
        return array.selected

    return draw


def ours(params: SamplingParams, vocab: int, *, statistics: bool) -> Work:
    """Return the compiled sampler with a full window of penalties."""
    sampler = Sampler(params, vocab, statistics=statistics)
    sampler.accept_all(HISTORY)
    return sampler.sample


def reference(params: SamplingParams, vocab: int) -> Work:
    """Return the numpy sampler."""
    sampler = ReferenceSampler(params, vocab)
    sampler.accept_all(HISTORY)
    return sampler.sample


def rows_of(vocab: int, count: int) -> dict[str, list[Floats]]:
    """Return peaked and flat rows, float32 ``[vocab]``."""
    random = np.random.default_rng(vocab)
    flat = [(random.standard_normal(vocab) * 3).astype(np.float32) for _ in range(count)]
    peaked = [(random.standard_normal(vocab) * 2).astype(np.float32) for _ in range(count)]
    for row in peaked:
        head = random.choice(vocab, 200, replace=False)
        row[head] = 18.0 - 0.12 * np.cumsum(random.exponential(1.0, 200))
    return {"peaked": peaked, "flat": flat}


def medians(works: dict[str, Work], rows: list[Floats], rounds: int) -> dict[str, float]:
    """Return each one's median microseconds a draw; in turns, each turn a draw from every row."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            for row in rows:
                work(row)  # rows and its own memory are in the cache, as while generating
            turn = rows if name == SLOW else rows * 8
            start = time.perf_counter()
            for row in turn:
                work(row)
            times[name].append((time.perf_counter() - start) / len(turn))
    return {name: statistics.median(found) * 1e6 for name, found in times.items()}


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows."""
    rounds = 5 if arguments.quick else 25
    yield Row("instruction set", instruction_sets()[0], "")
    for vocab in (151_936, 262_144, 32_000):
        for shape, rows in rows_of(vocab, 3).items():
            yield from _rows(vocab, shape, rows, rounds)


def _rows(vocab: int, shape: str, rows: list[Floats], rounds: int) -> Iterator[Row]:
    found = medians(
        {
            "maximum": lambda row: row.max(),
            "chain": ours(PENALISED, vocab, statistics=False),
            "chain, statistics": ours(PENALISED, vocab, statistics=True),
            "no penalties": ours(PLAIN, vocab, statistics=False),
            "top-p alone": ours(TOP_P, vocab, statistics=False),
            "llama.cpp top-p alone": llama_chain(TOP_P, vocab),
            "llama.cpp chain": llama_chain(PENALISED, vocab),
            "llama.cpp no penalties": llama_chain(PLAIN, vocab),
            SLOW: reference(PENALISED, vocab),
        },
        rows,
        rounds,
    )
    label = f"{vocab // 1000}k {shape}"
    for name, value in found.items():
        yield Row(f"{label}: {name}", round(value, 1), "us")
    best, chain, full = found["maximum"], found["chain"], found["chain, statistics"]
    yield at_least(f"{label}: llama.cpp / chain", found["llama.cpp chain"] / chain, 20, "x")
    plain = found["llama.cpp no penalties"] / found["no penalties"]
    yield at_least(f"{label}: llama.cpp / no penalties", plain, 6, "x")
    yield at_least(f"{label}: numpy / chain", found[SLOW] / chain, 30, "x")
    yield at_most(f"{label}: chain / maximum", chain / best, 3.5, "x")
    yield at_most(f"{label}: chain with statistics / maximum", full / best, 8, "x")
    yield at_most(f"{label}: top-p alone / maximum", found["top-p alone"] / best, 12, "x")


if __name__ == "__main__":
    main("sampler", measure)
