"""A decoder's tokens as bytes, in the form that constraints are compiled for.

One ``Vocabulary`` serves every decoder with the same tokens, and lives as long as something uses
it. Tokens without text, and those that look like control tokens whatever the file says of them,
never stand for text. Works on any ``edge.backends.base.Decoder``.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

from edge.backends.base import Decoder
from edge.errors import EdgeError, InputError

_LOOKS_LIKE_CONTROL = re.compile(rb"<\|[^<>]*\|>|\[PAD\d+\]|<(unused|reserved_token_)\d+>")
# SentencePiece puts a space before a text, but not after a line feed.
_LEADS = ("", "\n")
_LEAD_TOKENS = 4
_LONGEST_FORCED = 4096
_MOST_SETTLED = 4096
# llguidance takes tokens that fit a slice as a whole without walking them. Its own slices suit
# unbounded strings; the short ones serve strings whose remaining length is short.
_SLICES = [rf'[^"\\\x00-\x1F\x7F]{{{most}}}' for most in ("1,5", "1,10", "1,30", "1,")]


class Vocabulary:
    """The tokens of a model.

    Attributes:
        digest: sha256 over the tokens' bytes and the end tokens, lower-case hex.
        size: width of a row of logits.
        words: length of a mask, ``ceil(size / 32)``.
        end: the token that ends a text where a grammar is complete.
        usable: uint32 ``[words]``, the bits of the tokens that have text and of the end tokens.
        tokenizer: what llguidance compiles for.
        compiled: what was compiled for it, the least recently used first; guarded by ``lock``.

    """

    def __init__(self, pieces: Sequence[bytes], end_tokens: Sequence[int], digest: str) -> None:
        self.digest = digest
        self.size = len(pieces)
        self.words = (self.size + 31) // 32
        self.end = end_tokens[0]
        spelled = (token for token, piece in enumerate(pieces) if piece)
        self.usable = _bits([*spelled, *end_tokens], self.size)
        self.tokenizer = LLTokenizer(
            _Tokens(pieces, end_tokens),  # type: ignore[arg-type]
            eos_token=list(end_tokens),
            slices=_SLICES,
        )
        self.compiled: OrderedDict[Hashable, object] = OrderedDict()
        self.lock = threading.Lock()
        self._pieces = pieces
        self._settled: dict[bytes, tuple[int, ...]] = {}
        self._decoder: weakref.ref[Decoder] | None = None

    @functools.cached_property
    def _sorted(self) -> list[bytes]:
        return sorted(piece for piece in self._pieces if piece)

    def attach(self, decoder: Decoder) -> None:
        """Let a decoder of this vocabulary tokenize; the latest one does."""
        self._decoder = weakref.ref(decoder)

    def bit(self, token: int) -> NDArray[np.uint32]:
        """Return the mask that allows one token."""
        return _bits([token], self.size)

    def settled(self, raw: bytes) -> tuple[int, ...]:
        """Return the tokens that a text beginning with ``raw`` begins with, whatever follows.

        The last tokens are left out as far as a longer token could take their place together with
        bytes that follow. Empty where the tokens do not give ``raw`` back exactly.
        """
        raw = _whole_characters(raw[:_LONGEST_FORCED])
        known = self._settled.get(raw)
        if known is None:
            if len(self._settled) >= _MOST_SETTLED:
                self._settled.clear()
            known = self._settled[raw] = self._settle(raw)
        return known

    def _settle(self, raw: bytes) -> tuple[int, ...]:
        tokens = self._tokenize(raw)
        at = 0
        for count, token in enumerate(tokens):
            if self._goes_on(raw[at:]):
                return tuple(tokens[:count])
            at += len(self._pieces[token])
        return tuple(tokens)

    def _goes_on(self, raw: bytes) -> bool:
        """Whether a token begins with ``raw`` and is longer."""
        place = bisect.bisect_right(self._sorted, raw)
        return place < len(self._sorted) and self._sorted[place].startswith(raw)

    def _tokenize(self, raw: bytes) -> list[int]:
        """Return the decoder's own tokens for UTF-8 bytes; none where they spell other bytes."""
        decoder = self._decoder() if self._decoder is not None else None
        if decoder is None or not raw:
            return []
        for lead in _LEADS:
            try:
                tokens = decoder.tokenize(lead + raw.decode(), add_bos=False)
            except EdgeError:
                return []
            for start in range(min(len(tokens), _LEAD_TOKENS)):
                before, after = self._spelled(tokens[:start]), self._spelled(tokens[start:])
                if before.strip(b" ") == lead.encode() and after == raw:
                    return tokens[start:]
        return []

    def _spelled(self, tokens: Sequence[int]) -> bytes:
        # A tokenizer may know more tokens than the model.
        return b"".join(self._pieces[token] for token in tokens if token < self.size)


class _Tokens:
    """What ``LLTokenizer`` reads of a vocabulary; tokenizing is never asked of it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, pieces: Sequence[bytes], end_tokens: Sequence[int]) -> None:
        self.tokens = pieces
        self.eos_token_id = end_tokens[0]
        self.special_token_ids = [
            token for token, piece in enumerate(pieces) if not piece or token in end_tokens
        ]

    def __call__(self, _text: str) -> list[int]:
        return []


_by_decoder: weakref.WeakKeyDictionary[Decoder, Vocabulary] = weakref.WeakKeyDictionary()
_by_digest: weakref.WeakValueDictionary[str, Vocabulary] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def vocabulary_of(decoder: Decoder) -> Vocabulary:
    """Return the vocabulary of a decoder, read once; large ones take up to a few seconds.

    Raises:
        InputError: the decoder has no end token, so no text of it could be complete.
        ModelError: the decoder is closed.

    """
    with _lock:
        found = _by_decoder.get(decoder)
        if found is None:
            found = _by_decoder[decoder] = _read(decoder)
        found.attach(decoder)
        return found


def _read(decoder: Decoder) -> Vocabulary:
    size = decoder.info.vocab_size
    end_tokens = sorted(token for token in decoder.end_tokens if token < size)
    if not end_tokens:
        raise InputError(
            f"{decoder.info.name} names no end token, so a constrained answer could not end.",
            hint="Name the model's end tokens where it is opened.",
        )
    pieces = [_text_of(decoder.piece(token)) for token in range(size)]
    digest = _digest(pieces, end_tokens)
    known = _by_digest.get(digest)
    if known is None:
        known = _by_digest[digest] = Vocabulary(pieces, end_tokens, digest)
    return known


def _text_of(piece: bytes) -> bytes:
    return b"" if _LOOKS_LIKE_CONTROL.fullmatch(piece) else piece


def _digest(pieces: Sequence[bytes], end_tokens: Sequence[int]) -> str:
    whole = hashlib.sha256(repr(end_tokens).encode())
    for piece in pieces:
        whole.update(len(piece).to_bytes(4, "little") + piece)
    return whole.hexdigest()


def _bits(tokens: Iterable[int], size: int) -> NDArray[np.uint32]:
    """Return the mask of some tokens, uint32 ``[ceil(size / 32)]``."""
    mask = np.zeros((size + 31) // 32, np.uint32)
    places = np.fromiter(tokens, np.int64)
    np.bitwise_or.at(mask, places // 32, (np.uint32(1) << (places % 32).astype(np.uint32)))
    return mask


def _whole_characters(raw: bytes) -> bytes:
    """Return bytes up to the first that is no UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return raw[: error.start]
    return raw
