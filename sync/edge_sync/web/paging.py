"""Pages of a long list, and the links between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

PER_PAGE = 50
_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list.

    Attributes:
        total: rows in all.
        number: from 1; never beyond the last.
        filters: what was asked for, by field.
        content: what a template shows, by name.

    """

    total: int
    number: int
    filters: Mapping[str, str]
    content: Mapping[str, Any]

    @property
    def last(self) -> int:
        """The number of the last page."""
        return max(1, -(-self.total // PER_PAGE))

    @property
    def filtered(self) -> bool:
        """Whether anything was asked for."""
        return any(self.filters.values())

    def link(self, number: int) -> str:
        """Return the query of another page."""
        return urlencode({**{k: v for k, v in self.filters.items() if v}, "page": number})

    def __getattr__(self, name: str) -> Any:
        """What a template asks for by name: a field of the filter, or a part of the content."""
        if name in self.content:
            return self.content[name]
        if name in self.filters:
            return self.filters[name]
        raise AttributeError(name)


def bounds(asked: str, total: int) -> tuple[int, int]:
    """Return (page number, rows to pass over) for what a query says, however odd."""
    last = max(1, -(-total // PER_PAGE))
    number = int(asked) if asked.isascii() and asked.isdigit() and len(asked) <= _DIGITS else 1
    number = min(max(number, 1), last)
    return number, (number - 1) * PER_PAGE
