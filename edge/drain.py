"""Draining the queue: asking the cloud for tasks that had to wait.

One task at a time is claimed, asked for and ended (answered, put back, given up), so that whatever
interrupts the pass leaves the others waiting. What may have been billed is not asked for again
unless somebody names the task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edge.admit import Call, admit
from edge.errors import EdgeError
from edge.escalate import FINAL, Escalation, Outcome
from edge.local import LocalTask
from edge.record import AUDIT
from edge.route import Circumstances, denied, plan
from edge.store.book import Book
from edge.store.ledger import Hold
from edge.store.queue import QueuedTask
from edge.types import Json, Kind, Reason

if TYPE_CHECKING:
    from edge.cloud.pool import CloudAnswer

_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class Drained:
    """What one pass over the queue came to: how many were answered, put back, given up."""

    done: int = 0
    waiting: int = 0
    failed: int = 0


class Draining:
    """Passes over the queue of one runtime.

    Args:
        book: ledger and queue.
        tasks: by name.
        escalation: asks the pools.
        labels: what a classification task may choose from.
        circumstances: what the runtime knows of the world for a call.
        audited: takes the cloud's word on an answer that was kept: the call, what was noted with
            it, the device's answer, and the cloud's.
        tools: names of tools that may not be called, with the reason.

    """

    def __init__(
        self,
        book: Book,
        tasks: Mapping[str, LocalTask],
        escalation: Escalation,
        *,
        labels: Callable[[LocalTask], Sequence[str]],
        circumstances: Callable[[Call], Circumstances],
        audited: Callable[[Call, Mapping[str, Any], Json, Json], None],
        tools: Mapping[str, Reason] | None = None,
    ) -> None:
        self._book = book
        self._tasks = tasks
        self._escalation = escalation
        self._labels = labels
        self._circumstances = circumstances
        self._audited = audited
        self._tools = tools or {}

    def drain(
        self, task_ids: Sequence[str] | None, *, limit: int, latest: Callable[[], Draining]
    ) -> Drained:
        """Ask for what is due, or for the named tasks; see ``Runtime.drain``.

        Args:
            task_ids: only these.
            limit: how many at most.
            latest: returns what is in force by now; asked for each task, so that what the fleet
                stops meanwhile does not leave.

        """
        queue, chosen = self._book.queue, None
        if task_ids is not None:
            chosen = [queue.resolve(each) for each in task_ids]
            queue.retry(chosen)
        counts = {"done": 0, "waiting": 0, "failed": 0}
        while limit > sum(counts.values()) and (claimed := queue.claim(1, among=chosen)):
            queued = claimed[0]
            try:
                counts[latest().resume(queued, again=chosen is not None)] += 1
            except BaseException as error:
                queue.give_back(queued.id, type(error).__name__, retry_after_s=_RETRY_AFTER_S)
                raise
        return Drained(**counts)

    def resume(self, queued: QueuedTask, *, again: bool) -> str:
        """Ask the cloud for one claimed task; return which count it belongs to."""
        queue = self._book.queue
        try:
            call = admit(self._tasks, queued.task, queued.text, trace_id=queued.trace_id)
        except EdgeError as error:
            queue.fail(queued.id, error.message)
            return "failed"
        pool = queued.payload.get("pool")
        if isinstance(pool, str):  # a rule of the policy chose it
            chosen = replace(call, local=replace(call.local, spec=call.spec.asking(pool)))
            # A later policy may have taken the pool away.
            call = chosen if self._circumstances(chosen).has_pool else call
        if queued.unclear_hold_id is not None and not again:
            queue.fail(queued.id, "An earlier attempt may have been billed; retry it by its id.")
            return "failed"
        blocked = plan(call.spec, self._circumstances(call)).cloud_blocked
        if blocked is not None:
            queue.give_back(queued.id, blocked.value, retry_after_s=_RETRY_AFTER_S)
            return "waiting"
        outcome = self._ask_again(call, queued)
        if queued.reason == AUDIT:
            self._take_audit(call, queued, outcome)
        if outcome.draft is not None:
            return "failed" if denied(call.spec, outcome.draft.value, self._tools) else "done"
        if outcome.unclear or outcome.reason in FINAL:
            queue.fail(queued.id, f"{outcome.reason.value}: {outcome.error}")
            return "failed"
        queue.give_back(queued.id, outcome.reason.value, retry_after_s=_RETRY_AFTER_S)
        return "waiting"

    def _take_audit(self, call: Call, queued: QueuedTask, outcome: Outcome) -> None:
        """Pass the cloud's word on; a word that is none of the labels says that the label is wrong.

        Leaving such answers out would lose outcomes because of what they are.
        """
        other = call.spec.kind is Kind.CLASSIFY and outcome.reason is Reason.INVALID_OUTPUT
        if outcome.draft is not None or other:
            answer = outcome.draft.value if outcome.draft else None
            self._audited(call, queued.payload, queued.provisional, answer)

    def _ask_again(self, call: Call, queued: QueuedTask) -> Outcome:
        labels = self._labels(call.local)

        def settle(hold: Hold, answer: CloudAnswer, outcome: Outcome) -> None:
            """Settle and end the task in one transaction, so that neither is ever alone."""
            with self._book.transaction():
                self._book.ledger.settle(
                    hold,
                    answer.cost_microusd,
                    tokens_in=answer.tokens_in,
                    tokens_out=answer.tokens_out,
                )
                if outcome.draft is None:
                    self._book.queue.fail(queued.id, f"{outcome.reason.value}: {outcome.error}")
                    return
                if why := denied(call.spec, outcome.draft.value, self._tools):
                    self._book.queue.fail(queued.id, f"{why.value}: the answer calls that tool")
                    return
                result: dict[str, object] = {
                    "text": answer.text,
                    "model": answer.model,
                    "cost_microusd": answer.cost_microusd,
                }
                self._book.queue.complete(queued.id, result)

        return self._escalation.ask(
            call.name,
            call.spec,
            call.text,
            trace_id=call.trace_id,
            labels=labels,
            settle=settle,
        )
