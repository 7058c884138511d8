"""Turns a template and values into a page, with the headers that keep it safe.

Everything is escaped. A page runs this site's own script and style alone, is framed by nobody, and
is kept by no cache.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from edge_sync.web import formats
from edge_sync.web.sessions import Person

MENU = (
    ("/", "Fleet"),
    ("/devices", "Devices"),
    ("/policies", "Policies"),
    ("/rollouts", "Rollouts"),
    ("/budget", "Budget"),
    ("/audit", "Audit"),
)
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("edge_sync.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(formats.FILTERS)
    return made


def page(
    request: Request, name: str, person: Person | None, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """Return a page; of a live one, the part alone that the script asks for."""
    live = name.replace(".html", "") if "x-fragment" in request.headers else ""
    template = f"_{live}.html" if live in {"fleet", "rollout", "budget"} else name
    shown = {
        "base": request.scope.get("root_path", ""),
        "menu": MENU,
        "here": "/" + request.url.path.split("/")[1],
        "told": None,
        "person": person,
        **values,
    }
    return HTMLResponse(_templates().get_template(template).render(shown), status, HEADERS)


def problem(
    request: Request, person: Person | None, status: int, title: str, text: str
) -> HTMLResponse:
    """Return a page that says what is wrong and what to do."""
    return page(request, "problem.html", person, status=status, title=title, text=text)
