"""Whether values are plain JSON: what YAML has beyond it is refused, and so is what has no end.

Bounded work: a short text whose aliases stand for a huge value is refused early.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

from edge.errors import ConfigError

MAX_LEVELS = 200
MAX_VALUES = 100_000
_MAX_INTEGER = 2**64


def check_plain(value: object, what: str) -> None:
    """Make sure that a value is plain JSON.

    Args:
        value: of a YAML or JSON reader.
        what: names it in an error.

    Raises:
        ConfigError: it holds itself, a date, a number that is not finite or the like, or is nested
            too deep or too large; place, reason and remedy are named.

    """
    _Walk(what).enter(value, ())


class _Walk:
    """One walk; counts what it sees."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._left = MAX_VALUES
        self._open: set[int] = set()

    def enter(self, value: object, at: tuple[str, ...]) -> None:
        self._left -= 1
        if self._left < 0:
            self._refuse(at, f"it holds more than {MAX_VALUES:,} values", "Shorten it.")
        if len(at) > MAX_LEVELS:
            self._refuse(at, f"it is nested deeper than {MAX_LEVELS}", "Use fewer levels.")
        if not isinstance(value, dict | list):
            self._check_single(value, at)
            return
        if id(value) in self._open:
            self._refuse(at, "it holds itself through an alias", "Write it out instead.")
        self._open.add(id(value))
        pairs: Any = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            if isinstance(value, dict):
                self._check_key(key, at)
            self.enter(inner, (*at, str(key)))
        self._open.discard(id(value))

    def _check_key(self, key: object, at: tuple[str, ...]) -> None:
        if not isinstance(key, str):
            self._refuse(at, f"the key {str(key)[:40]!r} is no text", "Put it in quotes.")
        self._check_single(key, at)

    def _check_single(self, value: object, at: tuple[str, ...]) -> None:
        if value is None or isinstance(value, bool):
            return
        if isinstance(value, str):
            if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
                self._refuse(at, "it holds half of a character", "Save it as UTF-8.")
        elif isinstance(value, int):
            if abs(value) >= _MAX_INTEGER:
                self._refuse(at, "the number is too large", "Use a smaller one.")
        elif not isinstance(value, float):
            reason = f"it is of the type {type(value).__name__}"
            self._refuse(at, reason, "Put it in quotes, or write plain values.")
        elif not math.isfinite(value):
            self._refuse(at, "the number is not finite", "Use a finite one.")

    def _refuse(self, at: tuple[str, ...], reason: str, hint: str) -> NoReturn:
        place = ".".join(at)[:80] or "the top level"
        raise ConfigError(f"{self._what} is wrong at {place}: {reason}.", hint=hint)
