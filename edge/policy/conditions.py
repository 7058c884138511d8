"""Conditions of a policy, such as ``confidence < 0.72 and account_tier == 'enterprise'``.

Untrusted text is read once into a typed tree; nothing of it is ever run. Length and nesting are
bounded, reading takes linear time, and what is refused is refused with its column and a remedy.
Knows no signal by itself: the caller declares the names and their types.

    any         := all ("or" all)*
    all         := single ("and" single)*
    single      := "not" single | "(" any ")" | comparison
    comparison  := operand (operator operand)* | name ["not"] "in" "[" literal ("," literal)* "]"
    operand     := name | number | text | "true" | "false" | "none"

Words of the language may be in any case; a list may stand in round brackets. ``x == none`` asks
whether a value is missing. An operand alone must be a flag.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, get_args

from edge.errors import ConfigError
from edge.policy.tokens import WORD, WORDS, Refusal, Token, shown, tokens
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
    Values,
)

__all__ = [
    "MAX_DEPTH",
    "MAX_LENGTH",
    "Condition",
    "Outcome",
    "Type",
    "Values",
    "evaluate",
    "holds",
    "parse",
]

MAX_LENGTH = 2_000
MAX_DEPTH = 32

_SPOKEN = {"number": "a number", "text": "text", "flag": "a flag", "none": "none"}
_ORDERLESS = {"text": "text has no order", "flag": "true and false have no order"}
_EXAMPLE = {"number": "{} > 0", "text": "{} == 'a'", "none": "{} == none"}
_ORDER, _EQUALITY = ("<", "<=", ">", ">="), ("==", "!=")
_CONSTANTS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a condition comes to.

    Attributes:
        holds: known to hold; ``False`` where it is unknown.
        missing: names whose lack leaves it unknown, in order; empty where it is known.

    """

    holds: bool
    missing: tuple[str, ...] = ()


def holds(condition: Condition, values: Values) -> bool | None:
    """Return whether a condition holds; ``None`` where missing values leave it unknown.

    A value that is absent, ``None``, NaN or of another type than declared is missing.
    """
    return condition.holds(values)


def evaluate(condition: Condition, values: Values) -> Outcome:
    """Return whether a condition is known to hold, and what was missing to know it."""
    known = condition.holds(values)
    if known is None:
        return Outcome(holds=False, missing=tuple(dict.fromkeys(condition.open_names(values))))
    return Outcome(holds=known)


def parse(text: object, names: Mapping[str, Type], *, what: str = "The condition") -> Condition:
    """Read a condition.

    Args:
        text: at most 2,000 characters, also once written out canonically.
        names: what it may speak of, with the type of each.
        what: names the condition in an error.

    Raises:
        ConfigError: it is no condition over these names; or a name or type cannot be one.

    """
    _check_names(names)
    if not isinstance(text, str):
        raise ConfigError(
            f"{what} must be text, not {type(text).__name__}.", hint="Put it in quotes."
        )
    _check_length(what, text)
    try:
        condition = _Reader(tokens(text), names).whole()
    except Refusal as refusal:
        raise ConfigError(
            f"{what} cannot be read at column {refusal.start + 1}: {refusal.reason}.\n"
            f"{shown(text, refusal.start, refusal.end)}",
            hint=refusal.hint,
        ) from None
    _check_length(what, str(condition))
    return condition


def _check_names(names: Mapping[str, Type]) -> None:
    for name, kind in names.items():
        if not WORD.fullmatch(name) or name.lower() in WORDS:
            raise ConfigError(
                f"{name!r} cannot be the name of a value in conditions.",
                hint="Use letters, digits and _, and none of " + ", ".join(sorted(WORDS)) + ".",
            )
        if kind not in get_args(Type):
            raise ConfigError(
                f"The value {name} cannot have the type {kind!r}.",
                hint=f"Use {', '.join(get_args(Type))}.",
            )


def _check_length(what: str, text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise ConfigError(
            f"{what} has {len(text):,} characters when written out.",
            hint=f"Use at most {MAX_LENGTH:,}; split it into several conditions.",
        )


class _Reader:
    """Recursive descent over tokens; the last token is the end of the text."""

    def __init__(self, found: Sequence[Token], names: Mapping[str, Type]) -> None:
        self._tokens, self._names = found, names
        self._at = self._depth = 0

    def whole(self) -> Condition:
        condition = self._any()
        if self._next.kind != "end":
            self._refuse(self._next, f"expected the end, not {self._next}", "Join with and, or.")
        return condition

    def _any(self) -> Condition:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _all(self) -> Condition:
        parts = [self._single()]
        while self._take("and"):
            parts.append(self._single())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _single(self) -> Condition:
        token = self._next
        if token.word not in {"not", "("}:
            return self._comparison()
        with self._deeper(token):
            if self._take("not"):
                return Not(self._single())
            self._take("(")
            inner = self._any()
            self._expect(")", f"the bracket of column {token.start + 1} is open")
            return inner

    @contextmanager
    def _deeper(self, token: Token) -> Iterator[None]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(token, f"it is nested deeper than {MAX_DEPTH}", "Use fewer brackets.")
        yield
        self._depth -= 1

    def _comparison(self) -> Condition:
        start, left = self._next, self._operand()
        if self._next.word in {"in", "not"}:
            return self._membership(start, left)
        pairs: list[Condition] = []
        first = self._next
        while (sign := self._next).kind == "operator":
            if pairs and not {first.word, sign.word} <= set(_ORDER):
                self._refuse_chain(sign)
            self._at += 1
            at, right = self._next, self._operand()
            self._check_pair((start, left), sign, (at, right))
            pairs.append(Comparison(left, sign.word, right))
            start, left = at, right
        if not pairs:
            return self._alone(start, left)
        if len(pairs) == 1:
            return pairs[0]
        # Written out it stands in brackets, so it counts as one level.
        with self._deeper(first):
            return And(tuple(pairs))

    def _alone(self, token: Token, operand: Operand) -> Condition:
        if isinstance(operand, Name) and operand.type == "flag":
            return operand
        if isinstance(operand, Literal) and isinstance(operand.fixed, bool):
            return Constant(operand.fixed)
        name = operand if isinstance(operand, Name) else "name"
        example = _EXAMPLE[operand.type].format(name)
        reason = f"{operand} is {_SPOKEN[operand.type]}, not a condition"
        return self._refuse(token, reason, f"Compare it with a value, as in {example}.")

    def _membership(self, start: Token, left: Operand) -> Condition:
        negated = self._take("not")
        if not self._take("in"):
            before = self._tokens[self._at - 1]
            self._refuse(before, f"after {left} not needs in", "Write not in, or != to compare.")
        if not isinstance(left, Name):
            self._refuse(start, f"{left} is a fixed value", "Put a name on the left of in.")
        members = self._members(left)
        if self._next.kind == "operator" or self._next.word in {"in", "not"}:
            self._refuse_chain(self._next)
        return Membership(left, members, negated)

    def _members(self, name: Name) -> tuple[Literal, ...]:
        opening = self._next
        if opening.word not in {"[", "("}:
            self._refuse(opening, f"in needs a list, not {opening}", "Write in ['a', 'b'].")
        self._at += 1
        closing = {"[": "]", "(": ")"}[opening.word]
        members: list[Literal] = []
        while not (members and self._take(closing)):
            members.append(self._member(name, closing))
            if not self._take(","):
                self._expect(closing, f"expected , or {closing}")
                break
        return tuple(members)

    def _member(self, name: Name, closing: str) -> Literal:
        token = self._next
        if token.word == closing:
            self._refuse(token, "the list is empty", "Put at least one value into it.")
        value = self._operand()
        if isinstance(value, Name):
            self._refuse(token, "a list holds fixed values only", "Compare names with == and or.")
        if value.fixed is None:
            self._refuse(token, "a list cannot hold none", f"Write {name} == none or … instead.")
        self._check_types(name, (token, value))
        return value

    def _operand(self) -> Operand:
        token = self._next
        self._at += token.kind != "end"
        if token.kind in {"number", "text"}:
            self._check_no_arithmetic()
            return Literal(token.value)
        if token.word in _CONSTANTS:
            return Literal(_CONSTANTS[token.word])
        if token.kind != "name":
            self._refuse(
                token,
                f"expected a name or a value, not {token}"
                if token.kind != "end"
                else "it ends where a name or a value should stand",
                "Complete it.",
            )
        return self._name(token)

    def _name(self, token: Token) -> Name:
        after = self._next
        if after.word == "(":
            self._refuse(after, f"{token} cannot be called", "Use the name of a value alone.")
        if after.word == "[":
            self._refuse(after, f"{token} has no parts", "Use the name of a value alone.")
        if token.source not in self._names:
            self._refuse(token, f"{token} is not a name that it may use", self._meant(token.source))
        self._check_no_arithmetic()
        return Name(token.source, self._names[token.source])

    def _meant(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._names, n=1)
        if close:
            return f"Did you mean {close[0]}?"
        return f"Use one of {', '.join(sorted(self._names)) or 'no names: none is declared'}."

    def _check_no_arithmetic(self) -> None:
        after = self._next
        if after.kind == "number" and after.source[0] == "-":
            self._refuse(after, "it knows no arithmetic", "Compare a name with a plain value.")
        if after.source.lower() == "is":
            self._refuse(after, "it knows no is", "Write == or !=.")

    def _check_pair(
        self, left: tuple[Token, Operand], sign: Token, right: tuple[Token, Operand]
    ) -> None:
        if isinstance(left[1], Literal) and isinstance(right[1], Literal):
            self._refuse(left[0], "two fixed values are compared", "Compare a name with a value.")
        kinds = {left[1].type, right[1].type}
        if "none" in kinds:
            if sign.word not in _EQUALITY:
                self._refuse(sign, "none has no order", "Write == none or != none.")
            return
        self._check_types(left[1], right)
        if sign.word in _ORDER and left[1].type != "number":
            self._refuse(sign, _ORDERLESS[left[1].type], "Write == or !=.")

    def _check_types(self, left: Operand, right: tuple[Token, Operand]) -> None:
        token, value = right
        if left.type != value.type:
            reason = f"{left} is {_SPOKEN[left.type]} and {value} is {_SPOKEN[value.type]}"
            self._refuse(token, reason, "Compare values of one type.")

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _take(self, word: str) -> bool:
        found = self._next.word == word
        self._at += found
        return found

    def _expect(self, word: str, reason: str) -> None:
        if not self._take(word):
            tail = "" if reason.startswith("expected") else f": expected {word}"
            self._refuse(self._next, f"{reason}{tail}, not {self._next}", f"Put {word} there.")

    def _refuse_chain(self, sign: Token) -> NoReturn:
        self._refuse(sign, f"{sign} cannot be chained", "Join two comparisons with and.")

    @staticmethod
    def _refuse(token: Token, reason: str, hint: str) -> NoReturn:
        raise Refusal(token.start, token.end, reason=reason, hint=hint)
