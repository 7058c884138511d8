"""The token sampler: statistics of the unmasked row and one draw, without Python per entry.

A draw is put together here from the parts in ``native/row``: ``changes.h`` lists the tokens whose
logit is changed by penalties and bias, ``view.h`` looks at the row beside that list and takes the
candidates that a threshold leaves, and ``cuts.h`` cuts those further.

The specification is ``edge.sampling.reference``; one test body holds the two together. The passes
give the same bits on every instruction set, and so does the draw.
"""

cimport cython
from libc.math cimport NAN, INFINITY, log, log2
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport free, malloc

from edge._native.row cimport *

from edge.errors import ConfigError, GenerationError, InputError
from edge.types import TokenStats


cdef Py_ssize_t LONGEST_HISTORY = 1 << 24
cdef double COLD = 1e-6
cdef int FLAT_TRIES = 4
cdef double NATS_PER_BIT = 0.69314718055994531

# In the order of EDGE_INVALID, EDGE_EMPTY and EDGE_MASKED.
REFUSALS = (
    "The row of logits holds NaN or +inf.",
    "No token of the row is possible: every logit is -inf.",
    "No allowed token is possible: every logit is -inf.",
)


def instruction_sets():
    """Return the instruction sets that this machine and build can use, best first."""
    names = (b"avx512", b"avx2", b"neon", b"portable")
    return tuple(name.decode() for name in names if edge_kernels_of(name) != NULL)


def log_probs_at(size_t address, Py_ssize_t size, tokens):
    """Return the log-probabilities of some tokens under the float row at a memory address.

    Args:
        address: of the row; the caller vouches for it.
        size: its entries.
        tokens: ids below ``size``.

    Raises:
        InputError: the address is null or a token lies outside the row.
        GenerationError: the row holds NaN or +inf, or nothing but -inf.

    """
    cdef const float *row = <const float *>address
    cdef double log_sum
    cdef int wrong
    if address == 0 or size < 1:
        raise InputError("There is no row of logits at address 0.")
    with nogil:
        wrong = edge_log_sum(edge_kernels_of(NULL), row, size, &log_sum)
    if wrong < 0:
        raise MemoryError
    if wrong:
        raise GenerationError(REFUSALS[wrong - 1])
    found = []
    for token in tokens:
        if not 0 <= token < size:
            raise InputError(f"Token {token} is outside the vocabulary of {size}.")
        found.append(<double>row[<Py_ssize_t>token] - log_sum)
    return found


@cython.final
cdef class Sampler:
    """Draws tokens from rows of logits; one per generation, not shared between threads.

    Args:
        params: see ``edge.types.SamplingParams``.
        vocab_size: entries of a row, 2 to 2**31 - 1.
        statistics: fill every field of ``TokenStats``; where false only ``token`` is set, which
            saves the pass over exponentials.
        instruction_set: one of ``instruction_sets()``; the best where ``None``. The tokens are
            the same on each.

    Raises:
        InputError: the vocabulary is too small, or a token of the parameters lies outside it.
        ConfigError: this machine has no such instruction set.

    """

    def __cinit__(self, params, Py_ssize_t vocab_size, *, bint statistics=True,
                  instruction_set=None):
        if vocab_size < 2 or vocab_size > 2147483647:
            raise InputError(f"A vocabulary needs 2 to 2**31 - 1 tokens, not {vocab_size}.")
        self.params = params
        self.vocab_size = vocab_size
        self.statistics = statistics
        self._choose(instruction_set)
        self._read(params)
        self._read_changes(params)
        self._allocate()
        self._read_tokens(params)
        self.reset()

    cdef _choose(self, instruction_set):
        cdef bytes name
        if instruction_set is None:
            self.view.kernels = edge_kernels_of(NULL)
            return
        name = str(instruction_set).encode()
        self.view.kernels = edge_kernels_of(name)
        if self.view.kernels == NULL:
            raise ConfigError(
                f"The instruction set {instruction_set!r} is not here.",
                hint=f"Choose one of {', '.join(instruction_sets())}.",
            )

    cdef _read(self, params):
        cdef bint others
        self.temperature = params.temperature
        self.top_k = min(params.top_k, self.vocab_size)
        self.top_p = params.top_p
        self.min_p = params.min_p
        self.typical_p = params.typical_p
        self.top_n_sigma = params.top_n_sigma
        self.xtc_probability = params.xtc_probability if params.xtc_threshold <= 0.5 else 0.0
        self.xtc_threshold = params.xtc_threshold
        self.dynamic_range = params.dynamic_temperature_range
        self.dynamic_exponent = params.dynamic_temperature_exponent
        self.mirostat_tau = params.mirostat_tau
        self.mirostat_eta = params.mirostat_eta
        others = (
            self.top_k > 0 or self.min_p > 0.0 or self.typical_p < 1.0 or self.top_n_sigma > 0.0
            or self.xtc_probability > 0.0 or self.dynamic_range > 0.0
        )
        self.cuts = others or self.top_p < 1.0
        self.only_top_p = self.top_p < 1.0 and self.temperature >= COLD and not others

    cdef _read_changes(self, params):
        cdef edge_changes *changes = &self.view.changes
        cdef Py_ssize_t keeps
        changes.repetition = params.repetition_penalty
        changes.frequency = params.frequency_penalty
        changes.presence = params.presence_penalty
        changes.dry_multiplier = params.dry_multiplier
        changes.dry_base = params.dry_base
        changes.dry_allowed = params.dry_allowed_length
        changes.window = params.penalty_last_n if (
            changes.repetition != 1.0 or changes.frequency != 0.0 or changes.presence != 0.0
        ) else 0
        changes.dry_window = params.dry_last_n if changes.dry_multiplier > 0.0 else 0
        changes.n_bias = len(dict(params.logit_bias))
        keeps = max(changes.window, changes.dry_window)
        if keeps > LONGEST_HISTORY:
            raise InputError(f"A window of {keeps} tokens is too long; at most 2**24.")

    cdef _allocate(self):
        if not edge_view_open(&self.view, self.vocab_size):
            raise MemoryError
        if self.typical_p < 1.0:
            self.spare = <edge_candidate *>malloc(self.vocab_size * sizeof(edge_candidate))
            if self.spare == NULL:
                raise MemoryError

    cdef _read_tokens(self, params):
        cdef edge_changes *changes = &self.view.changes
        for at, (token, value) in enumerate(sorted(dict(params.logit_bias).items())):
            self._check(token)
            changes.bias_tokens[at] = token
            changes.bias_values[at] = value
        for token in params.dry_breakers:
            self._check(token)
            changes.breaker[<Py_ssize_t>token] = 1

    def __dealloc__(self):
        edge_view_close(&self.view)
        free(self.spare)

    @property
    def instruction_set(self):
        """The instruction set in use."""
        return self.view.kernels.name.decode()

    def reset(self):
        """Forget the history and put the random state back to the seed."""
        self.mu = 2.0 * self.mirostat_tau
        edge_changes_reset(&self.view.changes)
        edge_seed(&self.random, self.params.seed)

    def accept(self, Py_ssize_t token):
        """Add one token to the history that the penalties look at.

        Raises:
            InputError: the token is not in the vocabulary.

        """
        self._check(token)
        edge_accept(&self.view.changes, <int32_t>token)

    def accept_all(self, tokens):
        """Add several tokens, the oldest first."""
        for token in tokens:
            self.accept(token)

    cdef _check(self, Py_ssize_t token):
        if token < 0 or token >= self.vocab_size:
            raise InputError(f"Token {token} is outside the vocabulary of {self.vocab_size}.")

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

    cdef object _sample(self, const float *x, allowed):
        cdef int64_t token
        cdef double stats[EDGE_STATS]
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
            token = draw_from(self, x, bits, stats)
        if token < 0:
            raise GenerationError(REFUSALS[-token - 1])
        if not self.statistics:
            return TokenStats(token, NAN, NAN, NAN)
        return TokenStats(
            token, stats[0], stats[1], stats[2], stats[3], stats[4], stats[5], <size_t>stats[6]
        )

    cdef int64_t _draw(self, const float *x, const uint32_t *allowed) noexcept nogil:
        """Return the drawn token, or why there is none as a negative number."""
        cdef int64_t token
        cdef int wrong = edge_view_look(&self.view, x, allowed, self.statistics)
        if wrong == EDGE_INVALID or wrong == EDGE_EMPTY:
            return -wrong
        token = -wrong if wrong else self._from_changed()
        edge_forget(&self.view.changes)
        return token

    cdef int64_t _from_changed(self) noexcept nogil:
        if self.mirostat_tau > 0.0:
            return self._mirostat()
        if self.temperature == 0.0:
            return edge_view_best(&self.view)
        if self.only_top_p and edge_view_is_flat(&self.view):
            return self._from_most()
        return self._from_few() if self.cuts else self._from_all()

    cdef int64_t _from_few(self) noexcept nogil:
        """Cut in turn by sigma, top-k, typical, top-p, min-p and XTC, then draw."""
        cdef edge_view *view = &self.view
        cdef edge_candidate *c = view.found
        cdef float floor = -INFINITY
        cdef size_t count, first = 0
        cdef bint whole = self.top_k == 0 and self.typical_p == 1.0
        cdef double total = -1.0
        if self.top_n_sigma > 0.0:
            floor = edge_view_sigma_floor(view, self.top_n_sigma)
            whole = False
        if self.top_k > 0:
            floor = max(floor, edge_view_kth(view, self.top_k))
        if whole and self.min_p > 0.0:
            floor = edge_min_floor(view.top, self.min_p)
            if self.top_p < 1.0:
                total = edge_view_mass(view, 1.0)
        if whole and self.min_p == 0.0 and self.top_p < 1.0:
            count = edge_view_collect_mass(view, self.top_p, &total)
        else:
            count = edge_view_collect(view, floor)
        if self.top_k > 0 and count > self.top_k:
            edge_keep_best(c, count, self.top_k)
            count = self.top_k
        view.kernels.weigh(c, count, view.top, 1.0)
        if self.typical_p < 1.0:
            count = edge_keep_typical(c, count, self.typical_p, self.spare)
        if self.top_p < 1.0:
            if total < 0.0:
                total = edge_weight(c, count)
            count = edge_keep_mass(c, count, self.top_p * total)
        if self.min_p > 0.0:
            count = edge_keep_above(c, count, edge_min_floor(edge_highest(c, count), self.min_p))
        if self.xtc_probability > 0.0:
            first = self._exclude_top(c, count)
        c += first
        count -= first
        return self._pick(c, count, edge_heat(
            c, count, self.temperature, self.dynamic_range, self.dynamic_exponent
        ))

    cdef size_t _exclude_top(self, edge_candidate *c, size_t count) noexcept nogil:
        """Say how many of the best XTC leaves out of this draw."""
        if edge_uniform(&self.random) >= self.xtc_probability or count < 2:
            return 0
        return edge_count_top(c, count, self.xtc_threshold)

    cdef int64_t _pick(self, edge_candidate *c, size_t count, double heat) noexcept nogil:
        """Draw by inverse distribution over the candidates, the best first."""
        cdef double aim
        if count == 0:
            return -EDGE_MASKED
        if heat < COLD:
            edge_keep_best(c, count, 1)
            return c[0].token
        self.view.kernels.weigh(c, count, edge_highest(c, count), <float>(1.0 / heat))
        aim = edge_uniform(&self.random) * edge_weight(c, count)
        return c[edge_keep_mass(c, count, aim) - 1].token

    cdef int64_t _from_most(self) noexcept nogil:
        """Draw from every token until top-p would keep the one drawn: a pass each, no sorting.

        Rejection leaves the distribution as it is; after a few tries the candidates are sorted
        after all.
        """
        cdef float scale = <float>(1.0 / self.temperature)
        cdef double mass = edge_view_mass(&self.view, 1.0)
        cdef double tempered = mass if scale == 1.0 else edge_view_mass(&self.view, scale)
        cdef int64_t token
        cdef int _try
        for _try in range(FLAT_TRIES):
            token = edge_view_walk(&self.view, edge_uniform(&self.random) * tempered, scale)
            if edge_view_mass_before(&self.view, token) < self.top_p * mass:
                return token
        return self._from_few()

    cdef int64_t _from_all(self) noexcept nogil:
        """Draw from every possible token, in the vocabulary's order."""
        cdef float scale = <float>(1.0 / self.temperature)
        cdef double total = edge_view_mass(&self.view, scale)
        return edge_view_walk(&self.view, edge_uniform(&self.random) * total, scale)

    cdef int64_t _mirostat(self) noexcept nogil:
        """Mirostat 2.0 (Basu et al. 2020, arXiv:2007.14966): keep the surprise near tau."""
        cdef edge_view *view = &self.view
        cdef edge_candidate *c = view.found
        cdef double heat = self.temperature if self.temperature > 0.0 else 1.0
        cdef float scale = <float>(1.0 / heat)
        cdef double total = edge_view_mass(view, scale)
        cdef double floor = <double>view.top + heat * (log(total) - self.mu * NATS_PER_BIT)
        cdef size_t count = edge_view_collect(view, <float>min(view.top, floor)), n
        cdef double held, share
        view.kernels.weigh(c, count, view.top, scale)
        held = edge_weight(c, count)
        n = edge_keep_mass(c, count, edge_uniform(&self.random) * held)
        share = c[n - 1].weight / held
        self.mu -= self.mirostat_eta * (-log2(share) - self.mirostat_tau)
        return c[n - 1].token


cdef int64_t draw_from(Sampler sampler, const float *x, const uint32_t *allowed,
                       double *stats) noexcept nogil:
    """Draw a token; fill EDGE_STATS numbers about it, where they are wanted."""
    cdef int64_t token = sampler._draw(x, allowed)
    if token >= 0 and sampler.statistics:
        edge_view_tell(&sampler.view, token, stats)
    return token


cdef void accept_token(Sampler sampler, Py_ssize_t token) noexcept nogil:
    """Add a token of the vocabulary to the history."""
    edge_accept(&sampler.view.changes, <int32_t>token)
