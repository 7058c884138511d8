"""A device and its hub: joining, reporting, following, refusing; with replies lost and repeated."""

import os
import stat
import threading

import httpx
import pytest

from edge.errors import (
    ConfigError,
    HubDistrusted,
    HubUnreachable,
    PolicyError,
    PolicyExpired,
    SignatureInvalid,
    StoreError,
    VersionRollback,
)
from edge_sync import keys
from edge_sync.agent.activation import Change
from edge_sync.agent.codes import read_code
from edge_sync.agent.exchange import HubRefused

KEEP = "routing: {keep_above: %s}"


def lost(answer_of):
    """The hub does its work, and the answer is lost."""

    def fault(request):
        answer_of(request)
        raise httpx.ReadError("the connection was cut")

    return fault


def test_it_joins_with_a_key_of_its_owner_alone(opened, hub):
    device = opened()
    memory = device.enrol(hub.code, "till 3")
    key = device.state / "device.key"
    assert memory.device_id == keys.load_key(key).device_id
    assert memory.group == "lab"
    assert hub.devices[memory.device_id][2] == "till 3"
    if os.name == "posix":
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_code_is_used_once(opened, hub):
    device = opened()
    device.enrol(hub.code)
    device.enrol(hub.code)
    assert [request.url.path for request in hub.requests] == ["/v1/enrol"]


def test_a_code_of_another_fleet_is_refused(device):
    with pytest.raises(ConfigError, match="another fleet"):
        device.enrol("0123456789-" + "0" * 32)


@pytest.mark.parametrize("code", ["", "abc", "0123456789", "0123456789-xyz", "a b-" + "0" * 32])
def test_what_is_no_code_is_told(code):
    with pytest.raises(ConfigError, match="code is not one"):
        read_code(code)


def test_a_hub_with_another_root_is_distrusted_and_nothing_is_kept(opened, hub, tmp_path, clocks):
    device = opened()
    real = hub.code
    hub.roots = [type(hub)(tmp_path / "other", clocks).roots[0]]
    hub.faults["/v1/enrol"] = lambda request: hub._enrol(
        type("Asked", (), {**_asked(request), "code": hub.code, "signature": _signed(device, hub)})
    )
    with pytest.raises(HubDistrusted, match="root"):
        device.enrol(real)
    assert not device.memory().enrolled
    assert device.policies.trust() == {}


def _asked(request):
    import json

    return json.loads(request.content)


def _signed(device, hub):
    return keys.load_key(device.state / "device.key").sign_enrolment(hub.code)


def test_a_device_that_has_not_joined_says_so(opened):
    with pytest.raises(ConfigError, match="not joined"):
        opened().sync()


def test_a_policy_is_activated_with_its_trust_and_etag_and_reported(device, hub):
    revision = hub.publish(KEEP % 0.9)
    done = device.sync()
    assert done.change is Change.ACTIVATED
    assert done.more
    assert device.policies.active().revision == revision
    assert device.policies.etag() == hub.etag
    assert set(device.policies.trust()) >= {"root", "timestamp", "snapshot", "targets"}
    assert not device.sync().more
    assert hub.seen[-1].have.revision == revision
    assert hub.seen[-1].have.etag == hub.etag


def test_the_long_poll_brings_it_too(device, hub):
    assert device.ask(55).change is Change.NONE
    hub.publish(KEEP % 0.9)
    assert device.ask(55).change is Change.ACTIVATED
    assert hub.requests[-1].url.params["wait"] == "55"
    assert device.ask(55).change is Change.NONE


def test_three_versions_away_is_two_round_trips(device, hub):
    for threshold in (0.7, 0.8, 0.9):
        hub.publish(KEEP % threshold)
    hub.rotate("timestamp")
    hub.repository = hub.repository.refresh_timestamp(now=hub.time.hub_s)
    before = len(hub.requests)
    while device.sync().more:
        pass
    assert len(hub.requests) - before == 2
    assert hub.seen[-1].have.revision == 3


def test_a_lost_answer_is_asked_for_again_with_the_same_bytes(device, hub):
    hub.faults["/v1/sync"] = lost(hub._sync)
    with pytest.raises(HubUnreachable):
        device.sync()
    sent = hub.requests[-1].content
    seen = len(hub.seen)
    hub.faults.clear()
    device.sync()
    assert hub.requests[-1].content == sent
    assert len(hub.seen) == seen
    assert not device.memory().quarantined
    assert device.memory().pending is None


def test_a_restart_between_keeps_the_report(device, hub, opened):
    hub.faults["/v1/sync"] = lost(hub._sync)
    with pytest.raises(HubUnreachable):
        device.sync()
    sent = hub.requests[-1].content
    hub.faults.clear()
    opened().sync()
    assert hub.requests[-1].content == sent


def test_a_device_set_back_is_noticed_and_works_on(device, hub, opened, tmp_path):
    saved = (device.state / "policy.db").read_bytes()
    hub.publish(KEEP % 0.9)
    device.sync()
    device.close()
    (device.state / "policy.db").write_bytes(saved)
    again = opened()
    assert again.sync().change is Change.ACTIVATED
    assert again.memory().quarantined


def test_a_report_answered_long_ago_gives_way_to_a_new_one(device, hub):
    hub.faults["/v1/sync"] = lost(hub._sync)
    with pytest.raises(HubUnreachable):
        device.sync()
    hub.faults.clear()
    hub.devices[device.memory().device_id][1] = "another"
    with pytest.raises(HubRefused) as raised:
        device.sync()
    assert raised.value.code == "replayed"
    device.sync()
    assert device.memory().pending is None


def test_a_replayed_answer_is_distrusted_and_changes_nothing(device, hub):
    hub.publish(KEEP % 0.8)
    device.sync()
    recorded = hub._sync(hub.requests[-1])
    before = device.policies.agent()
    hub.faults["/v1/sync"] = lambda request: recorded
    with pytest.raises(HubDistrusted, match="another request"):
        device.sync()
    after = device.policies.agent()
    assert {**after, "pending": None} == {**before, "pending": None}


def test_a_bad_policy_is_refused_reported_once_and_not_tried_again(device, hub):
    hub.publish(KEEP % 0.8)
    device.sync()
    device.sync()
    bad = hub.publish(KEEP % 0.9)
    device.runs.bad[bad] = PolicyError("The self-check failed.")
    done = device.sync()
    assert done.change is Change.REFUSED
    assert done.more
    assert device.policies.active().revision == 1
    device.sync()
    told = [refusal for request in hub.seen for refusal in request.refused]
    assert [(each.revision, "self-check" in each.reason) for each in told] == [(bad, True)]
    del device.runs.bad[bad]
    hub.repository = hub.repository.refresh_timestamp(now=hub.time.hub_s)
    assert device.ask(1).change is Change.TRUST
    assert device.policies.active().revision == 1
    assert device.policies.etag() == hub.etag
    assert len(device.policies.refusals()) == 1


def test_a_new_assignment_of_a_refused_policy_is_tried(device, hub):
    bad = hub.publish(KEEP % 0.9)
    device.runs.bad[bad] = PolicyError("The self-check failed.")
    assert device.sync().change is Change.REFUSED
    del device.runs.bad[bad]
    hub.assign()
    assert device.sync().change is Change.ACTIVATED


def test_another_runtime_tries_again_what_was_refused(device, hub, opened, monkeypatch):
    bad = hub.publish(KEEP % 0.9)
    device.runs.bad[bad] = PolicyError("The self-check failed.")
    device.sync()
    device.sync()
    monkeypatch.setattr("edge.__version__", "99.0")
    assert opened().sync().change is Change.ACTIVATED


def test_a_kill_switch_beside_a_refused_policy_holds(device, hub):
    bad = hub.publish(KEEP % 0.9, stopped={"tasks": ("spam",)})
    device.runs.bad[bad] = PolicyError("The self-check failed.")
    device.sync()
    assert device.policies.switches().stopped["tasks"] == ("spam",)


def test_a_switch_alone_changes_no_document(device, hub):
    hub.publish(KEEP % 0.9)
    device.sync()
    hub.assign(stopped={"models": ("banking77-head",)})
    assert device.ask(5).change is Change.TRUST
    assert device.policies.switches().stopped["models"] == ("banking77-head",)
    assert device.policies.active().revision == 1


def test_what_the_disk_refuses_is_tried_again(device, hub):
    revision = hub.publish(KEEP % 0.9)
    device.runs.bad[revision] = StoreError("The disk is full.")
    with pytest.raises(StoreError):
        device.sync()
    assert device.policies.etag() != hub.etag
    del device.runs.bad[revision]
    assert device.sync().change is Change.ACTIVATED
    assert not any(request.refused for request in hub.seen)


def test_a_kill_switch_holds_also_while_nothing_else_can_be_done(device, hub):
    revision = hub.publish(KEEP % 0.9, stopped={"tools": ("pay",)})
    device.runs.bad[revision] = StoreError("The disk is full.")
    with pytest.raises(StoreError):
        device.sync()
    assert device.policies.switches().stopped["tools"] == ("pay",)
    assert device.policies.active() is None


def test_an_answer_that_was_changed_on_its_way_changes_nothing(device, hub):
    def changed(request):
        answer = hub._sync(request)
        content = answer.content.replace(b'"watermark":0', b'"watermark":9')
        assert content != answer.content
        return httpx.Response(200, content=content, headers=answer.headers)

    hub.faults["/v1/sync"] = changed
    before = device.memory()
    with pytest.raises(HubDistrusted, match="answer is wrong"):
        device.sync()
    assert device.memory().but(pending=None) == before
    hub.faults.clear()
    device.sync()
    assert device.memory().watermark == 0


def test_an_answer_without_a_signature_counts_nothing_not_even_the_first(opened, hub):
    device = opened()
    device.enrol(hub.code)
    before = device.memory()
    hub.signs = False
    with pytest.raises(HubDistrusted, match="not signed"):
        device.sync()
    assert device.memory().but(pending=None) == before
    hub.signs = True
    device.sync()


def test_a_signature_for_another_answer_is_none(device, hub):
    device.sync()
    old = hub._sync(hub.requests[-1]).headers["Edge-Reply"]

    def mixed(request):
        return httpx.Response(200, content=hub._sync(request).content, headers={"Edge-Reply": old})

    hub.faults["/v1/sync"] = mixed
    with pytest.raises(HubDistrusted, match="answer is wrong"):
        device.sync()


def test_a_new_key_of_the_hub_signs_the_answer_that_brings_it(device, hub):
    device.sync()
    hub.rotate("timestamp")
    hub.publish(KEEP % 0.8)
    assert device.sync().change is Change.ACTIVATED


def test_a_moved_device_follows_its_new_group_and_no_longer_the_old_one(device, hub):
    hub.publish(KEEP % 0.8)
    device.sync()
    hub.publish(KEEP % 0.85, assign=False)
    hub.assign(device=device.memory().device_id, group="shops")
    assert device.sync().change is Change.ACTIVATED
    hub.publish(KEEP % 0.9, assign=False)
    hub.assign(group=hub.group)
    with pytest.raises(HubDistrusted):
        device.sync()
    assert device.policies.active().revision == 2
    hub.assign(group="shops")
    assert device.sync().change is Change.ACTIVATED
    assert device.policies.active().revision == 3


@pytest.mark.parametrize(
    ("whom", "error"),
    [({"group": "others"}, HubDistrusted), ({"device": "0" * 32}, HubDistrusted)],
)
def test_an_assignment_for_others_is_not_followed(device, hub, whom, error):
    hub.publish(KEEP % 0.9, assign=False)
    hub.assign(**whom)
    with pytest.raises(error):
        device.sync()
    assert device.policies.active() is None


def test_older_metadata_is_refused(device, hub):
    hub.publish(KEEP % 0.8)
    old = hub.repository, hub.serial, hub.assigned, hub.revision
    hub.publish(KEEP % 0.9)
    device.sync()
    etag = device.policies.etag()
    hub.repository, hub.serial, hub.assigned, hub.revision = old
    with pytest.raises(VersionRollback):
        device.sync()
    assert device.policies.active().revision == 2
    assert device.policies.etag() == etag


def test_a_changed_document_is_refused(device, hub):
    hub.publish(KEEP % 0.8)
    hub.documents[1] = hub.documents[1].replace(b"0.8", b"0.1")
    with pytest.raises(SignatureInvalid):
        device.sync()
    assert device.policies.active() is None


def test_a_clock_ten_years_ahead_still_follows(opened, hub, clocks):
    hub.publish(KEEP % 0.9)
    clocks.own_s += 10 * 365 * 86_400
    device = opened()
    device.enrol(hub.code)
    assert device.sync().change is Change.ACTIVATED
    assert not device.policies.switches().tightened


def test_a_clock_ten_years_behind_still_follows(opened, hub, clocks):
    hub.publish(KEEP % 0.9)
    clocks.own_s -= 10 * 365 * 86_400
    device = opened()
    device.enrol(hub.code)
    assert device.sync().change is Change.ACTIVATED


def test_a_clock_far_ahead_offline_tightens_until_the_next_sync(device, hub, opened, clocks):
    hub.publish(KEEP % 0.9)
    device.sync()
    clocks.own_s += 10 * 365 * 86_400
    again = opened()  # a new process, so the time since the last sync is not known
    again.tighten()
    assert again.policies.switches().tightened
    assert again.policies.active().revision == 1
    again.sync()
    assert not again.policies.switches().tightened


def test_a_clock_set_ahead_changes_nothing_while_the_process_runs(device, hub, clocks):
    hub.publish(KEEP % 0.9)
    device.sync()
    clocks.own_s += 10 * 365 * 86_400
    device.tighten()
    assert not device.policies.switches().tightened


def test_a_policy_that_expires_unseen_tightens_and_a_sync_loosens(device, hub, clocks):
    hub.publish(KEEP % 0.9)
    device.sync()
    clocks.pass_(31 * 86_400)
    device.tighten()
    assert device.policies.switches().tightened
    assert device.policies.active().revision == 1
    hub.repository = hub.repository.refresh(now=hub.time.hub_s)
    hub.assign()
    device.sync()
    assert not device.policies.switches().tightened


def test_a_frozen_hub_is_noticed(device, hub, clocks):
    hub.publish(KEEP % 0.8)
    clocks.pass_(3 * 86_400)  # the timestamp has not been signed anew
    with pytest.raises(PolicyExpired):
        device.sync()
    assert device.policies.active() is None


def test_new_keys_of_every_role_are_followed(device, hub):
    for role in ("timestamp", "snapshot", "targets", "root"):
        hub.rotate(role)
        hub.publish(KEEP % 0.9)
        assert device.sync().change is Change.ACTIVATED
    assert device.memory().fleet.startswith(read_code(hub.code))


def test_replicas_are_tried_in_turn(opened, hub):
    def down(request):
        if request.url.host == "one.test":
            raise httpx.ConnectError("refused")

    hub.faults["*"] = down
    device = opened(urls="https://one.test, https://two.test")
    device.enrol(hub.code)
    device.sync()
    hosts = [request.url.host for request in hub.requests]
    assert hosts == ["one.test", "two.test", "two.test"]


def test_a_hub_that_forgot_the_device_is_joined_again_in_the_same_fleet(device, hub):
    hub.publish(KEEP % 0.9)
    device.sync()
    hub.devices.clear()
    with pytest.raises(HubRefused) as raised:
        device.sync()
    assert raised.value.code == "unknown_device"
    device.rejoin(hub.code)
    device.sync()
    assert device.policies.active().revision == 1


def test_a_damaged_memory_is_told(device):
    device.policies.change_agent(lambda _: {"counted": 7})
    with pytest.raises(StoreError, match="damaged at counted"):
        device.sync()


def meanwhile(*steps):
    """Do steps in a thread of their own while this one waits."""
    thread = threading.Thread(target=lambda: [step() for step in steps])
    thread.start()
    thread.join()


def test_two_processes_over_one_state_folder_are_one_device(opened, hub):
    first, second = opened(), opened()
    first.enrol(hub.code)
    second.enrol(hub.code)
    hub.publish(KEEP % 0.9)
    answer = hub._sync

    def overtaken(request):
        """The other process syncs while this one waits for its answer."""
        hub.faults.clear()
        found = answer(request)
        meanwhile(second.sync, second.sync)
        return found

    hub.faults["/v1/sync"] = overtaken
    first.sync()
    first.sync()
    second.sync()
    assert len(hub.devices) == 1
    assert not hub.forked
    assert first.policies.active().revision == 1


def test_a_report_that_another_process_began_is_sent_instead(opened, hub):
    first, second = opened(), opened()
    first.enrol(hub.code)
    hub.faults["/v1/sync"] = lost(hub._sync)
    with pytest.raises(HubUnreachable):
        first.sync()
    sent = hub.requests[-1].content
    hub.faults.clear()
    second.sync()
    assert hub.requests[-1].content == sent
    first.sync()
    assert not hub.forked


def test_a_device_that_another_process_joined_is_joined(opened, hub):
    first, second = opened(), opened()

    def overtaken(request):
        hub.faults.clear()
        meanwhile(lambda: first.enrol(hub.code))
        return httpx.Response(403, json={"code": "bad_code", "message": "Used up."})

    hub.faults["/v1/enrol"] = overtaken
    assert second.enrol(hub.code).device_id == first.memory().device_id
