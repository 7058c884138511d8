"""Trains the four shipped heads on the int8 encoders and measures them on the bench splits.

    python models/recipes/heads.py --data ../shared/data

Settings were chosen by cross-validation on the training rows (see `edge/lab/heads.py`); the bench
rows are only measured on. sms_spam has no bench split: a fifth of its messages, chosen by a hash
of the text, is held out. Heads on `intents-l6-int8` are judged and calibrated on the rows that were
spared when that encoder was trained (`intents.py`), and learn from all. Embeddings are kept under
`--cache` between runs. What heads answered to training rows they did not see goes to `--held-out`,
one `.npz` per head, for `bench/tape.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from manifest import sha256, versions, write_manifest
from numpy.typing import NDArray

from edge.backends.heads import Head
from edge.backends.onnx.encoder import OnnxEncoder
from edge.lab.heads import Calibrating, HeldOut, train_on_vectors

Floats = NDArray[np.float32]
GENERAL, INTENTS = "minilm-l6-int8", "intents-l6-int8"
SPARED = 38  # of 256: the share of training rows that no intent encoder is trained on


@dataclass(frozen=True)
class Source:
    """One data set: its files, where the labels come from, and the encoder its head reads."""

    folder: str
    licence: str
    origin: str
    encoder: str = GENERAL


SOURCES = {
    "banking77-head": Source("banking77", "CC BY 4.0", "PolyAI-LDN/task-specific-datasets"),
    "clinc150-head": Source("clinc150", "CC BY 3.0", "clinc/oos-eval", INTENTS),
    "hwu64-head": Source("hwu64", "CC BY 4.0", "xliuhw/NLU-Evaluation-Data", INTENTS),
    "sms-spam-head": Source("sms_spam", "CC BY 4.0", "UCI SMS Spam Collection"),
}


@dataclass(frozen=True)
class Rows:
    """Texts and labels."""

    texts: list[str]
    labels: list[str]

    def where(self, keep: Sequence[bool]) -> Rows:
        """Return the rows for which ``keep`` is true."""
        chosen = [at for at, kept in enumerate(keep) if kept]
        return Rows([self.texts[at] for at in chosen], [self.labels[at] for at in chosen])


def read(path: Path) -> Rows:
    """Read one JSON-lines file."""
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return Rows([row["text"] for row in found], [row["label"] for row in found])


def is_held_out(text: str) -> bool:
    """Return whether a message belongs to the held-out fifth."""
    return hashlib.sha256(text.encode()).digest()[0] < 51


def spared(text: str) -> bool:
    """Return whether a training row is kept from intent encoders, about one in seven."""
    return hashlib.sha256(f"tune{text}".encode()).digest()[0] < SPARED


def splits(name: str, data: Path) -> tuple[Rows, Rows, Rows | None, Rows | None]:
    """Return training rows, bench rows, and out-of-scope rows to calibrate and to measure on."""
    folder = data / SOURCES[name].folder
    if name == "sms-spam-head":
        rows = read(folder / "messages.jsonl")
        held = [is_held_out(text) for text in rows.texts]
        return rows.where([not h for h in held]), rows.where(held), None, None
    train, bench = read(folder / "train.jsonl"), read(folder / "bench.jsonl")
    if name != "clinc150-head":
        return train, bench, None, None
    val = read(folder / "val.jsonl")
    train = Rows(train.texts + val.texts, train.labels + val.labels)
    parts = [read(folder / f"oos_{part}.jsonl") for part in ("train", "val")]
    outside = Rows(parts[0].texts + parts[1].texts, parts[0].labels + parts[1].labels)
    return train, bench, outside, read(folder / "oos_bench.jsonl")


def auroc(high: Floats, low: Floats) -> float:
    """Return the chance that a value of ``high`` exceeds one of ``low``, ties counted half."""
    if not len(high) or not len(low):
        return float("nan")
    both = np.sort(low)
    below = np.searchsorted(both, high, side="left")
    upto = np.searchsorted(both, high, side="right")
    return float((below + upto).mean() / 2 / len(low))


class Vectors:
    """Embeds rows once and keeps the vectors in a folder, keyed by texts and encoder."""

    def __init__(self, encoder: OnnxEncoder, cache: Path) -> None:
        self._encoder, self._cache = encoder, cache
        cache.mkdir(parents=True, exist_ok=True)

    def of(self, rows: Rows) -> Floats:
        """Return float32 ``[rows, dimensions]``."""
        key = "\0".join([self._encoder.info.digest, *rows.texts]).encode()
        path = self._cache / f"{hashlib.sha256(key).hexdigest()[:24]}.npy"
        if path.is_file():
            return np.load(path)  # type: ignore[no-any-return]
        vectors = self._encoder.embed(rows.texts)
        np.save(path, vectors)
        return vectors


def measure(
    head: Head, vectors: Floats, rows: Rows, outside: tuple[Floats, Rows] | None
) -> dict[str, Any]:
    """Return accuracy, error AUROC, calibration error and, where asked, out-of-scope AUROC."""
    outputs = [head.predict(*pair) for pair in zip(vectors, rows.texts, strict=True)]
    right = np.array([o.label == label for o, label in zip(outputs, rows.labels, strict=True)])
    confidence = np.array([o.confidence for o in outputs], dtype=np.float64)
    order = np.array_split(np.argsort(confidence), 10)
    gaps = [abs(confidence[p].mean() - right[p].mean()) * len(p) for p in order if len(p)]
    found = {
        "accuracy": round(float(right.mean()), 4),
        "error_auroc": round(auroc(confidence[right], confidence[~right]), 4),
        "ece": round(float(sum(gaps) / len(right)), 4),
        "n": len(right),
    }
    if outside is not None:
        far = [head.predict(*pair).score for pair in zip(outside[0], outside[1].texts, strict=True)]
        within = np.array([o.score for o in outputs], dtype=np.float32)
        value = auroc(within, np.array(far, dtype=np.float32))
        found |= {"out_of_scope_auroc": round(value, 4), "n_out_of_scope": len(far)}
    return found


def keep_held_out(path: Path, held: HeldOut) -> None:
    """Write what heads answered to rows they did not see; arrays as in `bench/tape.py`."""
    names = tuple(held.outputs[0].signals)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        value=np.array([output.label for output in held.outputs]),
        gold=np.array(held.truth),
        confidence=np.array([output.confidence for output in held.outputs], dtype=np.float64),
        signal_names=np.array(names),
        signals=np.array([list(o.signals.values()) for o in held.outputs], dtype=np.float32),
        fold=held.fold.astype(np.int16),
    )


def build(
    name: str, data: Path, out: Path, vectors: Vectors, *, digest: str, held_out: Path
) -> dict[str, Any]:
    """Train, save and measure one head."""
    source = SOURCES[name]
    train, bench, near, far = splits(name, data)
    known = None
    if source.encoder == INTENTS:
        known = [not spared(text) for text in train.texts]
        near = near.where([spared(text) for text in near.texts]) if near else None
    extra = Calibrating(vectors.of(near), near.labels, near.texts) if near else None
    trained = train_on_vectors(
        vectors.of(train),
        train.labels,
        texts=train.texts,
        encoder_digest=digest,
        extra=extra,
        known=known,
    )
    keep_held_out(held_out / f"{name}.npz", trained.held_out)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    trained.head.save(folder / f"{name}.safetensors")
    head = Head.load(folder / f"{name}.safetensors")
    quality = measure(head, vectors.of(bench), bench, (vectors.of(far), far) if far else None)
    quality["cross_validation"] = round(trained.report.accuracy, 4)
    facts = {
        "kind": "head",
        "engine": "head",
        "quantization": "float16 weights, int8 prototypes",
        "licence": "Apache-2.0",
        "sources": [{"name": source.folder, "licence": source.licence, "origin": source.origin}],
        "recipe": "models/recipes/heads.py",
        "parameters": head.parameters,
        "encoder": {"name": source.encoder, "sha256": digest},
        "quality": quality,
        "versions": versions("numpy", "onnxruntime", "safetensors", "tokenizers"),
    }
    write_manifest(folder, facts, [("weights", f"{name}.safetensors")])
    return quality


def main() -> None:
    """Build all heads and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--out", default="models")
    parser.add_argument("--cache", default="build/vectors")
    parser.add_argument("--held-out", default="build/tapes/held-out")
    parser.add_argument("--only", choices=tuple(SOURCES), help="build this head alone")
    parser.add_argument("--encoders", default="models", help="where the encoders' folders lie")
    arguments = parser.parse_args()
    cache = Path(arguments.cache)
    data, out, held = (Path(arguments.data), Path(arguments.out), Path(arguments.held_out))
    for name in (arguments.only,) if arguments.only else SOURCES:
        encoder = open_encoder(Path(arguments.encoders) / SOURCES[name].encoder)
        vectors, digest = Vectors(encoder, cache), encoder.info.digest
        quality = build(name, data, out, vectors, digest=digest, held_out=held)
        print(name, json.dumps(quality), flush=True)


def open_encoder(folder: Path) -> OnnxEncoder:
    """Return the encoder of a shipped model's folder."""
    weights = folder / f"{folder.name}.onnx"
    tokenizer = folder / "tokenizer.json"
    digest = sha256(weights)
    return OnnxEncoder.open(weights, tokenizer, name=folder.name, digest=digest, threads=1)


if __name__ == "__main__":
    main()
