"""Each known mistake, put into the simulated fleet, makes a check of its money fail."""

import pytest
from budget_bench import Bug, walk

STEPS = 300
SEEDS = range(40)


def outcome(seed, bugs=frozenset()):
    try:
        return walk(seed, STEPS, bugs=bugs)
    except Exception as error:  # noqa: BLE001 - a rule that refuses has caught it too
        return [f"{type(error).__name__}: {error}"]


@pytest.mark.parametrize("bug", Bug, ids=lambda bug: bug.name.lower())
def test_a_mistake_is_caught(bug):
    assert any(outcome(seed, frozenset({bug})) for seed in SEEDS)


def test_without_a_mistake_all_holds():
    assert {seed: found for seed in SEEDS if (found := outcome(seed))} == {}


CAUSES = {
    Bug.RECLAIM: {"I2", "I3"},
    Bug.SEQUENCE: {"I6"},
    Bug.RELEASE: {"I2", "I3", "I6"},
    Bug.ASYNCHRONOUS: {"I2", "I3"},
    Bug.NO_EPOCH: {"I2", "I9", "I10"},
    Bug.FLOAT: {"I1"},
    Bug.ETAG: {"I17"},
}


@pytest.mark.parametrize("bug", Bug, ids=lambda bug: bug.name.lower())
def test_it_is_caught_for_what_it_is(bug):
    first = next(found for seed in SEEDS if (found := outcome(seed, frozenset({bug}))))
    assert {problem.split(":")[0] for problem in first} & CAUSES[bug], first
