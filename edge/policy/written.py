"""Conditions as plain JSON, so that a device takes them from a signed document without a parser.

    {"compare": "<", "left": {"name": "confidence", "type": "number"}, "right": {"value": 0.72}}
    {"in": ["a", "b"], "name": "tier", "type": "text", "negated": false}
    {"and": [...]}   {"or": [...]}   {"not": {...}}   {"constant": true}
    {"name": "urgent", "type": "flag"}

What is read is held to every rule that the text of a condition is held to: types that fit, bounded
nesting, bounded length. ``read_tree(write_tree(c)) == c`` for every condition that can be parsed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias, get_args

from edge.errors import ConfigError
from edge.policy.conditions import MAX_DEPTH, MAX_LENGTH
from edge.policy.tokens import WORD, WORDS
from edge.policy.tree import (
    And,
    Comparison,
    Condition,
    Constant,
    Literal,
    Membership,
    Name,
    Not,
    Operand,
    Or,
    Type,
)
from edge.types import Json

_Object: TypeAlias = dict[str, Any]

# Text nested MAX_DEPTH times has an Or and an And on each level, and a Not or a leaf on the last.
MAX_LEVELS = 2 * (MAX_DEPTH + 1) + 1

_ORDER, _EQUALITY = frozenset({"<", "<=", ">", ">="}), frozenset({"==", "!="})
_HINT = "Publish the policy again from its text."


def write_tree(condition: Condition) -> dict[str, Json]:
    """Return a condition as a JSON object."""
    match condition:
        case Name():
            return _write_name(condition)
        case Constant(truth):
            return {"constant": truth}
        case Not(part):
            return {"not": write_tree(part)}
        case And(parts) | Or(parts):
            key = "and" if isinstance(condition, And) else "or"
            return {key: [write_tree(part) for part in parts]}
        case Membership(name, members, negated):
            fixed: list[Json] = [member.fixed for member in members]
            return {"in": fixed, **_write_name(name), "negated": negated}
        case Comparison(left, sign, right):
            return {"compare": sign, "left": _write_operand(left), "right": _write_operand(right)}


def _write_name(name: Name) -> dict[str, Json]:
    return {"name": name.name, "type": name.type}


def _write_operand(operand: Operand) -> dict[str, Json]:
    return _write_name(operand) if isinstance(operand, Name) else {"value": operand.fixed}


def read_tree(
    value: object, names: Mapping[str, Type] | None = None, *, what: str = "The condition"
) -> Condition:
    """Return the condition that a JSON object stands for.

    Args:
        value: what ``write_tree`` gave.
        names: what it may speak of, with the type of each; anything where ``None``.
        what: names the condition in an error.

    Raises:
        ConfigError: it is no tree of a condition over these names.

    """
    reader = _Reader(what, names)
    condition = reader.condition(value, MAX_LEVELS)
    if len(str(condition)) > MAX_LENGTH:
        reader.refuse(f"it has more than {MAX_LENGTH:,} characters when written out")
    return condition


class _Reader:
    """Builds one tree; ``levels`` counts down how deep it may still go."""

    def __init__(self, what: str, names: Mapping[str, Type] | None) -> None:
        self._what, self._names = what, names
        self._left = MAX_LENGTH  # every part takes a character or more of the text

    def refuse(self, reason: str) -> NoReturn:
        raise ConfigError(f"{self._what} is no tree of a condition: {reason}.", hint=_HINT)

    def condition(self, value: object, levels: int) -> Condition:
        self._count()
        if levels <= 0:
            self.refuse("it is nested too deep")
        if not isinstance(value, dict):
            self.refuse(f"a part is {_kind(value)} and not an object")
        form = _FORMS.get(frozenset(value))
        if form is None:
            keys = ", ".join(sorted(map(str, value)))[:80] or "none"
            self.refuse(f"a part has the keys {keys}, which together mean nothing")
        return form(self, value, levels - 1)

    def comparison(self, value: _Object, _levels: int) -> Condition:
        sign, left, right = value["compare"], *map(self._operand, (value["left"], value["right"]))
        kinds = {left.type, right.type}
        if isinstance(left, Literal) and isinstance(right, Literal):
            self.refuse("two fixed values are compared")
        if not isinstance(sign, str) or sign not in _ORDER | _EQUALITY:
            self.refuse(f"{str(sign)[:20]!r} is no comparison")
        if "none" not in kinds and len(kinds) > 1:
            self.refuse(f"{left} is a {left.type} and {right} is a {right.type}")
        if sign in _ORDER and kinds != {"number"}:
            self.refuse(f"{sign} needs numbers on both sides")
        return Comparison(left, sign, right)

    def membership(self, value: _Object, _levels: int) -> Condition:
        name, members, negated = self._name(value), value["in"], value["negated"]
        if not isinstance(members, list) or not members:
            self.refuse("in needs a list of one value or more")
        fixed = tuple(self._literal(member) for member in members)
        if {member.type for member in fixed} != {name.type}:
            self.refuse(f"a list that {name} is looked up in holds values of another type")
        return Membership(name, fixed, self._truth(negated))

    def flag(self, value: _Object, _levels: int) -> Condition:
        name = self._name(value)
        if name.type != "flag":
            self.refuse(f"{name} alone must be a flag, and it is a {name.type}")
        return name

    def constant(self, value: _Object, _levels: int) -> Condition:
        return Constant(self._truth(value["constant"]))

    def opposite(self, value: _Object, levels: int) -> Condition:
        return Not(self.condition(value["not"], levels))

    def every(self, value: _Object, levels: int) -> Condition:
        return And(self._parts(value["and"], levels))

    def either(self, value: _Object, levels: int) -> Condition:
        return Or(self._parts(value["or"], levels))

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            self.refuse("it is too long")

    def _parts(self, parts: object, levels: int) -> tuple[Condition, ...]:
        if not isinstance(parts, list) or len(parts) < 2:  # noqa: PLR2004
            self.refuse("and, or need a list of two parts or more")
        return tuple(self.condition(part, levels) for part in parts)

    def _truth(self, value: object) -> bool:
        if not isinstance(value, bool):
            self.refuse(f"a flag is {_kind(value)}")
        return value

    def _name(self, value: _Object) -> Name:
        name, kind = value["name"], value["type"]
        if not isinstance(name, str) or not WORD.fullmatch(name) or name.lower() in WORDS:
            self.refuse(f"{str(name)[:40]!r} cannot be a name")
        if kind not in get_args(Type):
            self.refuse(f"{name} cannot be of the type {str(kind)[:40]!r}")
        declared = kind if self._names is None else self._names.get(name)
        if declared is None:
            self.refuse(f"{name} is not a name that it may use")
        if declared != kind:
            self.refuse(f"{name} is declared as {declared} and not as {kind}")
        return Name(name, declared)

    def _operand(self, value: object) -> Operand:
        if not isinstance(value, dict):
            self.refuse(f"an operand is {_kind(value)} and not an object")
        if value.keys() == {"value"}:
            return self._literal(value["value"])
        if value.keys() != {"name", "type"}:
            self.refuse("an operand is a value, or a name with its type")
        return self._name(value)

    def _literal(self, value: object) -> Literal:
        self._count()
        if value is None or isinstance(value, bool | str):
            return Literal(value)
        if not isinstance(value, int | float):
            self.refuse(f"a value is {_kind(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.refuse("a number is not finite")
        return Literal(number)


_FORMS: dict[frozenset[Any], Callable[[_Reader, _Object, int], Condition]] = {
    frozenset({"compare", "left", "right"}): _Reader.comparison,
    frozenset({"in", "name", "type", "negated"}): _Reader.membership,
    frozenset({"name", "type"}): _Reader.flag,
    frozenset({"constant"}): _Reader.constant,
    frozenset({"not"}): _Reader.opposite,
    frozenset({"and"}): _Reader.every,
    frozenset({"or"}): _Reader.either,
}


def _kind(value: object) -> str:
    return "nothing" if value is None else f"of the type {type(value).__name__}"
