"""Folders and switches from arguments and environment."""

from pathlib import Path

import pytest

from edge.config import is_offline, models_folder, state_folder


def test_the_state_folder_by_argument_then_environment_then_platform(tmp_path):
    assert state_folder(tmp_path, {"EDGE_STATE": "elsewhere"}) == tmp_path
    assert state_folder(None, {"EDGE_STATE": str(tmp_path)}) == tmp_path
    assert state_folder(None, {"XDG_STATE_HOME": str(tmp_path)}).name == "edge"
    assert state_folder("relative", {}) == Path("relative").absolute()


@pytest.mark.parametrize(
    ("argument", "environment", "wanted"),
    [(None, "", False), (None, "1", True), (False, "1", False), (True, "", True)],
)
def test_offline(argument, environment, wanted):
    assert is_offline(argument, {"EDGE_OFFLINE": environment}) is wanted


def test_the_models_are_found():
    assert (models_folder() / "packs" / "kiosk.yaml").is_file()
