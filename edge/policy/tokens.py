"""The words and signs of a condition, with their places; and how a place is shown to a person.

Reads in linear time and refuses what belongs to other languages with the word to write instead.
Knows no names and no grammar.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NoReturn

WORDS = frozenset({"and", "or", "not", "in", "true", "false", "none"})
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_NUMBER = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<number>-?\.?[0-9](?:[eE][+-]|[A-Za-z0-9_.])*)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<foreign>===|<>|&&?|\|\|?|!(?!=)|=(?!=)|[-+*/%^~.])
    |(?P<operator>[=!<>]=|[<>])
    |(?P<bracket>[][(),])""",
    re.VERBOSE | re.DOTALL,
)
_INSTEAD = {
    "===": ("it knows no ===", "Write ==."),
    "<>": ("it knows no <>", "Write !=."),
    "=": ("= would assign", "Write == to compare."),
    "!": ("it knows no !", "Write not."),
    ".": ("a name has no parts", "Use the name of a value alone."),
    **{sign: (f"it knows no {sign}", "Write and.") for sign in ("&&", "&")},
    **{sign: (f"it knows no {sign}", "Write or.") for sign in ("||", "|")},
    **dict.fromkeys("-+*/%^~", ("it knows no arithmetic", "Compare a name with a plain value.")),
}
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_BEFORE, _SHOWN, _LONGEST = 40, 80, 160


class Refusal(Exception):  # noqa: N818
    """Why a text is no condition, and which characters are to blame."""

    def __init__(self, start: int, end: int, *, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.start, self.end, self.hint = start, end, hint
        cut = reason if len(reason) <= _LONGEST else reason[:_LONGEST] + "…"
        self.reason = _printable(cut)


@dataclass(frozen=True, slots=True)
class Token:
    """One word or sign.

    Attributes:
        kind: number, text, name, word, operator, bracket or end.
        start, end: its place in the text, from 0.
        source: as it is written.
        word: what the grammar compares with: words of the language in lower case; else empty.
        value: of a number or a text.

    """

    kind: str
    start: int
    end: int
    source: str
    word: str = ""
    value: float | str = 0.0

    def __str__(self) -> str:
        return self.source or "the end"


def tokens(text: str) -> list[Token]:
    """Return the tokens of a text, the end last.

    Raises:
        Refusal: a character, a number or a text in quotes is none that conditions know.

    """
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            _refuse_character(text, at)
        at = match.end()
        if match.lastgroup != "space":
            found.append(_token(match.lastgroup, match))
    return [*found, Token("end", len(text), len(text), "")]


def _token(kind: str, match: re.Match[str]) -> Token:
    source, (start, end) = match.group(), match.span()
    if kind == "foreign":
        reason, hint = _INSTEAD[source]
        raise Refusal(start, end, reason=reason, hint=hint)
    if kind == "number":
        return Token(kind, start, end, source, value=_number(match))
    if kind == "text":
        return Token(kind, start, end, source, value=_text(match))
    if kind == "name" and source.lower() not in WORDS:
        return Token(kind, start, end, source)
    return Token("word" if kind == "name" else kind, start, end, source, word=source.lower())


def _number(match: re.Match[str]) -> float:
    source, (start, end) = match.group(), match.span()
    if not _NUMBER.fullmatch(source):
        raise Refusal(start, end, reason=f"{source} is no number", hint="Write it as 12 or 0.5.")
    value = float(source)
    if math.isinf(value):
        raise Refusal(start, end, reason=f"{source} is too large", hint="Use a smaller number.")
    return value


def _text(match: re.Match[str]) -> str:
    body, start = match.group()[1:-1], match.start() + 1
    for escape in _ESCAPE.finditer(body):
        if escape.group(1) not in "\\'\"":
            raise Refusal(
                start + escape.start(),
                start + escape.end(),
                reason=f"{escape.group()} stands for nothing",
                hint="Write the character itself; a backslash goes before quotes and backslashes.",
            )
    return _ESCAPE.sub(r"\1", body)


def _refuse_character(text: str, at: int) -> NoReturn:
    if text[at] in "'\"":
        reason, hint = "the text is never closed", f"Close it with {text[at]}"
        raise Refusal(at, at + 1, reason=reason, hint=f"{hint}.")
    reason = f"{text[at]!r} belongs to no condition"
    raise Refusal(at, at + 1, reason=reason, hint="Remove it, or put text in quotes.")


def shown(text: str, start: int, end: int) -> str:
    """Return the part of a text around a place, and below it a line that points there."""
    first = max(start - _BEFORE, 0)
    excerpt = text[first : first + _SHOWN]
    width = max(min(end, first + _SHOWN) - start, 1)
    return f"    {_printable(excerpt)}\n    {' ' * (start - first)}{'^' * width}"


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)
