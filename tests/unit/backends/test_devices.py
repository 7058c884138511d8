"""What the machine offers is plain data, whatever is missing."""

from __future__ import annotations

import json

from edge.backends import devices
from edge.errors import LoadError


def test_instruction_sets(tmp_path):
    intel = tmp_path / "intel"
    intel.write_text("processor\t: 0\nflags\t\t: fpu sse4_1 smep avx2 fma avx512_vnni amx_int8\n")
    arm = tmp_path / "arm"
    arm.write_text("processor : 0\nFeatures : fp asimd asimddp i8mm sve2 sme\n")
    assert devices.instruction_sets(intel) == ("amx_int8", "avx2", "avx512_vnni", "fma", "sse4_1")
    assert devices.instruction_sets(arm) == ("asimd", "asimddp", "i8mm", "sme", "sve2")
    assert devices.instruction_sets(tmp_path / "none") == ()


def test_survey():
    found = devices.survey()
    assert [engine.name for engine in found.engines] == ["llamacpp", "onnx"]
    assert all("cpu" in engine.devices for engine in found.engines)
    assert found.cores >= 1
    json.dumps(found.as_dict())


def test_an_engine_that_cannot_be_loaded_is_reported(monkeypatch):
    def broken():
        raise LoadError("the library is not here.")

    monkeypatch.setattr(devices, "llama_library", broken)
    monkeypatch.setattr(devices, "onnx_library", broken)
    for engine in devices.survey().engines:
        assert engine.devices == ()
        assert engine.problem == "the library is not here."
