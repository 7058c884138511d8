"""The page Budget: its figures, who may change caps, and what strangers make up."""

import re

import pytest
from fleet_sample import add_money, fill
from money_rows import add_device, add_gateway, add_lease, add_want, set_caps
from sqlalchemy import text, update
from starlette.applications import Starlette
from starlette.testclient import TestClient

from edge_sync.hub import audit
from edge_sync.hub.budget import alerts, caps, standing
from edge_sync.hub.budget.amounts import cents
from edge_sync.hub.home import raise_fact
from edge_sync.server.metrics import Metrics
from edge_sync.store.schema import devices, gateways
from edge_sync.web import routes


def browser(sample, role):
    client = TestClient(Starlette(routes=routes(sample.hub)), follow_redirects=True)
    form = {"csrf": field(client.get("/login").text, "csrf"), "token": sample.tokens[role]}
    assert client.post("/login", data=form).status_code == 200
    return client


def field(page, name):
    return re.search(rf'name="{name}" value="([^"]*)"', page)[1]


def words(page):
    """Return what a person reads, in one line."""
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def post(client, path, **fields):
    form = {"csrf": field(client.get("/budget").text, "csrf"), **fields}
    return client.post(path, data=form)


def caps_of(sample):
    with sample.hub.store.reading() as connection:
        return {
            (cap.scope.text(), cap.kind): cap.amount_microusd
            for cap in caps.read_caps(connection).caps
        }


def test_every_part_of_every_cap_is_shown(filled):
    shown = words(browser(filled, "viewer").get("/budget").text)
    with filled.hub.store.reading() as connection:
        found = standing.read(connection, now=filled.hub.clock())
    for cap in found.caps:
        bar = " ".join(
            f"{name} {cents(getattr(cap, f'{name}_microusd'))}"
            for name in ("spent", "held", "granted", "stranded", "free")
            if getattr(cap, f"{name}_microusd") > 0
        )
        assert bar in shown, cap.scope
        assert f"{cents(cap.used_microusd)} of {cents(cap.cap_microusd)}" in shown
    assert "Whole fleet per month" in shown
    assert "Group lab per day" in shown


def test_pools_say_who_counts_and_escrow_its_bound(filled):
    shown = words(browser(filled, "viewer").get("/budget").text)
    with filled.hub.store.reading() as connection:
        pools = {
            each.pool: each for each in standing.read(connection, now=filled.hub.clock()).pools
        }
    largest = cents(pools["phones"].largest_microusd)
    assert "Pool phones is escrow-grade: no gateway counts there" in shown
    assert f"up to its largest lease ({largest} now)" in shown
    assert "The gateway of pool hosted does not answer (last answer: 2 h ago)" in shown
    assert "gpu answers its gateway https://gpu.example.org" in shown
    assert "at hosted, whose gateway does not answer" in shown


def test_a_forecast_is_shown_and_without_data_none(filled, sample):
    assert re.search(r"Forecast \$\d", browser(filled, "viewer").get("/budget").text)
    set_caps(sample.hub, ("fleet", "month", 5_000_000))
    assert "No forecast: too early: 0 of 20 calls" in browser(sample, "viewer").get("/budget").text


def test_a_device_shows_its_leases(filled):
    with filled.hub.store.reading() as connection:
        query = "SELECT device_id FROM leases WHERE state = 'closing' LIMIT 1"
        device = connection.execute(text(query)).scalar_one()
    shown = words(browser(filled, "viewer").get(f"/devices/{device}").text)
    assert "Leases Granted Pool Task Period State Amount Used Ends" in shown
    assert re.search(r"closing: (done|expired)", shown)


def test_recovery_is_a_banner_and_names_who_is_waited_for(sample):
    fill(sample, count=3)
    add_money(sample.hub)
    client = browser(sample, "viewer")
    assert "Recovering" not in client.get("/budget").text
    sample.hub.store.write(lambda c: (raise_fact(c, "recovering"), raise_fact(c, "epoch", by=4)))
    sample.hub.store.write(
        lambda c: c.execute(update(gateways).where(gateways.c.pool_id == "gpu").values(epoch=99))
    )
    assert "It waits for: hosted." in client.get("/budget").text
    assert "no money is granted until every gateway has told" in words(client.get("/").text)


def test_what_is_asked_for_in_vain_is_told(sample):
    now = sample.hub.clock()
    device = add_device(sample.hub, 1, seen_at=now)
    add_gateway(sample.hub, "gpu", seen_at=now)
    add_want(sample.hub, device, pool="gpu", at=now)
    set_caps(sample.hub, ("fleet", "month", 1_000))
    client = browser(sample, "viewer")
    assert "not granted" not in client.get("/budget").text
    sample.hub.store.write(lambda c: c.execute(update(gateways).values(epoch=0)))
    shown = words(client.get("/budget").text)
    assert "Asked for, not granted: pool gpu, 1 device: its gateway has not confirmed" in shown


def test_a_cap_that_is_nearly_used_up_is_on_the_first_page(sample):
    device = add_device(sample.hub, 1, seen_at=sample.hub.clock())
    add_gateway(sample.hub, "gpu", seen_at=sample.hub.clock())
    add_lease(sample.hub, 1, device, amount=900, used=850)
    set_caps(sample.hub, ("fleet", "month", 1_000))
    alerts.check(sample.hub)
    shown = words(browser(sample, "viewer").get("/").text)
    assert "Whole fleet per month: 80 % of the budget is used." in shown


@pytest.mark.parametrize(("role", "status"), [("viewer", 403), ("operator", 403), ("admin", 200)])
def test_only_admins_set_and_remove_caps(sample, role, status):
    client = browser(sample, role)
    asked = {"scope": "group:lab", "per": "month"}
    answer = post(client, "/budget/set", amount="$12.50", **asked)
    assert answer.status_code == status
    assert caps_of(sample) == ({("group:lab", "month"): 12_500_000} if status == 200 else {})
    set_caps(sample.hub, ("group:lab", "month", 1))
    assert post(client, "/budget/remove", **asked).status_code == status
    assert len(caps_of(sample)) == (0 if status == 200 else 1)
    assert ('action="/budget/set"' in client.get("/budget").text) is (role == "admin")


def test_what_is_set_stands_in_the_audit_log_under_the_token(sample):
    client = browser(sample, "admin")
    assert post(client, "/budget/set", scope="fleet", amount="50", per="month").status_code == 200
    (entry,) = audit.page(sample.hub.store, what="budget.set")
    assert (entry.who, entry.about) == ("admin-one", "fleet")


def test_a_form_of_another_site_is_refused(sample):
    client = browser(sample, "admin")
    for csrf in ({}, {"csrf": ""}, {"csrf": "0" * 64}):
        form = {"scope": "fleet", "amount": "50", "per": "month", **csrf}
        assert client.post("/budget/set", data=form).status_code == 403
    assert caps_of(sample) == {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scope": "moon"}, "no scope of a cap"),
        ({"scope": "group:"}, "no scope of a cap"),
        ({"scope": ""}, "no scope of a cap"),
        ({"scope": "group:nowhere"}, "nowhere"),
        ({"amount": "-5"}, "no amount of dollars"),
        ({"amount": "5,00"}, "no amount of dollars"),
        ({"amount": "0.0000001"}, "finer than a micro-dollar"),
        ({"amount": "9999999999"}, "more than $1,000,000,000.00"),
        ({"amount": "<script>"}, "&lt;script&gt;"),
        ({"per": "week"}, "The period is none"),
    ],
)
def test_wrong_input_is_told_and_changes_nothing(sample, change, told):
    client = browser(sample, "admin")
    asked = {"scope": "fleet", "amount": "50", "per": "month", **change}
    answer = post(client, "/budget/set", **asked)
    assert answer.status_code == 400
    assert told in answer.text
    assert caps_of(sample) == {}


def test_a_cap_that_is_not_there_cannot_be_removed(sample):
    answer = post(browser(sample, "admin"), "/budget/remove", scope="fleet", per="day")
    assert answer.status_code == 400
    assert "There is no cap of fleet per day" in answer.text


def test_names_are_never_markup(sample):
    evil = "<img src=x onerror=alert(1)>"
    device = add_device(sample.hub, 1, seen_at=None)
    add_gateway(sample.hub, evil, error=evil)
    add_lease(sample.hub, 1, device, pool=evil, task="t")
    sample.hub.store.write(lambda c: c.execute(update(devices).values(name=evil)))
    set_caps(sample.hub, ("fleet", "month", 5_000_000), (f"device:{device}", "month", 5_000_000))
    client = browser(sample, "admin")
    for path in ("/budget", f"/devices/{device}", "/"):
        shown = client.get(path).text
        assert "<img" not in shown, path
    assert "&lt;img" in client.get("/budget").text


def test_the_page_gives_the_script_its_part_alone(filled):
    part = browser(filled, "admin").get("/budget", headers={"X-Fragment": "1"}).text
    assert "<html" not in part
    assert 'action="/budget/set"' not in part, "what is typed must not be replaced"
    assert "Whole fleet" in part


def test_many_caps_are_paged(sample):
    wanted = [(f"fleet;task:t{number:03d}", "month", 1_000) for number in range(51)]
    set_caps(sample.hub, *wanted)
    client = browser(sample, "viewer")
    assert "page 1 of 2" in client.get("/budget").text
    assert "task t050" in client.get("/budget?page=2").text
    assert client.get("/budget?page=99999999999&x=%00").status_code == 200


def test_prometheus_gets_the_same_figures_and_no_device(filled):
    given = Metrics(filled.hub).text().decode()
    with filled.hub.store.reading() as connection:
        found = standing.read(connection, now=filled.hub.clock())
    fleet = next(cap for cap in found.caps if (cap.scope, cap.kind) == ("fleet", "month"))
    line = 'edge_hub_budget_dollars{part="held",per="month",scope="fleet"} '
    assert f"{line}{fleet.held_microusd / 1e6}\n" in given
    assert 'edge_hub_budget_gateway_silent{pool="hosted"} 1.0' in given
    assert 'edge_hub_budget_gateway_silent{pool="gpu"} 0.0' in given
    assert "edge_hub_budget_recovering 0.0" in given
    assert 'pool="phones"' not in given.split("edge_hub_budget_gateway_seen_seconds")[1]


def test_a_cap_of_one_device_is_no_label(sample):
    device = add_device(sample.hub, 1, seen_at=None)
    set_caps(sample.hub, (f"device:{device}", "month", 1_000), ("fleet", "day", 1_000))
    metrics = Metrics(sample.hub, monotonic=iter(range(0, 100, 10)).__next__)
    given = metrics.text().decode()
    assert device not in given
    assert 'scope="fleet"' in given
    caps.remove_cap(sample.hub, "fleet", "day", who="test")
    assert 'scope="fleet"' not in metrics.text().decode()
