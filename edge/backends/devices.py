"""What this machine offers: engines, devices, instruction sets. Plain data for ``edge doctor``.

An engine that cannot be loaded is reported with the reason, never raised. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edge.backends.llama.library import accelerators, llama_library
from edge.backends.onnx.session import available_devices, onnx_library
from edge.backends.threads import thread_candidates
from edge.errors import LoadError

_CPUINFO = Path("/proc/cpuinfo")
_INTERESTING = re.compile(
    r"^(sse3|ssse3|sse4_[12]|f16c|fma|avx\w*|amx\w*|neon|asimd\w*|sve\w*|sme2?|i8mm|bf16)$"
)
_ON = re.compile(r"\b([A-Z][A-Z0-9_]*) = 1\b")


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine.

    Attributes:
        name: ``llamacpp`` or ``onnx``.
        package: the package that brings it.
        version: of that package, or ``None`` where it is not installed.
        devices: where it can run a model; empty where it cannot be loaded.
        features: what it was built with, such as instruction sets.
        problem: why it cannot be used, or ``None``.

    """

    name: str
    package: str
    version: str | None
    devices: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Devices:
    """What this machine offers.

    Attributes:
        cores: processors this process may use.
        instruction_sets: of the processor, as far as the system says.

    """

    system: str
    machine: str
    cores: int
    instruction_sets: tuple[str, ...]
    engines: tuple[Engine, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


def survey() -> Devices:
    """Look at the machine and load each engine once."""
    return Devices(
        system=platform.system(),
        machine=platform.machine(),
        cores=thread_candidates()[-1],
        instruction_sets=instruction_sets(_CPUINFO),
        engines=(_llamacpp(), _onnx()),
    )


def instruction_sets(cpuinfo: Path) -> tuple[str, ...]:
    """Return the vector instruction sets listed in a ``/proc/cpuinfo``; empty without one."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = found[1].split() if found else []
    return tuple(sorted({flag for flag in flags if _INTERESTING.match(flag)}))


def _llamacpp() -> Engine:
    package = "llama-cpp-python"
    try:
        lib = llama_library()
    except LoadError as error:
        return Engine("llamacpp", package, _version(package), problem=error.message)
    about = lib.llama_print_system_info().decode("utf-8", errors="replace")
    devices = ("cpu", "gpu") if lib.llama_supports_gpu_offload() else ("cpu",)
    return Engine(
        "llamacpp",
        package,
        _version(package),
        devices=devices,
        features=tuple(sorted({*_ON.findall(about), *(each.name for each in accelerators(lib))})),
    )


def _onnx() -> Engine:
    package = "onnxruntime"
    try:
        library = onnx_library()
    except LoadError as error:
        return Engine("onnx", package, _version(package), problem=error.message)
    return Engine(
        "onnx",
        package,
        str(library.__version__),
        devices=tuple(available_devices()),
        features=tuple(library.get_available_providers()),
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
