"""Device and gateway speak of the same headers, payloads, costs and refusals."""

import base64
import hashlib
import json
import secrets

import pytest

from edge.cloud import gateway as device_side
from edge.cloud.chat import Message
from edge.cloud.gateway import Right
from edge.cloud.pool import Pool
from edge.errors import (
    AnswerLost,
    CloudRejected,
    CloudServerError,
    CloudTimeout,
    ConfigError,
    InputError,
    LeaseRefused,
    RateLimited,
)
from edge.task import PoolSpec
from edge_sync import keys
from edge_sync.agent.signing import Signing
from edge_sync.gateway import messages
from edge_sync.gateway.bounds import CHAT, Price, bound
from edge_sync.gateway.calls import DEADLINE_HEADER, Doorkeeper, hold_id
from edge_sync.gateway.refusals import STATUSES, Refused

SPEC = PoolSpec(
    base_url="http://gateway.test/v1",
    model="m",
    price={"input_usd_per_mtok": 2, "output_usd_per_mtok": 8},
    gateway=True,
)
ASKED = [Message("system", "Be brief."), Message("user", "wo ist die nächste Filiale?")]

# code -> (error, whether it may have been billed)
MEANINGS = {
    "bad_request": (CloudRejected, False),
    "bad_signature": (CloudRejected, False),
    "unbounded": (CloudRejected, False),
    "too_large": (CloudRejected, False),
    "not_found": (CloudRejected, False),
    "bad_lease": (LeaseRefused, False),
    "foreign_lease": (LeaseRefused, False),
    "expired_lease": (LeaseRefused, False),
    "exhausted": (LeaseRefused, False),
    "fenced": (LeaseRefused, False),
    "revoked": (LeaseRefused, False),
    "sealed": (LeaseRefused, False),
    "too_many": (RateLimited, False),
    "too_slow": (RateLimited, False),
    "unavailable": (RateLimited, False),
    "answered": (AnswerLost, True),
    "in_progress": (CloudServerError, True),
    "unclear": (CloudServerError, True),
    "conflict": (CloudServerError, True),
    "upstream_failed": (CloudServerError, True),
    "upstream_late": (CloudTimeout, True),
}
FOR_THE_HUB_ALONE = {"unauthorized"}


@pytest.fixture
def device(tmp_path):
    keys.save_key(keys.make_key(), tmp_path / "device.key")
    return Signing(tmp_path)


async def refused(code):
    """Return headers and body of a refusal as the gateway sends it."""
    sent = []

    async def send(message):
        sent.append(message)

    cost = 38 if code == "answered" else None
    await messages.refuse(send, Refused(code, "No.", hint="Go.", cost_microusd=cost))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return headers, sent[1]["body"]


def test_every_refusal_of_the_gateway_has_a_meaning_here():
    assert MEANINGS.keys() | FOR_THE_HUB_ALONE == STATUSES.keys()


@pytest.mark.parametrize("code", MEANINGS)
def test_what_a_refusal_means(code):
    import asyncio

    kind, billed = MEANINGS[code]
    error = device_side.refusal("field", *asyncio.run(refused(code)))
    assert (type(error), error.maybe_billed) == (kind, billed)
    if kind is LeaseRefused:
        assert error.code == code
    if kind is AnswerLost:
        assert error.cost_microusd == 38


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"error": "sealed"}',
        b'{"error": {"code": "sealed"}}',
        b'{"error": {"type": "invalid_request_error", "code": "sealed"}}',
    ],
)
def test_what_something_in_between_says_is_not_the_gateways_word(body):
    assert device_side.refusal("field", {}, body) is None


@pytest.mark.parametrize("cost", [{}, {"edge-cost-microusd": "-1"}, {"edge-cost-microusd": "x"}])
def test_an_answer_that_is_gone_without_a_cost_stays_unclear(cost):
    body = json.dumps({"error": {"type": "edge_gateway", "code": "answered"}}).encode()
    assert type(device_side.refusal("field", cost, body)) is CloudServerError


@pytest.mark.parametrize(
    ("text", "cost"),
    [("0", 0), ("38", 38), ("", None), ("-1", None), ("1.5", None), ("٣", None), ("9" * 40, None),
     ("9" * 16, 10**15)],
)  # fmt: skip
def test_a_cost_is_an_amount_or_none(text, cost):
    assert device_side.told_cost({messages.COST_HEADER.decode(): text}) == cost


def test_the_deadline_leaves_room_for_a_refusal():
    assert [device_side.within(each) for each in (20.0, 1.0, 0.0)] == ["19.500", "0.900", "0.000"]
    assert device_side.DEADLINE_HEADER == DEADLINE_HEADER


def test_a_signed_call_passes_the_doorkeeper(device, tmp_path):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from edge_sync.money.lease import Lease

    hub = Ed25519PrivateKey.generate()
    owner = keys.load_key(tmp_path / "device.key").device_id
    lease = Lease(
        lease_id=secrets.token_hex(16), scope="group:lab", period="total", device_id=owner,
        pool_id="field", epoch=1, amount_microusd=100, not_after=10**10, policy_version=1,
        key_id="k1",
    ).signed(hub)  # fmt: skip
    body, key = b'{"messages": []}', secrets.token_hex(16)
    headers = device.headers(body, lease_id=lease.lease_id, lease=lease.text(), key=key)
    assert base64.b64decode(headers["Edge-Lease"]) == lease.text().encode()
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    raw += [(b"idempotency-key", key.encode()), (b"edge-deadline", b"1.5")]
    keeper = Doorkeeper("field", {"k1": hub.public_key().public_bytes_raw().hex()})
    call = keeper.admit(CHAT, raw, body)
    assert (call.lease, call.hold_id, call.within_s) == (lease, hold_id(owner, key), 1.5)
    with pytest.raises(Refused, match="not signed"):
        keeper.admit(CHAT, raw, body + b" ")


def test_a_device_holds_what_the_gateway_holds():
    pool = Pool("field", SPEC, env={})
    for schema in (None, {"type": "object", "properties": {"day": {"type": "string"}}}):
        mine = pool.worst_case_microusd(ASKED, max_tokens=16, response_schema=schema)
        body = pool.body(ASKED, max_tokens=16, response_schema=schema)
        bounded = bound(CHAT, body, limit=100)
        assert mine == Price(2_000_000, 8_000_000).cost_microusd(
            bounded.tokens_in, bounded.tokens_out
        )


def test_a_gateway_is_not_asked_without_key_or_lease(tmp_path, device):
    with pytest.raises(ConfigError, match="cannot be signed"):
        Pool("field", SPEC, env={}).check()
    with pytest.raises(ConfigError, match="has not joined a fleet"):
        Pool("field", SPEC, env={}, signer=Signing(tmp_path / "nowhere")).check()
    pool = Pool("field", SPEC, env={}, signer=device)
    pool.check()
    with pytest.raises(InputError, match="needs a lease"):
        pool.complete(ASKED, max_tokens=1, idempotency_key="k" * 8)
    with pytest.raises(ConfigError, match="cannot be signed"):
        Pool("field", SPEC, env={}).complete(
            ASKED, max_tokens=1, idempotency_key="k" * 8, right=Right("a" * 32, "{}")
        )


def test_a_body_is_the_same_each_time_it_is_built():
    pool = Pool("field", SPEC, env={})
    digests = {hashlib.sha256(pool.body(ASKED, max_tokens=16)).hexdigest() for _ in range(3)}
    assert len(digests) == 1
