"""The tree of a condition: frozen values that compare, combine and print themselves.

Evaluation is three-valued (Kleene 1952): a missing value leaves a comparison unknown. Printed, a
tree gives canonical text that ``edge.policy.conditions`` reads back to the same tree. Trusts that
the types fit: checking them is the reader's part.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, Union
from typing import Literal as OneOf

Type: TypeAlias = OneOf["number", "text", "flag"]
Plain: TypeAlias = float | str | bool | None
Values: TypeAlias = Mapping[str, object]
Condition: TypeAlias = Union["Comparison", "Membership", "Name", "Constant", "Not", "And", "Or"]

_PYTHON: dict[str, type | tuple[type, ...]] = {"number": (int, float), "text": str, "flag": bool}
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Name:
    """A declared name; by itself a condition where it is a flag."""

    name: str
    type: Type

    def value(self, values: Values) -> Plain:
        """Return its value; ``None`` where it is missing, NaN, or of another type."""
        found = values.get(self.name)
        if not isinstance(found, _PYTHON[self.type]) or found != found:  # noqa: PLR0124
            return None
        # A bool is an int to Python, but no number to a policy.
        return None if self.type == "number" and isinstance(found, bool) else found  # type: ignore[return-value]

    def holds(self, values: Values) -> bool | None:
        """Return the flag's value."""
        return self.value(values)  # type: ignore[return-value]

    def open_names(self, values: Values) -> Iterator[str]:
        """Yield the name where it has no value."""
        if self.value(values) is None:
            yield self.name

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Literal:
    """A fixed value."""

    fixed: Plain

    @property
    def type(self) -> str:
        """Its type; ``none`` is of its own."""
        if self.fixed is None:
            return "none"
        if isinstance(self.fixed, bool):
            return "flag"
        return "text" if isinstance(self.fixed, str) else "number"

    def value(self, values: Values) -> Plain:  # noqa: ARG002
        """Return the value."""
        return self.fixed

    def open_names(self, values: Values) -> Iterator[str]:  # noqa: ARG002
        """Yield nothing: a fixed value is never missing."""
        yield from ()

    def __str__(self) -> str:
        fixed = self.fixed
        if fixed is None or isinstance(fixed, bool):
            return str(fixed).lower()
        if isinstance(fixed, str):
            return "'" + fixed.replace("\\", "\\\\").replace("'", "\\'") + "'"
        whole = fixed.is_integer() and abs(fixed) < 1e15  # noqa: PLR2004
        return str(int(fixed)) if whole else repr(fixed)


Operand: TypeAlias = Name | Literal


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two operands of one type; ``== none`` asks whether a value is missing and is always known."""

    left: Operand
    operator: str
    right: Operand

    def holds(self, values: Values) -> bool | None:
        """Compare; unknown where a value is missing."""
        left, right = self.left.value(values), self.right.value(values)
        if (left is None or right is None) and not self._asks_for_none():
            return None
        return _OPERATORS[self.operator](left, right)

    def open_names(self, values: Values) -> Iterator[str]:
        """Yield the names without a value."""
        yield from self.left.open_names(values)
        yield from self.right.open_names(values)

    def _asks_for_none(self) -> bool:
        return "none" in {self.left.type, self.right.type}

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right}"


@dataclass(frozen=True, slots=True)
class Membership:
    """A name's value is, or is not, one of a list."""

    name: Name
    members: tuple[Literal, ...]
    negated: bool = False

    def holds(self, values: Values) -> bool | None:
        """Look the value up; unknown where it is missing."""
        value = self.name.value(values)
        if value is None:
            return None
        return any(value == each.fixed for each in self.members) != self.negated

    def open_names(self, values: Values) -> Iterator[str]:
        """Yield the name where it has no value."""
        return self.name.open_names(values)

    def __str__(self) -> str:
        word = "not in" if self.negated else "in"
        return f"{self.name} {word} [{', '.join(map(str, self.members))}]"


@dataclass(frozen=True, slots=True)
class Constant:
    """``true`` or ``false``."""

    truth: bool

    def holds(self, values: Values) -> bool:  # noqa: ARG002
        """Return the constant."""
        return self.truth

    def open_names(self, values: Values) -> Iterator[str]:  # noqa: ARG002
        """Yield nothing."""
        yield from ()

    def __str__(self) -> str:
        return str(self.truth).lower()


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite; of unknown, unknown."""

    part: Condition

    def holds(self, values: Values) -> bool | None:
        """Turn the part's outcome round."""
        known = self.part.holds(values)
        return None if known is None else not known

    def open_names(self, values: Values) -> Iterator[str]:
        """Yield what leaves the part open."""
        return self.part.open_names(values)

    def __str__(self) -> str:
        return f"not {_enclosed(self.part, And, Or)}"


@dataclass(frozen=True, slots=True)
class _Group:
    parts: tuple[Condition, ...]
    decisive: ClassVar[bool]

    def holds(self, values: Values) -> bool | None:
        """One decisive part decides, even beside unknown ones."""
        outcome: bool | None = not self.decisive
        for part in self.parts:
            known = part.holds(values)
            if known is self.decisive:
                return known
            if known is None:
                outcome = None
        return outcome

    def open_names(self, values: Values) -> Iterator[str]:
        """Yield what leaves the unknown parts open."""
        for part in self.parts:
            if part.holds(values) is None:
                yield from part.open_names(values)


@dataclass(frozen=True, slots=True)
class And(_Group):
    """Every part holds; two parts or more."""

    decisive: ClassVar[bool] = False

    def __str__(self) -> str:
        return " and ".join(_enclosed(part, And, Or) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Or(_Group):
    """At least one part holds; two parts or more."""

    decisive: ClassVar[bool] = True

    def __str__(self) -> str:
        return " or ".join(_enclosed(part, Or) for part in self.parts)


def _enclosed(part: Condition, *looser: type) -> str:
    return f"({part})" if isinstance(part, looser) else str(part)
