import secrets

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from inner_gateway import SECRET, InnerGateway

from edge.errors import ConfigError
from edge_sync.hub.budget.asking import Asking, GatewayRefused, GatewayUnreachable, checked_url
from edge_sync.money.lease import Lease

NOW = 1_795_000_000
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
URL = "http://gateway"


def lease(amount=1_000, **values):
    given = {"lease_id": secrets.token_hex(16), "scope": "group:kiosks", "period": "total",
             "device_id": "d" * 32, "pool_id": "pool", "epoch": 1, "amount_microusd": amount,
             "not_after": NOW + 100, "policy_version": 1, "key_id": "k1"}  # fmt: skip
    return Lease(**{**given, **values}).signed(KEY)


@pytest.fixture
def gateway(memory_path):
    keys = {"k1": KEY.public_key().public_bytes_raw().hex()}
    made = InnerGateway(memory_path, "pool", keys=keys, clock=lambda: NOW)
    made.register.write(lambda book: book.fence("hub", 1))
    yield made
    made.close()


@pytest.fixture
def line(gateway):
    made = Asking(URL, SECRET, pool_id="pool", transport=gateway.transport())
    yield made
    made.close()


def test_a_fresh_gateway_has_no_epoch_and_no_leases(gateway, line, memory_path):
    gateway.shut()
    gateway.open(memory_path / "fresh.db")
    state = line.state()
    assert (state.pool, state.epoch, state.leases, state.totals) == ("pool", None, [], None)
    assert line.state(totals=True).totals.leases == 0
    assert line.fence(4) == 4
    assert line.fence(2) == 4
    assert line.state().epoch == 4


def test_a_seal_tells_what_was_used_and_is_final_once_nothing_is_open(gateway, line):
    spent, held, unseen = lease(), lease(), secrets.token_hex(16)
    gateway.spend(spent, 300)
    hold = gateway.hold(held, 200)
    told = {each.lease_id: each for each in line.seal([spent.lease_id, held.lease_id, unseen])}
    found = [told[one] for one in (spent.lease_id, held.lease_id, unseen)]
    assert [(each.used_microusd, each.final) for each in found] == [
        (300, True),
        (200, False),
        (0, True),
    ]
    gateway.settle(hold, 150)
    (again,) = line.seal([held.lease_id])
    assert (again.used_microusd, again.final) == (150, True)


def test_rows_are_read_by_their_last_change(gateway, line):
    mine = lease()
    first, second = gateway.hold(mine, 100), gateway.hold(mine, 200)
    gateway.settle(first, 60)
    rows = line.rows(after=0)
    assert [(row.hold_id, row.state, row.held_microusd, row.cost_microusd) for row in rows] == [
        (second, "held", 200, 0),
        (first, "settled", 0, 60),
    ]
    gateway.leave_unclear(second)
    (row,) = line.rows(after=rows[-1].seq)
    assert (row.hold_id, row.state, row.held_microusd) == (second, "unclear", 200)


def test_leases_are_read_page_by_page(gateway, line):
    ids = sorted(lease().lease_id for _ in range(5))
    for lease_id in ids:
        gateway.spend(lease(lease_id=lease_id), 1)
    first = line.state(limit=2)
    second = line.state(after=first.leases[-1].lease_id, limit=2)
    assert [each.lease_id for each in (*first.leases, *second.leases)] == ids[:4]


def test_an_unclear_hold_is_reconciled_at_what_was_billed(gateway, line):
    hold = gateway.hold(lease(), 200)
    with pytest.raises(GatewayRefused, match="under way"):
        line.reconcile(hold, 5)
    gateway.leave_unclear(hold)
    assert line.reconcile(hold, 250) == (200, 50)
    with pytest.raises(GatewayRefused, match="says no"):
        line.reconcile(hold, 90)
    with pytest.raises(GatewayRefused, match="no hold"):
        line.reconcile("0" * 32, 90)


def test_devices_are_revoked(gateway, line):
    assert line.revoked() == []
    ids = [letter * 32 for letter in "abc"]
    line.revoke(ids[::-1])
    assert gateway.revoked() == set(ids)
    gateway.spend(lease(), 1)
    assert line.revoked() == ids
    assert line.revoked(limit=2) == ids[:2]
    assert line.revoked(after=ids[1]) == ids[2:]


def test_a_gateway_of_an_older_version_tells_of_no_revoked_devices(gateway, line):
    gateway.spend(lease(), 1)
    line.revoke(["a" * 32])

    def older(answer):
        return {name: value for name, value in answer.json().items() if name != "revoked"}

    gateway.answer["state"] = older
    assert line.revoked() == []


@pytest.mark.parametrize(
    "ids", [["b" * 32, "a" * 32], ["a" * 32] * 2, ["0" * 32], ["a"], ["x" * 32]]
)
def test_revoked_devices_that_cannot_be_are_refused(gateway, line, ids):
    gateway.answer["state"] = lambda answer: answer.json() | {"revoked": ids}
    with pytest.raises(GatewayRefused):
        line.revoked(after="0" * 32)


def test_another_secret_is_refused(gateway):
    line = Asking(URL, "x" * 20, pool_id="pool", transport=gateway.transport())
    with pytest.raises(GatewayRefused, match="secret"):
        line.state()
    line.close()


def test_the_gateway_of_another_pool_is_refused(gateway):
    line = Asking(URL, SECRET, pool_id="other", transport=gateway.transport())
    with pytest.raises(GatewayRefused, match="pool 'pool'"):
        line.state()
    line.close()


def test_nobody_there_can_be_tried_again(gateway, line):
    gateway.down = True
    with pytest.raises(GatewayUnreachable, match="nobody is there") as told:
        line.state()
    assert told.value.retryable


def changed(**values):
    """Change what is answered: fields of the first lease or row, or of the whole."""

    def change(answer):
        body = answer.json()
        for name, value in values.items():
            for part in (body, *body.get("leases", [])[:1], *body.get("rows", [])[:1]):
                if name in part:
                    part[name] = value
        return body

    return change


HTML = httpx.Response(200, html="<html>Sign in</html>")
LIES = [
    ("state", HTML),
    ("state", {}),
    ("state", httpx.Response(302, headers={"location": "http://portal"})),
    ("state", httpx.Response(401, html="<html>Sign in</html>")),
    ("state", httpx.Response(200, content=b"\xff" * 9_000_000)),
    ("state", changed(redeemed_microusd=-5)),
    ("state", changed(redeemed_microusd=5, used_microusd=5, amount_microusd=4)),
    ("state", changed(used_microusd=10**30)),
    ("state", changed(used_microusd="300")),
    ("state", changed(used_microusd=10.5)),
    ("state", changed(used_microusd=1)),
    ("state", changed(final=True)),
    ("state", changed(lease_id="x" * 32)),
    ("state", changed(epoch=-1)),
    ("state", changed(epoch=True)),
    ("state", changed(totals={})),
    ("seal", HTML),
    ("seal", {"leases": []}),
    ("seal", changed(lease_id="e" * 32)),
    ("seal", changed(sealed=False, final=False)),
    ("seal", changed(held_microusd=-1, used_microusd=299)),
    ("epoch", {"epoch": 1}),
    ("epoch", {"epoch": "9"}),
    ("epoch", {"epoch": 10**12}),
    ("revoke", {"devices": [], "revoked": True}),
    ("revoke", {"devices": ["d" * 32], "revoked": False}),
    ("rows", changed(seq=0)),
    ("rows", changed(most=-4)),
    ("rows", changed(actual=10**6)),
    ("rows", changed(actual=None)),
    ("rows", changed(state="paid")),
    ("rows", changed(hold_id="")),
    ("rows", lambda answer: {"rows": answer.json()["rows"] * 2}),
]


@pytest.mark.parametrize("at", range(len(LIES)))
def test_what_no_gateway_says_is_refused(gateway, line, at):
    path, answer = LIES[at]
    mine = lease()
    gateway.spend(mine, 300)
    gateway.answer[path] = answer
    ask = {
        "state": line.state,
        "seal": lambda: line.seal([mine.lease_id]),
        "epoch": lambda: line.fence(5),
        "revoke": lambda: line.revoke(["d" * 32]),
        "rows": lambda: line.rows(after=0),
    }
    with pytest.raises(GatewayRefused, match="pool pool"):
        ask[path]()
    del gateway.answer[path]
    ask[path]()


def test_a_gateway_that_is_busy_is_asked_again(gateway, line):
    body = {"code": "unavailable", "message": "The disk is full.", "hint": "Wait."}
    gateway.answer["state"] = httpx.Response(503, json=body)
    with pytest.raises(GatewayUnreachable, match="The disk is full"):
        line.state()


@pytest.mark.parametrize("url", ["", "gateway", "ftp://gateway", "http://", "http://a?b=c",
                                 "http://name:word@gateway", "http://a:99999999"])  # fmt: skip
def test_what_is_no_url_of_a_gateway_is_refused(url):
    with pytest.raises(ConfigError):
        checked_url(url)


def test_a_url_may_have_a_path():
    assert checked_url("https://example.org/pools/a/") == "https://example.org/pools/a"
