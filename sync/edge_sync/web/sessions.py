"""Who looks at the dashboard: signed cookies, roles, and forms that only this site can send.

A session is a token's name and an end under an HMAC; it holds no token, and the database is asked
with every request whether the token still counts. Forms carry a value that is derived from the
cookie, so another site cannot send one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass

from edge_sync.hub.tokens import Role

COOKIE = "edge_hub"
LASTS_S = 12 * 3_600.0


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who has signed in.

    Attributes:
        name: of the token.
        role: what this person may do.
        csrf: what this person's forms carry.

    """

    name: str
    role: Role
    csrf: str

    def may(self, role: str) -> bool:
        """Return whether this person's role includes another."""
        return self.role.may(Role(role))


@dataclass(frozen=True, slots=True)
class Session:
    """What a cookie says: the name of the token, and until when."""

    name: str
    ends: float


def sealed(session: Session, key: bytes) -> str:
    """Return the cookie of a session."""
    body = base64.urlsafe_b64encode(json.dumps([session.name, session.ends]).encode()).decode()
    return f"{body}.{_mac(key, 'session', body)}"


def opened(cookie: str, key: bytes, now: float) -> Session | None:
    """Return the session of a cookie; ``None`` where it was not made here or has ended."""
    body, _, mac = cookie.partition(".")
    if not hmac.compare_digest(mac.encode(), _mac(key, "session", body).encode()):
        return None
    name, ends = json.loads(base64.urlsafe_b64decode(body))
    return Session(name, ends) if ends > now else None


def form_value(about: str, key: bytes) -> str:
    """Return what the forms of one session carry."""
    return _mac(key, "form", about)


def _mac(key: bytes, what: str, about: str) -> str:
    return hmac.new(key, f"edge-web-{what}\n{about}".encode(), hashlib.sha256).hexdigest()
