"""Replaying recorded tasks: the runtime's own decision, what it costs, and what labels say."""

import dataclasses
import math

import pytest

from edge.cli.trials import _sorted
from edge.lab.simulating import Policy, Seen, right_of, seen, simulate
from edge.route import Action, Circumstances, Terms, plan
from edge.task import TaskSpec
from edge.types import Draft, Kind


def spec(**routing):
    return TaskSpec(
        kind=Kind.CLASSIFY, model="head", routing=routing, privacy={"allow_cloud": "raw"}
    )


def policy(*, threshold=None, certified=False, has_pool=True, price=None, **routing):
    task = spec(**routing)
    return Policy(
        task=task,
        plan=plan(task, Circumstances(offline=False, has_pool=has_pool)),
        terms=Terms(threshold=threshold, certified=certified),
        confidence=lambda draft: draft.confidence,
        price=price,
    )


def task(name, confidence, action=Action.KEEP, **more):
    draft = Draft(None, "head", "d", "cpu", confidence=confidence)
    return Seen(
        name, action, draft, valid=True, cost_microusd=more.pop("cost", 0), chars=10, **more
    )


TASKS = [
    task("a", 0.99),
    task("b", 0.9),
    task("c", 0.75),
    task("d", 0.4, Action.ESCALATE, cost=40),
    task("e", 0.5, Action.ESCALATE, cost=60),
]


def run(traces=TASKS, labels=None, *, cloud_accuracy=0.97, **wanted):
    return simulate(traces, policy(**wanted), labels or {}, cloud_accuracy=cloud_accuracy)


def test_a_stricter_threshold_escalates_more_at_the_mean_of_recorded_costs():
    found = run(keep_above=0.8)
    assert (found.happened.kept, found.happened.escalated) == (3, 2)
    assert (found.simulated.kept, found.simulated.escalated) == (2, 3)
    assert found.happened.cost_microusd == 100
    assert found.simulated.cost_microusd == 150
    assert found.prices == {"mean": 1, "recorded": 2}
    assert found.changed == 1


def test_a_laxer_one_costs_what_is_left():
    found = run(keep_above=0.45)
    assert (found.simulated.kept, found.simulated.cost_microusd) == (4, 40)
    assert found.simulated.unaudited == 4


def test_the_same_policy_changes_nothing():
    found = run(keep_above=0.7)
    assert (found.changed, found.happened) == (0, found.simulated)


def test_without_recorded_costs_the_worst_case_at_the_pools_price():
    found = run(TASKS[:3], keep_above=0.8, price=lambda chars: 7 * chars)
    assert (found.simulated.cost_microusd, found.prices) == (70, {"worst case": 1})
    found = run(TASKS[:3], keep_above=0.8)
    assert (found.simulated.cost_microusd, found.prices) == (None, {"unknown": 1})


@pytest.mark.parametrize(
    ("routing", "wanted"),
    [
        ({"keep_above": 0.8, "below": "defer"}, (2, 0, 3, 0)),
        ({"keep_above": 0.8, "below": "abstain"}, (2, 0, 0, 3)),
        ({"keep_above": 0.8, "has_pool": False}, (2, 0, 3, 0)),
        ({"risk": 0.05}, (0, 5, 0, 0)),
        ({"risk": 0.05, "certified": True, "threshold": 0.95}, (1, 4, 0, 0)),
        ({"risk": 0.05, "certified": True, "threshold": math.inf}, (0, 5, 0, 0)),
        ({"keep_above": 0.7, "value_usd": "0.001", "cloud_accuracy": 1.0}, (1, 4, 0, 0)),
    ],
)
def test_the_runtimes_own_decision(routing, wanted):
    found = run(**routing).simulated
    assert (found.kept, found.escalated, found.deferred, found.abstained) == wanted


def test_an_invalid_answer_and_none_at_all_are_never_kept():
    odd = dataclasses.replace(TASKS[0], valid=False)
    none = dataclasses.replace(TASKS[0], draft=None)
    assert run([odd, none], keep_above=0.0).simulated.kept == 0


def test_what_is_hoped_for():
    found = run(keep_above=0.8, cloud_accuracy=0.9).simulated
    assert found.right_by_confidence == pytest.approx((0.99 + 0.9) / 2)
    assert found.right_expected == pytest.approx((0.99 + 0.9 + 3 * 0.9) / 5)


def audited(count, propensity, right, *, first=0):
    rows = [task(f"t{first + at}", 0.9, propensity=propensity) for at in range(count)]
    return rows, {each.trace_id: (good, "audit") for each, good in zip(rows, right, strict=False)}


def test_audits_are_weighted_by_their_propensities():
    often, first = audited(100, 0.5, [True] * 40 + [False] * 10)
    seldom, second = audited(100, 0.1, [True] * 10, first=100)
    found = right_of([*often, *seldom], first | second)
    # 50 audits stand for 100 answers, 10 audits for 100.
    assert found.value == pytest.approx((2 * 40 + 10 * 10) / 200)
    assert found.low < found.value < found.high
    assert (found.tasks, found.audits) == (200, 60)


def test_of_equal_propensities_it_is_wilsons_interval():
    rows, labels = audited(1000, 0.1, [True] * 90 + [False] * 10)
    found = right_of(rows, labels)
    assert (found.value, found.audits) == (pytest.approx(0.9), 100)
    assert (found.low, found.high) == (
        pytest.approx(0.8256, abs=1e-4),
        pytest.approx(0.9448, abs=1e-4),
    )


def test_what_a_user_judged_counts_as_itself_and_no_more():
    rows, labels = audited(100, 0.1, [True] * 10)
    user = {f"t{at}": (False, "user") for at in range(50, 60)}
    found = right_of(rows, labels | user)
    assert found.value == pytest.approx(0.9)
    assert found.high == pytest.approx(0.9)


def test_users_alone_say_too_little():
    rows, _ = audited(100, 0.1, [])
    assert right_of(rows, {"t0": (False, "user")}) is None
    assert right_of([], {}) is None


def test_labels_show_up_beside_the_counts():
    traces = [dataclasses.replace(each, propensity=0.5) for each in TASKS[:3]] + TASKS[3:]
    found = run(traces, {"a": (True, "audit"), "b": (False, "user")}, keep_above=0.45)
    assert (found.simulated.judged, found.simulated.judged_wrong) == (1, 1)
    assert found.simulated.unaudited == 1
    assert found.simulated.right_by_labels.tasks == 3


def row(**changed):
    detail = {
        "signals": {"margin": 2},
        "digest": "d",
        "confidence": 0.8,
        "valid": True,
        "certified": False,
        "audit": {"chosen": False, "propensity": 0.02, "rung": 0},
    }
    return {
        "trace_id": "a",
        "route": "local",
        "model": "head",
        "cost_microusd": 0,
        "input_chars": 12,
        "detail": detail,
        **changed,
    }


def test_a_trace_is_read():
    found = seen(row())
    assert (found.action, found.propensity, found.valid) == (Action.KEEP, 0.02, True)
    assert found.draft.signals == {"margin": 2.0}
    assert found.draft.confidence == 0.8


def test_a_trace_without_a_draft_is_one_that_no_model_answered():
    found = seen(row(route="deferred", model=None, detail={}))
    assert (found.action, found.draft, found.valid) == (Action.DEFER, None, False)


def test_a_step_that_no_model_answered_on_is_one_as_well():
    found = seen(row(route="deferred", model=None, detail={"degrade": {"step": 1}}))
    assert (found.draft, found.valid) == (None, False)


def test_what_a_degrade_step_made_is_left_out_with_its_number():
    usual = row(task="t", reasons=["confident"])
    on_step = row(task="t", reasons=["confident", "degraded", "shorter_context"])
    found = _sorted([usual, on_step])
    assert (len(found.traces["t"]), found.next_tier) == (1, {"t": 1})


def test_a_kept_answer_without_signals_cannot_be_replayed():
    assert seen(row(detail={})) is None


def test_an_answer_from_the_cache_is_that_of_another_trace():
    assert seen(row(route="cache", detail={"from": "b", "policy": 0, "tier": "spam"})) is None
