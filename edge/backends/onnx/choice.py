"""Which device runs a model: each one present is measured once, and the result is remembered.

What is remembered holds for the model's digest, the version of onnxruntime and the devices
present; a file that cannot be read is measured anew. The caller gives the measurement. Knows
nothing of sessions.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge.backends.threads import ENOUGH_FASTER
from edge.errors import ModelError

FILE = "devices.json"
"""Name of the file in the state folder."""

_FORMAT = 1


def choice_key(digest: str, version: str, devices: Sequence[str]) -> str:
    """Return what a remembered choice holds for."""
    return f"{digest} onnxruntime {version} {','.join(devices)}"


def choose_device(
    key: str,
    devices: Sequence[str],
    measure: Callable[[str], float],
    *,
    memory: Path | None = None,
) -> tuple[str, str]:
    """Return the fastest device and why it was chosen; the first unless one is clearly faster.

    Args:
        key: see ``choice_key``.
        devices: those present; the first is taken where none can be measured.
        measure: seconds of one pass on a device; a ``ModelError`` rules the device out.
        memory: the file that remembers; nothing is remembered where ``None``.

    """
    if len(devices) == 1:
        return devices[0], f"only {devices[0]} is here"
    remembered = {} if memory is None else _read(memory)
    found = remembered.get(key)
    if found is not None and found["device"] in devices:
        return found["device"], found["why"]
    device, why = _fastest(devices, measure)
    if memory is not None:
        _write(memory, {**remembered, key: {"device": device, "why": why}})
    return device, why


def _fastest(devices: Sequence[str], measure: Callable[[str], float]) -> tuple[str, str]:
    times: dict[str, float] = {}
    told = []
    for device in devices:
        try:
            times[device] = measure(device)
            told.append(f"{device} {times[device] * 1e3:.1f} ms")
        except ModelError as error:
            told.append(f"{device} failed: {error.message.rstrip('.')}")
    why = f"measured: {'; '.join(told)}"
    if not times:
        return devices[0], why
    first, fastest = next(iter(times)), min(times, key=lambda device: times[device])
    return (fastest if times[fastest] < ENOUGH_FASTER * times[first] else first), why


def _read(memory: Path) -> dict[str, dict[str, str]]:
    """Return the choices in a file; none where it is missing or damaged."""
    try:
        whole: Any = json.loads(memory.read_text("utf-8"))
        if whole["format"] != _FORMAT:
            return {}
        return {
            str(key): {"device": str(choice["device"]), "why": str(choice["why"])}
            for key, choice in whole["choices"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _write(memory: Path, choices: dict[str, dict[str, str]]) -> None:
    """Replace the file in one step; a folder that cannot be written only costs a measurement."""
    text = json.dumps({"format": _FORMAT, "choices": choices}, indent=1) + "\n"
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=memory.parent, prefix=".devices-", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(memory)
