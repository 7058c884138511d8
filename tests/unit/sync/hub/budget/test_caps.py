import pytest
from sqlalchemy import delete

from edge.errors import ConfigError, InputError
from edge_sync.hub import audit
from edge_sync.hub.budget import books, caps, leasekey, outside
from edge_sync.hub.budget.caps import caps_above, read_caps, remove_cap, set_cap
from edge_sync.hub.home import Hub
from edge_sync.money.caps import Cap, Purpose, Scope
from edge_sync.store.schema import facts

from ..conftest import NOW  # noqa: TID252
from .conftest import held, look, pots

MONTH = "month:2026-11"


def told(hub):
    """Return the caps in force, as the table and the keys folder have them."""
    found = look(hub, read_caps).caps
    assert set(outside.read(hub.keys).caps) == set(found)
    return {(cap.scope.text(), cap.kind): cap.amount_microusd for cap in found}


def states(hub):
    return [(each.right.state, each.why_closed) for each in held(hub)]


def test_a_cap_is_set_changed_and_taken_away(hub):
    set_cap(hub, "fleet", "month", 500, who="ann")
    set_cap(hub, "group:kiosks;pool:gpu", "hour", 5, who="ann")
    set_cap(hub, "fleet", "month", 700, who="bob")
    assert told(hub) == {("fleet", "month"): 700, ("group:kiosks;pool:gpu", "hour"): 5}
    assert pots(hub) == {
        f"fleet {MONTH}": (700, 700, 0, 0),
        "group:kiosks;pool:gpu hour:2026-11-18T11": (5, 5, 0, 0),
    }
    removed = remove_cap(hub, "fleet", "month", who="bob")
    assert removed == Cap(Scope(), "month", 700)
    assert told(hub) == {("group:kiosks;pool:gpu", "hour"): 5}
    entries = audit.page(hub.store, what="budget")
    assert [(each.who, each.what, each.about, each.detail) for each in entries] == [
        ("bob", "budget.rm", "fleet", {"kind": "month", "amount_microusd": 700}),
        ("bob", "budget.set", "fleet",
         {"kind": "month", "amount_microusd": 700, "before_microusd": 500}),
        ("ann", "budget.set", "group:kiosks;pool:gpu",
         {"kind": "hour", "amount_microusd": 5, "before_microusd": None}),
        ("ann", "budget.set", "fleet",
         {"kind": "month", "amount_microusd": 500, "before_microusd": None}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scope", "kind", "amount", "error", "words"),
    [
        ("kiosks", "month", 5, InputError, "no scope"),
        ("fleet", "week", 5, ConfigError, "hour, day, month, total"),
        ("fleet", "month", -1, ConfigError, "no integer"),
        ("fleet", "month", 0.5, ConfigError, "no integer"),
        ("fleet", "month", 10**16, ConfigError, "no integer"),
        ("group:none", "month", 5, ConfigError, "no group 'none'"),
        (f"device:{'0' * 32}", "month", 5, ConfigError, "no device '0000"),
    ],
)
def test_what_is_no_cap_changes_nothing(hub, scope, kind, amount, error, words):
    with pytest.raises(error, match=words) as caught:
        set_cap(hub, scope, kind, amount, who="ann")
    assert caught.value.hint
    assert told(hub) == pots(hub) == {}


def test_a_cap_that_is_not_there_cannot_be_taken_away(hub):
    set_cap(hub, "fleet", "month", 500, who="ann")
    with pytest.raises(ConfigError, match="no cap of fleet per day") as caught:
        remove_cap(hub, "fleet", "day", who="ann")
    assert "budget show" in caught.value.hint
    assert told(hub) == {("fleet", "month"): 500}


def test_a_cap_for_one_device(hub, spender):
    device = spender()
    set_cap(hub, f"device:{device.id}", "total", 80_000, who="ann")
    other = spender()
    other.want()
    device.want()
    assert other.leases == ()
    assert device.leases[0].amount_microusd == 10_000
    assert device.leases[0].period == "total"
    assert device.leases[0].not_after == int(NOW) + 7 * 86_400


def test_a_cut_counts_what_was_granted(hub, spender):
    set_cap(hub, "fleet", "month", 800_000, who="ann")
    spender().want()
    set_cap(hub, "fleet", "month", 30_000, who="ann")
    assert pots(hub) == {f"fleet {MONTH}": (30_000, -70_000, 100_000, 0)}
    assert states(hub) == [("open", "")]
    set_cap(hub, "fleet", "month", 900_000, who="ann")
    assert pots(hub) == {f"fleet {MONTH}": (900_000, 800_000, 100_000, 0)}


def test_a_cut_holds_for_a_period_that_was_opened_too_early(hub, spender):
    set_cap(hub, "fleet", "month", 800_000, who="ann")
    device = spender()
    hub.clock.at += 20 * 86_400  # a clock that was ahead
    device.want()
    hub.clock.at = NOW
    set_cap(hub, "fleet", "month", 30_000, who="ann")
    assert {cap for cap, *_ in pots(hub).values()} == {30_000}


def test_a_new_cap_counts_what_was_granted_before(hub, spender):
    set_cap(hub, "fleet", "month", 800_000, who="ann")
    spender().want(task="draft")
    set_cap(hub, "group:kiosks;task:draft", "total", 500_000, who="ann")
    set_cap(hub, "group:kiosks;task:other", "total", 500_000, who="ann")
    assert pots(hub)["group:kiosks;task:draft total"] == (500_000, 400_000, 100_000, 0)
    assert pots(hub)["group:kiosks;task:other total"] == (500_000, 500_000, 0, 0)
    assert states(hub) == [("open", "")]


def test_a_lease_across_the_periods_of_a_new_cap_is_taken_back(hub, spender):
    set_cap(hub, "fleet", "month", 800_000, who="ann")
    device = spender()
    device.want()
    set_cap(hub, "group:lab", "day", 50_000, who="ann")
    assert states(hub) == [("open", "")]
    set_cap(hub, "group:kiosks", "day", 500_000, who="ann")
    assert states(hub) == [("closing", "cap")]
    device.want()
    assert [each.period for each in device.leases] == ["day:2026-11-18"]
    assert pots(hub) == {
        f"fleet {MONTH}": (800_000, 637_500, 162_500, 0),
        "group:kiosks day:2026-11-18": (500_000, 437_500, 62_500, 0),
        "group:lab day:2026-11-18": (50_000, 50_000, 0, 0),
    }


def test_without_its_last_cap_a_lease_is_taken_back(hub, spender):
    set_cap(hub, "fleet", "month", 800_000, who="ann")
    set_cap(hub, "group:kiosks", "month", 800_000, who="ann")
    device = spender()
    device.want()
    remove_cap(hub, "fleet", "month", who="ann")
    assert states(hub) == [("open", "")]
    remove_cap(hub, "group:kiosks", "month", who="ann")
    assert states(hub) == [("closing", "cap")]
    device.want()
    assert device.leases == ()
    assert pots(hub) == {}


def test_a_cap_that_comes_back_counts_all_that_was_granted(hub, spender):
    set_cap(hub, "fleet", "month", 800_000, who="ann")
    device = spender()
    device.want()
    lease = device.leases[0].lease_id
    remove_cap(hub, "fleet", "month", who="ann")
    hub.store.write(lambda c: books.seal(c, lease, used_microusd=40_000))
    set_cap(hub, "fleet", "month", 800_000, who="ann")
    assert pots(hub) == {f"fleet {MONTH}": (800_000, 760_000, 0, 40_000)}


def test_caps_above_are_found_for_many_at_once(hub):
    for scope in ("fleet", "group:kiosks;pool:gpu", "fleet;task:draft", "group:lab"):
        set_cap(hub, scope, "month", 5, who="ann")
    whole = look(hub, read_caps)
    purposes = [Purpose(group, "a" * 32, pool, task)
                for group in ("kiosks", "lab", "none") for pool in ("gpu", "hosted")
                for task in ("", "draft")]  # fmt: skip
    found = look(hub, lambda c: caps_above(c, purposes))
    for purpose in purposes:
        assert set(found[purpose].caps) == set(whole.covering(purpose))


def test_a_hub_of_an_older_version_gets_its_key_with_the_first_cap(hub):
    (hub.keys / leasekey.NAME).unlink()
    hub.store.write(lambda c: c.execute(delete(facts).where(facts.c.name == leasekey.FACT)))
    set_cap(hub, "fleet", "month", 500, who="ann")
    key = leasekey.find(hub.keys)
    assert look(hub, caps.key_name) == key.key_id
    set_cap(hub, "fleet", "month", 600, who="ann")
    assert leasekey.find(hub.keys).key_id == key.key_id


@pytest.mark.parametrize("other", [False, True])
def test_a_replica_without_the_key_is_told_to_copy_it(hub, other):
    (hub.keys / leasekey.NAME).unlink()
    if other:
        leasekey.make(hub.keys)
    with pytest.raises(ConfigError, match="key of leases lease-") as caught:
        set_cap(hub, "fleet", "month", 500, who="ann")
    assert "Copy lease.key" in caught.value.hint
    assert look(hub, read_caps).caps == ()


def test_a_new_hub_has_a_key_of_its_owner_alone(hub, memory_path):
    key = leasekey.find(hub.keys)
    assert look(hub, caps.key_name) == key.key_id
    assert (hub.keys / leasekey.NAME).stat().st_mode & 0o077 == 0
    with Hub.create(memory_path / "another") as another:
        assert leasekey.find(another.keys).key_id != key.key_id
