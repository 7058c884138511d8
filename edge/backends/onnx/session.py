"""ONNX Runtime sessions: a device named, what runs where recorded, errors in our words.

A device that is not there or cannot take the model is replaced by the CPU, and the reason is in
the ``Placement``; with ``strict`` it is an error. Knows nothing of tokens.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from edge.backends.base import Placement
from edge.backends.onnx.providers import (
    PROVIDERS,
    Provider,
    available_devices,
    onnx_library,
    plugin_devices,
    providers_here,
    quiet_start,
    reason,
    why_missing,
)
from edge.errors import DeviceFallback, GenerationError, LoadError

__all__ = [
    "PROVIDERS",
    "Opened",
    "available_devices",
    "engine_errors",
    "onnx_library",
    "open_session",
    "run_session",
]

_SILENT = 4
_NAMED_OPERATORS = 4


@dataclass(frozen=True, slots=True)
class Opened:
    """A session and where it runs."""

    session: Any
    placement: Placement
    memory: str = "cpu"


def open_session(
    path: Path,
    *,
    threads: int,
    device: str = "cpu",
    strict: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> Opened:
    """Return an ``InferenceSession`` on the named device, or on the CPU with the reason.

    Args:
        path: the model file.
        threads: threads inside one operator.
        device: a key of ``PROVIDERS``.
        strict: a fallback, of one node too, is an error.
        sizes: values for axes that the graph leaves free, by the axis' name.

    Raises:
        LoadError: the file is missing, is not ONNX, is truncated, or needs operators that plain
            ONNX Runtime does not have.
        DeviceFallback: no device is called so; or ``strict``, and it is not there or does not
            take the whole model.

    """
    if not path.is_file():
        raise LoadError(f"{path} cannot be read: it is not a file.")
    if device not in PROVIDERS:
        raise DeviceFallback(f"{path.name} cannot run on {device!r}: {why_missing(device)}.")
    model = _Model(onnx_library(), path, threads, sizes or {})
    here = providers_here() if device != "cpu" else {}
    if device == "cpu":
        opened = _on_cpu(model)
    elif device in here:
        opened = _on_device(model, here[device])
    else:
        opened = _instead(model, device, why_missing(device))
    if strict:
        opened.placement.require(path.name)
    return opened


@contextmanager
def engine_errors(name: str) -> Iterator[None]:
    """Translate what the library raises during a forward pass.

    Raises:
        GenerationError: the model failed on this input.

    """
    try:
        yield
    except Exception as error:  # the library's errors share no other base class
        raise GenerationError(f"{name} failed on this input: {reason(error)}.") from error


def run_session(
    call: Callable[[Sequence[str], Mapping[str, Any]], Sequence[Any]],
    outputs: Sequence[str],
    feed: Mapping[str, Any],
    *,
    name: str,
) -> Sequence[Any]:
    """Call ``session.run`` or one of its kin.

    Raises:
        GenerationError: the model failed on this input.

    """
    with engine_errors(name):
        return call(outputs, feed)


@dataclass(frozen=True, slots=True)
class _Model:
    """What a session is to be opened of."""

    library: ModuleType
    path: Path
    threads: int
    sizes: Mapping[str, int]

    def options(self) -> Any:
        options = self.library.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self.library.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _SILENT
        # Spinning workers make a sentence take 6.1 instead of 2.6 ms on a machine that is busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for axis, size in self.sizes.items():
            options.add_free_dimension_override_by_name(axis, size)
        return options

    def open(self, options: Any, **named: Any) -> Any:
        return self.library.InferenceSession(
            os.fspath(self.path), options, enable_fallback=0, **named
        )


def _on_cpu(model: _Model) -> Opened:
    try:
        session = model.open(model.options(), providers=[PROVIDERS["cpu"]])
    except Exception as error:
        raise LoadError(f"{model.path} cannot be loaded: {reason(error)}.") from error
    return Opened(session, Placement("cpu", "cpu"))


def _on_device(model: _Model, provider: Provider) -> Opened:
    options, named = model.options(), {}
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    settings = dict(provider.options)
    try:
        if provider.plugin:
            devices = plugin_devices(model.library, provider.name)
            options.add_provider_for_devices(devices, settings)
        else:
            named["providers"] = [(provider.name, settings), PROVIDERS["cpu"]]
        with quiet_start(provider):
            session = model.open(options, **named)
    except Exception as error:  # noqa: BLE001  # the library's errors share no other base class
        return _instead(model, provider.device, f"{provider.name} cannot take it: {reason(error)}")
    if provider.name not in session.get_providers():
        return _instead(model, provider.device, f"{provider.name} did not start")
    return Opened(session, _placement(session, provider), provider.memory)


def _instead(model: _Model, device: str, why: str) -> Opened:
    """Return the session on the CPU, in place of a device."""
    return replace(_on_cpu(model), placement=Placement(device, "cpu", why=why))


def _placement(session: Any, provider: Provider) -> Placement:
    """Read off the session's own record which nodes the device took."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        why = "this version of onnxruntime keeps no record of nodes"
        return Placement(provider.device, provider.device, share=None, why=why)
    taken, left = 0, Counter[str]()
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name == provider.name:
            taken += len(part.get_nodes())
        else:
            left.update(node.op_type for node in part.get_nodes())
    total = taken + left.total()
    named = ", ".join(operator for operator, _ in left.most_common(_NAMED_OPERATORS))
    if taken == 0:
        why = f"{provider.name} took none of {total} nodes ({named})"
        return Placement(provider.device, "cpu", why=why)
    why = f"{left.total()} of {total} nodes run on the CPU ({named})" if left else ""
    return Placement(provider.device, provider.device, share=taken / total, why=why)
