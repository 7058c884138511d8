"""The breakers of a runtime: what a process takes over from the one before, and what it costs."""

from types import SimpleNamespace

import pytest

from edge.allowance import Allowance
from edge.degrade import FULL
from edge.errors import StoreError
from edge.quality import Quality, nearest_rank
from edge.store.states import States
from edge.task import TaskSpec

STEPS = [{"shorter_context": 32}, {"best_effort": True}]
SPEC = TaskSpec.model_validate(
    {
        "kind": "classify",
        "budget": {"p95_latency_slo_ms": 100},
        "degrade": {"steps": STEPS, "window": 10, "recover_s": 60},
    }
)
PLAIN = TaskSpec(kind="classify")


class World:
    """Quality over one state folder; time is set by hand."""

    def __init__(self, folder):
        self.mono, self.wall = 1_000.0, 5_000.0
        self.states = States.open(folder)
        self.quality = self.started()

    def started(self):
        specs = {"t": SPEC, "plain": PLAIN}
        return Quality(specs, self.states, clock=lambda: self.mono, wall=lambda: self.wall)

    def answer(self, latency_ms, *, failed=False, task="t"):
        stance = self.quality.begin(task)
        allowance = Allowance(SPEC.budget, started=0.0, clock=lambda: latency_ms / 1e3)
        call = SimpleNamespace(name=task, stance=stance, allowance=allowance)
        self.quality.ended(call, failed=failed)
        return stance


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.states.close()


def steps(world):
    return world.quality.report()["t"]["step"]


def test_a_late_answer_in_ten_is_one_too_many(world):
    assert world.answer(100.0) is FULL
    assert steps(world) == 0
    world.answer(100.1)
    assert world.quality.report() == {
        "t": {
            "step": 1,
            "of": 2,
            "in_force": ["degraded", "shorter_context"],
            "objective_ms": 100,
            "window": 10,
        }
    }
    assert world.answer(5.0).context == 32


def test_a_task_without_steps_is_never_degraded_and_writes_nothing(world):
    for _ in range(50):
        assert world.answer(1e6, failed=True, task="plain") is FULL
    assert world.states.read("degrade/plain") is None


def test_a_local_model_that_failed_counts_as_a_miss(world):
    stance = world.quality.begin("t")
    allowance = Allowance(SPEC.budget, started=0.0, clock=lambda: 0.0)
    allowance.failed = True
    world.quality.ended(SimpleNamespace(name="t", stance=stance, allowance=allowance), failed=False)
    assert steps(world) == 1


def test_the_next_process_goes_on_where_this_one_was(world):
    world.answer(200.0)
    world.mono, world.wall = 3.0, world.wall + 59.0  # the machine was started again
    world.quality = world.started()
    assert world.answer(5.0).step == 1
    world.mono, world.wall = 4.0, world.wall + 1.0
    world.quality = world.started()
    for _ in range(3):  # each in a process of its own
        assert world.answer(5.0).probe
        world.quality = world.started()
    assert steps(world) == 0


@pytest.mark.parametrize(
    "state",
    [{}, {"step": -1}, {"step": "2"}, {"step": 1, "at": "now", "strikes": 0, "passed": 0}],
)
def test_a_damaged_state_starts_at_the_top(world, state):
    world.states.change("degrade/t", lambda _: state)
    world.quality = world.started()
    assert steps(world) == 0


def test_a_clock_that_was_set_back_keeps_the_step(world):
    world.answer(200.0)
    world.wall -= 4_000.0
    world.quality = world.started()
    assert (steps(world), world.answer(5.0).probe) == (1, False)


def test_a_folder_that_cannot_be_written_stops_no_breaker(world, monkeypatch):
    def full(*_):
        raise StoreError("The disk is full.")

    monkeypatch.setattr(world.states, "change", full)
    world.answer(200.0)
    assert steps(world) == 1


@pytest.mark.parametrize(
    ("values", "p95"),
    [([], None), ([3.0], 3.0), ([float(n) for n in range(20, 0, -1)], 19.0), ([1.0] * 19, 1.0)],
)
def test_the_95th_percentile_is_the_nearest_rank(values, p95):
    assert nearest_rank(values) == p95
