"""One question to a cloud pool, with the money held before it leaves and settled afterwards.

reserve -> mark sent -> ask -> settle, or release where it certainly was not billed. An unclear
outcome stays held; a pool behind a gateway of the fleet is asked again what it came to, with the
same key. Killed at any point, the next opening of the ledger puts the hold right.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.allowance import Allowance
from edge.asking import Question, Reading, question, read
from edge.cloud.chat import read_json
from edge.errors import (
    AnswerLost,
    BudgetExceeded,
    CircuitOpen,
    CloudError,
    CloudRejected,
    CloudTimeout,
    ConfigError,
    LeaseRefused,
)
from edge.recalling import recall
from edge.store.book import Book
from edge.store.ledger import Hold
from edge.task import TaskSpec
from edge.types import Draft, Reason, Usage

if TYPE_CHECKING:
    from edge.cloud.pool import CloudAnswer, Pool, Right

_REASONS: tuple[tuple[type[CloudError], Reason], ...] = (
    (CircuitOpen, Reason.CIRCUIT_OPEN),
    (LeaseRefused, Reason.BUDGET_EXCEEDED),
    (CloudTimeout, Reason.CLOUD_TIMEOUT),
    (CloudRejected, Reason.CLOUD_REJECTED),
    (CloudError, Reason.CLOUD_FAILED),
)

FINAL = frozenset(
    {Reason.CLOUD_REJECTED, Reason.INVALID_OUTPUT, Reason.CALL_LIMIT, Reason.TOKEN_LIMIT}
)
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
        recallable: the pool can be asked again what became of it, without a second bill.

    """

    reason: Reason
    draft: Draft | None = None
    cost_microusd: int = 0
    error: str = ""
    unclear: bool = False
    recallable: bool = False


_MOST_RECALLED = 8

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
        allowance: Allowance | None = None,
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
            allowance: what the action may still use; a fresh one of the task's budget by default.

        Raises:
            StoreError: the ledger cannot be written; nothing was sent that is not held.

        """
        try:
            pool = self._pool(spec.routing.pool)
            pool.check()
        except ConfigError as error:
            return Outcome(Reason.POOL_MISCONFIGURED, error=error.message)
        before = self._recalled(spec, text, labels, trace_id=trace_id, settle=settle)
        if before is not None:
            return before
        asked = question(spec, text, labels=labels, draft=draft)
        if allowance is None:
            allowance = Allowance(spec.budget, started=time.perf_counter())
        once = functools.partial(
            self._once, pool, task=task, spec=spec, trace_id=trace_id, allowance=allowance
        )
        return self._widened(
            once,
            asked,
            lambda: question(spec, text, labels=labels),
            may_ask=lambda: calls_left > 1 and allowance.denies() is None,
            settle=settle or self._settle,
        )

    def _widened(
        self,
        once: Callable[..., Outcome],
        asked: Question,
        full: Callable[[], Question],
        *,
        may_ask: Callable[[], bool],
        settle: Settle,
    ) -> Outcome:
        """Ask, and ask the whole question where none of the labels offered fits."""

        def ends(hold: Hold, answer: CloudAnswer, outcome: Outcome) -> None:
            again = outcome.reason is Reason.NONE_FITS and may_ask()
            (self._settle if again else settle)(hold, answer, outcome)

        first = once(asked, settle=ends)
        if first.reason is not Reason.NONE_FITS or not may_ask():
            return first
        second = once(full(), settle=ends)
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
        allowance: Allowance,
    ) -> Outcome:
        """Hold the money for one question, ask it, and settle or give back."""
        denied = allowance.denies(tokens_in=asked.size)
        if denied is not None:
            return Outcome(denied, error="what the task's budget allows is used up")
        most = allowance.within(spec.budget).max_output_tokens
        max_tokens = min(asked.max_tokens, most)
        try:
            hold = self._book.ledger.reserve(
                trace_id,
                task=task,
                pool=spec.routing.pool,
                worst_case_microusd=pool.worst_case_microusd(
                    asked.messages, max_tokens=max_tokens, response_schema=asked.schema
                ),
                gateway=pool.spec.gateway,
            )
        except BudgetExceeded as error:
            return Outcome(Reason.BUDGET_EXCEEDED, error=error.message)
        allowance.take_call()
        allowance.used(Usage(asked.size, max_tokens))
        try:
            right, request = self._signed(pool, asked, hold, max_tokens)
            answer = pool.complete(
                asked.messages,
                max_tokens=max_tokens,
                deadline_s=_sooner(pool.spec.timeout_s, allowance.left_s),
                response_schema=asked.schema,
                idempotency_key=hold.id,
                on_send=lambda: self._book.ledger.mark_sent(hold, request),
                again=allowance.take_call,
                right=right,
            )
        except CloudError as error:
            return self._failed(hold, error)
        except BaseException:
            self._abandon(hold)
            raise
        allowance.settled(asked.size, max_tokens, Usage(answer.tokens_in, answer.tokens_out))
        outcome = _outcome(answer, read(spec, asked, answer.text))
        settle(hold, answer, outcome)
        return outcome

    def clear(self, hold: Hold) -> bool:
        """Ask the gateway of an unclear hold what it came to; return whether that is known now.

        Raises:
            StoreError: the ledger cannot be read or written.

        """
        try:
            pool = self._pool(hold.pool)
            pool.check()
        except (ConfigError, KeyError):  # a later policy may have taken the pool away
            return False
        found = recall(self._book.ledger, pool, hold)
        if found.answer is not None:
            self._settle(hold, found.answer, Outcome(Reason.ESCALATED))
        return found.answer is not None or found.settled

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

    def _signed(
        self, pool: Pool, asked: Question, hold: Hold, max_tokens: int
    ) -> tuple[Right | None, bytes]:
        """Return what pays at a gateway, and the body to keep until the outcome is known."""
        if not pool.spec.gateway:
            return None, b""
        from edge.cloud.pool import Right

        body = pool.body(asked.messages, max_tokens=max_tokens, response_schema=asked.schema)
        return Right(hold.lease_id, self._book.ledger.lease_text(hold)), body

    def _recalled(
        self,
        spec: TaskSpec,
        text: str,
        labels: Sequence[str],
        *,
        trace_id: str,
        settle: Settle | None,
    ) -> Outcome | None:
        """Return what an earlier request for the task came to; ``None`` where it is to be asked.

        The answer to a narrow question may not be one to the whole: it is paid for, and the task
        is asked in full.
        """
        ledger = self._book.ledger
        for hold in ledger.unclear_requests(_MOST_RECALLED, trace_id=trace_id):
            try:
                pool = self._pool(hold.pool)
            except (ConfigError, KeyError):  # a later policy may have taken the pool away
                return Outcome(Reason.POOL_MISCONFIGURED, unclear=True, recallable=True)
            body = ledger.request(hold.id)
            found = recall(ledger, pool, hold)
            if found.answer is None and not found.settled:
                return Outcome(
                    Reason.CLOUD_FAILED, error=found.error, unclear=True, recallable=True
                )
            if found.answer is None and found.cost_microusd:
                cost = found.cost_microusd
                return Outcome(Reason.CLOUD_FAILED, None, cost, found.error, unclear=True)
            if found.answer is None:
                continue
            asked = question(spec, text, labels=labels)
            outcome = _outcome(found.answer, read(spec, asked, found.answer.text))
            if outcome.draft is not None or _asks_all(body, asked):
                (settle or self._settle)(hold, found.answer, outcome)
                return outcome
            self._settle(hold, found.answer, outcome)
        return None

    def _settle(self, hold: Hold, answer: CloudAnswer, _outcome: Outcome) -> None:
        self._book.ledger.settle(
            hold, answer.cost_microusd, tokens_in=answer.tokens_in, tokens_out=answer.tokens_out
        )

    def _failed(self, hold: Hold, error: CloudError) -> Outcome:
        ledger = self._book.ledger
        sent = ledger.hold(hold.id).state == "sent"
        unclear = sent and error.maybe_billed
        reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
        if isinstance(error, AnswerLost):
            ledger.settle(hold, error.cost_microusd, tokens_in=0, tokens_out=0)
            return Outcome(reason, None, error.cost_microusd, error.message, unclear=True)
        if unclear:
            ledger.leave_unclear(hold, type(error).__name__)
            again = ledger.request(hold.id) is not None
            return Outcome(reason, error=error.message, unclear=True, recallable=again)
        end_lease = error.code if isinstance(error, LeaseRefused) else ""
        ledger.release(hold, certainly_unbilled=True, end_lease=end_lease)
        return Outcome(reason, error=error.message)

    def _abandon(self, hold: Hold) -> None:
        """Give back what was never sent; what may have been sent stays held."""
        if self._book.ledger.hold(hold.id).state == "reserved":
            self._book.ledger.release(hold)


def _asks_all(body: bytes | None, asked: Question) -> bool:
    """Whether a request asked the whole question."""
    sent = read_json(body or b"")
    whole = [{"role": turn.role, "content": turn.content} for turn in asked.messages]
    return isinstance(sent, dict) and sent.get("messages") == whole


def _sooner(timeout_s: float, left_s: float | None) -> float:
    return timeout_s if left_s is None else min(timeout_s, left_s)


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
