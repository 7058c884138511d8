"""How an agent begins: over a pack alone, over a runtime, and with what it cannot use."""

import pytest

from edge.errors import ConfigError, SyncError
from edge_sync.agent import command
from edge_sync.agent.activation import Change
from edge_sync.agent.start import Standalone, open_device


def test_a_pack_that_cannot_be_opened_is_not_the_policys_fault(device, hub, tmp_path):
    pack = tmp_path / "pack.yaml"
    device._activation = _with(device._activation, Standalone(str(pack), device.state))
    hub.publish("routing: {keep_above: 0.9}")
    with pytest.raises(SyncError, match="pack cannot be opened"):
        device.sync()
    assert device.policies.refusals() == []
    assert device.memory().turned is None


def _with(activation, runs):
    import dataclasses

    return dataclasses.replace(activation, runs=runs)


def test_a_wrong_address_is_told_and_leaves_nothing_open(tmp_path):
    with pytest.raises(ConfigError, match="URL"):
        open_device(None, "hub.test", state=tmp_path, pack="kiosk", env={})
    assert list(tmp_path.iterdir()) == []


def test_a_summary_says_what_is_in_force_and_what_was_refused(device, hub):
    assert device.summary()["policy"] == 0
    hub.publish("routing: {keep_above: 0.9}")
    device.sync()
    device.runs.bad[2] = ConfigError("It does not fit.")
    hub.publish("routing: {keep_above: 0.8}")
    device.sync()
    told = device.summary()
    assert told["policy"] == 1
    assert told["refused"].startswith("2: It does not fit.")
    del device.runs.bad[2]
    hub.publish("routing: {keep_above: 0.7}")
    device.sync()
    assert device.summary()["refused"] == ""


def test_the_command_prints_what_there_is_to_say(device, capsys):
    command._print(device.summary() | {"change": Change.NONE.value})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["device", device.memory().device_id],
        ["group", "lab"],
        ["policy", "none"],
        ["change", "none"],
    ]


def test_offline_the_command_says_that_it_cannot_run(monkeypatch):
    monkeypatch.setenv("EDGE_OFFLINE", "1")
    with pytest.raises(ConfigError, match="EDGE_OFFLINE"):
        command.agent(hub="https://hub.test")
