"""Which execution providers ONNX Runtime has here, those in plugin packages included.

A plugin is registered once per process; one that cannot be is left out, and its reason kept.
Telemetry is switched off before the library is imported. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import platform
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from edge.errors import InputError, LoadError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Device names to ONNX Runtime's execution providers."""

_PLUGINS = {"qnn": "onnxruntime_qnn"}
_OWN_MEMORY = {"cuda": "cuda", "tensorrt": "cuda", "directml": "dml"}
_CHIPS = frozenset({"aarch64", "arm64"})
_SILENT = 4
_lock = threading.Lock()
_asked: set[str] = set()
_problems: dict[str, str] = {}
_registered: set[str] = set()


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider that is here.

    Attributes:
        device: a key of ``PROVIDERS``.
        plugin: whether it came in a library of its own.
        options: what sessions on it are opened with.

    """

    device: str
    plugin: bool
    options: Mapping[str, str]

    @property
    def name(self) -> str:
        """ONNX Runtime's name of it."""
        return PROVIDERS[self.device]

    @property
    def memory(self) -> str:
        """Where its sessions keep key values between passes, in ONNX Runtime's words."""
        return _OWN_MEMORY.get(self.device, "cpu")


def onnx_library() -> ModuleType:
    """Return onnxruntime, its telemetry off.

    Raises:
        LoadError: it is missing or cannot be loaded.

    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        raise LoadError(
            f"ONNX Runtime cannot be loaded: {error}.",
            hint="Install onnxruntime for this platform.",
        ) from error
    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(_SILENT)
    library: ModuleType = onnxruntime
    return library


def providers_here() -> dict[str, Provider]:
    """Return what is here, by device, in the order of ``PROVIDERS``.

    Raises:
        LoadError: ONNX Runtime cannot be loaded.

    """
    library = onnx_library()
    for device in _PLUGINS:
        _load_plugin(library, device)
    built_in = set(library.get_available_providers())
    plugged = {entry.ep_name for entry in plugin_devices(library)} & _registered
    found = {}
    for device, name in PROVIDERS.items():
        if name in plugged:
            found[device] = Provider(device, plugin=True, options=_options(device))
        elif name in built_in - _registered:
            found[device] = Provider(device, plugin=False, options={})
    return found


def available_devices() -> list[str]:
    """Return the devices of this installation, as keys of ``PROVIDERS``."""
    return list(providers_here())


def why_missing(device: str) -> str:
    """Return why a device is not here, in a few words."""
    if device not in PROVIDERS:
        return f"no device is called so; known are {', '.join(PROVIDERS)}"
    if device in _problems:
        return _problems[device]
    return f"onnxruntime here offers {', '.join(available_devices())}"


def register_plugin(device: str, library_path: Path) -> None:
    """Register the library of a plugin provider; harmless where it was registered before.

    Args:
        device: a key of ``PROVIDERS``.
        library_path: the provider's shared library.

    Raises:
        LoadError: the library cannot be loaded as an execution provider.
        InputError: no device is called so.

    """
    if device not in PROVIDERS:
        raise InputError(f"{device!r} is no device; known are {', '.join(PROVIDERS)}.")
    library, name = onnx_library(), PROVIDERS[device]
    with _lock:
        if name in _registered:
            return
        try:
            library.register_execution_provider_library(name, os.fspath(library_path))
        except Exception as error:
            raise LoadError(
                f"{library_path} is not an execution provider for {device}: {reason(error)}.",
                hint="Install the package that fits this version of onnxruntime.",
            ) from error
        _registered.add(name)


@contextlib.contextmanager
def quiet_start(provider: Provider) -> Iterator[None]:
    """Send what a provider's library prints while a session starts to standard error.

    Qualcomm's simulator, which stands in for the chip on other processors, writes a line to
    standard output, and that belongs to the app.
    """
    if provider.device != "qnn" or platform.machine().lower() in _CHIPS:
        yield
        return
    with _lock:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
            kept = os.dup(1)
            os.dup2(2, 1)
        except (OSError, ValueError):  # an app without a terminal
            kept = -1
        try:
            yield
        finally:
            if kept >= 0:
                os.dup2(kept, 1)
                os.close(kept)


def plugin_devices(library: ModuleType, name: str | None = None) -> Sequence[Any]:
    """Return ONNX Runtime's own records of devices, of one provider where ``name`` is given."""
    if not hasattr(library, "get_ep_devices"):
        return ()
    return [entry for entry in library.get_ep_devices() if name in {None, entry.ep_name}]


def reason(error: BaseException, *, longest: int = 300) -> str:
    """Return a foreign error's text in one line, cut to so many characters."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= longest else f"{text[:longest]}..."


def _load_plugin(library: ModuleType, device: str) -> None:
    """Register an installed plugin package, once."""
    with _lock:
        if device in _asked:
            return
        _asked.add(device)
    package = _PLUGINS[device]
    if importlib.util.find_spec(package) is None:
        _problems[device] = f"the package {package.replace('_', '-')} is not installed"
    elif not hasattr(library, "register_execution_provider_library"):
        _problems[device] = f"onnxruntime {library.__version__} takes no plugin providers"
    else:
        try:
            path = importlib.import_module(package).get_library_path()
            register_plugin(device, Path(path))
        except (ImportError, AttributeError, OSError) as error:
            _problems[device] = f"{package} cannot be loaded: {reason(error)}"
        except LoadError as error:
            _problems[device] = error.message


def _options(device: str) -> Mapping[str, str]:
    if device == "qnn" and importlib.util.find_spec(_PLUGINS[device]) is not None:
        path = importlib.import_module(_PLUGINS[device]).get_qnn_htp_path()
        # Else the CPU converts inputs and outputs, and a node of the model stays there.
        return {"backend_path": str(path), "offload_graph_io_quantization": "0"}
    return {}
