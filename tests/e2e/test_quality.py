"""A task that cannot meet its objective: down in order, answers all the way, and up again.

The models are the shipped ones, and every step is seen from outside: results, traces, the doctor.
"""

import json
import subprocess
import sys
import time

import pytest

import edge
from edge.errors import InputError
from edge.overlay import compile_policy, read_policy
from edge.types import Reason, Route

TEXT = "my card was swallowed by the machine and i am standing in front of it in the rain"
LADDER = ["degraded", "smaller_model", "shorter_context", "best_effort"]


def policy(objective_ms, *, recover_s=3600):
    return f"""
tasks:
  support_intent:
    budget: {{p95_latency_slo_ms: {objective_ms}}}
    caching: {{exact_cache: {{enabled: true, ttl_seconds: 60}}}}
    degrade:
      window: 1
      recover_s: {recover_s}
      probes: 2
      steps:
        - smaller_model: home_intent
        - shorter_context: 8
        - cached: 3600
        - best_effort: true
"""


def activate(runtime, revision, *args, **options):
    document = read_policy(policy(*args, **options))
    runtime.activate(compile_policy(document, revision=revision, created_at=0), check=False)


def doctor(state):
    told = f"import sys; sys.argv = ['edge', 'doctor', '--json', '--state', {str(state)!r}]"
    line = [sys.executable, "-c", f"{told}; from edge.cli.main import main; main()"]
    found = subprocess.run(line, capture_output=True, text=True, check=False)
    return json.loads(found.stdout)


def test_a_task_goes_down_its_steps_with_answers_and_up_again(tmp_path):
    with edge.open(state=tmp_path, offline=True, threads=1) as runtime:
        activate(runtime, 1, 1)  # no encoder is done within a millisecond
        down = [runtime.run("support_intent", f"{TEXT} {number}") for number in range(6)]
        assert [[r.value for r in each.reasons if r in LADDER] for each in down] == [
            [], LADDER[:2], LADDER[:3], LADDER[:3], LADDER, LADDER,
        ]  # fmt: skip
        assert all(result.value is not None for result in down)
        models = [result.model for result in down]
        assert models == ["banking77-head", *["hwu64-head"] * 5]
        cut = [Reason.INPUT_TRUNCATED in result.reasons for result in down]
        assert cut == [False, False, True, True, True, True]
        assert [result.tokens_in for result in down[2:]] == [8] * 4
        for result in down[4:]:
            assert result.provisional is (result.route is Route.DEFERRED)
        steps = [runtime.traces.get(each.trace_id)["detail"].get("degrade") for each in down]
        assert [each and each["step"] for each in steps] == [None, 1, 2, 3, 4, 4]

        told = doctor(tmp_path)
        assert told["quality"]["support_intent"]["step"] == 4
        assert told["quality"]["support_intent"]["p95_ms"] > 1
        assert any("support_intent is on step 4 of 4" in note for note in told["notes"])

        activate(runtime, 2, 60_000, recover_s=0.05)
        climbed = []
        until = time.monotonic() + 60
        while runtime.quality.report()["support_intent"]["step"] and time.monotonic() < until:
            result = runtime.run("support_intent", f"{TEXT} again {len(climbed)}")
            climbed.append(runtime.traces.get(result.trace_id)["detail"]["degrade"])
            time.sleep(0.02)
        probes = [each["step"] for each in climbed if each["probe"]]
        assert probes == [3, 3, 2, 2, 1, 1, 0, 0]
        well = runtime.run("support_intent", f"{TEXT} at last")
    assert Reason.DEGRADED not in well.reasons
    assert well.model == "banking77-head"


def test_the_same_text_is_answered_from_the_cache_on_that_step(tmp_path):
    with edge.open(state=tmp_path, offline=True, threads=1) as runtime:
        activate(runtime, 1, 60_000)
        sure = "my card was swallowed by the machine"
        assert runtime.run("support_intent", sure).route is Route.LOCAL
        runtime.states.change(
            "degrade/support_intent",
            lambda _: {"step": 3, "at": time.time(), "strikes": 0, "passed": 0},
        )
    with edge.open(state=tmp_path, offline=True, threads=1) as runtime:
        result = runtime.run("support_intent", sure)
    assert (result.route, result.value) == (Route.CACHE, "card_swallowed")
    assert result.reasons == (Reason.CACHED, Reason.DEGRADED)


def test_a_stream_that_is_refused_is_no_probe(tmp_path):
    with edge.open(state=tmp_path, offline=True, threads=1) as runtime:
        activate(runtime, 1, 60_000, recover_s=0.05)
        runtime.states.change(
            "degrade/support_intent", lambda _: {"step": 1, "at": 0.0, "strikes": 0, "passed": 0}
        )
    with edge.open(state=tmp_path, offline=True, threads=1) as runtime:
        with pytest.raises(InputError, match="only generate can be streamed"):
            next(runtime.stream("support_intent", TEXT))
        result = runtime.run("support_intent", TEXT)
        assert runtime.traces.get(result.trace_id)["detail"]["degrade"]["probe"]


@pytest.mark.parametrize("task", ["action", "draft"])
def test_a_decoder_reads_less_on_a_step_and_still_answers(tmp_path, task):
    steps = "{degrade: {window: 1, recover_s: 3600, steps: [{shorter_context: 24}]}}"
    (tmp_path / "own.yaml").write_text(
        f"task_budgets: {{p95_latency_slo_ms: 1}}\ntasks: {{{task}: {steps}}}\n", "utf-8"
    )
    own = tmp_path / "own.yaml"
    with edge.open(state=tmp_path / "s", policy=own, offline=True, threads=1) as runtime:
        text = "play some jazz by miles davis and then a lot more of that kind of music for me"
        full, short = (runtime.run(task, text) for _ in range(2))
    assert full.tokens_in > 24 >= short.tokens_in
    assert short.reasons[-2:] == (Reason.DEGRADED, Reason.SHORTER_CONTEXT)
    assert Reason.INPUT_TRUNCATED in short.reasons
    assert short.model == "actions-q8_0"


def test_a_generation_of_a_real_decoder_ends_at_the_deadline(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("task_budgets: {action: {deadline_ms: 1}}\n", "utf-8")
    with edge.open(state=tmp_path / "s", policy=own, offline=True, threads=1) as runtime:
        result = runtime.run("action", "book a table for four at The Cave in Boston")
    assert Reason.DEADLINE in result.reasons
    assert (result.route, result.value) == (Route.DEFERRED, None)


def test_the_tool_that_an_answer_names_is_called_within_its_milliseconds(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("task_budgets: {action: {max_tool_ms: 5000}}\n", "utf-8")
    with edge.open(state=tmp_path / "s", policy=own, offline=True, threads=1) as runtime:
        result = runtime.run("action", "book a table for four at The Cave in Boston")
        (outcome,) = runtime.call_tool(result, {"BookRestaurant": lambda told: told["city"]})
    assert (outcome.tool, outcome.value, outcome.reason) == ("BookRestaurant", "Boston", None)
    assert 0 <= outcome.took_ms <= 5000


def test_nothing_takes_the_place_of_a_step_whose_model_is_stopped(tmp_path):
    with edge.open(state=tmp_path, offline=True, threads=1) as runtime:
        activate(runtime, 1, 1)
        runtime.run("support_intent", TEXT)
        runtime.activate(None, stopped={"models": ["hwu64-head"]})
        result = runtime.run("support_intent", f"{TEXT} again")
    assert (result.value, result.model, result.route) == (None, None, Route.DEFERRED)
    assert result.reasons[0] is Reason.STOPPED
    assert result.reasons[-2:] == (Reason.DEGRADED, Reason.SMALLER_MODEL)
