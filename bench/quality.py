"""How good are the shipped models? Accuracy, out-of-scope AUROC and exact match on bench splits.

Runs the tasks of the pack `kiosk` through the runtime's own local tier, as an app would.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from _common import Row, at_least, at_most, main, read_rows, shared
from numpy.typing import NDArray

import edge
from edge.confidence.reliability import expected_calibration_error
from edge.judge import plain
from edge.lab.metrics import auroc, separation
from edge.types import Draft

HELD_OUT = 51  # of 256: the share of sms_spam, by the first byte of the text's sha256


def answers(runtime: edge.Runtime, task: str, texts: Sequence[str]) -> list[Draft]:
    """Return the local tier's drafts."""
    local = runtime.tasks()[task]
    return [runtime.models.draft(local, text) for text in texts]


def judged(name: str, right: NDArray[np.bool_], drafts: Sequence[Draft]) -> Iterator[Row]:
    """Yield how well confidence tells right from wrong."""
    sure = np.array([draft.confidence or 0.0 for draft in drafts])
    yield Row(f"{name} error AUROC", round(auroc(sure, right), 4), "")
    ece = expected_calibration_error(sure, right.astype(float))
    yield Row(f"{name} calibration error", round(ece, 4), "")


def classified(
    runtime: edge.Runtime, task: str, rows: Sequence[dict[str, Any]], *, name: str, bar: float
) -> Iterator[Row]:
    """Yield the accuracy of a classification task and the quality of its confidence."""
    drafts = answers(runtime, task, [row["text"] for row in rows])
    right = np.array([d.value == row["label"] for d, row in zip(drafts, rows, strict=True)])
    yield at_least(f"{name} accuracy (n {len(rows)})", float(right.mean()), bar)
    yield from judged(name, right, drafts)


def out_of_scope(runtime: edge.Runtime) -> Iterator[Row]:
    """Yield how well the score tells requests out of scope from those within."""
    inside = [str(row["text"]) for row in read_rows(shared("data", "clinc150", "bench.jsonl"))]
    outside = [str(r["text"]) for r in read_rows(shared("data", "clinc150", "oos_bench.jsonl"))]
    within, beyond = (
        [draft.signals["score"] for draft in answers(runtime, "assistant_intent", texts)]
        for texts in (inside, outside)
    )
    value = separation(within, beyond)
    yield at_least(f"clinc150 out-of-scope AUROC (n {len(outside)})", value, 0.97)


def actions(runtime: edge.Runtime) -> Iterator[Row]:
    """Yield intent accuracy and exact match of the whole call on snips."""
    rows = read_rows(shared("data", "snips", "bench.jsonl"))
    drafts = answers(runtime, "action", [str(row["text"]) for row in rows])
    gold = [call(row) for row in rows]
    found = [d.value if isinstance(d.value, dict) else {} for d in drafts]
    intent = np.array([f.get("intent") == g["intent"] for f, g in zip(found, gold, strict=True)])
    exact = np.array([plain(f) == plain(g) for f, g in zip(found, gold, strict=True)])
    yield at_least(f"snips intent (n {len(rows)})", float(intent.mean()), 0.97)
    yield at_least(f"snips exact match (n {len(rows)})", float(exact.mean()), 0.75)
    yield from judged("snips", exact, drafts)


def call(row: dict[str, Any]) -> dict[str, str]:
    """Return the gold call; a slot that occurs twice counts once, with its first value."""
    gold = {"intent": row["intent"]}
    for slot in sorted(row["slots"], key=lambda slot: slot["start"]):
        gold.setdefault(slot["slot"], slot["value"])
    return gold


def spam() -> list[dict[str, Any]]:
    """Return the held-out fifth of the messages."""
    rows = read_rows(shared("data", "sms_spam", "messages.jsonl"))
    first = [hashlib.sha256(str(row["text"]).encode()).digest()[0] for row in rows]
    return [row for row, byte in zip(rows, first, strict=True) if byte < HELD_OUT]


def measure(_: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    with tempfile.TemporaryDirectory() as state, edge.open(state=state, offline=True) as runtime:
        for task, name, bar in (
            ("assistant_intent", "clinc150", 0.95),
            ("support_intent", "banking77", 0.925),
            ("home_intent", "hwu64", 0.88),
        ):
            rows = read_rows(shared("data", name, "bench.jsonl"))
            yield from classified(runtime, task, rows, name=name, bar=bar)
        yield from classified(runtime, "spam", spam(), name="sms_spam", bar=0.98)
        yield from out_of_scope(runtime)
        yield from actions(runtime)
        for name in ("minilm-l6-int8", "intents-l6-int8"):
            store = edge.config.models_folder() / name / f"{name}.onnx"
            yield at_most(f"{name} size", store.stat().st_size / 1e6, 24.0, "MB")


if __name__ == "__main__":
    main("quality", measure)
