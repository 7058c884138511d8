"""Puts replicas on Ray Serve and serves HTTP in front of them until told to end.

Ray starts, watches, replaces, adds and drains replicas; this process routes calls to them. The only
room that imports Ray, and only when a pool is started. Guarantees: on one machine everything of
Ray's own listens on the loopback address where Ray allows that, has no dashboard, reports nothing
to anyone, and ends with this process, its files removed. In a cluster the pool's replicas end with
this process too; the cluster stays.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from edge.errors import ConfigError, ModelError
from edge_sync.pool.again import ReplicaLost
from edge_sync.pool.asked import Asked, Event, Failed
from edge_sync.pool.config import Settings
from edge_sync.pool.replica import Replica
from edge_sync.pool.server import Server, Tell

BACKLOG = 2_048
KEEP_ALIVE_S = 75
DEPLOYMENT = "replica"
_MEGABYTE = 1 << 20
_QUIET = {"log_level": "ERROR", "enable_access_log": False}
# Ray reads these when it is imported and when its processes start.
_PRIVATE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_ENABLE_TASK_EVENTS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # On a processor that is busy with the model, 0.1 s are too short to say how busy one is.
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "2",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5",
    "RAY_SERVE_ROUTER_RETRY_MAX_BACKOFF_S": "0.1",
}
_OF_THE_POOL = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "edge-pool"}
_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # so Ray takes 127.0.0.1 for its address


def serve(settings: Settings, *, tell: Tell, listen: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT; calls under way get ``drain_s`` to end.

    Args:
        settings: of ``pool.yaml``.
        tell: writes a line of the log; ``listening`` names address and port.
        listen: address and port in place of the setting; port 0 takes a free one.

    Raises:
        ConfigError: Ray is not installed or cannot be reached, the machine is too small, or the
            address cannot be listened on.
        ModelError: the replicas do not start.

    """
    bound = _bind(listen or settings.listen)
    try:
        with _cluster(settings) as ray:
            pool = RayPool(ray, settings)
            try:
                pool.deploy()
                _answer(pool, settings, bound, tell)
            finally:
                pool.remove()
    finally:
        bound.close()
        tell("stopped")


class RayPool:
    """The replicas on Ray.

    Args:
        ray: the module, connected.
        settings: of the pool.

    """

    def __init__(self, ray: Any, settings: Settings) -> None:
        self._ray = ray
        self._serve = importlib.import_module("ray.serve")
        self._settings = settings
        self._app = f"edge-pool-{settings.name}"
        self._handle: Any = None

    def deploy(self) -> None:
        """Start the replicas and wait until they can be asked.

        Raises:
            ModelError: they do not start.

        """
        logging.getLogger("ray.serve").disabled = True  # its lines are no JSON
        self._serve.start(proxy_location="Disabled", logging_config=_QUIET)
        application = self._serve.deployment(Replica).options(**self._options())
        run = self._serve.run
        try:
            handle = run(
                application.bind(self._settings), name=self._app, route_prefix=None,
                logging_config=_QUIET,
            )  # fmt: skip
        except RuntimeError as error:
            told = self._message() or str(error)
            raise ModelError(
                f"The pool's replicas do not start: {told[-1_000:]}",
                hint="Correct the model or the resources in pool.yaml.",
            ) from error
        self._handle = handle.options(stream=True, method_name="answer")

    async def ask(self, asked: Asked) -> AsyncIterator[Iterable[Event]]:
        """Ask some replica; see ``edge_sync.pool.again.Ask``."""
        errors = self._ray.exceptions
        response = self._handle.remote(asked)
        try:
            async for events in response:
                yield events
        except self._serve.exceptions.BackPressureError:
            yield [Failed(429, "too_many", "All replicas are taken and the queue is full.")]
        except (errors.RayTaskError, errors.TaskCancelledError) as error:
            yield [Failed(500, "replica_failed", str(error)[-500:])]
        except (errors.RayError, self._serve.exceptions.RayServeException) as error:
            raise ReplicaLost(str(error)[:200]) from error
        finally:
            response.cancel()

    async def running(self) -> int:
        """Return how many replicas can be asked."""
        return await asyncio.to_thread(self._running)

    def remove(self) -> None:
        """Let calls under way end, then end the replicas."""
        self._serve.delete(self._app)

    def _running(self) -> int:
        deployment = self._deployment()
        return int(deployment.replica_states.get("RUNNING", 0)) if deployment else 0

    def _deployment(self) -> Any:
        application = self._serve.status().applications.get(self._app)
        return application and application.deployments.get(DEPLOYMENT)

    def _message(self) -> str:
        deployment = self._deployment()
        return str(deployment.message) if deployment else ""

    def _options(self) -> dict[str, Any]:
        """Return how Ray runs a replica."""
        settings = self._settings
        replicas, resources, health = settings.replicas, settings.resources, settings.health
        scaling: dict[str, Any] = {"num_replicas": replicas.min}
        if replicas.max > replicas.min:
            scaling = {
                "autoscaling_config": {
                    "min_replicas": replicas.min,
                    "max_replicas": replicas.max,
                    "target_ongoing_requests": replicas.target_ongoing,
                    "upscale_delay_s": replicas.up_s,
                    "downscale_delay_s": replicas.down_s,
                }
            }
        return scaling | {
            "name": DEPLOYMENT,
            "max_ongoing_requests": settings.ongoing,
            "max_queued_requests": settings.limits.queue,
            "ray_actor_options": {
                "num_cpus": resources.cpus,
                "num_gpus": resources.gpus,
                "resources": resources.custom,
            },
            "graceful_shutdown_wait_loop_s": 0.5,
            "graceful_shutdown_timeout_s": settings.drain_s,
            "health_check_period_s": health.period_s,
            "health_check_timeout_s": health.timeout_s,
            "logging_config": _QUIET,
        }


def load_ray(settings: Settings, env: MutableMapping[str, str] = os.environ) -> Any:
    """Import Ray with its telemetry off.

    Args:
        settings: of the pool.
        env: where Ray looks for its own settings.

    Raises:
        ConfigError: it is not installed.

    """
    env.update(_PRIVATE)
    if not settings.ray.address:
        env.update(_ALONE)
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.serve")
    except ImportError as error:
        raise ConfigError(
            "Ray Serve is not installed.", hint='Run: pip install "edge-runtime[ray]"'
        ) from error
    return ray


@contextmanager
def _cluster(settings: Settings) -> Iterator[Any]:
    """Connect to the cluster, or start Ray on this machine until the end of the block."""
    ray = load_ray(settings)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    # A socket's path must be short, so the folder of Ray's files is not below one of ours.
    folder = None if settings.ray.address else tempfile.mkdtemp(prefix="edge-ray-")
    try:
        if folder is None:
            _join(ray, settings)
        else:
            _start(ray, settings, folder)
        for number, handler in handlers.items():  # Ray puts its own in their place
            signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _join(ray: Any, settings: Settings) -> None:
    try:
        ray.init(address=settings.ray.address, **_OF_THE_POOL)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The Ray cluster at {settings.ray.address!r} cannot be reached: {error}.",
            hint="Correct ray.address; set RAY_AUTH_MODE=token where the cluster has a token.",
        ) from error


def _start(ray: Any, settings: Settings, folder: str) -> None:
    store_bytes = settings.ray.object_store_mb * _MEGABYTE
    try:
        ray.init(
            address="local", include_dashboard=False, _temp_dir=folder,
            object_store_memory=store_bytes, **_OF_THE_POOL,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"Ray does not start on this machine: {error}.",
            hint="Free memory, or set ray.object_store_mb.",
        ) from error
    check_room(settings, ray.cluster_resources())


def check_room(settings: Settings, have: Mapping[str, float]) -> None:
    """Make sure that the least replicas fit this machine, for Ray would wait for ever.

    Args:
        settings: of the pool.
        have: what Ray found here, by its names.

    Raises:
        ConfigError: they do not.

    """
    each = settings.resources
    for name, one in {"CPU": each.cpus, "GPU": each.gpus, **each.custom}.items():
        need = settings.replicas.min * one
        if need > have.get(name, 0):
            raise ConfigError(
                f"{settings.replicas.min} replicas with {one:g} {name} each need {need:g}; this "
                f"machine has {have.get(name, 0):g}.",
                hint="Lower replicas.min or resources, or name a cluster as ray.address.",
            )


def _answer(pool: RayPool, settings: Settings, bound: socket.socket, tell: Tell) -> None:
    server = Server(settings, ask=pool.ask, running=pool.running, tell=tell)
    bound.listen(BACKLOG)
    host, port = bound.getsockname()[:2]
    tell("listening", address=str(host), port=int(port), model=settings.name)
    config = uvicorn.Config(
        server.app(),
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.drain_s) + 1,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
    )
    uvicorn.Server(config).run(sockets=[bound])


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, int(port)))
    except (OSError, OverflowError, ValueError) as error:
        bound.close()
        raise ConfigError(
            f"The pool cannot listen on {listen}: {error}.",
            hint="Name another address and port, as `127.0.0.1:8000`.",
        ) from error
    return bound
