from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutation import LEVELS, OTHER, REFUSED, SAME, mutate, set_stage

STAGE = set_stage()


def test_the_good_bundle_is_taken() -> None:
    accepted = STAGE.take(STAGE.bundle)
    assert accepted.fresh
    assert accepted.assignment.revision == 3
    assert STAGE.judge(STAGE.bundle) == SAME


def test_the_judge_tells_another_valid_bundle_from_the_good_one() -> None:
    assert STAGE.judge(STAGE.other) == OTHER
    assert replace(STAGE, bundle=STAGE.other).judge(STAGE.bundle) == OTHER


@pytest.mark.parametrize("donor", range(3))
def test_the_donors_are_refused(donor: int) -> None:
    assert STAGE.judge(STAGE.donors[donor]) == REFUSED


@given(random=st.randoms(use_true_random=False), level=st.sampled_from(LEVELS))
@settings(max_examples=2_000, derandomize=True, database=None, deadline=None)
def test_no_changed_bundle_is_taken(random: Random, level: str) -> None:
    """What is taken equals the good bundle byte for byte in all that is signed."""
    assert STAGE.judge(mutate(STAGE, random, level=level)) != OTHER
