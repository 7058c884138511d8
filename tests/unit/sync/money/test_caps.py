from dataclasses import replace

import pytest

from edge.errors import BudgetExceeded, ConfigError, InputError
from edge_sync.money.caps import Cap, Caps, Purpose, Scope

DEVICE = "a" * 32
DRAFTS = Purpose("kiosks", DEVICE, "big", "draft")
SCOPES = [
    ("fleet", True),
    ("fleet;pool:big", True),
    ("fleet;task:draft", True),
    ("fleet;pool:small", False),
    ("group:kiosks", True),
    ("group:shops", False),
    ("group:kiosks;pool:big;task:draft", True),
    ("group:kiosks;task:spam", False),
    (f"device:{DEVICE}", True),
    (f"device:{'b' * 32}", False),
]


@pytest.mark.parametrize(("text", "covers"), SCOPES)
def test_a_scope_is_read_and_covers(text, covers):
    scope = Scope.parse(text)
    assert scope.text() == text
    assert scope.covers(DRAFTS) is covers


@pytest.mark.parametrize(
    ("text", "apart"),
    [
        ("fleet;task:draft", True),
        ("group:kiosks;pool:big;task:spam", True),
        (f"device:{DEVICE};task:draft", True),
        ("fleet", False),
        ("fleet;pool:big", False),
        ("group:shops;task:draft", False),
        ("fleet;pool:small;task:draft", False),
    ],
)
def test_a_cap_of_one_task_splits_what_is_for_any(text, apart):
    scope = Scope.parse(text)
    assert scope.splits(replace(DRAFTS, task="")) is apart
    assert not scope.splits(DRAFTS)


@pytest.mark.parametrize(
    "text", ["", "group:", "device:1", "fleet;", "fleet;task:a;pool:b", "group:a/b"]
)
def test_what_is_no_scope_is_refused(text):
    with pytest.raises(InputError, match="no scope"):
        Scope.parse(text)


def test_a_lease_tells_its_purpose():
    found = Purpose.of_lease(DRAFTS.scope, device_id=DEVICE, pool_id="big")
    assert found == DRAFTS
    with pytest.raises(InputError, match="names no group"):
        Purpose.of_lease("fleet", device_id=DEVICE, pool_id="big")


def test_a_lease_is_for_the_shortest_period_above_it():
    caps = Caps.of(
        [
            Cap(Scope(), "month", 10),
            Cap(Scope(group="kiosks"), "day", 5),
            Cap(Scope(group="shops"), "hour", 1),
        ]
    )
    assert [cap.kind for cap in caps.covering(DRAFTS)] == ["month", "day"]
    assert caps.lease_kind(DRAFTS) == "day"


def test_no_cap_no_money():
    with pytest.raises(BudgetExceeded, match="No cap covers"):
        Caps.of([Cap(Scope(group="shops"), "day", 5)]).lease_kind(DRAFTS)


@pytest.mark.parametrize("amount", [-1, 1.5, True, 10**16])
def test_an_amount_is_a_whole_number_in_range(amount):
    with pytest.raises(ConfigError, match="fleet per day"):
        Caps.of([Cap(Scope(), "day", amount)])


def test_a_cap_is_there_once():
    with pytest.raises(ConfigError, match="twice"):
        Caps.of([Cap(Scope(), "day", 1), Cap(Scope(), "day", 2)])
