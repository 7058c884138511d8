"""What a draw does, asked of the compiled sampler and of its numpy specification."""

import math

import numpy as np
import pytest

from edge.errors import ConfigError, GenerationError, InputError
from edge.sampling import ReferenceSampler, Sampler
from edge.types import SamplingParams

BOTH = pytest.mark.parametrize("kind", [Sampler, ReferenceSampler], ids=["native", "reference"])


def row_of(*values):
    return np.array(values, dtype=np.float32)


def mask_of(size, *tokens):
    mask = np.zeros((size + 31) // 32, dtype=np.uint32)
    for token in tokens:
        mask[token // 32] |= np.uint32(1 << (token % 32))
    return mask


def drawn(kind, row, count=200, *, allowed=None, history=(), **params):
    sampler = kind(SamplingParams(**params), len(row))
    sampler.accept_all(history)
    return [sampler.sample(row, allowed=allowed).token for _ in range(count)]


@BOTH
def test_greedy_takes_the_first_of_equals_and_reads_the_whole_row(kind):
    stats = kind(SamplingParams(), 4).sample(row_of(1, 3, 3, 0))
    shares = np.exp([1, 3, 3, 0]) / np.exp([1, 3, 3, 0]).sum()
    assert stats.token == 1
    assert stats.margin == 0
    assert stats.logprob == pytest.approx(math.log(shares[1]), abs=1e-6)
    assert stats.entropy == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-6)


@BOTH
@pytest.mark.parametrize(
    ("params", "possible"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_p": 0.6}, {0, 1}),  # shares 0.5 0.25 0.125 0.0625 0.0625
        ({"top_p": 0.5}, {0}),
        ({"min_p": 0.2}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.86}, {0, 1, 2}),  # of the three survivors: 4/7, 2/7, 1/7
        ({"top_k": 3, "top_p": 0.85}, {0, 1}),
        ({"top_k": 3, "min_p": 0.5}, {0, 1}),
    ],
)
def test_what_each_cut_leaves(kind, params, possible):
    row = np.log(row_of(0.5, 0.25, 0.125, 0.0625, 0.0625))
    assert set(drawn(kind, row, 400, temperature=1.0, **params)) == possible


@BOTH
@pytest.mark.parametrize(
    ("params", "history", "best"),
    [
        ({"repetition_penalty": 2.0}, [0], 1),  # 2/2 = 1 against 1.5
        ({"repetition_penalty": 1.2}, [0], 0),
        ({"presence_penalty": 0.6}, [0, 0, 0], 1),
        ({"frequency_penalty": 0.2}, [0, 0], 0),
        ({"frequency_penalty": 0.2}, [0, 0, 0], 1),
        ({"frequency_penalty": 0.2, "penalty_last_n": 2}, [0, 0, 0], 0),
        ({"presence_penalty": 9.0, "penalty_last_n": 0}, [0], 0),
        ({"presence_penalty": 9.0, "penalty_last_n": 1}, [0, 2], 0),
    ],
)
def test_penalties(kind, params, history, best):
    sampler = kind(SamplingParams(**params), 3)
    sampler.accept_all(history)
    assert sampler.sample(row_of(2.0, 1.5, -1.0)).token == best


@BOTH
def test_a_negative_logit_is_multiplied(kind):
    sampler = kind(SamplingParams(repetition_penalty=2.0), 2)
    sampler.accept(0)
    assert sampler.sample(row_of(-1.0, -1.5)).token == 1


@BOTH
def test_the_mask_forbids_but_the_statistics_see_all(kind):
    row = row_of(5, 4, 3, 2)
    stats = kind(SamplingParams(), 4).sample(row, allowed=mask_of(4, 2, 3))
    free = kind(SamplingParams(), 4).sample(row)
    assert (stats.token, stats.margin) == (2, free.margin)
    assert stats.logprob == pytest.approx(free.logprob - 2)
    assert set(drawn(kind, row, temperature=1.0, allowed=mask_of(4, 1, 3))) == {1, 3}


@BOTH
@pytest.mark.parametrize(
    ("row", "mask", "error", "words"),
    [
        (row_of(1, np.nan), None, GenerationError, "NaN"),
        (row_of(1, np.inf), None, GenerationError, "inf"),
        (row_of(-np.inf, -np.inf), None, GenerationError, "-inf"),
        (row_of(1, 2), mask_of(2), GenerationError, "allowed"),
        (row_of(1, 2, 3), None, InputError, "3 logits"),
        (np.ones(2), None, InputError, "float32"),
        (row_of(1, 2), np.zeros(2, np.uint32), InputError, "mask"),
        (row_of(1, 2), np.zeros(1, np.int64), InputError, "mask"),
        (row_of(1, 2), [3], InputError, "mask"),
        (row_of(1, 0, 2, 0)[::2], None, InputError, "contiguous"),
    ],
)
def test_bad_rows_and_masks_are_named(kind, row, mask, error, words):
    with pytest.raises(error, match=words):
        kind(SamplingParams(), 2).sample(row, allowed=mask)


@BOTH
@pytest.mark.parametrize("size", [-1, 0, 1])
def test_a_vocabulary_needs_two_tokens(kind, size):
    with pytest.raises(InputError, match="2"):
        kind(SamplingParams(), size)


@BOTH
def test_a_token_outside_the_vocabulary_is_refused(kind):
    sampler = kind(SamplingParams(presence_penalty=1.0), 2)
    for token in (-1, 2):
        with pytest.raises(InputError, match="outside"):
            sampler.accept(token)


@BOTH
def test_minus_infinity_is_never_drawn_and_reset_repeats(kind):
    row = row_of(-np.inf, 1, -np.inf, 1)
    row.setflags(write=False)
    sampler = kind(SamplingParams(temperature=1.0, seed=7), 4)
    first = [sampler.sample(row).token for _ in range(50)]
    sampler.reset()
    assert [sampler.sample(row).token for _ in range(50)] == first
    assert set(first) == {1, 3}


@BOTH
@pytest.mark.parametrize("params", [{}, {"top_k": 6}, {"top_p": 0.9999999}])
def test_the_drawn_distribution_is_the_softmax(kind, params):
    row = row_of(2.0, 1.0, 0.5, 0.0, -0.5, -1.0)
    count, temperature = 6000, 0.8
    tokens = drawn(kind, row, count, temperature=temperature, seed=3, **params)
    expected = np.exp(row / temperature) / np.exp(row / temperature).sum() * count
    observed = np.bincount(tokens, minlength=6)
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < 20.5  # 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_flat_rows_are_drawn_from_as_the_cut_softmax_says(temperature):
    level = np.repeat(np.float32([1.5, 1.0, 0.5, 0.0, -0.5]), [100, 1000, 1900, 3000, 2000])
    row = np.random.default_rng(1).permutation(level)
    tokens = drawn(Sampler, row, 8000, temperature=temperature, top_p=0.6, seed=5)
    shares = np.sort(np.exp(row.astype(float)))[::-1] / np.exp(row.astype(float)).sum()
    kept = np.sort(row)[::-1][: int(np.searchsorted(np.cumsum(shares), 0.6)) + 1]
    values, counts = np.unique(kept, return_counts=True)
    expected = counts * np.exp(values.astype(float) / temperature)
    expected *= 8000 / expected.sum()
    observed = np.array([(row[tokens] == value).sum() for value in values])
    assert observed.sum() == 8000
    assert ((observed - expected) ** 2 / expected).sum() < 13.8  # at most 2 degrees, p = 0.001


def test_an_instruction_set_that_is_not_here_is_named():
    with pytest.raises(ConfigError, match="mmx"):
        Sampler(SamplingParams(), 4, instruction_set="mmx")


@pytest.mark.parametrize("params", [{"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.1}, {}])
def test_statistics_do_not_change_the_draw(params):
    row = (np.random.default_rng(2).standard_normal(4000) * 3).astype(np.float32)
    params = SamplingParams(temperature=0.8, seed=9, repetition_penalty=1.2, **params)
    with_them, without = Sampler(params, 4000), Sampler(params, 4000, statistics=False)
    for sampler in (with_them, without):
        sampler.accept_all(range(100))
    for _ in range(50):
        token = with_them.sample(row).token
        assert without.sample(row).token == token
        with_them.accept(token)
        without.accept(token)
    assert math.isnan(without.sample(row).logprob)


@BOTH
@pytest.mark.parametrize(
    ("params", "history", "best"),
    [
        ({}, [1, 2, 3, 4, 1, 2], 3),
        ({"dry_multiplier": 2.0}, [1, 2, 3, 4, 1, 2], 0),  # 1 2 has gone on with 3 before
        ({"dry_multiplier": 2.0, "dry_allowed_length": 3}, [1, 2, 3, 4, 1, 2], 3),
        ({"dry_multiplier": 2.0, "dry_last_n": 3}, [1, 2, 3, 4, 1, 2], 3),
        ({"dry_multiplier": 2.0, "dry_breakers": (1,)}, [1, 2, 3, 4, 1, 2], 3),
        ({"dry_multiplier": 2.0, "dry_breakers": (2,)}, [1, 2, 3, 4, 1, 2], 3),
        ({"dry_multiplier": 0.2}, [1, 2, 3, 4, 1, 2], 3),
        ({"dry_multiplier": 0.2, "dry_base": 10.0}, [1, 2, 3, 4, 4, 1, 2, 3, 4, 1, 2, 3], 3),
        ({"dry_multiplier": 0.2, "dry_base": 10.0}, [5, 1, 2, 3, 4, 5, 1, 2], 0),
    ],
)
def test_dry_lowers_what_goes_on_with_a_repetition(kind, params, history, best):
    sampler = kind(SamplingParams(**params), 6)
    sampler.accept_all(history)
    assert sampler.sample(row_of(2.0, 0, 0, 3.0, 1.0, 0)).token == best


@BOTH
@pytest.mark.parametrize(
    ("params", "possible"),
    [
        # shares 0.5 0.25 0.125 0.0625 0.0625
        ({"xtc_probability": 1.0, "xtc_threshold": 0.2}, {1, 2, 3, 4}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.1}, {2, 3, 4}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.6}, {0, 1, 2, 3, 4}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.1, "top_k": 3}, {2}),
        ({"typical_p": 0.2}, {1}),  # entropy 1.30, surprises 0.69 1.39 2.08 2.77 2.77
        ({"typical_p": 0.7}, {0, 1}),
        ({"typical_p": 0.8}, {0, 1, 2}),
        ({"top_n_sigma": 0.5}, {0}),  # logits 0.79 apart on average
        ({"top_n_sigma": 1.0}, {0, 1}),
        ({"dynamic_temperature_range": 1.0, "top_k": 1}, {0}),
        ({"logit_bias": ((0, -np.inf), (4, 3.0)), "top_k": 1}, {4}),
        ({"mirostat_tau": 0.01, "mirostat_eta": 0.0}, {0}),
    ],
)
def test_what_the_other_cuts_leave(kind, params, possible):
    row = np.log(row_of(0.5, 0.25, 0.125, 0.0625, 0.0625))
    assert set(drawn(kind, row, 600, temperature=1.0, **params)) == possible


@BOTH
def test_mirostat_comes_to_the_surprise_it_aims_at(kind):
    row = (np.random.default_rng(5).standard_normal(2000) * 2).astype(np.float32)
    sampler = kind(SamplingParams(temperature=1.0, mirostat_tau=3.0, seed=1), 2000)
    tokens = [sampler.sample(row).token for _ in range(600)]
    assert len(set(tokens[-300:])) < len(set(drawn(kind, row, 300, temperature=1.0)))


@BOTH
def test_statistics_of_a_masked_row(kind):
    row = np.log(row_of(0.5, 0.25, 0.125, 0.0625, 0.0625))
    stats = kind(SamplingParams(), 5).sample(row, allowed=mask_of(5, 2, 3))
    assert stats.token == 2
    assert stats.rank == 2
    assert stats.allowed_mass == pytest.approx(0.1875, abs=1e-6)
    assert stats.collision == pytest.approx(0.3359375, abs=1e-6)
    assert stats.log_sum_exp == pytest.approx(0.0, abs=1e-6)
    assert kind(SamplingParams(), 5).sample(row).allowed_mass == 1.0


@BOTH
def test_a_token_of_the_parameters_outside_the_vocabulary_is_refused(kind):
    for params in ({"logit_bias": ((5, 1.0),)}, {"dry_breakers": (7,)}):
        with pytest.raises(InputError, match="outside"):
            kind(SamplingParams(**params), 5)


def test_a_large_vocabulary_agrees_to_1e_5():
    row = (np.random.default_rng(0).standard_normal(262_144) * 3).astype(np.float32)
    ours = Sampler(SamplingParams(), len(row)).sample(row)
    theirs = ReferenceSampler(SamplingParams(), len(row)).sample(row)
    assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
    assert ours.entropy == pytest.approx(theirs.entropy, abs=1e-5)


@BOTH
def test_reading_at_an_address_is_reading_the_row(kind):
    row = (np.random.default_rng(1).standard_normal(500)).astype(np.float32)
    params = SamplingParams(temperature=1.0, seed=5)
    by_view, by_address = kind(params, 500), kind(params, 500)
    assert by_view.sample(row) == by_address.sample_at(row.ctypes.data)
    with pytest.raises(InputError, match="address 0"):
        by_address.sample_at(0)


@BOTH
@pytest.mark.parametrize("at", [0, 15, 16, 1000, 1023, 1024, 1039, 2049])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_entry_is_found_wherever_it_lies(kind, at, value):
    row = np.zeros(2050, dtype=np.float32)
    row[at] = value
    with pytest.raises(GenerationError, match="NaN"):
        kind(SamplingParams(), len(row)).sample(row)


@BOTH
@pytest.mark.parametrize("params", [{"top_k": 2}, {"top_p": 0.4}, {"top_k": 4, "top_p": 0.5}])
def test_a_cut_through_equals_keeps_the_lowest_ids(kind, params):
    assert set(drawn(kind, row_of(1, 1, 1, 1), temperature=1.0, **params)) == {0, 1}


@BOTH
def test_reset_leaves_no_token_present(kind):
    sampler = kind(SamplingParams(presence_penalty=0.6), 2)
    sampler.accept(0)
    assert sampler.sample(row_of(2.0, 1.5)).token == 1
    sampler.reset()
    assert sampler.sample(row_of(2.0, 1.5)).token == 0


@BOTH
def test_reset_forgets_the_penalties(kind):
    sampler = kind(SamplingParams(frequency_penalty=0.2), 2)
    sampler.accept_all([0, 0, 0])
    sampler.reset()
    assert sampler.sample(row_of(2.0, 1.5)).token == 0
    sampler.accept(0)  # 2.0 - 0.2; a count kept from before would make it 2.0 - 0.8
    assert sampler.sample(row_of(2.0, 1.5)).token == 0


@BOTH
def test_a_strided_mask_is_refused(kind):
    mask = np.full(4, 2**32 - 1, dtype=np.uint32)[::2]
    with pytest.raises(InputError, match="mask"):
        kind(SamplingParams(), 64).sample(np.zeros(64, dtype=np.float32), allowed=mask)
