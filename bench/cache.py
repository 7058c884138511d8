"""What does the cache cost and save, and how often is a similar text's answer the wrong one?

Times are of the shipped pack's ``spam`` under an exact cache, in one process. Similar texts:
5,000 training rows stand for texts that a pool answered rightly, the bench rows come after them; an
answer taken over counts as wrong where the label (or, for snips, the named values) of the two rows
differ. Looking is timed over a cache that is full.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from _common import SHARED, Row, main, read_rows, shared
from numpy.typing import NDArray

import edge
from edge.alike import marks
from edge.local import LocalTask
from edge.store.cache import MAX_ROWS, Cache, Kept

SETS = {
    "banking77": "support_intent",
    "clinc150": "assistant_intent",
    "hwu64": "home_intent",
    "snips": None,
}
THRESHOLDS = (0.85, 0.92, 0.97)
USUAL = 0.92
KEEP_ABOVE = 0.7
ON = {"caching": {"exact_cache": {"enabled": True}}}
Floats = NDArray[np.float32]


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows."""
    with tempfile.TemporaryDirectory() as folder:
        yield from calls(Path(folder), 60 if arguments.quick else 400)
        yield from looking(Path(folder), 2_000 if arguments.quick else MAX_ROWS)
    if SHARED.is_dir():
        yield from similar(*((600, 100) if arguments.quick else (5_000, 10_000)))


def calls(folder: Path, count: int) -> Iterator[Row]:
    """Time the same call without a cache, and as a miss and a hit of one."""
    policy = folder / "policy.yaml"
    policy.write_text(json.dumps(ON), "utf-8")
    texts = [f"see you at noon then, {number}" for number in range(count)]
    with edge.open(state=folder / "off", offline=True) as runtime:
        runtime.run("spam", "hello there")
        yield Row("call without a cache, p50", microseconds(runtime, texts), "us")
    with edge.open(state=folder / "on", offline=True, policy=policy) as runtime:
        runtime.run("spam", "hello there")
        yield Row("call that misses, p50", microseconds(runtime, texts), "us")
        yield Row("call that hits, p50", microseconds(runtime, texts), "us")


def microseconds(runtime: edge.Runtime, texts: Sequence[str]) -> float:
    """Return the median time of a call, everything included."""
    return median_us([partial(runtime.run, "spam", text) for text in texts])


def looking(folder: Path, rows: int) -> Iterator[Row]:
    """Time the single steps over so many kept answers with vectors."""
    random = np.random.default_rng(0)
    vectors = unit(random.standard_normal((rows, 384)))
    cache = Cache(folder)
    keep = [
        partial(cache.put, answer(number, vector), at=1.0, ttl_s=1e6)
        for number, vector in enumerate(vectors)
    ]
    yield Row(f"keep one, up to {rows} rows, p50", median_us(keep), "us")
    find = partial(cache.same, "k", since=0.0, until=2.0)
    same = [partial(find, f"{number}") for number in range(0, rows, 10)]
    yield Row(f"find the same of {rows}, p50", median_us(same), "us")
    search = partial(cache.similar, "k", marks=0, threshold=USUAL, since=0.0, until=2.0)
    near = [partial(search, vector) for vector in unit(random.standard_normal((100, 384)))]
    yield Row(f"find a similar of {rows}, without its vector, p50", median_us(near), "us")
    cache.close()


def answer(number: int, vector: Floats) -> Kept:
    """Return an answer to keep."""
    return Kept(
        task="t",
        key="k",
        input_sha256=f"{number}",
        value="card_swallowed",
        confidence=0.9,
        interval=(0.8, 0.95),
        certified=False,
        route="cloud",
        tier=None,
        model="m",
        device="cloud",
        trace_id=f"{number}",
        vector=vector,
    )


def similar(kept: int, asked: int) -> Iterator[Row]:
    """Count answers taken over from similar texts, and those that are wrong for theirs."""
    random = np.random.default_rng(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        edge.open(state=folder, offline=True) as runtime,
    ):
        for name, task in SETS.items():
            train = read_rows(shared("data", name, "train.jsonl"))
            bench = read_rows(shared("data", name, "bench.jsonl"))
            old = [train[n] for n in random.permutation(len(train))[:kept]]
            new = [bench[n] for n in random.permutation(len(bench))[:asked]]
            yield from one_set(runtime, name, runtime.tasks().get(task or ""), old, new)


def one_set(
    runtime: edge.Runtime,
    name: str,
    task: LocalTask | None,
    old: list[dict[str, object]],
    new: list[dict[str, object]],
) -> Iterator[Row]:
    """Yield the rows of one set: without and with the guard, and beside the head."""
    cosines = embedded(runtime, new) @ embedded(runtime, old).T
    alike = marked(new)[:, None] == marked(old)[None, :]
    for guard, scores in (("no guard", cosines), ("guard", np.where(alike, cosines, -1.0))):
        for threshold in THRESHOLDS:
            yield from counted(f"{name}, {guard}, {threshold}", scores, threshold, old, new)
    if task is None:
        return
    sure = np.array([is_kept(runtime, task.name, row) for row in new])
    hit = np.where(alike, cosines, -1.0).max(axis=1) >= USUAL
    yield Row(f"{name}: texts the head does not keep", int((~sure).sum()), "")
    yield Row(f"{name}: of these similar to a kept one", int((hit & ~sure).sum()), "")


def counted(
    what: str,
    scores: Floats,
    threshold: float,
    old: list[dict[str, object]],
    new: list[dict[str, object]],
) -> Iterator[Row]:
    """Yield how many texts are similar to a kept one, and how many answers are then wrong."""
    nearest = scores.argmax(axis=1)
    hits = np.flatnonzero(scores.max(axis=1) >= threshold)
    pairs = [(new[n], old[nearest[n]]) for n in hits]
    yield Row(f"{what}: similar", round(len(hits) / len(new), 4), "share")
    if "slots" in new[0]:
        wrong = sum(named(one) != named(other) for one, other in pairs)
        yield Row(f"{what}: other values named", f"{wrong} of {len(pairs)}", "")
    else:
        wrong = sum(one["label"] != other["label"] for one, other in pairs)
        yield Row(f"{what}: wrong label", f"{wrong} of {len(pairs)}", "")


def embedded(runtime: edge.Runtime, rows: list[dict[str, object]]) -> Floats:
    """Return a unit vector for each row."""
    found: Floats = np.array(runtime.embed([str(row["text"]) for row in rows]), np.float32)
    return found


def marked(rows: list[dict[str, object]]) -> NDArray[np.int64]:
    """Return what each row must share with a similar one."""
    return np.array([marks(str(row["text"])) for row in rows], np.int64)


def is_kept(runtime: edge.Runtime, task: str, row: dict[str, object]) -> bool:
    """Whether the head's answer is sure enough to be kept."""
    confidence = runtime.run(task, str(row["text"])).confidence
    return confidence is not None and confidence >= KEEP_ABOVE


def named(row: dict[str, object]) -> list[tuple[str, str]]:
    """Return the values that a command names."""
    slots = row["slots"]
    assert isinstance(slots, list)  # noqa: S101 - the form of the data set
    return sorted((slot["slot"], slot["value"].casefold()) for slot in slots)


def unit(rows: NDArray[np.float64]) -> Floats:
    """Return rows of length 1."""
    found: Floats = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def median_us(steps: Sequence[Callable[[], object]]) -> float:
    """Return the median time of steps that are done once each, microseconds."""
    times = []
    for step in steps:
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return round(median(times) * 1e6, 1)


if __name__ == "__main__":
    main("cache", measure)
