"""What does a GPU give? Tokens a second of one model on the CPU, on the GPU, and on both by halves.

Needs a llama-cpp-python that was built for CUDA, Metal or Vulkan, and a GPU; ends at once without
one. In turns, medians. The random model is built here; `--model FILE` measures another GGUF file.
The decision is one over 20 labels, the answer beside it one constrained to them as JSON.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from _common import Row, main
from _models import random_llama
from decide import works

from edge.backends.generate import generate
from edge.backends.llama.decoder import LlamaDecoder
from edge.backends.llama.library import accelerators, llama_library
from edge.types import SamplingParams

GREEDY = 64
PROMPT_TOKENS = 512


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def greedy(decoder: LlamaDecoder, prompt: list[int], count: int) -> Callable[[], object]:
    """Return a greedy generation of ``count`` tokens that never ends early."""
    bias = tuple((token, float("-inf")) for token in decoder.end_tokens)
    params = SamplingParams(logit_bias=bias)
    return lambda: generate(decoder, prompt, params=params, max_tokens=count).text


def read_prompt(decoder: LlamaDecoder) -> Callable[[], object]:
    """Return a forward pass over a long prompt."""
    tokens = [5 + at % 50 for at in range(PROMPT_TOKENS)]

    def run() -> None:
        sequence = decoder.sequence()
        try:
            sequence.forward(tokens)
        finally:
            sequence.close()

    return run


def compare(path: Path, rounds: int) -> Iterator[Row]:
    """Yield the rows of one model."""

    def opened(device: str, layers: int | None = None) -> LlamaDecoder:
        return LlamaDecoder.open(
            path, name=path.stem, digest="", context=1024, device=device, gpu_layers=layers
        )

    whole = opened("gpu")
    placement = whole.info.placement
    share = placement.share if placement and placement.share is not None else float("nan")
    yield Row("share of the layers on the GPU, chosen from its free memory", share, "")
    half = opened("gpu", _half(path))
    decoders = {"cpu": opened("cpu"), "gpu": whole, "half of the layers on the gpu": half}
    found: dict[tuple[str, str], list[float]] = {}
    texts = {}
    for at in range(rounds + 1):
        for name, decoder in decoders.items():
            prompt = decoder.tokenize("turn the lights off in the kitchen")
            tried = {
                "512 tokens of prompt": read_prompt(decoder),
                "64 tokens generated": greedy(decoder, prompt, GREEDY),
                "a decision over 20 labels": works(decoder)["decide"],
            }
            for what, work in tried.items():
                taken = timed(work)
                if at:
                    found.setdefault((name, what), []).append(taken)
            texts[name] = greedy(decoder, prompt, GREEDY)()
    for (name, what), times in found.items():
        yield Row(f"{name}: {what}", round(statistics.median(times) * 1e3, 2), "ms")
    same = float(texts["gpu"] == texts["cpu"])
    yield Row("the same 64 greedy tokens on both", same, "")
    for decoder in decoders.values():
        decoder.close()


def _half(path: Path) -> int:
    from edge.backends.gguf import check_gguf

    summary = check_gguf(path)
    return int(summary.metadata[f"{summary.architecture}.block_count"]) // 2


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row, or end where there is no GPU."""
    lib = llama_library()
    gpus = [each for each in accelerators(lib) if each.kind in {"gpu", "igpu"}]
    if not lib.llama_supports_gpu_offload() or not gpus:
        print("skipped: llama.cpp here sees no GPU", file=sys.stderr)
        raise SystemExit(0)
    for each in gpus:
        yield Row(f"{each.name}, {each.kind}: free", round(each.free_bytes / 1e6), "MB")
    rounds = 3 if arguments.quick else 9
    path = Path(arguments.model) if arguments.model else None
    yield from compare(
        path or random_llama("random-150m", vocab=32_000, width=1024, layers=8, hidden=2816), rounds
    )


if __name__ == "__main__":
    main("gpu", measure, options={"--model": "a GGUF file instead of the random model"})
