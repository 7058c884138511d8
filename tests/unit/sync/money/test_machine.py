"""The rules of money under every fault, in any order; invariants are checked after each step."""

from random import Random

from budget_bench import FAULTS, LEAST, USUAL, rest, small_world
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

SEEDS = st.integers(0, 2**32)


def drawn(seed):
    return Random(seed)  # noqa: S311 - a simulation


class Money(RuleBasedStateMachine):
    """Three devices, two gateways, one hub; what happens is drawn, and so is what it costs."""

    @initialize(seed=SEEDS)
    def begin(self, seed):
        draw = drawn(seed)
        self.world = small_world(lambda most: draw.choice((most, most // 3, 0, 2 * most)))
        self.epoch = 0

    @rule(move=st.sampled_from(USUAL), seed=SEEDS)
    def usual(self, move, seed):
        move(self.world, drawn(seed))

    @rule(move=st.sampled_from(USUAL), seed=SEEDS)
    def usual_too(self, move, seed):
        move(self.world, drawn(seed))

    @rule(move=st.sampled_from(FAULTS), seed=SEEDS)
    def fault(self, move, seed):
        move(self.world, drawn(seed))

    @invariant()
    def holds(self):
        assert list(self.world.problems()) == []
        assert self.world.hub.epoch >= self.epoch
        self.epoch = self.world.hub.epoch

    def teardown(self):
        assert rest(self.world, demand=5 * LEAST) == []


Money.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestMoney = Money.TestCase
