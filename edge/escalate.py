"""One question to a cloud pool, with the money held before it leaves and settled afterwards.

reserve -> mark sent -> ask -> settle, or release where it certainly was not billed. An unclear
outcome stays held. Killed at any point, the next opening of the ledger puts the hold right.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.cloud.chat import Message
from edge.errors import (
    BudgetExceeded,
    CircuitOpen,
    CloudError,
    CloudRejected,
    CloudTimeout,
    ConfigError,
)
from edge.judge import value_problem
from edge.store.book import Book
from edge.store.ledger import Hold
from edge.strict import strict_json
from edge.task import TaskSpec
from edge.types import Draft, Json, Kind, Reason, Usage

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
        settle: Settle | None = None,
    ) -> Outcome:
        """Ask the task's pool.

        Args:
            task: the task's name.
            spec: the task.
            text: what to send; whoever calls has made sure that it may leave.
            trace_id: ties hold, queue entry and trace together.
            labels: what a classification may choose from.
            settle: replaces the plain settling, to bind more to its transaction.

        Raises:
            StoreError: the ledger cannot be written; nothing was sent.

        """
        try:
            pool = self._pool(spec.routing.pool)
            pool.check()
        except ConfigError as error:
            return Outcome(Reason.POOL_MISCONFIGURED, error=error.message)
        messages = _messages(spec, text, labels)
        most = spec.budget.max_output_tokens
        schema = spec.output_schema if spec.kind is Kind.EXTRACT else None
        try:
            hold = self._book.ledger.reserve(
                trace_id,
                task=task,
                pool=spec.routing.pool,
                worst_case_microusd=pool.worst_case_microusd(
                    messages, max_tokens=most, response_schema=schema
                ),
            )
        except BudgetExceeded as error:
            return Outcome(Reason.BUDGET_EXCEEDED, error=error.message)
        try:
            answer = pool.complete(
                messages,
                max_tokens=most,
                response_schema=schema,
                idempotency_key=hold.id,
                on_send=lambda: self._book.ledger.mark_sent(hold),
            )
        except CloudError as error:
            return self._failed(hold, error)
        except BaseException:
            self._abandon(hold)
            raise
        outcome = _outcome(spec, answer, labels)
        (settle or self._settle)(hold, answer, outcome)
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


def _messages(spec: TaskSpec, text: str, labels: Sequence[str]) -> list[Message]:
    told = spec.cloud_prompt
    if not told and spec.kind is Kind.CLASSIFY:
        told = "Classify the text. Answer with exactly one of these labels and nothing else:\n"
        told += "\n".join(labels)
    elif not told and spec.kind is Kind.EXTRACT:
        told = "Extract the call as one JSON object that fits this JSON Schema:\n"
        told += json.dumps(spec.output_schema)
    elif not told:
        told = spec.description or "Answer the request."
    return [Message("system", told), Message("user", text)]


def _outcome(spec: TaskSpec, answer: CloudAnswer, labels: Sequence[str]) -> Outcome:
    cost = answer.cost_microusd
    try:
        value = _value(spec, answer.text)
    except ValueError:
        # Its message is left out: it may quote the answer.
        return Outcome(Reason.INVALID_OUTPUT, cost_microusd=cost, error="the answer is not JSON")
    problem = value_problem(spec, value, labels=labels)
    if problem is not None:
        return Outcome(Reason.INVALID_OUTPUT, cost_microusd=cost, error=problem)
    draft = Draft(
        value=value,
        model=answer.model,
        digest="",
        device="cloud",
        usage=Usage(answer.tokens_in, answer.tokens_out),
        text=answer.text,
    )
    return Outcome(Reason.ESCALATED, draft, cost)


def _value(spec: TaskSpec, text: str) -> Json:
    """Return a pool's answer as a value.

    Raises:
        ValueError: it should be JSON and is not.

    """
    plain = text.strip()
    if spec.kind is not Kind.EXTRACT:
        return plain.strip("`\"' .") if spec.kind is Kind.CLASSIFY else plain
    return strict_json(plain.removeprefix("```json").removeprefix("```").removesuffix("```"))
