"""Tokens a second of one stream, with full sampling, beside a bare decode loop and a peer.

The bare loop calls ``llama_decode`` from compiled code and draws nothing; the peer is
``Llama.create_completion`` of llama-cpp-python with the same settings. In turns, on one thread,
medians. stories260K is in ../shared; the models with a vocabulary of 152k are random, built here.
Log-probabilities cost about the same time a token whatever the model, so their share is shown on
two widths. The lead over the peer depends on the width as well: it was 2.0 to 2.2 at 64, 1.9 to
2.0 at 96, 1.5 to 1.8 at 128 and 1.4 to 1.5 at 256.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from _common import SHARED, Row, at_least, at_most, main
from _models import random_llama

from edge.backends.generate import generate
from edge.backends.llama.decoder import LlamaDecoder
from edge.backends.llama.engine import open_engine
from edge.types import SamplingParams

SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
PROMPT = "Once upon a time"


def rates(works: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Return each one's median tokens a second, measured in turns."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for at in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            tokens = work()
            if at:
                found[name].append(tokens / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in found.items()}


def peer(path: Path, context: int, count: int) -> Callable[[], int]:
    """Return llama-cpp-python's completion of the same prompt."""
    from llama_cpp import Llama

    llama = Llama(
        str(path), n_ctx=context, n_threads=1, n_threads_batch=1, n_gpu_layers=0, verbose=False
    )

    def run() -> int:
        llama.reset()
        made = llama.create_completion(
            llama.tokenize(PROMPT.encode()),
            max_tokens=count,
            repeat_penalty=1.1,
            seed=1,
            logit_bias={llama.token_eos(): -100.0},
            **SAMPLING,
        )
        return int(made["usage"]["completion_tokens"])

    return run


def ours(decoder: LlamaDecoder, count: int, *, statistics: bool) -> Callable[[], int]:
    """Return a generation by the native loop that never ends early."""
    bias = tuple((token, float("-inf")) for token in decoder.end_tokens)
    params = SamplingParams(repetition_penalty=1.1, logit_bias=bias, seed=1, **SAMPLING)
    prompt = decoder.tokenize(PROMPT)

    def run() -> int:
        done = generate(decoder, prompt, params=params, max_tokens=count, statistics=statistics)
        return done.usage.tokens_out

    return run


def opened(name: str, path: Path) -> LlamaDecoder:
    """Return a model on one thread."""
    return LlamaDecoder.open(path, name=name, digest="", context=512, threads=1)


def compare(name: str, path: Path, *, count: int, rounds: int) -> Iterator[Row]:
    """Yield one model's rows beside the bare loop and the peer."""
    decoder = opened(name, path)
    engine = open_engine(decoder._handles, decoder.end_tokens)  # noqa: SLF001 - the bare loop
    if engine is None:
        raise SystemExit("the native loop does not fit the installed llama-cpp-python")

    def bare() -> int:
        if engine.decode_only(0, 5, count):
            raise SystemExit("llama_decode failed")
        return count

    works = {
        "bare llama_decode": bare,
        "edge": ours(decoder, count, statistics=False),
        "llama-cpp-python": peer(path, 512, count),
    }
    found = rates(works, rounds)
    for label, value in found.items():
        yield Row(f"{name}: {label}", round(value, 1), "tokens/s")
    yield at_least(f"{name}: edge / bare", found["edge"] / found["bare llama_decode"], 0.95, "x")
    yield at_least(f"{name}: edge / peer", found["edge"] / found["llama-cpp-python"], 2.0, "x")
    decoder.close()


def resident_mb() -> float:
    """Return the memory of this process that is in use, in megabytes; 0 where it cannot be read."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return 0.0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def log_probs(name: str, path: Path, *, count: int, rounds: int) -> Iterator[Row]:
    """Yield what log-probabilities cost a model, in time and in memory."""
    decoder = opened(name, path)
    works = {"off": ours(decoder, count, statistics=False)}
    for _ in range(3):
        works["off"]()
    before = resident_mb()
    works["on"] = ours(decoder, count, statistics=True)
    works["on"]()
    yield at_most(f"{name}: more memory with log-probs on", resident_mb() - before, 2.0, "MB")
    found = rates(works, 3 * rounds)
    yield Row(f"{name}: log-probs on", round(1e6 / found["on"], 1), "us/token")
    slower = 100 * (1.0 - found["on"] / found["off"])
    yield at_most(f"{name}: slower with log-probs on", slower, 3.0, "%")
    decoder.close()


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    rounds = 5 if arguments.quick else 15
    stories = SHARED / "models" / "stories260k" / "stories260K.gguf"
    slim = random_llama("random-152k-slim", vocab=151_936, width=64, layers=2, hidden=192)
    wide = random_llama("random-152k", vocab=151_936, width=128, layers=4, hidden=384)
    if stories.is_file():
        yield from compare("stories260K", stories, count=300, rounds=rounds)
        yield from log_probs("stories260K", stories, count=300, rounds=rounds)
    yield from compare("152k, width 64", slim, count=100, rounds=rounds)
    yield from log_probs("152k, width 64", slim, count=100, rounds=rounds)
    yield from log_probs("152k, width 128", wide, count=100, rounds=rounds)


if __name__ == "__main__":
    main("decode", measure)
