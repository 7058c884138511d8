"""Many callers, one model: which requests take part in the next step, and who drives it.

There is no thread of its own. Every caller waits for its own request; one of the waiting callers
leads, that is, it runs the steps for all, until its own request is ready; then another one takes
over. So a single caller pays no change of threads, and a stream that nobody reads holds up nobody.

Guarantees: requests are admitted in the order they came, as sequences come free; a full queue
answers ``Busy`` with a time to wait; a cancelled or abandoned request leaves within one step, also
while it still waits for a sequence; an exception of one caller's callback reaches that caller
alone. The first ``prefix`` tokens of a prompt are kept in a sequence of their own and copied for
later prompts that begin with them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge._native.engine import Engine, Request
from edge.errors import Busy, GenerationError, ModelError

QUEUE_LIMIT = 64
LEAST_PREFIX = 8
_STEPS = 256
_PATIENCE_S = 0.05
_USUAL_S = 0.5

Allowed = Callable[[Sequence[int]], NDArray[np.uint32] | None]
"""From the tokens generated so far to the mask of the next one, or ``None`` for any token."""
Forced = Callable[[Sequence[int]], Sequence[int]]
"""From the tokens generated so far, at least one, to those that must follow, maybe none."""


class Sequences(Protocol):
    """Where the sequences of a context come from; see ``edge.backends.llama.decoder``."""

    def try_take(self) -> int | None:
        """Return a free sequence, or ``None``."""
        ...

    def give(self, sequence: int) -> None:
        """Take a sequence back, its cells freed."""
        ...


class Prefixes(Protocol):
    """Prompts' beginnings that outlive the process; see ``edge.backends.llama.prefixes``."""

    def load(self, tokens: tuple[int, ...], sequence: int) -> bool:
        """Fill an empty sequence; ``False`` where there is no sound snapshot."""
        ...

    def save(self, tokens: tuple[int, ...], sequence: int) -> None:
        """Keep what a sequence holds; failing to is no error."""
        ...


@dataclass(eq=False)
class Ticket:
    """One request on its way.

    Attributes:
        allowed: from the tokens so far to the next mask, or ``None`` for any token.
        forced: from the tokens so far to those that must follow.
        cancel: asked before each step, of whichever request.
        prefix: the beginning of the prompt that later requests share.
        error: what a callback raised.
        gone: it was cancelled before it had a sequence.

    """

    request: Request
    allowed: Allowed | None = None
    forced: Forced | None = None
    cancel: Callable[[], bool] | None = None
    prefix: tuple[int, ...] = ()
    error: BaseException | None = None
    gone: bool = False
    begun: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether there is something for its caller."""
        return self.gone or bool(self.request.ready)


class Scheduler:
    """The requests of one loaded model. Safe to call from several threads.

    Args:
        name: of the model, for errors.
        engine: runs the steps.
        sequences: gives out sequences.
        context_lock: held while the engine runs; the model is not freed meanwhile.
        closed: whether the model was freed.
        spare: sequences that hold prefixes, none for no sharing.
        prefixes: keeps them for the next process.
        queue_limit: requests that may wait for a sequence.
        wait_s: how long one waits for a sequence that others than requests hold.
        clock: monotonic seconds.

    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        sequences: Sequences,
        *,
        context_lock: threading.RLock,
        closed: Callable[[], bool],
        spare: Sequence[int] = (),
        prefixes: Prefixes | None = None,
        queue_limit: int = QUEUE_LIMIT,
        wait_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._engine = engine
        self._sequences = sequences
        self._context_lock = context_lock
        self._closed = closed
        self._queue_limit = queue_limit
        self._wait_s = wait_s
        self._clock = clock
        self._turn = threading.Condition()
        self._led = False
        self._waiting: deque[Ticket] = deque()
        self._active: dict[Request, Ticket] = {}
        self._shared = _Shared(engine, spare, prefixes)
        self._usual_s = _USUAL_S
        self._pid = os.getpid()

    def stream(self, ticket: Ticket) -> Iterator[bytes]:
        """Yield the text's bytes as they become certain; returns when the request has ended.

        Raises:
            Busy: the queue is full, or no sequence came free.
            GenerationError: the engine or the sampler failed on this request.
            ModelError: the model is closed, or was loaded before this process was forked.

        """
        self._enqueue(ticket)
        request = ticket.request
        try:
            while True:
                self._advance(ticket)
                # Before the text: while a piece is out, another leader may end the request.
                ended = ticket.gone or request.finish is not None
                if piece := request.take_text():
                    yield piece
                if ended:
                    break
        finally:
            self._leave(ticket)
        if ticket.error is not None:
            raise ticket.error
        if request.finish == "failed":
            raise GenerationError(f"{self._name} failed on this input: {request.problem}")

    def _enqueue(self, ticket: Ticket) -> None:
        if os.getpid() != self._pid:
            raise ModelError(
                f"{self._name} was loaded before this process was forked.",
                hint="Start the process with the method `spawn` and open the model there.",
            )
        with self._turn:
            if len(self._waiting) >= self._queue_limit:
                raise self._busy()
            ticket.begun = self._clock()
            self._waiting.append(ticket)
        self._engine.poke()

    def _busy(self) -> Busy:
        seconds = self._usual_s * (1 + len(self._waiting) / max(len(self._active), 1))
        return Busy(
            f"{len(self._waiting)} requests wait for {self._name} already.",
            retry_after_s=round(seconds, 3),
        )

    def _advance(self, ticket: Ticket) -> None:
        """Return when the request has ended or has text; lead while nobody else does."""
        late = self._clock() + self._wait_s
        while not ticket.ready:
            with self._turn:
                self._turn.wait_for(lambda: ticket.ready or not self._led)
                if ticket.ready:
                    return
                self._led = True
            try:
                moved = self._lead(ticket)
            finally:
                with self._turn:
                    self._led = False
                    self._turn.notify_all()
            if moved:
                late = self._clock() + self._wait_s
            elif self._clock() > late:
                raise Busy(f"All sequences of {self._name} are taken.", retry_after_s=self._usual_s)
            elif not self._poll_waiting() or not ticket.gone:
                with self._turn:
                    self._turn.wait(_PATIENCE_S)

    def _lead(self, ticket: Ticket) -> bool:
        """Run steps until the own request is ready; ``False`` where nothing could be admitted."""
        request = ticket.request
        with self._context_lock:
            while not ticket.ready:
                if self._closed():
                    raise ModelError(f"{self._name} is closed.", hint="Open it again.")
                self._admit()
                if not self._active:
                    return ticket.ready
                polled = self._prepare()
                before = self._engine.steps
                self._engine.run(request, 1 if polled else _STEPS)
                if self._engine.steps > before:
                    self._shared.settle()
                self._reap()
        return True

    def _admit(self) -> None:
        """Give sequences to those who wait, the first first."""
        while self._waiting and (sequence := self._sequences.try_take()) is not None:
            with self._turn:
                ticket = self._waiting.popleft() if self._waiting else None
            if ticket is None or ticket.request.finish is not None:
                self._sequences.give(sequence)
                continue
            kept = self._shared.begin(ticket, sequence)
            self._engine.admit(ticket.request, sequence, kept)
            self._active[ticket.request] = ticket

    def _prepare(self) -> bool:
        """Bring every request to where the engine can go on; say whether one must be polled."""
        polled = self._poll_waiting()
        for request, ticket in self._active.items():
            try:
                if ticket.cancel is not None:
                    polled = True
                    if ticket.cancel():
                        request.cancel()
                if request.at_boundary:
                    self._shared.keep(ticket)
                if request.wants_mask:
                    self._mask(ticket)
            except BaseException as error:  # noqa: BLE001 - it belongs to the ticket's caller
                ticket.error = error
                request.cancel()
        return polled

    def _poll_waiting(self) -> bool:
        """Let those go who were cancelled while they waited; say whether one could be."""
        if not self._waiting:
            return False
        with self._turn:
            polled = [(each, each.cancel) for each in self._waiting if each.cancel is not None]
        for ticket, cancel in polled:
            try:
                gone = cancel()
            except BaseException as error:  # noqa: BLE001 - it belongs to the ticket's caller
                ticket.error, gone = error, True
            if gone:
                with self._turn:
                    if ticket in self._waiting:
                        self._waiting.remove(ticket)
                        ticket.gone = True
                        self._turn.notify_all()
        return bool(polled)

    def _mask(self, ticket: Ticket) -> None:
        request = ticket.request
        if ticket.forced is not None and request.generated:
            request.force(self._engine, ticket.forced(request.tokens))
            if request.finish is not None:
                return
        mask = ticket.allowed(request.tokens) if ticket.allowed is not None else None
        if mask is None:
            words = (request.sampler.vocab_size + 31) // 32
            mask = np.full(words, 2**32 - 1, dtype=np.uint32)
        request.set_mask(mask)

    def _reap(self) -> None:
        ended = self._engine.reap()
        for request, sequence in ended:
            ticket = self._active.pop(request)
            self._sequences.give(sequence)
            self._usual_s += 0.1 * (self._clock() - ticket.begun - self._usual_s)
        if ended:
            with self._turn:
                self._turn.notify_all()

    def _leave(self, ticket: Ticket) -> None:
        """Take an abandoned request out; one that has ended is out already."""
        if ticket.gone:
            return
        with self._turn:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                return
        if ticket.request.finish is None:
            ticket.request.cancel()
            self._engine.poke()
            with self._context_lock:
                if not self._closed():
                    self._reap()


class _Shared:
    """Prefixes of prompts, each in a sequence of its own; the least recently used one gives way."""

    def __init__(self, engine: Engine, spare: Sequence[int], prefixes: Prefixes | None) -> None:
        self._engine = engine
        self._free = list(spare)
        self._kept: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self._lent: set[int] = set()
        self._prefixes = prefixes

    def settle(self) -> None:
        """Note that a forward pass has been: what was copied before it is in its place."""
        self._lent.clear()

    def begin(self, ticket: Ticket, sequence: int) -> int:
        """Fill a new sequence as far as its prefix is known; return how many tokens it holds."""
        tokens = ticket.prefix
        if len(tokens) < LEAST_PREFIX or not (self._free or self._kept):
            return 0
        if tokens not in self._kept and not self._restore(tokens):
            ticket.request.set_boundary(len(tokens))
            return 0
        self._kept.move_to_end(tokens)
        self._lent.add(self._kept[tokens])
        self._engine.copy_sequence(self._kept[tokens], sequence, len(tokens))
        return len(tokens)

    def keep(self, ticket: Ticket) -> None:
        """Copy what a sequence holds at its boundary, for later requests."""
        tokens, request = ticket.prefix, ticket.request
        request.set_boundary(0)
        if tokens in self._kept:
            return
        target = self._room()
        self._engine.copy_sequence(request.sequence, target, -1)
        self._kept[tokens] = target
        if self._prefixes is not None:
            # From the source: llama.cpp fills the copy only in the next forward pass.
            self._prefixes.save(tokens, request.sequence)

    def _restore(self, tokens: tuple[int, ...]) -> bool:
        # A snapshot is written at once, a copy only in the next forward pass: what others are still
        # to be copied from must not be overwritten.
        oldest = next(iter(self._kept.values()), -1)
        if self._prefixes is None or (not self._free and oldest in self._lent):
            return False
        target = self._room()
        if self._prefixes.load(tokens, target):
            self._kept[tokens] = target
            return True
        self._free.append(target)
        return False

    def _room(self) -> int:
        return self._free.pop() if self._free else self._kept.popitem(last=False)[1]
