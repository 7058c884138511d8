"""Draining the queue: asking the cloud for tasks that had to wait.

One task at a time is claimed, asked for and ended (answered, put back, given up), so that whatever
interrupts the pass leaves the others waiting. What may have been billed is not asked for again
unless somebody names the task. A pool that fails, has no room or no money is left alone for the
rest of the pass: the tasks behind wait without an attempt. A task whose time is over is not sent,
and what the budget keeps for calls as they come is not spent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edge.admit import Call, admit
from edge.allowance import Allowance
from edge.errors import EdgeError, InputError
from edge.escalate import FINAL, Escalation, Outcome
from edge.local import LocalTask
from edge.route import Circumstances, denied, plan
from edge.store.book import Book
from edge.store.ledger import Hold
from edge.store.queue import LONGEST_PAUSE_S
from edge.store.queued import AUDIT, QueuedTask
from edge.types import Json, Kind, Reason

if TYPE_CHECKING:
    from edge.cloud.pool import CloudAnswer

_RETRY_AFTER_S = 30.0
_LONGEST_UNCLEAR_S = 120.0
"""Between questions to a gateway what became of a call, which cost nothing."""
_MOST_CLEARED = 20  # calls in one pass
_ONE_TASK_ALONE = frozenset({Reason.STOPPED, Reason.PRIVACY_NEVER, Reason.REDACTION_UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class Drained:
    """What one pass over the queue came to.

    Attributes:
        done: tasks that were answered.
        waiting: put back.
        failed: given up.
        expired: dropped because their time was over, before they were sent or when the answer came.
        cancelled: cancelled while they were asked for.
        stopped: pools that were left alone for the rest of the pass, each with the reason.

    """

    done: int = 0
    waiting: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    stopped: Mapping[str, str] = field(default_factory=dict, compare=False)


class Draining:
    """Passes over the queue of one runtime.

    Args:
        book: ledger and queue.
        tasks: by name.
        escalation: asks the pools.
        pack: only its tasks are asked for; another pack's text is not for these pools.
        labels: what a classification task may choose from.
        circumstances: what the runtime knows of the world for a call.
        audited: takes the cloud's word on an answer that was kept: the call, what was noted with
            it, the device's answer, and the cloud's.
        spares: whether asking for a call leaves what the budget keeps for calls as they come.
        tools: names of tools that may not be called, with the reason.

    """

    def __init__(
        self,
        book: Book,
        tasks: Mapping[str, LocalTask],
        escalation: Escalation,
        *,
        pack: str,
        labels: Callable[[LocalTask], Sequence[str]],
        circumstances: Callable[[Call], Circumstances],
        audited: Callable[[Call, Mapping[str, Any], Json, Json], None],
        spares: Callable[[Call], bool] = lambda _: True,
        tools: Mapping[str, Reason] | None = None,
    ) -> None:
        self._pack = pack
        self._book = book
        self._tasks = tasks
        self._escalation = escalation
        self._labels = labels
        self._circumstances = circumstances
        self._audited = audited
        self._spares = spares
        self.tools = tools or {}

    def drain(
        self,
        task_ids: Sequence[str] | None,
        *,
        limit: int,
        latest: Callable[[], Draining],
        ended: Callable[[], object] = lambda: None,
    ) -> Drained:
        """Ask for what is due, or for the named tasks; see ``Runtime.drain``.

        Args:
            task_ids: only these.
            limit: how many to ask for at most.
            latest: returns what is in force by now; asked for each task, so that what the fleet
                stops meanwhile does not leave.
            ended: called before the first task and after each.

        Raises:
            InputError: a named task is not there, or of another pack.

        """
        queue = self._book.queue
        chosen = None if task_ids is None else self._named(task_ids)
        latest().clear()
        counts: Counter[str] = Counter()
        stopped: dict[str, str] = {}
        expired = 0

        def left_alone(task: str, payload: dict[str, Any]) -> bool:
            return latest().pool_of(task, payload) in stopped

        while True:
            expired += queue.expire()
            ended()
            unless = left_alone if stopped and chosen is None else None
            if limit <= sum(counts.values()):
                break
            if not (claimed := queue.claim(1, among=chosen, pack=self._pack, unless=unless)):
                break
            queued = claimed[0]
            try:
                stop = latest().resume(queued, again=chosen is not None)
            except BaseException as error:
                queue.give_back(queued.id, type(error).__name__, retry_after_s=_RETRY_AFTER_S)
                raise
            if stop is not None:
                stopped[stop[0]] = stop[1].value
            now = queue.get(queued.id)
            counts["waiting" if now is None or now.state == "claimed" else now.state] += 1
        counts["expired"] += expired
        return Drained(**counts, stopped=stopped)

    def _named(self, names: Sequence[str]) -> list[str]:
        """Return the ids of named tasks, all of this pack, made due."""
        found = [self._book.queue.find(name) for name in names]
        for each in found:
            pack = each.payload.get("pack", self._pack)
            if pack != self._pack:
                raise InputError(
                    f"Queued task {each.id!r} is of pack {pack}, not of {self._pack}.",
                    hint="Open that pack to ask for it; `--pack` of `edge queue retry`.",
                )
        ids = [each.id for each in found]
        self._book.queue.retry(ids)
        return ids

    def clear(self) -> None:
        """Have gateways settle calls that no task waits for: their processes ended before they did.

        Raises:
            StoreError: the ledger cannot be read or written.

        """
        for hold in self._book.ledger.unclear_requests(_MOST_CLEARED):
            try:
                call = admit(self._tasks, hold.task, "-", trace_id=hold.trace_id)
            except EdgeError:
                continue
            local = replace(call.local, spec=call.spec.asking(hold.pool))
            if plan(local.spec, self._circumstances(replace(call, local=local))).cloud_blocked:
                continue
            self._escalation.clear(hold)

    def pool_of(self, task: str, payload: Mapping[str, Any]) -> str:
        """Return whom a queued task asks: the pool that a rule chose, or its task's own."""
        local, chosen = self._tasks.get(task), payload.get("pool")
        if isinstance(chosen, str):
            return chosen
        return "" if local is None else local.spec.routing.pool

    def resume(self, queued: QueuedTask, *, again: bool) -> tuple[str, Reason] | None:
        """Ask the cloud for one claimed task; return a pool to leave alone, and why.

        Args:
            queued: the task.
            again: somebody named it: an unclear attempt may be repeated, and what the budget keeps
                for calls as they come may be used.

        """
        queue = self._book.queue
        try:
            call = admit(self._tasks, queued.task, queued.text, trace_id=queued.trace_id)
        except EdgeError as error:
            queue.fail(queued.id, error.message)
            return None
        pool = queued.payload.get("pool")
        if isinstance(pool, str):  # a rule of the policy chose it
            chosen = replace(call, local=replace(call.local, spec=call.spec.asking(pool)))
            # A later policy may have taken the pool away.
            call = chosen if self._circumstances(chosen).has_pool else call
        if queued.unclear_hold_id is not None and not again and not self._recallable(queued):
            queue.fail(queued.id, "An earlier attempt may have been billed; retry it by its id.")
            return None
        reason = plan(call.spec, self._circumstances(call)).cloud_blocked
        if reason is None and not again and not self._spares(call):
            reason = Reason.BUDGET_EXCEEDED
        unclear = False
        if reason is None:
            outcome = self._ask(call, queued)
            if outcome.draft is not None:
                return None  # it ended together with the money
            if (outcome.unclear and not outcome.recallable) or outcome.reason in FINAL:
                queue.fail(queued.id, f"{outcome.reason.value}: {outcome.error}")
                return (call.spec.routing.pool, outcome.reason) if outcome.unclear else None
            reason, unclear = outcome.reason, outcome.unclear
        alone = reason in _ONE_TASK_ALONE or reason is Reason.NONE_FITS
        queue.give_back(
            queued.id,
            reason.value,
            retry_after_s=_RETRY_AFTER_S,
            longest_s=_LONGEST_UNCLEAR_S if unclear else LONGEST_PAUSE_S,
            blameless=not alone and not unclear,
        )
        return None if alone else (call.spec.routing.pool, reason)

    def _recallable(self, queued: QueuedTask) -> bool:
        """Whether the gateway of an earlier attempt can be asked what became of it."""
        found = self._book.ledger.unclear_requests(queued.unclear_holds, trace_id=queued.trace_id)
        return len(found) == queued.unclear_holds

    def _take_audit(self, call: Call, queued: QueuedTask, outcome: Outcome) -> None:
        """Pass the cloud's word on; a word that is none of the labels says that the label is wrong.

        Leaving such answers out would lose outcomes because of what they are.
        """
        other = call.spec.kind is Kind.CLASSIFY and outcome.reason is Reason.INVALID_OUTPUT
        if outcome.draft is not None or other:
            answer = outcome.draft.value if outcome.draft else None
            self._audited(call, queued.payload, queued.provisional, answer)

    def _ask(self, call: Call, queued: QueuedTask) -> Outcome:
        """Ask; what can be ended is ended together with the money.

        Nobody waits for the answer, so that the pool's own time is all that bounds it.
        """
        labels = self._labels(call.local)
        budget = call.spec.budget.model_copy(update={"deadline_ms": None})

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
                if why := denied(call.spec, outcome.draft.value, self.tools):
                    self._book.queue.fail(queued.id, f"{why.value}: the answer calls that tool")
                    return
                result: dict[str, Any] = {
                    "value": outcome.draft.value,
                    "text": answer.text,
                    "model": answer.model,
                    "cost_microusd": answer.cost_microusd,
                    "tokens_in": answer.tokens_in,
                    "tokens_out": answer.tokens_out,
                }
                self._book.queue.complete(queued.id, result)

        outcome = self._escalation.ask(
            call.name,
            call.spec,
            call.text,
            trace_id=call.trace_id,
            labels=labels,
            settle=settle,
            allowance=Allowance(budget, started=call.started),
        )
        if queued.reason == AUDIT:
            self._take_audit(call, queued, outcome)
        return outcome
