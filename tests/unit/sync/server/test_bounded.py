"""The protocol over a transport of the test: no socket, and time passes when the test says so."""

import asyncio

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from edge_sync.server.bounded import HEAD_WAIT_S, MAX_HEAD_BYTES, Bounded

GET = b"GET / HTTP/1.1\r\nHost: hub\r\n"
POST = b"POST / HTTP/1.1\r\nHost: hub\r\n"


class Loop:
    """The loop's timers, and a way to let all that are due fire."""

    def __init__(self, loop):
        self._loop = loop
        self.timers = []

    def call_later(self, delay_s, call):
        timer = self._loop.call_later(1e6, call)
        self.timers.append((delay_s, call, timer))
        return timer

    def create_task(self, *args, **more):
        return self._loop.create_task(*args, **more)

    def pass_time(self, seconds):
        for delay_s, call, timer in self.timers:
            if delay_s <= seconds and not timer.cancelled():
                call()


class Transport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.sent, self.closed = b"", False

    def write(self, data):
        self.sent += data

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        """Nothing comes by itself."""

    def resume_reading(self):
        """Nothing comes by itself."""


async def told_length(_scope, receive, send):
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body")
    body = str(length).encode()
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


def talk(*steps):
    """Send bytes, or let seconds pass; return the transport."""

    async def run():
        config = Config(told_length, lifespan="off", log_config=None)
        config.load()
        loop, transport = Loop(asyncio.get_running_loop()), Transport()
        protocol = Bounded(config, ServerState(), {}, loop)
        protocol.connection_made(transport)
        for step in steps:
            if isinstance(step, bytes):
                protocol.data_received(step)
            else:
                loop.pass_time(step)
            for _ in range(10):
                await asyncio.sleep(0)
        closed = transport.closed
        protocol.connection_lost(None)  # closes by itself
        transport.closed = closed
        return transport

    return asyncio.run(run())


def test_an_ordinary_request_is_answered():
    transport = talk(GET + b"\r\n")
    assert transport.sent.endswith(b"\r\n0")


@pytest.mark.parametrize(
    "steps",
    [
        [GET + b"X: " + b"a" * MAX_HEAD_BYTES * 2],
        [GET, *[b"X: a\r\n" * 1_000] * 20],
        [b"GET /", *[b"a" * 10_000] * 10],
        [
            POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
            *[b"X: a\r\n" * 1_000] * 20,
        ],
        [GET + b"\r\n", *[b"a" * 10_000] * 10],
    ],
    ids=["one header", "many headers", "the path", "trailers", "the second request"],
)
def test_a_head_without_end_closes_the_connection(steps):
    assert talk(*steps).closed


def test_a_large_body_is_no_head():
    body = b"a" * 1_000_000
    transport = talk(POST + b"Content-Length: 1000000\r\n\r\n" + body, GET + b"\r\n")
    assert not transport.closed
    assert b"\r\n\r\n1000000HTTP/1.1 200" in transport.sent


@pytest.mark.parametrize("steps", [[], [GET], [GET + b"\r\n", GET]], ids=["none", "first", "next"])
def test_a_head_that_does_not_come_closes_the_connection(steps):
    assert talk(*steps, HEAD_WAIT_S).closed


def test_a_whole_head_may_wait_for_its_answer():
    assert not talk(POST + b"Content-Length: 5\r\n\r\n", HEAD_WAIT_S).closed
