import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sync.money.grants import Claim, Terms, grant_amount, jain, reserved, shares

MONEY = st.integers(0, 10**9)
CLAIMS = st.lists(st.tuples(MONEY, MONEY, st.integers(1, 5)), min_size=1, max_size=12).map(
    lambda rows: [Claim(f"d{at:02}", *row) for at, row in enumerate(rows)]
)


@given(total=st.integers(-10, 10**10), claims=CLAIMS, least=st.integers(0, 10**6))
def test_nobody_gets_more_than_asked_nor_all_more_than_there_is(total, claims, least):
    given_ = shares(total, claims, least_microusd=least)
    assert sum(given_.values()) <= max(0, total)
    for claim in claims:
        share = given_[claim.device_id]
        assert 0 <= share <= claim.demand_microusd
        assert share == 0 or share >= min(least, claim.demand_microusd)


@given(total=MONEY, claims=CLAIMS)
def test_who_got_less_than_asked_has_as_much_as_any(total, claims):
    given_ = shares(total, claims, least_microusd=0)
    levels = {
        claim: (claim.had_microusd + given_[claim.device_id]) / claim.weight for claim in claims
    }
    for poor in claims:
        if given_[poor.device_id] == poor.demand_microusd:
            continue
        for rich in claims:
            if given_[rich.device_id] > 0:
                assert levels[rich] <= levels[poor] + 1


@given(total=MONEY, claims=CLAIMS)
def test_nothing_useful_is_kept_back(total, claims):
    given_ = shares(total, claims, least_microusd=0)
    unmet = sum(claim.demand_microusd for claim in claims) - sum(given_.values())
    weights = sum(claim.weight for claim in claims)
    assert unmet == 0 or total - sum(given_.values()) < weights


def test_what_is_too_little_goes_to_who_had_least():
    claims = [Claim("a", 10, had_microusd=5), Claim("b", 10), Claim("c", 10, had_microusd=1)]
    assert shares(12, claims, least_microusd=10) == {"a": 0, "b": 10, "c": 0}


@pytest.mark.parametrize(
    ("free", "demand", "amount"),
    [(800, 1000, 100), (800, 60, 60), (40, 1000, 40), (39, 1000, 0), (-5, 10, 0), (800, 0, 0)],
)
def test_one_grant_takes_a_part_of_what_is_free(free, demand, amount):
    terms = Terms(parts=8, least_microusd=40)
    asking = Claim("a", demand)
    got = grant_amount(free, asking, others=(), absent=(), terms=terms, left=1.0)
    assert got == amount


def test_a_floor_waits_for_those_offline_and_falls_with_the_period():
    terms = Terms(floor_microusd=100)
    absent = [Claim("a", 0), Claim("b", 0, had_microusd=70), Claim("c", 0, had_microusd=200)]
    assert [reserved(absent, terms, left=left) for left in (1.0, 0.5, 0.0)] == [130, 50, 0]


def test_equal_demand_gets_equal_shares_however_often_it_asks():
    had = dict.fromkeys("abcd", 0)
    free, terms = 1_000, Terms(parts=4, least_microusd=10)
    for device in "aaaaabaaacaaaaadaaaabcdabcdabcdabcdabcd" * 4:
        others = [Claim(name, 500, had[name]) for name in had if name != device]
        amount = grant_amount(
            free, Claim(device, 500, had[device]), others=others, absent=(), terms=terms, left=1.0
        )
        had[device] += amount
        free -= amount
    assert free < terms.least_microusd
    assert jain([float(amount) for amount in had.values()]) > 0.99


def test_the_index_of_fairness():
    assert jain([3.0, 3.0, 3.0]) == 1.0
    assert jain([9.0, 0.0, 0.0]) == pytest.approx(1 / 3)
    assert jain([0.0, 0.0]) == 1.0
