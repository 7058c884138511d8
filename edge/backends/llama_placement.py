"""Where llama.cpp runs a model's layers, and why not all of them are on the GPU that was asked for.

Pure functions over plain values. Knows nothing of the library.
"""

from __future__ import annotations

from edge.backends.base import Placement
from edge.errors import DeviceFallback

_DEVICES = ("cpu", "gpu")
_NO_GPU = "llama.cpp here offers cpu only"


def use_gpu(name: str, device: str, *, built: bool, strict: bool) -> bool:
    """Return whether layers are to go to the GPU.

    Args:
        name: of the model.
        device: ``cpu`` or ``gpu``.
        built: whether llama.cpp was built for a GPU.
        strict: a GPU that is not there is an error.

    Raises:
        DeviceFallback: no device is called so; or ``strict``, and there is no GPU.

    """
    if device not in _DEVICES:
        raise DeviceFallback(
            f"{name} cannot run on {device!r}: llama.cpp here offers cpu and gpu only."
        )
    if strict and device == "gpu" and not built:
        raise DeviceFallback(f"{name} cannot run on {device!r}: {_NO_GPU}.")
    return device == "gpu" and built


def place_layers(device: str, *, gpu: bool, offloaded: tuple[int, int] | None) -> Placement:
    """Return the placement of a loaded model.

    Args:
        device: what was asked for.
        gpu: see ``use_gpu``.
        offloaded: layers on the GPU, and layers in all; ``None`` where llama.cpp did not say.

    """
    if device == "cpu":
        return Placement("cpu", "cpu")
    if not gpu:
        return Placement(device, "cpu", why=_NO_GPU)
    if offloaded is None:
        return Placement(device, device, share=None, why="llama.cpp did not say how many layers")
    there, total = offloaded
    why = f"{total - there} of {total} layers run on the CPU"
    if there == 0:
        return Placement(device, "cpu", why=why)
    return Placement(device, device, share=there / total, why="" if there == total else why)
