"""The two decisions as tables."""

import pytest

from edge.route import Action, Circumstances, decide, plan
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
