import asyncio
import gzip
import json

import pytest

from edge_sync.hub.refusals import Refused
from edge_sync.server import messages
from edge_sync.server.logs import Log
from edge_sync.server.messages import Gone, read_body, read_message, send_refusal, unpack
from edge_sync.wire import MAX_BODY_BYTES, SyncRequest

WHOLE = (
    SyncRequest(device_id="a" * 32, incarnation=1, request_id="b" * 32, nonce="n", at=1.0)
    .model_dump_json(exclude_defaults=True)
    .encode()
)


def part(body, *, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


def read(*parts, headers=()):
    pieces = iter(parts)

    async def receive():
        return next(pieces)

    return asyncio.run(read_body({"headers": list(headers)}, receive))


def code(work, *arguments, **values):
    with pytest.raises(Refused) as caught:
        work(*arguments, **values)
    assert caught.value.hint
    return caught.value.code


def test_a_body_comes_whole_or_in_parts():
    assert read(part(b"abc", more=False)) == b"abc"
    assert read(part(b"a"), part(b"b"), part(b"c", more=False)) == b"abc"


def test_what_says_that_it_is_too_large_is_not_read():
    length = str(MAX_BODY_BYTES + 1).encode()
    assert code(read, headers=[(b"content-length", length)]) == "too_large"


def test_what_turns_out_too_large_is_not_read_to_its_end():
    half = part(b"x" * (MAX_BODY_BYTES // 2 + 1))
    assert code(read, half, half) == "too_large"
    assert code(read, part(half["body"] * 2, more=False)) == "too_large"


def test_the_largest_body_is_taken():
    half = b"x" * (MAX_BODY_BYTES // 2)
    assert len(read(part(half), part(half, more=False))) == MAX_BODY_BYTES


def test_a_closed_connection_is_no_body():
    with pytest.raises(Gone):
        read(part(b"a"), {"type": "http.disconnect"})
    with pytest.raises(Gone):
        read({"type": "http.disconnect"})


def test_a_body_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr(messages, "BODY_WAIT_S", 0.01)
    came = []

    async def receive():
        if came:
            await asyncio.Event().wait()
        came.append(1)
        return part(b"a")

    assert code(lambda: asyncio.run(read_body({"headers": []}, receive))) == "too_slow"


def test_packing():
    assert unpack(b"abc", "") == unpack(b"abc", "identity") == b"abc"
    assert unpack(gzip.compress(b"x" * MAX_BODY_BYTES), "gzip") == b"x" * MAX_BODY_BYTES
    assert code(unpack, gzip.compress(b"x" * (MAX_BODY_BYTES + 1)), "gzip") == "too_large"
    assert code(unpack, b"abc", "deflate") == "bad_request"


def test_the_place_of_what_is_wrong_is_named():
    with pytest.raises(Refused, match="rows"):
        read_message(SyncRequest, WHOLE[:-1] + b',"rows": 3}')
    assert code(read_message, SyncRequest, b'{"models":' + b"[" * 9_000) == "bad_request"


def test_a_refusal_on_the_wire():
    sent = []

    async def send(message):
        sent.append(message)

    refused = Refused("too_many", "Many wait.", hint="Later.", retry_after_s=7)
    assert asyncio.run(send_refusal(send, refused)) == 429
    assert (b"retry-after", b"7") in sent[0]["headers"]
    assert json.loads(sent[1]["body"]) == {
        "code": "too_many",
        "message": "Many wait.",
        "hint": "Later.",
    }


class Lines:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_lines_are_json_and_requests_are_gathered():
    stream = Lines()
    log = Log(stream, clock=lambda: 0.0)
    log.request("GET", "/x", status=200, ms=1.234, device="d")
    assert not stream.text
    log.event("started", port=1)
    first, second = (json.loads(line) for line in stream.text.splitlines())
    assert first == {
        "at": "1970-01-01T00:00:00.000+00:00",
        "level": "info",
        "event": "request",
        "method": "GET",
        "path": "/x",
        "status": 200,
        "ms": 1.23,
        "device": "d",
    }
    assert second["port"] == 1


def test_a_lost_stream_does_not_end_the_server():
    class Broken(Lines):
        def write(self, text):
            raise BrokenPipeError

    Log(Broken()).event("started")
