"""What the escalation bench trains: heads that miss intents, and a classifier of the input alone.

Stage one, kept in build/bench: a quarter of the intents is left out of the training rows, a head is
trained on the rest, and every bench row gets that head's signals. Other code of heads, another
encoder or other rows make other files. Training takes minutes; without the files, ``--quick``
leaves these rows out and says so. The heads are of the code at hand, whatever the tape's are, and
all on the general encoder: `intents-l6-int8`, which some shipped heads read, was trained on all
intents, so to it none is unseen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from _common import ROOT, Row, at_least, read_rows, shared
from _escalation_tape import Floats, Stream
from _vectors import BUILT, encoder_digest, vectors
from numpy.typing import NDArray

from edge.confidence.logistic import fit_logistic, sigmoid
from edge.lab.heads import train_on_vectors
from edge.lab.metrics import separation

INTENTS = ("clinc150", "banking77", "hwu64")
UNSEEN = 0.92
LEFT_OUT = 0.25
SPARED = 38  # as in models/recipes/heads.py
_FOLDS = 2  # only the calibration needs more, and no row here looks at it
_SIGNALS = ("score", "confidence", "similarity", "probability")
_CODE = ("edge/lab/heads.py", "edge/backends/heads.py", "edge/backends/ngrams.py")


@dataclass(frozen=True)
class Texts:
    """Rows of one data set."""

    texts: Sequence[str]
    labels: Sequence[str]


def training(name: str) -> Texts:
    """Return the rows that a shipped head was trained on, in its recipe's order."""
    parts = ("train", "val") if name == "clinc150" else ("train",)
    rows = [row for part in parts for row in read_rows(shared("data", name, f"{part}.jsonl"))]
    return Texts([str(row["text"]) for row in rows], [str(row["label"]) for row in rows])


def measuring(name: str) -> Texts:
    """Return the bench rows."""
    rows = read_rows(shared("data", name, "bench.jsonl"))
    return Texts([str(row["text"]) for row in rows], [str(row["label"]) for row in rows])


def unseen(name: str, seed: int) -> dict[str, tuple[Floats, Floats]] | None:
    """Return, by signal, its kept values on (known intents, left-out ones).

    ``None`` where they have not been made.
    """
    path = BUILT / f"unseen-{name}-{seed}-{_code()}.npz"
    if not path.is_file():
        return None
    with np.load(path) as file:
        outside, kept = file["outside"], file["values"]
        return {
            signal: (kept[~outside, at], kept[outside, at]) for at, signal in enumerate(_SIGNALS)
        }


def make_unseen(name: str, seed: int) -> None:
    """Train a head without a quarter of the intents, and keep what it scores."""
    rows, bench = training(name), measuring(name)
    intents = sorted(set(rows.labels))
    random = np.random.default_rng(seed)
    count = round(LEFT_OUT * len(intents))
    out = {intents[at] for at in random.choice(len(intents), count, replace=False)}
    seen = [at for at, label in enumerate(rows.labels) if label not in out]
    head = train_on_vectors(
        vectors(f"{name}-train", rows.texts)[seen],
        [rows.labels[at] for at in seen],
        encoder_digest=encoder_digest(),
        texts=[rows.texts[at] for at in seen],
        folds=_FOLDS,
        seed=seed,
    ).head
    inputs = zip(vectors(f"{name}-bench", bench.texts), bench.texts, strict=True)
    made = [head.predict(vector, text) for vector, text in inputs]
    values = np.array([[getattr(each, signal) for signal in _SIGNALS] for each in made], float)
    outside = np.array([label in out for label in bench.labels])
    BUILT.mkdir(parents=True, exist_ok=True)
    path = BUILT / f"unseen-{name}-{seed}-{_code()}.npz"
    np.savez(path, outside=outside, values=values)


def _code() -> str:
    """Return a digest of what the scores depend on beside the rows."""
    told = hashlib.sha256(encoder_digest().encode())
    for path in _CODE:
        told.update((ROOT / path).read_bytes())
    return told.hexdigest()[:12]


def unseen_intents(*, seeds: int, make: bool) -> Iterator[Row]:
    """Yield how well the score tells left-out intents from known ones.

    Args:
        seeds: choices of the intents left out.
        make: train what is not there yet.

    """
    for name in INTENTS:
        found = []
        for seed in range(seeds):
            if make and unseen(name, seed) is None:
                make_unseen(name, seed)
            each = unseen(name, seed)
            if each is not None:
                found.append([separation(*each[signal]) for signal in _SIGNALS])
        told = f"{name} unseen intents AUROC, general encoder"
        if not found:
            yield Row(told, "not trained yet; run once without --quick", "")
            continue
        mean = dict(zip(_SIGNALS, np.mean(found, axis=0).tolist(), strict=True))
        yield at_least(f"{told}, score", mean["score"], UNSEEN)
        lowest = min(each[0] for each in found)
        yield Row(f"{told}, score, lowest of {len(found)} choices", round(lowest, 4), "")
        for signal in _SIGNALS[1:]:
            yield Row(f"{told}, {signal}", round(mean[signal], 4), "")


def query_only(streams: Mapping[str, Stream]) -> dict[str, Floats]:
    """Return, by set, the chance of a right answer read off the input's vector alone.

    A logistic classifier of the vector, fitted on the training rows answered out of fold. Without
    sets whose tape is not over the rows of the shipped data.
    """
    found = {}
    for name in INTENTS:
        prior, stream = streams.get(f"{name}-fit"), streams.get(name)
        if prior is None or stream is None:
            continue
        rows, bench = training(name), measuring(name)
        answered = judged(prior, rows)
        if answered is None or stream.gold.tolist() != list(bench.labels):
            continue
        known = vectors(f"{name}-train", rows.texts)[answered].astype(float)
        weights = fit_logistic(known, prior.right[: len(answered)].astype(float))
        asked = vectors(f"{name}-bench", bench.texts).astype(float)
        found[name] = sigmoid(asked @ weights[:-1] + weights[-1])
    return found


def judged(prior: Stream, rows: Texts) -> NDArray[np.int_] | None:
    """Return which training rows the prior begins with: all, or those spared by the encoder.

    ``None`` where it is neither.
    """
    first = [hashlib.sha256(f"tune{text}".encode()).digest()[0] for text in rows.texts]
    whole, part = np.arange(len(first)), np.flatnonzero(np.array(first) < SPARED)
    labels = np.array(rows.labels)
    for chosen in (whole, part):
        if prior.gold[: len(chosen)].tolist() == labels[chosen].tolist():
            return chosen
    return None
