"""What a model will take, from numbers and from a header."""

import struct

import pytest

from edge.backends.footprint import CacheShape, shape_of_architecture, shape_of_gguf


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(path, **facts):
    """Write a header without tensors."""
    entries = [text("general.architecture") + struct.pack("<I", 8) + text("toy")]
    entries += [
        text(f"toy.{key.replace('__', '.')}") + struct.pack("<II", 4, value)
        for key, value in facts.items()
    ]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries))
    return path


@pytest.mark.parametrize(
    ("facts", "shape"),
    [
        ({"layers": 5, "width": 256, "heads": 4, "context": 512}, CacheShape(5, 512, 512)),
        ({"layers": 5, "width": 256}, CacheShape(5, 512, 0)),
        ({"layers": 2, "width": 64, "heads": 8, "kv_heads": 2}, CacheShape(2, 32, 0)),
        ({"layers": 5}, None),
        ({"layers": "five", "width": 256}, None),
        ({}, None),
    ],
)
def test_a_manifest_tells_the_shape(facts, shape):
    assert shape_of_architecture(facts) == shape


@pytest.mark.parametrize(
    ("facts", "shape"),
    [
        (
            {"block_count": 5, "embedding_length": 256, "context_length": 512},
            CacheShape(5, 512, 512),
        ),
        (
            {
                "block_count": 2,
                "embedding_length": 64,
                "attention__head_count": 8,
                "attention__head_count_kv": 2,
            },
            CacheShape(2, 32, 0),
        ),
        (
            {
                "block_count": 2,
                "embedding_length": 64,
                "attention__head_count": 8,
                "attention__key_length": 16,
                "attention__value_length": 4,
            },
            CacheShape(2, 160, 0),
        ),
        ({"block_count": 2}, None),
    ],
)
def test_a_header_tells_the_shape(tmp_path, facts, shape):
    assert shape_of_gguf(gguf(tmp_path / "m.gguf", **facts)) == shape


@pytest.mark.parametrize(
    ("context", "sequences", "size"),
    [
        (512, 1, 5 * 512 * 2 * 512),
        (512, 4, 5 * 512 * 2 * 512 * 4),
        (4096, 1, 5 * 512 * 2 * 512),  # cut to what it was trained for
        (300, 1, 5 * 512 * 2 * 512),  # rounded up
        (256, 1, 5 * 512 * 2 * 256),
    ],
)
def test_the_cache_has_so_many_bytes(context, sequences, size):
    assert CacheShape(5, 512, 512).bytes(context=context, sequences=sequences) == size
