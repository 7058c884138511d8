import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConfigError
from edge_sync.rollout.terms import Terms, next_look_s, silence_slot


def test_terms_come_back_as_they_were():
    terms = Terms.from_dict({"soak_s": 60, "error_floor": 0.1})
    assert terms.soak_s == 60.0
    assert Terms.from_dict(terms.to_dict()) == terms


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"soak": 1}, "no term 'soak'"),
        ({"soak_s": "1 h"}, "no number"),
        ({"soak_s": True}, "no number"),
        ({"soak_s": float("nan")}, "not within"),
        ({"soak_s": -1}, "not within"),
        ({"error_ratio": 0.5}, "not within"),
        ({"halt_risk": 0}, "not within"),
        ({"clump": 0}, "not within"),
        ({"soak_s": 100, "deadline_s": 90}, "over before"),
    ],
)
def test_other_terms_are_refused(body, reason):
    with pytest.raises(ConfigError, match=reason):
        Terms.from_dict(body)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_looks_are_known_beforehand(one, other):
    early, late = sorted((one, other))
    assert next_look_s(early) > early
    assert silence_slot(early) <= silence_slot(late)
    terms = Terms()
    assert silence_slot(terms.deadline_s) < terms.silence_looks < 30
