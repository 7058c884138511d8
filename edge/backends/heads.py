"""Classification heads: a linear layer over a sentence vector, its neighbours, and a calibration.

A head is one safetensors file of a few hundred kilobytes. It answers with a label and with the
numbers that tell whether to trust it. Its calibrated confidence holds for the encoder it was
trained on, named by digest, and for no other. Pure numpy; ``edge.lab.heads`` trains them.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import InputError, LoadError

FORMAT = "edge-head-1"
FEATURES = ("log_odds", "margin", "similarity")
SIMILARITY_WEIGHT = 2.0  # of the score
PROTOTYPE_WEIGHT = 4.0  # of a label's nearest prototype; best mean cross-validation of 0 to 24
_CLIP = 6.0
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HeadOutput:
    """One classified vector.

    Attributes:
        probability: softmax of the winning label, 0..1; not calibrated.
        probabilities: float32 ``[labels]``.
        margin: logit of the best label minus that of the second, >= 0.
        similarity: cosine to the nearest prototype of any label.
        score: ``probability + 2 * similarity``: higher means more surely in scope and right.
        confidence: calibrated probability of being right, or ``None`` without a calibration.

    """

    label: str
    label_index: int
    probability: float
    probabilities: Floats
    margin: float
    similarity: float
    score: float
    confidence: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A loaded head.

    Attributes:
        labels: what it chooses from.
        weight: float32 ``[labels, dimensions]``; ``bias``: float32 ``[labels]``.
        prototypes: unit vectors float32 ``[prototypes, dimensions]``, label by label.
        starts: int64 ``[labels]``: where each label's prototypes begin; every label has one.
        calibration: float64 ``[3, features + 1]``: mean, scale, weights; the last column holds the
            bias in its third row. ``None`` where the head carries no calibration.
        encoder_digest: sha256 of the encoder's weights it was trained on.

    """

    labels: tuple[str, ...]
    weight: Floats
    bias: Floats
    prototypes: Floats
    starts: NDArray[np.int64]
    calibration: NDArray[np.float64] | None
    encoder_digest: str

    def predict(self, embedding: Floats) -> HeadOutput:
        """Classify one unit vector, float32 ``[dimensions]``.

        Raises:
            InputError: the vector has another width.

        """
        if embedding.shape != (self.weight.shape[1],):
            raise InputError(
                f"The head takes vectors of {self.weight.shape[1]} numbers, "
                f"not of shape {embedding.shape}.",
                hint="Use the encoder the head was trained on.",
            )
        near = np.maximum.reduceat(self.prototypes @ embedding, self.starts)
        logits = self.weight @ embedding + self.bias + np.float32(PROTOTYPE_WEIGHT) * near
        best = int(logits.argmax())
        shares = np.exp(logits - logits[best])
        probabilities = (shares / shares.sum()).astype(np.float32)
        margin = float(logits[best] - np.partition(logits, -2)[-2]) if len(logits) > 1 else 0.0
        similarity = float(near.max())
        probability = float(probabilities[best])
        return HeadOutput(
            label=self.labels[best],
            label_index=best,
            probability=probability,
            probabilities=probabilities,
            margin=margin,
            similarity=similarity,
            score=probability + SIMILARITY_WEIGHT * similarity,
            confidence=self._confidence(features(probability, margin, similarity)),
        )

    def _confidence(self, row: list[float]) -> float | None:
        if self.calibration is None:
            return None
        mean, scale, weights = self.calibration
        standard = np.clip((np.array(row) - mean[:-1]) / scale[:-1], -_CLIP, _CLIP)
        return float(0.5 * (1.0 + np.tanh(0.5 * (standard @ weights[:-1] + weights[-1]))))

    def calibrated_for(self, encoder_digest: str) -> bool:
        """Return whether ``confidence`` may be believed with this encoder."""
        return self.calibration is not None and encoder_digest == self.encoder_digest

    def save(self, path: Path) -> None:
        """Write the head: weights as float16, prototypes as int8.

        Raises:
            OSError: the file cannot be written.

        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        scale = float(np.abs(self.prototypes).max()) / 127.0
        tensors: dict[str, NDArray[Any]] = {
            "weight": self.weight.astype(np.float16),
            "bias": self.bias.astype(np.float32),
            "prototypes": np.round(self.prototypes / scale).astype(np.int8),
            "prototype_scale": np.array([scale], dtype=np.float32),
            "prototype_starts": self.starts.astype(np.int64),
        }
        if self.calibration is not None:
            tensors["calibration"] = self.calibration
        meta = {
            "format": FORMAT,
            "labels": json.dumps(self.labels),
            "encoder_digest": self.encoder_digest,
        }
        try:
            save_file(tensors, path, metadata=meta)
        except SafetensorError as error:
            raise OSError(errno.EIO, f"{error}", str(path)) from error

    @classmethod
    def load(cls, path: Path) -> Head:
        """Read a head.

        Raises:
            LoadError: the file is missing, truncated, or not a head.

        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls._from(tensors, meta)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise LoadError(f"The head {path.name} cannot be loaded: {error}.") from error

    @classmethod
    def _from(cls, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, str]) -> Head:
        if meta.get("format") != FORMAT:
            raise ValueError(f"its format is {meta.get('format')!r}, not {FORMAT!r}")
        labels = tuple(json.loads(meta["labels"]))
        weight = tensors["weight"].astype(np.float32)
        bias = tensors["bias"].astype(np.float32)
        scale = float(tensors["prototype_scale"][0])
        prototypes = tensors["prototypes"].astype(np.float32) * np.float32(scale)
        starts = tensors["prototype_starts"].astype(np.int64)
        calibration = tensors.get("calibration")
        if weight.shape[:1] != (len(labels),) or bias.shape != (len(labels),) or not labels:
            raise ValueError("labels, weight and bias do not fit together")
        if prototypes.ndim != weight.ndim or prototypes.shape[1:] != weight.shape[1:]:
            raise ValueError("prototypes and weight do not fit together")
        rising = np.diff(np.append(starts, len(prototypes)))
        if starts.shape != bias.shape or starts[0] != 0 or (rising < 1).any():
            raise ValueError("the prototypes do not cover the labels")
        if calibration is not None and calibration.shape != (3, len(FEATURES) + 1):
            raise ValueError("the calibration has the wrong shape")
        whole = None if calibration is None else calibration.astype(np.float64)
        return cls(labels, weight, bias, prototypes, starts, whole, meta["encoder_digest"])


def features(probability: float, margin: float, similarity: float) -> list[float]:
    """Return what the calibration looks at, in the order of ``FEATURES``."""
    held = min(max(probability, 1e-6), 1.0 - 1e-6)
    return [float(np.log(held / (1.0 - held))), margin, similarity]
