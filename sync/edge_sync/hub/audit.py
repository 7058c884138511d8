"""The audit log: who changed what when, as a chain of digests.

Each entry's digest is sha256 over the digest before it, a line break and the entry in canonical
JSON (sorted keys, no spaces). ``verify`` finds the first entry that was edited, removed, put in or
moved; entries cut off at the end are found by the head that is kept in ``facts``, and, where
somebody could write to that too, by a head that was noted elsewhere. Knows nothing of what the
entries mean.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Connection, insert, select, update

from edge.errors import InputError
from edge_sync.store.database import Store
from edge_sync.store.schema import audit, facts

HEAD_FACT = "audit_head"
_START = "0" * 64
_HEAD = re.compile(r"(\d{1,18}):([0-9a-f]{64})")
_PAGE = 1_000
_MOST = 100
"""Characters of ``who`` and ``about``, as the table has room for."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry: its number, 0 where there is none, and its digest."""

    seq: int
    digest: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` of a head gave.

        Raises:
            InputError: it is none.

        """
        found = _HEAD.fullmatch(text.strip())
        if found is None:
            raise InputError(
                f"{text!r} is no head of an audit log.",
                hint="Write it as `edge-hub audit verify` shows it: number:digest.",
            )
        return cls(int(found[1]), found[2])


@dataclass(frozen=True, slots=True)
class Entry:
    """One change.

    Attributes:
        seq: from 1, without gaps.
        at: seconds since the epoch.
        who: name of a token, a device or a part of the hub.
        what: such as ``policy.publish``.
        about: what was changed.
        detail: plain JSON.
        digest: of this entry and all before it.

    """

    seq: int
    at: float
    who: str
    what: str
    about: str
    detail: dict[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The first entry that is not as it was written, and what is wrong with it."""

    seq: int
    reason: str


def append(
    connection: Connection,
    *,
    at: float,
    who: str,
    what: str,
    about: str,
    detail: Mapping[str, Any],
) -> Head:
    """Add an entry inside the transaction of the change that it tells of; return the new head.

    ``who`` and ``about`` are cut to 100 characters.

    Raises:
        ValueError: ``detail`` is not plain JSON.

    """
    # The head, not the last row: where rows were cut off, the gap must stay to be seen.
    last = head(connection)
    values = {
        "seq": last.seq + 1,
        "at": at,
        "who": _fit(who),
        "what": what,
        "about": _fit(about),
        "detail": _canonical(detail),
    }
    new = Head(last.seq + 1, _digest(last.digest, values))
    connection.execute(insert(audit).values(**values, before=last.digest, digest=new.digest))
    if last.seq:
        changed = update(facts).where(facts.c.name == HEAD_FACT).values(value=str(new))
        connection.execute(changed)
    else:
        connection.execute(insert(facts).values(name=HEAD_FACT, value=str(new)))
    return new


def head(connection: Connection) -> Head:
    """Return the head of the log."""
    found = connection.execute(select(facts.c.value).where(facts.c.name == HEAD_FACT)).scalar()
    return Head(0, _START) if found is None else Head.parse(found)


def verify(store: Store, *, known: Head | None = None) -> Broken | None:
    """Return the first broken entry; ``None`` where the log is whole.

    Args:
        store: the hub's database.
        known: a head that was noted earlier, outside of the database.

    Raises:
        StoreError: the database cannot be read.
        InputError: the kept head is not one.

    """
    with store.reading() as connection:
        kept = head(connection)
        last = Head(0, _START)
        for row in _rows(connection):
            broken = _broken(row, last, known)
            if broken is not None:
                return broken
            last = Head(row["seq"], row["digest"])
    if last.seq and not kept.seq:
        return Broken(last.seq, "the head that was kept of the log is gone from the database")
    return _end(last, kept) or (_end(last, known) if known and known.seq > last.seq else None)


def page(
    store: Store,
    *,
    limit: int = 50,
    before: int | None = None,
    who: str | None = None,
    what: str | None = None,
    about: str | None = None,
    since: float | None = None,
) -> list[Entry]:
    """Return entries, the newest first.

    Args:
        store: the hub's database.
        limit: how many at most.
        before: only those with a lower number, to turn the page.
        who: exactly.
        what: how it begins: ``policy`` finds ``policy.publish``.
        about: exactly.
        since: not older than this, in seconds since the epoch.

    Raises:
        StoreError: the database cannot be read.

    """
    query = select(audit).order_by(audit.c.seq.desc()).limit(limit)
    if before is not None:
        query = query.where(audit.c.seq < before)
    if who is not None:
        query = query.where(audit.c.who == who)
    if what is not None:
        query = query.where(audit.c.what.startswith(what, autoescape=True))
    if about is not None:
        query = query.where(audit.c.about == about)
    if since is not None:
        query = query.where(audit.c.at >= since)
    with store.reading() as connection:
        return [_entry(dict(row)) for row in connection.execute(query).mappings()]


def _rows(connection: Connection) -> Iterator[Mapping[str, Any]]:
    """Yield all entries in order, a page at a time, so that a long log needs little memory."""
    query = select(audit).order_by(audit.c.seq).limit(_PAGE)
    rows = connection.execute(query).mappings().all()
    while rows:
        yield from map(dict, rows)
        rows = connection.execute(query.where(audit.c.seq > rows[-1]["seq"])).mappings().all()


def _broken(row: Mapping[str, Any], last: Head, known: Head | None) -> Broken | None:
    seq = int(row["seq"])
    if seq > last.seq + 1:
        return Broken(last.seq + 1, "it is missing")
    if seq <= last.seq:
        return Broken(seq, "it was put in: the log begins with 1")
    if _digest(row["before"], row) != row["digest"]:
        return Broken(seq, "it was changed after it was written")
    if row["before"] != last.digest:
        return Broken(seq, "it does not follow the entry before: one of the two was exchanged")
    if known is not None and known.seq == seq and known.digest != row["digest"]:
        return Broken(seq, "it is not the one that was noted: the log was written anew")
    return None


def _end(last: Head, wanted: Head) -> Broken | None:
    if last.seq < wanted.seq:
        return Broken(last.seq + 1, f"it is missing, and all up to {wanted.seq}: the end was cut")
    if last.seq > wanted.seq:
        return Broken(wanted.seq + 1, f"it was put in: the log ended with {wanted.seq}")
    if last.digest != wanted.digest:
        return Broken(last.seq, "it is not the last one that was written")
    return None


def _digest(before: str, values: Mapping[str, Any]) -> str:
    entry = {name: values[name] for name in ("seq", "at", "who", "what", "about", "detail")}
    return hashlib.sha256(f"{before}\n{_canonical(entry)}".encode()).hexdigest()


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _fit(text: str) -> str:
    """Return a text as both databases can hold it."""
    whole = text.replace("\0", "").encode("utf-8", "replace").decode()
    return whole if len(whole) <= _MOST else f"{whole[: _MOST - 1]}…"


def _entry(row: Mapping[str, Any]) -> Entry:
    return Entry(
        seq=int(row["seq"]),
        at=float(row["at"]),
        who=str(row["who"]),
        what=str(row["what"]),
        about=str(row["about"]),
        detail=_detail(row["detail"]),
        digest=str(row["digest"]),
    )


def _detail(text: str) -> dict[str, Any]:
    """Return the detail; one that somebody made unreadable is shown as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return {"text": text}
    return value if isinstance(value, dict) else {"value": value}
