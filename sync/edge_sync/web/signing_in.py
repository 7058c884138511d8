"""Lets people in by token and remembers them for half a day; sends others to the form."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from urllib.parse import quote

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from edge_sync.hub import tokens
from edge_sync.hub.home import Hub
from edge_sync.store.schema import tokens as table
from edge_sync.web.rendering import page
from edge_sync.web.sessions import (
    COOKIE,
    LASTS_S,
    Person,
    Session,
    form_value,
    opened,
    sealed,
)

_LOGIN_COOKIE = "edge_hub_login"


class Doorkeeper:
    """Knows who looks.

    Args:
        hub: whose tokens count, and whose secret seals the cookies.

    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._key = hub.token_key

    def person(self, cookie: str) -> Person | None:
        """Return whose cookie it is; ``None`` where it has ended or the token counts no more."""
        now = self._hub.clock()
        session = opened(cookie, self._key, now)
        if session is None:
            return None
        with self._hub.store.reading() as connection:
            row = connection.execute(
                select(table.c.role, table.c.revoked_at, table.c.expires_at).where(
                    table.c.name == session.name
                )
            ).first()
        if row is None or row.revoked_at is not None:
            return None
        if row.expires_at is not None and row.expires_at <= now:
            return None
        return Person(session.name, tokens.Role(row.role), form_value(cookie, self._key))

    def login(self, request: Request, form: Mapping[str, str]) -> Response:
        """Show the form, or let somebody in."""
        if request.method == "GET":
            return self._ask(request, request.query_params.get("next", ""), "")
        known = request.cookies.get(_LOGIN_COOKIE, "")
        wanted = form.get("next", "")
        if not known or form.get("csrf") != form_value(known, self._key):
            return self._ask(request, wanted, "The form had grown old. Sign in again.", 403)
        admin = tokens.check(self._hub, form.get("token", ""))
        if admin is None:
            told = "This token is unknown, revoked or expired. Ask an admin for another."
            return self._ask(request, wanted, told, 403)
        session = Session(admin.name, self._hub.clock() + LASTS_S)
        to = wanted if wanted.startswith("/") and not wanted.startswith(("//", "/\\")) else "/"
        answer = RedirectResponse(request.scope.get("root_path", "") + to, 303)
        _set(answer, request, COOKIE, sealed(session, self._key), int(LASTS_S))
        answer.delete_cookie(_LOGIN_COOKIE)
        return answer

    def logout(self, request: Request) -> Response:
        """Forget who it was."""
        answer = self.to_login(request, back=False)
        answer.delete_cookie(COOKIE)
        return answer

    @staticmethod
    def to_login(request: Request, *, back: bool = True) -> Response:
        """Return the way to the form, and from there back."""
        to = request.scope.get("root_path", "") + "/login"
        if back and request.method == "GET" and request.url.path != "/":
            to += f"?next={quote(request.url.path)}"
        return RedirectResponse(to, 303)

    def _ask(self, request: Request, wanted: str, problem: str, status: int = 200) -> Response:
        known = secrets.token_urlsafe(16)
        answer = page(
            request,
            "login.html",
            None,
            status=status,
            csrf=form_value(known, self._key),
            next=wanted,
            problem=problem,
        )
        _set(answer, request, _LOGIN_COOKIE, known, 3_600)
        return answer


def _set(answer: Response, request: Request, name: str, value: str, lasts_s: int) -> None:
    secure = request.url.scheme == "https"
    answer.set_cookie(name, value, max_age=lasts_s, httponly=True, samesite="strict", secure=secure)
