"""Trains classification heads on a sentence encoder, in seconds on a CPU.

Multinomial logistic regression by L-BFGS (Liu and Nocedal 1989), prototypes by spherical k-means
within each label, and a confidence calibrated on predictions made out of fold. Deterministic for a
seed. Pure numpy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from edge.backends.heads import FEATURES, Head, HeadOutput, features
from edge.confidence.calibration import CalibrationKey, fit_calibration
from edge.errors import InputError

Floats = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Floats]
Progress = Callable[[str, int, int], None]

L2 = 0.1  # of one observation on unit vectors; best mean cross-validation of 0.02 to 0.5
PROTOTYPES = 6  # per label, at most
_MEMORY = 8
_FEWEST_PER_LABEL = 2


class _Fixed(TypedDict):
    names: Sequence[str]
    encoder_digest: str
    l2: float
    seed: int


@dataclass(frozen=True, slots=True)
class HeadReport:
    """What cross-validation says of a head.

    Attributes:
        accuracy: share of rows classified right by a head that did not see them, 0..1.
        ece: expected calibration error of the confidence, 0..1; ``None`` where none was fitted.
        counts: rows per label.
        confused: (true label, predicted label, rows), the most frequent first.
        rows: distinct rows used; repeated ones count once.

    """

    accuracy: float
    ece: float | None
    counts: dict[str, int]
    confused: tuple[tuple[str, str, int], ...]
    rows: int


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A head and what is known of it."""

    head: Head
    report: HeadReport


@dataclass(frozen=True, slots=True)
class Calibrating:
    """Rows to calibrate on beside, or instead of, predictions out of fold.

    ``targets`` are label names; a name the head does not know (out of scope) is never right.
    """

    vectors: Floats
    targets: Sequence[str]


def train_head(
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    embed: Embed,
    encoder_digest: str,
    folds: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainedHead:
    """Train a head on labelled texts.

    Args:
        texts: the examples; repeated ones are used once.
        labels: one label per text.
        embed: turns texts into unit vectors float32 ``[n, dimensions]``.
        encoder_digest: sha256 of the encoder's weights.
        folds: parts of the cross-validation, at least 2.
        seed: decides folds and prototypes.
        progress: called with (what, done, of).

    Raises:
        InputError: no rows, one label only, an empty text, or a label with a single row.

    """
    texts, labels = _checked(texts, labels)
    tell = progress or (lambda _what, _done, _of: None)
    vectors = np.concatenate(
        [_one(embed, text, tell, done, len(texts)) for done, text in enumerate(texts)]
    )
    return train_on_vectors(
        vectors, labels, encoder_digest=encoder_digest, folds=folds, seed=seed, progress=tell
    )


def train_on_vectors(
    vectors: Floats,
    labels: Sequence[str],
    *,
    encoder_digest: str,
    folds: int = 5,
    seed: int = 0,
    l2: float = L2,
    extra: Calibrating | None = None,
    progress: Progress | None = None,
) -> TrainedHead:
    """Train a head on vectors float32 ``[n, dimensions]``; see ``train_head``."""
    tell = progress or (lambda _what, _done, _of: None)
    names = sorted(set(labels))
    index = {name: at for at, name in enumerate(names)}
    targets = np.array([index[label] for label in labels])
    fold = stratified_folds(targets, folds, seed)
    fixed: _Fixed = {"names": names, "encoder_digest": encoder_digest, "l2": l2, "seed": seed}
    outputs: list[HeadOutput | None] = [None] * len(targets)
    for part in range(folds):
        tell("cross-validation", part, folds)
        inside = fold != part
        trial = _fit(vectors[inside], targets[inside], **fixed)
        for row in np.flatnonzero(~inside):
            outputs[row] = trial.predict(vectors[row])
    tell("cross-validation", folds, folds)
    made = [output for output in outputs if output is not None]
    plain = _fit(vectors, targets, **fixed)
    right = [output.label == label for output, label in zip(made, labels, strict=True)]
    judged = list(made)
    truth = list(right)
    if extra is not None:
        seen = [plain.predict(vector) for vector in extra.vectors]
        judged += seen
        truth += [o.label == t for o, t in zip(seen, extra.targets, strict=True)]
    head, ece = _calibrated(plain, judged, truth)
    return TrainedHead(head, _report(made, labels, right, ece))


def stratified_folds(targets: NDArray[np.int_], folds: int, seed: int) -> NDArray[np.int_]:
    """Return a fold per row, every label spread evenly."""
    random = np.random.default_rng(seed)
    fold = np.empty(len(targets), dtype=int)
    for target in np.unique(targets):
        rows = random.permutation(np.flatnonzero(targets == target))
        fold[rows] = (np.arange(len(rows)) + random.integers(folds)) % folds
    return fold


def _one(embed: Embed, text: str, tell: Progress, done: int, of: int) -> Floats:
    tell("embedding", done + 1, of)
    return embed([text])


def _checked(texts: Sequence[str], labels: Sequence[str]) -> tuple[list[str], list[str]]:
    if len(texts) != len(labels):
        raise InputError(f"There are {len(texts)} texts but {len(labels)} labels.")
    pairs = dict(zip(texts, labels, strict=True))
    if not pairs:
        raise InputError("There are no examples.", hint='Give JSON lines {"text": …, "label": …}.')
    for text, label in pairs.items():
        if not text.strip() or not label.strip():
            raise InputError("An example has an empty text or label.", hint="Remove that line.")
    counts = Counter(pairs.values())
    if len(counts) < 2:  # noqa: PLR2004
        raise InputError("All examples have the same label.", hint="Add a second label.")
    rare = [label for label, count in counts.items() if count < _FEWEST_PER_LABEL]
    if rare:
        named = ", ".join(sorted(rare)[:5])
        raise InputError(
            f"These labels have a single example: {named}.", hint="Give each label two or more."
        )
    return list(pairs), list(pairs.values())


def _fit(
    vectors: Floats,
    targets: NDArray[np.int_],
    *,
    names: Sequence[str],
    encoder_digest: str,
    l2: float,
    seed: int,
) -> Head:
    weight, bias = fit_logistic(vectors, targets, len(names), l2=l2)
    parts = [
        spherical_kmeans(vectors[targets == target], PROTOTYPES, seed=seed)
        for target in range(len(names))
    ]
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    prototypes = np.concatenate(parts)
    return Head(tuple(names), weight, bias, prototypes, starts, None, encoder_digest)


def fit_logistic(
    vectors: Floats, targets: NDArray[np.int_], labels: int, *, l2: float, steps: int = 120
) -> tuple[Floats, Floats]:
    """Return weight ``[labels, dimensions]`` and bias ``[labels]`` of a multinomial regression.

    Minimises the summed cross-entropy plus ``l2 / 2`` times the squared weights.
    """
    rows, width = vectors.shape
    design = np.column_stack([vectors, np.ones(rows, dtype=np.float32)])
    truth = np.zeros((rows, labels), dtype=np.float32)
    truth[np.arange(rows), targets] = 1.0
    penalty = np.full(width + 1, l2, dtype=np.float32)
    penalty[-1] = l2 * 1e-2

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(labels, width + 1)
        logits = design @ weights.T
        logits -= logits.max(axis=1, keepdims=True)
        picked = logits[np.arange(rows), targets]
        np.exp(logits, out=logits)
        mass = logits.sum(axis=1, keepdims=True)
        loss = float(np.log(mass).sum() - picked.sum())
        logits /= mass
        logits -= truth
        loss += 0.5 * float((penalty * weights * weights).sum())
        gradient: Floats = (logits.T @ design + penalty * weights).ravel().astype(np.float32)
        return loss, gradient

    best = _lbfgs(loss_and_gradient, np.zeros(labels * (width + 1), np.float32), steps)
    weights = best.reshape(labels, width + 1)
    return weights[:, :-1].copy(), weights[:, -1].copy()


def _lbfgs(
    objective: Callable[[Floats], tuple[float, Floats]], start: Floats, steps: int
) -> Floats:
    """Return a minimiser; backtracking line search, stops when the loss moves by less than 1e-6."""
    point, (loss, gradient) = start, objective(start)
    moves: list[tuple[Floats, Floats, float]] = []
    for _ in range(steps):
        direction = -_two_loop(gradient, moves)
        slope = float(gradient @ direction)
        size = 1.0 if moves else min(1.0, 1.0 / float(np.abs(gradient).sum() + 1e-12))
        while True:
            trial = point + np.float32(size) * direction
            trial_loss, trial_gradient = objective(trial)
            if trial_loss <= loss + 1e-4 * size * slope or size < 1e-8:  # noqa: PLR2004
                break
            size *= 0.5
        step, change = trial - point, trial_gradient - gradient
        curvature = float(step @ change)
        if curvature > 1e-10:  # noqa: PLR2004
            moves = [*moves[-_MEMORY + 1 :], (step, change, 1.0 / curvature)]
        done = loss - trial_loss < 1e-6 * max(1.0, abs(loss))
        point, loss, gradient = trial, trial_loss, trial_gradient
        if done:
            break
    return point


def _two_loop(gradient: Floats, moves: Sequence[tuple[Floats, Floats, float]]) -> Floats:
    """Return the inverse Hessian's estimate times the gradient."""
    q = gradient.copy()
    shares = []
    for step, change, inverse in reversed(moves):
        share = inverse * float(step @ q)
        shares.append(share)
        q -= np.float32(share) * change
    if moves:
        step, change, inverse = moves[-1]
        q *= np.float32(1.0 / (inverse * float(change @ change)))
    for (step, change, inverse), share in zip(moves, reversed(shares), strict=True):
        q += np.float32(share - inverse * float(change @ q)) * step
    return q


def spherical_kmeans(vectors: Floats, count: int, *, seed: int, rounds: int = 15) -> Floats:
    """Return up to ``count`` unit vectors that stand for the given ones."""
    if len(vectors) <= count:
        return vectors.copy()
    random = np.random.default_rng(seed)
    centres = vectors[random.choice(len(vectors), count, replace=False)]
    for _ in range(rounds):
        nearest = (vectors @ centres.T).argmax(axis=1)
        sums = np.stack([vectors[nearest == at].sum(axis=0) for at in range(count)])
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(length > 0, sums / np.maximum(length, 1e-12), centres)
    return centres.astype(np.float32)


def _calibrated(
    plain: Head, outputs: Sequence[HeadOutput], right: Sequence[bool]
) -> tuple[Head, float | None]:
    """Return the head with a calibration, where there are enough right and wrong answers."""
    if len(right) < 20 or all(right) or not any(right):  # noqa: PLR2004
        return plain, None
    rows = [
        dict(zip(FEATURES, features(o.probability, o.margin, o.similarity), strict=True))
        for o in outputs
    ]
    fitted = fit_calibration(
        CalibrationKey(plain.encoder_digest, ""), rows, correct=right, features=FEATURES
    )
    table = np.array([[*fitted.mean, 0.0], [*fitted.scale, 1.0], [*fitted.weights, fitted.bias]])
    return replace(plain, calibration=table), fitted.ece


def _report(
    outputs: Sequence[HeadOutput], labels: Sequence[str], right: Sequence[bool], ece: float | None
) -> HeadReport:
    pairs = Counter(
        (label, output.label)
        for output, label, hit in zip(outputs, labels, right, strict=True)
        if not hit
    )
    return HeadReport(
        accuracy=sum(right) / len(right),
        ece=ece,
        counts=dict(sorted(Counter(labels).items())),
        confused=tuple((t, p, n) for (t, p), n in pairs.most_common(20)),
        rows=len(labels),
    )
