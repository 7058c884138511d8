"""Every check is needed: with it taken out, some attack goes through."""

from __future__ import annotations

from types import ModuleType

import pytest
from attacks import ATTACKS, Attack

from edge.errors import EdgeError
from edge_sync.trust import chain, metadata, trusted

GUARDS = [
    (chain, "verify"),
    (chain, "check_file"),
    (chain, "_not_older"),
    (chain, "_no_file_older"),
    (chain, "_unexpired"),
    (chain, "_is_version"),
    (metadata, "check_length"),
    (trusted, "_check_audience"),
    (trusted, "_check_revision"),
    (trusted, "_check_published"),
    (metadata, "check_file"),
]


def _taken(case: Attack) -> bool:
    device, bundle = case.run()
    try:
        device.take(bundle)
    except case.error:
        return False
    except EdgeError:
        return True
    return True


@pytest.mark.parametrize(
    ("module", "name"), GUARDS, ids=lambda part: getattr(part, "__name__", part)
)
def test_a_missing_check_is_noticed(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    monkeypatch.setattr(module, name, lambda part=None, *_, **__: part)
    assert any(_taken(case) for case in ATTACKS)


def test_with_all_checks_none_is_taken() -> None:
    assert not [case.name for case in ATTACKS if _taken(case)]
