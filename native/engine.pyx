"""The decode loop: prefill, decode, sample, stop conditions and text, without Python per token.

An ``Engine`` runs the requests of many callers in one llama.cpp context, one sequence each; new
ones join between two steps, and a long prompt is read in chunks while the others go on. It calls
the loaded library through the addresses it is given. One thread at a time may use an engine, and
the model must outlive the call; ``edge.backends.scheduler`` sees to both.
"""

cimport cython
from libc.math cimport NAN
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from edge._native.sampling cimport Row, Sampler, accept_token, draw_from

from edge._native import sampling
from edge.errors import InputError
from edge.types import TokenStats


cdef struct Batch:
    int32_t n_tokens
    int32_t *token
    float *embd
    int32_t *pos
    int32_t *n_seq_id
    int32_t **seq_id
    int8_t *logits

ctypedef int32_t (*decode_call)(void *, Batch) noexcept nogil
ctypedef float *(*logits_call)(void *, int32_t) noexcept nogil
ctypedef int32_t (*piece_call)(
    const void *, int32_t, char *, int32_t, int32_t, unsigned char
) noexcept nogil
ctypedef unsigned char (*remove_call)(void *, int32_t, int32_t, int32_t) noexcept nogil
ctypedef void (*copy_call)(void *, int32_t, int32_t, int32_t, int32_t) noexcept nogil
ctypedef int64_t (*draw_call)(void *, Row *, double *) noexcept nogil
ctypedef void (*accept_call)(void *, Py_ssize_t) noexcept nogil

cdef draw_call draw = <draw_call><void *>draw_from
cdef accept_call accept = <accept_call><void *>accept_token

cdef enum:
    RUNNING = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    FAILED = 4
    MOST = 256
    STATS = 7
    PIECE = 256

FINISHES = {STOP: "stop", LENGTH: "length", CANCELLED: "cancelled", FAILED: "failed"}
CALLS = (
    "llama_decode",
    "llama_get_logits_ith",
    "llama_token_to_piece",
    "llama_memory_seq_rm",
    "llama_memory_seq_cp",
)


def batch_layout():
    """Return the size of ``llama_batch`` and its fields' offsets, in bytes, as compiled here."""
    cdef Batch batch
    cdef char *start = <char *>&batch
    return sizeof(Batch), (
        <char *>&batch.n_tokens - start,
        <char *>&batch.token - start,
        <char *>&batch.embd - start,
        <char *>&batch.pos - start,
        <char *>&batch.n_seq_id - start,
        <char *>&batch.seq_id - start,
        <char *>&batch.logits - start,
    )


cdef struct Slot:
    void *sampler
    bint statistics
    int32_t sequence      # -1 outside of the engine
    int32_t *tokens       # prompt, then answer
    int32_t n_prompt, n_tokens, kept, room, forced
    int32_t boundary      # stop reading the prompt here once, 0 for nowhere
    double *stats
    char *text
    size_t n_text, text_room, certain, taken
    const char **stops
    size_t *stop_sizes
    size_t n_stops, longest
    uint32_t *mask
    bint constrained, mask_ready, streams
    int32_t fed, row
    int finish, why       # why: a refusal of the sampler, negative, or llama.cpp's status
    int cancel


@cython.final
cdef class Request:
    """One generation, from prompt to text; made by one caller and waited for by it.

    Args:
        sampler: draws its tokens; its history must hold the prompt.
        prompt: token ids, at least one, all in the vocabulary.
        room: the most tokens to generate, at least 1.
        stops: byte strings that end the text and are not part of it.
        constrained: a mask is set before every draw, see ``set_mask``.
        streams: ``Engine.run`` returns as soon as there is new text.

    """

    cdef Slot slot
    cdef readonly Sampler sampler
    cdef object stops

    def __cinit__(self, Sampler sampler, prompt, Py_ssize_t room, *, stops=(),
                  bint constrained=False, bint streams=False):
        cdef Py_ssize_t count = len(prompt), i
        memset(&self.slot, 0, sizeof(Slot))
        if count < 1 or room < 1:
            raise InputError("A request needs a prompt and room for at least one token.")
        self.sampler = sampler
        self.stops = [bytes(stop) for stop in stops]
        self.slot.sampler = <void *>sampler
        self.slot.statistics = sampler.statistics
        self.slot.sequence = -1
        self.slot.row = -1
        self.slot.room = <int32_t>room
        self.slot.constrained = constrained
        self.slot.streams = streams
        self.slot.tokens = <int32_t *>malloc((count + room) * sizeof(int32_t))
        self.slot.stats = <double *>malloc(room * STATS * sizeof(double))
        self.slot.n_stops = len(self.stops)
        self.slot.stops = <const char **>calloc(self.slot.n_stops + 1, sizeof(char *))
        self.slot.stop_sizes = <size_t *>calloc(self.slot.n_stops + 1, sizeof(size_t))
        self.slot.mask = <uint32_t *>malloc((sampler.vocab_size + 31) // 32 * sizeof(uint32_t))
        if not (self.slot.tokens and self.slot.stats and self.slot.stops
                and self.slot.stop_sizes and self.slot.mask):
            raise MemoryError
        for i in range(count):
            self.slot.tokens[i] = prompt[i]
        self.slot.n_prompt = self.slot.n_tokens = <int32_t>count
        for i in range(<Py_ssize_t>self.slot.n_stops):
            self.slot.stops[i] = <const char *>(<bytes>self.stops[i])
            self.slot.stop_sizes[i] = len(<bytes>self.stops[i])
            self.slot.longest = max(self.slot.longest, self.slot.stop_sizes[i])

    def __dealloc__(self):
        free(self.slot.tokens)
        free(self.slot.stats)
        free(self.slot.stops)
        free(self.slot.stop_sizes)
        free(self.slot.mask)
        free(self.slot.text)

    @property
    def finish(self):
        """How it ended: stop, length, cancelled or failed; ``None`` while it runs."""
        return FINISHES.get(self.slot.finish)

    @property
    def ready(self):
        """Whether it has ended or, where it streams, has text to take."""
        return self.slot.finish != RUNNING or (
            self.slot.streams and self.slot.certain > self.slot.taken
        )

    @property
    def problem(self):
        """Why it failed, in words."""
        cdef int why = self.slot.why
        if self.slot.finish != FAILED:
            return ""
        return sampling.REFUSALS[-why - 1] if -4 < why < 0 else f"llama_decode gave code {why}"

    @property
    def tokens(self):
        """The generated token ids, the one that ended it included."""
        return tuple([
            self.slot.tokens[i] for i in range(self.slot.n_prompt, self.slot.n_tokens)
        ])

    @property
    def generated(self):
        """How many tokens were generated."""
        return self.slot.n_tokens - self.slot.n_prompt

    @property
    def wants_mask(self):
        """Whether the next draw waits for ``set_mask``."""
        return self.slot.constrained and not self.slot.mask_ready and not self.slot.finish

    @property
    def at_boundary(self):
        """Whether the prompt has been read exactly up to the boundary."""
        return self.slot.boundary > 0 and self.slot.kept == self.slot.boundary

    @property
    def kept(self):
        """How many tokens the sequence holds."""
        return self.slot.kept

    @property
    def sequence(self):
        """The number of its sequence; -1 outside of the engine."""
        return self.slot.sequence

    def cancel(self):
        """Ask for an end before the next step; safe from any thread."""
        self.slot.cancel = 1

    def set_boundary(self, int32_t tokens):
        """Let ``run`` return once the first ``tokens`` tokens have been read; 0 clears it."""
        self.slot.boundary = tokens if tokens < self.slot.n_prompt else 0

    def set_mask(self, const uint32_t[::1] mask):
        """Allow the tokens of a mask, uint32 ``[ceil(vocab_size / 32)]``, in the next draw."""
        cdef Py_ssize_t words = (self.sampler.vocab_size + 31) // 32
        if mask.shape[0] != words:
            raise InputError(f"The mask has {mask.shape[0]} words, not {words}.")
        memcpy(self.slot.mask, &mask[0], words * sizeof(uint32_t))
        self.slot.mask_ready = True

    def force(self, Engine engine, tokens):
        """Append tokens that the constraint leaves no choice about; one pass reads them all."""
        for token in tokens:
            if self.slot.finish:
                return
            _take(engine, &self.slot, <int32_t>token, NULL)

    def stats(self):
        """Return one ``TokenStats`` for every generated token; NaN for a forced one."""
        cdef double *found
        cdef Py_ssize_t i
        rows = []
        for i in range(self.slot.n_tokens - self.slot.n_prompt):
            found = self.slot.stats + i * STATS
            rows.append(TokenStats(
                self.slot.tokens[self.slot.n_prompt + i],
                found[0], found[1], found[2], found[3], found[4], found[5],
                <Py_ssize_t>found[6],
            ))
        return tuple(rows)

    def take_text(self):
        """Return the bytes that are certain and have not been taken yet."""
        cdef size_t end = self.slot.n_text if self.slot.finish else self.slot.certain
        cdef size_t start = self.slot.taken
        if end <= start:
            return b""
        self.slot.taken = end
        return (<char *>self.slot.text)[start:end]


@cython.final
cdef class Engine:
    """The active requests of one context.

    Args:
        calls: addresses of the functions in ``CALLS``.
        context, memory, vocab: addresses of llama.cpp's objects.
        batch: tokens of one forward pass.
        chunk: prompt tokens of one pass while others generate.
        vocab_size: entries of a row of logits.
        end_tokens: tokens that end a generation.

    """

    cdef decode_call decode
    cdef logits_call logits
    cdef piece_call piece
    cdef remove_call remove
    cdef copy_call copy
    cdef void *context
    cdef void *memory
    cdef void *vocab
    cdef int32_t room, chunk, vocab_size
    cdef uint8_t *ends
    cdef Batch batch
    cdef int32_t *single
    cdef Slot *slots[MOST]
    cdef int32_t count, turn
    cdef list requests
    cdef int poked
    cdef readonly Py_ssize_t steps

    def __cinit__(self, calls, *, size_t context, size_t memory, size_t vocab, int32_t batch,
                  int32_t chunk, int32_t vocab_size, end_tokens):
        cdef int32_t i
        self.decode = <decode_call><uintptr_t>calls["llama_decode"]
        self.logits = <logits_call><uintptr_t>calls["llama_get_logits_ith"]
        self.piece = <piece_call><uintptr_t>calls["llama_token_to_piece"]
        self.remove = <remove_call><uintptr_t>calls["llama_memory_seq_rm"]
        self.copy = <copy_call><uintptr_t>calls["llama_memory_seq_cp"]
        self.context, self.memory, self.vocab = <void *>context, <void *>memory, <void *>vocab
        self.room, self.chunk, self.vocab_size = batch, min(chunk, batch), vocab_size
        self.requests = []
        memset(&self.batch, 0, sizeof(Batch))
        self.ends = <uint8_t *>calloc(vocab_size, 1)
        self.batch.token = <int32_t *>calloc(batch, sizeof(int32_t))
        self.batch.pos = <int32_t *>calloc(batch, sizeof(int32_t))
        self.batch.n_seq_id = <int32_t *>calloc(batch, sizeof(int32_t))
        self.batch.seq_id = <int32_t **>calloc(batch + 1, sizeof(int32_t *))
        self.batch.logits = <int8_t *>calloc(batch, 1)
        self.single = <int32_t *>calloc(batch, sizeof(int32_t))
        if not (self.ends and self.batch.token and self.batch.pos and self.batch.n_seq_id
                and self.batch.seq_id and self.batch.logits and self.single):
            raise MemoryError
        for i in range(batch):
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i] = &self.single[i]
        for token in end_tokens:
            self.ends[<Py_ssize_t>token] = 1

    def __dealloc__(self):
        free(self.ends)
        free(self.batch.token)
        free(self.batch.pos)
        free(self.batch.n_seq_id)
        free(self.batch.seq_id)
        free(self.batch.logits)
        free(self.single)

    @property
    def active(self):
        """The requests that take part in the next step."""
        return tuple(self.requests)

    def poke(self):
        """Let a running ``run`` return after its step; safe from any thread."""
        self.poked = 1

    def admit(self, Request request, int32_t sequence, int32_t kept):
        """Let a request take part.

        Args:
            request: not yet part of an engine.
            sequence: an unused sequence of the context.
            kept: how many tokens of the prompt the sequence holds already.

        Raises:
            InputError: the engine is full, or ``kept`` is not below the prompt's length.

        """
        if self.count == MOST or kept >= request.slot.n_prompt:
            raise InputError("The engine cannot admit this request.")
        request.slot.sequence = sequence
        request.slot.kept = kept
        self.requests.append(request)
        self._arrange()

    def reap(self):
        """Take the ended requests out, free their cells, and return (request, sequence) pairs."""
        cdef Request request
        ended = []
        for request in tuple(self.requests):
            if request.slot.cancel and not request.slot.finish:
                request.slot.finish = CANCELLED
            if request.slot.finish:
                ended.append((request, request.slot.sequence))
                self.remove(self.memory, request.slot.sequence, -1, -1)
                request.slot.sequence = -1
                self.requests.remove(request)
        self._arrange()
        return ended

    cdef _arrange(self):
        """Keep the requests by sequence: llama.cpp joins neighbouring ones in one pass."""
        cdef Request request
        cdef Py_ssize_t at
        self.requests.sort(key=_sequence_of)
        self.count = <int32_t>len(self.requests)
        for at in range(self.count):
            request = self.requests[at]
            self.slots[at] = &request.slot

    def copy_sequence(self, int32_t source, int32_t target, int32_t kept):
        """Make ``target`` hold the first ``kept`` tokens of ``source``, and nothing else."""
        self.remove(self.memory, target, -1, -1)
        self.copy(self.memory, source, target, -1, -1)
        if kept >= 0:
            self.remove(self.memory, target, kept, -1)

    def run(self, Request until, int steps):
        """Step until ``until`` is ready, or something needs the caller.

        Returns at the latest after ``steps`` steps; also where a request ends, waits for a mask or
        stands at its boundary, or after ``poke``.
        """
        cdef int needed = 0
        with nogil:
            while steps > 0 and not needed:
                needed = self._step()
                steps -= 1
                if until.slot.streams and until.slot.certain > until.slot.taken:
                    break
                if self.poked:
                    break
        self.poked = 0

    def decode_only(self, int32_t sequence, int32_t token, int32_t count):
        """Decode one token ``count`` times and draw nothing: what a step costs without the rest.

        Returns:
            the last status of ``llama_decode``, 0 for success.

        """
        cdef Slot slot
        cdef int32_t i
        cdef int status = 0
        memset(&slot, 0, sizeof(Slot))
        slot.sequence, slot.tokens, slot.n_tokens = sequence, &token, 1
        with nogil:
            for i in range(count):
                self.batch.n_tokens = self._feed(&slot, 0, 1)
                self.batch.pos[0] = i
                status = self.decode(self.context, self.batch)
                if status != 0 or self.logits(self.context, 0) == NULL:
                    break
            self.remove(self.memory, sequence, -1, -1)
        return status

    cdef int _step(self) noexcept nogil:
        """One forward pass for all; returns whether a request needs the caller."""
        cdef int32_t i
        cdef int needed = 0
        if self.count == 0 or self._waiting():
            return 1
        if self._pass(-1) != 0:
            for i in range(self.count):
                self.slots[i].why = self._pass(i)
                if self.slots[i].why != 0 and not self.slots[i].finish:
                    self.slots[i].finish = FAILED
        self.steps += 1
        self.turn += 1
        for i in range(self.count):
            needed |= self.slots[i].finish
            needed |= self.slots[i].boundary > 0 and self.slots[i].kept == self.slots[i].boundary
        return needed or self._waiting()

    cdef int _waiting(self) noexcept nogil:
        """Whether a request has been cancelled or waits for its mask."""
        cdef int32_t i
        for i in range(self.count):
            if self.slots[i].cancel or (
                self.slots[i].constrained and not self.slots[i].mask_ready
            ):
                return 1
        return 0

    cdef int _pass(self, int32_t only) noexcept nogil:
        """Fill a batch, decode it, draw where a row came out; on failure all is as before."""
        cdef int32_t i, n
        cdef int status
        cdef Slot *slot
        n = self._fill(only)
        if n == 0:
            return 0
        self.batch.n_tokens = n
        status = self.decode(self.context, self.batch)
        for i in range(self.count):
            slot = self.slots[i]
            if slot.fed == 0:
                continue
            if status != 0:
                self.remove(self.memory, slot.sequence, slot.kept, -1)
            else:
                slot.kept += slot.fed
                if slot.row >= 0:
                    self._draw(slot)
            slot.fed = 0
        return status

    cdef int32_t _fill(self, int32_t only) noexcept nogil:
        """First every token that continues an answer, then prompts, in turns, as far as they go."""
        cdef int32_t n = 0, i, room
        cdef Slot *slot
        for i in range(self.count):
            slot = self.slots[i]
            slot.fed = 0
            slot.row = -1
            if (only < 0 or only == i) and not slot.finish and slot.n_tokens - slot.kept == 1:
                n = self._feed(slot, n, 1)
        room = self.room if n == 0 else min(self.room, n + self.chunk)
        for i in range(self.count):
            slot = self.slots[(i + self.turn) % self.count]
            if only >= 0:
                slot = self.slots[only]
            if slot.fed == 0 and not slot.finish and n < room:
                n = self._feed(slot, n, room - n)
        return n

    cdef int32_t _feed(self, Slot *slot, int32_t n, int32_t most) noexcept nogil:
        cdef int32_t count = min(most, slot.n_tokens - slot.kept), i
        if slot.boundary > slot.kept:
            count = min(count, slot.boundary - slot.kept)
        for i in range(count):
            self.batch.token[n + i] = slot.tokens[slot.kept + i]
            self.batch.pos[n + i] = slot.kept + i
            self.batch.logits[n + i] = 0
            self.single[n + i] = slot.sequence
        slot.fed = count
        if count > 0 and slot.kept + count == slot.n_tokens:
            slot.row = n + count - 1
            self.batch.logits[slot.row] = 1
        return n + count

    cdef void _draw(self, Slot *slot) noexcept nogil:
        cdef Row row
        cdef int64_t token
        cdef double stats[STATS]
        row.x = self.logits(self.context, slot.row)
        row.allowed = slot.mask if slot.constrained else NULL
        if row.x == NULL:
            slot.finish, slot.why = FAILED, -100
            return
        token = draw(slot.sampler, &row, stats)
        if token < 0:
            slot.finish, slot.why = FAILED, <int>token
            return
        slot.mask_ready = False
        _take(self, slot, <int32_t>token, stats)


def _sequence_of(Request request):
    return request.slot.sequence


cdef void _take(Engine engine, Slot *slot, int32_t token, double *stats) noexcept nogil:
    """Add a token to the answer and see whether it ends with it."""
    cdef char piece[PIECE]
    cdef int32_t size, at = slot.n_tokens - slot.n_prompt, i
    if at >= slot.room:
        slot.finish = LENGTH
        return
    slot.tokens[slot.n_tokens] = token
    slot.n_tokens += 1
    for i in range(STATS):
        slot.stats[at * STATS + i] = NAN if stats == NULL or not slot.statistics else stats[i]
    if stats == NULL or not slot.statistics:
        slot.stats[at * STATS + 5] = 1.0
        slot.stats[at * STATS + 6] = 0.0
    accept(slot.sampler, token)
    if engine.ends[token]:
        slot.finish = STOP
        slot.certain = slot.n_text
        return
    size = engine.piece(engine.vocab, token, piece, PIECE, 0, 0)
    if size < 0:
        size = 0
    if not _append(slot, piece, size):
        slot.finish, slot.why = FAILED, -101
    elif _stopped(slot, <size_t>size):
        slot.finish = STOP
    elif at + 1 >= slot.room:
        slot.finish = LENGTH
        slot.certain = slot.n_text
    else:
        slot.certain = slot.n_text - _open(slot)


cdef bint _append(Slot *slot, const char *piece, size_t size) noexcept nogil:
    cdef char *grown
    if slot.n_text + size > slot.text_room:
        grown = <char *>realloc(slot.text, 2 * (slot.text_room + size) + 64)
        if grown == NULL:
            return False
        slot.text = grown
        slot.text_room = 2 * (slot.text_room + size) + 64
    if size:
        memcpy(slot.text + slot.n_text, piece, size)
    slot.n_text += size
    return True


cdef bint _stopped(Slot *slot, size_t added) noexcept nogil:
    """Cut the text before the stop string that is complete first; say whether there is one."""
    cdef size_t i, size, at, start, best_end = <size_t>-1, best = 0
    for i in range(slot.n_stops):
        size = slot.stop_sizes[i]
        if size > slot.n_text:
            continue
        start = slot.n_text - added
        start = start - size + 1 if start >= size else 0
        for at in range(start, slot.n_text - size + 1):
            if memcmp(slot.text + at, slot.stops[i], size) == 0:
                if at + size < best_end or (at + size == best_end and at < best):
                    best_end, best = at + size, at
                break
    if best_end == <size_t>-1:
        return False
    slot.n_text = slot.certain = best
    return True


cdef size_t _open(Slot *slot) noexcept nogil:
    """How many of the last bytes may yet become a stop string, or are half a character."""
    cdef size_t length, i, most = min(slot.longest - 1 if slot.longest else 0, slot.n_text)
    cdef size_t held = 0
    cdef const char *end = slot.text + slot.n_text
    length = most
    while length > 0 and held == 0:
        for i in range(slot.n_stops):
            if slot.stop_sizes[i] > length and memcmp(end - length, slot.stops[i], length) == 0:
                held = length
                break
        length -= 1
    return max(held, _half(slot.text, slot.n_text))


cdef size_t _half(const char *text, size_t size) noexcept nogil:
    """The bytes of a last UTF-8 character that is not whole yet, 0 to 3."""
    cdef size_t back
    cdef uint8_t byte
    for back in range(1, min(<size_t>3, size) + 1):
        byte = <uint8_t>text[size - back]
        if byte >= 0xF0:
            return back if back < 4 else 0
        if byte >= 0xE0:
            return back if back < 3 else 0
        if byte >= 0xC0:
            return back if back < 2 else 0
        if byte < 0x80:
            return 0
    return 0
