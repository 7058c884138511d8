"""Checks a GGUF file before a C library sees it.

A truncated or foreign file can bring a C loader, and with it the whole process, down. This reads
the header, the metadata and the tensor list in plain Python and compares every extent with the
file's size. It guarantees that what is described lies inside the file; it does not know whether
the weights make sense. Format: the GGUF specification in ggml's ``docs/gguf.md``, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from edge.errors import LoadError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_ENTRIES = 1 << 20
MAX_ARRAY = 1 << 26
_ALIGNMENT = 32

BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 36),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
    42: (64, 18),  # Q2_0
}
"""Tensor type to (elements in a block, bytes of a block)."""

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING = 8
_ARRAY = 9
_TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True, slots=True)
class GgufSummary:
    """What the header says.

    Attributes:
        metadata: scalar and string entries; arrays are left out.
        lengths: number of entries of each array in the metadata.
        tensors: number of tensors.
        sizes: bytes of each tensor by name.

    """

    version: int
    tensors: int
    metadata: dict[str, int | float | bool | str] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """``general.architecture``, or an empty text."""
        return str(self.metadata.get("general.architecture", ""))


class _BrokenError(Exception):
    """The file is not a whole GGUF file; the message says where."""


def check_gguf(path: Path) -> GgufSummary:
    """Read the header of a GGUF file and check that all it describes lies inside the file.

    Raises:
        LoadError: the file is missing, is not GGUF, is truncated or describes nonsense.

    """
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return _Reader(b"").summary()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).summary()
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}.") from error
    except _BrokenError as error:
        raise LoadError(f"{path} is not a usable GGUF file: {error}.") from error


class _Reader:
    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data
        self._size = len(data)
        self._at = 0

    def summary(self) -> GgufSummary:
        if self._take(len(MAGIC)) != MAGIC:
            raise _BrokenError("it does not begin with GGUF")
        version = self._scalar("I")
        if version not in VERSIONS:
            raise _BrokenError(f"its version is {version}, known are 2 and 3")
        tensors, entries = int(self._scalar("Q")), int(self._scalar("Q"))
        if max(tensors, entries) > MAX_ENTRIES:
            raise _BrokenError(f"it claims {tensors} tensors and {entries} metadata entries")
        summary = GgufSummary(version=int(version), tensors=tensors)
        for _ in range(entries):
            self._entry(summary)
        extents = [self._tensor() for _ in range(tensors)]
        self._check_extents(extents, self._alignment(summary))
        summary.sizes.update((name, count) for name, _, count in extents)
        return summary

    def _take(self, count: int) -> bytes:
        start, end = self._at, self._at + count
        if end > self._size:
            raise _BrokenError(f"it is truncated: {self._size} bytes, at least {end} are needed")
        self._at = end
        return self._data[start:end]

    def _scalar(self, code: str) -> int | float:
        value: int | float = struct.unpack(f"<{code}", self._take(struct.calcsize(code)))[0]
        return value

    def _string(self) -> str:
        return self._take(int(self._scalar("Q"))).decode("utf-8", errors="replace")

    def _entry(self, summary: GgufSummary) -> None:
        key, kind = self._string(), int(self._scalar("I"))
        if kind == _ARRAY:
            summary.lengths[key] = self._array(key)
        elif kind == _STRING:
            summary.metadata[key] = self._string()
        elif kind in _SCALARS:
            summary.metadata[key] = self._scalar(_SCALARS[kind])
        else:
            raise _BrokenError(f"metadata {key!r} has the unknown type {kind}")

    def _array(self, key: str) -> int:
        kind, count = int(self._scalar("I")), int(self._scalar("Q"))
        if count > MAX_ARRAY:
            raise _BrokenError(f"metadata {key!r} claims {count} entries")
        if kind == _STRING:
            self._skip_strings(key, count)
        elif kind in _SCALARS:
            self._take_over(count * struct.calcsize(_SCALARS[kind]))
        else:
            raise _BrokenError(f"metadata {key!r} is an array of the unknown type {kind}")
        return count

    def _take_over(self, count: int) -> None:
        if self._at + count > self._size:
            self._take(count)
        self._at += count

    def _skip_strings(self, key: str, count: int) -> None:
        data, size, at = self._data, self._size, self._at
        unpack, width = struct.Struct("<Q").unpack_from, 8
        seen = set()
        for _ in range(count):
            if at + width > size:
                raise _BrokenError(f"it is truncated: {size} bytes, a text begins at {at}")
            end = at + width + unpack(data, at)[0]
            seen.add(data[at + width : end])
            at = end
        self._at = at
        self._take_over(0)
        # llama.cpp ends the process over a vocabulary that has a token twice.
        if key == _TOKENS and len(seen) < count:
            raise _BrokenError(f"{count - len(seen)} of its {count} tokens occur twice")

    def _tensor(self) -> tuple[str, int, int]:
        name, dimensions = self._string(), int(self._scalar("I"))
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise _BrokenError(f"tensor {name!r} has {dimensions} dimensions")
        shape = [int(self._scalar("Q")) for _ in range(dimensions)]
        kind, offset = int(self._scalar("I")), int(self._scalar("Q"))
        if kind not in BLOCKS:
            raise _BrokenError(f"tensor {name!r} has the unknown type {kind}")
        elements = 1
        for extent in shape:
            elements *= extent
        per_block, block_bytes = BLOCKS[kind]
        if elements == 0 or shape[0] % per_block:
            raise _BrokenError(f"tensor {name!r} of type {kind} has the shape {shape}")
        return name, offset, elements // per_block * block_bytes

    def _alignment(self, summary: GgufSummary) -> int:
        alignment = summary.metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _BrokenError(f"its alignment is {alignment!r}")
        return alignment

    def _check_extents(self, extents: list[tuple[str, int, int]], alignment: int) -> None:
        start = -(-self._at // alignment) * alignment
        names = {name for name, _, _ in extents}
        if len(names) != len(extents):
            raise _BrokenError("two tensors have the same name")
        for name, offset, count in extents:
            if offset % alignment:
                raise _BrokenError(f"tensor {name!r} is not aligned to {alignment} bytes")
            end = start + offset + count
            if end > self._size:
                raise _BrokenError(
                    f"it is truncated: {self._size} bytes, tensor {name!r} ends at {end}"
                )
