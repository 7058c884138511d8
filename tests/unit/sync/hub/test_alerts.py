"""Alerts of budgets: once for each pot and level, and sent until they were taken."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from money_rows import add_device, add_gateway, add_lease, set_caps
from sqlalchemy import select, update

from edge_sync.hub import audit
from edge_sync.hub.budget import alerts, telling, webhook
from edge_sync.hub.budget.alerts import level_of
from edge_sync.hub.home import AlertSettings, Hub, read_fact
from edge_sync.store.schema import facts, leases, pots

DAY = 86_400.0


@pytest.mark.parametrize(
    ("used", "cap", "level"),
    [
        (0, 1_000, 0),
        (499, 1_000, 0),
        (500, 1_000, 50),
        (799, 1_000, 50),
        (800, 1_000, 80),
        (999, 1_000, 80),
        (1_000, 1_000, 100),
        (2_000, 1_000, 100),
        (1, 3, 0),
        (2, 3, 50),
        (0, 0, 0),
        (1, 0, 100),
        (-5, 1_000, 0),
        (799_999_999_999_999, 10**15, 50),
    ],
)
def test_levels_are_exact(used, cap, level):
    assert level_of(used, cap) == level


@pytest.fixture
def money(hub):
    """Return a function that sets what is used of the one lease under a cap of $1.00 a month."""
    device = add_device(hub, 1, seen_at=hub.clock())
    add_gateway(hub, "gpu", seen_at=hub.clock())
    lease = add_lease(hub, 1, device, amount=1_000_000)
    set_caps(hub, ("fleet", "month", 1_000_000))

    def use(microusd):
        change = update(leases).where(leases.c.lease_id == lease)
        hub.store.write(lambda c: c.execute(change.values(seen_microusd=microusd)))

    return use


def noted(hub):
    entries = audit.page(hub.store, what=alerts.WHAT)
    return [(each.about, each.detail["percent"]) for each in reversed(entries)]


def alerted(hub):
    with hub.store.reading() as connection:
        return connection.execute(select(pots.c.alerted)).scalars().all()


def test_each_level_is_told_once(hub, money):
    for used in (0, 499_999, 500_000, 500_000, 700_000, 800_000, 999_999, 1_000_000, 1_000_000):
        money(used)
        alerts.check(hub)
    assert noted(hub) == [("fleet", 50), ("fleet", 80), ("fleet", 100)]
    assert alerted(hub) == [100]
    assert audit.verify(hub.store) is None


def test_an_alert_has_the_figures(hub, money):
    money(810_000)
    (alert,) = alerts.check(hub)
    assert alert == alerts.Alert("fleet", "month:2026-11", 80, 0, 810_000, 1_000_000, "")
    (entry,) = audit.page(hub.store, what=alerts.WHAT)
    assert entry.who == "hub"
    assert entry.detail == {
        "scope": "fleet",
        "period": "month:2026-11",
        "percent": 80,
        "spent_microusd": 0,
        "held_microusd": 810_000,
        "cap_microusd": 1_000_000,
        "escrow": "",
    }


def test_several_levels_at_once_are_one_alert(hub, money):
    money(900_000)
    alerts.check(hub)
    assert noted(hub) == [("fleet", 80)]


def test_looking_changes_nothing_where_nothing_moved(hub, money):
    money(600_000)
    alerts.check(hub)
    with hub.store.reading() as connection:
        before = audit.head(connection), read_fact(connection, "generation")
    assert alerts.check(hub) == []
    with hub.store.reading() as connection:
        assert (audit.head(connection), read_fact(connection, "generation")) == before


def test_a_hold_that_is_released_does_not_ring_twice(hub, money):
    for used in (510_000, 450_000, 510_000):
        money(used)
        alerts.check(hub)
    assert noted(hub) == [("fleet", 50)]


def test_a_cap_that_was_raised_rings_again(hub, money):
    money(850_000)
    alerts.check(hub)
    set_caps(hub, ("fleet", "month", 2_000_000))
    assert alerts.check(hub) == []
    assert alerted(hub) == [50]
    money(1_000_000)
    set_caps(hub, ("fleet", "month", 1_200_000))
    alerts.check(hub)
    assert noted(hub) == [("fleet", 80), ("fleet", 80)]


def test_every_pot_has_its_own(hub, money):
    set_caps(hub, ("group:kiosks", "month", 700_000), ("group:lab", "month", 5))
    money(500_000)
    alerts.check(hub)
    assert sorted(noted(hub)) == [("fleet", 50), ("group:kiosks", 50)]


def test_two_replicas_tell_once(hub, money):
    money(500_000)
    threads = [threading.Thread(target=alerts.check, args=(hub,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert noted(hub) == [("fleet", 50)]


# Sending.


@pytest.fixture
def site():
    """Serve a webhook that answers with ``site.statuses`` in turn, then with 204."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.got.append((self.headers["Idempotency-Key"], json.loads(body)))
            self.send_response(server.statuses.pop(0) if server.statuses else 204)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.got, server.statuses = [], []
        server.url = f"http://127.0.0.1:{server.server_port}/hook?secret=s3cr3t"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def with_webhook(hub, url):
    settings = hub.settings.model_copy(update={"alerts": AlertSettings(webhook=url)})
    return Hub(hub.home, settings, hub.store, hub.keys, hub.clock, hub.token_key)


class Sender:
    """One process of the hub that looks and sends, without waiting for a clock."""

    def __init__(self, hub, url, post=webhook.post):
        self.hub, self.lines, self.at = with_webhook(hub, url), [], 0.0
        self.alerts = telling.Alerts(
            self.hub, post, lambda name, **values: self.lines.append((name, values)),
            monotonic=lambda: self.at,
        )  # fmt: skip

    def round(self):
        """Look once, and wait until what was sent has been answered."""
        self.at += telling.CHECK_EVERY_S
        self.alerts.step()
        if self.alerts.sender is not None:
            self.alerts.sender.join()

    @property
    def progress(self):
        with self.hub.store.reading() as connection:
            return telling.progress(connection)


def test_an_alert_is_posted_with_its_figures(hub, money, site):
    sender = Sender(hub, site.url)
    sender.round()
    money(820_000)
    sender.round()
    ((key, body),) = site.got
    assert key == str(body["seq"])
    assert body["text"] == (
        "80 % of the budget of fleet for month:2026-11 is used: $0.82 of $1.00."
    )
    assert (body["event"], body["percent"], body["held_microusd"]) == ("budget.alert", 80, 820_000)
    sender.round()
    assert len(site.got) == 1


def test_an_alert_says_where_no_gateway_counts(hub, money, site):
    add_gateway(hub, "phones", grade="escrow")
    sender = Sender(hub, site.url)
    sender.round()
    money(500_000)
    sender.round()
    ((_, body),) = site.got
    assert body["text"].endswith(" Escrow-grade, so without a gateway's count: phones.")
    assert body["escrow"] == "phones"


@pytest.mark.parametrize("status", [500, 404, 302])
def test_a_failure_is_visible_and_tried_again(hub, money, site, status):
    site.statuses = [status, status]
    sender = Sender(hub, site.url)
    sender.round()
    money(500_000)
    sender.round()
    assert sender.progress.error == f"The webhook answered with {status}."
    assert (sender.progress.tries, sender.progress.next_at) == (1, hub.clock() + 5)
    sender.round()
    assert len(site.got) == 1, "not before its time"
    for wait_s in (5, 10):
        hub.clock.at += wait_s
        sender.round()
    assert [body["percent"] for _, body in site.got] == [50, 50, 50]
    assert (sender.progress.error, sender.progress.tries) == ("", 0)
    failed = [values["reason"] for name, values in sender.lines if name == "alert.failed"]
    assert failed == [f"The webhook answered with {status}."] * 2


def test_waits_grow_and_end():
    sent, waits = telling.Sent(0), []
    for _ in range(12):
        sent = sent.failed("x" * 500, 0.0)
        waits.append(sent.next_at)
    assert waits[:5] == [5, 10, 20, 40, 80]
    assert waits[-1] == 600
    assert len(sent.error) == 200


def test_a_webhook_that_cannot_be_reached_does_not_tell_its_address(hub, money, site):
    sender = Sender(hub, "http://127.0.0.1:1/s3cr3t")
    sender.round()
    money(500_000)
    sender.round()
    assert sender.progress.error == "The webhook cannot be reached: ConnectError."
    assert "s3cr3t" not in str(sender.lines)


def test_what_waited_arrives_in_order_after_a_restart(hub, money, site):
    site.statuses = [503]
    first = Sender(hub, site.url)
    first.round()
    for used in (500_000, 800_000, 1_000_000):
        money(used)
        first.round()
    hub.clock.at += 60
    Sender(hub, site.url).round()
    assert [body["percent"] for _, body in site.got] == [50, 50, 80, 100]


def test_a_replica_does_not_send_what_another_is_sending(hub, money, site):
    other = Sender(hub, site.url)

    def post(url, body):
        other.round()
        return webhook.post(url, body)

    sender = Sender(hub, site.url, post)
    sender.round()
    money(500_000)
    sender.round()
    assert len(site.got) == 1


def test_what_a_killed_replica_was_sending_is_sent_after_a_while(hub, money, site):
    def killed(_url, _body):
        raise telling.EdgeError("killed")

    sender = Sender(hub, site.url, killed)
    sender.round()
    money(500_000)
    sender.round()
    assert site.got == []
    other = Sender(hub, site.url)
    other.round()
    assert site.got == []
    hub.clock.at += telling.CLAIM_S
    other.round()
    assert len(site.got) == 1


def test_old_alerts_are_not_sent_to_a_new_webhook(hub, money, site):
    silent = Sender(hub, "")
    money(500_000)
    silent.round()
    assert noted(hub) == [("fleet", 50)]
    sender = Sender(hub, site.url)
    sender.round()
    assert site.got == []
    money(800_000)
    sender.round()
    assert [body["percent"] for _, body in site.got] == [80]
    Sender(hub, "").round()
    with hub.store.reading() as connection:
        assert connection.execute(select(facts).where(facts.c.name == "alerts")).first() is None


@pytest.mark.parametrize("url", ["ftp://x", "javascript:1", "example.org/hook", "http://a b"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="webhook"):
        AlertSettings(webhook=url)
