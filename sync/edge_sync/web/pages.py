"""The dashboard's addresses: who may see and do what, and what each page reads.

Pages are read in one transaction each; changes go through the same functions as the commands of
``edge-hub`` and stand in the audit log under the name of the token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import parse_qs

from sqlalchemy import Connection, select
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from edge.errors import EdgeError
from edge_sync.hub import audit
from edge_sync.hub.budget.pace import Paces
from edge_sync.hub.home import Hub
from edge_sync.store.schema import groups
from edge_sync.web.actions import ACTIONS, publish
from edge_sync.web.audit_view import audit_log
from edge_sync.web.budget_view import budget, read_paces
from edge_sync.web.device_view import device_list, one_device
from edge_sync.web.fleet_view import fleet
from edge_sync.web.policy_view import changes, newest, one_policy, policy_list
from edge_sync.web.rendering import page, problem
from edge_sync.web.rollout_view import one_rollout, rollout_list
from edge_sync.web.sessions import COOKIE, Person
from edge_sync.web.signing_in import Doorkeeper

Handler: TypeAlias = Callable[[Request, Person], Response]
_MOST_FORM = 2_000_000
_VERIFIED_FOR_S = 30.0
_PACED_FOR_S = 60.0
_MISSING = "Go back to the list, or check the address."


def routes(hub: Hub) -> list[BaseRoute]:
    """Return what the hub's server mounts beside the devices' endpoints."""
    return [Mount("/", app=Dashboard(hub).app())]


class Dashboard:
    """The pages over one hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._door = Doorkeeper(hub)
        self._paced: tuple[float, Paces | None] = (0.0, None)
        self._checked: tuple[float, audit.Broken | None] = (-_VERIFIED_FOR_S, None)

    def app(self) -> Starlette:
        """Return the pages as an application of their own."""
        see, post = self._see, self._post
        return Starlette(
            routes=[
                Mount("/static", StaticFiles(packages=[("edge_sync.web", "static")])),
                Route("/login", self._login, methods=["GET", "POST"]),
                Route("/logout", post("viewer", self._logout), methods=["POST"]),
                Route("/", see("viewer", self._fleet)),
                Route("/devices", see("viewer", self._devices)),
                Route("/devices/{id}", see("viewer", self._device)),
                Route("/policies", see("viewer", self._policies)),
                Route("/policies/new", see("admin", self._new)),
                Route("/policies/new", post("admin", self._publish), methods=["POST"]),
                Route("/policies/{revision:int}", see("viewer", self._policy)),
                Route("/rollouts", see("viewer", self._rollouts)),
                Route("/rollouts/{id:int}", see("viewer", self._rollout)),
                Route("/budget", see("viewer", self._budget)),
                Route("/audit", see("viewer", self._audit)),
                *(
                    Route(action.path, post(action.role, self._act), methods=["POST"], name=name)
                    for name, action in ACTIONS.items()
                ),
            ],
            exception_handlers={HTTPException: self._lost},
        )

    def _see(self, role: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that only people of a role can read."""

        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(self._guarded, request, role, handler)

        return endpoint

    def _post(self, role: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that takes forms of this site from people of a role."""

        async def endpoint(request: Request) -> Response:
            request.state.form = await _form(request)
            return await run_in_threadpool(self._guarded, request, role, handler)

        return endpoint

    def _guarded(self, request: Request, role: str, handler: Handler) -> Response:
        person = self._door.person(request.cookies.get(COOKIE, ""))
        if person is None:
            return self._door.to_login(request)
        if not person.may(role):
            told = f"This needs the role {role}; the token {person.name} is {person.role}."
            return problem(request, person, 403, "Not allowed", told)
        if request.method == "POST" and request.state.form.get("csrf") != person.csrf:
            told = "The form was not sent from this page. Load the page again and send it anew."
            return problem(request, person, 403, "Form refused", told)
        try:
            return handler(request, person)
        except EdgeError as error:
            return problem(request, person, 400, error.message, error.hint)

    async def _login(self, request: Request) -> Response:
        form = await _form(request) if request.method == "POST" else {}
        return await run_in_threadpool(self._door.login, request, form)

    def _logout(self, request: Request, _person: Person) -> Response:
        return self._door.logout(request)

    def _lost(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        person = self._door.person(request.cookies.get(COOKIE, ""))
        title = "There is no such page" if status == HTTPStatus.NOT_FOUND else "This cannot be done"
        return problem(request, person, status, title, _MISSING)

    def _fleet(self, request: Request, person: Person) -> Response:
        now = self._hub.clock()
        with self._hub.store.reading() as connection:
            return page(request, "fleet.html", person, fleet=fleet(connection, now), now=now)

    def _devices(self, request: Request, person: Person) -> Response:
        now = self._hub.clock()
        with self._hub.store.reading() as connection:
            found = device_list(connection, request.query_params, now)
        return page(request, "devices.html", person, page=found, now=now)

    def _device(self, request: Request, person: Person) -> Response:
        now = self._hub.clock()
        with self._hub.store.reading() as connection:
            found = one_device(connection, request.path_params["id"], now)
        if found is None:
            return problem(request, person, 404, "There is no such device", _MISSING)
        return page(request, "device.html", person, device=found, now=now)

    def _policies(self, request: Request, person: Person) -> Response:
        with self._hub.store.reading() as connection:
            found = policy_list(connection, request.query_params)
        return page(request, "policies.html", person, page=found, now=self._hub.clock())

    def _policy(self, request: Request, person: Person) -> Response:
        with self._hub.store.reading() as connection:
            found = one_policy(connection, request.path_params["revision"])
        if found is None:
            return problem(request, person, 404, "There is no such version", _MISSING)
        return page(request, "policy.html", person, policy=found)

    def _new(self, request: Request, person: Person) -> Response:
        with self._hub.store.reading() as connection:
            before, source = newest(connection)
            names = ", ".join(_groups(connection))
        draft = {"source": source or "", "message": "", "groups": names, "waves": "5,25,100"}
        return self._draft(request, person, {**draft, "before": before, "changes": None})

    def _publish(self, request: Request, person: Person) -> Response:
        """Show the difference, or publish what was looked at."""
        form = request.state.form
        draft = {name: form.get(name, "") for name in ("source", "message", "groups", "waves")}
        with self._hub.store.reading() as connection:
            before, source = newest(connection)
        draft |= {"before": before, "changes": None}
        try:
            draft["changes"] = changes(source, draft["source"])
            if form.get("do") == "publish":
                to = publish(self._hub, person.name, draft)
                return RedirectResponse(request.scope.get("root_path", "") + to, 303)
        except EdgeError as error:
            return self._draft(request, person, draft, problem=str(error))
        return self._draft(request, person, draft)

    @staticmethod
    def _draft(
        request: Request, person: Person, draft: dict[str, object], problem: str = ""
    ) -> Response:
        status = 400 if problem else 200
        return page(request, "policy_new.html", person, status=status, draft=draft, problem=problem)

    def _rollouts(self, request: Request, person: Person) -> Response:
        with self._hub.store.reading() as connection:
            found = rollout_list(connection, request.query_params)
        return page(request, "rollouts.html", person, page=found, now=self._hub.clock())

    def _rollout(self, request: Request, person: Person) -> Response:
        with self._hub.store.reading() as connection:
            found = one_rollout(connection, request.path_params["id"])
        if found is None:
            return problem(request, person, 404, "There is no such rollout", _MISSING)
        return page(request, "rollout.html", person, rollout=found, now=self._hub.clock())

    def _budget(self, request: Request, person: Person) -> Response:
        now = self._hub.clock()
        with self._hub.store.reading() as connection:
            found = budget(connection, request.query_params, now, self._paces(connection, now))
        return page(request, "budget.html", person, page=found, now=now)

    def _paces(self, connection: Connection, now: float) -> Paces:
        """Return how fast money goes: read at most once in a while, for it asks for a week."""
        at, paces = self._paced
        if paces is None or now - at >= _PACED_FOR_S:
            paces = read_paces(connection, now)
            self._paced = (now, paces)
        return paces

    def _audit(self, request: Request, person: Person) -> Response:
        broken = self._verified()
        with self._hub.store.reading() as connection:
            found = audit_log(connection, request.query_params, broken.seq if broken else None)
        return page(request, "audit.html", person, page=found)

    def _verified(self) -> audit.Broken | None:
        """Verify the audit log, at most once in a while: it takes a second per 100,000 entries."""
        now = self._hub.clock()
        at, broken = self._checked
        if now - at >= _VERIFIED_FOR_S:
            broken = audit.verify(self._hub.store)
            self._checked = (now, broken)
        return broken

    def _act(self, request: Request, person: Person) -> Response:
        """Do what a button asks for, and go back to where it was."""
        action = ACTIONS[request.scope["route"].name]
        to = action.do(self._hub, person.name, request.path_params, request.state.form)
        return RedirectResponse(request.scope.get("root_path", "") + to, 303)


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form, each once.

    Raises:
        HTTPException: it is too large or not a form.

    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_FORM:
            raise HTTPException(413)
    try:
        found = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=50)
    except ValueError as error:
        raise HTTPException(400) from error
    return {name: values[-1] for name, values in found.items()}


def _groups(connection: Connection) -> list[str]:
    return sorted(connection.execute(select(groups.c.name)).scalars())
