"""Measures one model on every device present, and keeps only answers that agree with the CPU's.

Knows nothing of tokens: the caller gives the pass that is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backends.onnx.choice import choice_key, choose_device
from edge.backends.onnx.providers import available_devices, onnx_library
from edge.backends.onnx.runner import Ask
from edge.backends.onnx.session import Opened, engine_errors
from edge.errors import DeviceFallback, GenerationError

AUTO = "auto"
"""The device name that asks for the fastest device."""

AGREES = 0.99
"""A device whose answer has a smaller cosine to the CPU's is not chosen."""

_PASSES = 3
_BUDGET_S = 0.5


def resolve_device(
    ask: Ask,
    digest: str,
    probe: Callable[[Opened], NDArray[Any]],
    *,
    size: int | None = None,
    memory: Path | None = None,
) -> tuple[Ask, str]:
    """Return the ask with a device in the place of ``auto``, and why it was chosen.

    Args:
        ask: what is to be opened; returned as it is where it names a device.
        digest: sha256 of the model file.
        probe: runs one pass and returns what it gave.
        size: value of the free axes, see ``Ask.open``.
        memory: the file that remembers choices.

    """
    if ask.device != AUTO:
        return ask, ""
    expected: list[NDArray[Any]] = []

    def measure(device: str) -> float:
        opened = replace(ask, strict=False).open(size, device=device)
        if opened.placement.used != device:
            raise DeviceFallback(opened.placement.why)
        taken_s, found = _timed(ask, opened, probe)
        if not expected:
            expected.append(found)
        agrees = _cosine(found, expected[0])
        if not agrees >= AGREES:
            raise GenerationError(f"its answer has a cosine of {agrees:.3f} to the CPU's")
        return taken_s

    devices = available_devices()
    key = choice_key(digest, str(onnx_library().__version__), devices)
    device, why = choose_device(key, devices, measure, memory=memory)
    return replace(ask, device=device), why


def as_chosen(opened: Opened, why: str) -> Opened:
    """Return a session that was opened for ``auto``, which its placement then says."""
    if not why:
        return opened
    told = "; ".join(part for part in (why, opened.placement.why) if part)
    return replace(opened, placement=replace(opened.placement, asked=AUTO, why=told))


def _timed(
    ask: Ask, opened: Opened, probe: Callable[[Opened], NDArray[Any]]
) -> tuple[float, NDArray[Any]]:
    """Return the seconds of the fastest pass, and what it gave; the first warms up."""
    fastest_s, begin = float("inf"), time.perf_counter()
    with engine_errors(ask.name):
        found = probe(opened)
        for _ in range(_PASSES):
            start = time.perf_counter()
            found = probe(opened)
            end = time.perf_counter()
            fastest_s = min(fastest_s, end - start)
            if end - begin > _BUDGET_S:
                break
    return fastest_s, np.asarray(found, np.float64).ravel()


def _cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    lengths = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / lengths) if lengths > 0 else float(np.array_equal(one, other))
