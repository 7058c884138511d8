"""What commands say of the money that a hub gave: how much is left, how old that is, the bound."""

import json
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import edge
from edge.cli.main import app
from edge.pack import load_pack
from edge.spending import needs_of
from edge.store.leases import Leases, Offer
from edge.store.ledger import Need

PRICE = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 10}


@pytest.fixture
def place(tmp_path):
    """Return a pack and a state folder with a lease for each of its pools."""
    pools = {
        "gpu": {"base_url": "http://gateway.test/v1", "model": "m", "price": PRICE},
        "api": {"base_url": "http://api.test/v1", "model": "m", "price": PRICE},
    }
    tasks = {
        "reply": {
            "kind": "generate",
            "routing": {"pool": "gpu"},
            "privacy": {"allow_cloud": "raw"},
        },
        "draft": {
            "kind": "generate",
            "routing": {"pool": "api"},
            "privacy": {"allow_cloud": "raw"},
        },
        "stay": {"kind": "generate", "routing": {"pool": "api"}},
    }
    pools["gpu"]["gateway"] = True
    pack = tmp_path / "pack.yaml"
    pack.write_text(yaml.safe_dump({"name": "f", "version": 1, "pools": pools, "tasks": tasks}))
    state = tmp_path / "state"
    with edge.open(pack, state=state, offline=False) as runtime:
        runtime.run("stay", "a text")
    file = Leases.open(state, clock=lambda: time.time() - 300)
    file.replace(
        [
            Offer("a" * 32, "gpu", "", 60_000, 10.0**11, "{}"),
            Offer("b" * 32, "api", "", 40_000, 10.0**11, "{}"),
        ]
    )
    file.close()
    return str(pack), str(state)


def shown(*arguments):
    done = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})
    return " ".join(done.stdout.split())


def test_the_queue_is_shown_with_what_is_left(place):
    pack, state = place
    told = shown("queue", "list", "--pack", pack, "--state", state)
    assert "Left to spend: $0.1 (last sync 5 minutes ago)." in told
    assert "Pool api is escrow-grade: no gateway counts its money." in told
    assert "at most $0.040000 for each copy beyond the first" in told


def test_doctor_shows_the_age_and_the_bound(place):
    pack, state = place
    told = shown("doctor", "--pack", pack, "--state", state)
    assert "remaining $0.1 (last sync 5 minutes ago)" in told
    assert "note: Pool api is escrow-grade" in told
    assert "has not joined a fleet" in told  # the gateway's pool cannot be asked
    found = json.loads(shown("doctor", "--pack", pack, "--state", state, "--json"))
    budget = found["budget"]
    assert (budget["remaining_microusd"], 300 <= budget["age_s"] < 400) == (100_000, True)
    assert [(each["pool"], each["grade"]) for each in budget["pools"]] == [
        ("api", "escrow"),
        ("gpu", "gateway"),
    ]


def test_a_folder_without_a_hub_says_nothing_of_one(tmp_path):
    assert "Left to spend" not in shown("queue", "list", "--state", str(tmp_path))


def test_needs_are_the_pools_that_tasks_may_ask(place):
    needs = needs_of(load_pack(Path(place[0])))
    assert {(need.pool, need.task, need.gateway) for need in needs} == {
        ("gpu", "reply", True),
        ("api", "draft", False),
    }
    assert all(isinstance(need, Need) and 1_000 < need.call_microusd < 5_000 for need in needs)


def test_a_look_with_another_pack_does_not_change_what_is_needed(place):
    _, state = place
    shown("queue", "list", "--state", state)
    file = Leases.open(Path(state))
    assert {want.pool for want in file.wants(horizon_s=600, most=20)} == {"api", "gpu"}
    file.close()
