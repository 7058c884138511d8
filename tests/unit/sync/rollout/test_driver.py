"""Rollouts over a real hub with SQLite: devices report by rows, the clock is turned by hand."""

import json
import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, update

from edge.errors import ConfigError
from edge_sync.hub import audit, fleet, policies, rollouts, stops
from edge_sync.hub.home import Hub
from edge_sync.hub.revisions import get as get_policy
from edge_sync.hub.rollout_record import Stale, require_same
from edge_sync.hub.view import read_view
from edge_sync.store.schema import devices, health
from edge_sync.wire import LATENCY_BUCKETS

START = 1_800_000_000.0
HOUR = 3600.0
TERMS = {"soak_s": 600.0, "grace_s": 600.0, "deadline_s": 86_400.0}


class Bed:
    """A hub with 60 devices in two groups, whose first policy is in force everywhere."""

    def __init__(self, home, *, first=True):
        self.now = START
        self.hub = Hub.create(home, clock=lambda: self.now)
        for name in ("lab", "shop"):
            fleet.add_group(self.hub, name, who="ann")
        self.ids = [f"{number:032x}" for number in range(60)]
        self.hub.store.write(self._enrol)
        self.first = self.publish(3, at_once=["lab", "shop"]).revision if first else 0
        self.report(self.ids, self.first, hours_ago=30, tasks=400)

    def publish(self, calls, **more):
        text = f"task_budgets: {{max_model_calls: {calls}}}\n".encode()
        checked = policies.check(self.hub, text, what="policy")
        return policies.publish(self.hub, checked, message="why", who="ann", **more)

    def start(self, **more):
        revision = self.publish(4).revision
        given = {"waves": "30,100", "terms": TERMS, **more}
        return rollouts.start(self.hub, revision, who="ann", **given)

    def _enrol(self, connection):
        connection.execute(
            insert(devices),
            [
                {
                    "id": name, "name": name[-4:], "group_name": "lab" if at < 20 else "shop",
                    "public_key": name * 2, "status": "active", "enrolled_at": START,
                    "last_seen_at": START, "incarnation": 1, "nonce": "n", "runtime": "1",
                    "pack": "kiosk", "revision": 0, "revision_since": START, "serial": 0,
                    "refused": "{}", "models": "{}", "waiting": 0,
                }
                for at, name in enumerate(self.ids)
            ],
        )  # fmt: skip

    def report(self, ids, revision, *, hours_ago=0, tasks=300, errors=0):
        """Let devices say what they did under a revision, in one hour."""
        cloud = tasks // 10
        latency = json.dumps([0] * 10 + [tasks] + [0] * (LATENCY_BUCKETS - 11))
        hour = int((self.now - hours_ago * HOUR) // HOUR)
        rows = [
            {
                "device_id": name, "revision": revision, "hour": hour, "tasks": tasks,
                "errors": errors, "cached": 0, "local": tasks - cloud, "cloud": cloud,
                "deferred": 0, "abstained": 0, "corrections": 0, "cost_microusd": 0,
                "latency": latency,
            }
            for name in ids
        ]  # fmt: skip
        self.hub.store.write(lambda connection: connection.execute(insert(health), rows))

    def assigned(self):
        """Return the revision that each device should hold."""
        with self.hub.store.reading() as connection:
            view = read_view(connection)
            rows = connection.execute(select(devices.c.id, devices.c.group_name)).all()
            return {
                name: rollouts.revision_of(connection, view.serial(name, group))
                for name, group in rows
            }

    def take(self, **more):
        """Let every device take what it is assigned, and be seen."""
        due = self.assigned()

        def work(connection):
            for name, revision in due.items():
                own = devices.c.id == name
                held = connection.execute(select(devices.c.revision).where(own)).scalar_one()
                assert revision >= held
                values = {"revision_since": self.now} if revision > held else {}
                change = update(devices).where(own)
                connection.execute(
                    change.values(revision=revision, last_seen_at=self.now, **values, **more)
                )

        self.hub.store.write(work)

    def pass_time(self, seconds):
        self.now += seconds
        self.hub.store.write(
            lambda connection: connection.execute(update(devices).values(last_seen_at=self.now))
        )

    def whats(self):
        return [entry.what for entry in reversed(audit.page(self.hub.store))]


@pytest.fixture
def bed(tmp_path):
    whole = Bed(tmp_path / "hub")
    yield whole
    whole.hub.close()


def touched(bed, revision):
    return [name for name, held in bed.assigned().items() if held == revision]


def test_a_good_rollout_goes_out_wave_by_wave(bed):
    begun = bed.start()
    first = touched(bed, begun.revision)
    assert 16 <= len(first) <= 20
    assert rollouts.step(bed.hub) == []
    bed.take()
    bed.report(first, begun.revision)
    bed.pass_time(1300.0)
    (second,) = rollouts.step(bed.hub)
    assert (second.state, second.wave) == ("running", 1)
    assert "Wave 1 is well" in second.reason
    everyone = touched(bed, begun.revision)
    assert set(first) < set(everyone) == set(bed.ids)
    bed.take()
    bed.report(set(bed.ids) - set(first), begun.revision)
    bed.pass_time(1300.0)
    (done,) = rollouts.step(bed.hub)
    assert (done.state, done.restores) == ("done", None)
    assert set(bed.assigned().values()) == {begun.revision}
    assert bed.whats()[-3:] == ["rollout.start", "rollout.advance", "rollout.advance"]
    assert audit.verify(bed.hub.store) is None
    assert rollouts.step(bed.hub) == []


@pytest.mark.parametrize("first", [True, False])
def test_a_bad_wave_comes_back_as_a_new_revision(tmp_path, first):
    bed = Bed(tmp_path / "hub", first=first)
    begun = bed.start()
    wave = touched(bed, begun.revision)
    bed.take()
    bed.report(wave, begun.revision, errors=60)
    bed.pass_time(60.0)
    (halted,) = rollouts.step(bed.hub)
    assert halted.state == "halted"
    assert "Errors rose to 20.0%" in halted.reason
    assert halted.restores > begun.revision
    assert set(bed.assigned().values()) == {halted.restores}
    restored = get_policy(bed.hub, halted.restores)
    if first:
        assert restored.source == get_policy(bed.hub, bed.first).source
        assert restored.restores == bed.first
    bed.take()
    bed.pass_time(86_400.0)
    assert rollouts.step(bed.hub) == []
    assert touched(bed, begun.revision) == []
    assert bed.whats()[-2:] == ["rollout.start", "rollout.halt"]
    bed.hub.close()


def test_refusals_halt(bed):
    begun = bed.start()
    refused = json.dumps({"revision": begun.revision, "reason": "no such model", "at": bed.now})
    names = touched(bed, begun.revision)[:5]
    bed.hub.store.write(
        lambda connection: connection.execute(
            update(devices).where(devices.c.id.in_(names)).values(refused=refused)
        )
    )
    bed.pass_time(5.0)
    (halted,) = rollouts.step(bed.hub)
    assert halted.state == "halted"
    assert "5 of 5 devices refused" in halted.reason


def test_a_wave_that_falls_silent_halts(bed):
    begun = bed.start()
    wave = touched(bed, begun.revision)
    bed.take()
    at = bed.now
    for _ in range(12):
        bed.now += 1200.0
        bed.hub.store.write(
            lambda connection: connection.execute(
                update(devices).where(devices.c.id.not_in(wave)).values(last_seen_at=bed.now)
            )
        )
        if rollouts.step(bed.hub):
            break
    found = rollouts.get(bed.hub)
    assert found.state == "halted"
    assert f"{len(wave)} of {len(wave)} devices fell silent" in found.reason
    assert bed.now - at < 4 * HOUR


def test_pause_stops_judgements_and_resume_goes_on(bed):
    begun = bed.start()
    wave = touched(bed, begun.revision)
    bed.take()
    bed.report(wave, begun.revision, errors=60)
    paused = rollouts.pause(bed.hub, begun.id, who="bob", reason="Looking at it.")
    assert (paused.state, paused.reason) == ("paused", "Looking at it.")
    bed.pass_time(10 * 86_400.0)
    assert rollouts.step(bed.hub) == []
    assert rollouts.get(bed.hub) == paused
    rollouts.resume(bed.hub, begun.id, who="bob")
    bed.pass_time(30.0)
    (halted,) = rollouts.step(bed.hub)
    assert "Errors rose" in halted.reason
    for verb in (rollouts.pause, rollouts.resume, rollouts.abort):
        with pytest.raises(ConfigError, match="is halted"):
            verb(bed.hub, begun.id, who="bob")


def test_an_abort_brings_back_what_was_there(bed):
    begun = bed.start(names=["shop"])
    with pytest.raises(ConfigError, match="is running in group shop"):
        bed.start(names=["lab", "shop"])
    other = bed.start(names=["lab"])
    assert other.id > begun.id
    bed.take()
    aborted = rollouts.abort(bed.hub, begun.id, who="bob")
    found = bed.assigned()
    assert {found[name] for name in bed.ids[20:]} == {aborted.restores}
    assert {found[name] for name in bed.ids[:20]} == {bed.first, other.revision}
    bed.take()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"names": ["nowhere"]}, "no group 'nowhere'"),
        ({"waves": "25,5,100"}, "do not rise"),
        ({"waves": "desk,100"}, "not of this rollout"),
        ({"terms": {"soak": 1}}, "no term"),
    ],
)
def test_what_cannot_be_rolled_out_is_refused(bed, more, reason):
    with pytest.raises(ConfigError, match=reason):
        bed.start(**more)
    assert rollouts.list_rollouts(bed.hub) == []


def test_an_older_revision_is_refused(bed):
    with pytest.raises(ConfigError, match="refuse to go to 1"):
        rollouts.start(bed.hub, bed.first, who="ann")
    with pytest.raises(ConfigError, match="There is not a policy revision 9"):
        rollouts.start(bed.hub, 9, who="ann")


def test_a_kill_switch_meanwhile_keeps_the_waves(bed):
    begun = bed.start()
    before = touched(bed, begun.revision)
    stops.stop(bed.hub, "tool", "lookup", who="bob")
    assert touched(bed, begun.revision) == before
    bed.take()
    bed.report(before, begun.revision)
    bed.pass_time(1300.0)
    (second,) = rollouts.step(bed.hub)
    assert second.wave == 1
    assert touched(bed, begun.revision) == sorted(bed.ids)


def test_devices_that_move_or_join_meanwhile_follow(bed):
    begun = bed.start(names=["lab"], waves="50,100")
    moved = fleet.find_device(bed.hub, bed.ids[-1])
    fleet.move(bed.hub, moved, group="lab", who="ann")
    gone = fleet.find_device(bed.hub, touched(bed, begun.revision)[0])
    bed.take()
    gone = fleet.find_device(bed.hub, gone.id)
    fleet.move(bed.hub, gone, group="shop", who="ann")
    bed.take()
    reported = set()
    for _ in begun.waves:
        fresh = set(touched(bed, begun.revision)) - reported
        bed.report(fresh, begun.revision, tasks=900)
        reported |= fresh
        bed.pass_time(1300.0)
        rollouts.step(bed.hub)
        bed.take()
    assert rollouts.get(bed.hub).state == "done"
    found = bed.assigned()
    assert found[moved.id] == begun.revision
    assert found[gone.id] > begun.revision


def moved(bed, name, group):
    return fleet.move(bed.hub, fleet.find_device(bed.hub, name), group=group, who="ann")


def test_no_rollout_of_less_than_a_moved_device_has(bed):
    bed.publish(5, at_once=["shop"])
    waiting = bed.publish(6).revision
    bed.take()
    assert moved(bed, bed.ids[-1], "lab") > waiting
    with pytest.raises(ConfigError, match="lab has revision"):
        rollouts.start(bed.hub, waiting, who="ann", names=["lab"])


def test_versions_do_not_fall_on_a_device_that_moves_into_a_rollout(bed):
    bed.publish(5, at_once=["shop"])
    begun = bed.start(names=["lab"], waves="100")
    bed.take()
    held = moved(bed, bed.ids[-1], "lab")
    assert held > begun.revision
    bed.take()
    bed.report(touched(bed, begun.revision), begun.revision, tasks=900)
    bed.pass_time(1300.0)
    rollouts.step(bed.hub)
    assert rollouts.get(bed.hub).state == "done"
    bed.take()  # which asserts that none falls
    assert bed.assigned()[bed.ids[-1]] > held
    last = get_policy(bed.hub, bed.assigned()[bed.ids[-1]])
    assert last.restores == begun.revision


def test_two_processes_make_a_step_once(bed):
    begun = bed.start()
    bed.take()
    bed.report(touched(bed, begun.revision), begun.revision)
    bed.pass_time(1300.0)
    other = Hub.open(bed.hub.home, clock=lambda: bed.now)
    before = rollouts.get(other)
    assert len(rollouts.step(bed.hub)) == 1
    assert rollouts.step(other) == []
    with pytest.raises(Stale):
        other.store.write(lambda connection: require_same(connection, before))
    assert rollouts.get(other).wave == 1
    other.close()


def test_a_step_that_dies_leaves_what_was_there(bed, monkeypatch):
    begun = bed.start()
    bed.take()
    bed.report(touched(bed, begun.revision), begun.revision, errors=60)
    bed.pass_time(60.0)
    before, entries = rollouts.get(bed.hub), bed.whats()

    def dying(*_args, **_more):
        raise sqlite3.OperationalError("power")

    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "write", dying)
        with pytest.raises(sqlite3.OperationalError):
            rollouts.step(bed.hub)
    assert rollouts.get(bed.hub) == before
    assert bed.whats() == entries
    assert get_policy(bed.hub).revision == begun.revision
    (halted,) = rollouts.step(bed.hub)
    assert halted.state == "halted"


VERBS = st.lists(
    st.tuples(
        st.sampled_from(["step", "pause", "resume", "abort", "take", "good", "bad"]),
        st.floats(1, 4000),
    ),
    max_size=12,
)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(verbs=VERBS)
def test_versions_only_rise_and_no_wave_starts_after_an_end(tmp_path_factory, verbs):
    bed = Bed(tmp_path_factory.mktemp("bed") / "hub")
    begun = bed.start()
    held, ended, reported = bed.assigned(), False, set()
    for verb, seconds in verbs:
        bed.pass_time(seconds)
        reach = set(touched(bed, begun.revision))
        paused = rollouts.get(bed.hub).state == "paused"
        if verb == "step":
            rollouts.step(bed.hub)
        elif verb == "take":
            bed.take()
        elif verb in {"good", "bad"}:
            fresh = reach - reported
            if fresh:
                bed.report(fresh, begun.revision, errors=0 if verb == "good" else 90)
            reported |= fresh
        else:
            try:
                getattr(rollouts, verb)(bed.hub, begun.id, who="bob")
            except ConfigError:
                continue
        now = bed.assigned()
        assert all(now[name] >= held[name] for name in held)
        after = set(touched(bed, begun.revision))
        assert not ended or not after - reach
        assert not paused or verb == "abort" or after == reach
        held = now
        ended = ended or rollouts.get(bed.hub).state in {"halted", "aborted"}
        assert not ended or not after
    bed.hub.close()
