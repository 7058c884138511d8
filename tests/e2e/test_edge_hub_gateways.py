"""The commands edge-hub gateways and edge-hub restore, with a gateway process."""

import io
import json
import secrets
import shlex
import sys

import pytest
import yaml
from money_rows import MONTH, add_device, add_lease
from sqlalchemy import func, select

from edge_sync.cli import common
from edge_sync.cli.main import main
from edge_sync.hub.budget import leasekey
from edge_sync.hub.budget.rounds import Rounds
from edge_sync.hub.home import Hub
from edge_sync.money.lease import Lease
from edge_sync.store.schema import leases

from .gateway_process import HUB_KEY, POOL, SECRET, Device, Provider, gateway, settings


@pytest.fixture(scope="module")
def provider():
    made = Provider()
    yield made
    made.close()


@pytest.fixture
def run(memory_path, monkeypatch, capsys):
    """Return a function that runs ``edge-hub …`` in this process; it gives code and output."""
    monkeypatch.setenv(common.HOME_VARIABLE, str(memory_path / "hub"))
    monkeypatch.setenv("COLUMNS", "200")

    def command(line, *, typed=""):
        monkeypatch.setattr(sys, "argv", ["edge-hub", *shlex.split(line)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    assert command("init")[0] == 0
    assert command("budget set fleet 1 --per month")[0] == 0
    return command


@pytest.fixture
def hub(run, memory_path):
    with Hub.open(memory_path / "hub") as hub:
        yield hub


def listed(run):
    return [json.loads(line) for line in run("gateways list --json")[1].splitlines()]


def test_a_gateway_from_its_key_to_its_end(run, hub, provider, memory_path):
    code, out, _ = run("gateways key")
    found = leasekey.find(hub.keys)
    assert (code, f"{found.key_id}: {found.public_key}" in out) == (0, True)
    (memory_path / "secret").write_text(f"{SECRET}\n")
    config = settings(memory_path, provider.url)
    given = yaml.safe_load(config.read_text())
    given["hub"]["keys"] |= yaml.safe_load(out.splitlines()[-1])
    config.write_text(yaml.safe_dump(given))

    with gateway(config) as served:
        line = f"gateways add {POOL} --url {served.url}"
        wrong, _, err = run(f"{line} --secret-file -", typed="x" * 20)
        assert (wrong, "secret" in err, listed(run)) == (2, True, [])
        code, out, err = run(f"{line} --secret-file {memory_path / 'secret'}")
        assert (code, found.key_id in out, err) == (0, True, "")
        (row,) = listed(run)
        assert (row["pool_id"], row["epoch"], row["error"]) == (POOL, 1, "")

        device = Device()
        owner = device.key.device_id
        add_device(hub, int(owner, 16), seen_at=None)
        add_lease(hub, 1, owner, pool=POOL, amount=100_000, state="closing")
        with hub.store.reading() as connection:
            lease_id = connection.execute(select(leases.c.lease_id)).scalar_one()
        lease = Lease(lease_id, "group:kiosks", MONTH, owner, POOL, 1, 100_000, 2 * 10**9, 1, "k1")
        lease = lease.signed(HUB_KEY)
        for text in ("ok", "broken"):
            device.ask(served, lease, text)
        rounds = Rounds(hub, lambda *_, **__: None)
        rounds.step()
        (hold,) = [json.loads(one) for one in run("gateways holds --json")[1].splitlines()]
        assert (hold["device_id"], hold["lease_id"]) == (owner, lease_id)
        assert hold["hold_id"][:8] in run("gateways holds")[1]
        assert "1 leases over $0.10" in run(f"gateways remove {POOL}")[2]

        code, out, err = run(f"gateways reconcile {hold['hold_id'][:8]} 0.00005")
        assert (code, err) == (0, "")
        assert "came to $0.00005" in out
        rounds.step()
        rounds.close()
        assert run("gateways holds")[1] == "None is unclear.\n"
        code, _, err = run(f"gateways reconcile {hold['hold_id']} 0.00005")
        assert (code, "No unclear hold" in err) == (2, True)
        assert "$0.00" in run("gateways list")[1]
        code, out, _ = run(f"gateways remove {POOL}")
        assert (code, out) == (0, f"Pool {POOL} gets no more leases.\n")
    entries = run("audit list --what hold --json")[1]
    assert json.loads(entries)["detail"]["actual_microusd"] == 50


@pytest.mark.parametrize("options", ["", "--url http://x", "--secret-file -",
                                     "--escrow --url http://x"])  # fmt: skip
def test_a_pool_has_a_gateway_or_is_of_the_grade_escrow(run, options):
    code, _, err = run(f"gateways add a {options}")
    assert (code, "--escrow" in err) == (2, True)


def test_a_replica_without_the_key_of_leases_is_told_to_copy_it(run, hub):
    (hub.keys / leasekey.NAME).unlink()
    code, _, told = run("gateways key")
    assert code == 2
    assert "The key of leases is not in" in told
    assert "Copy lease.key there from the first replica" in told


def test_an_escrow_pool_is_written_off_by_hand(run, hub):
    code, out, _ = run("gateways add laptops --escrow")
    assert (code, "escrow" in out) == (0, True)
    assert "escrow" in run("gateways list")[1]
    device_id = add_device(hub, 7, seen_at=None)
    add_lease(hub, 1, device_id, pool="laptops", amount=20_000)
    assert run("gateways remove laptops --strand")[0] == 2
    code, out, _ = run("gateways remove laptops --strand --yes")
    assert (code, "$0.02" in out) == (0, True)
    assert run("gateways list")[1].startswith("There are none.")


def test_a_backup_is_restored(run, hub, memory_path):
    path = memory_path / "hub.backup"
    assert run(f"backup {path}")[0] == 0
    name = f"later-{secrets.token_hex(4)}"
    assert run(f"groups add {name}")[0] == 0
    code, _, err = run(f"restore {path}")
    assert (code, "--yes" in err) == (2, True)
    code, out, err = run(f"restore {path} --yes --json")
    assert (code, err, json.loads(out)["epoch"]) == (0, "", 2)
    assert name not in run("groups list")[1]
    with hub.store.reading() as connection:
        assert connection.execute(select(func.count()).select_from(leases)).scalar() == 0
    assert "set back" in run("gateways list")[1]
    code, _, err = run(f"restore {memory_path / 'nothing'} --yes")
    assert (code, "cannot be read" in err) == (2, True)
