"""What is not for the hot path: health, readiness, metrics, model files, and the dashboard."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from edge.errors import EdgeError
from edge_sync import web
from edge_sync.hub.home import Hub
from edge_sync.hub.refusals import Refused
from edge_sync.hub.tokens_hmac import read_token
from edge_sync.server.current import Current
from edge_sync.server.metrics import Metrics
from edge_sync.store.schema import models
from edge_sync.wire import MODELS_PATH

INDEX = "index.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
Endpoint = Callable[[Request], Awaitable[Response]]


def routes(hub: Hub, current: Current, metrics: Metrics) -> list[BaseRoute]:
    """Return all routes but those of devices."""
    return [
        Route("/healthz", _healthy),
        Route("/readyz", _readiness(current)),
        Route("/metrics", _metrics(metrics)),
        Route(f"{MODELS_PATH}/{{name}}/{{digest}}/{{file:path}}", _models(hub, current)),
        *web.routes(hub),
    ]


async def _healthy(_request: Request) -> Response:
    """The process runs its event loop."""
    return PlainTextResponse("ok\n")


def _readiness(current: Current) -> Endpoint:
    async def ready(_request: Request) -> Response:
        """The database can be read, and nobody has asked this process to end."""
        reason = "the hub is stopping" if current.ended else current.trouble
        status = 503 if reason else 200
        generation = current.view.generation
        return JSONResponse(
            {"ready": not reason, "reason": reason, "generation": generation}, status
        )

    return ready


def _metrics(metrics: Metrics) -> Endpoint:
    async def text(_request: Request) -> Response:
        try:
            body = await asyncio.to_thread(metrics.text)
        except EdgeError as error:
            return PlainTextResponse(f"{error}\n", 503)
        return Response(body, media_type=_PROMETHEUS)

    return text


def _models(hub: Hub, current: Current) -> Endpoint:
    async def model(request: Request) -> Response:
        """A file of a model, or a part of it; for devices of this hub alone."""
        await _require_device(hub, current, request)
        name, digest = request.path_params["name"], request.path_params["digest"]
        file = request.path_params["file"]
        if not _NAME.fullmatch(name) or not _DIGEST.fullmatch(digest):
            raise _missing(name, digest, file)
        if file == INDEX:
            index = await asyncio.to_thread(_index, hub, name, digest)
            if index is None:
                raise _missing(name, digest, file)
            return Response(index, media_type="application/json")
        path = _inside(hub.models_folder / name / digest, file)
        if path is None or not path.is_file():
            raise _missing(name, digest, file)
        return FileResponse(path, media_type="application/octet-stream")

    return model


async def _require_device(hub: Hub, current: Current, request: Request) -> None:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    read = read_token(hub.token_key, token) if kind == "Bearer" else None
    if read is None or read[1] <= hub.clock():
        raise Refused(
            "expired_token",
            "The token is missing, not of this hub, or older than a week.",
            hint="Sync, and ask with the token of that answer.",
        )
    known = await current.device(read[0])
    if known is None or known.status == "revoked":
        raise Refused(
            "revoked",
            f"Device {read[0]} is not one of this hub's any more.",
            hint="Ask the fleet admin.",
            what="sync.revoked",
            about=read[0],
        )


def _index(hub: Hub, name: str, digest: str) -> str | None:
    query = select(models.c.files).where((models.c.digest == digest) & (models.c.name == name))
    with hub.store.reading() as connection:
        found = connection.execute(query).scalar()
    return None if found is None else str(found)


def _inside(folder: Path, file: str) -> Path | None:
    """Return the path of a file of a folder; ``None`` for one that leads elsewhere."""
    parts = PurePosixPath(file).parts
    if not parts or not all(_NAME.fullmatch(part) for part in parts):
        return None
    path = folder.joinpath(*parts)
    return path if path.resolve().is_relative_to(folder.resolve()) else None


def _missing(name: str, digest: str, file: str) -> Refused:
    return Refused(
        "not_found",
        f"The hub has no file {file[:100]!r} of model {name[:64]}@{digest[:12]}.",
        hint="Add the model with `edge-hub models add`.",
    )
