"""What does drawing one token cost? The compiled sampler beside numpy and llama.cpp's own chain.

All three get the same rows in turns; medians. llama.cpp's chain is given the time it needs to fill
its array of candidates, as its callers must.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from _common import Row, at_most, main
from numpy.typing import NDArray

from edge.backends.llama_library import llama_library
from edge.sampling import ReferenceSampler, Sampler
from edge.types import SamplingParams

Floats = NDArray[np.float32]
GREEDY = SamplingParams(repetition_penalty=1.1)
DRAWN = SamplingParams(temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.1)


def llama_chain(params: SamplingParams, vocab: int) -> Callable[[Floats], object]:
    """Return llama.cpp's sampler chain for the same parameters."""
    llama = llama_library()
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    parts = [llama.llama_sampler_init_penalties(vocab, 64, params.repetition_penalty, 0.0, 0.0)]
    if params.temperature == 0:
        parts.append(llama.llama_sampler_init_greedy())
    else:
        parts += [
            llama.llama_sampler_init_top_k(params.top_k),
            llama.llama_sampler_init_top_p(params.top_p, 1),
            llama.llama_sampler_init_temp(params.temperature),
            llama.llama_sampler_init_dist(1),
        ]
    for part in parts:
        llama.llama_sampler_chain_add(chain, part)
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


def medians(works: dict[str, Callable[[Floats], object]], rows: list[Floats]) -> dict[str, float]:
    """Return each one's median microseconds, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for row in rows:
        for name, work in works.items():
            start = time.perf_counter()
            work(row)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[2:]) * 1e6 for name, found in times.items()}


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows."""
    count = 20 if arguments.quick else 60
    for vocab in (32_000, 128_000, 262_144):
        random = np.random.default_rng(vocab)
        rows = [(random.standard_normal(vocab) * 3).astype(np.float32) for _ in range(count)]
        for name, params in (("greedy", GREEDY), ("top-k 40, top-p 0.95", DRAWN)):
            native, plain = Sampler(params, vocab), ReferenceSampler(params, vocab)
            for sampler in (native, plain):
                sampler.accept_all(range(64))
            works = {
                "edge": native.sample,
                "numpy": plain.sample,
                "llama.cpp": llama_chain(params, vocab),
            }
            found = medians(works, rows)
            label = f"{vocab // 1000}k {name}"
            for work, value in found.items():
                yield Row(f"{label}: {work}", round(value, 1), "us")
            yield at_most(f"{label}: edge / numpy", found["edge"] / found["numpy"], 1.0, "x")


if __name__ == "__main__":
    main("sampling", measure)
