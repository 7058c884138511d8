"""Hashed n-grams of a text."""

from __future__ import annotations

import numpy as np
import pytest

from edge.backends.ngrams import (
    BUCKETS,
    MOST_CHARACTERS,
    count_table,
    counted,
    grams,
    rarity,
    weighted,
)

TOUCHED = [6, 12]  # crc32 of the grams of "hi", modulo 16
SUMS = [1.0, -1.0]


def test_a_text_has_words_pairs_and_runs_within_words():
    found = grams("Pay now")
    assert {"wpay", "wnow", "p< pay", "ppay now", "pnow >", "c<pa", "cpay>"} <= found
    assert not any("y n" in gram for gram in found if gram.startswith("c"))


def test_case_and_spacing_make_no_difference():
    assert grams("Where is  MY card") == grams("where is my card")


@pytest.mark.parametrize("text", ["", " \n\t ", "\ud83d", "\x00", "日本語のテキスト"])
def test_any_text_gives_finite_counts(text):
    touched, sums = counted(text, BUCKETS)
    assert touched.shape == sums.shape
    assert np.all(np.diff(touched) > 0)
    assert np.all(np.isfinite(sums))
    assert np.all(sums != 0)


def test_only_the_first_characters_are_read():
    long = "a " * MOST_CHARACTERS
    assert grams(long) == grams(long[:MOST_CHARACTERS])


def test_the_buckets_of_a_text_are_the_same_on_every_machine():
    touched, sums = counted("hi", 16)
    table = count_table(["hi"], 16)
    assert table[0, touched].tolist() == sums.tolist()
    assert np.count_nonzero(table) == len(touched)
    assert touched.tolist() == TOUCHED
    assert sums.tolist() == SUMS


def test_vectors_are_units_and_rare_buckets_weigh_more():
    counts = count_table(["pay my bill", "pay my rent", "pay the tax"])
    rare = rarity(counts)
    in_one = (counts != 0).sum(axis=0) == 1
    assert rare[in_one] == pytest.approx(np.full(in_one.sum(), np.log(4 / 2)))
    everywhere = (counts != 0).all(axis=0)
    assert everywhere.any()
    assert np.all(rare[everywhere] == 0)
    vectors = weighted(counts, rare)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert weighted(np.zeros(BUCKETS, np.float32), rare).any() == np.False_
