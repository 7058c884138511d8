"""Sentence vectors of the shipped encoder, made once and kept in build/bench."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.backends.onnx.encoder import OnnxEncoder

ROOT = Path(__file__).resolve().parents[1]
ENCODER = ROOT / "models" / "minilm-l6-int8"
BUILT = ROOT / "build" / "bench"
Floats = NDArray[np.float32]


def encoder_digest() -> str:
    """Return the sha256 of the shipped encoder's weights, as its manifest gives it."""
    files = json.loads((ENCODER / "manifest.json").read_text("utf-8"))["files"]
    return next(str(each["sha256"]) for each in files if each["role"] == "weights")


def kept_at(name: str, texts: Sequence[str]) -> Path:
    """Return where the vectors of these texts are kept; other texts or weights, another file."""
    told = hashlib.sha256("\0".join([encoder_digest(), *texts]).encode()).hexdigest()
    return BUILT / f"vectors-{name}-{told[:12]}.npy"


def vectors(name: str, texts: Sequence[str], *, threads: int = 1) -> Floats:
    """Return one unit vector per text, ``[texts, 384]``; about 100 texts a second at first."""
    path = kept_at(name, texts)
    if not path.is_file():
        store(path, embedded(texts, threads=threads))
    return np.asarray(np.load(path), np.float32)


def embedded(texts: Sequence[str], *, threads: int = 1) -> Floats:
    """Return the vectors, computed text by text, as the runtime does."""
    weights = ENCODER / "minilm-l6-int8.onnx"
    encoder = OnnxEncoder.open(
        weights,
        ENCODER / "tokenizer.json",
        name=ENCODER.name,
        digest=encoder_digest(),
        threads=threads,
    )
    try:
        return encoder.embed(texts)
    finally:
        encoder.close()


def store(path: Path, found: NDArray[np.float32]) -> None:
    """Write an array; another process never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}-{path.name}")
    np.save(part, found)
    part.replace(path)
