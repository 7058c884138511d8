"""Hugging Face tokenizers: loading, encoding, and the bytes of every token.

A streaming decoder needs bytes, since a character may be split over tokens; the tokenizers
library gives only text. Knows the three ways bytes are written: byte-level alphabets (GPT-2),
byte fallback (``<0x0A>``) and the SentencePiece space. Knows nothing of models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from edge.errors import InputError, LoadError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a ``tokenizer.json``, without padding and truncation.

    Raises:
        LoadError: the file is missing or not a tokenizer.

    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"The tokenizer {path} cannot be read: {error}.") from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:
        raise LoadError(f"The tokenizer {path} cannot be loaded: {error}.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode_all(
    tokenizer: Tokenizer, texts: Sequence[str], *, special: bool = True
) -> list[Encoding]:
    """Return the encodings of texts.

    Raises:
        InputError: a text is not a string or holds half of a surrogate pair.

    """
    try:
        return [tokenizer.encode(text, add_special_tokens=special) for text in texts]
    except (TypeError, UnicodeEncodeError) as error:
        raise InputError(f"A text cannot be tokenized: {error}.") from error


def token_pieces(tokenizer: Tokenizer) -> tuple[list[bytes], frozenset[int]]:
    """Return each token's bytes by id, and the ids of special tokens."""
    size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    added = tokenizer.get_added_tokens_decoder()
    is_byte_level = _mentions(json.loads(tokenizer.to_str()).get("decoder"), "ByteLevel")
    alphabet = byte_alphabet()
    pieces = []
    for token in range(size):
        if token in added:
            pieces.append(added[token].content.encode())
            continue
        text = tokenizer.id_to_token(token) or ""
        pieces.append(_from_alphabet(text, alphabet) if is_byte_level else _from_text(text))
    return pieces, frozenset(token for token, entry in added.items() if entry.special)


def byte_alphabet() -> dict[str, int]:
    """Return the characters that stand for bytes in byte-level vocabularies (Radford et al. 2019).

    Printable bytes stand for themselves, the others for the characters from 256 on, in order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


def _from_alphabet(text: str, alphabet: dict[str, int]) -> bytes:
    if all(character in alphabet for character in text):
        return bytes(alphabet[character] for character in text)
    return text.encode()


def _from_text(text: str) -> bytes:
    if found := _BYTE.fullmatch(text):
        return bytes([int(found[1], 16)])
    return text.replace(_SPACE, " ").encode()


def _mentions(decoder: object, kind: str) -> bool:
    if isinstance(decoder, dict):
        return decoder.get("type") == kind or any(
            _mentions(item, kind) for item in decoder.values()
        )
    if isinstance(decoder, list):
        return any(_mentions(item, kind) for item in decoder)
    return False
