"""The allowance of one action as tables, and that no order of events exceeds it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.allowance import Allowance
from edge.policy.sections import TaskBudget
from edge.types import Reason, Usage


class Clock:
    def __init__(self):
        self.now = 10.0

    def __call__(self):
        return self.now


def allowance(clock=None, **budget):
    return Allowance(TaskBudget(**budget), started=10.0, clock=clock or Clock())


@pytest.mark.parametrize(
    ("budget", "calls", "used", "passed_s", "reason"),
    [
        ({}, 0, (0, 0), 0, None),
        ({}, 1, (0, 0), 1e6, None),
        ({}, 2, (0, 0), 0, Reason.CALL_LIMIT),
        ({"max_model_calls": 1}, 1, (0, 0), 0, Reason.CALL_LIMIT),
        ({"deadline_ms": 50}, 0, (0, 0), 0.049, None),
        ({"deadline_ms": 50}, 0, (0, 0), 0.05, Reason.DEADLINE),
        ({"max_total_input_tokens": 9}, 1, (8, 99), 0, None),
        ({"max_total_input_tokens": 9}, 1, (9, 0), 0, Reason.TOKEN_LIMIT),
        ({"max_total_output_tokens": 9}, 1, (99, 8), 0, None),
        ({"max_total_output_tokens": 9}, 1, (0, 9), 0, Reason.TOKEN_LIMIT),
        ({"deadline_ms": 50, "max_model_calls": 1}, 1, (0, 0), 9, Reason.CALL_LIMIT),
    ],
)
def test_what_may_begin(budget, calls, used, passed_s, reason):
    clock = Clock()
    made = allowance(clock, **budget)
    for _ in range(calls):
        assert made.take_call()
    made.used(Usage(*used))
    clock.now += passed_s
    assert made.denies() is reason
    assert made.take_call() is (reason is None)
    assert made.refused is reason
    assert made.calls == calls + (reason is None)


def test_a_question_must_fit_what_is_left():
    made = allowance(max_total_input_tokens=100)
    made.used(Usage(60, 0))
    assert made.denies(tokens_in=40) is None
    assert made.denies(tokens_in=41) is Reason.TOKEN_LIMIT


@pytest.mark.parametrize(
    ("budget", "used", "most"),
    [
        ({}, (500, 500), (256, 128)),
        ({"max_total_input_tokens": 300}, (10, 0), (256, 128)),
        ({"max_total_input_tokens": 300}, (100, 0), (200, 128)),
        ({"max_total_output_tokens": 100}, (0, 30), (256, 70)),
    ],
)
def test_a_call_is_cut_to_what_is_left(budget, used, most):
    made, own = allowance(**budget), TaskBudget(**budget)
    made.used(Usage(*used))
    within = made.within(own)
    assert (within.max_input_tokens, within.max_output_tokens) == most
    assert (within is own) is (most == (256, 128))  # nothing is built where nothing is tighter


def test_what_was_not_used_comes_back_and_a_larger_report_takes_nothing_more():
    made = allowance()
    made.used(Usage(100, 50))
    made.settled(100, 50, Usage(30, 60))
    assert (made.tokens_in, made.tokens_out) == (30, 50)


def test_a_canceller_is_there_only_with_a_deadline():
    clock = Clock()
    assert allowance(clock).canceller is None
    late = allowance(clock, deadline_ms=1000).canceller
    assert not late()
    clock.now += 1.0
    assert late()


@given(
    st.integers(1, 4),
    st.none() | st.integers(1, 400),
    st.none() | st.integers(1, 200),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.booleans()), max_size=12),
)
def test_no_order_of_calls_exceeds_the_budget(calls, tokens_in, tokens_out, wanted):
    budget = TaskBudget(
        max_model_calls=calls,
        max_total_input_tokens=tokens_in,
        max_total_output_tokens=tokens_out,
    )
    made = Allowance(budget, started=0.0, clock=lambda: 0.0)
    for asks_in, asks_out, fails in wanted:
        if not made.take_call():
            continue
        most = made.within(budget)
        worst = Usage(most.max_input_tokens, most.max_output_tokens)
        real = Usage(min(asks_in, worst.tokens_in), min(asks_out, worst.tokens_out))
        made.used(worst if fails else real)
    assert made.calls <= calls
    assert tokens_in is None or made.tokens_in <= tokens_in
    assert tokens_out is None or made.tokens_out <= tokens_out
