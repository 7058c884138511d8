"""The decode loop: prefill, decode, sample, stop conditions and text, without Python per token.

An ``Engine`` runs the requests of many callers in one llama.cpp context, one sequence each; new
ones join between two steps, and a long prompt is read in chunks while the others go on. It calls
the loaded library through the addresses it is given. One thread at a time may use an engine, and
the model must outlive the call; ``edge.backends.scheduler`` sees to both.
"""

cimport cython
from libc.stdint cimport int32_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from edge._native.decode cimport *
from edge._native.sampling cimport Sampler, accept_token, draw_from

from edge._native import sampling
from edge.errors import InputError
from edge.types import TokenStats


FINISHES = {
    EDGE_STOP: "stop",
    EDGE_LENGTH: "length",
    EDGE_CANCELLED: "cancelled",
    EDGE_FAILED: "failed",
}
CALLS = (
    "llama_decode",
    "llama_get_logits_ith",
    "llama_token_to_piece",
    "llama_memory_seq_rm",
    "llama_memory_seq_cp",
)


def batch_layout():
    """Return the size of ``llama_batch`` and its fields' offsets, in bytes, as compiled here."""
    cdef edge_batch batch
    cdef char *start = <char *>&batch
    return sizeof(edge_batch), (
        <char *>&batch.n_tokens - start,
        <char *>&batch.token - start,
        <char *>&batch.embd - start,
        <char *>&batch.pos - start,
        <char *>&batch.n_seq_id - start,
        <char *>&batch.seq_id - start,
        <char *>&batch.logits - start,
    )


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

    cdef edge_slot slot
    cdef readonly Sampler sampler
    cdef object stops

    def __cinit__(self, Sampler sampler, prompt, Py_ssize_t room, *, stops=(),
                  bint constrained=False, bint streams=False):
        cdef Py_ssize_t count = len(prompt), i
        memset(&self.slot, 0, sizeof(edge_slot))
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
        self.slot.stats = <double *>malloc(room * EDGE_STATS * sizeof(double))
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
        return self.slot.finish != EDGE_RUNNING or (
            self.slot.streams and self.slot.certain > self.slot.taken
        )

    @property
    def problem(self):
        """Why it failed, in words."""
        cdef int why = self.slot.why
        if self.slot.finish != EDGE_FAILED:
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
        return edge_wants_mask(&self.slot) and not self.slot.finish

    @property
    def at_boundary(self):
        """Whether the prompt has been read exactly up to the boundary."""
        return edge_at_boundary(&self.slot)

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
            edge_take(&self.slot, &engine.loop.vocabulary, <int32_t>token, NULL)

    def stats(self):
        """Return one ``TokenStats`` for every generated token; NaN for a forced one."""
        cdef double *found
        cdef Py_ssize_t i
        rows = []
        for i in range(self.slot.n_tokens - self.slot.n_prompt):
            found = self.slot.stats + i * EDGE_STATS
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

    cdef edge_loop loop
    cdef list requests
    cdef int poked

    def __cinit__(self, calls, *, size_t context, size_t memory, size_t vocab, int32_t batch,
                  int32_t chunk, int32_t vocab_size, end_tokens):
        cdef edge_loop *loop = &self.loop
        loop.decode = <edge_decode_call><uintptr_t>calls["llama_decode"]
        loop.logits = <edge_logits_call><uintptr_t>calls["llama_get_logits_ith"]
        loop.remove = <edge_remove_call><uintptr_t>calls["llama_memory_seq_rm"]
        loop.copy = <edge_copy_call><uintptr_t>calls["llama_memory_seq_cp"]
        loop.draw = <edge_draw_call><void *>draw_from
        loop.vocabulary.piece = <edge_piece_call><uintptr_t>calls["llama_token_to_piece"]
        loop.vocabulary.accept = <edge_accept_call><void *>accept_token
        loop.vocabulary.vocab = <void *>vocab
        loop.context, loop.memory = <void *>context, <void *>memory
        loop.chunk = min(chunk, batch)
        self.requests = []
        if not edge_loop_open(loop, batch, vocab_size):
            raise MemoryError
        for token in end_tokens:
            loop.vocabulary.ends[<Py_ssize_t>token] = 1

    def __dealloc__(self):
        edge_loop_close(&self.loop)

    @property
    def steps(self):
        """How many forward passes there have been."""
        return self.loop.steps

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
        if self.loop.count == EDGE_MOST or kept >= request.slot.n_prompt:
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
                request.slot.finish = EDGE_CANCELLED
            if request.slot.finish:
                ended.append((request, request.slot.sequence))
                self.loop.remove(self.loop.memory, request.slot.sequence, -1, -1)
                request.slot.sequence = -1
                self.requests.remove(request)
        self._arrange()
        return ended

    cdef _arrange(self):
        """Keep the requests by sequence: llama.cpp joins neighbouring ones in one pass."""
        cdef Request request
        cdef Py_ssize_t at
        self.requests.sort(key=_sequence_of)
        self.loop.count = <int32_t>len(self.requests)
        for at in range(self.loop.count):
            request = self.requests[at]
            self.loop.slots[at] = &request.slot

    def copy_sequence(self, int32_t source, int32_t target, int32_t kept):
        """Make ``target`` hold the first ``kept`` tokens of ``source``, and nothing else."""
        self.loop.remove(self.loop.memory, target, -1, -1)
        self.loop.copy(self.loop.memory, source, target, -1, -1)
        if kept >= 0:
            self.loop.remove(self.loop.memory, target, kept, -1)

    def run(self, Request until, int steps):
        """Step until ``until`` is ready, or something needs the caller.

        Returns at the latest after ``steps`` steps; also where a request ends, waits for a mask or
        stands at its boundary, or after ``poke``.
        """
        cdef int needed = 0
        with nogil:
            while steps > 0 and not needed:
                needed = edge_loop_step(&self.loop)
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
        cdef int status
        with nogil:
            status = edge_loop_bare(&self.loop, sequence, token, count)
        return status


def _sequence_of(Request request):
    return request.slot.sequence
