from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import InputError, StoreError
from edge_sync.money import redeem
from edge_sync.money.lease import Lease
from edge_sync.money.redeem import Hold, LeaseRefused

NOW = 1_795_550_000.0  # 2026-11-24
LEASE = Lease(
    lease_id="1" * 32,
    scope="group:kiosks",
    period="month:2026-11",
    device_id="a" * 32,
    pool_id="big",
    epoch=2,
    amount_microusd=100,
    not_after=int(NOW) + 60,
    policy_version=1,
    key_id="k1",
)


def wanted(key="k", most=40, request="r"):
    return Hold(key, LEASE.lease_id, request, most)


def held(most=40):
    return redeem.hold(redeem.first_seen(LEASE), wanted(most=most), found=None)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"pool_id": "small"}, "foreign"),
        ({"epoch": 1}, "fenced"),
        ({"not_after": int(NOW) - 1}, "expired"),
        ({"period": "month:2026-10"}, "expired"),
        ({"period": "month:2026-12"}, "expired"),
    ],
)
def test_a_lease_is_good_here_and_now_alone(changes, code):
    with pytest.raises(LeaseRefused) as refusal:
        redeem.admit(replace(LEASE, **changes), pool_id="big", epoch=2, now=NOW)
    assert refusal.value.code == code


@pytest.mark.parametrize("epoch", [2, 3])
def test_a_lease_tells_its_epoch(epoch):
    assert redeem.admit(replace(LEASE, epoch=epoch), pool_id="big", epoch=2, now=NOW) == epoch
    assert redeem.raise_epoch(5, epoch) == 5


def test_a_call_is_held_settled_and_frees_the_rest():
    entry, call = held()
    assert (entry.held_microusd, entry.remaining_microusd, entry.holds) == (40, 60, 1)
    entry, call = redeem.settle(entry, call, cost_microusd=15)
    assert (entry.used_microusd, entry.remaining_microusd, entry.holds) == (15, 85, 0)
    assert redeem.settle(entry, call, cost_microusd=15) == (entry, call)
    assert redeem.unbounded(entry, [call]) == ()
    with pytest.raises(StoreError, match="is settled"):
        redeem.settle(entry, call, cost_microusd=16)


def test_a_lease_is_not_overdrawn():
    entry, _ = held(most=61)
    with pytest.raises(LeaseRefused, match="39 left") as refusal:
        redeem.hold(entry, wanted("other", 40), found=None)
    assert refusal.value.code == "overdrawn"


def test_one_key_is_one_call():
    entry, call = held()
    assert redeem.hold(entry, wanted(), found=call) == (entry, call)
    with pytest.raises(InputError, match="another request"):
        redeem.hold(entry, wanted(request="other"), found=call)


def test_what_was_certainly_unbilled_is_freed_and_may_be_asked_again():
    entry, call = redeem.release(*held())
    assert (entry.used_microusd, call.state) == (0, "released")
    assert redeem.release(entry, call) == (entry, call)
    entry, again = redeem.hold(entry, wanted(), found=call)
    assert (entry.held_microusd, again.state) == (40, "held")


def test_what_is_unclear_stays_held_until_the_bill_is_known():
    entry, call = held()
    call = redeem.leave_unclear(call)
    with pytest.raises(StoreError, match="is unclear"):
        redeem.release(entry, call)
    assert redeem.unbounded(entry, [call]) == ()
    entry, call = redeem.settle(entry, call, cost_microusd=0)
    assert (entry.used_microusd, call.state) == (0, "settled")
    assert redeem.leave_unclear(call) == call


def test_a_bill_above_the_maximum_is_an_alarm():
    entry, call = held()
    entry, call = redeem.settle(entry, call, cost_microusd=55)
    assert (entry.redeemed_microusd, call.cost_microusd, call.excess_microusd) == (40, 40, 15)


@pytest.mark.parametrize("amount", [-1, 1.0, True, None])
def test_an_amount_is_a_whole_number(amount):
    with pytest.raises(InputError, match="whole number"):
        redeem.hold(redeem.first_seen(LEASE), wanted(most=amount), found=None)
    with pytest.raises(InputError, match="whole number"):
        redeem.settle(*held(), cost_microusd=amount)


def test_a_seal_is_final_once_no_hold_is_open():
    entry, call = held()
    entry = redeem.seal(entry)
    assert (entry.sealed, entry.used_microusd, entry.remaining_microusd) == (False, 40, 0)
    with pytest.raises(LeaseRefused, match="is sealed"):
        redeem.hold(entry, wanted("other", 1), found=None)
    entry, _ = redeem.settle(entry, call, cost_microusd=10)
    assert (entry.sealed, entry.used_microusd) == (True, 10)
    assert redeem.seal(entry) is entry


def test_what_was_sealed_unseen_never_pays():
    entry = redeem.seal_unseen(LEASE.lease_id, epoch=2)
    assert entry.sealed
    with pytest.raises(LeaseRefused):
        redeem.hold(entry, wanted(most=0), found=None)


@pytest.mark.parametrize(("epoch", "fenced"), [(1, False), (2, False), (3, True)])
def test_a_newer_epoch_fences(epoch, fenced):
    assert redeem.fence(redeem.first_seen(LEASE), epoch).sealing is fenced


def test_a_register_that_is_wrong_is_seen():
    entry, call = held()
    assert redeem.unbounded(entry, []) != ()
    over = replace(entry, amount_microusd=39)
    assert any("overdrawn" in each for each in redeem.unbounded(over, [call]))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["hold", "settle", "unclear", "release", "seal"]),
        st.integers(0, 60),
        st.integers(0, 5),
    ),
    max_size=30,
)


@given(STEPS)
def test_every_way_through_the_register_keeps_the_bound(steps):
    entry, calls = redeem.first_seen(LEASE), {}
    for step, amount, at in steps:
        used, sealing = entry.used_microusd, entry.sealing
        call = calls.get(at)
        try:
            if step == "hold":
                entry, calls[at] = redeem.hold(entry, wanted(str(at), amount), found=call)
            elif step == "settle" and call:
                entry, calls[at] = redeem.settle(entry, call, cost_microusd=amount)
            elif step == "unclear" and call:
                calls[at] = redeem.leave_unclear(call)
            elif step == "release" and call:
                entry, calls[at] = redeem.release(entry, call)
            elif step == "seal":
                entry = redeem.seal(entry)
        except (LeaseRefused, StoreError):
            pass
        assert redeem.unbounded(entry, calls.values()) == ()
        assert not sealing or entry.used_microusd <= used
