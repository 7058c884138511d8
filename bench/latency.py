"""How fast is a task inside a running process?

Everything is included: tokenizing, model, head, budget, trace. The bar is on `support_intent`; the
other tasks are shown for comparison. The texts are real ones where ../shared is present, the
pack's own samples otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Iterator

from _common import SHARED, Row, at_most, main, read_rows

import edge

WARM = 20


def texts(runtime: edge.Runtime, task: str) -> list[str]:
    """Return texts to run a task on."""
    bench = SHARED / "data" / "banking77" / "bench.jsonl"
    if task == "support_intent" and bench.is_file():
        return [str(row["text"]) for row in read_rows(bench)]
    return list(runtime.tasks()[task].spec.samples)


def latencies(runtime: edge.Runtime, task: str, count: int) -> list[float]:
    """Return the sorted milliseconds of ``count`` runs after a warm-up."""
    source = itertools.cycle(texts(runtime, task))
    results = [runtime.run(task, next(source)) for _ in range(WARM + count)]
    return sorted(result.latency_ms for result in results[WARM:])


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows."""
    count = 300 if arguments.quick else 1500
    with tempfile.TemporaryDirectory() as state, edge.open(state=state, offline=True) as runtime:
        for task in runtime.tasks():
            found = latencies(runtime, task, count if task == "support_intent" else count // 5)
            p50, p95 = statistics.median(found), found[int(0.95 * len(found))]
            if task == "support_intent":
                yield at_most("support_intent p50", p50, 4.0, "ms")
            else:
                yield Row(f"{task} p50", round(p50, 3), "ms")
            yield Row(f"{task} p95", round(p95, 3), "ms")
        for name in ("minilm-l6-int8", "intents-l6-int8"):
            with runtime.models.encoder(name) as encoder:
                yield Row(f"{name} threads", encoder.info.threads, "")


if __name__ == "__main__":
    main("latency", measure)
