"""The breaker of a task under a clock that is passed in: down in order, up by probes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge.degrade import FULL, Ladder, Rung, stances
from edge.errors import ConfigError
from edge.overlay import lay, read_policy
from edge.policy.sections import Degrade, DegradeStep
from edge.task import Pack

STEPS = [{"smaller_model": "s"}, {"shorter_context": 32}, {"cached": 600}, {"best_effort": True}]
SPEC = Degrade.model_validate(
    {"steps": STEPS, "window": 20, "window_s": 100, "recover_s": 10, "probes": 2}
)
FAST, SLOW = 5.0, 500.0


def ladder(rung=None, **changes):
    return Ladder(SPEC.model_copy(update=changes), 100.0, rung=rung)


def answer(made, latency_ms, now, *, failed=False):
    stance = made.begin(now)
    made.end(stance, latency_ms, failed=failed, now=now)
    return stance


def test_steps_add_up_in_the_order_that_is_declared():
    full, *down = stances(SPEC.steps)
    assert full is FULL
    assert [each.smaller for each in down] == ["s"] * 4
    assert [each.context for each in down] == [None, 32, 32, 32]
    assert [each.stale_s for each in down] == [None, None, 600, 600]
    assert [each.best_effort for each in down] == [False, False, False, True]
    assert [" ".join(each.reasons) for each in down] == [
        "degraded smaller_model",
        "degraded smaller_model shorter_context",
        "degraded smaller_model shorter_context",
        "degraded smaller_model shorter_context best_effort",
    ]


@pytest.mark.parametrize(
    ("latencies", "failed", "step"),
    [
        ([FAST] * 100, False, 0),
        ([100.0] * 100, False, 0),  # the objective itself is met
        ([SLOW], False, 0),  # 1 in 20 may be late
        ([SLOW, *[FAST] * 18, SLOW], False, 1),
        ([SLOW, *[FAST] * 19, SLOW], False, 0),  # the first has left the window
        ([FAST] * 2, True, 1),
        ([SLOW] * 4, False, 2),
        ([SLOW] * 100, False, 4),  # never below the last one
    ],
)
def test_it_steps_down_once_the_95th_percentile_misses_the_objective(latencies, failed, step):
    made = ladder()
    for latency in latencies:
        answer(made, latency, 1.0, failed=failed)
    assert made.rung.step == step


def test_what_is_too_old_is_not_looked_at():
    made = ladder()
    answer(made, SLOW, 0.0)
    answer(made, SLOW, 101.0)
    assert made.rung.step == 0


def test_failures_alone_count_where_there_is_no_objective():
    made = Ladder(SPEC, None)
    for _ in range(2):
        answer(made, SLOW, 1.0)
    assert made.rung.step == 0
    for _ in range(2):
        answer(made, FAST, 1.0, failed=True)
    assert made.rung.step == 1


def test_after_a_healthy_period_probes_lead_up_one_step_at_a_time():
    made = ladder(Rung(2, since=0.0))
    assert answer(made, FAST, 9.9).step == 2
    first, second = answer(made, FAST, 10.0), answer(made, FAST, 10.0)
    assert [(each.step, each.probe) for each in (first, second)] == [(1, True)] * 2
    assert made.rung == Rung(1, since=10.0)
    assert answer(made, FAST, 19.9) == stances(SPEC.steps)[1]
    answer(made, FAST, 20.0)
    answer(made, FAST, 20.0)
    assert made.rung.step == 0
    assert made.begin(20.0) is FULL


def test_one_call_probes_at_a_time_and_one_that_says_nothing_makes_room():
    made = ladder(Rung(1, since=0.0))
    probe = made.begin(10.0)
    assert probe.probe
    assert not made.begin(10.0).probe
    made.cancel(probe)
    again = made.begin(10.0)
    assert again.probe
    assert not made.begin(109.0).probe
    assert made.begin(110.0).probe  # the other one never ended


def test_a_probe_that_misses_doubles_the_wait():
    made = ladder(Rung(1, since=0.0))
    answer(made, SLOW, 10.0)
    assert made.rung == Rung(1, since=10.0, strikes=1)
    assert not answer(made, FAST, 29.9).probe
    answer(made, SLOW, 30.0)
    assert not answer(made, FAST, 69.9).probe
    assert answer(made, FAST, 70.0).probe
    assert answer(made, FAST, 70.0).probe
    assert made.rung == Rung(0, since=70.0)


def test_at_the_last_step_misses_put_the_probe_off():
    made = ladder(Rung(4, since=0.0))
    for _ in range(2):
        answer(made, SLOW, 9.0)
    assert made.rung == Rung(4, since=9.0)
    assert not made.begin(18.9).probe
    assert made.begin(19.0).probe


def test_misses_on_the_last_step_keep_how_often_the_wait_was_doubled():
    made = ladder(Rung(4, since=0.0, strikes=2))
    for _ in range(2):
        answer(made, SLOW, 9.0)
    assert made.rung == Rung(4, since=9.0, strikes=2)
    assert not made.begin(48.9).probe
    assert made.begin(49.0).probe


def test_a_call_that_began_on_another_step_says_nothing_of_this_one():
    made = ladder()
    old = [made.begin(0.0) for _ in range(9)]
    for stance in old:
        made.end(stance, SLOW, failed=False, now=1.0)
    assert made.rung.step == 1


def test_fewer_steps_than_were_in_force_are_all_in_force():
    assert ladder(Rung(9)).rung.step == 4


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.floats(0, 200), st.booleans(), st.booleans()), max_size=120
    )
)
def test_it_moves_by_one_step_and_the_same_events_give_the_same_steps(events):
    def replayed():
        made, now, seen = ladder(), 0.0, []
        for passed, latency, failed, breaks_off in events:
            now += passed
            stance, before = made.begin(now), made.rung.step
            assert abs(stance.step - before) == stance.probe
            if breaks_off:
                made.cancel(stance)
            else:
                moved = made.end(stance, latency, failed=failed, now=now)
                assert moved or made.rung.step == before
            assert 0 <= made.rung.step <= len(STEPS)
            assert abs(made.rung.step - before) <= 1
            seen.append((stance, made.rung))
        return seen

    assert replayed() == replayed()


def test_a_step_is_one_thing():
    with pytest.raises(ValidationError, match="exactly one of smaller_model, shorter_context"):
        DegradeStep.model_validate({"cached": 1, "best_effort": True})
    with pytest.raises(ValidationError, match="exactly one"):
        DegradeStep.model_validate({})


HEAD = {"kind": "classify", "model": "h"}
CASES = {
    "unknown task": ({}, [{"smaller_model": "gone"}], "degrades to 'gone', which is no task"),
    "itself": ({}, [{"smaller_model": "t"}], "with another local model"),
    "the same again": (
        {},
        [{"smaller_model": "small"}, {"smaller_model": "small"}],
        "degrades to 'small', which is no task",
    ),
    "another kind": ({}, [{"smaller_model": "vectors"}], "no task of kind classify"),
    "vectors": ({"kind": "embed"}, [{"smaller_model": "vectors"}], "cannot be compared"),
    "longer": ({}, [{"shorter_context": 256}], "not below the 256 tokens"),
    "longer again": ({}, [{"shorter_context": 9}, {"shorter_context": 9}], "step 2: shorter"),
    "no cache": ({}, [{"cached": 5}], "needs caching.exact_cache.enabled"),
    "no older": (
        {"caching": {"exact_cache": {"enabled": True, "ttl_seconds": 60}}},
        [{"cached": 90}, {"cached": 90}],
        "step 2: cached is 90, which is not above the 90 seconds",
    ),
    "abstains": ({"routing": {"below": "abstain"}}, [{"best_effort": True}], "keeps back"),
    "withholds": (
        {"routing": {"risk": 0.1, "uncertified": "withhold"}},
        [{"best_effort": True}],
        "keeps back",
    ),
    "not last": ({}, [{"best_effort": True}, {"shorter_context": 9}], "must be the last"),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_that_cannot_work_are_refused_when_the_policy_is_laid(name):
    changes, steps, told = CASES[name]
    tasks = {
        "t": {**HEAD, **changes},
        "small": {**HEAD, "model": "s"},
        "vectors": {"kind": "embed", "model": "e"},
    }
    pack = Pack.model_validate({"name": "p", "version": 1, "tasks": tasks})
    policy = read_policy(f"tasks: {{t: {{degrade: {{steps: {steps}}}}}}}".replace("True", "true"))
    with pytest.raises(ConfigError, match=told):
        lay(pack, policy)
