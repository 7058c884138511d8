"""Training heads: solvers, folds, held-out answers, and what is asked of the examples."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import InputError
from edge.lab.heads import Calibrating, stratified_folds, train_head, train_on_vectors
from edge.lab.solvers import fit_blend, fit_logistic, minimise, spherical_kmeans

TOPICS = {"bill": ("pay", "bill", "rent"), "card": ("card", "lost", "pin"), "tax": ("tax", "form")}


def blobs(per_label=40, *, width=16, spread=0.9, seed=0):
    """Vectors in three noisy groups, and texts that name the group in two rows of three."""
    random = np.random.default_rng(seed)
    vectors, labels, texts = [], [], []
    for at, (label, topic) in enumerate(TOPICS.items()):
        for row in range(per_label):
            vector = random.normal(0, spread, width)
            vector[at] += 2.0
            vectors.append(vector / np.linalg.norm(vector))
            labels.append(label)
            word = topic[row % len(topic)] if row % 3 else "please"
            texts.append(f"{word} number {random.integers(9999)}")
    return np.array(vectors, dtype=np.float32), labels, texts


def test_words_help_where_vectors_are_noisy():
    vectors, labels, texts = blobs()
    alone = train_on_vectors(vectors, labels, encoder_digest="d")
    both = train_on_vectors(vectors, labels, texts=texts, encoder_digest="d")
    assert alone.head.words is None
    assert both.head.words is not None
    assert both.report.accuracy > alone.report.accuracy
    assert both.report.ece is not None
    assert 0 <= both.report.ece <= 0.15


def test_training_twice_gives_the_same_head():
    vectors, labels, texts = blobs(20)
    one, two = (
        train_on_vectors(vectors, labels, texts=texts, encoder_digest="d") for _ in range(2)
    )
    pairs = zip(vectors, texts, strict=True)
    assert all(one.head.predict(*pair).signals == two.head.predict(*pair).signals for pair in pairs)


def test_held_out_answers_come_from_heads_that_did_not_see_the_row():
    vectors, labels, _texts = blobs()
    random = np.random.default_rng(1)
    shuffled = list(random.permutation(labels))
    random_vectors = random.normal(size=vectors.shape).astype(np.float32)
    random_vectors /= np.linalg.norm(random_vectors, axis=1, keepdims=True)
    made = train_on_vectors(random_vectors, shuffled, texts=None, encoder_digest="d")
    held = made.held_out
    hits = np.mean([o.label == t for o, t in zip(held.outputs, held.truth, strict=True)])
    assert hits == pytest.approx(made.report.accuracy)
    assert hits < 0.6  # chance is a third; a head that saw its rows is far above
    assert sorted(set(held.fold.tolist())) == [0, 1, 2, 3, 4]


def test_rows_out_of_scope_count_as_wrong():
    vectors, labels, texts = blobs()
    random = np.random.default_rng(2)
    far = -np.abs(random.normal(size=(30, vectors.shape[1]))).astype(np.float32)
    far /= np.linalg.norm(far, axis=1, keepdims=True)
    extra = Calibrating(far, ["oos"] * 30, ["sing a song"] * 30)
    made = train_on_vectors(vectors, labels, texts=texts, encoder_digest="d", extra=extra)
    assert made.held_out.truth[-30:] == ("oos",) * 30
    assert made.report.rows == len(labels)
    inside = [made.head.predict(*pair) for pair in zip(vectors, texts, strict=True)]
    outside = [made.head.predict(vector, "sing a song") for vector in far]
    mean = [np.mean([o.confidence for o in outputs]) for outputs in (inside, outside)]
    assert mean[0] > mean[1] + 0.3


def test_rows_that_the_encoder_knows_are_learnt_from_and_judge_nothing():
    vectors, labels, texts = blobs()
    known = [label == "tax" or row % 4 > 0 for row, label in enumerate(labels)]
    wrong = {"bill": "card", "card": "bill", "tax": "tax"}
    told = [label if k else wrong[label] for label, k in zip(labels, known, strict=True)]
    made = train_on_vectors(vectors, told, texts=texts, encoder_digest="d", known=known)
    new = [label for label, k in zip(told, known, strict=True) if not k]
    assert made.held_out.truth == tuple(new)
    assert (made.report.rows, made.report.counts["card"]) == (len(new), 10)
    assert made.report.accuracy < 0.4  # the known rows teach the other label
    assert made.head.predict(vectors[-1], texts[-1]).label == "tax"


def test_a_head_trains_on_two_rows_a_label():
    vectors, labels, _ = blobs(2)
    texts = [f"text {row}" for row in range(len(labels))]
    made = train_head(
        texts,
        labels,
        embed=lambda some: np.stack([vectors[texts.index(text)] for text in some]),
        encoder_digest="d",
    )
    assert made.report.counts == {"bill": 2, "card": 2, "tax": 2}
    assert made.report.ece is None
    output = made.head.predict(vectors[0], texts[0])
    assert output.label in TOPICS
    assert output.confidence is None


@pytest.mark.parametrize(
    ("texts", "labels", "reason"),
    [
        (["a"], ["x", "y"], "1 texts but 2 labels"),
        ([], [], "no examples"),
        (["a", " "], ["x", "y"], "empty text"),
        (["a", "b"], ["x", "x"], "same label"),
        (["a", "b", "c"], ["x", "x", "y"], "single example: y"),
    ],
)
def test_examples_that_cannot_train_a_head_are_refused(texts, labels, reason):
    with pytest.raises(InputError, match=reason):
        train_head(texts, labels, embed=lambda _: np.zeros((1, 4), np.float32), encoder_digest="d")


def test_folds_spread_every_label():
    targets = np.repeat([0, 1, 2], [50, 10, 5])
    fold = stratified_folds(targets, 5, 0)
    for target, share in ((0, 10), (1, 2), (2, 1)):
        assert np.bincount(fold[targets == target], minlength=5).tolist() == [share] * 5


def test_minimise_finds_the_minimum_of_a_bowl():
    scale = np.array([1.0, 10.0, 100.0], dtype=np.float32)
    goal = np.array([3.0, -2.0, 1.0], dtype=np.float32)

    def bowl(point):
        away = point - goal
        return float((scale * away * away).sum()), (2 * scale * away).astype(np.float32)

    assert minimise(bowl, np.zeros(3, np.float32), 100) == pytest.approx(goal, abs=1e-2)


def test_the_regression_separates_what_can_be_separated():
    vectors, labels, _ = blobs(spread=0.2)
    targets = np.array([list(TOPICS).index(label) for label in labels])
    weight, bias = fit_logistic(vectors, targets, 3, l2=0.1)
    assert ((vectors @ weight.T + bias).argmax(axis=1) == targets).all()


def test_the_blend_leans_on_the_table_that_tells_the_truth():
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 600)
    noise = random.normal(size=(600, 3)).astype(np.float32)
    telling = np.eye(3, dtype=np.float32)[targets] + 0.5 * noise
    silent = random.normal(size=(600, 3)).astype(np.float32)
    sharpness, nearness = fit_blend(telling, silent, targets)
    assert sharpness > 1.0
    assert nearness < 0.5


def test_kmeans_keeps_few_rows_and_thins_out_many():
    vectors, _, _ = blobs(30)
    assert spherical_kmeans(vectors[:3], 8, seed=0).tolist() == vectors[:3].tolist()
    centres = spherical_kmeans(vectors, 8, seed=0)
    assert centres.shape == (8, vectors.shape[1])
    assert np.linalg.norm(centres, axis=1) == pytest.approx(np.ones(8), abs=1e-5)
