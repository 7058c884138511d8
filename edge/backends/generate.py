"""The token loop: a prompt's tokens in, text out, piece by piece.

A decoder with a scheduler runs it natively, for many callers at once; the loop in Python, with the
same results, serves every other engine.

Guarantees: no piece holds a broken character, whatever tokens split it; the pieces joined are the
final text; a stop string never shows, also where it spans tokens, and where it ends does not
depend on how tokens cut the text; the sequence is given back however the loop ends. Knows nothing
of tasks, prompts' wording or judging.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Required, TypedDict, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from edge._native.engine import Request
from edge._native.sampling import Sampler
from edge.backends.base import Decoder, DecoderSequence
from edge.backends.scheduler import Allowed, Forced, Scheduler, Ticket
from edge.errors import InputError
from edge.types import SamplingParams, TokenStats, Usage

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished generation.

    Attributes:
        text: all characters, without the stop string; the bytes of a last character that was cut
            off are left out.
        tokens: every generated token, the one that ended it included.
        stats: one entry per token, in order; that of a forced token, which no row was read for, has
            no numbers (``logprob`` is NaN).
        finish: ``stop`` for an end token or a stop string, ``length`` for ``max_tokens`` or a full
            context, ``cancelled`` where ``cancel`` said so.
        usage: tokens of the prompt and tokens generated.

    """

    text: str
    tokens: tuple[int, ...]
    stats: tuple[TokenStats, ...]
    finish: Finish
    usage: Usage


class Options(TypedDict, total=False):
    """What ``generate`` and ``stream`` take besides the prompt.

    Attributes:
        params: how tokens are drawn.
        max_tokens: >= 1, the most tokens generated.
        stop: strings that end the text and are not part of it; none by default.
        cancel: asked before every forward pass.
        allowed: gives the mask of the next token, uint32 ``[ceil(vocab_size / 32)]``, where bit
            ``i % 32`` of word ``i // 32`` allows token ``i``.
        forced: gives tokens that must follow once the first one is drawn; the next forward pass
            takes in all of them.
        shared: how many of the first prompt tokens other prompts begin with too, 0 by default; a
            decoder with a scheduler keeps what it computed for them.
        statistics: read log-probability, entropy and the rest off every row, which is the default;
            ``stats`` is empty without it.

    """

    params: Required[SamplingParams]
    max_tokens: Required[int]
    stop: Sequence[str]
    cancel: Callable[[], bool] | None
    allowed: Allowed | None
    forced: Forced | None
    shared: int
    statistics: bool


def generate(
    decoder: Decoder,
    prompt_tokens: Sequence[int],
    *,
    on_text: Callable[[str], None] | None = None,
    **options: Unpack[Options],
) -> Generation:
    """Generate to the end.

    Arguments and errors are those of ``stream``; ``on_text`` is called with each piece of text as
    soon as it is certain.
    """
    run = _Run(decoder, prompt_tokens, **options)
    for step in _start(run, streams=on_text is not None):
        if isinstance(step, Generation):
            return step
        if on_text is not None:
            on_text(step)
    raise AssertionError("a stream ends with its Generation")  # pragma: no cover


def stream(
    decoder: Decoder, prompt_tokens: Sequence[int], **options: Unpack[Options]
) -> Iterator[str | Generation]:
    """Yield pieces of text as they become certain and, last, the ``Generation``.

    Args:
        decoder: the model; one sequence of it is held until the iterator ends or is closed.
        prompt_tokens: at least one token; they count for the penalties.
        options: ``params``, ``max_tokens`` and what else ``Options`` names.

    Raises:
        InputError: the prompt is empty or does not fit the context, or an argument is wrong.
        Busy: too many requests wait for the model already.
        GenerationError: the engine failed.

    """
    return _start(_Run(decoder, prompt_tokens, **options), streams=True)


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
    """The state of one generation; its arguments are those of ``stream``."""

    def __init__(
        self,
        decoder: Decoder,
        prompt_tokens: Sequence[int],
        *,
        params: SamplingParams,
        max_tokens: int,
        stop: Sequence[str] = (),
        cancel: Callable[[], bool] | None = None,
        allowed: Allowed | None = None,
        forced: Forced | None = None,
        shared: int = 0,
        statistics: bool = True,
    ) -> None:
        _check(decoder, prompt_tokens, max_tokens, stop)
        self.decoder = decoder
        self.prompt = list(prompt_tokens)
        self.room = min(max_tokens, decoder.info.context - len(self.prompt))
        self.sampler = Sampler(params, decoder.info.vocab_size, statistics=statistics)
        self.sampler.accept_all(self.prompt)
        self.cancel = cancel
        self.allowed = allowed
        self.forced = forced
        self.shared = shared
        self.text = _Text(tuple(stop))
        self.tokens: list[int] = []
        self.stats: list[TokenStats] = []

    def step(self, logits: NDArray[np.float32]) -> tuple[list[int], Finish | None]:
        """Draw the next token and add those forced after it; say whether that is the end."""
        mask = None if self.allowed is None else self.allowed(self.tokens)
        drawn = self.sampler.sample(logits, allowed=mask)
        new, finish = [drawn.token], self.take(drawn)
        if self.forced is None or finish is not None:
            return new, finish
        for token in self.forced(tuple(self.tokens)):
            new.append(token)
            finish = self.take(TokenStats(token, math.nan, math.nan, math.nan))
            if finish is not None:
                break
        return new, finish

    def take(self, stats: TokenStats) -> Finish | None:
        """Remember a token, add its characters, say whether the generation ends with it."""
        self.sampler.accept(stats.token)
        self.tokens.append(stats.token)
        self.stats.append(stats)
        if stats.token in self.decoder.end_tokens:
            return "stop"
        if self.text.add(self.decoder.piece(stats.token)):
            return "stop"
        return "length" if len(self.tokens) >= self.room else None

    def result(self, finish: Finish) -> Generation:
        """Return what was generated."""
        return Generation(
            text="".join(self.text.released),
            tokens=tuple(self.tokens),
            stats=tuple(self.stats) if self.sampler.statistics else (),
            finish=finish,
            usage=Usage(len(self.prompt), len(self.tokens)),
        )


def _start(run: _Run, *, streams: bool) -> Iterator[str | Generation]:
    if run.decoder.scheduler is None:
        return _steps(run)
    return _native(run.decoder.scheduler, run, streams=streams)


def _native(scheduler: Scheduler, run: _Run, *, streams: bool) -> Iterator[str | Generation]:
    """Let the scheduler run the steps; only bytes become characters here."""
    request = Request(
        run.sampler,
        run.prompt,
        run.room,
        stops=[stop.encode() for stop in run.text.stop],
        constrained=run.allowed is not None,
        streams=streams,
    )
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    ticket = Ticket(
        request,
        allowed=run.allowed,
        forced=run.forced,
        cancel=run.cancel,
        prefix=tuple(run.prompt[: run.shared]),
    )
    released = []
    for piece in scheduler.stream(ticket):
        if text := characters.decode(piece):
            released.append(text)
            yield text
    yield Generation(
        text="".join(released),
        tokens=request.tokens,
        stats=request.stats() if run.sampler.statistics else (),
        finish="cancelled" if ticket.gone else cast("Finish", request.finish),
        usage=Usage(len(run.prompt), request.generated),
    )


def _steps(run: _Run) -> Iterator[str | Generation]:
    sequence = run.decoder.sequence()
    try:
        finish = yield from _tokens(run, sequence)
    finally:
        sequence.close()
    if piece := run.text.release(last=True):
        yield piece
    yield run.result(finish)


def _tokens(run: _Run, sequence: DecoderSequence) -> Generator[str, None, Finish]:
    ahead: Sequence[int] = run.prompt
    while True:
        if run.cancel is not None and run.cancel():
            return "cancelled"
        ahead, finish = run.step(sequence.forward(ahead))
        if finish is not None:
            return finish
        if piece := run.text.release():
            yield piece


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
