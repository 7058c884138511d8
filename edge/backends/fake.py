"""A decoder and an encoder without a model, for tests of what stands above the engines.

They say so: ``info.engine`` is ``fake``. Deterministic and instant. The decoder answers with a
given text whatever its weights would have said; the encoder hashes words, so texts that share
words are near each other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge.backends.base import ModelInfo, Placement
from edge.backends.label_loop import score_by_sequences
from edge.backends.questions import Question
from edge.errors import GenerationError, InputError, ModelError

BOS = 256
END = 257
VOCAB_SIZE = 258
DIGEST = "f" * 64
_HERE = Placement("cpu", "cpu")
_SURE = 12.0


class FakeDecoder:
    """Tokens are bytes, ``BOS`` and ``END``.

    Args:
        reply: the answer, or a function from the prompt's text to the answer.
        name: the name in ``info``.
        context: tokens a sequence may hold.
        margin: how far the reply's token is above the others; smaller looks less certain.
        fail_after: a forward pass after so many tokens raises ``GenerationError``.

    """

    def __init__(
        self,
        reply: str | Callable[[str], str] = "",
        *,
        name: str = "fake-decoder",
        context: int = 2048,
        margin: float = _SURE,
        fail_after: int | None = None,
    ) -> None:
        self.reply = reply if callable(reply) else lambda _prompt: reply
        self.margin = margin
        self.fail_after = fail_after
        self.open_sequences = 0
        self.closed = False
        self._info = ModelInfo(
            name, "fake", DIGEST, "cpu", context, vocab_size=VOCAB_SIZE, placement=_HERE
        )

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._info

    def label_scores(
        self, prompt: Sequence[int], questions: Sequence[Question]
    ) -> list[list[float]]:
        """Return every label's log-probability, computed one label after another."""
        return score_by_sequences(self, prompt, questions)

    @property
    def scheduler(self) -> None:
        """Generations run through the loop in Python."""
        return None

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a generation."""
        return frozenset({END})

    def tokenize(
        self, text: str, *, add_bos: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return one token per UTF-8 byte; with ``parse_special``, ``</s>`` is ``END``."""
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"The text cannot be tokenized: {error}.") from error
        tokens = [BOS] if add_bos else []
        for index, part in enumerate(raw.split(b"</s>") if parse_special else [raw]):
            tokens += [END] * (index > 0)
            tokens += part
        return tokens

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return one token's bytes; empty for control tokens unless ``special``."""
        if not 0 <= token < VOCAB_SIZE:
            raise InputError(f"Token {token} is not in the vocabulary of {self._info.name}.")
        if token < BOS:
            return bytes([token])
        return (b"<s>" if token == BOS else b"</s>") if special else b""

    def sequence(self) -> FakeSequence:
        """Open an empty sequence."""
        if self.closed:
            raise ModelError(f"{self._info.name} is closed.", hint="Open it again.")
        self.open_sequences += 1
        return FakeSequence(self)

    def close(self) -> None:
        """Close the model; calling twice is harmless."""
        self.closed = True


class FakeSequence:
    """One sequence of a ``FakeDecoder``."""

    def __init__(self, decoder: FakeDecoder) -> None:
        self._decoder = decoder
        self._length = 0
        self._answer: list[int] = []
        self._given = 0
        self._is_open = True

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append ``tokens`` and return a row whose best token is the reply's next one.

        The first call's tokens are the prompt; every later token takes the reply one token on.
        """
        decoder = self._decoder
        if not self._is_open or decoder.closed:
            raise ModelError("The sequence is closed.", hint="Open a new one.")
        if self._length + len(tokens) > decoder.info.context:
            raise InputError(
                f"The sequence would hold {self._length + len(tokens)} tokens; the context of "
                f"{decoder.info.name} holds {decoder.info.context}.",
                hint="Shorten the text.",
            )
        if self._length == 0:
            prompt = b"".join(decoder.piece(token) for token in tokens)
            self._answer = [*decoder.reply(prompt.decode(errors="replace")).encode(), END]
        else:
            self._given += len(tokens)
        self._length += len(tokens)
        if decoder.fail_after is not None and self._length > decoder.fail_after:
            raise GenerationError(f"{decoder.info.name} failed as it was told to.")
        row = np.zeros(VOCAB_SIZE, np.float32)
        row[self._answer[min(self._given, len(self._answer) - 1)]] = decoder.margin
        return row

    def close(self) -> None:
        """Close the sequence; calling twice is harmless."""
        if self._is_open:
            self._is_open = False
            self._decoder.open_sequences -= 1


class FakeEncoder:
    """Unit vectors from hashed words.

    Args:
        dimensions: width of a vector.
        max_tokens: words read of a text.
        name: the name in ``info``.

    """

    def __init__(
        self, *, dimensions: int = 64, max_tokens: int = 256, name: str = "fake-encoder"
    ) -> None:
        self._closed = False
        self._info = ModelInfo(
            name, "fake", DIGEST, "cpu", max_tokens, dimensions=dimensions, placement=_HERE
        )

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._info

    def embed(self, texts: Sequence[str], *, max_tokens: int | None = None) -> NDArray[np.float32]:
        """Return one unit vector per text, float32 ``[len(texts), dimensions]``."""
        limit = min(max_tokens or self._info.context, self._info.context)
        if self._closed:
            raise ModelError(f"{self._info.name} is closed.", hint="Open it again.")
        vectors = np.zeros((len(texts), self._info.dimensions), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in _words(text)[:limit] or [""]:
                hashed = hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest()
                place = int.from_bytes(hashed[:4], "little") % self._info.dimensions
                row[place] += 1.0 if hashed[4] % 2 else -1.0
            length = float(np.linalg.norm(row))
            if length == 0.0:
                row[0] = length = 1.0
            np.divide(row, length, out=row)
        return vectors

    def count_tokens(self, text: str) -> int:
        """Return how many words ``text`` has before truncation."""
        return len(_words(text))

    def close(self) -> None:
        """Close the model; calling twice is harmless."""
        self._closed = True


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
