"""An HTTP transport whose every network step ends at one deadline.

httpx limits each read and write on its own, so a server that drips a byte a second is never late.
Here the time left is handed to each step anew: resolving, connecting, TLS, each write, each read.
Guarantees: a request carrying the ``edge.deadline`` extension holds no thread past it; ``close``
wakes a reader. Does not know what is sent. Certificates are verified; proxies are not used.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any

import httpcore
import httpx

DEADLINE = "edge.deadline"
_PIECE = 16_384  # a slow reader delays one piece at most


class _Clockwork(threading.local):
    """The deadline of the request that the current thread is busy with."""

    deadline: float | None = None


class DeadlineTransport(httpx.HTTPTransport):
    """HTTP/1.1 over TCP and TLS, with keep-alive.

    Args:
        clock: the clock that deadlines are read on, in seconds.

    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        context = httpx.create_ssl_context(trust_env=False)
        super().__init__(verify=context, trust_env=False)
        self._work = _Clockwork()
        # httpx offers no argument for this; tests/faults/test_pool_wire.py proves that it works.
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=100,
            max_keepalive_connections=4,
            keepalive_expiry=5.0,
            network_backend=_Backend(self._work, clock),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; its body is read under the same deadline, in the same thread."""
        self._work.deadline = request.extensions.get(DEADLINE)
        return super().handle_request(request)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, work: _Clockwork, clock: Callable[[], float]) -> None:
        self._work = work
        self._clock = clock
        self._inner = httpcore.SyncBackend()

    def left(self, timeout: float | None, late: type[Exception]) -> float | None:
        """Return the seconds the next step may take.

        Raises:
            late: there are none.

        """
        if self._work.deadline is None:
            return timeout
        left_s = self._work.deadline - self._clock()
        if left_s <= 0:
            raise late("the deadline has passed")
        return left_s if timeout is None else min(left_s, timeout)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _resolve(host, port, self.left(timeout, httpcore.ConnectTimeout))
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        for index, address in enumerate(addresses):
            left_s = self.left(timeout, httpcore.ConnectTimeout)
            # A silent first address leaves time for the others.
            share = None if left_s is None else left_s / (len(addresses) - index)
            try:
                stream = self._inner.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
            else:
                return _Stream(stream, self)
        raise failed


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, backend: _Backend) -> None:
        self._inner = inner
        self._backend = backend

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._backend.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            piece = buffer[start : start + _PIECE]
            self._inner.write(piece, self._backend.left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        sock = self._inner.get_extra_info("socket")
        # Closing alone does not wake a thread that reads; the plain call leaves TLS state be.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left_s = self._backend.left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left_s), self._backend)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _resolve(host: str, port: int, timeout: float | None) -> list[str]:
    """Return the host's addresses; the system's resolver takes no time limit, so a thread does."""
    found: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.put(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except (OSError, UnicodeError) as error:
            found.put(error if isinstance(error, OSError) else OSError("no such host name"))

    threading.Thread(target=look_up, name="edge-resolve", daemon=True).start()
    try:
        answer = found.get(timeout=timeout)
    except queue.Empty:
        raise httpcore.ConnectTimeout(f"{host} was not resolved in time") from None
    if isinstance(answer, OSError):
        raise httpcore.ConnectError(str(answer)) from answer
    return answer
