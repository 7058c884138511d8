"""One-time codes by which devices join, each a secret and a pin of the hub's first root.

A code is ``<26 characters of Crockford's base32>-<first 32 hex digits of sha256 of root 1>``: the
first part (128 random bits) lets a device in, the second lets the device know its hub. Only the
digest of a code is stored. Knows nothing of devices and keys.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from edge.errors import ConfigError, InputError
from edge_sync.hub.home import Hub
from edge_sync.hub.refusals import Refused
from edge_sync.store.schema import codes, groups, metadata_files

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
PIN_DIGITS = 32
MOST_USES = 100_000
_BITS, _LENGTH = 128, 26
_KEPT_S = 30 * 86_400.0  # so long a device is told that its code has expired
_ALIKE = str.maketrans("ilo", "110")
_HINT = "Ask the fleet admin for a new one: `edge-hub enroll`."


@dataclass(frozen=True, slots=True)
class Code:
    """A code, as it is told once.

    Attributes:
        text: what the device's operator types.
        group: that devices join.
        uses: how many devices may.
        expires_at: seconds since the epoch.

    """

    text: str
    group: str
    uses: int
    expires_at: float


@dataclass(frozen=True, slots=True)
class Pending:
    """What is known of a code afterwards; ``digest`` stands for it."""

    digest: str
    group: str
    uses_left: int
    expires_at: float
    made_by: str


def make_code(
    hub: Hub,
    *,
    group: str,
    uses: int,
    expires_s: float,
    who: str,
    draw: Callable[[int], int] = secrets.randbits,
) -> Code:
    """Make a code; codes that ended a month ago are removed.

    Args:
        hub: the hub, open.
        group: that devices join; it must be there.
        uses: 1 to 100,000.
        expires_s: for how many seconds it holds, above 0.
        who: for the audit log.
        draw: random bits.

    Raises:
        InputError: a number is out of range.
        ConfigError: there is no such group.

    """
    if not 1 <= uses <= MOST_USES:
        raise InputError(
            f"A code cannot be for {uses} devices.", hint=f"Name 1 to {MOST_USES} uses."
        )
    if not 0 < expires_s <= 366 * 86_400:
        raise InputError(
            f"A code cannot hold for {expires_s:g} s.", hint="Name more than 0 s, a year at most."
        )
    now = hub.clock()
    secret = _encode(draw(_BITS))

    def work(connection: Connection) -> Code:
        _require_group(connection, group)
        connection.execute(delete(codes).where(codes.c.expires_at < now - _KEPT_S))
        made = Code(f"{secret}-{pin(connection)}", group, uses, now + expires_s)
        connection.execute(
            insert(codes).values(
                digest=code_digest(made.text),
                group_name=group,
                uses_left=uses,
                expires_at=made.expires_at,
                made_by=who[:64],
            )
        )
        return made

    return hub.change(
        who,
        "code.make",
        about=group,
        detail=lambda made: {
            "code": code_digest(made.text)[:12],
            "uses": uses,
            "expires_at": made.expires_at,
        },
        work=work,
    )


def redeem(connection: Connection, text: str, *, now: float) -> Pending:
    """Take one use of a code, inside the transaction in which a device joins; return what is left.

    Raises:
        Refused: ``bad_code`` where it was never made, was mistyped or is used up; ``expired_code``.

    """
    digest = code_digest(text)
    row = connection.execute(select(codes).where(codes.c.digest == digest)).mappings().first()
    if row is None or row["uses_left"] < 1:
        raise Refused(
            "bad_code",
            "The enrolment code is not known, or it has been used up.",
            hint=f"Check it for typing errors. {_HINT}",
            what="device.enrol_refused",
        )
    if row["expires_at"] <= now:
        raise Refused(
            "expired_code",
            "The enrolment code has expired.",
            hint=_HINT,
            what="device.enrol_refused",
        )
    left = row["uses_left"] - 1
    connection.execute(update(codes).where(codes.c.digest == digest).values(uses_left=left))
    return Pending(digest, row["group_name"], left, row["expires_at"], row["made_by"])


def list_codes(hub: Hub) -> list[Pending]:
    """Return the codes that still let a device in, the one that ends first in front."""
    query = (
        select(codes)
        .where((codes.c.expires_at > hub.clock()) & (codes.c.uses_left > 0))
        .order_by(codes.c.expires_at)
    )
    with hub.store.reading() as connection:
        return [Pending(*row) for row in connection.execute(query)]


def code_digest(text: str) -> str:
    """Return the sha256 of a code; case, blanks and letters that look like digits do not matter."""
    plain = text.strip().lower().translate(_ALIKE)
    return hashlib.sha256(plain.encode("utf-8", "replace")).hexdigest()


def pin(connection: Connection) -> str:
    """Return what the second part of every code is: it stands for the hub's first root.

    Raises:
        ConfigError: the hub has no root.

    """
    query = select(metadata_files.c.body).where(
        (metadata_files.c.role == "root") & (metadata_files.c.version == 1)
    )
    root = connection.execute(query).scalar()
    if root is None:
        raise ConfigError("The hub has no first root.", hint="Restore its database from a backup.")
    return hashlib.sha256(bytes(root)).hexdigest()[:PIN_DIGITS]


def _require_group(connection: Connection, group: str) -> None:
    names = sorted(connection.execute(select(groups.c.name)).scalars())
    if group not in names:
        raise ConfigError(
            f"There is no group {group!r}; groups: {', '.join(names) or 'none'}.",
            hint="Add it with `edge-hub groups add`.",
        )


def _encode(number: int) -> str:
    """Return a number of 128 bits in Crockford's base32 (https://www.crockford.com/base32.html)."""
    return "".join(ALPHABET[number >> 5 * at & 31] for at in reversed(range(_LENGTH)))
