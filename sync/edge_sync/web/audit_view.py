"""The audit log, a page at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, func, or_, select

from edge_sync.store.schema import audit
from edge_sync.web.paging import PER_PAGE, Page, bounds

_SHOWN = 300
_DIGEST = re.compile(r"[0-9a-f]{64}")


def audit_log(connection: Connection, query: Mapping[str, str], broken: int | None) -> Page:
    """Return a page of entries that fit, the newest first.

    Args:
        connection: to read from.
        query: ``q`` and ``page``.
        broken: the first entry at which the chain does not hold.

    """
    asked = {"q": query.get("q", "")}
    fits = [
        or_(
            *(
                column.icontains(asked["q"], autoescape=True)
                for column in (audit.c.who, audit.c.what, audit.c.about)
            )
        )
    ]
    count = connection.execute(select(func.count()).select_from(audit).where(*fits)).scalar_one()
    number, skip = bounds(query.get("page", ""), count)
    rows = connection.execute(
        select(audit).where(*fits).order_by(audit.c.seq.desc()).limit(PER_PAGE).offset(skip)
    ).mappings()
    entries = [{**row, "detail": _short(row["detail"])} for row in rows]
    return Page(count, number, asked, {"entries": entries, "broken": broken})


def _short(detail: str) -> str:
    """Return an entry's detail as a person reads it: names and values, digests cut."""
    body = json.loads(detail)
    told = " · ".join(
        f"{name} {_value(value)}" for name, value in body.items() if value or value == 0
    )
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}…"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(each)}" for name, each in value.items())
    return _DIGEST.sub(lambda found: found[0][:12], str(value))
