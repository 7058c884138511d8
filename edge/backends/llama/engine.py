"""Builds the native engine of one llama.cpp model, where the loaded library fits it.

The engine is compiled against one layout of ``llama_batch``. Before its first use the layout is
compared, size and offsets, with the definitions that llama-cpp-python loaded; where they differ the
engine is not used, generation goes through the loop of ``edge.backends.generate`` with the same
results, and ``edge doctor`` says so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from types import ModuleType

from edge._native.engine import CALLS, Engine, batch_layout
from edge.backends.llama.handles import Handles

CHUNK = 128


def mismatch(lib: ModuleType) -> str | None:
    """Return why the engine does not fit the loaded library, or ``None``."""
    size, offsets = batch_layout()
    batch = lib.llama_batch
    theirs = tuple(getattr(batch, name).offset for name, _ in batch._fields_)
    if ctypes.sizeof(batch) != size or theirs != offsets:
        return (
            f"llama_batch has {ctypes.sizeof(batch)} bytes and the offsets {theirs}; "
            f"the native loop was built for {size} bytes and {offsets}"
        )
    missing = [name for name in CALLS if not hasattr(lib, name)]
    return f"the library lacks {', '.join(missing)}" if missing else None


def open_engine(handles: Handles, end_tokens: Iterable[int]) -> Engine | None:
    """Return the engine of a loaded model; ``None`` where it does not fit."""
    lib = handles.lib
    if mismatch(lib) is not None:
        return None
    calls = {name: ctypes.cast(getattr(lib, name), ctypes.c_void_p).value or 0 for name in CALLS}
    context, memory, vocab = handles.addresses
    return Engine(
        calls,
        context=context,
        memory=memory,
        vocab=vocab,
        batch=handles.batch,
        chunk=CHUNK,
        vocab_size=handles.vocab_size,
        end_tokens=end_tokens,
    )
