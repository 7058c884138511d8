"""Trains classification heads on a sentence encoder, in seconds on a CPU where examples are few.

Two layers of multinomial logistic regression, one over vectors and one over vectors and words,
prototypes within each label, and a blend and a confidence fitted on predictions made out of fold.
Deterministic for a seed. Pure numpy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from edge.backends.heads import Blend, Head, HeadOutput, Words
from edge.backends.ngrams import count_table, rarity, weighted
from edge.confidence.fusion import fit_calibration
from edge.confidence.key import CalibrationKey
from edge.errors import InputError
from edge.lab.solvers import fit_blend, fit_logistic, spherical_kmeans

Floats = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Floats]
Progress = Callable[[str, int, int], None]

L2 = 0.1  # of one observation on unit vectors; best mean cross-validation of 0.02 to 0.5
PROTOTYPES = 64  # per label, at most: in cross-validation, the more the better
MOST_PROTOTYPES = 5000  # of all labels: bounds time and megabytes
FEATURES = ("log_odds", "similarity", "gap", "agreement")
"""Of the confidence: the winner's margin in odds, and its neighbours. More signals gained less than
0.001 of error AUROC in cross-validation."""

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
class HeldOut:
    """What heads that did not see a row answered to it.

    Attributes:
        outputs: one per row; ``confidence`` comes from a calibration fitted on the other folds.
        truth: the label of every row; one the head does not know is out of scope.
        fold: int ``[rows]``.

    """

    outputs: tuple[HeadOutput, ...]
    truth: tuple[str, ...]
    fold: NDArray[np.int_]


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A head and what is known of it."""

    head: Head
    report: HeadReport
    held_out: HeldOut


@dataclass(frozen=True, slots=True)
class Calibrating:
    """Rows to calibrate on beside predictions out of fold.

    ``targets`` are label names; a name the head does not know (out of scope) is never right.
    ``texts`` are needed where the head is trained with texts.
    """

    vectors: Floats
    targets: Sequence[str]
    texts: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Training rows: unit vectors, label numbers, texts, and the counts of their n-grams."""

    vectors: Floats
    targets: NDArray[np.int_]
    texts: Sequence[str] | None
    counts: Floats | None

    def where(self, keep: NDArray[np.bool_]) -> _Rows:
        texts, counts = self.texts, self.counts
        return _Rows(
            self.vectors[keep],
            self.targets[keep],
            None if texts is None else [texts[row] for row in np.flatnonzero(keep).tolist()],
            None if counts is None else counts[keep],
        )


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
        vectors,
        labels,
        texts=texts,
        encoder_digest=encoder_digest,
        folds=folds,
        seed=seed,
        progress=tell,
    )


def train_on_vectors(
    vectors: Floats,
    labels: Sequence[str],
    *,
    encoder_digest: str,
    texts: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
    l2: float = L2,
    extra: Calibrating | None = None,
    known: Sequence[bool] | None = None,
    progress: Progress | None = None,
) -> TrainedHead:
    """Train a head on vectors float32 ``[n, dimensions]``; see ``train_head``.

    Without ``texts`` the head knows no words. ``known`` rows are ones that the encoder itself was
    trained on: every fold learns from them, and nothing is judged by them, since no head can be
    as right on new texts. The report and what was held out are then of the other rows.
    """
    tell = progress or (lambda _what, _done, _of: None)
    names = sorted(set(labels))
    index = {name: at for at, name in enumerate(names)}
    targets = np.array([index[label] for label in labels])
    rows = _Rows(vectors, targets, texts, None if texts is None else count_table(list(texts)))
    judged = np.ones(len(targets), bool) if known is None else ~np.array(known, bool)
    fold = np.full(len(targets), -1)
    fold[judged] = stratified_folds(targets[judged], folds, seed)
    fixed: _Fixed = {"names": names, "encoder_digest": encoder_digest, "l2": l2, "seed": seed}
    trials = []
    for part in range(folds):
        tell("cross-validation", part, folds)
        trials.append(_fit(rows.where(fold != part), **fixed))
    tell("cross-validation", folds, folds)
    whole = _fit(rows, **fixed)
    rows, fold = rows.where(judged), fold[judged]
    labels = [label for label, kept in zip(labels, judged.tolist(), strict=True) if kept]
    trials = _blended(trials, rows, fold)
    head = _with_blends(whole, trials[0])
    plain = _answered(trials, rows.vectors, [None] * len(labels), fold)
    held = plain if rows.texts is None else _answered(trials, rows.vectors, rows.texts, fold)
    report_on = list(held)
    truth = list(labels)
    if extra is not None:
        words = extra.texts if texts is not None else None
        none = [None] * len(extra.targets)
        parts = np.arange(len(extra.targets)) % folds
        plain = plain + _answered(trials, extra.vectors, none, parts)
        held = held + _answered(trials, extra.vectors, list(words) if words else none, parts)
        truth += list(extra.targets)
        fold = np.concatenate([fold, parts])
    head, ece = _calibrated(head, plain, held, truth)
    out = HeldOut(tuple(_judged_across(held, truth, fold)), tuple(truth), fold)
    return TrainedHead(head, _report(report_on, labels, ece), out)


def _blended(trials: Sequence[Head], rows: _Rows, fold: NDArray[np.int_]) -> list[Head]:
    """Return the heads with blends fitted on what they did not see."""
    size = (len(rows.targets), len(trials[0].labels))
    plain, near, words = (np.empty(size, dtype=np.float32) for _ in range(3))
    for part, trial in enumerate(trials):
        inside = fold == part
        vectors = rows.vectors[inside]
        plain[inside] = vectors @ trial.weight.T + trial.bias
        near[inside] = np.maximum.reduceat(vectors @ trial.prototypes.T, trial.starts, axis=1)
        if trial.words is not None and rows.counts is not None:
            counts = weighted(rows.counts[inside], trial.words.rarity)
            words[inside] = (
                vectors @ trial.words.weight.T + trial.words.bias + counts @ trial.words.table
            )
    of_vectors = Blend(*fit_blend(plain, near, rows.targets))
    of_words = Blend(*fit_blend(words, near, rows.targets)) if rows.counts is not None else None
    return [
        replace(
            trial,
            blend=of_vectors,
            words=replace(trial.words, blend=of_words) if trial.words and of_words else None,
        )
        for trial in trials
    ]


def _with_blends(head: Head, other: Head) -> Head:
    words = head.words
    if words is not None and other.words is not None:
        words = replace(words, blend=other.words.blend)
    return replace(head, blend=other.blend, words=words)


def _answered(
    trials: Sequence[Head],
    vectors: Floats,
    texts: Sequence[str | None],
    fold: NDArray[np.int_],
) -> list[HeadOutput]:
    """Return each row's answer by the head of its fold."""
    return [
        trials[part].predict(vector, text)
        for part, vector, text in zip(fold, vectors, texts, strict=True)
    ]


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


def _fit(rows: _Rows, *, names: Sequence[str], encoder_digest: str, l2: float, seed: int) -> Head:
    weight, bias = fit_logistic(rows.vectors, rows.targets, len(names), l2=l2)
    each = max(1, min(PROTOTYPES, MOST_PROTOTYPES // len(names)))
    parts = [
        spherical_kmeans(rows.vectors[rows.targets == target], each, seed=seed)
        for target in range(len(names))
    ]
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    words = None if rows.counts is None else _fit_words(rows, rows.counts, len(names), l2)
    return Head(
        tuple(names), weight, bias, np.concatenate(parts), starts, Blend(), encoder_digest, words
    )


def _fit_words(rows: _Rows, counts: Floats, labels: int, l2: float) -> Words:
    rare = rarity(counts)
    both = np.concatenate([rows.vectors, weighted(counts, rare)], axis=1)
    weight, bias = fit_logistic(both, rows.targets, labels, l2=l2)
    width = rows.vectors.shape[1]
    table = np.ascontiguousarray(weight[:, width:].T)
    return Words(weight[:, :width].copy(), bias, table, rare, Blend())


def _calibrated(
    head: Head, plain: Sequence[HeadOutput], held: Sequence[HeadOutput], truth: Sequence[str]
) -> tuple[Head, float | None]:
    """Return the head with calibrations, and the calibration error where one could be fitted."""
    blend, ece = _with_calibration(head.blend, plain, truth)
    words = head.words
    if words is not None:
        fitted, ece = _with_calibration(words.blend, held, truth)
        words = replace(words, blend=fitted)
    return replace(head, blend=blend, words=words), ece


def _with_calibration(
    blend: Blend, outputs: Sequence[HeadOutput], truth: Sequence[str]
) -> tuple[Blend, float | None]:
    """Return the blend with a calibration, where there are enough right and wrong answers."""
    right = [output.label == label for output, label in zip(outputs, truth, strict=True)]
    if len(right) < 20 or all(right) or not any(right):  # noqa: PLR2004
        return blend, None
    rows = [output.signals for output in outputs]
    fitted = fit_calibration(
        CalibrationKey("", ""), rows, correct=right, features=FEATURES, stage="none"
    )
    table = np.array([[*fitted.mean, 0.0], [*fitted.scale, 1.0], [*fitted.weights, fitted.bias]])
    return replace(blend, features=FEATURES, calibration=table), fitted.ece


def _judged_across(
    outputs: Sequence[HeadOutput], truth: Sequence[str], fold: NDArray[np.int_]
) -> list[HeadOutput]:
    """Return the outputs, each with the confidence that the other folds would give it."""
    judged = list(outputs)
    for part in np.unique(fold):
        inside = np.flatnonzero(fold != part).tolist()
        others = [outputs[row] for row in inside]
        blend, _ = _with_calibration(Blend(), others, [truth[row] for row in inside])
        for row in np.flatnonzero(fold == part).tolist():
            output = outputs[row]
            judged[row] = replace(output, confidence=blend.confidence(output.signals))
    return judged


def _report(outputs: Sequence[HeadOutput], labels: Sequence[str], ece: float | None) -> HeadReport:
    right = [output.label == label for output, label in zip(outputs, labels, strict=True)]
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
