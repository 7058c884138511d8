"""The C side of one llama.cpp model: weights, context and batch, behind one lock.

Owns the memory and frees it in order. A failed forward pass leaves a sequence as it was. Knows
nothing of waiting callers, threads' choice or generations.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backends.llama.library import last_errors, offloaded_layers
from edge.errors import InputError, LoadError, ModelError

MAX_BATCH = 512
BRANCH_CELLS = 2048
"""KV cells of a branching context beyond those of the prompt."""

NARROW_HEAD = 32
"""Below this width of a head flash attention on a CPU costs more than it saves: with heads of 8 a
token after 300 others took 366 us against 166; with heads of 64, 339 against 370."""

_PIECE_BYTES = 64
_NO_SLOT = 1


class FailedError(Exception):
    """A forward pass failed; the message says how."""


class Handles:
    """The C side of one model: weights, context and batch, behind one lock."""

    def __init__(
        self,
        lib: ModuleType,
        path: Path,
        context: int,
        sequences: int,
        *,
        spare: int = 0,
        gpu_layers: int = 0,
    ) -> None:
        self.lib = lib
        self.sequences = sequences + spare
        self.gpu_layers = gpu_layers
        self._alone = sequences == 1
        self.closed = False
        self._name = path.name
        self._lock = threading.RLock()  # a collected sequence may come back inside a call
        self._words = threading.Lock()  # the vocabulary is read while the context is at work
        self._context: Any = None
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._view: tuple[int, NDArray[np.float32]] = (0, np.empty(0, np.float32))
        last_errors()
        self._model = lib.llama_model_load_from_file(bytes(path), _model_params(lib, gpu_layers))
        if not self._model:
            raise LoadError(
                f"{path} cannot be loaded: {last_errors() or 'llama.cpp gave no reason'}."
            )
        self.offloaded = offloaded_layers() if gpu_layers else None
        try:
            self._start(path, context, gpu=gpu_layers > 0)
        except BaseException:
            self.free()
            raise

    def _start(self, path: Path, context: int, *, gpu: bool) -> None:
        lib = self.lib
        self.vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self.vocab))
        if not lib.llama_model_has_decoder(self._model) or self.vocab_size < 1:
            raise LoadError(f"{path} is not a decoder with a vocabulary.")
        trained = int(lib.llama_model_n_ctx_train(self._model))
        self.limit = min(context, trained) if trained > 0 else context
        self.batch = min(self.limit, MAX_BATCH)
        params = _context_params(lib, self.limit * self.sequences, self.batch, self.sequences, gpu)
        heads = max(1, int(lib.llama_model_n_head(self._model)))
        if not gpu and int(lib.llama_model_n_embd(self._model)) // heads < NARROW_HEAD:
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._params = params
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise LoadError(f"{path} has no usable context: {last_errors() or 'no reason given'}.")
        self._memory = lib.llama_get_memory(self._context)
        self._batch = Batch(lib, self.batch)

    def free(self) -> None:
        """Free context and weights, in this order, after the running forward pass."""
        with self._lock, self._words:
            self.closed = True
            context, self._context = self._context, None
            model, self._model = self._model, None
            if context:
                self.lib.llama_free(context)
            if model:
                self.lib.llama_model_free(model)

    @property
    def context_lock(self) -> threading.RLock:
        """Held around every use of the context, and by ``free``."""
        return self._lock

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Where context, memory and vocabulary lie."""
        handles = (self._context, self._memory, self.vocab)
        context, memory, vocab = (ctypes.cast(h, ctypes.c_void_p).value or 0 for h in handles)
        return context, memory, vocab

    def set_threads(self, generating: int, reading: int) -> None:
        """Set the threads for one token and for a prompt."""
        self.lib.llama_set_n_threads(self._context, generating, reading)

    def tokenize(self, raw: bytes, *, parse_special: bool) -> list[int]:
        """Return the tokens of UTF-8 bytes, none added."""
        with self._words:
            self._check_open()
            room = len(raw) + 8
            while True:
                out = (ctypes.c_int32 * room)()
                count = self.lib.llama_tokenize(
                    self.vocab,
                    raw,
                    len(raw),
                    out,
                    room,
                    False,  # noqa: FBT003  # no special tokens are added
                    parse_special,
                )
                if count >= 0:
                    return out[:count]
                room = -count

    def piece(self, token: int, *, special: bool) -> bytes:
        """Return one token's bytes."""
        self._check_tokens((token,))
        with self._words:
            self._check_open()
            room = _PIECE_BYTES
            while True:
                out = ctypes.create_string_buffer(room)
                count = self.lib.llama_token_to_piece(self.vocab, token, out, room, 0, special)
                if count >= 0:
                    return out.raw[:count]
                room = -count

    def decode(self, sequence: int, position: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens at ``position`` and return the last row; undo everything on failure."""
        self._check_tokens(tokens)
        if not tokens:
            raise InputError("A forward pass needs at least one token.")
        with self._lock:
            self._check_open()
            for start in range(0, len(tokens), self.batch):
                part = tokens[start : start + self.batch]
                last = start + len(part) == len(tokens)
                self._batch.fill(part, position + start, sequence, last=last)
                status = self.lib.llama_decode(self._context, self._batch.struct)
                if status != 0:
                    self.lib.llama_memory_seq_rm(self._memory, sequence, position, -1)
                    reason = "no room in the KV cache" if status == _NO_SLOT else f"code {status}"
                    raise FailedError(f"{last_errors() or 'llama_decode'} ({reason})")
            return self._row(sequence)

    def probe(self, tokens: int, threads: int, *, limit_s: float) -> float:
        """Return the seconds of a forward pass over ``tokens`` tokens, broken off at a limit."""
        self.set_threads(threads, threads)
        begin = time.perf_counter()
        until = begin + limit_s
        abort = self.lib.ggml_abort_callback(lambda _data: time.perf_counter() > until)
        self.lib.llama_set_abort_callback(self._context, abort, None)
        try:
            self.decode(0, 0, [0] * tokens)
        except FailedError:
            return max(time.perf_counter() - begin, limit_s)
        finally:
            none = self.lib.ggml_abort_callback()
            self.lib.llama_set_abort_callback(self._context, none, None)
            self.forget(0, 0)
        return time.perf_counter() - begin

    def branching_context(self, branches: int) -> Any:
        """Return a further context over the weights whose sequences share one KV cache.

        Args:
            branches: sequences it may hold, and rows of logits one pass may give.

        Raises:
            LoadError: llama.cpp refused.

        """
        self._check_open()
        cells = self.limit + BRANCH_CELLS
        params = _context_params(self.lib, cells, self.batch, branches, gpu=False)
        params.kv_unified = True
        params.flash_attn_type = self._params.flash_attn_type
        params.offload_kqv = params.op_offload = self._params.offload_kqv
        if hasattr(params, "n_outputs_max"):
            params.n_outputs_max = branches
        context = self.lib.llama_init_from_model(self._model, params)
        if not context:
            raise LoadError(f"{self._name} has no room for decisions: {last_errors()}.")
        return context

    @property
    def kv_identity(self) -> dict[str, str | int | float]:
        """What the contents of the KV cache depend on, the weights aside."""
        lib, params = self.lib, self._params
        features = lib.llama_print_system_info()
        return {
            "context": self.limit,
            "type_k": int(params.type_k),
            "type_v": int(params.type_v),
            "rope_base": float(params.rope_freq_base),
            "rope_scale": float(params.rope_freq_scale),
            "rope_type": int(params.rope_scaling_type),
            "flash": int(getattr(params, "flash_attn_type", -1)),
            "gpu_layers": self.offloaded[0] if self.offloaded else 0,
            "library": str(importlib.metadata.version("llama-cpp-python")),
            "processor": features.decode(errors="replace") if features else "",
        }

    def sequence_state(self, sequence: int) -> bytes:
        """Return what a sequence holds, as llama.cpp writes it."""
        with self._lock:
            self._check_open()
            size = int(self.lib.llama_state_seq_get_size(self._context, sequence))
            room = (ctypes.c_uint8 * size)()
            used = int(self.lib.llama_state_seq_get_data(self._context, room, size, sequence))
            return bytes(room[:used])

    def set_sequence_state(self, sequence: int, state: bytes) -> bool:
        """Fill a sequence with what ``sequence_state`` gave; on failure it is empty."""
        with self._lock:
            self._check_open()
            room = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
            done = self.lib.llama_state_seq_set_data(self._context, room, len(state), sequence)
            if not done:
                self.lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            return bool(done)

    def forget(self, sequence: int, position: int) -> None:
        """Drop a sequence's cells from a position on; harmless after ``free``."""
        with self._lock:
            if not self.closed:
                self.lib.llama_memory_seq_rm(self._memory, sequence, position, -1)

    def _row(self, sequence: int) -> NDArray[np.float32]:
        pointer = self.lib.llama_get_logits_ith(self._context, -1)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        if not address:
            raise FailedError("the engine gave no logits")
        if address != self._view[0]:
            view = np.ctypeslib.as_array(pointer, (self.vocab_size,))
            view.flags.writeable = False
            self._view = (address, view)
        if self._alone:
            return self._view[1]
        own = self._rows.setdefault(sequence, np.empty(self.vocab_size, np.float32))
        np.copyto(own, self._view[1])
        return own

    def _check_open(self) -> None:
        if self.closed:
            raise closed_error(self._name)

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        if tokens and not (min(tokens) >= 0 and max(tokens) < self.vocab_size):
            raise InputError(
                f"Tokens must be between 0 and {self.vocab_size - 1}; "
                f"{min(tokens)} to {max(tokens)} were given."
            )


class Batch:
    """A ``llama_batch`` over arrays of ours, filled anew for each call."""

    def __init__(self, lib: ModuleType, size: int) -> None:
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)
        self._output = np.zeros(size, np.int8)
        self._sequence = ctypes.c_int32(0)
        one = ctypes.pointer(self._sequence)
        self._sequences = (ctypes.POINTER(ctypes.c_int32) * size)(*[one] * size)
        int32 = ctypes.POINTER(ctypes.c_int32)
        self.struct = lib.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(int32),
            embd=None,
            pos=self._positions.ctypes.data_as(int32),
            n_seq_id=self._counts.ctypes.data_as(int32),
            seq_id=ctypes.cast(self._sequences, ctypes.POINTER(int32)),
            logits=self._output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, tokens: Sequence[int], position: int, sequence: int, *, last: bool) -> None:
        """Describe ``tokens`` at ``position``; only the last token of the last part gives a row."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = np.arange(position, position + count, dtype=np.int32)
        self._output[:count] = 0
        self._output[count - 1] = last
        self._sequence.value = sequence
        self.struct.n_tokens = count


def _model_params(lib: ModuleType, gpu_layers: int) -> Any:
    params = lib.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    if hasattr(params, "load_mode"):
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP
    else:
        params.use_mmap = True
    return params


def _context_params(lib: ModuleType, cells: int, batch: int, sequences: int, gpu: bool) -> Any:
    params = lib.llama_context_default_params()
    params.n_ctx = cells
    params.n_batch = params.n_ubatch = batch
    params.n_seq_max = sequences
    params.offload_kqv = params.op_offload = gpu
    params.kv_unified = False
    params.no_perf = True
    if hasattr(params, "n_outputs_max"):
        params.n_outputs_max = sequences
    return params


def closed_error(name: str) -> ModelError:
    """Return the error for a use after ``close``."""
    return ModelError(f"{name} is closed.", hint="Open it again.")
