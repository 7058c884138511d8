"""The device's policy file: one transaction each, no way back, and a stamp that others see."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from edge.errors import InputError, StoreError, VersionRollback
from edge.store.policies import Policies, Refusal, Switches

NONE = {"models": (), "tools": (), "tasks": ()}


@pytest.fixture
def policies(tmp_path):
    opened = Policies.open(tmp_path)
    yield opened
    opened.close()


def put(policies, revision, **rest):
    values = {"document": b"%d" % revision, "stopped": {}, "at": float(revision)}
    policies.activate(revision=revision, **values | rest)


def test_a_new_file_holds_no_policy(policies):
    assert policies.active() is None
    assert policies.previous() is None
    assert policies.switches() == Switches(0, NONE, tightened=False)
    assert policies.trust() == {}
    assert policies.etag() == ""
    assert policies.agent() == {}
    assert policies.refusals() == []


def test_all_of_an_activation_outlives_the_process(policies, tmp_path):
    put(policies, 1, trust={"root": b"r1"}, etag='"1"')
    put(
        policies,
        3,
        document=b"\x00three",
        stopped={"tasks": ["spam"], "tools": ["pay", "pay"]},
        trust={"root": b"r2", "targets": b"t"},
        etag='"3"',
        at=30.5,
    )
    policies.close()
    with Policies.open(tmp_path) as again:
        active, previous = again.active(), again.previous()
        assert (active.revision, active.document, active.activated_at) == (3, b"\x00three", 30.5)
        assert active.stopped == {"models": (), "tools": ("pay",), "tasks": ("spam",)}
        assert not active.tightened
        assert (previous.revision, previous.document) == (1, b"1")
        assert again.trust() == {"root": b"r2", "targets": b"t"}
        assert again.etag() == '"3"'
        put(again, 4)
        assert again.previous().revision == 3
        assert again.inspect()["rows"]["policies"] == 2


def test_what_is_not_given_stays(policies):
    put(policies, 1, trust={"root": b"r"}, etag="a")
    put(policies, 2)
    assert (policies.trust(), policies.etag()) == ({"root": b"r"}, "a")
    policies.set_trust(None, None, stopped={"models": ["m"]}, tightened=True)
    assert (policies.trust(), policies.etag()) == ({"root": b"r"}, "a")
    assert policies.active().tightened
    assert policies.active().revision == 2
    put(policies, 3, stopped=None, tightened=None)
    policies.set_trust(None, None, stopped=None, tightened=None)
    assert policies.switches() == Switches(3, {**NONE, "models": ("m",)}, tightened=True)
    policies.set_trust({}, "b", stopped={}, tightened=False)
    assert (policies.trust(), policies.etag(), policies.switches()) == (
        {},
        "b",
        Switches(3, NONE, tightened=False),
    )


def test_switches_hold_without_a_policy(policies):
    policies.set_trust({"root": b"r"}, "a", stopped={"tasks": ["spam"]}, tightened=True)
    assert policies.switches() == Switches(0, {**NONE, "tasks": ("spam",)}, tightened=True)
    assert policies.active() is None


def test_a_revision_never_falls(policies):
    put(policies, 5, trust={"root": b"r"}, etag="a")
    for revision, document in ((4, b"4"), (5, b"other")):
        with pytest.raises(VersionRollback, match=f"revision {revision}"):
            put(policies, revision, document=document, trust={}, etag="b", stopped={"tasks": ["x"]})
        assert policies.active().document == b"5"
        assert (policies.trust(), policies.etag()) == ({"root": b"r"}, "a")
        assert policies.switches().stopped == NONE
    put(policies, 5, stopped={"tasks": ["x"]}, at=99.0)
    assert policies.active().activated_at == 5.0
    assert policies.active().stopped["tasks"] == ("x",)
    assert policies.previous() is None


def test_what_makes_no_sense_is_refused_whole(policies):
    with pytest.raises(InputError, match="1 or more"):
        put(policies, 0)
    with pytest.raises(InputError, match="under pools"):
        put(policies, 1, stopped={"pools": ["p"]})
    with pytest.raises(InputError, match="no list"):
        put(policies, 1, stopped={"tasks": "spam"})
    with pytest.raises(StoreError):
        put(policies, 1, document=None)
    assert policies.active() is None
    assert policies.switches().revision == 0


def test_the_agents_state_changes_whole_or_not(policies, tmp_path):
    assert policies.change_agent(lambda before: before | {"device": "d", "nonce": 1})
    with pytest.raises(ZeroDivisionError):
        policies.change_agent(lambda before: before | {"nonce": 1 // 0})
    with Policies.open(tmp_path) as other:
        other.change_agent(lambda before: before | {"nonce": before["nonce"] + 1})
    assert policies.agent() == {"device": "d", "nonce": 2}
    put(policies, 1)
    assert policies.agent() == {"device": "d", "nonce": 2}


def test_refusals_are_kept_newest_first_up_to_a_hundred(policies):
    for n in range(105):
        policies.refused(n, f"reason {n}", at=float(n))
    found = policies.refusals()
    assert found[0] == Refusal(104, "reason 104", 104.0)
    assert [each.revision for each in found] == list(range(104, 4, -1))


def test_every_change_of_any_opening_changes_the_stamp(policies, tmp_path):
    with Policies.open(tmp_path) as other:
        seen = {policies.stamp()}
        assert policies.stamp() in seen
        for revision in range(1, 41):  # far quicker than a tick of the kernel's clock
            put(other if revision % 2 else policies, revision)
            assert policies.stamp() not in seen
            assert policies.stamp() == other.stamp()
            seen.add(policies.stamp())


def test_a_change_of_another_process_changes_the_stamp(policies, tmp_path):
    before = policies.stamp()
    code = (
        "import sys; from pathlib import Path; from edge.store.policies import Policies; "
        "Policies.open(Path(sys.argv[1])).activate(revision=7, document=b'x', stopped={}, at=1.0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert policies.stamp() != before
    assert policies.active().revision == 7


def test_a_file_that_is_gone_is_named(policies, tmp_path):
    (tmp_path / "policy.db").unlink()
    with pytest.raises(StoreError, match=r"policy\.db"):
        policies.stamp()


def test_threads_and_openings_that_activate_at_once_end_at_the_highest(policies, tmp_path):
    other = Policies.open(tmp_path)
    refused = []

    def activate(opened, first):
        for revision in range(first, 40, 3):
            try:
                put(opened, revision, trust={"root": b"%d" % revision}, etag=str(revision))
            except VersionRollback:
                refused.append(revision)

    threads = [
        threading.Thread(target=activate, args=args)
        for args in ((policies, 1), (policies, 2), (other, 3))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert policies.active().revision == 39
    assert (policies.etag(), policies.trust()) == ("39", {"root": b"39"})
    assert 39 not in refused


ENDLESS = """
import sys
from itertools import count
from pathlib import Path
from edge.store.policies import Policies

policies = Policies.open(Path(sys.argv[1]))
for n in count((policies.switches().revision or 0) + 1):
    text = b"%d" % n
    policies.activate(revision=n, document=text * 5000, stopped={"tasks": [str(n)]}, at=float(n),
                      trust={"root": text, "targets": text * 3000}, etag=str(n))
    print(n, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_kill_at_any_moment_leaves_one_whole_policy(tmp_path):
    for wait_ms in (1, 3, 7, 12, 18):
        child = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        said = int(child.stdout.readline())
        time.sleep(wait_ms / 1e3)
        os.kill(child.pid, signal.SIGKILL)
        said = max([said, *map(int, child.stdout.read().split("\n")[:-1])])
        child.stdout.close()
        child.wait()
        with Policies.open(tmp_path) as policies:
            active = policies.active()
            text = b"%d" % active.revision
            assert active.revision in {said, said + 1}
            assert active.document == text * 5000
            assert active.stopped["tasks"] == (text.decode(),)
            assert policies.trust() == {"root": text, "targets": text * 3000}
            assert policies.etag() == text.decode()
            assert json.dumps(policies.agent()) == "{}"
