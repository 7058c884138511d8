"""Inference on the device that knows when it does not know, and spends money only there.

    import edge

    with edge.open(pack="kiosk", offline=True) as runtime:
        result = runtime.run("support_intent", "my card was swallowed by the machine")

Importing has no side effects: no file is read, no thread is started, no engine is loaded.
"""

from edge import errors
from edge.errors import EdgeError
from edge.runtime import Chunk, Drained, Runtime
from edge.runtime import open_runtime as open  # noqa: A004 - the public name
from edge.types import Kind, Reason, Result, Route, SamplingParams

__version__ = "0.1.0"

__all__ = [
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
