"""The hub's books of a small world (see ``small_world``), checked by the rules of money."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Generic, TypeVar

from small_lease import Bug, Small, purpose, right

from edge.errors import BudgetExceeded
from edge_sync.money import account
from edge_sync.money.account import Pot, Right
from edge_sync.money.caps import Scope

T = TypeVar("T")

FLEET = Scope()
DEVICES = tuple(Scope(device=purpose(owner).device_id) for owner in (0, 1))


class Numbers(Generic[T]):
    """Values as small numbers, in the order in which they were met."""

    def __init__(self) -> None:
        self.of: dict[T, int] = {}
        self.values: list[T] = []

    def number(self, value: T) -> int:
        """Return the number of a value."""
        known = self.of.setdefault(value, len(self.values))
        if known == len(self.values):
            self.values.append(value)
        return known


class Books:
    """The hub's books in every state that was met, each checked once.

    A lease's part in them is a number; 0 is none.
    """

    def __init__(self, cap: int, device_cap: int, bugs: frozenset[Bug]) -> None:
        self._caps = {FLEET: cap, **dict.fromkeys(DEVICES, device_cap)}
        self._parts: Numbers[Right | None] = Numbers()
        self._parts.number(None)
        self._unit = 0.1 if Bug.FLOAT in bugs else 1
        self.check = cache(self._check)
        self.check_refund = cache(self._check_refund)
        self.granted = cache(self._granted)

    def number(self, small: Small) -> int:
        """Return the number of what the books have of a lease."""
        return self._parts.number(right(small, small.books) if small.books else None)

    def _check(self, parts: tuple[int, ...]) -> None:
        rights = self._rights(parts)
        pots = [self._pot(scope, rights) for scope in self._caps]
        for problem in account.unbalanced(pots, rights):
            raise AssertionError(f"I1: {problem}")

    def _granted(self, known: tuple[int, ...], part: int) -> bool:
        """Grant a right; return whether it fits, which the books must know exactly."""
        (new,) = self._rights((part,))
        exact = [self._parts.values[each] for each in (*known, part)]
        fits = all(
            sum(each.amount_microusd if each.state == "open" else each.used_microusd
                for each in exact if each and scope.covers(each.purpose)) <= cap
            for scope, cap in self._caps.items()
        )  # fmt: skip
        rights = self._rights(known)
        try:
            pots = account.grant(self._pots(rights, new), new)
        except BudgetExceeded:
            assert not fits, "I1: what is free was refused"
            return False
        assert fits, "I1: more was granted than was free"
        assert pots == self._pots((*rights, new), new), "I1: a grant"
        return True

    def _check_refund(self, rest: tuple[int, ...], before: int, after: int) -> None:
        """Check that a seal gives back what was not used, to every pot, once (I14)."""
        others = self._rights(rest)
        old, new = self._rights((before,))[0], self._rights((after,))[0]
        back = old.amount_microusd - new.used_microusd
        for live in (old, account.close(old)):
            had = self._pots((*others, live), live)
            pots, sealed = account.seal(had, live, used_microusd=new.used_microusd)
            again = account.seal(pots, sealed, used_microusd=new.used_microusd)
            assert again == (pots, sealed), "I14: a refund came twice"
            assert sealed == new, "I1: a seal"
            for was, now in zip(had, pots, strict=True):
                assert now.free_microusd == was.free_microusd + back, "I14: a refund"
            assert pots == self._pots((*others, sealed), sealed), "I1: a refund"

    def _rights(self, parts: tuple[int, ...]) -> tuple[Right, ...]:
        found = (self._parts.values[part] for part in parts if part)
        return tuple(
            replace(
                each,
                amount_microusd=each.amount_microusd * self._unit,
                used_microusd=each.used_microusd * self._unit,
            )
            for each in found
            if each
        )

    def _pots(self, rights: tuple[Right, ...], of: Right) -> tuple[Pot, ...]:
        return tuple(self._pot(scope, rights) for scope in self._caps if scope.covers(of.purpose))

    def _pot(self, scope: Scope, rights: tuple[Right, ...]) -> Pot:
        cap: int = self._caps[scope] * self._unit  # type: ignore[assignment]
        return account.open_pot(scope, "total", cap_microusd=cap, rights=rights)
