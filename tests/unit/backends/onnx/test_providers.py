"""Plugins of execution providers."""

from __future__ import annotations

import pytest

from edge.backends.onnx import providers
from edge.errors import InputError, LoadError


def test_a_library_that_is_no_provider(tmp_path):
    path = tmp_path / "libnothing.so"
    path.write_bytes(b"not a library")
    with pytest.raises(LoadError, match=r"libnothing\.so is not an execution provider for webgpu"):
        providers.register_plugin("webgpu", path)
    with pytest.raises(InputError, match="abacus"):
        providers.register_plugin("abacus", path)
    assert "no device is called so" in providers.why_missing("abacus")
