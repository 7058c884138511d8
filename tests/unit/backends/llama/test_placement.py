"""Which layers go to a GPU, and what is said where not all of them do."""

from __future__ import annotations

import pytest

from edge.backends.base import Placement
from edge.backends.llama.library import Accelerator
from edge.backends.llama.placement import (
    LayerSizes,
    free_bytes,
    layer_sizes,
    layers_that_fit,
    place_layers,
    use_gpu,
)
from edge.errors import DeviceFallback


@pytest.mark.parametrize(
    ("device", "gpu", "offloaded", "expected"),
    [
        ("cpu", False, None, Placement("cpu", "cpu")),
        ("gpu", False, None, Placement("gpu", "cpu", why="llama.cpp here offers cpu only")),
        ("gpu", True, (7, 7), Placement("gpu", "gpu")),
        ("auto", True, (7, 7), Placement("auto", "gpu")),
        ("auto", False, None, Placement("auto", "cpu", why="llama.cpp here offers cpu only")),
        ("gpu", True, (3, 6), Placement("gpu", "gpu", 0.5, "3 of 6 layers run on the CPU")),
        ("gpu", True, (0, 6), Placement("gpu", "cpu", why="6 of 6 layers run on the CPU")),
    ],
)
def test_layers_on_a_gpu(device, gpu, offloaded, expected):
    assert place_layers(device, gpu=gpu, offloaded=offloaded) == expected


THREE = LayerSizes(layers=(10, 20, 30), output=5, cache=1)


@pytest.mark.parametrize(
    ("room", "layers"),
    [
        (0, 0),
        (4, 0),
        (5, 1),  # the output
        (35, 1),
        (36, 2),  # and the last layer with its cache
        (56, 2),
        (57, 3),
        (67, 3),
        (68, 4),
        (10**12, 4),
    ],
)
def test_layers_are_taken_from_the_end_while_they_fit(room, layers):
    assert layers_that_fit(THREE, room) == layers


def test_layer_sizes_are_read_off_the_tensors():
    tensors = {
        "token_embd.weight": 100,
        "blk.0.attn_q.weight": 7,
        "blk.0.ffn_up.weight": 3,
        "blk.1.attn_q.weight": 20,
        "output_norm.weight": 1,
    }
    assert layer_sizes(tensors, cache=8) == LayerSizes((10, 20), 101, 4)  # the input's weights
    assert layer_sizes({**tensors, "output.weight": 50}, cache=8) == LayerSizes((10, 20), 51, 4)
    assert layer_sizes({}, cache=8) == LayerSizes((), 0, 8)


GIB = 1 << 30


@pytest.mark.parametrize(
    ("devices", "room"),
    [
        ([], 0),
        ([("cpu", 8, 8)], 0),
        ([("gpu", 8, 10)], 8 * GIB - GIB // 2),
        ([("gpu", 0, 10)], 0),
        ([("gpu", 1, 1)], GIB - 256_000_000),
        ([("gpu", 8, 10), ("igpu", 8, 10), ("gpu", 8, 10)], 16 * GIB - GIB),
        ([("igpu", 8, 10), ("cpu", 8, 10)], 8 * GIB - GIB // 2),
    ],
)
def test_a_part_of_a_gpus_memory_stays_free(devices, room):
    given = [Accelerator(kind, kind, free * GIB, all_ * GIB) for kind, free, all_ in devices]
    assert free_bytes(given) == room


def test_a_gpu_that_is_not_there():
    assert use_gpu("m", "gpu", built=True, strict=True)
    assert not use_gpu("m", "gpu", built=False, strict=False)
    with pytest.raises(DeviceFallback, match="m cannot run on 'gpu'"):
        use_gpu("m", "gpu", built=False, strict=True)
    with pytest.raises(DeviceFallback, match="abacus"):
        use_gpu("m", "abacus", built=True, strict=False)
    full = place_layers("gpu", gpu=True, offloaded=None, layers=0)
    assert (full.used, full.why) == ("cpu", "no layer fits the GPU's free memory")
    silent = place_layers("gpu", gpu=True, offloaded=None)
    assert silent.share is None
    assert silent.why
