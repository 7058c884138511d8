"""A GGUF file that is cut, foreign or nonsense never reaches the C library."""

from __future__ import annotations

import struct

import pytest

from edge.backends.gguf import BLOCKS, check_gguf
from edge.errors import LoadError


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def tensor(name="w", shape=(32, 2), kind=0, offset=0):
    extents = b"".join(struct.pack("<Q", extent) for extent in shape)
    return text(name) + struct.pack("<I", len(shape)) + extents + struct.pack("<IQ", kind, offset)


ENTRIES = (
    text("general.architecture") + struct.pack("<I", 8) + text("llama"),
    text("llama.context_length") + struct.pack("<II", 4, 512),
    text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("<s>") + text("a"),
    text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 2) + struct.pack("<ff", 0.5, 1.5),
)


TENSORS = (tensor(),)


def gguf(*, magic=b"GGUF", version=3, entries=ENTRIES, tensors=TENSORS, data=256, counts=None):
    claimed = counts or (len(tensors), len(entries))
    head = magic + struct.pack("<IQQ", version, *claimed) + b"".join((*entries, *tensors))
    return head + bytes(-len(head) % 32) + bytes(data)


@pytest.fixture
def check(tmp_path):
    def run(raw):
        path = tmp_path / "m.gguf"
        path.write_bytes(raw)
        return check_gguf(path)

    return run


def test_a_whole_file(check):
    summary = check(gguf())
    assert summary.architecture == "llama"
    assert summary.metadata["llama.context_length"] == 512
    assert summary.lengths == {"tokenizer.ggml.tokens": 2, "tokenizer.ggml.scores": 2}
    assert (summary.version, summary.tensors) == (3, 1)


def test_every_shorter_file_is_refused(check):
    whole = gguf()
    for size in range(len(whole)):
        with pytest.raises(LoadError, match=r"truncated"):
            check(whole[:size])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (gguf(magic=b"GGML"), "does not begin with GGUF"),
        (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
        (gguf(version=1), "version is 1"),
        (gguf(version=3 << 24), "version is"),
        (gguf(counts=(2**40, 4)), "claims"),
        (gguf(counts=(1, 2**40)), "claims"),
        (gguf(entries=(text("k") + struct.pack("<IIQ", 9, 8, 2**60),)), "claims"),
        (gguf(entries=(text("k") + struct.pack("<IIQ", 9, 9, 1),)), "unknown type 9"),
        (gguf(entries=(text("k") + struct.pack("<I", 77),)), "unknown type 77"),
        (gguf(entries=(struct.pack("<Q", 2**62),)), "truncated"),
        (
            gguf(
                entries=(
                    text("tokenizer.ggml.tokens")
                    + struct.pack("<IIQ", 9, 8, 3)
                    + text("a") * 2
                    + text("b"),
                )
            ),
            "1 of its 3 tokens occur twice",
        ),
        (gguf(tensors=(tensor(shape=(32,) * 5),)), "5 dimensions"),
        (gguf(tensors=(tensor(shape=(32, 0)),)), "shape"),
        (gguf(tensors=(tensor(shape=(33,), kind=8),)), "shape"),
        (gguf(tensors=(tensor(kind=200),)), "unknown type 200"),
        (gguf(tensors=(tensor(offset=5),)), "not aligned"),
        (gguf(tensors=(tensor(offset=64),)), "truncated"),
        (gguf(tensors=(tensor(shape=(2**62, 2**62)),)), "truncated"),
        (gguf(tensors=(tensor(), tensor())), "same name"),
        (
            gguf(entries=(text("general.alignment") + struct.pack("<II", 4, 3),)),
            "alignment is 3",
        ),
    ],
)
def test_nonsense_is_refused(check, raw, words):
    with pytest.raises(LoadError, match=words):
        check(raw)


def test_a_missing_file(tmp_path):
    with pytest.raises(LoadError, match="cannot be read"):
        check_gguf(tmp_path / "none.gguf")


def test_block_sizes_are_those_of_the_library():
    ctypes = pytest.importorskip("ctypes")
    llama = pytest.importorskip("llama_cpp.llama_cpp", reason="llama-cpp-python is not installed")
    folder = type(llama._base_path)(llama._base_path)
    found = [path for path in folder.glob("*ggml-base*") if path.is_file()]
    if not found:
        pytest.skip("this build of llama.cpp has no ggml-base library of its own")
    library = ctypes.CDLL(str(found[0]))
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    newest = llama.GGML_TYPE_COUNT
    known = {kind: blocks for kind, blocks in BLOCKS.items() if kind < newest}
    assert known == {k: (library.ggml_blck_size(k), library.ggml_type_size(k)) for k in known}
