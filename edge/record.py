"""The last step of a task: what must wait is queued, the trace written, the result made.

A call to a tool that is denied or stopped is not given out, whoever made it. A kept answer that is
picked for an audit is queued as well: the cloud's word on it comes with a later drain. Neither the
input's text nor the answer is in a trace.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from edge.admit import Call, Wait, check_wait
from edge.considering import Considered
from edge.errors import Busy, EdgeError, InputError
from edge.escalate import FINAL, Outcome
from edge.judge import plain
from edge.route import Action, Plan, denied
from edge.store.book import Book
from edge.store.queued import AUDIT
from edge.store.traces import ERROR, Traces
from edge.task import Pack
from edge.types import Json, Kind, Reason, Result, Route

_ROUTES = {Action.KEEP: Route.LOCAL, Action.ABSTAIN: Route.ABSTAINED}
_SENT_LATER = (None, Reason.OFFLINE, Reason.POLICY_EXPIRED)
_MOST_WAITING = 1_000  # audits never crowd out tasks that wait for an answer
_NO_HURRY = Wait(priority=0, expires_s=None)
_COMPARABLE = frozenset({Kind.CLASSIFY, Kind.EXTRACT})


class Recorder:
    """Writes down what became of calls.

    Args:
        pack: whose tasks they are.
        book: the queue.
        traces: one row for every call.
        revision: of the policy in force, 0 for none.
        tools: names of tools that may not be called, with the reason.

    """

    def __init__(
        self,
        pack: Pack,
        book: Book,
        traces: Traces,
        *,
        revision: int = 0,
        tools: Mapping[str, Reason] | None = None,
    ) -> None:
        self._pack = pack
        self._book = book
        self._traces = traces
        self._revision = revision
        self._tools = tools or {}

    def record(
        self, call: Call, the_plan: Plan, found: Considered, outcome: Outcome | None
    ) -> Result:
        """Queue, trace and return the result.

        Raises:
            StoreError: the state folder cannot be written.

        """
        draft, verdict, decision = found.draft, found.verdict, found.decision
        reasons = decision.reasons + ((outcome.reason,) if outcome else ())
        answered = outcome.draft if outcome else None
        action, queue = decision.action, decision.queue
        if outcome is not None and answered is None:
            action, queue = Action.DEFER, outcome.reason not in FINAL
        own = draft.value if draft and verdict.valid and action is not Action.ABSTAIN else None
        waits = action is Action.DEFER and queue
        shown = None if denied(call.spec, own, self._tools) else own
        task_id = self._queue(call, reasons[-1], shown, decision.pool) if waits else None
        if action is Action.DEFER and queue:
            reasons += (Reason.QUEUED if task_id else Reason.QUEUE_FULL,)
        value = answered.value if answered else own
        route = Route.CLOUD if answered else _ROUTES.get(action, Route.DEFERRED)
        if route is Route.DEFERRED and own is not None and _is_withheld(call):
            value, reasons = None, (*reasons, Reason.WITHHELD)
        if why := denied(call.spec, value, self._tools):
            value, reasons = None, (why, *reasons)
            route = Route.DEFERRED if waits else Route.ABSTAINED
        if route is Route.LOCAL and self._audit(call, the_plan, found):
            reasons += (Reason.AUDITED,)
        reasons += call.stance.reasons
        result = _result(
            call, found, outcome, value=value, route=route, reasons=reasons, task_id=task_id
        )
        self._traces.append(_trace(result, call, found, self._revision))
        return result

    def failed(self, call: Call, error: EdgeError) -> None:
        """Write the trace of a call that raised.

        Raises:
            StoreError: the state folder cannot be written.

        """
        row = about_input(call) | {
            "at": time.time(),
            "route": ERROR,
            "model": call.spec.model,
            "latency_ms": (time.perf_counter() - call.started) * 1e3,
            "reasons": [type(error).__name__],
            "detail": degraded_detail(call),
            "policy": self._revision,
        }
        self._traces.append(row)

    def answer_of(self, trace_id: str) -> tuple[str, bool, str]:
        """Return (task whose model answered, whether that was kept, digest) of an answer.

        Raises:
            InputError: there is no answer of this device under that trace.

        """
        trace = self._traces.get(trace_id)
        detail = trace["detail"] if trace else {}
        if trace is None or "answer_sha256" not in detail:
            raise InputError(
                f"There is no answer of this device under the trace {trace_id!r}.",
                hint="Pass Result.trace_id of a task that a local model answered.",
            )
        return detail["tier"], trace["route"] == Route.LOCAL, detail["answer_sha256"]

    def _audit(self, call: Call, the_plan: Plan, found: Considered) -> bool:
        """Queue a kept answer for a check, where it was picked and may leave the device."""
        audit, draft = found.checked.audit, found.draft
        if audit is None or not audit.chosen or draft is None:
            return False
        if call.spec.kind not in _COMPARABLE or the_plan.cloud_blocked not in _SENT_LATER:
            return False
        if self._book.queue.counts().get("waiting", 0) >= _MOST_WAITING:
            return False
        about: dict[str, Any] = {
            "propensity": audit.propensity,
            "rung": found.checked.rung,
            "answers": found.checked.answers,
            "tier": found.tier,
        }
        return self._put(call, AUDIT, draft.value, about, wait=_NO_HURRY) is not None

    def _queue(self, call: Call, why: Reason, own: Json, pool: str | None) -> str | None:
        about = {} if pool is None else {"pool": pool}
        wait = call.wait or check_wait(call.spec, None, None)
        return self._put(call, why.value, own, about, wait=wait)

    def _put(
        self, call: Call, why: str, provisional: Json, about: dict[str, Any], *, wait: Wait
    ) -> str | None:
        """Let a task wait; ``None`` where the queue is full, which costs no answer."""
        took_s = time.perf_counter() - call.started
        try:
            return self._book.queue.put(
                call.name,
                text=call.text,
                payload={"pack": self._pack.name, "pack_version": self._pack.version, **about},
                reason=why,
                provisional=provisional,
                trace_id=call.trace_id,
                priority=wait.priority,
                expires_s=None if wait.expires_s is None else wait.expires_s - took_s,
            )
        except Busy:
            return None


def _result(
    call: Call,
    found: Considered,
    outcome: Outcome | None,
    *,
    value: Json,
    route: Route,
    reasons: tuple[Reason, ...],
    task_id: str | None,
) -> Result:
    answered = outcome.draft if outcome else None
    shown = answered or found.draft
    return Result(
        value=value,
        confidence=None if answered else found.verdict.confidence,
        certified=route is Route.LOCAL and found.decision.certified,
        route=route,
        provisional=task_id is not None or _is_best_effort(call, route, value),
        model=shown.model if shown else None,
        device=shown.device if shown else None,
        cost_microusd=outcome.cost_microusd if outcome else 0,
        latency_ms=(time.perf_counter() - call.started) * 1e3,
        tokens_in=shown.usage.tokens_in if shown else 0,
        tokens_out=shown.usage.tokens_out if shown else 0,
        trace_id=call.trace_id,
        reasons=reasons,
        task=call.name,
        task_id=task_id,
        interval=None if answered or found.draft is None else found.draft.interval,
    )


def answer_digest(value: Json) -> str:
    """Return what a trace keeps of an answer, to compare a later one with.

    Raises:
        InputError: it is no JSON.

    """
    try:
        text = json.dumps(plain(value), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"An answer must be JSON: {error}.") from error
    return hashlib.sha256(text.encode()).hexdigest()


def _is_withheld(call: Call) -> bool:
    """Whether the policy keeps an answer back that nothing promises."""
    routing = call.spec.routing
    return routing.risk is not None and routing.uncertified == "withhold"


def about_input(call: Call) -> dict[str, Any]:
    """Return what a trace tells of the input, without its text."""
    return {
        "trace_id": call.trace_id,
        "task": call.name,
        "input_sha256": hashlib.sha256(call.text.encode()).hexdigest(),
        "input_chars": len(call.text),
        "text": None,
    }


def degraded_detail(call: Call) -> dict[str, Any]:
    """Return what a trace tells of the degrade steps in force; empty where there are none."""
    stance = call.stance
    return {"degrade": stance.as_detail()} if stance.step or stance.probe else {}


def _is_best_effort(call: Call, route: Route, value: Json) -> bool:
    """Whether an answer that does not stand is given because a step says so."""
    return call.stance.best_effort and route is Route.DEFERRED and value is not None


def _trace(result: Result, call: Call, found: Considered, revision: int) -> dict[str, Any]:
    """Return a trace's row; neither the input's text nor the answer is in it."""
    return {
        **about_input(call),
        "at": time.time(),
        "route": result.route.value,
        "model": result.model,
        "device": result.device,
        "confidence": result.confidence,
        "cost_microusd": result.cost_microusd,
        "latency_ms": result.latency_ms,
        "tokens_in": result.tokens_in,
        "tokens_out": result.tokens_out,
        "reasons": [reason.value for reason in result.reasons],
        "detail": _detail(found) | degraded_detail(call),
        "policy": revision,
    }


def _detail(found: Considered) -> dict[str, Any]:
    """Return what replay and simulation need of a draft: signals, digest, confidence."""
    draft, checked = found.draft, found.checked
    if draft is None:
        return {}
    detail: dict[str, Any] = {
        "signals": draft.signals,
        "digest": draft.digest,
        "confidence": draft.confidence,
        "tier": found.tier,
        "valid": found.verdict.valid,
        "certified": found.decision.certified,
    }
    if not isinstance(draft.value, list):  # nobody corrects a vector
        detail["answer_sha256"] = answer_digest(draft.value)
    if checked.audit is not None:
        detail["audit"] = {
            "chosen": checked.audit.chosen,
            "propensity": checked.audit.propensity,
            "rung": checked.rung,
        }
    if checked.alarm is not None:
        detail["alarm"] = str(checked.alarm)
    return detail
