"""Inference on the device that knows when it does not know, and spends money only there.

    import edge

    with edge.open(pack="kiosk", offline=True) as runtime:
        result = runtime.run("support_intent", "my card was swallowed by the machine")

Importing has no side effects: no file is read, no thread is started, no engine is loaded. The
runtime and the libraries it needs are imported when ``open`` or ``Runtime`` is first used.
"""

from typing import TYPE_CHECKING, Any

from edge import errors
from edge.errors import EdgeError
from edge.types import Choice, Kind, Reason, Result, Route, SamplingParams

if TYPE_CHECKING:
    from edge.drain import Drained
    from edge.opening import open_runtime as open  # noqa: A004 - the public name
    from edge.runtime import Chunk, Runtime

__version__ = "0.1.0"

__all__ = [
    "Choice",
    "Chunk",
    "Drained",
    "EdgeError",
    "Kind",
    "Reason",
    "Result",
    "Route",
    "Runtime",
    "SamplingParams",
    "__version__",
    "errors",
    "open",
]

_LATE = {
    "Chunk": ("edge.runtime", "Chunk"),
    "Drained": ("edge.drain", "Drained"),
    "Runtime": ("edge.runtime", "Runtime"),
    "open": ("edge.opening", "open_runtime"),
}


def __getattr__(name: str) -> Any:
    """Import the runtime once one of its names is asked for."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, there = _LATE[name]
    found = globals()[name] = getattr(import_module(module), there)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
