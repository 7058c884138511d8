"""What this machine offers: engines, devices, instruction sets. Plain data for ``edge doctor``.

An engine that cannot be loaded is reported with the reason, never raised. Knows nothing of models.
"""

from __future__ import annotations

import ctypes
import dataclasses
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from edge.backends.llama_library import llama_library
from edge.backends.onnx_session import available_devices, onnx_library
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
        features=tuple(sorted({*_ON.findall(about), *_accelerators(lib)})),
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


def _accelerators(lib: ModuleType) -> list[str]:
    """Return the names of ggml's devices, such as ``CUDA0``; empty where they cannot be asked."""
    folder = Path(lib.__file__ or "").parent / "lib"
    names = []
    try:
        ggml = _shared(folder, "ggml")
        base = _shared(folder, "ggml-base")
        ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
        base.ggml_backend_dev_name.restype = ctypes.c_char_p
        base.ggml_backend_dev_name.argtypes = [ctypes.c_void_p]
        ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
        for index in range(ggml.ggml_backend_dev_count()):
            device = ggml.ggml_backend_dev_get(ctypes.c_size_t(index))
            names.append(base.ggml_backend_dev_name(device).decode())
    except (OSError, AttributeError, StopIteration):
        return []
    return names


def _shared(folder: Path, name: str) -> ctypes.CDLL:
    endings = (".so", ".dylib", ".dll")
    names = [f"{prefix}{name}{ending}" for prefix in ("lib", "") for ending in endings]
    return ctypes.CDLL(str(next(folder / file for file in names if (folder / file).is_file())))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
