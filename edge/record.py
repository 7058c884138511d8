"""The last step of a task: what must wait is queued, the trace written, the result made.

A kept answer that is picked for an audit is queued as well: the cloud's word on it comes with a
later drain. Neither the input's text nor the answer is in a trace.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from edge.admit import Call
from edge.considering import Considered
from edge.errors import Busy, InputError
from edge.escalate import FINAL, Outcome
from edge.judge import plain
from edge.route import Action, Plan
from edge.store.book import Book
from edge.store.traces import Traces
from edge.task import Pack
from edge.types import Json, Kind, Reason, Result, Route

AUDIT = "audit"
"""Why a task is in the queue whose answer was kept."""

_ROUTES = {Action.KEEP: Route.LOCAL, Action.ABSTAIN: Route.ABSTAINED}
_SENT_LATER = (None, Reason.OFFLINE)
_MOST_WAITING = 1_000  # audits never crowd out tasks that wait for an answer
_COMPARABLE = frozenset({Kind.CLASSIFY, Kind.EXTRACT})


class Recorder:
    """Writes down what became of calls.

    Args:
        pack: whose tasks they are.
        book: the queue.
        traces: one row for every call.

    """

    def __init__(self, pack: Pack, book: Book, traces: Traces) -> None:
        self._pack = pack
        self._book = book
        self._traces = traces

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
        task_id = self._queue(call, reasons[-1], own, decision.pool) if waits else None
        if action is Action.DEFER and queue:
            reasons += (Reason.QUEUED if task_id else Reason.QUEUE_FULL,)
        if action is Action.DEFER and own is not None and _is_withheld(call):
            own = None
            reasons += (Reason.WITHHELD,)
        if action is Action.KEEP and self._audit(call, the_plan, found):
            reasons += (Reason.AUDITED,)
        shown = answered or draft
        result = Result(
            value=answered.value if answered else own,
            confidence=None if answered else verdict.confidence,
            certified=action is Action.KEEP and decision.certified,
            route=Route.CLOUD if answered else _ROUTES.get(action, Route.DEFERRED),
            provisional=task_id is not None,
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
            interval=None if answered or draft is None else draft.interval,
        )
        self._traces.append(_trace(result, call.text, found))
        return result

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
        return self._put(call, AUDIT, draft.value, about) is not None

    def _queue(self, call: Call, why: Reason, own: Json, pool: str | None) -> str | None:
        return self._put(call, why.value, own, {} if pool is None else {"pool": pool})

    def _put(self, call: Call, why: str, provisional: Json, about: dict[str, Any]) -> str | None:
        """Let a task wait; ``None`` where the queue is full, which costs no answer."""
        try:
            return self._book.queue.put(
                call.name,
                text=call.text,
                payload={"pack": self._pack.name, "pack_version": self._pack.version, **about},
                reason=why,
                provisional=provisional,
                trace_id=call.trace_id,
            )
        except Busy:
            return None


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


def _trace(result: Result, text: str, found: Considered) -> dict[str, Any]:
    """Return a trace's row; neither the input's text nor the answer is in it."""
    return {
        "trace_id": result.trace_id,
        "at": time.time(),
        "task": result.task,
        "route": result.route.value,
        "model": result.model,
        "device": result.device,
        "confidence": result.confidence,
        "cost_microusd": result.cost_microusd,
        "latency_ms": result.latency_ms,
        "tokens_in": result.tokens_in,
        "tokens_out": result.tokens_out,
        "reasons": [reason.value for reason in result.reasons],
        "input_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "input_chars": len(text),
        "text": None,
        "detail": _detail(found),
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
