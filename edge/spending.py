"""What asking the cloud costs now: the money of a call, at the price that the budget has.

The price rises where money goes faster than the period lasts and falls where it goes slower, so
that what is left is spent where it gains most. It only says what is worth asking; the ledger alone
says what may be spent. State is in the state folder. Asks no pool.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from edge.admit import Call
from edge.asking import question
from edge.cloud.pacing import Pacer, Pacing, advance, incurred, limit, settle, start
from edge.cloud.pricing import worst_case_microusd
from edge.errors import StoreError
from edge.local import LocalTask
from edge.store.ledger import Need, period_bounds
from edge.store.states import State, States
from edge.task import Budget, Pack, PoolSpec
from edge.types import Kind

_NAME = "spending"
_LONGEST_S = 30 * 86_400.0  # over which a budget without an end is spread
_BYTES_PER_TOKEN = 4
_WEIGHT = 0.1  # of the latest cost in a task's usual one


class Spending:
    """The pacing of one runtime's budget. Safe to call from several threads and processes.

    Args:
        states: where it is kept.
        budget: of the pack; without one nothing is worth asking.
        pools: by name.
        labels: what a classification task may choose from.
        outlay: what the ledger says is spent and held in this period, in micro-dollars.
        clock: seconds since the epoch.

    """

    def __init__(
        self,
        states: States,
        budget: Budget | None,
        pools: Mapping[str, PoolSpec],
        *,
        labels: Callable[[LocalTask], Sequence[str]],
        outlay: Callable[[], int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._states = states
        self._budget = budget
        self._pools = pools
        self._labels = labels
        self._outlay = outlay
        self._clock = clock

    def charge(self, call: Call) -> tuple[int, float] | None:
        """Return what asking for a call costs in micro-dollars, and the price of the budget on it.

        ``None`` where no budget or pool is there, or a limit of the pacing stands against it.

        Raises:
            StoreError: the state cannot be read.

        """
        pool = self._pools.get(call.spec.routing.pool)
        if self._budget is None or pool is None:
            return None
        state = self._now(self._states.read(_NAME), call, pool)
        pacer, usual = Pacer.from_dict(state["pacer"]), self._usual(state, call, pool)
        if not _has_room(state, call):
            return None
        if limit(pacer, usual) is not None:
            return None
        return usual, pacer.price

    def spares(self, call: Call) -> bool:
        """Whether asking for a call leaves what the budget keeps for calls as they come."""
        pool, budget = self._pools.get(call.spec.routing.pool), self._budget
        if budget is None or pool is None or budget.interactive_share <= 0:
            return True
        kept = math.ceil(budget.cap_microusd * budget.interactive_share)
        return self._outlay() + self._worst(call, pool) <= budget.cap_microusd - kept

    def claim(self, call: Call) -> bool:
        """Count a call among its task's premium ones; ``False`` where their share is used up.

        Claimed before the pool is asked, in one transaction, so that no number of callers at once
        takes more than the share; what comes of the asking changes nothing. A claim that cannot be
        written down is none, unless all calls may be premium.
        """
        pool = self._pools.get(call.spec.routing.pool)
        if self._budget is None or pool is None:
            return False
        claimed: list[bool] = []

        def step(before: State | None) -> State:
            state = self._now(before, call, pool)
            claimed.append(_has_room(state, call))
            tasks, asked = _premium(state, call)
            state["premium"][call.name] = [tasks, asked + claimed[-1]]
            return state

        try:
            self._states.change(_NAME, step)
        except StoreError:
            return call.spec.routing.premium_share >= 1
        return claimed[-1]

    def passed(self, call: Call, cost_microusd: int, *, reachable: bool) -> None:
        """Take a call that has been decided, with what it cost; 0 where it stayed here.

        Raises:
            StoreError: the state cannot be written.

        """
        pool = self._pools.get(call.spec.routing.pool)
        if self._budget is None or pool is None:
            return

        def step(before: State | None) -> State:
            state = self._now(before, call, pool)
            pacer, now = Pacer.from_dict(state["pacer"]), self._clock()
            pacer = _following(pacer, self._outlay())
            if cost_microusd > 0:
                usual = self._usual(state, call, pool)
                state["usual"][call.name] = round(usual + _WEIGHT * (cost_microusd - usual))
            by = max(0.0, now - state["at"])
            pacer = advance(pacer, by, reachable=reachable)
            tasks, asked = _premium(state, call)
            state["premium"][call.name] = [tasks + 1, asked]
            return {**state, "at": max(now, state["at"]), "pacer": pacer.to_dict()}

        self._states.change(_NAME, step)

    def _now(self, state: State | None, call: Call, pool: PoolSpec) -> dict[str, Any]:
        """Return the state, begun anew in a new period."""
        budget = self._budget or Budget(cap_usd=Decimal(0))
        now, cap = self._clock(), budget.cap_microusd
        first, last = period_bounds(now, budget.period)
        if state is not None and not _is_whole(state):
            state = None  # it only advises: a damaged one starts anew
        if state is not None and (state["period"], state["cap"]) == (first, cap):
            return state
        usual = self._worst(call, pool)
        pacing = Pacing(
            cap, horizon=max(min(last - now, _LONGEST_S), 1.0), call_microusd=max(usual, 1)
        )
        return {
            "period": first,
            "cap": cap,
            "at": now,
            "pacer": start(pacing, share=1.0).to_dict(),
            "usual": dict(state["usual"]) if state else {},
            "premium": {},
        }

    def _usual(self, state: Mapping[str, Any], call: Call, pool: PoolSpec) -> int:
        """Return what this task's calls usually cost; the most that this one can, at first."""
        found = state["usual"].get(call.name)
        return max(1, int(found) if found is not None else self._worst(call, pool))

    def _worst(self, call: Call, pool: PoolSpec) -> int:
        asked = question(call.spec, call.text, labels=self._labels(call.local))
        return worst_case_microusd(
            pool.price, asked.messages, asked.max_tokens, response_schema=asked.schema
        )


def _premium(state: Mapping[str, Any], call: Call) -> tuple[int, int]:
    """Return a task's (calls seen, premium calls claimed) in this period."""
    seen, claimed = state["premium"].get(call.name, (0, 0))
    return seen, claimed


def _has_room(state: Mapping[str, Any], call: Call) -> bool:
    """Whether one more premium call is within the share of the calls seen, this one included.

    Calls under way are not among those seen, so that where all may be premium none is counted out.
    """
    share = call.spec.routing.premium_share
    seen, claimed = _premium(state, call)
    return bool(share >= 1 or claimed + 1 <= share * (seen + 1))


def needs_of(pack: Pack) -> list[Need]:
    """Return which pools the tasks of a pack may ask, and about the most that one call costs.

    Labels that a head brings are not counted; what a call really costs the ledger learns.
    """
    found = []
    for name, spec in pack.tasks.items():
        if spec.privacy.allow_cloud == "never" or spec.kind is Kind.EMBED:
            continue
        size = min(_BYTES_PER_TOKEN * spec.budget.max_input_tokens, spec.input.max_chars)
        asked = question(spec, "x" * size, labels=spec.labels)
        chosen = {rule.model for rule in spec.routing.escalate_if if rule.model is not None}
        for pool in ({spec.routing.pool} | chosen) & pack.pools.keys():
            at = pack.pools[pool]
            cost = worst_case_microusd(
                at.price, asked.messages, asked.max_tokens, response_schema=asked.schema
            )
            found.append(Need(pool, name, at.gateway, cost))
    return found


def _following(pacer: Pacer, outlay_microusd: int) -> Pacer:
    """Return the state with all that was spent or given back since, by whatever task."""
    more = outlay_microusd - pacer.spent_microusd
    return incurred(pacer, more) if more >= 0 else settle(pacer, -more, 0)


def _is_whole(state: State) -> bool:
    """Whether a saved state can be used."""
    try:
        Pacer.from_dict(state["pacer"])
        numbers = (state["at"], state["period"], state["cap"], *state["usual"].values())
        counts = [n for pair in state["premium"].values() for n in pair]
        return all(isinstance(n, int | float) for n in (*numbers, *counts)) and all(
            len(pair) == 2  # noqa: PLR2004
            for pair in state["premium"].values()
        )
    except (StoreError, KeyError, TypeError, AttributeError):
        return False
