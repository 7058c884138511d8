"""The two decisions as tables."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.policy.rules import read_rules
from edge.route import Action, Circumstances, Terms, decide, denied, plan
from edge.task import Privacy, Routing, TaskBudget, TaskSpec
from edge.types import Draft, Reason, Verdict

DRAFT = Draft(value="x", model="m", digest="d", device="cpu")
ONLINE = Circumstances(offline=False, has_pool=True, has_redactor=True)


def spec(allow="raw", below="escalate", model="m", **routing):
    return TaskSpec(
        kind="classify",
        model=model,
        privacy=Privacy(allow_cloud=allow),
        routing=Routing(keep_above=0.7, below=below, **routing),
    )


def verdict(confidence=0.9, *, valid=True):
    return Verdict(valid=valid, confidence=confidence)


@pytest.mark.parametrize(
    ("allow", "now", "blocked", "may_queue"),
    [
        ("raw", ONLINE, None, True),
        ("redacted", ONLINE, None, True),
        ("never", ONLINE, Reason.PRIVACY_NEVER, False),
        ("raw", Circumstances(offline=True, has_pool=True), Reason.OFFLINE, True),
        ("raw", Circumstances(offline=False, has_pool=False), Reason.NO_POOL, True),
        (
            "raw",
            Circumstances(offline=True, has_pool=True, tightened=True),
            Reason.POLICY_EXPIRED,
            True,
        ),
        (
            "never",
            Circumstances(offline=False, has_pool=True, tightened=True),
            Reason.PRIVACY_NEVER,
            False,
        ),
        (
            "redacted",
            Circumstances(offline=False, has_pool=True),
            Reason.REDACTION_UNAVAILABLE,
            True,
        ),
    ],
)
def test_plan(allow, now, blocked, may_queue):
    found = plan(spec(allow), now)
    assert (found.cloud_blocked, found.may_queue) == (blocked, may_queue)


def test_what_is_stopped_is_not_asked_for():
    task = spec()
    stopped = plan(task, Circumstances(offline=False, has_pool=True, stopped=True))
    assert (stopped.local, stopped.cloud_blocked) == (False, Reason.STOPPED)
    found = decide(task, stopped, None, verdict(valid=False))
    assert (found.action, found.reasons, found.queue) == (Action.ABSTAIN, (Reason.STOPPED,), False)
    halted = plan(task, Circumstances(offline=False, has_pool=True, halted=True))
    assert (halted.local, halted.halted, halted.cloud_blocked) == (False, True, None)


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("extract", {"name": "pay", "amount": 3}, Reason.TOOL_DENIED),
        ("extract", {"intent": "open"}, Reason.STOPPED),
        ("extract", {"intent": "other", "name": "pay"}, Reason.TOOL_DENIED),
        ("extract", {"name": "other", "tool": "pay"}, None),
        ("extract", {"name": ["pay"]}, None),
        ("extract", ["pay"], None),
        ("extract", [{"name": "other"}, {"name": "pay"}], Reason.TOOL_DENIED),
        ("extract", None, None),
        ("classify", "pay", None),
    ],
)
def test_a_call_is_denied_by_the_tool_it_names(kind, value, reason):
    tools = {"pay": Reason.TOOL_DENIED, "open": Reason.STOPPED}
    task = TaskSpec(kind=kind, output_schema={} if kind == "extract" else None)
    assert denied(task, value, tools) is reason
    assert denied(task, value, {}) is None


@pytest.mark.parametrize("draft", [None, DRAFT])
def test_a_vector_is_never_asked_of_a_pool(draft):
    task = TaskSpec(kind="embed", privacy=Privacy(allow_cloud="raw"))
    found = decide(task, plan(task, ONLINE), draft, verdict(valid=False))
    assert (found.action, found.queue) == (Action.DEFER, False)
    assert found.reasons[-1] is Reason.NO_POOL


@pytest.mark.parametrize(
    ("task", "draft", "judged", "now", "action", "queue", "reason"),
    [
        (spec(), DRAFT, verdict(0.7), ONLINE, Action.KEEP, False, Reason.CONFIDENT),
        (spec(), DRAFT, verdict(None), ONLINE, Action.KEEP, False, Reason.UNCALIBRATED),
        (spec(), DRAFT, verdict(0.69), ONLINE, Action.ESCALATE, False, Reason.LOW_CONFIDENCE),
        (
            spec(),
            DRAFT,
            verdict(0.99, valid=False),
            ONLINE,
            Action.ESCALATE,
            False,
            Reason.INVALID_OUTPUT,
        ),
        (
            spec(keep_uncalibrated=False),
            DRAFT,
            verdict(None),
            ONLINE,
            Action.ESCALATE,
            False,
            Reason.UNCALIBRATED,
        ),
        (
            spec(below="abstain"),
            DRAFT,
            verdict(0.1),
            ONLINE,
            Action.ABSTAIN,
            False,
            Reason.LOW_CONFIDENCE,
        ),
        (
            spec(below="defer"),
            DRAFT,
            verdict(0.1),
            ONLINE,
            Action.DEFER,
            True,
            Reason.LOW_CONFIDENCE,
        ),
        (
            spec("never"),
            DRAFT,
            verdict(0.1),
            ONLINE,
            Action.DEFER,
            False,
            Reason.LOW_CONFIDENCE,
        ),
        (
            spec(),
            DRAFT,
            verdict(0.1),
            Circumstances(offline=True, has_pool=True),
            Action.DEFER,
            True,
            Reason.LOW_CONFIDENCE,
        ),
    ],
)
def test_decide(task, draft, judged, now, action, queue, reason):
    found = decide(task, plan(task, now), draft, judged)
    assert (found.action, found.queue) == (action, queue)
    assert found.reasons[0] is reason


def test_without_a_local_model_the_cloud_is_asked():
    task = spec(model=None)
    nothing = Verdict(valid=False, confidence=None, reasons=(Reason.NO_LOCAL_MODEL,))
    found = decide(task, plan(task, ONLINE), None, nothing)
    assert found.action is Action.ESCALATE
    assert found.reasons == (Reason.NO_LOCAL_MODEL,)


def test_a_second_call_must_fit_the_budget():
    task = spec().model_copy(update={"budget": TaskBudget(max_model_calls=1)})
    found = decide(task, plan(task, ONLINE), DRAFT, verdict(0.1))
    assert found.action is Action.DEFER
    assert Reason.CALL_LIMIT in found.reasons
    assert not found.queue


RULE = read_rules(
    "t",
    [("confidence < 0.95 and tier == 'high'", "large"), ("margin > 3", None)],
    context={"tier": "text"},
)
MARGIN = Draft(value="x", model="m", digest="d", device="cpu", signals={"margin": 4.0})


@pytest.mark.parametrize(
    ("routing", "draft", "confidence", "terms", "action", "reasons"),
    [
        # a threshold that a certificate gives
        ({"risk": 0.05}, DRAFT, 0.99, Terms(), "escalate", "uncertified"),
        ({"risk": 0.05}, DRAFT, 0.8, Terms(0.8, certified=True), "keep", "certified"),
        ({"risk": 0.05}, DRAFT, 0.79, Terms(0.8, certified=True), "escalate", "low_confidence"),
        ({"risk": 0.05}, DRAFT, None, Terms(0.8, certified=True), "escalate", "uncalibrated"),
        (
            {"risk": 0.05},
            DRAFT,
            0.8,
            Terms(0.9, certified=True, rung=1),
            "escalate",
            "low_confidence watch_alarm",
        ),
        ({"risk": 0.05}, DRAFT, 1.0, Terms(math.inf, certified=True), "escalate", "low_confidence"),
        # rules: known to hold, known not to, unknown
        ({}, DRAFT, 0.9, Terms(rules=RULE, context={"tier": "high"}), "escalate", "condition"),
        ({}, DRAFT, 0.9, Terms(rules=RULE, context={"tier": "low"}), "keep", "confident"),
        ({}, DRAFT, 0.9, Terms(rules=RULE), "keep", "confident"),
        ({}, DRAFT, None, Terms(rules=RULE, context={"tier": "high"}), "keep", "uncalibrated"),
        ({}, MARGIN, 0.99, Terms(rules=RULE), "escalate", "condition"),
        ({}, DRAFT, 0.5, Terms(rules=RULE), "escalate", "low_confidence"),
        # worth: 10 * (0.97 - 0.9) = 0.7 dollars
        ({"value_usd": 10}, DRAFT, 0.9, Terms(cost_microusd=690_000), "escalate", "worth_asking"),
        ({"value_usd": 10}, DRAFT, 0.9, Terms(cost_microusd=710_000), "keep", "confident"),
        ({"value_usd": 10}, DRAFT, 0.98, Terms(cost_microusd=0), "keep", "confident"),
        ({"value_usd": 10}, DRAFT, 0.9, Terms(), "keep", "confident"),
        ({"value_usd": 10}, DRAFT, None, Terms(cost_microusd=0), "keep", "uncalibrated"),
        ({}, DRAFT, 0.9, Terms(cost_microusd=0), "keep", "confident"),
    ],
)
def test_decide_on_terms(routing, draft, confidence, terms, action, reasons):
    task = spec(**routing)
    found = decide(task, plan(task, ONLINE), draft, verdict(confidence), terms=terms)
    assert found.action == action
    assert " ".join(found.reasons[: len(reasons.split())]) == reasons
    assert found.certified is (reasons == "certified")
    assert found.pool == ("large" if reasons == "condition" and draft is DRAFT else None)


@pytest.mark.parametrize("blocked", ["offline", "calls"])
def test_what_could_stand_is_kept_where_asking_is_not_possible(blocked):
    task = spec(value_usd=100)
    if blocked == "calls":
        task = task.model_copy(update={"budget": TaskBudget(max_model_calls=1)})
    now = Circumstances(offline=blocked == "offline", has_pool=True)
    found = decide(task, plan(task, now), DRAFT, verdict(0.8), terms=Terms(cost_microusd=0))
    assert (found.action, found.reasons) == (Action.KEEP, (Reason.CONFIDENT,))


@given(
    st.floats(0, 1) | st.none(),
    st.floats(0, 1) | st.none(),
    st.booleans(),
    st.sampled_from(["high", "low", None]),
)
def test_what_is_certified_is_kept_and_above_the_threshold(confidence, threshold, has_risk, tier):
    terms = Terms(threshold, certified=threshold is not None, rules=RULE, context={"tier": tier})
    task = spec(risk=0.1 if has_risk else None)
    found = decide(task, plan(task, ONLINE), DRAFT, verdict(confidence), terms=terms)
    if found.certified:
        assert found.action is Action.KEEP
        assert confidence is not None
        assert threshold is not None
        assert confidence >= threshold
    if has_risk and found.action is Action.KEEP:
        assert found.certified
