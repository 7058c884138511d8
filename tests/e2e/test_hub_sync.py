"""A real server process on each database: how devices join, sync, wait, and what is refused."""

import gzip
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select, update

from edge_sync import keys
from edge_sync.hub import fleet
from edge_sync.hub.audit import verify
from edge_sync.hub.enrolment import make_code
from edge_sync.hub.home import Hub, raise_fact
from edge_sync.hub.refusals import NOTED
from edge_sync.hub.tokens_hmac import make_token
from edge_sync.store.schema import audit, devices, ledger_rows, models
from edge_sync.trust.trusted import Trusted
from edge_sync.wire import MAX_BODY_BYTES, Bundle, EnrolReply, Failure, Have, LedgerRow

from .hub_process import CLIENT, GROUP, Device, assign, make_hub, serving

DIGEST = "d" * 64


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request, tmp_path_factory):
    """Return hub, server and code; one server for all tests of a database."""
    home = tmp_path_factory.mktemp("hub") / "home"
    database = None if request.param == "sqlite" else request.getfixturevalue("postgres")()
    code = make_hub(home, database)
    with serving(home) as served, Hub.open(home) as hub:
        yield hub, served, code


@pytest.fixture
def hub(running):
    return running[0]


@pytest.fixture
def served(running):
    return running[1]


@pytest.fixture
def device(running):
    device = Device([running[1].url])
    assert device.enrol(running[2]).status_code == 200
    return device


def failure(answer):
    """Return status and code of a refusal; its words must be there."""
    told = Failure.model_validate_json(answer.content)
    assert told.message.endswith(".")
    assert told.hint
    return answer.status_code, told.code


def rows_of(hub, device):
    with hub.store.reading() as connection:
        query = select(func.count()).where(ledger_rows.c.device_id == device.id)
        return connection.execute(query).scalar_one()


def row_of(device, number=0):
    return LedgerRow(
        row_id=device.id[:24] + f"{number:08x}", task="t", pool="p", state="sent", at=1
    )


def test_a_device_joins_syncs_and_takes_the_policy(hub, served, running):
    device = Device([served.url])
    reply = EnrolReply.model_validate_json(device.enrol(running[2]).content)
    trusted = Trusted.start(reply.root.encode(), fingerprint=running[2].rpartition("-")[2])
    serial = assign(hub)
    time.sleep(0.5)
    synced = device.sync(rows=[row_of(device)], have=trusted.have)
    assert synced.receipt > 0
    now = trusted.time(synced.time, request_id=synced.time.request_id)
    assert abs(now - time.time()) < 60
    accepted = trusted.accept(synced.bundle, device_id=device.id, group=GROUP, now=now)
    assert accepted.assignment.serial == serial
    held = accepted.trusted.have
    assert device.policy(etag=held.etag).status_code == 304
    offered = device.policy(etag='"1.0.0"', root=1)
    assert offered.headers["etag"] == held.etag
    assert Bundle.model_validate_json(offered.content).assignment == synced.bundle.assignment
    assert device.sync(have=held).bundle is None
    assert rows_of(hub, device) == 1


def test_a_waiting_device_is_woken_by_news(hub, device):
    assign(hub)
    time.sleep(0.5)
    device.sync()
    etag = device.policy().headers["etag"]
    answers = []
    thread = threading.Thread(target=lambda: answers.append(device.policy(etag=etag, wait=60)))
    thread.start()
    time.sleep(0.3)
    assert not answers
    serial = assign(hub)
    thread.join(20)
    assert answers[0].status_code == 200
    assert answers[0].headers["etag"].endswith(f'.{serial}"')


def test_a_device_whose_group_has_no_policy_waits_too(hub, served):
    fleet.add_group(hub, "empty", who="test")
    code = make_code(hub, group="empty", uses=1, expires_s=3_600, who="test").text
    device = Device([served.url])
    device.enrol(code)
    device.sync()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(device.policy(wait=60)))
    thread.start()
    time.sleep(0.3)
    assert not answers
    serial = assign(hub, "empty")
    thread.join(20)
    assert answers[0].status_code == 200
    assert answers[0].headers["etag"].endswith(f'.{serial}"')


def test_a_wait_ends_with_nothing_new(device):
    device.sync()
    etag = device.policy().headers["etag"]
    assert device.policy(etag=etag, wait=0.2).status_code == 304


def test_what_is_newer_than_the_hub_knows_is_no_news(device):
    """Another replica may have given it; something older is never offered."""
    device.sync()
    assert device.policy(etag='"1.999.999"').status_code == 304
    assert device.sync(have=Have(root=1, timestamp=999, serial=999)).bundle is None


def test_the_same_request_again_over_the_wire(hub, device):
    body = device.body(rows=[row_of(device)])
    first, again = device.send(body).json(), device.send(body).json()
    assert (first["nonce"], first["receipt"]) == (again["nonce"], again["receipt"])
    assert rows_of(hub, device) == 1


def test_a_packed_body_is_read(hub, device):
    body = gzip.compress(device.body(rows=[row_of(device)]))
    assert device.send(body, {"Content-Encoding": "gzip"}).status_code == 200
    assert rows_of(hub, device) == 1


def deep(device):
    return b'{"models":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001


def wrong_types(device):
    return device.body().replace(b'"incarnation":1', b'"incarnation":"x"')


def not_finite(device):
    at = device.body(at=12345.0)
    return at.replace(b"12345.0", b"NaN")


def too_large(device):
    return device.body().replace(b'"revision":0', b'"revision":%d' % 2**70)


def no_text(device):
    return device.body().replace(b'"runtime":""', b'"runtime":"\\u0000"')


def too_many_rows(device):
    one = row_of(device).model_dump_json()
    whole = device.body(rows=[row_of(device)]).decode()
    return whole.replace(one, ",".join([one] * 501)).encode()


def bomb(device):
    return gzip.compress(device.body() + b" " * 50_000_000)


def cut(device):
    return gzip.compress(device.body())[:-20]


def trailing(device):
    return gzip.compress(device.body()) + b"more"


PACKED = {"Content-Encoding": "gzip"}


@pytest.mark.parametrize(
    ("make", "headers", "expected"),
    [
        (lambda _device: b"", {}, (400, "bad_request")),
        (lambda device: device.body()[:-5], {}, (400, "bad_request")),
        (deep, {}, (400, "bad_request")),
        (wrong_types, {}, (400, "bad_request")),
        (not_finite, {}, (400, "bad_request")),
        (too_large, {}, (400, "bad_request")),
        (no_text, {}, (400, "bad_request")),
        (too_many_rows, {}, (400, "bad_request")),
        (cut, PACKED, (400, "bad_request")),
        (trailing, PACKED, (400, "bad_request")),
        (lambda device: device.body(), PACKED, (400, "bad_request")),
        (lambda device: device.body(), {"Content-Encoding": "br"}, (400, "bad_request")),
        (bomb, PACKED, (413, "too_large")),
        (lambda device: device.body() + b" " * MAX_BODY_BYTES, {}, (413, "too_large")),
        (lambda _device: Device([]).body(), {}, (401, "bad_signature")),
    ],
    ids=["empty", "cut", "deep", "types", "nan", "huge", "nul", "rows", "gzip-cut", "gzip-more",
         "not-gzip", "brotli", "bomb", "large", "other-device"],
)  # fmt: skip
def test_bad_bodies_are_refused_with_a_reason(device, make, headers, expected):
    assert failure(device.send(make(device), headers)) == expected
    assert not device.sync().quarantined  # nothing was half-applied


def test_what_is_no_id_is_not_told_as_it_came(device):
    answer = device.send(device.body(), {"Edge-Device": "\x9b2J".encode("latin-1")})
    assert failure(answer) == (403, "unknown_device")
    assert "no valid id" in answer.text
    assert "\x9b" not in answer.text


def test_a_wrong_signature_is_refused(hub, device):
    body = device.body(rows=[row_of(device)])
    for signed in ("", "AAAA", "ü", keys.make_key().sign_sync(body), device.key.sign_sync(b"")):
        answer = device.send(body, signed=signed.encode("latin-1"))
        assert failure(answer) == (401, "bad_signature")
    assert rows_of(hub, device) == 0


def test_unknown_and_revoked_devices_are_refused(hub, device):
    assert failure(Device(device.urls).send(b"{}")) == (403, "unknown_device")
    device.sync()

    def revoke(connection):
        connection.execute(
            update(devices).where(devices.c.id == device.id).values(status="revoked")
        )
        raise_fact(connection, "generation")

    hub.store.write(revoke)
    assert failure(device.send(device.body())) == (403, "revoked")
    time.sleep(0.5)
    assert failure(device.send(device.body())) == (403, "revoked")
    assert failure(device.policy()) == (403, "revoked")


def test_a_replay_is_refused_and_audited(hub, device):
    old = device.body()
    assert device.send(old).status_code == 200
    device.nonce = device.send(old).json()["nonce"]
    device.sync()
    assert failure(device.send(old)) == (409, "replayed")
    time.sleep(0.2)
    with hub.store.reading() as connection:
        query = select(audit.c.what).where(audit.c.about == device.id)
        assert "sync.replayed" in connection.execute(query).scalars().all()


def test_tokens(hub, device):
    device.sync()
    old = make_token(hub.token_key, device.id, now=time.time() - 8 * 86_400)
    for token in ("x", "..", old, device.token[:-1] + "x"):
        assert failure(device.policy(token=token)) == (401, "expired_token")
    bad = device.ask(
        "GET", "/v1/policy?wait=x", headers={"Authorization": f"Bearer {device.token}"}
    )
    assert failure(bad) == (400, "bad_request")


def test_wrong_codes_do_not_flood_the_log(hub, served):
    for _ in range(3 * NOTED):
        assert failure(Device([served.url]).enrol("nonsense-0")) == (403, "bad_code")
    time.sleep(0.3)
    with hub.store.reading() as connection:
        query = select(func.count()).where(audit.c.what == "device.enrol_refused")
        assert connection.execute(query).scalar_one() == NOTED
    assert verify(hub.store) is None


def raw(served, data, *, end=True):
    """Send bytes as they are and return what comes back."""
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as line:
        line.sendall(data)
        if end:
            line.shutdown(socket.SHUT_WR)
        whole = b""
        while not whole.endswith(b"}") and (more := line.recv(65_536)):
            whole += more
        return whole


def test_bodies_shorter_or_longer_than_they_say(hub, served, device):
    body = device.body(rows=[row_of(device)])
    head = (
        f"POST /v1/sync HTTP/1.1\r\nHost: h\r\nEdge-Device: {device.id}\r\n"
        f"Edge-Signature: {device.key.sign_sync(body)}\r\nContent-Length: "
    )
    assert raw(served, f"{head}{len(body) + 9}\r\n\r\n".encode() + body) == b""
    longer = raw(served, f"{head}{len(body) - 9}\r\n\r\n".encode() + body, end=False)
    assert longer.startswith(b"HTTP/1.1 40")
    wrong = raw(served, f"{head}-1\r\n\r\n".encode() + body)
    assert wrong.startswith(b"HTTP/1.1 400")
    huge = raw(served, f"{head}99999999\r\n\r\n".encode(), end=False)
    assert b'"too_large"' in huge
    assert rows_of(hub, device) == 0
    assert not device.sync().quarantined


def test_a_device_that_leaves_does_not_go_on_waiting(served, device):
    device.sync()
    etag = device.policy().headers["etag"]
    waits = f"GET /v1/policy?wait=100 HTTP/1.1\r\nHost: h\r\nIf-None-Match: {etag}\r\n"
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname, parts.port)) as line:
        line.sendall(f"{waits}Authorization: Bearer {device.token}\r\n\r\n".encode())
        until(lambda: polls(served) == 1)
    until(lambda: polls(served) == 0)


def polls(served):
    text = CLIENT.get(f"{served.url}/metrics").text
    return int(float(text.split("\nedge_hub_long_polls ")[1].split("\n")[0]))


def until(true):
    for _ in range(400):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come true")


def test_models_in_parts(hub, device):
    content = bytes(range(256)) * 40
    folder = hub.models_folder / "spam" / DIGEST
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)

    def work(connection):
        connection.execute(models.delete())
        connection.execute(
            models.insert().values(
                digest=DIGEST, name="spam", files='{"x":1}', bytes=1, added_at=0.0, added_by="test"
            )
        )

    hub.store.write(work)
    device.sync()
    granted = {"Authorization": f"Bearer {device.token}"}
    path = f"/v1/models/spam/{DIGEST}"
    assert device.ask("GET", f"{path}/model.onnx", headers=granted).content == content
    part = device.ask("GET", f"{path}/model.onnx", headers={**granted, "Range": "bytes=1000-"})
    assert (part.status_code, part.content) == (206, content[1_000:])
    beyond = device.ask("GET", f"{path}/model.onnx", headers={**granted, "Range": "bytes=99999-"})
    assert beyond.status_code == 416
    assert device.ask("GET", f"{path}/index.json", headers=granted).text == '{"x":1}'
    for wrong in ("nothing", "..%2f..%2f..%2fhub.yaml", "%2e%2e/%2e%2e/%2e%2e/hub.yaml", ""):
        answer = device.ask("GET", f"{path}/{wrong}", headers=granted)
        assert answer.status_code == 404
        assert "database" not in answer.text
    assert failure(device.ask("GET", f"{path}/model.onnx")) == (401, "expired_token")


def test_health_readiness_metrics_and_logs(served, device):
    device.sync(rows=[row_of(device, at) for at in range(3)])
    assert CLIENT.get(f"{served.url}/healthz").status_code == 200
    assert CLIENT.get(f"{served.url}/readyz").json()["ready"] is True
    text = CLIENT.get(f"{served.url}/metrics").text
    assert 'edge_hub_requests_total{code="200",path="/v1/sync"}' in text
    for family in ("sync_seconds_bucket", "devices_online", "long_polls", "rows_stored_total",
                   "generation", 'rollouts{state="running"}', "shed_total"):  # fmt: skip
        assert f"edge_hub_{family}" in text
    assert device.id not in text
    until(lambda: any(line.get("device") == device.id for line in served.lines()))
    mine = [line for line in served.lines() if line.get("device") == device.id]
    assert {"at", "level", "event", "method", "path", "status", "ms"} <= set(mine[0])
    assert device.nonce not in served.log.read_text("utf-8")
    assert json.loads(served.log.read_text("utf-8").splitlines()[0])["event"] == "listening"
