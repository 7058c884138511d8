"""Pacing: never above the cap, hardly below it, and close to the best use of the money."""

import json
import math
from dataclasses import asdict, replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.cloud.pacing import (
    Limit,
    Pacer,
    Pacing,
    advance,
    gain_per_microusd,
    incurred,
    limit,
    settle,
    spend,
    start,
    worth,
)
from edge.errors import BudgetExceeded, ConfigError, StoreError

TASKS, COST, VALUE_USD, CLOUD = 10_000, 500, 0.05, 0.97
PLAN = Pacing(COST * TASKS // 10, float(TASKS), COST)
SEPARATION = math.sqrt(2) * NormalDist().inv_cdf(0.9)


def tape(seed, tasks=TASKS, late=0.88):
    """Return the local confidence and what the cloud would win, per task.

    The score is binormal with AUROC 0.9 and calibrated for 88 % accuracy; from half-time on the
    accuracy is ``late``, unknown to the score.
    """
    random = np.random.default_rng(seed)
    right = random.random(tasks) < np.where(np.arange(tasks) < tasks // 2, 0.88, late)
    score = random.standard_normal(tasks) + SEPARATION * right
    odds = math.log(0.88 / 0.12) + SEPARATION * score - SEPARATION**2 / 2
    won = (random.random(tasks) < CLOUD).astype(int) - right
    return 1 / (1 + np.exp(-odds)), won


def oracle(confidence, costs, budget, open_=None):
    """Return which tasks a knapsack over the same scores takes, all of them known beforehand."""
    ratio = np.where(True if open_ is None else open_, (CLOUD - confidence) / costs, -1.0)
    order = np.argsort(-ratio)
    return order[np.cumsum(costs[order]) <= budget]


def outcome(seed, *, late=0.88, costs=None, up=None, by=None, warm=True, plan=PLAN):
    """Return (share of the budget spent, gain, the oracle's gain) of one run."""
    confidence, won = tape(seed, late=late)
    costs = np.full(TASKS, COST) if costs is None else costs
    up = np.ones(TASKS, bool) if up is None else up
    by = np.ones(TASKS) if by is None else by
    calibration = tape(seed + 1000, 1000)[0]
    gains = [gain_per_microusd(VALUE_USD, CLOUD, p, COST) for p in calibration]
    pacer, gain = start(plan, gains if warm else ()), 0
    for p, win, cost, reachable, passed in zip(
        confidence.tolist(), won.tolist(), costs.tolist(), up.tolist(), by.tolist(), strict=True
    ):
        wanted = reachable and worth(VALUE_USD, CLOUD, p, cost, pacer.price)
        if wanted and limit(pacer, cost) is None:
            pacer, gain = spend(pacer, cost), gain + win
        pacer = advance(pacer, passed, reachable=reachable)
    best = won[oracle(confidence, costs, plan.budget_microusd, up)].sum()
    return pacer.spent_microusd / plan.budget_microusd, gain, best


def over_seeds(seeds=20, **scenario):
    return summary([outcome(seed, **scenario) for seed in range(seeds)])


def summary(rows):
    used, gains, best = zip(*rows, strict=True)
    return min(used), max(used), sum(gains) / sum(best)


half = np.arange(TASKS) >= TASKS // 2


@pytest.mark.parametrize(
    ("scenario", "least"),
    [
        ({}, 0.95),
        ({"late": 0.72}, 0.90),
        ({"costs": np.where(half, 2 * COST, COST)}, 0.95),
        ({"up": half | (np.arange(TASKS) < TASKS // 4)}, 0.95),
        ({"warm": False}, 0.95),
    ],
    ids=["iid", "drift", "price doubles", "outage of a quarter", "no calibration"],
)
def test_spend_and_gain_beside_a_knapsack_that_knows_all_scores(scenario, least):
    low, high, gain = over_seeds(**scenario)
    assert 0.97 <= low <= high <= 1.0
    assert gain >= least


def test_bursts_of_tasks_are_paced_by_time():
    rows = []
    for seed in range(20):
        pace = np.where(np.random.default_rng(seed + 7).random(100) < 0.2, 0.1, 3.0).repeat(100)
        rows.append(outcome(seed, by=pace / pace.sum() * TASKS))
    low, high, gain = summary(rows)
    assert 0.97 <= low <= high <= 1.0
    assert gain >= 0.95


def test_the_price_falls_to_nothing_where_the_rest_pays_for_everything():
    pacer = start(PLAN, [50.0] * 1000)
    assert pacer.price == pytest.approx(49.0)
    assert not worth(0.001, 1.0, 0.0, COST, pacer.price)
    for _ in range(TASKS - 20):
        pacer = advance(pacer)
    assert pacer.price == 0.0
    assert worth(0.001, 1.0, 0.0, COST, pacer.price)


def test_the_price_rises_ahead_of_the_pace_and_stays_during_an_outage():
    pacer = start(PLAN, [4.0] * 1000)
    paid = advance(spend(pacer, COST))
    assert paid.price > pacer.price
    assert advance(pacer).price < pacer.price
    assert advance(pacer, 2500.0, reachable=False).price == pacer.price


def test_the_first_price_lets_through_what_the_budget_pays_for():
    gains = [float(g) for g in range(1, 1001)]
    pacer = start(PLAN, [*gains, math.nan])
    assert sum(g > 1 + pacer.price for g in gains) == pytest.approx(100, abs=1)
    assert start(PLAN, gains, share=1.0).price == 0.0
    assert start(PLAN).price == 0.0


@pytest.mark.parametrize(
    ("value", "cloud", "local", "cost", "price", "expected"),
    [
        (0.01, 0.97, 0.47, 4999, 0.0, True),
        (0.01, 0.97, 0.47, 5000, 0.0, False),
        (0.01, 0.97, 0.47, 2499, 1.0, True),
        (0.01, 0.97, 0.47, 2501, 1.0, False),
        (0.01, 0.50, 0.60, 0, 0.0, False),
        (0.01, 0.97, math.nan, 1, 0.0, False),
    ],
)
def test_what_a_call_is_worth(value, cloud, local, cost, price, expected):
    assert worth(value, cloud, local, cost, price) is expected
    if cost:
        ratio = gain_per_microusd(value, cloud, local, cost)
        assert (ratio > 1 + price) is expected


def test_the_cap_and_the_bucket_are_hard():
    plan = Pacing(1000, 100.0, 10, burst=0.1)
    pacer = start(plan)
    for _ in range(10):
        pacer = spend(pacer, 10)
    assert limit(pacer, 10) is Limit.BURST
    pacer = advance(pacer)
    assert pacer.bucket_microusd == pytest.approx(10.0)
    assert limit(pacer, 10) is None
    assert limit(pacer, 901) is Limit.BUDGET
    with pytest.raises(BudgetExceeded, match="900 are left"):
        spend(pacer, 901)
    # A call dearer than the whole bucket waits for a full one, and then goes.
    assert limit(pacer, 200) is Limit.BURST
    assert limit(advance(pacer, 20.0), 200) is None


def test_what_was_held_too_much_comes_back():
    pacer = spend(start(PLAN), 5 * COST)
    settled = settle(pacer, 5 * COST, 2 * COST)
    assert settled.spent_microusd == settled.unpriced_microusd == 2 * COST
    assert settled == spend(start(PLAN), 2 * COST)


events = st.one_of(
    st.tuples(st.just("spend"), st.integers(0, 400), st.booleans()),
    st.tuples(st.just("settle"), st.integers(0, 400), st.booleans()),
    st.tuples(st.just("incurred"), st.integers(0, 400), st.booleans()),
    st.tuples(st.just("advance"), st.floats(-1e6, 1e6), st.booleans()),
)


@settings(deadline=None)
@given(st.integers(0, 2000), st.integers(1, 500), st.lists(events, max_size=60))
def test_no_order_of_events_spends_above_the_cap(budget, call, happened):
    pacer = start(Pacing(budget, 50.0, call))
    for kind, amount, flag in happened:
        if kind == "advance":
            pacer = advance(pacer, amount, reachable=flag)
        elif kind == "incurred":
            pacer = incurred(pacer, amount)
        elif limit(pacer, amount) is None:
            pacer = spend(pacer, amount)
            if kind == "settle":
                pacer = settle(pacer, amount, amount // 2)
        assert 0 <= pacer.spent_microusd <= budget
        assert 0 <= pacer.price < math.inf
        assert Pacer.from_dict(json.loads(json.dumps(pacer.to_dict()))) == pacer


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget_microusd": -1},
        {"horizon": 0.0},
        {"horizon": math.inf},
        {"call_microusd": 0},
        {"burst": 0.0},
        {"burst": 1.5},
    ],
)
def test_a_plan_that_cannot_be_paced_is_refused(wrong):
    with pytest.raises(ConfigError):
        replace(PLAN, **wrong)


@pytest.mark.parametrize("by", [-1.0, -1e9, -math.inf, math.nan])
def test_a_clock_that_goes_back_pays_nothing(by):
    pacer = spend(start(PLAN, [4.0] * 1000), COST)
    assert advance(pacer, by) == advance(pacer, 0.0)
    assert advance(pacer, by).elapsed == pacer.elapsed


@given(st.lists(st.floats(0, 1e6), max_size=40))
def test_no_more_elapses_than_passes_by_a_clock_that_goes_back_and_forward(readings):
    pacer, latest = start(PLAN), 0.0
    for now in readings:
        pacer, latest = advance(pacer, now - latest), max(now, latest)
    assert pacer.elapsed == pytest.approx(max(readings, default=0.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"bar": math.nan},
        {"bar": None},
        {"plan": {}},
        {"plan": {**asdict(PLAN), "budget_microusd": math.nan}},
        {"plan": {**asdict(PLAN), "call_microusd": 0.5}},
        {"plan": {**asdict(PLAN), "horizon": math.inf}},
        {"more": 1},
        {"spent_microusd": -1},
        {"spent_microusd": 1.5},
        {"unpriced_microusd": 1},
        {"unpriced_microusd": -10 * PLAN.budget_microusd},
        {"unpriced_microusd": -0.5},
        {"elapsed": math.inf},
        {"elapsed": math.nan},
        {"elapsed": -1.0},
        {"bucket_microusd": math.nan},
        {"bucket_microusd": -2.0},
        {"bucket_microusd": 2 * PLAN.bucket_microusd},
        {"bucket_microusd": "x"},
        {"cold": 1},
    ],
)
def test_a_damaged_state_is_named(wrong):
    body = start(PLAN).to_dict()
    assert Pacer.from_dict(body) == start(PLAN)
    with pytest.raises(StoreError, match="pacing starts anew"):
        Pacer.from_dict({**body, **wrong})


def test_an_empty_state_is_named():
    with pytest.raises(StoreError, match="state of the pacing"):
        Pacer.from_dict({})
