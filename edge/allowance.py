"""What one user action may still use: model calls, tokens and time, as hard bounds.

An action is one call of the runtime with all that follows from it at once: local tiers, attempts at
a pool, a second question. Each of them takes from the same allowance before it begins, and what
does not fit is not begun. Guarantees: the counts never exceed the task's budget, whatever fails.
Knows no model and no pool; the clock comes in. Belongs to one call: no two threads share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edge.policy.sections import TaskBudget
from edge.types import Reason, Usage


class Allowance:
    """The allowance of one action.

    Args:
        budget: of the task.
        started: when the action began, on ``clock``.
        clock: seconds, monotonic.

    Attributes:
        calls: model calls begun.
        tokens_in, tokens_out: of those calls; the most they could be where that is not known.
        failed: a local model failed.
        refused: why the local model was not asked, or ``None``.

    """

    __slots__ = (
        *("_budget", "_clock", "_deadline", "_started"),
        *("calls", "failed", "refused", "tokens_in", "tokens_out"),
    )

    def __init__(
        self,
        budget: TaskBudget,
        *,
        started: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._budget = budget
        self._clock = clock
        self._started = started
        self._deadline = None if budget.deadline_ms is None else started + budget.deadline_ms / 1e3
        self.calls = self.tokens_in = self.tokens_out = 0
        self.failed = False
        self.refused: Reason | None = None

    @property
    def calls_left(self) -> int:
        """Model calls that may still begin."""
        return self._budget.max_model_calls - self.calls

    @property
    def tokens_in_left(self) -> int | None:
        """Input tokens left for all calls together; ``None`` for no limit."""
        most = self._budget.max_total_input_tokens
        return None if most is None else most - self.tokens_in

    @property
    def tokens_out_left(self) -> int | None:
        """Output tokens left for all calls together; ``None`` for no limit."""
        most = self._budget.max_total_output_tokens
        return None if most is None else most - self.tokens_out

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the action began."""
        return (self._clock() - self._started) * 1e3

    @property
    def left_s(self) -> float | None:
        """Seconds to the deadline; ``None`` without one."""
        return None if self._deadline is None else self._deadline - self._clock()

    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self._deadline is not None and self._clock() >= self._deadline

    @property
    def canceller(self) -> Callable[[], bool] | None:
        """What tells a generation to end; ``None`` without a deadline."""
        return None if self._deadline is None else self.is_late

    def denies(self, *, tokens_in: int = 1) -> Reason | None:
        """Return why no model call of at least so many input tokens may begin, or ``None``."""
        if self.calls_left < 1:
            return Reason.CALL_LIMIT
        if self.is_late():
            return Reason.DEADLINE
        fits = self.tokens_in_left is None or tokens_in <= self.tokens_in_left
        if not fits or (self.tokens_out_left is not None and self.tokens_out_left < 1):
            return Reason.TOKEN_LIMIT
        return None

    def take_call(self) -> bool:
        """Count a model call that begins now; ``False``, with ``refused``, where none may."""
        denied = self.denies()
        if denied is not None:
            self.refused = denied
            return False
        self.calls += 1
        return True

    def within(self, budget: TaskBudget) -> TaskBudget:
        """Return a budget for one call: the tier's own, cut to what is left."""
        cut = {
            "max_input_tokens": (budget.max_input_tokens, self.tokens_in_left),
            "max_output_tokens": (budget.max_output_tokens, self.tokens_out_left),
        }
        tighter = {
            name: left for name, (most, left) in cut.items() if left is not None and left < most
        }
        return budget.model_copy(update=tighter) if tighter else budget

    def settled(self, tokens_in: int, tokens_out: int, usage: Usage) -> None:
        """Give back what a call was counted for and did not use; more than that it never was."""
        self.tokens_in -= max(0, tokens_in - usage.tokens_in)
        self.tokens_out -= max(0, tokens_out - usage.tokens_out)

    def used(self, usage: Usage) -> None:
        """Count the tokens of a call."""
        self.tokens_in += usage.tokens_in
        self.tokens_out += usage.tokens_out
