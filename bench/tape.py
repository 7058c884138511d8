"""Stage one of the escalation bench: the shipped local models run once, every answer kept.

    python bench/tape.py --out build/tapes

Runs the tasks of the pack `kiosk` through the runtime's own local tier over the bench rows of
clinc150 (with its out-of-scope rows), banking77, hwu64, sms_spam (held-out messages) and snips, and
adds what heads answered to training rows they did not see, where `models/recipes/heads.py` left
that in `build/tapes/held-out`. `snips-q4` is the same bench rows of snips through the decoder
quantised again, from Q8_0 to Q4_0. One `.npz`, named by the digest of the models that answered.
`load_tape` reads it. Arrays, over n rows:

    streams [S] str         names; `<name>-fit` holds training rows, for priors and calibration
    stream [n] int16        index into `streams`
    task [n] str            task of the pack
    value, gold [n] str     label, or call as sorted JSON; gold `oos` is out of scope, never right
    right [n] bool
    confidence [n] float64  NaN where there is none; in fit rows calibrated on the other folds
    signal_names [F] str; signals [n, F] float32: NaN where a task has no such signal
    similarity [n] float32  to the nearest prototype; NaN for generated answers
    fold [n] int16          of the cross-validation; -1 in bench rows
    latency_ms [n] float32  of the local tier, wall clock; NaN in fit rows
    tokens_in, tokens_out [n] int32; -1 in fit rows
    digest [n] str          of the models that answered; empty in fit rows

The decide stage never needs a model: it reads a tape.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from _common import ROOT, Row, main, read_rows, shared
from numpy.typing import NDArray
from quality import call, spam

import edge
from edge.judge import plain

HEADS = {
    "clinc150": ("assistant_intent", "clinc150-head"),
    "banking77": ("support_intent", "banking77-head"),
    "hwu64": ("home_intent", "hwu64-head"),
    "sms_spam": ("spam", "sms-spam-head"),
}
QUICK = 40


@dataclass(frozen=True)
class Item:
    """One answer; see the module for what each field holds."""

    stream: str
    task: str
    value: str
    gold: str
    right: bool
    confidence: float
    signals: Mapping[str, float]
    fold: int = -1
    latency_ms: float = float("nan")
    tokens: tuple[int, int] = (-1, -1)
    digest: str = ""


@dataclass(frozen=True)
class Tape:
    """A loaded tape: the arrays of the module's docstring by name."""

    arrays: Mapping[str, NDArray[Any]]

    def rows(self, stream: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of one stream.

        Raises:
            KeyError: the tape has no such stream.

        """
        names = [str(name) for name in self.arrays["streams"]]
        if stream not in names:
            raise KeyError(f"The tape has no stream {stream}; it has {', '.join(names)}.")
        inside = self.arrays["stream"] == names.index(stream)
        fixed = ("streams", "signal_names")
        return {name: each[inside] for name, each in self.arrays.items() if name not in fixed}

    def signal(self, stream: str, name: str) -> NDArray[np.float32]:
        """Return one signal of one stream, float32 ``[rows]``."""
        at = [str(each) for each in self.arrays["signal_names"]].index(name)
        values: NDArray[np.float32] = self.rows(stream)["signals"][:, at]
        return values


def load_tape(path: Path) -> Tape:
    """Read a tape."""
    with np.load(path) as file:
        return Tape({name: file[name] for name in file.files})


def save_tape(path: Path, items: Sequence[Item]) -> None:
    """Write a tape."""
    streams = list(dict.fromkeys(item.stream for item in items))
    names = sorted({name for item in items for name in item.signals})
    nan = float("nan")
    similarity = [item.signals.get("similarity", nan) for item in items]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        streams=np.array(streams),
        stream=np.array([streams.index(item.stream) for item in items], dtype=np.int16),
        task=np.array([item.task for item in items]),
        value=np.array([item.value for item in items]),
        gold=np.array([item.gold for item in items]),
        right=np.array([item.right for item in items]),
        confidence=np.array([item.confidence for item in items], dtype=np.float64),
        signal_names=np.array(names),
        signals=np.array(
            [[item.signals.get(name, nan) for name in names] for item in items], dtype=np.float32
        ),
        similarity=np.array(similarity, dtype=np.float32),
        fold=np.array([item.fold for item in items], dtype=np.int16),
        latency_ms=np.array([item.latency_ms for item in items], dtype=np.float32),
        tokens_in=np.array([item.tokens[0] for item in items], dtype=np.int32),
        tokens_out=np.array([item.tokens[1] for item in items], dtype=np.int32),
        digest=np.array([item.digest for item in items]),
    )


def answered(
    runtime: edge.Runtime, stream: str, task: str, rows: Sequence[Mapping[str, Any]]
) -> Iterator[Item]:
    """Yield the local tier's answer to every row."""
    local = runtime.tasks()[task]
    for row in rows:
        start = time.perf_counter()
        draft = runtime.models.draft(local, str(row["text"]))
        took = 1000.0 * (time.perf_counter() - start)
        if "slots" in row:
            gold: Any = plain(call(dict(row)))
            value: Any = plain(draft.value) if isinstance(draft.value, dict) else {}
        else:
            gold, value = row["label"], draft.value
        yield Item(
            stream,
            task,
            _text(value),
            _text(gold),
            value == gold,
            float("nan") if draft.confidence is None else draft.confidence,
            dict(draft.signals),
            latency_ms=took,
            tokens=(draft.usage.tokens_in, draft.usage.tokens_out),
            digest=draft.digest,
        )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def held_out(folder: Path) -> Iterator[Item]:
    """Yield what heads answered to training rows they did not see, where it was kept."""
    for name, (task, head) in HEADS.items():
        path = folder / f"{head}.npz"
        if not path.is_file():
            continue
        with np.load(path) as file:
            kept = {each: file[each] for each in file.files}
        names = [str(each) for each in kept["signal_names"]]
        columns = (kept[each].tolist() for each in ("value", "gold", "confidence", "fold"))
        for value, gold, confidence, fold, row in zip(
            *columns, kept["signals"].tolist(), strict=True
        ):
            signals = dict(zip(names, row, strict=True))
            right = value == gold
            yield Item(f"{name}-fit", task, value, gold, right, confidence, signals, fold)


def streams(runtime: edge.Runtime, most: int | None) -> Iterator[Item]:
    """Yield the answers to every bench row, or to the first ``most`` of each stream."""
    for name, (task, _) in HEADS.items():
        rows = spam() if name == "sms_spam" else read_rows(shared("data", name, "bench.jsonl"))
        yield from answered(runtime, name, task, rows[:most])
    outside = read_rows(shared("data", "clinc150", "oos_bench.jsonl"))
    yield from answered(
        runtime, "clinc150-oos", "assistant_intent", [{**r, "label": "oos"} for r in outside[:most]]
    )
    snips = read_rows(shared("data", "snips", "bench.jsonl"))
    yield from answered(runtime, "snips", "action", snips[:most])


def quantised(folder: Path) -> Path:
    """Write the shipped decoder as Q4_0 into a folder of its own, with a manifest and a pack.

    Returns:
        the pack: the task `action` on that model. Its calibration is another model's, so that no
        answer has a confidence; the decide stage says what the old one would have said.

    """
    from edge.backends.llama.library import llama_library

    source = edge.config.models_folder() / "actions-q8_0"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "actions-q4_0.gguf"
    lib = llama_library()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = lib.LLAMA_FTYPE_MOSTLY_Q4_0, True
    old = bytes(source / "actions-q8_0.gguf")
    if lib.llama_model_quantize(old, bytes(made), ctypes.byref(params)) != 0:
        raise SystemExit("llama.cpp could not quantise the shipped decoder")
    about = json.loads((source / "manifest.json").read_text("utf-8"))
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    weights = {
        "role": "weights",
        "path": made.name,
        "sha256": digest,
        "bytes": made.stat().st_size,
    }
    manifest = {**about, "name": "actions-q4_0", "quantization": "Q4_0", "files": [weights]}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    kiosk = yaml.safe_load((source.parent / "packs" / "kiosk.yaml").read_text("utf-8"))
    task = {**kiosk["tasks"]["action"], "model": "actions-q4_0"}
    task["output_schema"] = json.loads((source / "schema.json").read_text("utf-8"))
    pack = {
        **{name: kiosk[name] for name in ("task_budgets", "prompts")},
        "name": "q4",
        "version": 1,
        "models": {"actions-q4_0": {"folder": "."}},
        "tasks": {"action": task},
    }
    (folder / "pack.yaml").write_text(yaml.safe_dump(pack), "utf-8")
    return folder / "pack.yaml"


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Write the tape and yield what is on it."""
    out = Path(arguments.out or ROOT / "build" / "tapes")
    most = QUICK if arguments.quick else None
    with tempfile.TemporaryDirectory() as state, edge.open(state=state, offline=True) as runtime:
        items = list(streams(runtime, most))
    with tempfile.TemporaryDirectory() as state:
        pack = quantised(Path(state) / "q4")
        with edge.open(pack, state=Path(state) / "state", offline=True) as runtime:
            rows = read_rows(shared("data", "snips", "bench.jsonl"))
            items += answered(runtime, "snips-q4", "action", rows[:most])
    digests = "".join(sorted({item.digest for item in items}))
    items += held_out(Path(arguments.held_out or out / "held-out"))
    name = hashlib.sha256(digests.encode()).hexdigest()[:16]
    path = out / f"{'quick-' if arguments.quick else ''}{name}.npz"
    save_tape(path, items)
    tape = load_tape(path)
    for stream in tape.arrays["streams"]:
        rows = tape.rows(str(stream))
        yield Row(
            f"{stream} right (n {len(rows['right'])})", round(float(rows["right"].mean()), 4), ""
        )
    yield Row("tape", path.name, "")
    yield Row("tape size", round(path.stat().st_size / 1e6, 2), "MB")


if __name__ == "__main__":
    main(
        "tape",
        measure,
        options={"--out": "folder of tapes", "--held-out": "folder of answers out of fold"},
    )
