"""The premium share: counted once, claimed before anything is asked, and never exceeded."""

import threading
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import StoreError
from edge.spending import Spending
from edge.store.states import States
from edge.task import Budget, PoolSpec, TaskSpec

PRICE = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}
POOL = PoolSpec(base_url="http://pool.example", model="m", price=PRICE)


class Counted:
    """States in memory."""

    def __init__(self):
        self.body = None

    def read(self, _):
        return self.body

    def change(self, _, step):
        self.body = step(self.body)
        return self.body


def spending(states, *, budget=True):
    return Spending(
        states,
        Budget(cap_usd=100) if budget else None,
        {"default": POOL},
        labels=lambda _: (),
        outlay=lambda: 0,
        clock=lambda: 1_000_000.0,
    )


def call(share, name="t"):
    spec = TaskSpec.model_validate(
        {"kind": "generate", "routing": {"value_usd": 1, "premium_share": share}}
    )
    return SimpleNamespace(name=name, spec=spec, text="hello", local=None)


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (0.05, 50), (0.5, 500), (1.0, 1000)])
def test_of_a_thousand_calls_the_share_goes_up_each_counted_once(share, most):
    paid, made = spending(states := Counted()), call(share)
    went = 0
    for _ in range(1000):
        went += paid.charge(made) is not None and paid.claim(made)
        paid.passed(made, 0, reachable=True)
    assert went == most
    assert states.body["premium"]["t"] == [1000, most]
    assert "premium" not in states.body["pacer"]


@settings(deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.lists(st.sampled_from(["claim", "pass"]), max_size=60))
def test_no_order_of_claims_exceeds_the_share(share, events):
    paid, made = spending(states := Counted()), call(share)
    for event in events:
        if event == "claim":
            paid.claim(made)
        else:
            paid.passed(made, 0, reachable=True)
        seen, claimed = (states.body or {"premium": {}})["premium"].get("t", (0, 0))
        assert claimed <= share * (seen + 1)


def test_threads_at_once_take_no_more_than_the_share(tmp_path):
    states = States.open(tmp_path)
    paid, made = spending(states), call(0.1)
    for _ in range(49):
        paid.passed(made, 0, reachable=True)
    won = []
    threads = [threading.Thread(target=lambda: won.append(paid.claim(made))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states.close()
    assert sum(won) == 5


def test_where_all_calls_may_be_premium_those_at_once_are_too():
    paid, made = spending(Counted()), call(1.0)
    assert [paid.claim(made) for _ in range(8)] == [True] * 8
    assert paid.charge(made) is not None


def test_each_task_has_a_share_of_its_own():
    paid = spending(Counted())
    assert paid.claim(call(1.0, "a"))
    assert not paid.claim(call(0.0, "b"))
    assert not paid.claim(call(0.5, "c"))


def test_without_a_budget_nothing_is_premium():
    assert not spending(Counted(), budget=False).claim(call(1.0))


@pytest.mark.parametrize(("share", "claimed"), [(1.0, True), (0.99, False)])
def test_a_claim_that_cannot_be_written_down_is_none_where_there_is_a_bound(
    monkeypatch, share, claimed
):
    def full(*_):
        raise StoreError("The disk is full.")

    paid = spending(states := Counted())
    monkeypatch.setattr(states, "change", full)
    assert paid.claim(call(share)) is claimed
