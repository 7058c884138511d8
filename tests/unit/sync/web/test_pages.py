"""The dashboard over HTTP: roles, forms, what is shown, and what strangers get."""

import re

import pytest
from fleet_sample import FIRST, fill
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.testclient import TestClient

from edge_sync.hub import audit, rollouts, tokens
from edge_sync.web import routes

PAGES = ("/", "/devices", "/policies", "/rollouts", "/budget", "/audit")


@pytest.fixture
def browse(sample):
    """Return a function that gives a browser signed in with a role, or with none."""
    return lambda role=None: browser(sample, role)


@pytest.fixture
def look(filled):
    """Return the same over a hub with a fleet, for tests that change nothing."""
    return lambda role=None: browser(filled, role)


def browser(sample, role):
    client = TestClient(Starlette(routes=routes(sample.hub)), follow_redirects=True)
    if role:
        assert sign_in(client, sample.tokens[role]).status_code == 200
    return client


def sign_in(client, token, **more):
    form = field(client.get("/login").text, "csrf")
    return client.post("/login", data={"token": token, "csrf": form, **more})


def field(page, name):
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found, page
    return found[1]


def rollout_path(sample):
    with sample.hub.store.reading() as connection:
        newest = connection.execute(text("SELECT max(id) FROM rollouts")).scalar_one()
    return f"/rollouts/{newest}"


@pytest.mark.parametrize("path", [*PAGES, "/devices/x", "/policies/new"])
def test_strangers_are_sent_to_the_form_and_back(look, path):
    client = look()
    answer = client.get(path)
    assert answer.url.path == "/login"
    assert "Sign in with an admin token" in answer.text
    assert answer.url.params.get("next", "/") == path


def test_a_wrong_token_says_so_and_lets_nobody_in(look):
    client = look()
    answer = sign_in(client, "edge-hub_wrong")
    assert answer.status_code == 403
    assert "unknown, revoked or expired" in answer.text
    assert client.get("/").url.path == "/login"


@pytest.mark.parametrize("wanted", ["https://evil.example", "//evil.example", "/\\evil.example"])
def test_signing_in_leads_nowhere_else(look, filled, wanted):
    client = look()
    answer = sign_in(client, filled.tokens["viewer"], next=wanted)
    assert (answer.url.host, answer.url.path) == ("testserver", "/")


@pytest.mark.parametrize("path", PAGES)
def test_an_empty_hub_shows_what_to_do_next(browse, path):
    answer = browse("viewer").get(path)
    assert answer.status_code == 200
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_safe(look, path):
    answer = look("viewer").get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"\sstyle=|<script>|\son\w+=", answer.text), "inline code would be blocked"


def test_the_fleet_at_a_glance(look):
    shown = look("viewer").get("/").text
    assert "42 devices" in shown
    assert "v3" in shown
    assert "1 device refused the policy" in shown
    assert "1 device in quarantine" in shown
    for group in ("kiosks", "desktops", "lab"):
        assert group in shown


def test_figures_are_those_of_the_database(look, filled):
    with filled.hub.store.reading() as connection:
        tasks, cloud, cost, good = connection.execute(
            text(
                "SELECT sum(tasks), sum(cloud), sum(cost_microusd), "
                "sum(cached + local + cloud - corrections) FROM health"
            )
        ).one()
    shown = look("viewer").get("/").text
    assert f"{tasks / 1e3:.1f} k" in shown
    assert f"{100 * cloud / tasks:.1f} %" in shown
    assert f"${cost / 1e6 / good:.6f}" in shown


def test_devices_can_be_found(look):
    client = look("viewer")
    assert client.get("/devices?group=lab").text.count("/devices/") == 14
    assert "1 device fits" in client.get("/devices?state=refused").text
    assert "No device fits" in client.get("/devices?q=%25").text
    assert client.get("/devices?page=99999999999&state=%00&group=%3Cb%3E").status_code == 200


def test_one_device(look):
    client = look("viewer")
    path = re.search(r'"(/devices/[0-9a-f]{32})"', client.get("/devices?state=refused").text)[1]
    shown = client.get(path).text
    assert "Task action needs a decoder." in shown
    assert "support_intent" in shown
    assert "Revoke" not in shown, "a viewer cannot revoke"


def test_a_policy_shows_its_difference(look):
    shown = look("viewer").get("/policies/3").text
    assert re.search(r"budget\.cap_usd.*<del>2\.5</del>.*<ins>4\.0</ins>", shown, re.DOTALL)


@pytest.mark.parametrize("path", ["/devices/nobody", "/policies/99", "/rollouts/99", "/nothing"])
def test_what_is_not_there_says_so(look, path):
    answer = look("viewer").get(path)
    assert answer.status_code == 404
    assert "There is no such" in answer.text


@pytest.mark.parametrize(("role", "status"), [("viewer", 403), ("operator", 200), ("admin", 200)])
def test_roles_decide_who_pauses(browse, sample, role, status):
    fill(sample)
    client, path = browse(role), rollout_path(sample)
    form = field(client.get(path).text, "csrf")
    assert client.post(f"{path}/pause", data={"csrf": form}).status_code == status
    state = rollouts.get(sample.hub).state
    assert state == ("paused" if status == 200 else "running")


def test_a_form_of_another_site_is_refused(look, filled):
    client, path = look("admin"), rollout_path(filled)
    for csrf in ({}, {"csrf": ""}, {"csrf": "0" * 64}):
        assert client.post(f"{path}/abort", data=csrf).status_code == 403
    assert rollouts.get(filled.hub).state == "running"


def test_what_is_done_stands_in_the_audit_log_under_the_token(browse, sample):
    fill(sample)
    client, path = browse("operator"), rollout_path(sample)
    form = field(client.get(path).text, "csrf")
    client.post(f"{path}/abort", data={"csrf": form})
    shown = client.get("/audit").text
    assert "rollout.abort" in shown
    assert "operator-one" in shown
    assert "chain verified" in shown
    assert audit.verify(sample.hub.store) is None


def test_a_broken_chain_is_shown(browse, sample):
    fill(sample)
    sample.hub.store.write(
        lambda c: c.execute(text("UPDATE audit SET who = 'mallory' WHERE seq = 3"))
    )
    assert "broken at entry 3" in browse("viewer").get("/audit").text


def test_a_revoked_token_is_out_at_once(browse, sample):
    client = browse("operator")
    tokens.revoke(sample.hub, "operator-one", who="test")
    assert client.get("/").url.path == "/login"


def test_a_forged_or_old_cookie_is_nobody(filled, look):
    cookie = look("admin").cookies["edge_hub"]
    other = cookie[:-1] + ("0" if cookie[-1] != "0" else "1")
    stranger = look()
    for sent, status in ((cookie, 200), (other, 303), ("x.y", 303), ("", 303), ("\xe9.\xe9", 303)):
        header = {"cookie": f"edge_hub={sent}".encode("latin-1")}
        answer = stranger.get("/", headers=header, follow_redirects=False)
        assert answer.status_code == status, sent


def test_signing_out(look):
    client = look("viewer")
    form = field(client.get("/").text, "csrf")
    assert client.post("/logout", data={"csrf": form}).url.path == "/login"
    assert client.get("/").url.path == "/login"


def test_publishing_shows_the_difference_first_and_then_begins_a_rollout(browse, sample):
    fill(sample)
    client, path = browse("admin"), rollout_path(sample)
    form = {"csrf": field(client.get("/policies/new").text, "csrf")}
    client.post(f"{path}/abort", data=form)
    draft = {
        **form,
        "source": FIRST.replace("0.7}", "0.8}").replace("\n", "\r\n"),
        "message": "Keep less",
        "groups": "kiosks, lab",
        "waves": "20,100",
    }
    looked = client.post("/policies/new", data={**draft, "do": "look"})
    assert "<ins>0.8</ins>" in looked.text
    assert 'value="publish"' in looked.text
    answer = client.post("/policies/new", data={**draft, "do": "publish"})
    assert answer.url.path == rollout_path(sample)
    assert "Wave 1: 20 %" in answer.text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"source": "nonsense: 1"}, "nonsense"),
        ({"source": "routing: {keep_above: 7}"}, "keep_above"),
        ({"source": "routing: ["}, "YAML"),
        ({"groups": "moon"}, "no group moon"),
        ({"groups": " , "}, "No group is named"),
        ({"waves": "50,5"}, "do not rise"),
        ({"message": " "}, "message"),
    ],
)
def test_a_bad_draft_is_told_and_nothing_is_published(browse, sample, change, told):
    client = browse("admin")
    form = {"csrf": field(client.get("/policies/new").text, "csrf"), "do": "publish"}
    draft = {"source": FIRST, "message": "x", "groups": "lab", "waves": "100", **form, **change}
    answer = client.post("/policies/new", data=draft)
    assert answer.status_code == 400
    assert told in answer.text
    with sample.hub.store.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM policies")).scalar_one() == 0


def test_what_a_device_makes_up_does_not_take_the_overview_down(browse, sample):
    fill(sample, count=3)
    sample.hub.store.write(
        lambda c: c.execute(text("UPDATE health SET cost_microusd = 4611686018427387904"))
    )
    assert browse("viewer").get("/").status_code == 200


def test_names_are_never_markup(browse, sample):
    fill(sample, count=3)
    sample.hub.store.write(
        lambda c: c.execute(text("UPDATE devices SET name = '<img src=x onerror=alert(1)>'"))
    )
    shown = browse("viewer").get("/devices").text
    assert "<img" not in shown
    assert "&lt;img" in shown


def test_a_live_page_gives_the_script_its_part_alone(look):
    part = look("viewer").get("/", headers={"X-Fragment": "1"}).text
    assert "<html" not in part
    assert "Online" in part


def test_a_huge_form_is_refused(look):
    client = look("admin")
    assert client.post("/policies/new", content=b"a" * 3_000_000).status_code == 413
