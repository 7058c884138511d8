"""The command edge-hub budget as people and programs use it."""

import json
import re
import shlex
import sys

import pytest
from money_rows import add_device, add_gateway, add_lease, add_want

from edge_sync.cli import common
from edge_sync.cli.main import main
from edge_sync.hub import audit
from edge_sync.hub.home import Hub

FREE = "at most $50.00, $50.00 free."


@pytest.fixture
def run(memory_path, monkeypatch, capsys):
    """Return a function that runs ``edge-hub …`` in this process; it gives code and output."""
    monkeypatch.setenv(common.HOME_VARIABLE, str(memory_path / "hub"))
    monkeypatch.setenv("COLUMNS", "140")

    def command(line, *, answer=None):
        monkeypatch.setattr(sys, "argv", ["edge-hub", *shlex.split(line)])
        monkeypatch.setattr("typer.confirm", lambda *_, **__: answer)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: answer is not None, raising=False)
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    assert command("init")[0] == 0
    return command


@pytest.fixture
def hub(run, memory_path):
    with Hub.open(memory_path / "hub") as hub:
        yield hub


def shown(run, line="budget show --json"):
    code, out, err = run(line)
    assert (code, err, out.count("\n")) == (0, "", 1)
    return json.loads(out)


def test_a_hub_without_caps_says_what_to_do(run):
    code, out, _ = run("budget show")
    assert (code, out) == (
        0,
        "No cap, so no money is granted: edge-hub budget set fleet 50 --per month\n",
    )
    assert shown(run)["caps"] == []


@pytest.mark.parametrize("amount", ["50", "'$50'", "50.00", "50.000000"])
def test_a_cap_is_set_exactly(run, amount):
    assert run(f"budget set fleet {amount} --per month")[:2] == (0, f"fleet per month: {FREE}\n")
    (cap,) = shown(run)["caps"]
    figures = {name: value for name, value in cap.items() if name.endswith("_microusd")}
    assert figures == {
        "cap_microusd": 50_000_000,
        "free_microusd": 50_000_000,
        "spent_microusd": 0,
        "held_microusd": 0,
        "granted_microusd": 0,
        "stranded_microusd": 0,
    }


def test_a_cap_is_set_anew_shown_and_taken_away(run, hub):
    assert run("budget set fleet 50 --per month")[0] == 0
    assert run("budget set 'group:default;pool:gpu' 0.000125 --per total")[:2] == (
        0,
        "group:default;pool:gpu in all: at most $0.000125, $0.000125 free.\n",
    )
    assert run("budget set fleet 20 --per month")[0] == 0
    out = run("budget show")[1]
    assert re.match(
        r"fleet per month: \$0.00 of \$20.00 used \(0 %\), until [-\d]+-01 00:00 UTC\n", out
    )
    assert "  spent $0.00, held $0.00, granted $0.00, stranded $0.00, free $20.00\n" in out
    assert "  no forecast, too early: 0 of 20 calls\n" in out
    assert "gpu" not in run("budget show fleet")[1]
    code, _, err = run("budget rm fleet --per month")
    assert (code, "Pass --yes." in err) == (2, True)
    assert run("budget rm fleet --per month", answer=False)[0] == 1
    assert run("budget rm fleet --per month", answer=True)[:2] == (
        0,
        "fleet per month: no cap any more.\n",
    )
    assert [cap["scope"] for cap in shown(run)["caps"]] == ["group:default;pool:gpu"]
    found = [(entry.what, entry.about) for entry in audit.page(hub.store, what="budget")]
    assert found == [
        ("budget.rm", "fleet"),
        ("budget.set", "fleet"),
        ("budget.set", "group:default;pool:gpu"),
        ("budget.set", "fleet"),
    ]


def test_a_cut_says_that_grants_wait(run, hub):
    device = add_device(hub, 1, group="default", seen_at=hub.clock())
    add_gateway(hub, "gpu", seen_at=hub.clock())
    add_lease(hub, 1, device, group="default", period="total", amount=30_000_000, used=9)
    assert run("budget set fleet 50 --per total")[0] == 0
    code, out, _ = run("budget set fleet 20 --per total")
    assert code == 0
    assert out.splitlines() == [
        "fleet in all: at most $20.00, -$10.00 free.",
        "More is granted than that; there are no new leases until enough has come back.",
    ]


def test_pools_and_what_strands_are_told(run, hub):
    now = hub.clock()
    near = add_device(hub, 1, group="default", seen_at=now)
    far = add_device(hub, 2, group="default", seen_at=now - 3 * 86_400)
    add_gateway(hub, "gpu", seen_at=now)
    add_gateway(hub, "hosted", seen_at=now - 7_200, error="It timed out.")
    add_gateway(hub, "phones", grade="escrow")
    add_lease(hub, 1, far, group="default", period="total", amount=3_000_000, used=1_000_000)
    add_lease(hub, 2, near, group="default", pool="hosted", period="total", amount=2_000_000)
    add_lease(hub, 3, near, group="default", pool="phones", period="total", amount=800_000)
    assert run("budget set fleet 50 --per total")[0] == 0
    out = run("budget show")[1]
    assert out.startswith(
        "fleet in all: $1.00 of $50.00 used (2 %); escrow-grade at phones\n"
        "  spent $0.00, held $1.00, granted $0.80, stranded $4.00, free $44.20\n"
        "  no forecast, too early: 0 of 20 calls\n"
        "  stranded $2.00 at gpu (not heard of for a day), "
        "$2.00 at hosted (its gateway is silent)\n"
    )
    for row in (
        r"gpu +gateway .* 1 of \d +1 +\$3.00 +\$1.00",
        r"hosted +gateway: silent +2 h ago",
        r"phones +devices: escrow-grade +- +- +1 +\$0.80 +\$0.00",
    ):
        assert re.search(row, out), (row, out)
    assert "hosted: $2.00 strands until its gateway answers. It timed out.\n" in out
    assert "can overspend by its largest lease ($0.80 now)" in out
    assert "Not heard of for a day, with $2.00: kiosk-2.\n" in out
    told = shown(run)
    assert [each["why"] for each in told["caps"][0]["stranded"]] == ["device", "gateway"]
    assert [pool["grade"] for pool in told["pools"]] == ["gateway", "gateway", "escrow"]


def test_a_device_is_shown_with_its_leases(run, hub):
    device = add_device(hub, 1, group="default", seen_at=hub.clock())
    assert "lease" not in run("devices show kiosk-1")[1]
    add_gateway(hub, "gpu")
    add_gateway(hub, "phones", grade="escrow")
    own = {"group": "default"}
    add_lease(hub, 1, device, **own, amount=3_000_000, used=1_000_000, state="closing")
    add_lease(hub, 2, device, **own, pool="phones", task="draft", amount=800_000, told=5)
    add_lease(hub, 3, device, **own, amount=70_000, used=70_000, state="sealed")
    out = run("devices show kiosk-1")[1]
    for line in (
        r"lease gpu     \$1.00 of \$3.00 used, any task, until [-\d]{10} [:\d]{5}, closing: done\n",
        r"lease phones  \$0.000005 of \$0.80 used, task draft, until .*, open, escrow-grade\n",
    ):
        assert re.search(line, out), (line, out)
    assert "0.07" not in out
    told = shown(run, "devices show kiosk-1 --json")
    assert [each["state"] for each in told["leases"]] == ["open", "closing", "sealed"]


def test_what_is_asked_for_in_vain_is_told(run, hub):
    now = hub.clock()
    for number in (1, 2):
        device = add_device(hub, number, group="default", seen_at=now)
        add_want(hub, device, pool="hosted", at=now)
    assert run("budget set fleet 50 --per total")[0] == 0
    assert run("budget show")[1].endswith(
        "Asked for, not granted: pool hosted, 2 devices: the hub does not know the pool; see "
        "`edge-hub gateways add`.\n"
    )
    assert shown(run)["unmet"] == [{"pool": "hosted", "devices": 2, "why": "unknown"}]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("budget set moon 50 --per month", "no scope of a cap"),
        ("budget set 'group:a b' 50 --per month", "no scope of a cap"),
        ("budget set device:12 50 --per month", "no scope of a cap"),
        ("budget set group:nowhere 50 --per month", "nowhere"),
        ("budget set fleet fifty --per month", "no amount of dollars"),
        ("budget set fleet 1,000 --per month", "no amount of dollars"),
        ("budget set fleet --per month -- -5", "no amount of dollars"),
        ("budget set fleet -5 --per month", "No such option"),
        ("budget set fleet 1e3 --per month", "no amount of dollars"),
        ("budget set fleet 0.0000001 --per month", "finer than a micro-dollar"),
        ("budget set fleet 1000000001 --per month", "more than $1000000000.00"),
        ("budget set fleet 50 --per week", "--per"),
        ("budget set fleet 50", "--per"),
        ("budget rm fleet --per month --yes", "There is no cap of fleet per month"),
        ("budget rm moon --per month --yes", "no scope of a cap"),
        ("budget show fleet", "There is no cap of fleet"),
        ("budget show moon", "no scope of a cap"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(run, hub, line, words):
    with hub.store.reading() as connection:
        before = audit.head(connection)
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert words in err.replace(",", "")
    assert "Traceback" not in err
    with hub.store.reading() as connection:
        assert audit.head(connection) == before
