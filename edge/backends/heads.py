"""Classification heads: linear layers over a sentence vector and its words, and a calibration.

A head is one safetensors file of at most a few megabytes. It answers with a label and with the
numbers that tell whether to trust it. Given the text as well as its vector, it also reads the
words. Its calibrated confidence holds for the encoder it was trained on, named by digest, and for
no other. Writes files of format ``edge-head-2``, reads also ``edge-head-1``, which has no words and
one fixed blend. Pure numpy; ``edge.lab.heads`` trains them.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backends.ngrams import counted, weighted
from edge.errors import InputError, LoadError

FEATURES = ("log_odds", "margin", "similarity")  # of heads of the first format
KNOWN_SIGNALS = (
    *("log_odds", "probability", "margin", "similarity", "gap", "entropy", "agreement"),
    "score",
)
NEARNESS = 4.0  # of a label's nearest prototype in heads of the first format
_CLIP = 6.0
Floats = NDArray[np.float32]
FORMATS = ("edge-head-1", "edge-head-2")
Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class HeadOutput:
    """One classified text.

    Attributes:
        probability: softmax of the winning label, 0..1; not calibrated.
        probabilities: float32 ``[labels]``.
        margin: logit of the best label minus that of the second, >= 0.
        similarity: cosine to the nearest prototype of any label.
        gap: cosine to the winner's nearest prototype minus that to any other label's.
        entropy: of the probabilities, in nats.
        agreement: share of the opinions that name the winner: the vector's layer, the nearest
            prototype and, where the text was given, the layer over vector and words.
        score: log of the summed exponentials of the logits, the negated energy (Liu et al. 2020):
            higher means more surely in scope.
        confidence: calibrated probability of being right, or ``None`` without a calibration.

    """

    label: str
    label_index: int
    probability: float
    probabilities: Floats
    margin: float
    similarity: float
    gap: float
    entropy: float
    agreement: float
    score: float
    confidence: float | None

    @property
    def signals(self) -> dict[str, float]:
        """The named numbers that a calibration may look at."""
        held = min(max(self.probability, 1e-6), 1.0 - 1e-6)
        return {
            "log_odds": float(np.log(held / (1.0 - held))),
            "probability": self.probability,
            "margin": self.margin,
            "similarity": self.similarity,
            "gap": self.gap,
            "entropy": self.entropy,
            "agreement": self.agreement,
            "score": self.score,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """How a layer and the nearest prototypes become one answer.

    Attributes:
        sharpness: of the layer's logits.
        nearness: of the cosine to a label's nearest prototype.
        features: what the calibration looks at, of ``HeadOutput.signals``.
        calibration: float64 ``[3, features + 1]``: mean, scale, weights; the last column holds the
            bias in its third row. ``None`` where there is none.

    """

    sharpness: float = 1.0
    nearness: float = NEARNESS
    features: tuple[str, ...] = FEATURES
    calibration: NDArray[np.float64] | None = None

    def confidence(self, signals: Mapping[str, float]) -> float | None:
        """Return the calibrated probability of being right."""
        if self.calibration is None:
            return None
        mean, scale, weights = self.calibration
        row = np.array([signals[name] for name in self.features])
        standard = np.clip((row - mean[:-1]) / scale[:-1], -_CLIP, _CLIP)
        return float(0.5 * (1.0 + np.tanh(0.5 * (standard @ weights[:-1] + weights[-1]))))


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """A second layer, over the sentence vector and the hashed n-grams of the text.

    Attributes:
        weight: float32 ``[labels, dimensions]``; ``bias``: float32 ``[labels]``.
        table: float32 ``[buckets, labels]``: what each bucket of n-grams adds.
        rarity: float32 ``[buckets]``; see ``edge.backends.ngrams``.
        blend: used in place of the head's where the text is given.

    """

    weight: Floats
    bias: Floats
    table: Floats
    rarity: Floats
    blend: Blend

    def added(self, text: str) -> Floats:
        """Return what the words of a text add to the logits, float32 ``[labels]``."""
        touched, sums = counted(text, len(self.rarity))
        return weighted(sums, self.rarity[touched]) @ self.table[touched]


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A loaded head.

    Attributes:
        labels: what it chooses from.
        weight: float32 ``[labels, dimensions]``; ``bias``: float32 ``[labels]``.
        prototypes: unit vectors float32 ``[prototypes, dimensions]``, label by label.
        starts: int64 ``[labels]``: where each label's prototypes begin; every label has one.
        blend: makes one answer of the layer and the prototypes.
        encoder_digest: sha256 of the encoder's weights it was trained on.
        words: reads the text as well; ``None`` in heads of the first format.

    """

    labels: tuple[str, ...]
    weight: Floats
    bias: Floats
    prototypes: Floats
    starts: NDArray[np.int64]
    blend: Blend
    encoder_digest: str
    words: Words | None = None

    def predict(self, embedding: Floats, text: str | None = None) -> HeadOutput:
        """Classify one text.

        Args:
            embedding: its unit vector, float32 ``[dimensions]``.
            text: the text itself; without it the answer rests on the vector alone, and has a
                calibration of its own.

        Raises:
            InputError: the vector has another width.

        """
        if embedding.shape != (self.weight.shape[1],):
            raise InputError(
                f"The head takes vectors of {self.weight.shape[1]} numbers, "
                f"not of shape {embedding.shape}.",
                hint="Use the encoder the head was trained on.",
            )
        near = np.maximum.reduceat(_times(self.prototypes, embedding), self.starts)
        plain = _times(self.weight, embedding) + self.bias
        if self.words is None or text is None:
            return self._output(self.blend, plain, [plain, near], near=near)
        logits = _times(self.words.weight, embedding) + self.words.bias + self.words.added(text)
        return self._output(self.words.blend, logits, [plain, near, logits], near=near)

    def _output(
        self, blend: Blend, layer: Floats, opinions: list[Floats], *, near: Floats
    ) -> HeadOutput:
        logits = np.float32(blend.sharpness) * layer + np.float32(blend.nearness) * near
        best = int(logits.argmax())
        shares = np.exp(logits - logits[best])
        probabilities = (shares / shares.sum()).astype(np.float32)
        similarity, probability = float(near.max()), float(probabilities[best])
        agreed = sum(int(opinion.argmax()) == best for opinion in opinions)
        numbers = {
            "probability": probability,
            "margin": lead(logits, best),
            "similarity": similarity,
            "gap": lead(near, best),
            "entropy": float(-(probabilities * np.log(probabilities + 1e-12)).sum()),
            "agreement": agreed / len(opinions),
            "score": float(logits[best] + np.log(shares.sum())),
        }
        output = HeadOutput(
            label=self.labels[best],
            label_index=best,
            probabilities=probabilities,
            confidence=None,
            **numbers,
        )
        return replace(output, confidence=blend.confidence(output.signals))

    def calibrated_for(self, encoder_digest: str) -> bool:
        """Return whether ``confidence`` may be believed with this encoder."""
        return self.blend.calibration is not None and encoder_digest == self.encoder_digest

    @property
    def parameters(self) -> int:
        """How many numbers it has learnt."""
        words = self.words
        more = 0 if words is None else words.weight.size + words.bias.size + words.table.size
        return int(self.weight.size + self.bias.size + self.prototypes.size + more)

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
            **_blend_tensors("", self.blend),
        }
        meta = {
            "format": FORMATS[-1],
            "labels": json.dumps(self.labels),
            "encoder_digest": self.encoder_digest,
            "features": json.dumps(self.blend.features),
        }
        if self.words is not None:
            tensors |= {
                "words.weight": self.words.weight.astype(np.float16),
                "words.bias": self.words.bias.astype(np.float32),
                "words.table": self.words.table.astype(np.float16),
                "words.rarity": self.words.rarity.astype(np.float32),
                **_blend_tensors("words.", self.words.blend),
            }
            meta["words.features"] = json.dumps(self.words.blend.features)
        try:
            save_file(tensors, path, metadata=meta)
        except SafetensorError as error:
            raise OSError(errno.EIO, f"{error}", str(path)) from error

    @classmethod
    def load(cls, path: Path) -> Head:
        """Read a head of either format.

        Raises:
            LoadError: the file is missing, truncated, or not a head.

        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return _head(tensors, meta)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise LoadError(f"The head {path.name} cannot be loaded: {error}.") from error


def _times(matrix: Floats, vector: Floats) -> Floats:
    """Return a matrix times a vector, on this thread alone.

    A threaded product waits for the encoder's threads, which go on spinning after a pass, and its
    last bits depend on how many threads there are.
    """
    product: Floats = np.einsum("ij,j->i", matrix, vector)
    return product


def lead(values: Floats, index: int) -> float:
    """Return a value minus the largest of the others, 0 where there is no other."""
    if len(values) == 1:
        return 0.0
    others = max(values[:index].max(initial=-np.inf), values[index + 1 :].max(initial=-np.inf))
    return float(values[index] - others)


def _head(tensors: Tensors, meta: Mapping[str, str]) -> Head:
    if meta.get("format") not in FORMATS:
        raise ValueError(f"its format is {meta.get('format')!r}, not one of {FORMATS}")
    labels = tuple(json.loads(meta["labels"]))
    weight, bias = _layer(tensors, "", len(labels))
    scale = np.float32(tensors["prototype_scale"][0])
    prototypes = tensors["prototypes"].astype(np.float32) * scale
    starts = tensors["prototype_starts"].astype(np.int64)
    if prototypes.ndim != weight.ndim or prototypes.shape[1:] != weight.shape[1:]:
        raise ValueError("prototypes and weight do not fit together")
    rising = np.diff(np.append(starts, len(prototypes)))
    if starts.shape != bias.shape or starts[0] != 0 or (rising < 1).any():
        raise ValueError("the prototypes do not cover the labels")
    words = _words(tensors, meta, weight.shape) if "words.table" in tensors else None
    blend = _blend(tensors, meta, "")
    return Head(labels, weight, bias, prototypes, starts, blend, meta["encoder_digest"], words)


def _layer(
    tensors: Tensors, prefix: str, labels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    weight = tensors[f"{prefix}weight"].astype(np.float32)
    bias = tensors[f"{prefix}bias"].astype(np.float32)
    if weight.shape[:1] != (labels,) or bias.shape != (labels,) or not labels:
        raise ValueError(f"labels, {prefix}weight and {prefix}bias do not fit together")
    return weight, bias


def _words(tensors: Tensors, meta: Mapping[str, str], shape: tuple[int, ...]) -> Words:
    weight, bias = _layer(tensors, "words.", shape[0])
    table = tensors["words.table"].astype(np.float32)
    rarity = tensors["words.rarity"].astype(np.float32)
    if weight.shape != shape or rarity.ndim != 1 or table.shape != (len(rarity), shape[0]):
        raise ValueError("the tensors of the words do not fit together")
    if not len(rarity):
        raise ValueError("the words have no buckets")
    return Words(weight, bias, table, rarity, _blend(tensors, meta, "words."))


def _blend_tensors(prefix: str, blend: Blend) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {
        f"{prefix}blend": np.array([blend.sharpness, blend.nearness], dtype=np.float32)
    }
    if blend.calibration is not None:
        found[f"{prefix}calibration"] = blend.calibration
    return found


def _blend(tensors: Tensors, meta: Mapping[str, str], prefix: str) -> Blend:
    features = tuple(json.loads(meta.get(f"{prefix}features", json.dumps(FEATURES))))
    unknown = [name for name in features if name not in KNOWN_SIGNALS]
    if unknown:
        raise ValueError(f"its calibration looks at {unknown[0]!r}, which heads do not tell")
    calibration = tensors.get(f"{prefix}calibration")
    if calibration is not None and calibration.shape != (3, len(features) + 1):
        raise ValueError("the calibration has the wrong shape")
    whole = None if calibration is None else calibration.astype(np.float64)
    if f"{prefix}blend" not in tensors:
        return Blend(features=features, calibration=whole)
    sharpness, nearness = (float(number) for number in tensors[f"{prefix}blend"])
    return Blend(sharpness, nearness, features, whole)
