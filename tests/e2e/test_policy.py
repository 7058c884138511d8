"""Certificates, watches, conditions, tiers and the price of the budget, through the runtime.

The local model is the shipped head; the pool answers in the same process.
"""

import json

import httpx
import numpy as np
import pytest

import edge
from edge.cloud.pool import Pool
from edge.confidence.certificate import Certificate
from edge.confidence.fusion import fit_calibration
from edge.confidence.key import CalibrationKey
from edge.confidence.promise import with_certificate
from edge.errors import ConfigError, InputError, StoreError
from edge.local import calibration_key
from edge.route import Action
from edge.runtime import Runtime
from edge.task import Pack
from edge.types import Reason, Route

SURE, UNSURE = "my card was swallowed by the machine", "it did something odd again"
TASK = {
    "kind": "classify",
    "model": "banking77-head",
    "privacy": {"allow_cloud": "raw"},
    "budget": {"max_model_calls": 3},
}
POOL = {
    "base_url": "http://pool.example/v1",
    "model": "large",
    "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 10},
    "retries": 0,
}


class World:
    """A pool that gives the same label every time, and runtimes over one state folder."""

    def __init__(self, folder):
        self.folder, self.label, self.asked = folder, "card_swallowed", []

    def handle(self, request):
        self.asked.append((request.url.host, json.loads(request.content)))
        content = {
            "model": "large",
            "choices": [{"message": {"content": self.label}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 300, "completion_tokens": 4},
        }
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(content).encode()))

    def open(self, *, offline=False, task=None, tasks=None, pack=None, **routing):
        body = {**TASK, **(task or {}), "routing": routing}
        self.pack = Pack.model_validate(
            {
                "name": "p",
                "version": 1,
                "budget": {"cap_usd": "0.05", "period": "month"},
                "pools": {"default": POOL, "other": {**POOL, "base_url": "http://other.example"}},
                "tasks": {"t": body, **(tasks or {})},
                **(pack or {}),
            }
        )
        return Runtime(self.pack, self.folder, offline=offline, threads=1, open_pool=self.open_pool)

    def open_pool(self, name):
        return Pool(name, self.pack.pools[name], env={}, transport=httpx.MockTransport(self.handle))


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def calibrate(runtime, *, thresholds=(0.6, 0.8), alphas=(0.05, 0.02), name="t"):
    """Put a calibration of made-up labels in place, with a certificate for every threshold."""
    task = runtime.tasks()[name]
    key = calibration_key(task, runtime.models.draft(task, SURE))
    assert isinstance(key, CalibrationKey)
    random = np.random.default_rng(0)
    right = random.random(400) < 0.85
    margin = random.normal(np.where(right, 6.0, 2.0), 1.0)
    made = fit_calibration(
        key, [{"margin": m} for m in margin], correct=right.tolist(), features=("margin",)
    )
    for at, (threshold, alpha) in enumerate(zip(thresholds, alphas, strict=True)):
        promise = Certificate(
            "kept_risk", alpha, 0.1, 400, 300, 3, 0.75, threshold, f"labels-{at}", key
        )
        made = with_certificate(made, promise)
    runtime.models.calibrations.keep(name, made)


def test_without_a_certificate_a_promised_risk_goes_up(world):
    with world.open(risk=0.05) as runtime:
        result = runtime.run("t", SURE)
    assert (result.route, result.certified) == (Route.CLOUD, False)
    assert result.reasons == (Reason.UNCERTIFIED, Reason.ESCALATED)


@pytest.mark.parametrize(
    ("uncertified", "value", "last"),
    [("return", "card_swallowed", Reason.QUEUED), ("withhold", None, Reason.WITHHELD)],
)
def test_what_nothing_promises_is_marked_or_withheld(world, uncertified, value, last):
    with world.open(offline=True, risk=0.05, uncertified=uncertified) as runtime:
        result = runtime.run("t", SURE)
    assert (result.route, result.value, result.certified) == (Route.DEFERRED, value, False)
    assert result.reasons[0] is Reason.UNCERTIFIED
    assert result.reasons[-1] is last


def test_a_certificate_covers_what_it_keeps_and_sends_up_the_rest(world):
    with world.open(risk=0.05, audit_rate=0.0) as runtime:
        calibrate(runtime)
        sure, unsure = runtime.run("t", SURE), runtime.run("t", UNSURE)
    assert (sure.route, sure.certified, sure.reasons) == (Route.LOCAL, True, (Reason.CERTIFIED,))
    assert sure.interval[0] <= sure.confidence <= sure.interval[1]
    assert (unsure.route, unsure.certified) == (Route.CLOUD, False)
    assert unsure.reasons == (Reason.LOW_CONFIDENCE, Reason.ESCALATED)


def test_a_stricter_risk_takes_the_stricter_certificate(world):
    with world.open(risk=0.02, audit_rate=0.0) as runtime:
        calibrate(runtime, thresholds=(0.6, 0.9999999))
        result = runtime.run("t", SURE)
    assert result.reasons[0] is Reason.LOW_CONFIDENCE


def test_a_pack_carries_its_calibration(world, tmp_path):
    with world.open(risk=0.05, audit_rate=0.0) as runtime:
        calibrate(runtime)
    carried = (world.folder / "calibrations" / "t.json").rename(tmp_path / "t.json")
    body = {
        "name": "p",
        "version": 1,
        "calibration": {"t": "t.json"},
        "tasks": {"t": {**TASK, "routing": {"risk": 0.05}}},
    }
    (tmp_path / "p.yaml").write_text(json.dumps(body))
    with edge.open(tmp_path / "p.yaml", state=tmp_path / "other", offline=True) as runtime:
        assert runtime.run("t", SURE).certified
    carried.write_text("{}")
    with pytest.raises(ConfigError, match="cannot be used: it lacks key"):
        edge.open(tmp_path / "p.yaml", state=tmp_path / "other", offline=True)
    (tmp_path / "p.yaml").write_text(json.dumps({**body, "calibration": {"u": "t.json"}}))
    with pytest.raises(ConfigError, match="unknown task 'u'"):
        edge.open(tmp_path / "p.yaml", state=tmp_path / "other", offline=True)


def test_a_calibration_of_another_model_gives_no_number(world):
    with world.open(risk=0.05) as runtime:
        calibrate(runtime)
        path = world.folder / "calibrations" / "t.json"
        body = json.loads(path.read_text())
        body["key"]["model_digest"] = "0" * 64
        for each in body["certificates"]:
            each["key"]["model_digest"] = "0" * 64
        path.write_text(json.dumps(body))
    with world.open(risk=0.05) as runtime:
        result = runtime.run("t", SURE)
    assert result.confidence is None
    assert Reason.UNCALIBRATED in result.reasons
    assert not result.certified


def test_audits_that_find_errors_take_the_next_threshold_and_then_keep_nothing(world):
    world.label = "card_arrival"  # the cloud says that every kept answer is wrong
    with world.open(risk=0.05, audit_rate=0.99) as runtime:
        calibrate(runtime)
        rungs, reasons = [], set()
        for _ in range(60):
            result = runtime.run("t", SURE)
            reasons |= set(result.reasons)
            runtime.drain()
            rungs.append(runtime.oversight.watch_of(runtime.tasks()["t"]).rung)
            if rungs[-1] == 2:
                break
        last = runtime.run("t", SURE)
    assert Reason.AUDITED in reasons
    assert rungs == sorted(rungs)
    assert set(rungs) == {0, 1, 2}
    assert last.route is not Route.LOCAL
    assert last.reasons[:2] == (Reason.LOW_CONFIDENCE, Reason.WATCH_ALARM)
    # A restart forgets nothing; a new calibration starts anew.
    with world.open(risk=0.05, audit_rate=0.99) as runtime:
        task = runtime.tasks()["t"]
        assert runtime.oversight.watch_of(task).rung == 2
        labels = runtime.states.labels("t").values()
        assert {("audit", right) for right, _ in labels} == {("audit", False)}


def test_audits_that_find_no_error_change_nothing(world):
    with world.open(risk=0.05, audit_rate=0.99) as runtime:
        calibrate(runtime)
        for _ in range(20):
            runtime.run("t", SURE)
        assert runtime.drain().done >= 15
        assert runtime.oversight.watch_of(runtime.tasks()["t"]).rung == 0
        assert all(right for right, _ in runtime.states.labels("t").values())


def test_an_audit_leaves_the_device_only_where_the_text_may(world):
    with world.open(
        risk=0.05, audit_rate=0.99, task={"privacy": {"allow_cloud": "never"}}
    ) as runtime:
        calibrate(runtime)
        results = [runtime.run("t", SURE) for _ in range(5)]
        assert runtime.book.queue.counts().get("waiting", 0) == 0
    assert {result.reasons for result in results} == {(Reason.CERTIFIED,)}
    assert world.asked == []


RULES = [
    {"condition": "account_tier == 'enterprise' and confidence < 0.9999999", "model": "other"},
    {"condition": "similarity < -0.9"},
]
CONTEXT = {"context": {"account_tier": "text", "urgent": "flag", "amount": "number"}}


@pytest.mark.parametrize(
    ("context", "route", "host"),
    [
        (None, Route.LOCAL, None),  # a missing value keeps it here
        ({"account_tier": None}, Route.LOCAL, None),
        ({"account_tier": "free"}, Route.LOCAL, None),
        ({"account_tier": "enterprise"}, Route.CLOUD, "other.example"),
    ],
)
def test_a_condition_sends_up_what_it_is_known_to_hold_for(world, context, route, host):
    with world.open(pack=CONTEXT, escalate_if=RULES) as runtime:
        result = runtime.run("t", SURE, context=context)
    assert result.route is route
    assert [name for name, _ in world.asked] == ([host] if host else [])
    assert (Reason.CONDITION in result.reasons) is (host is not None)


@pytest.mark.parametrize(
    ("context", "named"),
    [
        ({"tier": "x"}, "'tier'"),
        ({"account_tier": 3}, "account_tier"),
        ({"amount": "3"}, "amount"),
        ({"amount": True}, "amount"),
        ({"urgent": 1}, "urgent"),
    ],
)
def test_a_context_must_be_what_the_pack_declares(world, context, named):
    with world.open(pack=CONTEXT) as runtime, pytest.raises(InputError, match=named):
        runtime.run("t", SURE, context=context)


@pytest.mark.parametrize(
    ("rule", "pack", "named"),
    [
        ({"condition": "confidense < 0.7"}, {}, "confidence"),
        ({"condition": "confidence <"}, {}, "rule 1 of task t"),
        ({"condition": "confidence < 'high'"}, {}, "type"),
        ({"condition": "true"}, {"context": {"margin": "number"}}, "margin"),
    ],
)
def test_a_condition_that_cannot_be_read_is_an_error_at_load(world, rule, pack, named):
    with pytest.raises(ConfigError) as caught:
        world.open(pack=pack, escalate_if=[rule])
    assert named in f"{caught.value} {caught.value.hint}"


def test_the_next_tier_answers_where_the_first_does_not_stand(world):
    second = {**TASK, "routing": {"keep_above": 0.0}}
    with world.open(keep_above=1.0, then="second", tasks={"second": second}) as runtime:
        result = runtime.run("t", SURE)
    assert (result.route, result.value) == (Route.LOCAL, "card_swallowed")
    assert result.reasons == (Reason.NEXT_TIER, Reason.CONFIDENT)
    assert world.asked == []


@pytest.mark.parametrize(("calls", "route"), [(3, Route.CLOUD), (2, Route.DEFERRED)])
def test_where_no_tier_stands_the_tasks_own_policy_decides(world, calls, route):
    second = {**TASK, "routing": {"keep_above": 1.0, "below": "abstain"}}
    with world.open(
        keep_above=1.0,
        then="second",
        tasks={"second": second},
        task={"budget": {"max_model_calls": calls}},
    ) as runtime:
        result = runtime.run("t", SURE)
    assert result.route is route
    assert result.reasons[:2] == (Reason.LOW_CONFIDENCE, Reason.NEXT_TIER)


@pytest.mark.parametrize(
    ("value", "share", "action"),
    [("0.000001", 1.0, Action.KEEP), ("900", 1.0, Action.ESCALATE), ("900", 0.0, Action.KEEP)],
)
def test_an_answer_goes_up_where_that_is_worth_more_than_it_costs(world, value, share, action):
    with world.open(
        keep_above=0.0, value_usd=value, cloud_accuracy=1.0, premium_share=share
    ) as runtime:
        results = [runtime.run("t", UNSURE) for _ in range(3)]
    asked = [Reason.WORTH_ASKING in result.reasons for result in results]
    assert asked == [action is Action.ESCALATE] * 3
    assert len(world.asked) == sum(asked)


def test_the_price_rises_with_spending_and_never_lifts_the_cap(world):
    with world.open(keep_above=0.0, value_usd="0.02", cloud_accuracy=1.0) as runtime:
        results = [runtime.run("t", UNSURE) for _ in range(40)]
        spent = runtime.book.ledger.spent_microusd()
        state = runtime.states.read("spending")
    went = [result.route is Route.CLOUD for result in results]
    assert went[0]
    assert not went[-1]  # the burst is spent; the month is long
    assert 0 < spent <= 50_000
    assert state["pacer"]["spent_microusd"] == spent


def test_corrections_are_labels(world):
    with world.open(keep_above=0.0) as runtime:
        good, bad = runtime.run("t", SURE), runtime.run("t", UNSURE)
        assert runtime.correct(good.trace_id, "card_swallowed") is False
        runtime.correct(bad.trace_id, "card_arrival")
        assert runtime.states.labels("t") == {
            good.trace_id: (True, "user"),
            bad.trace_id: (False, "user"),
        }
        with pytest.raises(InputError, match="no answer of this device"):
            runtime.correct("nothing", "card_arrival")


def test_another_certificate_starts_another_watch(world):
    with world.open(risk=0.05, audit_rate=0.0) as runtime:
        calibrate(runtime, thresholds=(0.3,), alphas=(0.05,))
        assert runtime.run("t", SURE).certified
        calibrate(runtime, thresholds=(0.9999999,), alphas=(0.05,))  # the same labels
        result = runtime.run("t", SURE)
    assert not result.certified
    assert result.reasons[0] is Reason.LOW_CONFIDENCE


def test_what_is_worth_asking_is_not_for_the_next_tier(world):
    second = {**TASK, "model": "clinc150-head", "routing": {"keep_above": 0.0}}
    two = {"budget": {"max_model_calls": 2}}
    with world.open(
        task=two, tasks={"second": second}, keep_above=0.0, value_usd=900, then="second"
    ) as runtime:
        result = runtime.run("t", UNSURE)
    assert (result.route, result.model) == (Route.CLOUD, "large")
    assert result.reasons == (Reason.WORTH_ASKING, Reason.ESCALATED)


def test_a_next_tier_is_never_certified_and_its_audits_are_its_own(world):
    world.label = "card_arrival"
    second = {**TASK, "routing": {"risk": 0.05, "audit_rate": 0.99}}
    with world.open(tasks={"second": second}, keep_above=1.0, then="second") as runtime:
        calibrate(runtime, name="second")
        results = [runtime.run("t", SURE) for _ in range(4)]
        runtime.drain()
        labels = {name: len(runtime.states.labels(name)) for name in ("t", "second")}
    assert {result.route for result in results} == {Route.LOCAL}
    assert not any(result.certified for result in results)
    assert labels["t"] == 0
    assert labels["second"] >= 1


def test_a_next_tier_must_promise_as_much(world):
    second = {**TASK, "routing": {"risk": 0.2}}
    with pytest.raises(ValueError, match="needs one that is not above it"):
        world.open(tasks={"second": second}, risk=0.1, then="second")


def test_a_queued_task_goes_to_the_pool_that_its_rule_chose(world):
    rule = [{"condition": "confidence >= 0", "model": "other"}]
    with world.open(offline=True, escalate_if=rule) as runtime:
        assert runtime.run("t", SURE).reasons[-1] is Reason.QUEUED
    with world.open(escalate_if=rule) as runtime:
        assert runtime.drain().done == 1
    assert [host for host, _ in world.asked] == ["other.example"]


def test_an_audit_answered_with_no_label_counts_as_wrong(world):
    world.label = "none of these fits"
    with world.open(risk=0.05, audit_rate=0.99) as runtime:
        calibrate(runtime)
        for _ in range(5):
            runtime.run("t", SURE)
        runtime.drain()
        found = [right for right, _ in runtime.states.labels("t").values()]
    assert len(found) >= 3
    assert not any(found)


def test_what_only_advises_costs_no_answer(world, monkeypatch):
    with world.open(keep_above=0.0, value_usd=900, cloud_accuracy=1.0) as runtime:

        def locked(*_args, **_options):
            raise StoreError("locked")

        monkeypatch.setattr(runtime.states, "change", locked)
        result = runtime.run("t", UNSURE)
        assert result.route is Route.CLOUD
        assert runtime.traces.get(result.trace_id) is not None


@pytest.mark.parametrize("damage", ["{}", '{"pacer": 3, "at": 0}', '{"period": 0, "cap": 50000}'])
def test_a_damaged_price_starts_anew(world, damage):
    with world.open(keep_above=0.0, value_usd=900, cloud_accuracy=1.0) as runtime:
        runtime.states.change("spending", lambda _: json.loads(damage))
        assert runtime.run("t", UNSURE).route is Route.CLOUD
        assert runtime.states.read("spending")["pacer"]["spent_microusd"] > 0


def test_the_price_knows_what_other_tasks_spend(world):
    other = {**TASK, "routing": {"keep_above": 1.0}}
    with world.open(tasks={"other": other}, keep_above=0.0, value_usd="0.000001") as runtime:
        for _ in range(3):
            runtime.run("other", SURE)
        runtime.run("t", SURE)
        spent = runtime.book.ledger.spent_microusd()
        assert runtime.states.read("spending")["pacer"]["spent_microusd"] == spent > 0


def test_a_correction_counts_once_and_only_against_what_was_kept(world):
    with world.open(risk=0.05, audit_rate=0.0) as runtime:
        calibrate(runtime)
        kept, sent = runtime.run("t", SURE), runtime.run("t", UNSURE)
        for _ in range(3):
            runtime.correct(kept.trace_id, "card_arrival")
        runtime.correct(sent.trace_id, sent.value)
        assert runtime.oversight.watch_of(runtime.tasks()["t"]).corrections == 1
        with pytest.raises(InputError, match="not one of the labels"):
            runtime.correct(kept.trace_id, "no such label")


def test_what_may_be_replaced_cannot_be_streamed(world):
    draft = {"kind": "generate", "model": "actions-q8_0", "prompt": "p"}
    tasks = {
        "one": {**draft, "routing": {"then": "two"}},
        "two": draft,
    }
    prompts = {"prompts": {"p": {"version": 1, "template": "{text}"}}}
    with (
        world.open(offline=True, tasks=tasks, pack=prompts) as runtime,
        pytest.raises(InputError, match="cannot be streamed"),
    ):
        next(runtime.stream("one", "hello"))
