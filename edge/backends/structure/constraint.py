"""Constrained decoding: which tokens may come next so that the answer fits a grammar.

A ``Constraint`` is a grammar compiled for a vocabulary, once; every generation has a ``Matcher`` of
its own. A matcher only ever allows a token whose bytes some fitting text goes on with, and an end
token only where the text fits as it is. Confidence is not its business: it is read from the row
before the mask (Park et al. 2024, arXiv:2405.21047). The work is llguidance's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from edge.backends.base import Decoder
from edge.backends.structure.grammars import Grammar, limits
from edge.backends.structure.vocabulary import Vocabulary, vocabulary_of
from edge.errors import GenerationError, InputError

CACHE_SIZE = 64
"""Constraints kept per vocabulary; the least recently used one gives way."""

# How an answer begins is much the same from one request to the next.
_BEGINNING = 1
_MOST_BEGINNINGS = 32


class Constraint:
    """A grammar compiled for a vocabulary. Safe to use from several threads.

    Raises:
        InputError: the vocabulary cannot spell a text that fits.

    """

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar) -> None:
        self.vocabulary = vocabulary
        self.grammar = grammar
        self._beginnings: _Beginnings = {}
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
        return Matcher(
            self.vocabulary, self.grammar, self._fresh.deep_copy(), beginnings=self._beginnings
        )


_Beginnings: TypeAlias = dict[tuple[int, ...], tuple[tuple[int, ...], NDArray[np.uint32]]]
"""By the tokens of a beginning: what is forced after it, and the mask."""


class Matcher:
    """Follows one generation. Not shared between threads.

    ``allowed`` and ``forced`` take all tokens generated so far, as ``edge.backends.generate`` wants
    them. Tokens are forced where the grammar leaves no choice about the bytes and the model's own
    tokenization none about the tokens; the mask then allows just the first of them, so forcing
    saves forward passes and changes nothing else.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        grammar: Grammar,
        matcher: LLMatcher,
        *,
        beginnings: _Beginnings,
    ) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._beginnings = beginnings
        self._mask = np.zeros(vocabulary.words, np.uint32)
        self._address, self._bytes = self._mask.ctypes.data, self._mask.nbytes
        # Only Lark can match bytes that are no text.
        self._usable = vocabulary.usable if grammar.kind == "lark" else None
        self._seen = 0
        self._ahead: tuple[int, ...] = ()
        self._looked_ahead = False

    def allowed(self, tokens: Sequence[int]) -> NDArray[np.uint32]:
        """Return the mask of the next token, uint32 ``[ceil(vocab_size / 32)]``.

        Bit ``i % 32`` of word ``i // 32`` allows token ``i``. The array is not to be written to,
        and the next call may change it.

        Raises:
            GenerationError: ``tokens`` do not fit the grammar, or it became too costly to follow.

        """
        if len(tokens) <= _BEGINNING and (known := self._beginnings.get(tuple(tokens))):
            return known[1]
        forced = self.forced(tokens)
        mask = self._vocabulary.bit(forced[0]) if forced else self._compute()
        if len(tokens) <= _BEGINNING and len(self._beginnings) < _MOST_BEGINNINGS:
            kept = mask.copy()
            kept.flags.writeable = False
            self._beginnings[tuple(tokens)] = (forced, kept)
        return mask

    def _compute(self) -> NDArray[np.uint32]:
        self._matcher.unsafe_compute_mask_ptr(self._address, self._bytes)
        if self._matcher.is_stopped() and not self._matcher.is_accepting():
            raise self._lost()  # the mask allows an end token then
        if self._usable is not None:
            np.bitwise_and(self._mask, self._usable, out=self._mask)
        return self._mask

    def forced(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens that must come next; an end token where nothing may follow.

        Raises:
            GenerationError: as ``allowed``.

        """
        if len(tokens) <= _BEGINNING and (known := self._beginnings.get(tuple(tokens))):
            return known[0]
        if len(tokens) > self._seen:
            self._follow(tokens)
        if not self._looked_ahead:
            self._looked_ahead = True
            self._ahead = self._look_ahead()
        return self._ahead

    def _look_ahead(self) -> tuple[int, ...]:
        if self._matcher.is_stopped():
            if not self._matcher.is_accepting():
                raise self._lost()
            return (self._vocabulary.end,)
        raw = self._matcher.compute_ff_bytes()
        return self._vocabulary.settled(raw) if raw else ()

    def _follow(self, tokens: Sequence[int]) -> None:
        """Take in the tokens generated since the last call."""
        new = list(tokens[self._seen :])
        if not self._matcher.consume_tokens(new):
            raise self._lost()
        self._seen = len(tokens)
        self._looked_ahead = False
        if not self._ahead:
            return
        expected = self._ahead[: len(new)] == tuple(new)
        self._ahead = self._ahead[len(new) :] if expected else ()
        self._looked_ahead = bool(self._ahead)

    def _lost(self) -> GenerationError:
        """Return the error for a matcher that has given up."""
        reason = " ".join(self._matcher.get_error().replace("<non-verbose/>", "").split())
        return GenerationError(
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
