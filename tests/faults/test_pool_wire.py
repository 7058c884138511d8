"""The pool client over real sockets, against a server that misbehaves in every way it can.

Most of these servers go on for ever, so that a test ends at all shows that the deadline holds.
"""

import json
import socket
import struct
import threading

import pytest

from edge.cloud.pool import MAX_BODY_BYTES, Message, Pool
from edge.errors import CloudError, CloudServerError, CloudTimeout
from edge.task import PoolSpec

pytestmark = pytest.mark.timeout(30)

PROMPT = "my pin is 0815"
BODY = json.dumps(
    {
        "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 4},
    }
).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
GOOD = HEAD % len(BODY) + BODY
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DRIP_S, SHORT_S = 0.02, 0.2


class Server:
    """Hands each connection, in a thread of its own, to the next behaviour of its script."""

    def __init__(self, *script):
        self.script = list(script)
        self.stopped = threading.Event()
        self.accepted = []
        self.reached = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Small, so that a server that never reads is noticed soon; connections inherit it.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        self.port = self._listener.getsockname()[1]
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self.stopped.is_set():
                connection.close()
                return
            self.accepted.append(connection)
            behave = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            thread = threading.Thread(target=self._serve, args=(behave, connection))
            self.threads.append(thread)
            thread.start()

    def _serve(self, behave, connection):
        try:
            behave(self, connection)
        except OSError:
            pass
        finally:
            connection.close()

    def stop(self):
        if self.stopped.is_set():
            return
        self.stopped.set()
        for connection in self.accepted:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        # A blocked accept does not wake up by itself.
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in self.threads:
            thread.join()
        self._listener.close()


def read_request(server, connection):
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65_536) or b"\r\n\r\n"
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    left = (int(lengths[0].split(b":")[1]) if lengths else 0) - len(body)
    while left > 0:
        piece = connection.recv(65_536)
        body, left = body + piece, left - (len(piece) or left)
    server.reached.set()
    return head + body


def send(*pieces, then=None):
    """Read the request and send these bytes; then hang up, or do something else."""

    def behave(server, connection):
        read_request(server, connection)
        for piece in pieces:
            connection.sendall(piece)
        if then is not None:
            then(server, connection)

    return behave


def drip(head, piece, *, pause_s=DRIP_S, read=True):
    """Read the request, send the head at once, and the piece again and again without end."""

    def behave(server, connection):
        if read:
            read_request(server, connection)
        connection.sendall(head)
        while not server.stopped.wait(pause_s):
            connection.sendall(piece)

    return behave


def hold(server, connection):
    server.reached.set()
    server.stopped.wait()


def reset(_server, connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def serve(server, connection):
    """Answer one request after another, as a good server does."""
    while read_request(server, connection):
        connection.sendall(GOOD)


def until_hung_up(_server, connection):
    while connection.recv(65_536):
        pass


@pytest.fixture
def start():
    opened = []

    def started(*script, **spec):
        server = Server(*script)
        scheme = spec.pop("scheme", "http")
        fields = {
            "base_url": f"{scheme}://127.0.0.1:{server.port}/v1",
            "model": "small",
            "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 10},
            **spec,
        }
        pool = Pool("gpu", PoolSpec.model_validate(fields), env={}, rng=lambda: 0.0)
        opened.append((server, pool))
        # Reading the certificates would take its share of a short deadline.
        pool._open()
        return server, pool

    yield started
    for server, pool in opened:
        pool.close()
        server.stop()


def ask(pool, *, deadline_s=10.0, text=PROMPT):
    return pool.complete(
        [Message("user", text)], max_tokens=16, deadline_s=deadline_s, idempotency_key="hold-1"
    )


# These end only because the deadline does: name -> (behaviour, error, may have been billed).
ENDLESS = {
    "never reads and never answers": hold,
    "reads and never answers": send(then=hold),
    "drips the status line": drip(b"HTTP/1.1 2", b"0"),
    "drips one header": drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "drips headers": drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "sends 100 Continue for ever": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n", pause_s=0.001),
    "stops after the headers": send(HEAD % 1000, then=hold),
    "drips a body": drip(HEAD % 100_000, b" "),
    "drips chunks": drip(CHUNKED, b"1\r\n \r\n"),
    "drips the length of a chunk": drip(CHUNKED, b"0"),
    "drips trailers": drip(CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: y\r\n"),
    "drips a body without a length": drip(b"HTTP/1.1 200 OK\r\n\r\n", b" "),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_server_that_never_ends_is_left_at_the_deadline(start, name):
    server, pool = start(ENDLESS[name])
    with pytest.raises(CloudTimeout) as caught:
        ask(pool, deadline_s=SHORT_S)
    assert caught.value.maybe_billed
    assert PROMPT not in str(caught.value)
    assert len(server.accepted) == 1


def test_a_request_that_is_never_taken_is_left_at_the_deadline(start):
    _, pool = start(hold)
    with pytest.raises(CloudTimeout) as caught:
        ask(pool, deadline_s=1.0, text="x" * 10_000_000)
    assert caught.value.maybe_billed


@pytest.mark.parametrize("status", [b"429 Slow Down", b"400 Bad", b"302 Found", b"500 Oh"])
def test_a_refusal_counts_once_its_status_is_read(start, status):
    """The body of a refusal may be dripped for ever: what the status says holds."""
    head = b"HTTP/1.1 " + status + b"\r\nContent-Length: 9999\r\nLocation: /v2\r\n\r\n"
    server, pool = start(drip(head, b" "))
    with pytest.raises(CloudError) as caught:
        ask(pool, deadline_s=SHORT_S)
    assert caught.value.maybe_billed is (status == b"500 Oh")
    assert f"answered {status[:3].decode()}" in caught.value.message
    assert len(server.accepted) == 1


BROKEN = {
    "hangs up at once": lambda _server, _connection: None,
    "hangs up after the request": send(),
    "resets the connection": send(then=reset),
    "hangs up in the status line": send(b"HTTP/1.1 20"),
    "hangs up in the headers": send(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "hangs up in the body": send(GOOD[:-5]),
    "resets in the body": send(GOOD[:-5], then=reset),
    "hangs up in a chunk": send(CHUNKED + b"ff\r\n{"),
    "promises more than it sends": send(HEAD % (len(BODY) + 1) + BODY),
    "sends more than it promised": send(HEAD % (len(BODY) - 1) + BODY),
    "speaks another protocol": send(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "sends noise": send(bytes(range(256)) * 100),
    "sends a chunk of no length": send(CHUNKED + b"zz\r\n{}\r\n"),
    "sends headers without end": drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000, pause_s=0),
    "sends one header without end": drip(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 9000, pause_s=0),
    "sends a body without end": drip(CHUNKED, b"1000\r\n" + b" " * 4096 + b"\r\n", pause_s=0),
    "sends two lengths": send(HEAD[:-4] % 2 + b"\r\nContent-Length: 3\r\n\r\n{}"),
    "sends a length below zero": send(HEAD.replace(b"%d", b"-5") + BODY),
    "sends compressed noise": send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + BODY),
    "sends a page": send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"),
    "sends nothing": send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "switches protocols": send(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_exchange_may_have_been_billed_and_is_not_repeated(start, name):
    server, pool = start(BROKEN[name])
    with pytest.raises(CloudError) as caught:
        ask(pool)
    assert type(caught.value) is CloudServerError
    assert caught.value.maybe_billed
    assert PROMPT not in str(caught.value)
    assert len(server.accepted) == 1


def test_nobody_listens(start):
    server, pool = start(serve)
    server.stop()
    with pytest.raises(CloudServerError, match="cannot be reached") as caught:
        ask(pool)
    assert not caught.value.maybe_billed


@pytest.mark.parametrize(
    ("behave", "error", "connections"),
    [
        (hold, CloudTimeout, 1),
        (drip(b"\x16\x03\x03\x40\x00", b"\x02", read=False), CloudTimeout, 1),
        (lambda _server, connection: connection.sendall(GOOD), CloudServerError, 2),
        (lambda _server, _connection: None, CloudServerError, 2),
    ],
    ids=["says nothing", "drips a handshake", "speaks no TLS", "hangs up"],
)
def test_nothing_is_sent_before_tls_is_there(start, behave, error, connections):
    server, pool = start(behave, scheme="https")
    with pytest.raises(error) as caught:
        ask(pool, deadline_s=SHORT_S if error is CloudTimeout else 10.0)
    assert not caught.value.maybe_billed
    assert len(server.accepted) == connections


def test_a_good_answer_in_small_pieces(start):
    _, pool = start(send(*[GOOD[i : i + 7] for i in range(0, len(GOOD), 7)]))
    found = ask(pool)
    assert (found.text, found.tokens_in, found.tokens_out) == ("yes", 30, 4)


def test_the_longest_answer(start):
    filler = b" " * (MAX_BODY_BYTES - len(BODY))
    _, pool = start(send(HEAD % MAX_BODY_BYTES, BODY, filler))
    assert ask(pool).text == "yes"


def test_a_connection_is_used_again_until_the_server_hangs_up(start):
    def twice(server, connection):
        for _ in range(2):
            read_request(server, connection)
            connection.sendall(GOOD)

    server, pool = start(twice)
    counts = []
    for _ in range(3):
        assert ask(pool).text == "yes"
        counts.append(len(server.accepted))
        if len(counts) == 2:
            server.threads[-1].join()
    assert counts == [1, 1, 2]


def test_what_comes_after_the_deadline_is_never_taken_for_the_next_answer(start):
    late = GOOD.replace(b'"yes"', b'"old"')
    server, pool = start(send(then=until_hung_up), send(late, then=hold), serve)
    with pytest.raises(CloudTimeout):
        ask(pool, deadline_s=SHORT_S)
    assert ask(pool).text == "old"
    assert len(server.accepted) == 2


def test_two_threads_keep_their_own_deadlines(start):
    hung_up = threading.Event()

    def first_waits(server, connection):
        if b"slow" in read_request(server, connection):
            until_hung_up(server, connection)
            hung_up.set()
            return
        hung_up.wait()
        connection.sendall(GOOD)

    _, pool = start(first_waits)
    found = []
    patient = threading.Thread(target=lambda: found.append(ask(pool, text="quick").text))
    patient.start()
    with pytest.raises(CloudTimeout):
        ask(pool, deadline_s=SHORT_S, text="slow")
    patient.join()
    assert found == ["yes"]


@pytest.mark.parametrize("behave", [send(then=hold), send(HEAD % 1000, then=hold)])
def test_closing_wakes_a_call_that_waits(start, behave):
    server, pool = start(behave)
    caught = []

    def wait():
        try:
            ask(pool, deadline_s=600)
        except CloudError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    server.reached.wait()
    pool.close()
    thread.join()
    (error,) = caught
    assert "was closed" in error.message
    assert error.maybe_billed
