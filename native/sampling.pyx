"""The token sampler: statistics of the unmasked row and one draw, without Python per entry.

The specification is ``edge.sampling.reference``; one test body holds the two together.
"""

cimport cython
from libc.math cimport INFINITY, exp, isfinite, log
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from edge.errors import GenerationError, InputError
from edge.types import TokenStats


cdef extern from "row.h" nogil:
    int EDGE_ROW_OK
    int EDGE_ROW_NAN_OR_INF

    ctypedef struct edge_row:
        float best
        float second
        int32_t best_at
        double log_sum
        double entropy

    ctypedef struct edge_candidate:
        float logit
        int32_t token

    int edge_row_max(const float *x, size_t n, edge_row *out)
    int edge_row_stats(const float *x, size_t n, edge_row *out)
    void edge_row_mask(float *x, size_t n, const uint32_t *allowed)
    size_t edge_top_k(const float *x, size_t n, size_t k, edge_candidate *out)
    size_t edge_above(const float *x, size_t n, float floor, edge_candidate *out)
    int edge_compare(const void *a, const void *b)


cdef extern from "stdlib.h" nogil:
    void qsort(void *base, size_t count, size_t size, int (*compare)(const void *, const void *))


cdef double MAX_PENALTY_WINDOW = 1 << 24


cdef inline uint64_t rotate(uint64_t x, int by) noexcept nogil:
    return (x << by) | (x >> (64 - by))


@cython.final
cdef class Sampler:
    """Draws tokens from rows of logits; one per generation, not shared between threads.

    Args:
        params: see ``edge.types.SamplingParams``.
        vocab_size: entries of a row, 2 to 2**31 - 1.

    Raises:
        InputError: the vocabulary is too small.

    """

    cdef readonly object params
    cdef readonly Py_ssize_t vocab_size
    cdef float *scratch
    cdef edge_candidate *candidates
    cdef int32_t *counts
    cdef int32_t *ring
    cdef Py_ssize_t ring_size, ring_next, ring_used
    cdef uint64_t state[4]
    cdef double temperature, top_p, min_p, repetition, frequency, presence
    cdef Py_ssize_t top_k
    cdef bint penalised

    def __cinit__(self, params, Py_ssize_t vocab_size):
        if vocab_size < 2 or vocab_size > 2147483647:
            raise InputError(f"A vocabulary needs 2 to 2**31 - 1 tokens, not {vocab_size}.")
        self.params = params
        self.vocab_size = vocab_size
        self.temperature = params.temperature
        self.top_k = min(params.top_k, vocab_size)
        self.top_p = params.top_p
        self.min_p = params.min_p
        self.repetition = params.repetition_penalty
        self.frequency = params.frequency_penalty
        self.presence = params.presence_penalty
        self.ring_size = params.penalty_last_n
        if self.ring_size > MAX_PENALTY_WINDOW:
            raise InputError(f"penalty_last_n is {self.ring_size}; it may be at most 2**24.")
        self.penalised = self.ring_size > 0 and (
            self.repetition != 1.0 or self.frequency != 0.0 or self.presence != 0.0
        )
        self.scratch = <float *>malloc(vocab_size * sizeof(float))
        self.candidates = <edge_candidate *>malloc(vocab_size * sizeof(edge_candidate))
        self.counts = <int32_t *>calloc(vocab_size, sizeof(int32_t))
        self.ring = <int32_t *>malloc((self.ring_size + 1) * sizeof(int32_t))
        if not (self.scratch and self.candidates and self.counts and self.ring):
            raise MemoryError
        self.reset()

    def __dealloc__(self):
        free(self.scratch)
        free(self.candidates)
        free(self.counts)
        free(self.ring)

    def reset(self):
        """Forget the history and put the random state back to the seed."""
        cdef uint64_t z, seed = self.params.seed
        cdef int i
        self.ring_next = self.ring_used = 0
        memset(self.counts, 0, self.vocab_size * sizeof(int32_t))
        for i in range(4):
            seed += 0x9E3779B97F4A7C15U
            z = seed
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U
            z = (z ^ (z >> 27)) * 0x94D049BB133111EBU
            self.state[i] = z ^ (z >> 31)

    def accept(self, Py_ssize_t token):
        """Add one token to the history that the penalties look at.

        Raises:
            InputError: the token is not in the vocabulary.

        """
        if token < 0 or token >= self.vocab_size:
            raise InputError(f"Token {token} is outside the vocabulary of {self.vocab_size}.")
        if not self.penalised:
            return
        if self.ring_used == self.ring_size:
            self.counts[self.ring[self.ring_next]] -= 1
        else:
            self.ring_used += 1
        self.ring[self.ring_next] = <int32_t>token
        self.counts[token] += 1
        self.ring_next = (self.ring_next + 1) % self.ring_size

    def accept_all(self, tokens):
        """Add several tokens, the oldest first."""
        for token in tokens:
            self.accept(token)

    def sample(self, logits, *, allowed=None):
        """Draw the next token.

        Args:
            logits: float32 ``[vocab_size]``, C-contiguous, never written to.
            allowed: uint32 ``[ceil(vocab_size / 32)]``; bit ``i % 32`` of word ``i // 32`` allows
                token ``i``. ``None`` allows all.

        Returns:
            TokenStats of the drawn token, read off the unmasked, unpenalised row.

        Raises:
            InputError: a wrong shape or type.
            GenerationError: the row holds NaN or +inf, or no token is possible.

        """
        cdef const float[::1] row
        try:
            row = logits
        except (TypeError, ValueError) as error:
            raise InputError(f"A row of logits must be contiguous float32: {error}.") from error
        if row.shape[0] != self.vocab_size:
            raise InputError(f"The row has {row.shape[0]} logits, not {self.vocab_size}.")
        return self._sample(&row[0], allowed)

    def sample_at(self, size_t address, *, allowed=None):
        """Draw from the float row at a memory address; the caller vouches for it.

        Raises:
            InputError: the address is null.
            GenerationError: see ``sample``.

        """
        if address == 0:
            raise InputError("There is no row of logits at address 0.")
        return self._sample(<const float *>address, allowed)

    cdef object _sample(self, const float *row, allowed):
        cdef edge_row raw
        cdef int status
        cdef int64_t token
        cdef const uint32_t[::1] mask
        cdef const uint32_t *bits = NULL
        if allowed is not None:
            try:
                mask = allowed
            except (TypeError, ValueError) as error:
                raise InputError(f"The mask must be contiguous uint32: {error}.") from error
            if mask.shape[0] != (self.vocab_size + 31) // 32:
                wanted = (self.vocab_size + 31) // 32
                raise InputError(f"The mask has {mask.shape[0]} words, not {wanted}.")
            bits = &mask[0]
        with nogil:
            status = edge_row_stats(row, self.vocab_size, &raw)
            token = self._draw(row, bits, &raw) if status == EDGE_ROW_OK else -1
        if status == EDGE_ROW_NAN_OR_INF:
            raise GenerationError("The row of logits holds NaN or +inf.")
        if token < 0:
            what = "allowed token is" if status == EDGE_ROW_OK else "token of the row is"
            raise GenerationError(f"No {what} possible: every logit is -inf.")
        return TokenStats(
            token,
            <double>row[token] - <double>raw.best - raw.log_sum,
            raw.entropy,
            <double>raw.best - <double>raw.second if isfinite(raw.second) else INFINITY,
        )

    cdef int64_t _draw(self, const float *row, const uint32_t *bits, edge_row *raw) noexcept nogil:
        """Return the drawn token, or -1 where none is possible."""
        cdef edge_row changed = raw[0]
        cdef const float *x = row
        cdef size_t count
        if bits != NULL or (self.penalised and self.ring_used > 0):
            memcpy(self.scratch, row, self.vocab_size * sizeof(float))
            self._penalise()
            if bits != NULL:
                edge_row_mask(self.scratch, self.vocab_size, bits)
            x = self.scratch
            if edge_row_max(x, self.vocab_size, &changed) != EDGE_ROW_OK:
                return -1
        if self.temperature == 0.0:
            return changed.best_at
        count = self._candidates(x, changed.best)
        return self._pick(count, changed.best)

    cdef void _penalise(self) noexcept nogil:
        """Lower the logits of the history's tokens, each once."""
        cdef Py_ssize_t i
        cdef int32_t token, seen
        cdef double value
        if not self.penalised:
            return
        for i in range(self.ring_used):
            token = self.ring[i]
            seen = self.counts[token]
            if seen < 0:
                continue
            value = self.scratch[token]
            value = value / self.repetition if value > 0 else value * self.repetition
            self.scratch[token] = <float>(value - seen * self.frequency - self.presence)
            self.counts[token] = -seen
        for i in range(self.ring_used):
            token = self.ring[i]
            if self.counts[token] < 0:
                self.counts[token] = -self.counts[token]

    cdef size_t _candidates(self, const float *x, float best) noexcept nogil:
        """Apply top-k, top-p and min-p; ordered unless nothing cuts."""
        cdef size_t count
        cdef bint cuts_mass = self.top_p < 1.0
        if self.top_k > 0:
            count = edge_top_k(x, self.vocab_size, self.top_k, self.candidates)
        elif cuts_mass:
            count = self._heaviest(x, best)
        elif self.min_p > 0.0:
            count = edge_above(x, self.vocab_size, self._floor(best), self.candidates)
            qsort(self.candidates, count, sizeof(edge_candidate), edge_compare)
        else:
            return edge_above(x, self.vocab_size, -INFINITY, self.candidates)
        if cuts_mass:
            count = self._cut_mass(count, best, self._mass(count, best) if self.top_k > 0 else -1.0)
        if self.min_p > 0.0:
            while count > 1 and self.candidates[count - 1].logit < self._floor(best):
                count -= 1
        return count

    cdef float _floor(self, float best) noexcept nogil:
        return <float>(best + log(self.min_p))

    cdef size_t _heaviest(self, const float *x, float best) noexcept nogil:
        """Collect, in order, enough of the best tokens to hold ``top_p`` of the mass."""
        cdef double total = self._row_mass(x, best)
        cdef double reach = 8.0
        cdef size_t count
        while True:
            count = edge_above(x, self.vocab_size, <float>(best - reach), self.candidates)
            if reach > 1e4 or self._mass(count, best) >= self.top_p * total:
                break
            reach *= 2.0
            if reach > 1e4:
                reach = INFINITY
        qsort(self.candidates, count, sizeof(edge_candidate), edge_compare)
        self.row_mass = total
        return count

    cdef double row_mass

    cdef double _row_mass(self, const float *x, float best) noexcept nogil:
        cdef double total = 0.0
        cdef Py_ssize_t i
        for i in range(self.vocab_size):
            total += exp(<double>x[i] - best)
        return total

    cdef double _mass(self, size_t count, float best) noexcept nogil:
        cdef double total = 0.0
        cdef size_t i
        for i in range(count):
            total += exp(<double>self.candidates[i].logit - best)
        return total

    cdef size_t _cut_mass(self, size_t count, float best, double total) noexcept nogil:
        """Keep the shortest prefix that holds ``top_p`` of the mass, one candidate at least."""
        cdef double held = 0.0
        cdef size_t i
        if total < 0.0:
            total = self.row_mass
        for i in range(count):
            held += exp(<double>self.candidates[i].logit - best)
            if held >= self.top_p * total:
                return i + 1
        return count

    cdef int64_t _pick(self, size_t count, float best) noexcept nogil:
        """Draw by inverse distribution over the candidates in their order."""
        cdef double total = 0.0, held = 0.0, aim
        cdef size_t i
        if count == 0:
            return -1
        for i in range(count):
            total += exp((<double>self.candidates[i].logit - best) / self.temperature)
        aim = self._uniform() * total
        for i in range(count):
            held += exp((<double>self.candidates[i].logit - best) / self.temperature)
            if held > aim:
                return self.candidates[i].token
        return self.candidates[count - 1].token

    cdef double _uniform(self) noexcept nogil:
        """One double in [0, 1) from xoshiro256** (Blackman and Vigna 2018)."""
        cdef uint64_t *s = self.state
        cdef uint64_t result = rotate(s[1] * 5, 7) * 9
        cdef uint64_t t = s[1] << 17
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotate(s[3], 45)
        return <double>(result >> 11) * (1.0 / 9007199254740992.0)
