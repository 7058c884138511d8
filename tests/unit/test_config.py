"""Folders and switches from arguments and environment."""

from pathlib import Path

import pytest

from edge.config import is_offline, models_folder, state_folder
from edge.errors import ConfigError


def test_the_state_folder_by_argument_then_environment_then_platform(tmp_path):
    assert state_folder(tmp_path, {"EDGE_STATE": "elsewhere"}) == tmp_path
    assert state_folder(None, {"EDGE_STATE": str(tmp_path)}) == tmp_path
    assert state_folder(None, {"XDG_STATE_HOME": str(tmp_path)}).name == "edge"
    assert state_folder("relative", {}) == Path("relative").absolute()


@pytest.mark.parametrize(
    ("argument", "environment", "wanted"),
    [
        (None, "", False),
        (None, "1", True),
        (False, "1", False),
        (True, "", True),
        (True, "maybe", True),
        *((None, word, True) for word in ("true", "True", "YES", "on", " 1 ")),
        *((None, word, False) for word in ("0", "false", "No", "OFF", " ")),
    ],
)
def test_offline(argument, environment, wanted):
    assert is_offline(argument, {"EDGE_OFFLINE": environment}) is wanted


@pytest.mark.parametrize("word", ["2", "maybe", "offline", "y"])
def test_a_switch_that_says_neither_yes_nor_no_is_named(word):
    with pytest.raises(ConfigError, match=f"EDGE_OFFLINE is '{word}'"):
        is_offline(None, {"EDGE_OFFLINE": word})


def test_the_models_are_found():
    assert (models_folder() / "packs" / "kiosk.yaml").is_file()
