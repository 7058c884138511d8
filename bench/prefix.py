"""Time to the first token of a prompt whose beginning was read before.

A prefix of 400 tokens on stories260K (of ../shared) and on the shipped actions model: cold, with
the prefix kept by an earlier request, and in a new process with a snapshot of an earlier one. Every
measurement is a request of its own with another ending; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import ROOT, SHARED, Row, at_most, main

from edge.backends.generate import generate
from edge.backends.llama.decoder import LlamaDecoder
from edge.types import SamplingParams

PREFIX = 400
CHILD = "--child"


def first_token_ms(decoder: LlamaDecoder, prompt: list[int], *, shared: int) -> float:
    """Return the milliseconds until one token is there."""
    start = time.perf_counter()
    generate(decoder, prompt, params=SamplingParams(), max_tokens=1, shared=shared)
    return (time.perf_counter() - start) * 1e3


def in_new_process(path: Path, folder: Path, prompt: list[int], *, name: str) -> float:
    """Return the milliseconds of a first request in a process of its own, model loaded."""
    asked = json.dumps({"path": str(path), "folder": str(folder), "prompt": prompt, "name": name})
    done = subprocess.run(
        [sys.executable, __file__, CHILD], input=asked, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def child(asked: dict[str, Any]) -> float:
    """Answer ``in_new_process``."""
    decoder = LlamaDecoder.open(
        Path(asked["path"]),
        name=asked["name"],
        digest=asked["name"],
        context=512,
        threads=1,
        snapshots=Path(asked["folder"]),
    )
    return first_token_ms(decoder, asked["prompt"], shared=PREFIX)


def compare(name: str, path: Path, rounds: int) -> Iterator[Row]:
    """Yield one model's rows."""
    with tempfile.TemporaryDirectory() as folder:

        def opened() -> LlamaDecoder:
            return LlamaDecoder.open(
                path, name=name, digest=name, context=512, threads=1, snapshots=Path(folder)
            )

        decoder = opened()
        words = decoder.tokenize(" once upon a time there was a little girl named lily ." * 60)
        prefix, endings = words[:PREFIX], [[*words[at : at + 5]] for at in range(3, rounds + 3)]
        cold = [first_token_ms(decoder, prefix + end, shared=0) for end in endings]
        first_token_ms(decoder, prefix + endings[0], shared=PREFIX)
        warm = [first_token_ms(decoder, prefix + end, shared=PREFIX) for end in endings]
        decoder.close()
        restarted = [
            in_new_process(path, Path(folder), prefix + end, name=name) for end in endings[:5]
        ]
    base = statistics.median(cold)
    yield Row(f"{name}: cold", round(base, 2), "ms")
    for label, values, bar in (("kept", warm, 15.0), ("after a restart", restarted, 25.0)):
        value = statistics.median(values)
        yield Row(f"{name}: {label}", round(value, 2), "ms")
        yield at_most(f"{name}: {label} / cold", 100 * value / base, bar, "%")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    rounds = 7 if arguments.quick else 25
    stories = SHARED / "models" / "stories260k" / "stories260K.gguf"
    if stories.is_file():
        yield from compare("stories260K", stories, rounds)
    yield from compare("actions", ROOT / "models" / "actions-q8_0" / "actions-q8_0.gguf", rounds)


if __name__ == "__main__":
    if sys.argv[1:] == [CHILD]:
        print(child(json.load(sys.stdin)))
        sys.exit()
    main("prefix", measure)
