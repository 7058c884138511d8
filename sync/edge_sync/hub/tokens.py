"""Admins' tokens: random secrets, stored by digest alone, each with a name and a role.

Guarantees: a revoked or expired token lets nobody in; one token of the role admin always remains.
Knows nothing of HTTP, cookies and sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, insert, select, update

from edge.errors import ConfigError, InputError, StoreError
from edge_sync.hub.home import Hub
from edge_sync.store.schema import tokens

PREFIX = "edge-hub_"
"""Lets scanners for leaked secrets know one."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@\-]{0,63}")
_NOTED_EVERY_S = 60.0


class Role(StrEnum):
    """What an admin may do: look; also steer rollouts; also publish and revoke."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def may(self, needed: Role) -> bool:
        """Whether this role includes another."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Admin:
    """Who a token stands for."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token; times in seconds since the epoch."""

    name: str
    role: Role
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None

    def state(self, now: float) -> str:
        """Return ``valid``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "valid"


def add(
    hub: Hub,
    name: str,
    *,
    role: Role,
    who: str,
    expires_s: float | None = None,
    draw: Callable[[], str] = secrets.token_urlsafe,
) -> str:
    """Make a token and return it: the only time that it can be seen.

    Args:
        hub: the hub, open.
        name: of the admin or program; not in use before.
        role: what it may do.
        who: for the audit log.
        expires_s: for how long it holds, in seconds; for ever where ``None``.
        draw: a random text of 256 bits.

    Raises:
        InputError: the name is taken or no name, or the time is not above 0.

    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot be a token's name.",
            hint="Use up to 64 letters, digits and the marks . _ - @.",
        )
    if expires_s is not None and not 0 < expires_s <= 10 * 366 * 86_400:
        raise InputError(f"A token cannot hold for {expires_s:g} s.", hint="Ten years at most.")
    secret, now = PREFIX + draw(), hub.clock()
    ends = None if expires_s is None else now + expires_s

    def work(connection: Connection) -> None:
        if connection.execute(select(tokens.c.name).where(tokens.c.name == name)).first():
            raise InputError(f"There was a token {name!r} before.", hint="Choose another name.")
        connection.execute(
            insert(tokens).values(
                digest=_digest(secret), name=name, role=role, created_at=now, expires_at=ends
            )
        )

    detail = {"role": str(role), "expires_at": ends}
    hub.change(who, "token.add", about=name, detail=detail, work=work)
    return secret


def check(hub: Hub, token: str) -> Admin | None:
    """Return whom a token stands for; ``None`` where it lets nobody in.

    The table is searched by digest and compared in constant time. That it was used is noted once a
    minute.
    """
    digest, now = _digest(token), hub.clock()
    with hub.store.reading() as connection:
        row = connection.execute(select(tokens).where(tokens.c.digest == digest)).mappings().first()
    if row is None or not hmac.compare_digest(str(row["digest"]), digest):
        return None
    if row["revoked_at"] is not None:
        return None
    if row["expires_at"] is not None and row["expires_at"] <= now:
        return None
    if row["last_used_at"] is None or now - row["last_used_at"] >= _NOTED_EVERY_S:
        _note(hub, digest, now)
    return Admin(row["name"], Role(row["role"]))


def list_tokens(hub: Hub) -> list[Token]:
    """Return all tokens by name, also those that are over."""
    with hub.store.reading() as connection:
        rows = connection.execute(select(tokens).order_by(tokens.c.name)).mappings().all()
    return [_token(dict(row)) for row in rows]


def revoke(hub: Hub, name: str, *, who: str) -> None:
    """End a token at once.

    Raises:
        ConfigError: there is none of this name, or it is the last valid one of an admin.

    """
    now = hub.clock()

    def work(connection: Connection) -> None:
        rows = [_token(dict(row)) for row in connection.execute(select(tokens)).mappings()]
        found = [each for each in rows if each.name == name]
        if not found or found[0].revoked_at is not None:
            known = ", ".join(sorted(each.name for each in rows if each.revoked_at is None))
            raise ConfigError(
                f"There is no token {name!r} to revoke.", hint=f"Tokens: {known or 'none'}."
            )
        rest = [each for each in rows if each.name != name]
        if _opens(found[0], now) and not any(_opens(each, now) for each in rest):
            raise ConfigError(
                f"{name} is the last token of the role admin and stays.",
                hint="Add another first: `edge-hub token add NAME --role admin`.",
            )
        connection.execute(update(tokens).where(tokens.c.name == name).values(revoked_at=now))

    hub.change(who, "token.revoke", about=name, detail={}, work=work)


def _opens(token: Token, now: float) -> bool:
    """Whether a token lets an admin in."""
    return token.role is Role.ADMIN and token.state(now) == "valid"


def _note(hub: Hub, digest: str, now: float) -> None:
    change = update(tokens).where(tokens.c.digest == digest).values(last_used_at=now)
    # Whoever may come in may come in, also where that cannot be noted.
    with suppress(StoreError):
        hub.store.write(lambda connection: connection.execute(change))


def _digest(token: str) -> str:
    return hashlib.sha256(token.strip().encode("utf-8", "replace")).hexdigest()


def _token(row: dict[str, object]) -> Token:
    values = {name: row[name] for name in Token.__slots__}
    return Token(**{**values, "role": Role(str(row["role"]))})  # type: ignore[arg-type]
