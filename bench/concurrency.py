"""Total tokens a second of 1, 4 and 8 streams in one process, sampling included.

Beside llama.cpp's own tools, where ``--tools FOLDER`` says where they lie (built from
``vendor/llama.cpp`` in llama-cpp-python's source distribution, cmake targets
``llama-batched-bench`` and ``llama-server``), and beside llama-cpp-python's server. stories260K (of
../shared) on one thread; and a random model of about 150 MB, built here, on all cores. Medians of
rounds in turns.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _common import Row, at_least, main, shared
from _models import random_llama

from edge.backends.generate import generate, stream
from edge.backends.llama.decoder import LlamaDecoder
from edge.backends.threads import thread_candidates
from edge.types import SamplingParams

TOKENS, CLIENTS = 200, 8
PROMPT = "Once upon a time"


def settings(decoder: LlamaDecoder, seed: int) -> SamplingParams:
    """Return full sampling that never ends early."""
    bias = tuple((token, float("-inf")) for token in decoder.end_tokens)
    return SamplingParams(temperature=0.8, top_k=40, top_p=0.95, logit_bias=bias, seed=seed)


def together(streams: int, run: Callable[[int], int]) -> float:
    """Return what ``run`` counts a second in so many threads."""
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda seed=seed: counts.append(run(seed)))
        for seed in range(streams)
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def rate(decoder: LlamaDecoder, streams: int, tokens: int) -> float:
    """Return tokens a second of all streams together."""
    prompt = decoder.tokenize(PROMPT)

    def run(seed: int) -> int:
        done = generate(decoder, prompt, params=settings(decoder, seed), max_tokens=tokens)
        return done.usage.tokens_out

    return together(streams, run)


def gaps_ms(decoder: LlamaDecoder, streams: int, tokens: int) -> list[float]:
    """Return the milliseconds between two pieces of streamed text, sorted."""
    gaps: list[float] = []

    def run(seed: int) -> int:
        params, last = settings(decoder, seed), time.perf_counter()
        for piece in stream(decoder, decoder.tokenize(PROMPT), params=params, max_tokens=tokens):
            now = time.perf_counter()
            if isinstance(piece, str):
                gaps.append((now - last) * 1e3)
            last = now
        return tokens

    together(streams, run)
    return sorted(gaps)


def own(decoder: LlamaDecoder, rounds: int, tokens: int) -> dict[int, float]:
    """Return the median rate of 1, 4 and 8 streams."""
    found: dict[int, list[float]] = {1: [], 4: [], CLIENTS: []}
    for _ in range(rounds):
        for streams, rates in found.items():
            rates.append(rate(decoder, streams, tokens))
    return {streams: statistics.median(rates) for streams, rates in found.items()}


def batched_bench(tools: Path, model: Path, *, threads: int, tokens: int) -> dict[int, float]:
    """Return what llama-batched-bench generates a second, without sampling, by streams."""
    done = subprocess.run(
        [
            tools / "llama-batched-bench",
            *("-m", model, "-c", "4096", "-npp", "8", "-ntg", str(tokens), "-npl", "1,4,8"),
            *("-t", str(threads), "-tb", str(threads), "--output-format", "jsonl"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {int(row["pl"]): float(row["speed_tg"]) for row in rows}


def free_port() -> int:
    """Return a port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(command: list[object], port: int, ready: str) -> Iterator[str]:
    """Run a server process until it answers; yield its address."""
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(address + ready, timeout=1).read()  # noqa: S310
                    break
                except OSError:
                    time.sleep(0.1)
            yield address
        finally:
            process.kill()


def clients_rate(address: str, extra: dict[str, object]) -> float:
    """Return tokens a second of 8 HTTP clients that complete the same prompt."""

    def run(_seed: int) -> int:
        body = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.8, "top_k": 40, **extra}
        request = urllib.request.Request(  # noqa: S310 - a server of our own
            f"{address}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            return int(json.load(answer)["usage"]["completion_tokens"])

    return together(CLIENTS, run)


def peers(model: Path, tools: Path | None) -> Iterator[tuple[str, Callable[[int], float]]]:
    """Yield the servers by name, as a function of rounds to the median rate."""

    def measured(
        command: list[object], port: int, ready: str, extra: dict[str, object]
    ) -> Callable[[int], float]:
        def run(rounds: int) -> float:
            with server(command, port, ready) as address:
                clients_rate(address, extra)
                return statistics.median(clients_rate(address, extra) for _ in range(rounds))

        return run

    port = free_port()
    python = [sys.executable, "-m", "llama_cpp.server", "--model", model, "--port", port]
    ban = {"logit_bias": {"2": -100}}
    yield (
        "llama-cpp-python server",
        measured(
            [*python, "--n_threads", 1, "--n_ctx", 512, "--n_gpu_layers", 0],
            port,
            "/v1/models",
            ban,
        ),
    )
    if tools is not None:
        port = free_port()
        command: list[object] = [tools / "llama-server", "-m", model, "--port", port, "-np", 8]
        yield (
            "llama-server -np 8",
            measured(
                [*command, "-t", 1, "-tb", 1, "-c", 4096], port, "/health", {"ignore_eos": True}
            ),
        )


def stories(arguments: argparse.Namespace, rounds: int) -> Iterator[Row]:
    """Yield the rows of stories260K on one thread."""
    model = shared("models", "stories260k", "stories260K.gguf")
    tools = Path(arguments.tools) if arguments.tools else None
    decoder = LlamaDecoder.open(
        model, name="stories260K", digest="", context=512, threads=1, max_sequences=CLIENTS
    )
    rate(decoder, CLIENTS, 20)
    found = own(decoder, rounds, TOKENS)
    for streams, value in found.items():
        yield Row(f"stories260K: edge, {streams} streams", round(value), "tokens/s")
        gaps = gaps_ms(decoder, streams, TOKENS)
        p95 = gaps[int(0.95 * len(gaps))]
        yield Row(f"stories260K: p95 between tokens, {streams} streams", round(p95, 3), "ms")
    for name, run in peers(model, tools):
        value = run(max(rounds // 2, 1))
        bar = 2.5 if "python" in name else 1.5
        yield Row(f"stories260K: {name}, {CLIENTS} clients", round(value), "tokens/s")
        yield at_least(f"stories260K: edge / {name}", found[CLIENTS] / value, bar, "x")
    if tools is None:
        yield Row("llama-batched-bench, llama-server", "skipped: no --tools", "")
    else:
        theirs = batched_bench(tools, model, threads=1, tokens=TOKENS)
        again = own(decoder, rounds, TOKENS)
        for streams, value in theirs.items():
            yield Row(f"stories260K: batched-bench, {streams}", round(value), "tokens/s")
            mine = statistics.mean((found[streams], again[streams]))
            yield at_least(f"stories260K: edge / batched-bench, {streams}", mine / value, 1.0, "x")
    decoder.close()


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    rounds = 3 if arguments.quick else 9
    yield from stories(arguments, rounds)
    yield from large(arguments, rounds)


def large(arguments: argparse.Namespace, rounds: int) -> Iterator[Row]:
    """Yield the rows of the random model on all cores, and how far llama.cpp's own tool gets."""
    path = random_llama("random-150m", vocab=32_000, width=1024, layers=8, hidden=2816)
    cores = max(thread_candidates())
    name = f"random 150 MB, {cores} threads"
    decoder = LlamaDecoder.open(
        path, name="random", digest="", context=256, threads=cores, max_sequences=CLIENTS
    )
    found = {}
    for streams in (1, CLIENTS):
        measured = [rate(decoder, streams, 48) for _ in range(rounds)]
        found[streams] = statistics.median(measured)
        yield Row(f"{name}: edge, {streams} streams", round(found[streams], 1), "tokens/s")
    yield at_least(f"{name}: 8 streams / 1", found[CLIENTS] / found[1], 2.5, "x")
    decoder.close()
    if arguments.tools:
        theirs = batched_bench(Path(arguments.tools), path, threads=cores, tokens=48)
        yield Row(f"{name}: batched-bench, 8 / 1", round(theirs[8] / theirs[1], 2), "x")


if __name__ == "__main__":
    main("concurrency", measure, options={"--tools": "folder of llama.cpp's own programs"})
