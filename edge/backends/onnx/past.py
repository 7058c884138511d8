"""How a decoder's present key values become the past of its next pass: handed on, not copied.

On the CPU an output array is the engine's own memory, and passing it back in is free; binding it
takes 10 to 25 percent longer there. Where a device has a memory of its own, the key values are
bound to it and stay in it: only tokens go in, and only logits come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backends.onnx.session import Opened

Past = dict[str, Any]
"""Key values by input name: arrays, or the engine's own values where they were bound."""


def advance(
    opened: Opened,
    plain: Mapping[str, NDArray[Any]],
    past: Past,
    *,
    logits: str,
    present: Sequence[str],
    bind: bool | None = None,
) -> tuple[NDArray[Any], Past]:
    """Run one pass and return all logits and the new past.

    Args:
        opened: the session.
        plain: inputs that are not a past.
        past: key values, as this function returned them or as empty arrays.
        logits: name of that output.
        present: names of the outputs that follow ``past``, in its order.
        bind: whether to bind; where ``None``, only to a memory other than the CPU's.

    """
    if bind is None:
        bind = opened.memory != "cpu"
    if bind:
        return _bound(opened, plain, past, logits, present)
    arrays = {name: _as_array(value) for name, value in past.items()}
    found, *values = opened.session.run([logits, *present], {**plain, **arrays})
    return found, dict(zip(past, values, strict=True))


def _bound(
    opened: Opened,
    plain: Mapping[str, NDArray[Any]],
    past: Past,
    logits: str,
    present: Sequence[str],
) -> tuple[NDArray[Any], Past]:
    binding = opened.session.io_binding()
    for name, array in plain.items():
        binding.bind_cpu_input(name, array)
    for name, value in past.items():
        if isinstance(value, np.ndarray):
            binding.bind_cpu_input(name, value)
        else:
            binding.bind_ortvalue_input(name, value)
    binding.bind_output(logits, "cpu")
    for name in present:
        binding.bind_output(name, opened.memory)
    opened.session.run_with_iobinding(binding)
    found, *values = binding.get_outputs()
    return found.numpy(), dict(zip(past, values, strict=True))


def _as_array(value: Any) -> NDArray[Any]:
    """Return a past as an array; only after a device has failed is it a copy."""
    array: NDArray[Any] = value if isinstance(value, np.ndarray) else value.numpy()
    return array
