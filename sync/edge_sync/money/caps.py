"""Caps of a fleet: how much may be spent per period, by the fleet, a group or a device.

A cap covers what is spent within its scope: one level of the tree fleet, group, device, and there
one task or one pool where it names them. A right to spend must fit every cap that covers it, and
no cap means no money. A right for any task fits no cap of one task: where there is one, each task
needs a right of its own. Which task a call is for, the device says; so a cap of a task is as honest
as the device is, while those of fleet, group, device and pool are not up to it. Knows no balances.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from edge.errors import BudgetExceeded, ConfigError, InputError
from edge_sync.money.lease import MOST_MICROUSD
from edge_sync.money.periods import KINDS, Kind

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}"
_SCOPE = re.compile(
    rf"(?:fleet|group:(?P<group>{_NAME})|device:(?P<device>[0-9a-f]{{32}}))"
    rf"(?:;pool:(?P<pool>{_NAME}))?(?:;task:(?P<task>{_NAME}))?"
)


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a right to spend is for: who spends it, where, and on which task (empty: any)."""

    group: str
    device_id: str
    pool_id: str
    task: str = ""

    @property
    def scope(self) -> str:
        """What a lease says of it beside its device and pool: ``group:kiosks;task:draft``."""
        return Scope(group=self.group, task=self.task).text()

    @classmethod
    def of_lease(cls, scope: str, *, device_id: str, pool_id: str) -> Self:
        """Return the purpose that a lease was granted for.

        Raises:
            InputError: the scope names no group.

        """
        found = Scope.parse(scope)
        if not found.group:
            raise InputError(f"The scope {scope[:80]!r} of a lease names no group.")
        return cls(found.group, device_id, pool_id, found.task)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a cap covers; an empty field leaves open which one.

    Attributes:
        group, device: at most one of them; neither means the whole fleet.
        pool, task: only what is spent there, or on that.

    """

    group: str = ""
    device: str = ""
    pool: str = ""
    task: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``fleet``, ``group:kiosks`` or ``device:<id>``, then ``;pool:`` and ``;task:``.

        Raises:
            InputError: it is no scope.

        """
        found = _SCOPE.fullmatch(text)
        if found is None:
            raise InputError(
                f"{text[:80]!r} is no scope of a cap.",
                hint="Write fleet, group:NAME or device:ID, and after it ;pool:NAME or ;task:NAME.",
            )
        return cls(**{name: value or "" for name, value in found.groupdict().items()})

    def text(self) -> str:
        """Return it as it is written."""
        level = "fleet"
        if self.group:
            level = f"group:{self.group}"
        if self.device:
            level = f"device:{self.device}"
        pool = f";pool:{self.pool}" if self.pool else ""
        task = f";task:{self.task}" if self.task else ""
        return level + pool + task

    def covers(self, purpose: Purpose) -> bool:
        """Return whether what is spent for a purpose counts here."""
        return (
            self.group in {"", purpose.group}
            and self.device in {"", purpose.device_id}
            and self.pool in {"", purpose.pool_id}
            and self.task in {"", purpose.task}
        )

    def splits(self, purpose: Purpose) -> bool:
        """Return whether a part of what is spent for a purpose counts here: that on one task."""
        whole = replace(self, task="")
        return bool(self.task) and not purpose.task and whole.covers(purpose)


@dataclass(frozen=True, slots=True)
class Cap:
    """At most so many micro-dollars in each period of a kind."""

    scope: Scope
    kind: Kind
    amount_microusd: int


@dataclass(frozen=True, slots=True)
class Caps:
    """The caps in force; ``Caps.of`` checks them."""

    caps: tuple[Cap, ...]

    @classmethod
    def of(cls, caps: Iterable[Cap]) -> Self:
        """Check caps.

        Raises:
            ConfigError: two caps are for the same, or an amount is no whole number in range.

        """
        whole = tuple(caps)
        seen: set[tuple[Scope, Kind]] = set()
        for cap in whole:
            where = f"The cap of {cap.scope.text()} per {cap.kind}"
            amount = cap.amount_microusd
            if cap.kind not in KINDS:
                raise ConfigError(f"{where} has a period other than {', '.join(KINDS)}.")
            if type(amount) is not int or not 0 <= amount <= MOST_MICROUSD:
                raise ConfigError(f"{where} is {amount!r}, no integer from 0 to {MOST_MICROUSD}.")
            if (cap.scope, cap.kind) in seen:
                raise ConfigError(f"{where} is there twice.", hint="Keep one of them.")
            seen.add((cap.scope, cap.kind))
        return cls(whole)

    def covering(self, purpose: Purpose) -> tuple[Cap, ...]:
        """Return every cap that what is spent for a purpose counts in."""
        return tuple(cap for cap in self.caps if cap.scope.covers(purpose))

    def lease_kind(self, purpose: Purpose) -> Kind:
        """Return the kind of period that a lease may be for: the shortest of the caps above it.

        Raises:
            BudgetExceeded: no cap covers the purpose.

        """
        kinds = {cap.kind for cap in self.covering(purpose)}
        if not kinds:
            raise BudgetExceeded(
                f"No cap covers pool {purpose.pool_id!r} for group {purpose.group!r}.",
                hint="Set a cap: without one no money is spent.",
            )
        return min(kinds, key=KINDS.index)
