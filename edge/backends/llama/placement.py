"""Where llama.cpp runs a model's layers: how many fit the GPU, and why not all of them are there.

Pure functions over plain values. Loads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.backends.base import Placement
from edge.backends.llama.library import Accelerator
from edge.errors import DeviceFallback

_DEVICES = ("cpu", "gpu", "auto")
_BLOCK = re.compile(r"blk\.(\d+)\.")
_RESERVE_BYTES = 256_000_000
_RESERVE_SHARE = 0.05
_NO_GPU = "llama.cpp here offers cpu only"


def use_gpu(name: str, device: str, *, built: bool, strict: bool) -> bool:
    """Return whether layers are to go to the GPU.

    Args:
        name: of the model.
        device: ``cpu``, ``gpu``, or ``auto`` for the GPU where there is one.
        built: whether llama.cpp was built for a GPU.
        strict: a GPU that is not there is an error.

    Raises:
        DeviceFallback: no device is called so; or ``strict``, and there is no GPU.

    """
    if device not in _DEVICES:
        raise DeviceFallback(
            f"{name} cannot run on {device!r}: llama.cpp here offers cpu, gpu and auto only."
        )
    if strict and device == "gpu" and not built:
        raise DeviceFallback(f"{name} cannot run on {device!r}: {_NO_GPU}.")
    return device != "cpu" and built


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """What a model's layers take on a GPU, in bytes.

    Attributes:
        layers: weights of every repeating layer, the first one first.
        output: weights behind the last layer.
        cache: keys and values of one layer.

    """

    layers: tuple[int, ...]
    output: int
    cache: int


def layer_sizes(tensors: Mapping[str, int], *, cache: int) -> LayerSizes:
    """Return the sizes of layers.

    Args:
        tensors: bytes by tensor name, as a GGUF file has them.
        cache: bytes of keys and values of all layers together.

    """
    layers: dict[int, int] = {}
    output = 0
    for name, size in tensors.items():
        found = _BLOCK.match(name)
        if found:
            layers[int(found[1])] = layers.get(int(found[1]), 0) + size
        elif name.startswith("output"):
            output += size
    if "output.weight" not in tensors:
        output += tensors.get("token_embd.weight", 0)  # the same weights serve at both ends
    count = max(layers, default=-1) + 1
    return LayerSizes(
        tuple(layers.get(at, 0) for at in range(count)), output, cache // max(count, 1)
    )


def free_bytes(devices: Sequence[Accelerator]) -> int:
    """Return what a model may take of the GPUs' memory, dedicated ones before those that share.

    A part stays free, for what a forward pass needs besides and for other programs.
    """
    gpus = [each for each in devices if each.kind == "gpu"]
    gpus = gpus or [each for each in devices if each.kind == "igpu"]
    return sum(
        max(0, each.free_bytes - max(_RESERVE_BYTES, int(_RESERVE_SHARE * each.total_bytes)))
        for each in gpus
    )


def layers_that_fit(sizes: LayerSizes, room: int) -> int:
    """Return how many layers fit ``room`` bytes; llama.cpp counts the output as the last one.

    It takes them from the end: the output first, the first layer last.
    """
    needed, count = sizes.output, 0
    for layer in (0, *reversed(sizes.layers)):
        needed += layer + (sizes.cache if count else 0)
        if needed > room:
            return count
        count += 1
    return count


def place_layers(
    device: str, *, gpu: bool, offloaded: tuple[int, int] | None, layers: int = -1
) -> Placement:
    """Return the placement of a loaded model.

    Args:
        device: what was asked for.
        gpu: whether layers were to go to the GPU.
        offloaded: layers on the GPU, and layers in all; ``None`` where llama.cpp did not say.
        layers: that were to go there; below 0 for all.

    """
    if device == "cpu":
        return Placement("cpu", "cpu")
    if not gpu:
        return Placement(device, "cpu", why=_NO_GPU)
    if layers == 0:
        return Placement(device, "cpu", why="no layer fits the GPU's free memory")
    if offloaded is None:
        return Placement(device, "gpu", share=None, why="llama.cpp did not say how many layers")
    there, total = offloaded
    why = f"{total - there} of {total} layers run on the CPU"
    if there == 0:
        return Placement(device, "cpu", why=why)
    return Placement(device, "gpu", share=there / total, why="" if there == total else why)
