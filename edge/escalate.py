"""One question to a cloud pool, with the money held before it leaves and settled afterwards.

reserve -> mark sent -> ask -> settle, or release where it certainly was not billed. An unclear
outcome stays held. Killed at any point, the next opening of the ledger puts the hold right.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.asking import Question, Reading, question, read
from edge.errors import (
    BudgetExceeded,
    CircuitOpen,
    CloudError,
    CloudRejected,
    CloudTimeout,
    ConfigError,
)
from edge.store.book import Book
from edge.store.ledger import Hold
from edge.task import TaskSpec
from edge.types import Draft, Reason, Usage

if TYPE_CHECKING:
    from edge.cloud.pool import CloudAnswer, Pool

_REASONS: tuple[tuple[type[CloudError], Reason], ...] = (
    (CircuitOpen, Reason.CIRCUIT_OPEN),
    (CloudTimeout, Reason.CLOUD_TIMEOUT),
    (CloudRejected, Reason.CLOUD_REJECTED),
    (CloudError, Reason.CLOUD_FAILED),
)

FINAL = frozenset({Reason.CLOUD_REJECTED, Reason.INVALID_OUTPUT})
"""The same request would fare the same, and a second answer would be paid for too."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What asking the pool came to.

    Attributes:
        reason: ``escalated``, or why there is no usable answer.
        draft: the pool's answer, or ``None``.
        cost_microusd: what was spent, also on an answer that could not be used.
        error: what went wrong, for the queue; holds no text of the task.
        unclear: the request may have been billed without an answer.

    """

    reason: Reason
    draft: Draft | None = None
    cost_microusd: int = 0
    error: str = ""
    unclear: bool = False


Settle = Callable[[Hold, "CloudAnswer", Outcome], None]


class Escalation:
    """Asks pools on behalf of tasks.

    Args:
        book: ledger and queue.
        open_pool: opens a client; called once per pool, on first use.

    """

    def __init__(self, book: Book, *, open_pool: Callable[[str], Pool]) -> None:
        self._book = book
        self._open_pool = open_pool
        self._lock = threading.Lock()
        self._pools: dict[str, Pool] = {}

    def ask(
        self,
        task: str,
        spec: TaskSpec,
        text: str,
        *,
        trace_id: str,
        labels: Sequence[str] = (),
        draft: Draft | None = None,
        calls_left: int = 1,
        settle: Settle | None = None,
    ) -> Outcome:
        """Ask the task's pool, with a draft only for what the draft leaves open.

        Where the pool finds none of a draft's candidates right, it is asked once more, with all
        labels and a hold of its own, if ``calls_left`` allows a second call; the outcome is then
        that of the second with the costs of both. Without one the outcome is ``none_fits``: the
        task waits, and the queue asks in full.

        Args:
            task: the task's name.
            spec: the task.
            text: what to send; whoever calls has made sure that it may leave.
            trace_id: ties holds, queue entry and trace together.
            labels: what a classification may choose from.
            draft: the local answer; see ``edge.asking.question``.
            calls_left: how often the task's budget still allows to ask, at least 1.
            settle: replaces the plain settling of the answer that ends the task, to bind more to
                its transaction.

        Raises:
            StoreError: the ledger cannot be written; nothing was sent that is not held.

        """
        try:
            pool = self._pool(spec.routing.pool)
            pool.check()
        except ConfigError as error:
            return Outcome(Reason.POOL_MISCONFIGURED, error=error.message)
        asked = question(spec, text, labels=labels, draft=draft)

        def ends(hold: Hold, answer: CloudAnswer, outcome: Outcome) -> None:
            again = outcome.reason is Reason.NONE_FITS and calls_left > 1
            (self._settle if again or settle is None else settle)(hold, answer, outcome)

        first = self._once(pool, asked, task=task, spec=spec, trace_id=trace_id, settle=ends)
        if first.reason is not Reason.NONE_FITS or calls_left <= 1:
            return first
        asked = question(spec, text, labels=labels)
        second = self._once(pool, asked, task=task, spec=spec, trace_id=trace_id, settle=ends)
        cost = first.cost_microusd + second.cost_microusd
        return dataclasses.replace(second, cost_microusd=cost)

    def _once(
        self,
        pool: Pool,
        asked: Question,
        *,
        task: str,
        spec: TaskSpec,
        trace_id: str,
        settle: Settle,
    ) -> Outcome:
        """Hold the money for one question, ask it, and settle or give back."""
        try:
            hold = self._book.ledger.reserve(
                trace_id,
                task=task,
                pool=spec.routing.pool,
                worst_case_microusd=pool.worst_case_microusd(
                    asked.messages, max_tokens=asked.max_tokens, response_schema=asked.schema
                ),
            )
        except BudgetExceeded as error:
            return Outcome(Reason.BUDGET_EXCEEDED, error=error.message)
        try:
            answer = pool.complete(
                asked.messages,
                max_tokens=asked.max_tokens,
                response_schema=asked.schema,
                idempotency_key=hold.id,
                on_send=lambda: self._book.ledger.mark_sent(hold),
            )
        except CloudError as error:
            return self._failed(hold, error)
        except BaseException:
            self._abandon(hold)
            raise
        outcome = _outcome(answer, read(spec, asked, answer.text))
        settle(hold, answer, outcome)
        return outcome

    def close(self) -> None:
        """Close every client."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()

    def _pool(self, name: str) -> Pool:
        with self._lock:
            if name not in self._pools:
                self._pools[name] = self._open_pool(name)
            return self._pools[name]

    def _settle(self, hold: Hold, answer: CloudAnswer, _outcome: Outcome) -> None:
        self._book.ledger.settle(
            hold, answer.cost_microusd, tokens_in=answer.tokens_in, tokens_out=answer.tokens_out
        )

    def _failed(self, hold: Hold, error: CloudError) -> Outcome:
        sent = self._book.ledger.hold(hold.id).state == "sent"
        unclear = sent and error.maybe_billed
        if unclear:
            self._book.ledger.leave_unclear(hold, type(error).__name__)
        else:
            self._book.ledger.release(hold, certainly_unbilled=True)
        reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
        return Outcome(reason, error=error.message, unclear=unclear)

    def _abandon(self, hold: Hold) -> None:
        """Give back what was never sent; what may have been sent stays held."""
        if self._book.ledger.hold(hold.id).state == "reserved":
            self._book.ledger.release(hold)


def _outcome(answer: CloudAnswer, reading: Reading) -> Outcome:
    cost = answer.cost_microusd
    if reading.problem is not None:
        return Outcome(
            Reason.NONE_FITS if reading.none_fits else Reason.INVALID_OUTPUT,
            cost_microusd=cost,
            error=reading.problem,
        )
    draft = Draft(
        value=reading.value,
        model=answer.model,
        digest="",
        device="cloud",
        usage=Usage(answer.tokens_in, answer.tokens_out),
        text=answer.text,
    )
    return Outcome(Reason.ESCALATED, draft, cost)
