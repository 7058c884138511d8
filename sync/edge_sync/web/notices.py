"""What a page tells an admin to look at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notice:
    """Something an admin should look at: how urgent, what, and where to."""

    kind: str
    text: str
    href: str = ""
    link: str = ""
