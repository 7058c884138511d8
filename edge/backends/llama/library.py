"""llama.cpp as a C library, set up once per process.

Loads the library on first use, keeps its log out of the app's terminal and remembers the last
lines, so that a failed load can say why. Only the low-level bindings are used. Knows nothing of
sequences or tokens.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from edge.errors import LoadError

_KEPT_LINES = 64
_ERROR_LEVEL = 3
_KINDS = ("cpu", "gpu", "igpu")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers")

_lock = threading.Lock()
_loaded: list[tuple[int, ModuleType]] = []
_log: deque[tuple[int, str]] = deque(maxlen=_KEPT_LINES)
_callbacks: list[Any] = []  # the library calls them until the process ends


def llama_library() -> ModuleType:
    """Return the low-level bindings, initialised and silent.

    Raises:
        LoadError: llama-cpp-python is missing or its library cannot be loaded, or this process was
            forked from one that had loaded it: the library's threads did not come along, and a
            forward pass would wait for them for ever.

    """
    with _lock:
        if not _loaded:
            _loaded.append((os.getpid(), _load()))
        pid, library = _loaded[0]
    if pid != os.getpid():
        raise LoadError(
            "llama.cpp was loaded before this process was forked and cannot be used here.",
            hint="Start the process with the method `spawn`, or load no model before forking.",
        )
    return library


def last_errors() -> str:
    """Return the library's latest error lines as one text, and forget them."""
    lines = [text for level, text in _log if level >= _ERROR_LEVEL]
    _log.clear()
    return "; ".join(dict.fromkeys(lines))


def offloaded_layers() -> tuple[int, int] | None:
    """Return how many layers the model that was loaded last has on a GPU, and how many in all.

    llama.cpp says so in its log only; ``None`` where it does not, as when it knows no GPU.
    """
    for _, line in reversed(_log):
        found = _OFFLOADED.search(line)
        if found:
            return int(found[1]), int(found[2])
    return None


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device that ggml can compute on.

    Attributes:
        name: such as ``CPU``, ``CUDA0`` or ``Vulkan0``.
        kind: ``cpu``, ``gpu``, ``igpu`` (shares the host's memory) or ``other``.
        free_bytes, total_bytes: of its memory, as it says now.

    """

    name: str
    kind: str
    free_bytes: int
    total_bytes: int


def accelerators(lib: ModuleType) -> tuple[Accelerator, ...]:
    """Return ggml's devices; empty where the library cannot be asked."""
    folder = Path(lib.__file__ or "").parent / "lib"
    try:
        ggml, base = _shared(folder, "ggml"), _shared(folder, "ggml-base")
        ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
        ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
        base.ggml_backend_dev_name.restype = ctypes.c_char_p
        handles = [
            ctypes.c_void_p(ggml.ggml_backend_dev_get(ctypes.c_size_t(index)))
            for index in range(ggml.ggml_backend_dev_count())
        ]
        return tuple(_accelerator(base, handle) for handle in handles)
    except (OSError, AttributeError, StopIteration):
        return ()


def _accelerator(base: ctypes.CDLL, device: ctypes.c_void_p) -> Accelerator:
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    kind = int(base.ggml_backend_dev_type(device))
    return Accelerator(
        name=base.ggml_backend_dev_name(device).decode(errors="replace"),
        kind=_KINDS[kind] if kind < len(_KINDS) else "other",
        free_bytes=free.value,
        total_bytes=total.value,
    )


def _shared(folder: Path, name: str) -> ctypes.CDLL:
    endings = (".so", ".dylib", ".dll")
    names = [f"{prefix}{name}{ending}" for prefix in ("lib", "") for ending in endings]
    return ctypes.CDLL(str(next(folder / file for file in names if (folder / file).is_file())))


def _load() -> ModuleType:
    try:
        import llama_cpp.llama_cpp as lib
    except (ImportError, OSError, RuntimeError) as error:
        raise LoadError(
            f"llama.cpp cannot be loaded: {error}.",
            hint="Install llama-cpp-python for this platform.",
        ) from error
    callback = lib.llama_log_callback(_remember)
    _callbacks.append(callback)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    module: ModuleType = lib
    return module


def _remember(level: int, text: bytes | None, _user_data: object) -> None:
    line = (text or b"").decode("utf-8", errors="replace").strip()
    if line:
        _log.append((level, line))
