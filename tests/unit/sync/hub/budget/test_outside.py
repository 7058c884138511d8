import json
import threading
from dataclasses import replace

import pytest

from edge.errors import ConfigError, StoreError
from edge_sync.hub.budget import outside
from edge_sync.hub.budget.outside import Gate, Outside
from edge_sync.money.caps import Cap, Scope

CAPS = (Cap(Scope(), "month", 50_000_000), Cap(Scope(group="kiosks"), "day", 1))
GATES = (Gate("a", "http://a", "gateway"),)
WHOLE = Outside(3, 17, recovering=True, caps=CAPS, gateways=GATES, changes=5)


def keep(keys, whole):
    return outside.change(keys, lambda _before: whole)


def keep_caps(keys, caps):
    outside.change(keys, lambda before: replace(before, caps=tuple(caps)))


def test_a_folder_without_a_file_holds_nothing(memory_path):
    assert outside.read(memory_path) == Outside()


def test_what_is_kept_is_read_again_and_is_its_owners_alone(memory_path):
    assert keep(memory_path, WHOLE) == outside.read(memory_path) == WHOLE
    assert (memory_path / outside.NAME).stat().st_mode & 0o777 == 0o600


def test_its_numbers_never_fall(memory_path):
    keep(memory_path, WHOLE)
    kept = keep(memory_path, Outside(epoch=1, granted=40))
    assert (kept.epoch, kept.granted, kept.caps, kept.changes) == (3, 40, (), 5)
    outside.raise_granted(memory_path, 12)
    assert outside.read(memory_path).granted == 40
    outside.raise_granted(memory_path, 41)
    assert outside.read(memory_path) == replace(kept, granted=41)


def test_caps_are_kept_in_one_order(memory_path):
    keep_caps(memory_path, reversed(CAPS))
    before = (memory_path / outside.NAME).read_bytes()
    keep_caps(memory_path, CAPS)
    assert (memory_path / outside.NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("epoch", "granted", "changes", "behind"),
    [(3, 17, 5, False), (4, 18, 6, False), (2, 17, 5, True), (3, 16, 5, True), (3, 17, 4, True)],
)
def test_a_database_that_has_less_was_set_back(epoch, granted, changes, behind):
    assert WHOLE.ahead_of(epoch=epoch, granted=granted, changes=changes) is behind


def test_a_file_of_an_older_version_counts_no_changes(memory_path):
    (memory_path / outside.NAME).write_text(json.dumps(GOOD))
    assert outside.read(memory_path) == Outside(epoch=1, granted=2)


GOOD = {"epoch": 1, "granted": 2, "recovering": False, "caps": [], "gateways": []}
CAP = {"scope": "fleet", "kind": "day", "amount_microusd": 5}
BAD = [
    b"",
    b"\x00" * 100,
    b'{"epoch": 1',
    json.dumps({**GOOD, "epoch": -1}).encode(),
    json.dumps({**GOOD, "granted": "2"}).encode(),
    json.dumps({**GOOD, "more": 1}).encode(),
    json.dumps({**GOOD, "caps": [{**CAP, "scope": "nobody"}]}).encode(),
    json.dumps({**GOOD, "caps": [{**CAP, "kind": "week"}]}).encode(),
    json.dumps({**GOOD, "caps": [CAP, CAP]}).encode(),
    json.dumps({**GOOD, "caps": [{**CAP, "amount_microusd": -5}]}).encode(),
]


@pytest.mark.parametrize("text", BAD)
def test_what_the_hub_did_not_write_is_refused_and_left_alone(memory_path, text):
    path = memory_path / outside.NAME
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"money\.json"):
        outside.read(memory_path)
    with pytest.raises(ConfigError):
        outside.raise_granted(memory_path, 5)
    assert path.read_bytes() == text


def test_a_step_that_fails_leaves_the_file(memory_path):
    keep(memory_path, WHOLE)

    def fail(_before):
        raise StoreError("no database")

    with pytest.raises(StoreError):
        outside.change(memory_path, fail)
    assert outside.read(memory_path) == WHOLE


def test_a_folder_that_is_not_there_is_named(memory_path):
    with pytest.raises(StoreError, match="nowhere"):
        outside.raise_granted(memory_path / "nowhere", 1)


def test_nothing_is_lost_where_many_write_at_once(memory_path):
    def raise_by_ten():
        for _ in range(10):
            outside.change(memory_path, lambda now: replace(now, granted=now.granted + 1))

    threads = [threading.Thread(target=raise_by_ten) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outside.read(memory_path).granted == 40
