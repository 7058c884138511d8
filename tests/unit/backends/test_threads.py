"""Thread counts follow measurements, not cores."""

from __future__ import annotations

import pytest

from edge.backends.threads import choose_threads, fixed_threads, thread_candidates
from edge.errors import ConfigError


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 0.001, 2: 0.007, 4: 0.0001}, 1),
        ({1: 0.001, 2: 0.0005, 4: 0.0003}, 4),
        ({1: 0.001, 2: 0.0006, 4: 0.0009}, 2),
        ({1: 0.001, 2: 0.00095, 4: 0.0001}, 1),
        ({1: 3.0, 2: 1.6, 4: 0.9}, 4),
    ],
)
def test_choose(seconds, expected):
    assert choose_threads(seconds.__getitem__, candidates=(1, 2, 4)) == expected


def test_the_first_pass_does_not_count():
    taken = iter([9.0, 0.001, 0.001, 0.001, 0.002, 0.002, 0.002])
    assert choose_threads(lambda _threads: next(taken), candidates=(1, 2)) == 1


def test_one_candidate_is_not_measured():
    def measure(threads: int) -> float:
        raise AssertionError(threads)

    assert choose_threads(measure, candidates=(3,)) == 3


def test_few_passes_over_budget():
    calls = []

    def measure(threads: int) -> float:
        calls.append(threads)
        return 1.0 / threads

    assert choose_threads(measure, candidates=(1, 2, 4), budget_s=0.1) == 4
    assert calls == [1, 1, 2, 4]


def test_a_hopeless_candidate_is_tried_once():
    calls = []

    def measure(threads: int) -> float:
        calls.append(threads)
        return 0.001 if threads == 1 else 0.5

    assert choose_threads(measure, candidates=(1, 2), budget_s=10.0) == 1
    assert calls == [1, 1, 1, 1, 2]


def test_candidates():
    assert thread_candidates(1) == (1,)
    assert thread_candidates(2) == (1, 2)
    assert thread_candidates(6) == (1, 2, 4, 6)
    assert thread_candidates()[0] == 1


def test_fixed():
    assert fixed_threads(None, {}) is None
    assert fixed_threads(None, {"EDGE_THREADS": "3"}) == 3
    assert fixed_threads(2, {"EDGE_THREADS": "3"}) == 2
    for threads, env in ((0, {}), (-1, {}), (None, {"EDGE_THREADS": "many"})):
        with pytest.raises(ConfigError, match="at least 1"):
            fixed_threads(threads, env)
