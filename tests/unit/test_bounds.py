"""The bounds of one action, through the runtime: a fake decoder, and a pool in the same process.

Model calls, requests and tokens are counted where they happen, by who is asked.
"""

import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.backends.fake import FakeDecoder, FakeSequence
from edge.cloud.pool import Pool
from edge.errors import GenerationError, InputError
from edge.overlay import lay, read_policy
from edge.runtime import Runtime
from edge.task import Pack
from edge.types import Reason, Route

FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder in memory
TEXT = "four words are here"
TASK = {
    "kind": "generate",
    "model": "actions-q8_0",
    "prompt": "plain",
    "privacy": {"allow_cloud": "raw"},
    "routing": {"keep_uncalibrated": False},
}
POOL = {
    "base_url": "http://pool.example/v1",
    "model": "large",
    "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1},
    "breaker_failures": 1000,
}


class Counting(FakeDecoder):
    """Counts generations and their tokens."""

    def __init__(self, reply, **options):
        super().__init__(reply, name="actions-q8_0", **options)
        self.calls = self.tokens_in = self.tokens_out = 0

    def sequence(self):
        self.calls += 1
        self.open_sequences += 1
        return CountingSequence(self)


class CountingSequence(FakeSequence):
    def forward(self, tokens):
        decoder = self._decoder
        if self._length == 0:
            decoder.tokens_in += len(tokens)
        row = super().forward(tokens)
        decoder.tokens_out += 1
        return row


class World:
    """A task ``t`` with a next tier ``u``; ``script`` is what the pool does, the last for good."""

    def __init__(self, folder, decoder, script=(), **task):
        self.decoder, self.script, self.sent = decoder, list(script), []
        routing = {**TASK["routing"], **task.pop("routing", {})}
        self.pack = Pack.model_validate(
            {
                "name": "p",
                "version": 1,
                "budget": {"cap_usd": 1, "period": "total"},
                "pools": {"default": {**POOL, "retries": task.pop("retries", 1)}},
                "prompts": {"plain": {"version": 1, "template": "{text}"}},
                "tasks": {"t": {**TASK, **task, "routing": routing}, "u": TASK},
            }
        )
        self.runtime = Runtime(self.pack, folder, offline=False, open_pool=self.open_pool)
        self.lend(self.runtime)

    def lend(self, runtime):
        runtime.models.loader = SimpleNamespace(
            of_kind=lambda *_: None,
            decoder=lambda _: self.decoder,
            estimate=lambda _: 0,
            store=runtime.models.loader.store,
        )

    def open_pool(self, name):
        return Pool(
            name,
            self.pack.pools[name],
            env={},
            transport=httpx.MockTransport(self.handle),
            sleep=lambda _: None,
        )

    def handle(self, request):
        self.sent.append(json.loads(request.content))
        step = self.script.pop(0) if len(self.script) > 1 else (self.script or ["yes"])[0]
        if step == "unreachable":
            raise httpx.ConnectError("")
        if isinstance(step, int):
            return httpx.Response(step, stream=httpx.ByteStream(b"{}"))
        content = {
            "choices": [{"message": {"content": step}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2},
        }
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(content).encode()))

    @property
    def calls(self):
        return self.decoder.calls + len(self.sent)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.runtime.close()


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir=FAST) as made:
        yield Path(made)


def budget(**keys):
    return {"budget": keys}


# name -> (task, does the local model fail, script, calls of model and pool, last reason, route)
CALLS = {
    "one call is the local one": (
        budget(max_model_calls=1), False, [], (1, 0), Reason.CALL_LIMIT, Route.DEFERRED,
    ),
    "a failure is a call too": (
        budget(max_model_calls=1), True, [], (1, 0), Reason.CALL_LIMIT, Route.DEFERRED,
    ),
    "two are enough for the pool": (
        budget(max_model_calls=2), False, [], (1, 1), Reason.ESCALATED, Route.CLOUD,
    ),
    "a retry is a call": (
        budget(max_model_calls=2), False, ["unreachable", "yes"], (1, 1), Reason.QUEUED,
        Route.DEFERRED,
    ),
    "with three there is room for it": (
        budget(max_model_calls=3), False, ["unreachable", "yes"], (1, 2), Reason.ESCALATED,
        Route.CLOUD,
    ),
    "the next tier takes the place of the pool": (
        {**budget(max_model_calls=2), "routing": {"then": "u"}}, False, [], (2, 0),
        Reason.CALL_LIMIT, Route.DEFERRED,
    ),
    "tokens that are used up leave none to the pool": (
        budget(max_model_calls=5, max_total_output_tokens=6), False, [], (1, 0),
        Reason.TOKEN_LIMIT, Route.DEFERRED,
    ),
    "a question that does not fit is not sent": (
        budget(max_model_calls=5, max_total_input_tokens=60), False, [], (1, 0),
        Reason.TOKEN_LIMIT, Route.DEFERRED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_what_counts_as_a_call(folder, name):
    task, fails, script, calls, reason, route = CALLS[name]
    decoder = Counting("hello", fail_after=22 if fails else None)
    with World(folder, decoder, script, **task) as world:
        result = world.runtime.run("t", TEXT)
        assert (decoder.calls, len(world.sent)) == calls
        told = [each for each in result.reasons if each is not Reason.CALL_LIMIT or calls[1] == 0]
        assert (told[-1], result.route) == (reason, route)


def test_a_generation_and_the_pool_share_the_output_tokens(folder):
    shared = budget(max_output_tokens=40, max_total_output_tokens=30, max_model_calls=2)
    with World(folder, decoder := Counting("hello"), **shared) as world:
        assert world.runtime.run("t", TEXT).route is Route.CLOUD
        assert decoder.tokens_out == 6  # the end counts
        assert world.sent[0]["max_tokens"] == 24


def test_a_generation_is_cut_to_what_is_left(folder):
    shared = budget(max_output_tokens=40, max_total_output_tokens=4)
    with World(folder, decoder := Counting("hello"), **shared) as world:
        result = world.runtime.run("t", TEXT)
        assert decoder.tokens_out == 4
        assert result.reasons[0] is Reason.INVALID_OUTPUT


def test_a_prompt_that_is_too_long_is_named_before_anything_runs(folder):
    with World(folder, decoder := Counting("hello"), **budget(max_total_input_tokens=9)) as world:
        with pytest.raises(InputError, match="has 20 tokens; the limit is 9"):
            world.runtime.run("t", TEXT)
        assert (decoder.tokens_in, world.sent) == (0, [])


def test_the_next_tier_is_left_out_where_its_prompt_does_not_fit(folder):
    shared = {**budget(max_total_input_tokens=30, max_model_calls=5), "routing": {"then": "u"}}
    with World(folder, decoder := Counting("hello"), **shared) as world:
        result = world.runtime.run("t", TEXT)
        assert decoder.calls == 1
        assert Reason.TOKEN_LIMIT in result.reasons


def slow(_):
    time.sleep(0.3)
    return "x" * 60


@pytest.mark.parametrize("streams", [False, True])
def test_a_generation_ends_at_the_deadline_and_says_so(folder, streams):
    with World(folder, decoder := Counting(slow), **budget(deadline_ms=200)) as world:
        if streams:
            *_, last = world.runtime.stream("t", TEXT)
            result = last.result
        else:
            result = world.runtime.run("t", TEXT)
        assert decoder.tokens_out <= 1  # 0 on a machine too busy to begin in time
        assert world.sent == []
        assert Reason.DEADLINE in result.reasons[:2]
        assert (result.route, result.value) == (Route.DEFERRED, None)
        assert result.provisional  # it may still be answered from the queue


def test_a_drained_task_has_an_allowance_of_its_own(folder):
    with World(folder, Counting("hello"), ["unreachable", "unreachable", "yes"]) as world:
        waits = world.runtime.run("t", TEXT)
        assert len(world.sent) == 1
        world.runtime.drain([waits.task_id])
        assert len(world.sent) == 3  # the queue's attempt and its retry


limits = st.none() | st.integers(1, 500)
steps = st.sampled_from(["unreachable", 429, 500, 400, "yes", ""])


@settings(deadline=None, max_examples=60)
@given(
    calls=st.integers(1, 5),
    tokens_in=limits,
    tokens_out=limits,
    script=st.lists(steps, min_size=1, max_size=5),
    then=st.booleans(),
    reply=st.sampled_from(["", "hello", "x" * 90]),
    fails=st.sampled_from([None, 20, 23]),
)
def test_whatever_happens_no_action_exceeds_its_bounds(
    calls, tokens_in, tokens_out, script, then, reply, fails
):
    bounds = {
        "max_model_calls": calls,
        "max_total_input_tokens": tokens_in,
        "max_total_output_tokens": tokens_out,
    }
    decoder = Counting(reply, fail_after=fails)
    routing = {"then": "u"} if then else {}
    with (
        tempfile.TemporaryDirectory(dir=FAST) as made,
        World(Path(made), decoder, script, budget=bounds, routing=routing) as world,
    ):
        try:
            world.runtime.run("t", TEXT)
        except InputError:
            assert world.calls == 0
        assert world.calls <= calls
        # A second attempt follows only on one that was not billed, and takes no tokens more.
        sent = {json.dumps(body): body["max_tokens"] for body in world.sent}
        if tokens_out is not None:
            assert decoder.tokens_out + sum(sent.values()) <= tokens_out
        if tokens_in is not None:
            size = sum(len(m["content"]) for b in world.sent[:1] for m in b["messages"])
            assert decoder.tokens_in + size <= tokens_in


def degrading(folder, decoder, *steps_down, **task):
    degrade = {"steps": list(steps_down), "window": 1, "recover_s": 3600}
    return World(folder, decoder, degrade=degrade, **task)


def test_a_model_that_fails_degrades_in_the_declared_order_and_says_so(folder):
    decoder = Counting("hello", fail_after=0)
    steps_down = [{"shorter_context": 10}, {"best_effort": True}]
    with degrading(folder, decoder, *steps_down, **budget(max_input_tokens=64)) as world:
        told = [world.runtime.run("t", TEXT) for _ in range(3)]
        decoder.fail_after = None
        fine = world.runtime.run("t", TEXT)
        details = [world.runtime.traces.get(each.trace_id)["detail"] for each in (*told, fine)]
    assert [each.reasons[-2:] for each in told[1:]] == [
        (Reason.DEGRADED, Reason.SHORTER_CONTEXT),
        (Reason.SHORTER_CONTEXT, Reason.BEST_EFFORT),
    ]
    assert Reason.DEGRADED not in told[0].reasons
    assert [each.route for each in told] == [Route.CLOUD, Route.CLOUD, Route.DEFERRED]
    assert (fine.value, fine.route, fine.provisional) == ("hello", Route.DEFERRED, True)
    assert Reason.INPUT_TRUNCATED in fine.reasons
    assert [each.get("degrade", {}).get("step") for each in details] == [None, 1, 2, 2]
    assert len(world.sent) == 2


def test_a_shorter_context_is_cut_between_words(folder):
    asked = []

    def reply(prompt):
        asked.append(prompt)
        if len(asked) == 1:
            raise GenerationError("It failed.")
        return "hello"

    steps_down = [{"shorter_context": 12}]
    with degrading(folder, Counting(reply), *steps_down) as world:
        world.runtime.run("t", TEXT)
        result = world.runtime.run("t", TEXT)
        whole = world.runtime.run("t", "tiny")
    assert [each.strip() for each in asked] == [TEXT, "four words", "tiny"]
    assert Reason.INPUT_TRUNCATED in result.reasons
    assert Reason.INPUT_TRUNCATED not in whole.reasons
    assert Reason.SHORTER_CONTEXT in whole.reasons


def test_best_effort_gives_what_is_unsure_without_asking_anybody(folder):
    decoder = Counting("hello", fail_after=0)
    never = {"privacy": {"allow_cloud": "never"}}
    with degrading(folder, decoder, {"best_effort": True}, **never) as world:
        world.runtime.run("t", TEXT)
        decoder.fail_after = None
        result = world.runtime.run("t", TEXT)
    assert (result.value, result.provisional, result.task_id) == ("hello", True, None)
    assert result.reasons[-2:] == (Reason.DEGRADED, Reason.BEST_EFFORT)
    assert world.sent == []


def test_an_old_answer_is_given_again_on_the_step_that_says_so(folder):
    decoder = Counting("hello")
    keeps = {
        "caching": {"exact_cache": {"enabled": True, "ttl_seconds": 1}},
        "routing": {"keep_uncalibrated": True},
    }
    with degrading(folder, decoder, {"cached": 3600}, **keeps) as world:
        assert world.runtime.run("t", TEXT).route is Route.LOCAL
        lookup = world.runtime._activation.standing.lookup
        lookup._clock = lambda: time.time() + 60.0  # the kept answer is past its time
        decoder.fail_after = 0
        world.runtime.run("t", "another text")
        stale = world.runtime.run("t", TEXT)
        assert (stale.route, stale.value) == (Route.CACHE, "hello")
        assert stale.reasons == (Reason.CACHED, Reason.STALE, Reason.DEGRADED)
        decoder.fail_after = None
        fresh = world.runtime.run("t", "a third text")
        assert fresh.reasons == (Reason.UNCALIBRATED, Reason.DEGRADED)
        again = world.runtime.run("t", "a third text")  # what a step made is not kept
        assert again.route is Route.LOCAL


def test_the_stance_in_a_trace_gives_the_same_decision_again(folder):
    from edge.degrade import stances
    from edge.route import Circumstances, best_effort, decide, plan
    from edge.types import Draft, Verdict

    decoder = Counting("hello", fail_after=0)
    with degrading(folder, decoder, {"best_effort": True}) as world:
        world.runtime.run("t", TEXT)
        decoder.fail_after = None
        result = world.runtime.run("t", TEXT)
        detail = world.runtime.traces.get(result.trace_id)["detail"]
    spec = world.pack.tasks["t"]
    stance = stances(spec.degrade.steps)[detail["degrade"]["step"]]
    assert stance.as_detail() == detail["degrade"]
    draft = Draft(None, "m", detail["digest"], "cpu", signals=detail["signals"])
    verdict = Verdict(valid=detail["valid"], confidence=detail["confidence"])
    the_plan = plan(spec, Circumstances(offline=False, has_pool=True))
    again = best_effort(decide(spec, the_plan, draft, verdict), the_plan)
    assert (*again.reasons, Reason.QUEUED, *stance.reasons) == result.reasons


def test_a_policy_declares_the_steps(folder):
    with World(folder, Counting("hello")) as world:
        policy = "tasks: {t: {degrade: {steps: [{shorter_context: 8}, {best_effort: true}]}}}"
        laid = lay(world.pack, read_policy(policy))
    assert [step.shorter_context for step in laid.tasks["t"].degrade.steps] == [8, None]
