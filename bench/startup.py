"""How long does an app wait for `import edge`, and for its first answer?

Every measurement is an interpreter of its own, timed from outside from its start to its end;
nothing is subtracted. Memory is what the process holds resident right after the import. The first
answer is that of `support_intent`: import, open, load encoder and head, answer, close.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from _common import Row, at_most, main

ROUNDS = 15
TIMES = """
import json, os, time
begin = time.perf_counter()
import edge
imported = time.perf_counter()
pages = int(open("/proc/self/statm").read().split()[1]) if os.path.exists("/proc/self/statm") else 0
told = {"import_ms": (imported - begin) * 1e3, "resident": pages * 4096}
"""
ANSWER = """
edge.open
told["runtime_ms"] = (time.perf_counter() - imported) * 1e3
with edge.open(offline=True) as runtime:
    told["value"] = runtime.run("support_intent", "my card was swallowed by the machine").value
    told["answer_ms"] = (time.perf_counter() - begin) * 1e3
    told["resident"] = int(open("/proc/self/statm").read().split()[1]) * 4096 if pages else 0
"""
TELL = "print(json.dumps(told))"


def run(code: str, state: str) -> dict[str, float]:
    """Run code in a fresh interpreter; return what it tells and the milliseconds it took."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code + TELL],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, "EDGE_STATE": state},
    )
    taken_ms = (time.perf_counter() - begin) * 1e3
    return {**json.loads(done.stdout), "process_ms": taken_ms}


def medians(code: str, rounds: int, state: str) -> dict[str, float]:
    """Return the median of each figure; the first round warms the file cache and is left out."""
    found = [run(code, state) for _ in range(rounds + 1)][1:]
    keys = [key for key in found[0] if key != "value"]
    return {key: statistics.median(row[key] for row in found) for key in keys}


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows."""
    with tempfile.TemporaryDirectory() as state:
        bare = medians("import json\ntold = {}\n", ROUNDS, state)
        imported = medians(TIMES, ROUNDS, state)
        answered = medians(TIMES + ANSWER, 3 if arguments.quick else ROUNDS, state)
    yield at_most("import edge, whole process", imported["process_ms"], 200.0, "ms")
    yield Row("python without it", round(bare["process_ms"], 1), "ms")
    yield Row("the import alone", round(imported["import_ms"], 1), "ms")
    if imported["resident"]:
        yield at_most("resident after import", imported["resident"] / 1e6, 60.0, "MB")
    yield Row("first use of edge.open, imports", round(answered["runtime_ms"], 1), "ms")
    yield Row("first answer of support_intent", round(answered["answer_ms"], 1), "ms")
    if answered["resident"]:
        yield Row("resident after the first answer", round(answered["resident"] / 1e6, 1), "MB")


if __name__ == "__main__":
    main("startup", measure)
