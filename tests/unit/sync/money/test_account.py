from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import BudgetExceeded, InputError, StoreError
from edge_sync.money import account
from edge_sync.money.account import Report, Right
from edge_sync.money.caps import Cap, Caps, Purpose, Scope

OF = Purpose("kiosks", "a" * 32, "big")
MONTH, DAY = "month:2026-11", "day:2026-11-24"
CAPS = Caps.of([Cap(Scope(), "month", 100), Cap(Scope(group="kiosks"), "day", 60)])


def right(number=1, amount=30, **changes):
    return replace(Right(f"{number:032x}", OF, DAY, 1, amount), **changes)


def pots(rights=()):
    return tuple(
        account.open_pot(scope, period, cap_microusd=cap, rights=rights)
        for scope, period, cap in account.pot_keys(CAPS, OF, period=DAY)
    )


def test_a_right_counts_in_every_cap_above_it():
    booked = account.grant(pots(), right())
    assert [(pot.period, pot.free_microusd, pot.open_microusd) for pot in booked] == [
        (MONTH, 70, 30),
        (DAY, 30, 30),
    ]
    assert account.unbalanced(booked, [right()]) == ()


def test_a_grant_must_fit_every_cap():
    with pytest.raises(BudgetExceeded, match="group:kiosks for day"):
        account.grant(pots(), right(amount=61))
    with pytest.raises(BudgetExceeded, match="No cap"):
        account.grant((), right())


def test_a_lease_crosses_no_period():
    with pytest.raises(InputError, match="would cross"):
        account.pot_keys(CAPS, OF, period=MONTH)


def test_money_comes_back_with_the_seal_and_once():
    closing = account.close(right())
    booked = account.grant(pots(), right())
    assert account.unbalanced(booked, [closing]) == ()
    sealed, done = account.seal(booked, closing, used_microusd=12)
    assert [(pot.free_microusd, pot.settled_microusd) for pot in sealed] == [(88, 12), (48, 12)]
    assert account.seal(sealed, done, used_microusd=12) == (sealed, done)
    assert account.close(done) == done
    assert account.unbalanced(sealed, [done]) == ()


@pytest.mark.parametrize("used", [-1, 31])
def test_a_count_out_of_range_is_refused(used):
    with pytest.raises(StoreError, match="granted for 30"):
        account.seal(account.grant(pots(), right()), right(), used_microusd=used)


def test_another_count_after_the_seal_is_refused():
    booked, done = account.seal(account.grant(pots(), right()), right(), used_microusd=12)
    with pytest.raises(StoreError, match="sealed at 12"):
        account.seal(booked, done, used_microusd=13)


def test_after_a_cut_nothing_is_granted():
    booked = account.recap(account.grant(pots(), right())[0], 20)
    assert booked.free_microusd == -10
    with pytest.raises(BudgetExceeded, match="-10 are free"):
        account.grant([booked], right(2, amount=1))
    assert account.recap(booked, 100).free_microusd == 70


def test_a_restored_hub_knows_what_the_gateways_hold_and_no_more():
    reports = [
        Report("1" * 32, OF, DAY, 1, 12, final=True),
        Report("2" * 32, OF, DAY, 1, 7, final=False),
    ]
    rights = account.rebuild(reports)
    rebuilt = pots(rights)
    assert [each.state for each in rights] == ["sealed", "closing"]
    assert [pot.free_microusd for pot in rebuilt] == [81, 41]
    booked, done = account.seal(rebuilt, rights[1], used_microusd=3)
    assert [pot.free_microusd for pot in booked] == [85, 45]
    assert account.unbalanced(booked, [rights[0], done]) == ()


def test_books_that_are_wrong_are_seen():
    booked = account.grant(pots(), right())
    wrong = replace(booked[0], free_microusd=booked[0].free_microusd + 1)
    assert "miss the cap" in account.unbalanced([wrong], [right()])[0]
    assert "something else" in account.unbalanced(booked, [])[0]


STEPS = st.lists(st.tuples(st.sampled_from(["grant", "close", "seal", "recap"]),
                           st.integers(0, 40), st.integers(0, 9)), max_size=40)  # fmt: skip


@given(STEPS)
def test_every_way_through_the_books_conserves(steps):
    held, rights = list(pots()), {}
    for step, amount, at in steps:
        known = rights.get(at)
        if step == "grant" and known is None:
            try:
                held = list(account.grant(held, right(at, amount)))
            except BudgetExceeded:
                assert min(pot.free_microusd for pot in held) < amount
            else:
                rights[at] = right(at, amount)
        elif step == "close" and known:
            rights[at] = account.close(known)
        elif step == "seal" and known and known.state != "sealed":
            used = min(amount, known.amount_microusd)
            booked, rights[at] = account.seal(held, known, used_microusd=used)
            held = list(booked)
        elif step == "recap":
            held[at % 2] = account.recap(held[at % 2], amount)
        assert account.unbalanced(held, tuple(rights.values())) == ()
