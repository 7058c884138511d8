"""Classification heads: answers, signals, and files of both formats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge.backends.heads import FEATURES, KNOWN_SIGNALS, Blend, Head, Words, lead
from edge.backends.ngrams import count_table
from edge.errors import InputError, LoadError

WIDTH, BUCKETS = 4, 64
CALIBRATION = np.array([[0.0, 0, 0, 0], [1.0, 1, 1, 1], [0.5, 0.1, 1.0, -0.5]])


def unit(*numbers):
    vector = np.array(numbers, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def words(**changes):
    table = 8.0 * count_table(["pay the bill", "lost card"], BUCKETS).T
    made = Words(
        np.zeros((2, WIDTH), np.float32),
        np.zeros(2, np.float32),
        np.ascontiguousarray(table),
        np.ones(BUCKETS, np.float32),
        Blend(1.0, 0.5, FEATURES, CALIBRATION + 0.1),
    )
    return replace(made, **changes)


def head(**changes):
    made = Head(
        ("bill", "card"),
        np.eye(2, WIDTH, dtype=np.float32),
        np.zeros(2, np.float32),
        np.stack([unit(1, 0, 0, 0), unit(1, 1, 0, 0), unit(0, 1, 0, 0)]),
        np.array([0, 2]),
        Blend(2.0, 3.0, FEATURES, CALIBRATION),
        "digest",
    )
    return replace(made, **changes)


def test_the_answer_is_the_softmax_of_layer_and_nearest_prototype():
    vector = unit(0.9, 0.1, 0.2, 0)
    output = head().predict(vector)
    near = [max(vector[0], unit(1, 1, 0, 0) @ vector), vector[1]]
    logits = 2.0 * vector[:2] + 3.0 * np.array(near)
    shares = np.exp(logits) / np.exp(logits).sum()
    assert output.label == "bill"
    assert output.label_index == 0
    assert output.probabilities == pytest.approx(shares, abs=1e-6)
    assert output.margin == pytest.approx(logits[0] - logits[1], abs=1e-6)
    assert output.similarity == pytest.approx(near[0], abs=1e-6)
    assert output.gap == pytest.approx(near[0] - near[1], abs=1e-6)
    assert output.entropy == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-5)
    assert output.score == pytest.approx(np.log(np.exp(logits).sum()), abs=1e-5)
    assert output.agreement == 1.0


def test_confidence_is_the_logistic_function_of_the_named_signals():
    output = head().predict(unit(0.9, 0.1, 0.2, 0))
    row = [output.signals[name] for name in FEATURES]
    odds = np.clip(row, -6, 6) @ np.array([0.5, 0.1, 1.0]) - 0.5
    assert output.confidence == pytest.approx(1 / (1 + np.exp(-odds)))
    assert set(output.signals) == set(KNOWN_SIGNALS)


def test_the_words_can_overrule_the_vector_and_the_signals_say_so():
    made = head(words=words())
    vector = unit(0.52, 0.48, 0, 0)
    alone, read = made.predict(vector), made.predict(vector, "lost card")
    assert (alone.label, read.label) == ("bill", "card")
    assert read.agreement == pytest.approx(1 / 3)
    assert alone.confidence != read.confidence


def test_a_text_makes_no_difference_to_a_head_without_words():
    vector = unit(0.9, 0.1, 0.2, 0)
    assert head().predict(vector, "lost card").signals == head().predict(vector).signals


def test_a_vector_of_another_width_is_refused():
    with pytest.raises(InputError, match="vectors of 4 numbers"):
        head().predict(unit(1, 2, 3))


def test_confidence_is_believed_with_its_encoder_only():
    assert head().calibrated_for("digest")
    assert not head().calibrated_for("another")
    assert not head(blend=Blend()).calibrated_for("digest")
    assert head(blend=Blend()).predict(unit(1, 0, 0, 0)).confidence is None


def test_lead_is_over_the_best_other_value():
    assert lead(np.array([1.0, 5.0, 3.0]), 1) == 2.0
    assert lead(np.array([1.0, 5.0, 3.0]), 0) == -4.0
    assert lead(np.array([7.0]), 0) == 0.0


@pytest.mark.parametrize("with_words", [True, False])
def test_a_saved_head_answers_as_before(tmp_path, with_words):
    made = head(words=words() if with_words else None)
    made.save(tmp_path / "h.safetensors")
    read = Head.load(tmp_path / "h.safetensors")
    assert read.labels == made.labels
    assert read.encoder_digest == "digest"
    assert (read.words is None) == (made.words is None)
    assert read.parameters == made.parameters
    vector = unit(0.7, 0.3, 0.1, 0)
    for text in (None, "lost card"):
        one, two = made.predict(vector, text), read.predict(vector, text)
        assert two.label == one.label
        assert two.signals == pytest.approx(one.signals, abs=0.02)
        assert two.confidence == pytest.approx(one.confidence, abs=0.01)


def first_format(path):
    save_file(
        {
            "weight": np.eye(2, WIDTH, dtype=np.float16),
            "bias": np.zeros(2, np.float32),
            "prototypes": np.array([[127, 0, 0, 0], [0, 127, 0, 0]], np.int8),
            "prototype_scale": np.array([1 / 127], np.float32),
            "prototype_starts": np.array([0, 1]),
            "calibration": CALIBRATION,
        },
        path,
        metadata={
            "format": "edge-head-1",
            "labels": '["bill", "card"]',
            "encoder_digest": "digest",
        },
    )


def test_files_of_the_first_format_are_read(tmp_path):
    first_format(tmp_path / "h.safetensors")
    read = Head.load(tmp_path / "h.safetensors")
    assert read.words is None
    assert (read.blend.sharpness, read.blend.nearness) == (1.0, 4.0)
    assert read.blend.features == ("log_odds", "margin", "similarity")
    output = read.predict(unit(1, 0, 0, 0))
    assert output.margin == pytest.approx(5.0, abs=1e-5)
    assert output.confidence is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"words.table": np.zeros((BUCKETS, 3), np.float16)}, "tensors of the words"),
        ({"words.rarity": np.zeros(3, np.float32)}, "tensors of the words"),
        ({"words.bias": np.zeros(3, np.float32)}, "words.bias do not fit"),
        ({"words.calibration": np.zeros((3, 2))}, "calibration has the wrong shape"),
        ({"words.blend": np.zeros(3, np.float32)}, "unpack"),
        ({"prototype_starts": np.array([0, 9])}, "do not cover"),
        ({"prototypes": np.zeros((3, 5), np.int8)}, "prototypes and weight"),
        ({"bias": np.zeros(3, np.float32)}, "bias do not fit"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(tmp_path, change, reason):
    path = tmp_path / "h.safetensors"
    head(words=words()).save(path)
    meta = {
        "format": "edge-head-2",
        "labels": '["bill", "card"]',
        "encoder_digest": "digest",
    }
    save_file({**load_file(path), **change}, path, metadata=meta)
    with pytest.raises(LoadError, match=reason):
        Head.load(path)


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({"format": "edge-head-9"}, "format is 'edge-head-9'"),
        ({"features": '["log_odds", "magic", "margin"]'}, "'magic'"),
        ({"labels": "[]"}, "do not fit"),
        ({"labels": "no json"}, "cannot be loaded"),
    ],
)
def test_metadata_that_cannot_be_understood_is_refused(tmp_path, meta, reason):
    path = tmp_path / "h.safetensors"
    head().save(path)
    usual = {"format": "edge-head-2", "labels": '["bill", "card"]', "encoder_digest": "digest"}
    save_file(load_file(path), path, metadata={**usual, **meta})
    with pytest.raises(LoadError, match=reason):
        Head.load(path)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(LoadError, match=r"gone\.safetensors"):
        Head.load(tmp_path / "gone.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no head")
    with pytest.raises(LoadError, match=r"broken\.safetensors"):
        Head.load(tmp_path / "broken.safetensors")
