"""Constrained decoding: which tokens may come next so that the answer fits a grammar.

A ``Constraint`` is a grammar compiled for a vocabulary, once; every generation has a ``Matcher`` of
its own. A matcher only ever allows a token whose bytes some fitting text goes on with, and an end
token only where the text fits as it is. Confidence is not its business: it is read from the row
before the mask (Park et al. 2024, arXiv:2405.21047). The work is llguidance's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from edge.backends.base import Decoder
from edge.backends.grammars import Grammar, limits
from edge.backends.vocabulary import Vocabulary, vocabulary_of
from edge.errors import GenerationError, InputError

CACHE_SIZE = 64
"""Constraints kept per vocabulary; the least recently used one gives way."""


class Constraint:
    """A grammar compiled for a vocabulary. Safe to use from several threads.

    Raises:
        InputError: the vocabulary cannot spell a text that fits.

    """

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar) -> None:
        self.vocabulary = vocabulary
        self.grammar = grammar
        self._fresh = LLMatcher(
            vocabulary.tokenizer,
            LLMatcher.grammar_from_lark(grammar.text),
            log_level=0,
            limits=limits(),
        )
        try:
            fits = bool(self.matcher().allowed(()).any())
        except GenerationError:
            fits = False
        if not fits:
            raise InputError(
                f"The {grammar.kind} grammar cannot be used with this model: no token begins a "
                "text that fits it."
            )

    def matcher(self) -> Matcher:
        """Return a matcher that stands at the beginning."""
        return Matcher(self.vocabulary, self.grammar, self._fresh.deep_copy())


class Matcher:
    """Follows one generation. Not shared between threads.

    ``allowed`` and ``forced`` take all tokens generated so far, as ``edge.backends.generate`` wants
    them. Tokens are forced where the grammar leaves no choice about the bytes and the model's own
    tokenization none about the tokens; the mask then allows just the first of them, so forcing
    saves forward passes and changes nothing else.
    """

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar, matcher: LLMatcher) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._mask = np.zeros(vocabulary.words, np.uint32)
        self._address, self._bytes = self._mask.ctypes.data, self._mask.nbytes
        # Only Lark can match bytes that are no text.
        self._usable = vocabulary.usable if grammar.kind == "lark" else None
        self._seen = 0
        self._ahead: tuple[int, ...] = ()
        self._looked_ahead = False

    def allowed(self, tokens: Sequence[int]) -> NDArray[np.uint32]:
        """Return the mask of the next token, uint32 ``[ceil(vocab_size / 32)]``.

        Bit ``i % 32`` of word ``i // 32`` allows token ``i``. The array is written anew by the next
        call.

        Raises:
            GenerationError: ``tokens`` do not fit the grammar, or it became too costly to follow.

        """
        if forced := self.forced(tokens):
            return self._vocabulary.bit(forced[0])
        self._matcher.unsafe_compute_mask_ptr(self._address, self._bytes)
        self._check()
        if self._usable is not None:
            np.bitwise_and(self._mask, self._usable, out=self._mask)
        return self._mask

    def forced(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens that must come next; an end token where nothing may follow.

        Raises:
            GenerationError: as ``allowed``.

        """
        self._follow(tokens)
        if not self._looked_ahead:
            self._looked_ahead = True
            self._ahead = self._look_ahead()
        return self._ahead

    @property
    def is_complete(self) -> bool:
        """Whether the text so far fits the grammar as it is."""
        return bool(self._matcher.is_accepting())

    def _look_ahead(self) -> tuple[int, ...]:
        if self._matcher.is_stopped():
            self._check()
            return (self._vocabulary.end,)
        raw = self._matcher.compute_ff_bytes()
        return self._vocabulary.settled(raw) if raw else ()

    def _follow(self, tokens: Sequence[int]) -> None:
        """Take in the tokens generated since the last call."""
        new = list(tokens[self._seen :])
        if not new:
            return
        if not self._matcher.consume_tokens(new):
            self._check()
        self._seen = len(tokens)
        expected = self._ahead[: len(new)] == tuple(new)
        self._ahead = self._ahead[len(new) :] if expected else ()
        self._looked_ahead = bool(self._ahead)

    def _check(self) -> None:
        """Raise where the matcher has given up; its mask would then allow an end token."""
        matcher = self._matcher
        if matcher.is_stopped() and not matcher.is_accepting():
            reason = " ".join(matcher.get_error().replace("<non-verbose/>", "").split())
            raise GenerationError(
                f"The grammar cannot be followed any further: {reason[:200] or 'a dead end'}.",
                hint="Simplify the grammar.",
            )


def constrain(decoder: Decoder, grammar: Grammar) -> Constraint:
    """Return a grammar compiled for a decoder's vocabulary, from the cache where it is known.

    Raises:
        InputError: the decoder has no end token, or its vocabulary cannot spell a text that fits.
        ModelError: the decoder is closed.

    """
    vocabulary = vocabulary_of(decoder)
    with vocabulary.lock:
        known = vocabulary.compiled
        found = known.get(grammar)
        if found is None:
            found = known[grammar] = Constraint(vocabulary, grammar)
        known.move_to_end(grammar)
        if len(known) > CACHE_SIZE:
            known.popitem(last=False)
        return cast("Constraint", found)
