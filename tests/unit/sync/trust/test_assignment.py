from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from tuf.api.metadata import TargetFile, Targets

from edge.errors import HubDistrusted
from edge_sync.trust.assignment import (
    MAX_STOPPED,
    Stopped,
    custom_fields,
    is_target,
    model_path,
    policy_path,
    read_assignment,
)

DIGEST, OTHER = "0" * 64, "1" * 64


def signed(*paths: str, **custom: Any) -> Targets:
    fields = custom_fields({"group": "kiosks"}, Stopped())
    fields["x-edge"].update(custom)
    targets = {path: TargetFile.from_data(path, b"data", ["sha256"]) for path in paths}
    return Targets(
        version=7,
        expires=datetime(2030, 1, 1, tzinfo=UTC),
        targets=targets,
        unrecognized_fields=fields,
    )


def test_what_was_written_is_read() -> None:
    found = read_assignment(signed(policy_path(12), model_path("magika", DIGEST)))
    assert (found.serial, found.revision, found.group, found.device) == (7, 12, "kiosks", None)
    assert found.models["magika"].digest == DIGEST
    assert found.policy_length == 4
    assert found.expires_s == datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    assert read_assignment(signed()).revision == 0


@pytest.mark.parametrize(
    ("audience", "device", "group", "good"),
    [
        ({"group": "kiosks"}, "d", "kiosks", True),
        ({"group": "kiosks"}, "kiosks", "other", False),
        ({"device": "d"}, "d", "other", True),
        ({"device": "d"}, "e", "d", False),
        ({"device": "d", "group": "new"}, "d", "old", True),
        ({"device": "d", "group": "new"}, "e", "new", False),
    ],
)
def test_whose_it_is(audience: dict[str, str], device: str, group: str, good: bool) -> None:
    assert read_assignment(signed(**{"for": audience})).is_for(device, group) is good


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: signed(policy_path(1), policy_path(2)),
        lambda: signed(model_path("a", DIGEST), model_path("a", OTHER)),
        lambda: signed("policies/0.json"),
        lambda: signed("policies/01.json"),
        lambda: signed(f"policies/{2**53}.json"),
        lambda: signed("policies/1.json\n"),
        lambda: signed("policies/\u0661.json"),
        lambda: signed("models/../policies/1.json"),
        lambda: signed("models/a/short.json"),
        lambda: signed(model_path("a", "G" * 64)),
        lambda: signed(**{"for": {}}),
        lambda: signed(**{"for": []}),
        lambda: signed(**{"for": None}),
        lambda: signed(**{"for": {"group": ""}}),
        lambda: signed(**{"for": {"group": 1}}),
        lambda: signed(**{"for": {"group": "a\nb"}}),
        lambda: signed(**{"for": {"group": "a", "device": "b", "fleet": "c"}}),
        lambda: signed(stopped=None),
        lambda: signed(stopped=[]),
        lambda: signed(stopped={"pools": []}),
        lambda: signed(stopped={"tools": "all"}),
        lambda: signed(stopped={"tools": [1]}),
        lambda: signed(stopped={"tools": [""]}),
        lambda: signed(stopped={"tools": ["a"] * (MAX_STOPPED + 1)}),
    ],
)
def test_what_is_no_assignment_is_refused(wrong: Callable[[], Targets]) -> None:
    with pytest.raises(HubDistrusted, match="Assignment 7 is malformed"):
        read_assignment(wrong())


def test_stopped_is_sorted_and_single() -> None:
    found = Stopped.from_dict({"tools": ["b", "a", "b"]})
    assert found.as_dict() == {"models": [], "tools": ["a", "b"], "tasks": []}
    assert Stopped.from_dict(found.as_dict()) == found


@pytest.mark.parametrize(
    ("path", "good"),
    [
        (policy_path(1), True),
        (policy_path(0), False),
        (model_path("magika-2.0", DIGEST), True),
        (model_path(".hidden", DIGEST), False),
        ("targets.json", False),
    ],
)
def test_what_can_be_named(path: str, good: bool) -> None:
    assert is_target(path) is good
