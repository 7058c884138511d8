"""How much memory a model will take, told before it is loaded.

Weights count with the size of their files. A decoder also has a KV cache: for every token of every
sequence one key and one value in each layer. What an engine needs besides, for one forward pass
and for its own book-keeping, is left out; measured on the shipped models it is 3 to 9 MB each.
Reads the header of a GGUF file where nothing else tells the shape; loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.backends.gguf import check_gguf

_CELLS_STEP = 256  # llama.cpp rounds a sequence's cells up to it
_F16_BYTES = 2


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What a decoder keeps of one token.

    Attributes:
        layers: that have keys and values.
        width: elements of a token's key and value together, in one layer.
        trained: the most tokens that the model was trained for; 0 where unknown.

    """

    layers: int
    width: int
    trained: int = 0

    def bytes(self, *, context: int, sequences: int, element_bytes: int = _F16_BYTES) -> int:
        """Return the bytes of the KV cache.

        Args:
            context: tokens one sequence may hold; cut to what the model was trained for.
            sequences: that may be open at once.
            element_bytes: of one element; float16 unless told.

        """
        tokens = min(context, self.trained) if self.trained else context
        cells = -(-tokens // _CELLS_STEP) * _CELLS_STEP
        return self.layers * self.width * element_bytes * cells * sequences


def shape_of_architecture(facts: Mapping[str, Any]) -> CacheShape | None:
    """Return the shape that a manifest's ``architecture`` tells; ``None`` where it does not.

    It needs ``layers`` and ``width``; ``heads`` and ``kv_heads`` where several heads share keys.
    """
    layers, width = _whole(facts.get("layers")), _whole(facts.get("width"))
    if not layers or not width:
        return None
    heads = _whole(facts.get("heads")) or 1
    shared = _whole(facts.get("kv_heads")) or heads
    return CacheShape(layers, 2 * width * shared // heads, _whole(facts.get("context")))


def shape_of_gguf(path: Path) -> CacheShape | None:
    """Return the shape that the header of a GGUF file tells; ``None`` where it does not.

    Where layers differ in their heads all are taken for full ones, which may be too much.

    Raises:
        LoadError: the file is missing, truncated or not GGUF.

    """
    summary = check_gguf(path)

    def fact(key: str) -> int:
        return _whole(summary.metadata.get(f"{summary.architecture}.{key}"))

    layers, width = fact("block_count"), fact("embedding_length")
    if not layers or not width:
        return None
    heads = fact("attention.head_count") or 1
    shared = fact("attention.head_count_kv") or heads
    key = fact("attention.key_length") or width // heads
    value = fact("attention.value_length") or width // heads
    return CacheShape(layers, shared * (key + value), fact("context_length"))


def _whole(value: object) -> int:
    """Return a positive whole number, or 0."""
    return value if isinstance(value, int) and value > 0 else 0
