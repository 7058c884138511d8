"""The token loop: a prompt's tokens in, text out, piece by piece. One loop for every engine.

Guarantees: no piece holds a broken character, whatever tokens split it; the pieces joined are the
final text; a stop string never shows, also where it spans tokens, and where it ends does not
depend on how tokens cut the text; the sequence is given back however the loop ends. Knows nothing
of tasks, prompts' wording or judging.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge._native.sampling import Sampler
from edge.backends.base import Decoder, DecoderSequence
from edge.errors import InputError
from edge.types import SamplingParams, TokenStats, Usage

Finish = Literal["stop", "length", "cancelled"]
Allowed = Callable[[Sequence[int]], NDArray[np.uint32] | None]
"""From the tokens generated so far to the mask of the next one, or ``None`` for any token."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished generation.

    Attributes:
        text: all characters, without the stop string; the bytes of a last character that was cut
            off are left out.
        tokens: every generated token, the one that ended it included.
        stats: one entry per token, in order.
        finish: ``stop`` for an end token or a stop string, ``length`` for ``max_tokens`` or a full
            context, ``cancelled`` where ``cancel`` said so.
        usage: tokens of the prompt and tokens generated.

    """

    text: str
    tokens: tuple[int, ...]
    stats: tuple[TokenStats, ...]
    finish: Finish
    usage: Usage


def generate(
    decoder: Decoder,
    prompt_tokens: Sequence[int],
    *,
    params: SamplingParams,
    max_tokens: int,
    stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    allowed: Allowed | None = None,
) -> Generation:
    """Generate to the end.

    Arguments and errors are those of ``stream``; ``on_text`` is called with each piece of text as
    soon as it is certain.
    """
    steps = stream(
        decoder,
        prompt_tokens,
        params=params,
        max_tokens=max_tokens,
        stop=stop,
        cancel=cancel,
        allowed=allowed,
    )
    for step in steps:
        if isinstance(step, Generation):
            return step
        if on_text is not None:
            on_text(step)
    raise AssertionError("a stream ends with its Generation")  # pragma: no cover


def stream(
    decoder: Decoder,
    prompt_tokens: Sequence[int],
    *,
    params: SamplingParams,
    max_tokens: int,
    stop: Sequence[str] = (),
    cancel: Callable[[], bool] | None = None,
    allowed: Allowed | None = None,
) -> Iterator[str | Generation]:
    """Yield pieces of text as they become certain and, last, the ``Generation``.

    Args:
        decoder: the model; one sequence of it is held until the iterator ends or is closed.
        prompt_tokens: at least one token; they count for the penalties.
        params: how tokens are drawn.
        max_tokens: >= 1, the most tokens generated.
        stop: strings that end the text and are not part of it.
        cancel: asked before every forward pass.
        allowed: gives the mask of the next token, uint32 ``[ceil(vocab_size / 32)]``, where bit
            ``i % 32`` of word ``i // 32`` allows token ``i``.

    Raises:
        InputError: the prompt is empty or does not fit the context, or an argument is wrong.
        GenerationError: the engine failed.

    """
    _check(decoder, prompt_tokens, max_tokens, stop)
    run = _Run(
        decoder, prompt_tokens, params=params, max_tokens=max_tokens, stop=stop, allowed=allowed
    )
    return _steps(run, cancel)


def _check(
    decoder: Decoder, prompt_tokens: Sequence[int], max_tokens: int, stop: Sequence[str]
) -> None:
    count, limit = len(prompt_tokens), decoder.info.context
    if count == 0:
        raise InputError("The prompt has no tokens.", hint="Give at least one token.")
    if count >= limit:
        raise InputError(
            f"The prompt has {count} tokens; the context of {decoder.info.name} holds {limit}, "
            "the answer included.",
            hint="Shorten the text.",
        )
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens} but must be at least 1.")
    if not all(stop):
        raise InputError("A stop string is empty.")


class _Run:
    """The state of one generation."""

    def __init__(
        self,
        decoder: Decoder,
        prompt_tokens: Sequence[int],
        *,
        params: SamplingParams,
        max_tokens: int,
        stop: Sequence[str],
        allowed: Allowed | None,
    ) -> None:
        self.decoder = decoder
        self.prompt = list(prompt_tokens)
        self.room = min(max_tokens, decoder.info.context - len(self.prompt))
        self.sampler = Sampler(params, decoder.info.vocab_size)
        self.sampler.accept_all(self.prompt)
        self.allowed = allowed
        self.text = _Text(tuple(stop))
        self.tokens: list[int] = []
        self.stats: list[TokenStats] = []

    def sample(self, logits: NDArray[np.float32]) -> int:
        """Draw the next token and remember it."""
        mask = None if self.allowed is None else self.allowed(self.tokens)
        stats = self.sampler.sample(logits, allowed=mask)
        self.sampler.accept(stats.token)
        self.tokens.append(stats.token)
        self.stats.append(stats)
        return stats.token

    def take(self, token: int) -> Finish | None:
        """Add a token's characters and say whether the generation ends with it."""
        if token in self.decoder.end_tokens:
            return "stop"
        if self.text.add(self.decoder.piece(token)):
            return "stop"
        return "length" if len(self.tokens) >= self.room else None

    def result(self, finish: Finish) -> Generation:
        """Return what was generated."""
        return Generation(
            text="".join(self.text.released),
            tokens=tuple(self.tokens),
            stats=tuple(self.stats),
            finish=finish,
            usage=Usage(len(self.prompt), len(self.tokens)),
        )


def _steps(run: _Run, cancel: Callable[[], bool] | None) -> Iterator[str | Generation]:
    sequence = run.decoder.sequence()
    try:
        finish = yield from _tokens(run, sequence, cancel)
    finally:
        sequence.close()
    if piece := run.text.release(last=True):
        yield piece
    yield run.result(finish)


def _tokens(
    run: _Run, sequence: DecoderSequence, cancel: Callable[[], bool] | None
) -> Generator[str, None, Finish]:
    ahead: Sequence[int] = run.prompt
    while True:
        if cancel is not None and cancel():
            return "cancelled"
        token = run.sample(sequence.forward(ahead))
        finish = run.take(token)
        if finish is not None:
            return finish
        if piece := run.text.release():
            yield piece
        ahead = (token,)


@dataclass
class _Text:
    """Bytes to characters, holding back what may yet become a stop string."""

    stop: tuple[str, ...]
    pending: str = ""
    released: list[str] = field(default_factory=list)
    stopped: bool = False

    def __post_init__(self) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, piece: bytes) -> bool:
        """Take a token's bytes; return whether a stop string is now complete."""
        self.pending += self._characters.decode(piece)
        ends = [
            (start + len(stop), start)
            for stop in self.stop
            if (start := self.pending.find(stop)) >= 0
        ]
        if ends:
            self.pending = self.pending[: min(ends)[1]]
            self.stopped = True
        return self.stopped

    def release(self, *, last: bool = False) -> str:
        """Return the characters that are certain; all of them where nothing can follow."""
        held = 0 if last or self.stopped else self._may_be_stop()
        cut = len(self.pending) - held
        piece, self.pending = self.pending[:cut], self.pending[cut:]
        if piece:
            self.released.append(piece)
        return piece

    def _may_be_stop(self) -> int:
        """Return the length of the longest end of ``pending`` that begins a stop string."""
        longest = max((len(stop) for stop in self.stop), default=0) - 1
        for length in range(min(longest, len(self.pending)), 0, -1):
            if any(stop.startswith(self.pending[-length:]) for stop in self.stop):
                return length
        return 0
