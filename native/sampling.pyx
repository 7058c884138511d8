"""The token sampler: statistics of the unmasked row and one draw, without Python per entry.

At most two passes over the row: the maximum of every block, then sums of exponentials where
statistics or the mass of the whole row are needed. Everything else works on the candidates that a
threshold leaves, found through the block maxima. Tokens whose logit is changed (penalties, bias)
never touch the row: they are kept in a short list beside it.

The specification is ``edge.sampling.reference``; one test body holds the two together. The passes
give the same bits on every instruction set, and so does the draw.
"""

cimport cython
from libc.math cimport INFINITY, NAN, exp, fabs, fmax, isfinite, log, log2, pow, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from edge.errors import ConfigError, GenerationError, InputError
from edge.types import TokenStats


cdef Py_ssize_t LONGEST_HISTORY = 1 << 24
cdef size_t SUM_BLOCK = 1024
cdef size_t BLOCK = 256
cdef size_t SMALL = 8192
cdef double TOO_FAR = 20.0
cdef double COLD = 1e-6
cdef int DRY_LONGEST = 64
cdef float FLAT_REACH = 8.0
cdef size_t FLAT_BLOCKS = 16
cdef int FLAT_TRIES = 4


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
    cdef const edge_kernels *kernels = edge_kernels_of(NULL)
    cdef size_t blocks = (size + BLOCK - 1) // BLOCK, b
    cdef float *maxima
    cdef float best = -INFINITY
    cdef edge_sums sums
    cdef int nan
    cdef double log_sum
    if address == 0 or size < 1:
        raise InputError("There is no row of logits at address 0.")
    maxima = <float *>malloc(blocks * sizeof(float))
    if maxima == NULL:
        raise MemoryError
    with nogil:
        nan = kernels.maxima(row, size, NULL, maxima)
        for b in range(blocks):
            best = max(best, maxima[b])
        if not nan and isfinite(best):
            kernels.sums(row, size, best, 1.0, NULL, NULL, &sums)
        free(maxima)
    if nan or not isfinite(best):
        raise GenerationError(REFUSALS[1] if best == -INFINITY and not nan else REFUSALS[0])
    log_sum = <double>best + log(sums.mass)
    found = []
    for token in tokens:
        if not 0 <= token < size:
            raise InputError(f"Token {token} is outside the vocabulary of {size}.")
        found.append(<double>row[<Py_ssize_t>token] - log_sum)
    return found


cdef inline uint64_t rotate(uint64_t x, int by) noexcept nogil:
    return (x << by) | (x >> (64 - by))


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
        self.blocks = (vocab_size + BLOCK - 1) // BLOCK
        self.sum_blocks = (vocab_size + SUM_BLOCK - 1) // SUM_BLOCK
        self._allocate()
        self._read_tokens(params)
        self.reset()

    cdef _choose(self, instruction_set):
        cdef bytes name
        if instruction_set is None:
            self.kernels = edge_kernels_of(NULL)
            return
        name = str(instruction_set).encode()
        self.kernels = edge_kernels_of(name)
        if self.kernels == NULL:
            raise ConfigError(
                f"The instruction set {instruction_set!r} is not here.",
                hint=f"Choose one of {', '.join(instruction_sets())}.",
            )

    cdef _read(self, params):
        self.temperature = params.temperature
        self.top_k = min(params.top_k, self.vocab_size)
        self.top_p = params.top_p
        self.min_p = params.min_p
        self.typical_p = params.typical_p
        self.top_n_sigma = params.top_n_sigma
        self.repetition = params.repetition_penalty
        self.frequency = params.frequency_penalty
        self.presence = params.presence_penalty
        self.xtc_probability = params.xtc_probability if params.xtc_threshold <= 0.5 else 0.0
        self.xtc_threshold = params.xtc_threshold
        self.dynamic_range = params.dynamic_temperature_range
        self.dynamic_exponent = params.dynamic_temperature_exponent
        self.mirostat_tau = params.mirostat_tau
        self.mirostat_eta = params.mirostat_eta
        self.dry_multiplier = params.dry_multiplier
        self.dry_base = params.dry_base
        self.dry_allowed = params.dry_allowed_length
        self.window = params.penalty_last_n if (
            self.repetition != 1.0 or self.frequency != 0.0 or self.presence != 0.0
        ) else 0
        self.dry_window = params.dry_last_n if self.dry_multiplier > 0.0 else 0
        self.keeps = max(self.window, self.dry_window)
        if self.keeps > LONGEST_HISTORY:
            raise InputError(f"A window of {self.keeps} tokens is too long; at most 2**24.")
        self.cuts = (
            self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0 or self.typical_p < 1.0
            or self.top_n_sigma > 0.0 or self.xtc_probability > 0.0 or self.dynamic_range > 0.0
        )
        self.only_top_p = self.top_p < 1.0 and self.temperature >= COLD and not (
            self.top_k > 0 or self.min_p > 0.0 or self.typical_p < 1.0 or self.top_n_sigma > 0.0
            or self.xtc_probability > 0.0 or self.dynamic_range > 0.0
        )
        self.n_bias = len(params.logit_bias)

    cdef _allocate(self):
        cdef size_t n = self.vocab_size
        cdef size_t most = 2 * self.keeps + self.n_bias + 1
        self.maxima = <float *>malloc(self.blocks * sizeof(float))
        self.own = <float *>malloc(self.blocks * sizeof(float))
        self.spare = <float *>malloc((max(self.blocks, min(n, SMALL)) + most) * sizeof(float))
        self.masses = <double *>malloc(self.sum_blocks * sizeof(double))
        self.before = <double *>malloc(self.sum_blocks * sizeof(double))
        self.found = <edge_candidate *>malloc((n + most) * sizeof(edge_candidate))
        self.changed = <edge_candidate *>malloc(most * sizeof(edge_candidate))
        self.bias_tokens = <int32_t *>malloc((self.n_bias + 1) * sizeof(int32_t))
        self.bias_values = <float *>malloc((self.n_bias + 1) * sizeof(float))
        self.touched = <uint8_t *>calloc(n, 1)
        self.breaker = <uint8_t *>calloc(n, 1)
        self.counts = <int32_t *>calloc(n, sizeof(int32_t))
        self.history = <int32_t *>malloc((self.keeps + 1) * sizeof(int32_t))
        if not (self.maxima and self.own and self.spare and self.masses and self.before
                and self.found and self.changed and self.bias_tokens and self.bias_values
                and self.touched and self.breaker and self.counts and self.history):
            raise MemoryError

    cdef _read_tokens(self, params):
        for at, (token, value) in enumerate(sorted(dict(params.logit_bias).items())):
            self._check(token)
            self.bias_tokens[at] = token
            self.bias_values[at] = value
        self.n_bias = len(dict(params.logit_bias))
        for token in params.dry_breakers:
            self._check(token)
            self.breaker[<Py_ssize_t>token] = 1

    def __dealloc__(self):
        free(self.maxima)
        free(self.own)
        free(self.spare)
        free(self.masses)
        free(self.before)
        free(self.found)
        free(self.other)
        free(self.changed)
        free(self.bias_tokens)
        free(self.bias_values)
        free(self.touched)
        free(self.breaker)
        free(self.counts)
        free(self.history)

    @property
    def instruction_set(self):
        """The instruction set in use."""
        return self.kernels.name.decode()

    def reset(self):
        """Forget the history and put the random state back to the seed."""
        cdef uint64_t z, seed = self.params.seed
        cdef int i
        self.seen = 0
        self.mu = 2.0 * self.mirostat_tau
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
        self._check(token)
        self._accept(token)

    def accept_all(self, tokens):
        """Add several tokens, the oldest first."""
        for token in tokens:
            self.accept(token)

    cdef _check(self, Py_ssize_t token):
        if token < 0 or token >= self.vocab_size:
            raise InputError(f"Token {token} is outside the vocabulary of {self.vocab_size}.")

    cdef void _accept(self, Py_ssize_t token) noexcept nogil:
        if self.keeps == 0:
            return
        if self.window > 0:
            if self.seen >= self.window:
                self.counts[self._past(self.window)] -= 1
            self.counts[token] += 1
        self.history[self.seen % self.keeps] = <int32_t>token
        self.seen += 1

    cdef int32_t _past(self, Py_ssize_t back) noexcept nogil:
        """The token accepted ``back`` tokens ago; 1 is the latest."""
        return self.history[(self.seen - back) % self.keeps]

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
        cdef Row row
        cdef int64_t token
        cdef double stats[7]
        cdef const uint32_t[::1] mask
        row.x = x
        row.allowed = NULL
        if allowed is not None:
            try:
                mask = allowed
            except (TypeError, ValueError) as error:
                raise InputError(f"The mask must be contiguous uint32: {error}.") from error
            if mask.shape[0] != (self.vocab_size + 31) // 32:
                wanted = (self.vocab_size + 31) // 32
                raise InputError(f"The mask has {mask.shape[0]} words, not {wanted}.")
            row.allowed = &mask[0]
        with nogil:
            token = draw_from(self, &row, stats)
        if token < 0:
            raise GenerationError(REFUSALS[-token - 1])
        if not self.statistics:
            return TokenStats(token, NAN, NAN, NAN)
        return TokenStats(
            token, stats[0], stats[1], stats[2], stats[3], stats[4], stats[5], <size_t>stats[6]
        )

    cdef int64_t _draw(self, Row *row) noexcept nogil:
        """Return the drawn token, or why there is none as a negative number."""
        cdef int64_t token
        cdef int wrong = self._measure(row)
        if wrong:
            return -wrong
        self._change(row)
        if row.top == -INFINITY:
            token = -3
        elif self.temperature == 0.0 and self.mirostat_tau == 0.0:
            token = self._best(row)
        elif self.mirostat_tau > 0.0:
            token = self._mirostat(row)
        elif self.only_top_p and self._is_flat(row):
            token = self._from_most(row)
        elif self.cuts:
            token = self._from_few(row)
        else:
            token = self._from_all(row)
        self._forget()
        return token

    cdef int _measure(self, Row *row) noexcept nogil:
        """Find the best of the unmasked row and, for statistics, its second and its sums."""
        cdef size_t b
        cdef int nan = self.kernels.maxima(row.x, self.vocab_size, NULL, self.maxima)
        row.best = -INFINITY
        row.summed = False
        for b in range(self.blocks):
            row.best = max(row.best, self.maxima[b])
        if nan or row.best == INFINITY:
            return 1
        if row.best == -INFINITY:
            return 2
        if self.statistics:
            self._find_second(row)
            self._sum(row)
        return 0

    cdef void _find_second(self, Row *row) noexcept nogil:
        """The second largest logit; equal to the best on a tie."""
        cdef size_t b, at = self.blocks, i
        cdef bint found = False
        row.second = -INFINITY
        for b in range(self.blocks):
            if at == self.blocks and self.maxima[b] == row.best:
                at = b
            else:
                row.second = max(row.second, self.maxima[b])
        for i in range(at * BLOCK, min((at + 1) * BLOCK, <size_t>self.vocab_size)):
            if not found and row.x[i] == row.best:
                found = True
            else:
                row.second = max(row.second, row.x[i])

    cdef void _sum(self, Row *row) noexcept nogil:
        if not row.summed:
            self.kernels.sums(
                row.x, self.vocab_size, row.best, 1.0, row.allowed, self.masses, &row.sums
            )
            row.summed = True

    cdef void _change(self, Row *row) noexcept nogil:
        """List the tokens whose logit changes, and find the best of the changed, masked row."""
        cdef size_t i, b
        cdef float *own = self.own
        if row.allowed != NULL:
            self.kernels.maxima(row.x, self.vocab_size, row.allowed, own)
        else:
            memcpy(own, self.maxima, self.blocks * sizeof(float))
        memcpy(self.spare, own, self.blocks * sizeof(float))
        self.n_changed = 0
        for i in range(self.n_bias):
            self._touch(row, self.bias_tokens[i])
        for i in range(min(self.seen, self.window)):
            self._touch(row, self._past(i + 1))
        self._bias_and_penalise(row)
        if self.dry_window > 0:
            self._dry(row)
        for i in range(self.n_changed):
            if not _allows(row.allowed, self.changed[i].token):
                self.changed[i].logit = -INFINITY
            b = self.changed[i].token // BLOCK
            if row.x[self.changed[i].token] == self.spare[b] and own[b] == self.spare[b]:
                own[b] = self._untouched_best(row, b)
        row.top = -INFINITY
        for b in range(self.blocks):
            row.top = max(row.top, own[b])
        for i in range(self.n_changed):
            row.top = max(row.top, self.changed[i].logit)

    cdef void _touch(self, Row *row, int32_t token) noexcept nogil:
        if not self.touched[token]:
            self.touched[token] = 1
            self.changed[self.n_changed].token = token
            self.changed[self.n_changed].logit = row.x[token]
            self.n_changed += 1

    cdef void _bias_and_penalise(self, Row *row) noexcept nogil:
        cdef size_t i
        cdef double value
        cdef int32_t seen
        for i in range(self.n_changed):
            value = self.changed[i].logit
            if i < self.n_bias:
                value = <float>(value + self.bias_values[i])
            seen = self.counts[self.changed[i].token] if self.window > 0 else 0
            if seen > 0:
                value = value / self.repetition if value > 0 else value * self.repetition
                value = <float>(value - seen * self.frequency - self.presence)
            self.changed[i].logit = <float>value

    cdef void _dry(self, Row *row) noexcept nogil:
        """Lower what would go on with a repetition (DRY, p-e-w 2024, as llama.cpp has it)."""
        cdef Py_ssize_t n = min(self.seen, self.dry_window), back, length, at
        cdef int32_t token
        cdef size_t i
        cdef double lowered
        if n < 2 or self.breaker[self._past(1)]:
            return
        for back in range(2, n + 1):
            length = 0
            while (length < DRY_LONGEST and back + length <= n
                   and self._past(back + length) == self._past(1 + length)
                   and not self.breaker[self._past(1 + length)]):
                length += 1
            if length < self.dry_allowed or length == 0:
                continue
            token = self._past(back - 1)
            self._touch(row, token)
            at = -1
            for i in range(self.n_changed):
                if self.changed[i].token == token:
                    at = i
            lowered = self.dry_multiplier * pow(self.dry_base, <double>(length - self.dry_allowed))
            self._lower(at, token, lowered, back)

    cdef void _lower(self, Py_ssize_t at, int32_t token, double by, Py_ssize_t back) noexcept nogil:
        """Lower one token by the largest of its repetitions; ``weight`` remembers it."""
        cdef float before = self.changed[at].weight if self.touched[token] == 2 else 0.0
        if by > before:
            self.changed[at].logit = <float>(<double>self.changed[at].logit + before - by)
            self.changed[at].weight = <float>by
            self.touched[token] = 2

    cdef float _untouched_best(self, Row *row, size_t block) noexcept nogil:
        cdef float part[256]
        cdef float best
        cdef size_t start = block * BLOCK, size = min(BLOCK, self.vocab_size - start), i
        for i in range(size):
            part[i] = -INFINITY if self.touched[start + i] else row.x[start + i]
        self.kernels.maxima(
            part, size, NULL if row.allowed == NULL else row.allowed + start // 32, &best
        )
        return best

    cdef void _forget(self) noexcept nogil:
        cdef size_t i
        for i in range(self.n_changed):
            self.touched[self.changed[i].token] = 0

    cdef int64_t _best(self, Row *row) noexcept nogil:
        """Return the first token of the largest changed logit."""
        cdef int64_t token = self.vocab_size
        cdef size_t i, b
        for i in range(self.n_changed):
            if self.changed[i].logit == row.top:
                token = min(token, <int64_t>self.changed[i].token)
        for b in range(self.blocks):
            if self.own[b] == row.top:
                for i in range(b * BLOCK, min((b + 1) * BLOCK, <size_t>self.vocab_size)):
                    if (row.x[i] == row.top and not self.touched[i]
                            and _allows(row.allowed, <int32_t>i)):
                        return min(token, <int64_t>i)
        return token

    cdef int64_t _from_few(self, Row *row) noexcept nogil:
        """Cut in turn by sigma, top-k, typical, top-p, min-p and XTC, then draw."""
        cdef edge_candidate *c = self.found
        cdef float floor = -INFINITY
        cdef size_t count, first = 0
        cdef bint whole = self.top_k == 0 and self.typical_p == 1.0
        cdef double total = -1.0
        if self.top_n_sigma > 0.0:
            floor = self._sigma_floor(row)
            whole = False
        if self.top_k > 0:
            floor = max(floor, self._kth(row))
        if whole and self.min_p > 0.0:
            floor = self._min_floor(row.top)
            if self.top_p < 1.0:
                total = self._mass(row, 1.0)
        if whole and self.min_p == 0.0 and self.top_p < 1.0:
            count = self._holding(row, &total)
        else:
            count = self._collect(row, floor)
        if self.top_k > 0 and count > self.top_k:
            edge_keep_best(c, count, self.top_k)
            count = self.top_k
        self.kernels.weigh(c, count, row.top, 1.0)
        if self.typical_p < 1.0:
            count = self._typical(count)
        if self.top_p < 1.0:
            if total < 0.0:
                total = _weight(c, count)
            count = edge_keep_mass(c, count, self.top_p * total)
        if self.min_p > 0.0:
            count = _at_least(c, count, self._min_floor(_highest(c, count)))
        if self.xtc_probability > 0.0:
            first = self._exclude_top(c, count)
        return self._pick(c + first, count - first, self._heat(c + first, count - first))

    cdef bint _is_flat(self, Row *row) noexcept nogil:
        """Whether most blocks have a token near the best: top-p alone would keep thousands."""
        cdef size_t b, near = 0
        for b in range(self.blocks):
            near += self.maxima[b] > row.best - FLAT_REACH
        return self.blocks >= FLAT_BLOCKS and 4 * near > 3 * self.blocks

    cdef int64_t _from_most(self, Row *row) noexcept nogil:
        """Draw from every token until top-p would keep the one drawn: a pass each, no sorting.

        Rejection leaves the distribution as it is; after a few tries the candidates are sorted
        after all.
        """
        cdef float scale = <float>(1.0 / self.temperature)
        cdef double mass = self._mass(row, 1.0)
        cdef double tempered = mass if scale == 1.0 else self._mass(row, scale)
        cdef int64_t token
        cdef int _try
        for _try in range(FLAT_TRIES):
            token = self._walk(row, self._uniform() * tempered, scale)
            if self._before(row, token) < self.top_p * mass:
                return token
        return self._from_few(row)

    cdef double _before(self, Row *row, int64_t token) noexcept nogil:
        """The mass of the tokens better than one, in the unit of ``_mass(row, 1.0)``.

        ``masses`` keeps what it holds.
        """
        cdef double *kept = self.masses
        cdef double total = 0.0
        cdef size_t b
        cdef float value = self._logit(row, token)
        self.masses = self.before
        self.kernels.before(
            row.x, self.vocab_size, value, token, row.top, 1.0, row.allowed, self.own, self.before
        )
        self._patch(row, value, token, row.top, 1.0)
        self.masses = kept
        for b in range(self.sum_blocks):
            total += self.before[b]
        return total

    cdef float _logit(self, Row *row, int64_t token) noexcept nogil:
        cdef size_t i
        for i in range(self.n_changed):
            if self.changed[i].token == token:
                return self.changed[i].logit
        return row.x[token]

    cdef float _sigma_floor(self, Row *row) noexcept nogil:
        cdef edge_spread spread
        cdef double mean, variance
        self.kernels.spread(row.x, self.vocab_size, row.best, &spread)
        mean = spread.first / spread.count
        variance = fmax(0.0, spread.second / spread.count - mean * mean)
        return <float>(row.top - self.top_n_sigma * sqrt(variance))

    cdef float _kth(self, Row *row) noexcept nogil:
        """A floor that at least ``top_k`` tokens reach, and not many more."""
        cdef size_t count = self.blocks, i
        if self.vocab_size <= <Py_ssize_t>SMALL:
            return self._kth_of_all(row)
        memcpy(self.spare, self.own, self.blocks * sizeof(float))
        for i in range(self.n_changed):
            self.spare[count] = self.changed[i].logit
            count += 1
        if self.top_k > count:
            return -INFINITY
        return edge_kth_largest(self.spare, count, self.top_k)

    cdef float _kth_of_all(self, Row *row) noexcept nogil:
        """The logit of the ``top_k``-th best token itself; for a small vocabulary."""
        cdef size_t i, n = self.vocab_size
        if row.allowed == NULL:
            memcpy(self.spare, row.x, n * sizeof(float))
        else:
            for i in range(n):
                self.spare[i] = row.x[i] if _allows(row.allowed, <int32_t>i) else -INFINITY
        for i in range(self.n_changed):
            self.spare[self.changed[i].token] = self.changed[i].logit
        return edge_kth_largest(self.spare, n, self.top_k)

    cdef float _min_floor(self, float best) noexcept nogil:
        return <float>(<double>best + log(self.min_p))

    cdef size_t _collect(self, Row *row, float floor) noexcept nogil:
        """Take every possible token of at least ``floor``."""
        cdef size_t i, count = self.kernels.collect(
            row.x, self.vocab_size, floor, self.own, row.allowed, self.touched, self.found
        )
        for i in range(self.n_changed):
            if self.changed[i].logit >= floor and self.changed[i].logit > -INFINITY:
                self.found[count] = self.changed[i]
                count += 1
        return count

    cdef size_t _holding(self, Row *row, double *total) noexcept nogil:
        """Take enough of the best tokens to hold ``top_p`` of the whole mass."""
        cdef double reach, most
        cdef size_t count
        self._sum(row)
        # Below the best: first as far as a token is on average, and a little more.
        reach = 3.0 - row.sums.moment / row.sums.mass - (<double>row.best - <double>row.top)
        reach = fmax(reach, 5.0)
        total[0] = self._mass(row, 1.0)
        most = log(<double>self.vocab_size / ((1.0 - self.top_p) * total[0]))
        while True:
            count = self._collect(row, <float>(row.top - reach))
            self.kernels.weigh(self.found, count, row.top, 1.0)
            if reach > most or _weight(self.found, count) >= self.top_p * total[0]:
                return count
            reach += 3.0

    cdef double _mass(self, Row *row, float scale) noexcept nogil:
        """The sum of exp((logit - top) * scale) over the changed, masked row.

        Leaves every sum block's share, in the same unit, in ``masses``.
        """
        cdef float best = row.top
        cdef double total = 0.0, unit = 1.0
        cdef size_t b
        if scale == 1.0 and row.summed and row.best - row.top < TOO_FAR:
            best = row.best
            unit = exp(<double>row.best - <double>row.top)
        else:
            self.kernels.before(
                row.x, self.vocab_size, -INFINITY, self.vocab_size, best, scale, row.allowed, NULL,
                self.masses,
            )
        row.summed = False
        self._patch(row, -INFINITY, self.vocab_size, best, scale)
        for b in range(self.sum_blocks):
            self.masses[b] *= unit
            total += self.masses[b]
        return total

    cdef void _patch(self, Row *row, float value, size_t token, float best,
                     float scale) noexcept nogil:
        """Sum the blocks again that hold a changed token."""
        cdef float part[1024]
        cdef size_t i, block, start, size, at, done = self.sum_blocks
        for i in range(self.n_changed):
            block = <size_t>self.changed[i].token // SUM_BLOCK
            if block == done:
                continue
            done = block
            start = block * SUM_BLOCK
            size = self._patched(row, block, part)
            at = token - start if token > start else 0
            self.kernels.before(
                part, size, value, at, best, scale,
                NULL if row.allowed == NULL else row.allowed + start // 32, NULL,
                &self.masses[block],
            )

    cdef size_t _patched(self, Row *row, size_t block, float *part) noexcept nogil:
        """Copy one sum block with the changed logits in their places; return its size."""
        cdef size_t start = block * SUM_BLOCK, size = min(SUM_BLOCK, self.vocab_size - start), i
        memcpy(part, row.x + start, size * sizeof(float))
        for i in range(self.n_changed):
            if <size_t>self.changed[i].token // SUM_BLOCK == block:
                part[self.changed[i].token - start] = self.changed[i].logit
        return size

    cdef int64_t _from_all(self, Row *row) noexcept nogil:
        """Draw from every possible token, in the vocabulary's order."""
        cdef float scale = <float>(1.0 / self.temperature)
        cdef double total = self._mass(row, scale)
        return self._walk(row, self._uniform() * total, scale)

    cdef int64_t _walk(self, Row *row, double aim, float scale) noexcept nogil:
        """Return the token at which the masses reach ``aim``, in the vocabulary's order."""
        cdef double held = 0.0
        cdef size_t block = 0, size, i
        cdef float part[1024]
        cdef int64_t last = -1
        while block + 1 < self.sum_blocks and held + self.masses[block] <= aim:
            held += self.masses[block]
            block += 1
        while last < 0:
            size = self._patched(row, block, part)
            for i in range(size):
                self.found[i].logit = part[i]
                self.found[i].token = <int32_t>(block * SUM_BLOCK + i)
            self.kernels.weigh(self.found, size, row.top, scale)
            for i in range(size):
                if part[i] == -INFINITY or not _allows(row.allowed, self.found[i].token):
                    continue
                last = self.found[i].token
                held += self.found[i].weight
                if held > aim:
                    break
            block = block - 1 if block > 0 else self.sum_blocks - 1
        return last

    cdef size_t _typical(self, size_t count) noexcept nogil:
        """Keep what is about as surprising as expected (Meister et al. 2022, arXiv:2202.00666)."""
        cdef edge_candidate *c = self.found
        cdef double total, entropy = 0.0, surprise
        cdef size_t i, kept
        if self.other == NULL:
            self.other = <edge_candidate *>malloc(self.vocab_size * sizeof(edge_candidate))
            if self.other == NULL:
                return count
        edge_sort(c, count)
        total = _weight(c, count)
        for i in range(count):
            if c[i].weight > 0.0:
                entropy -= c[i].weight / total * log(c[i].weight / total)
        for i in range(count):
            surprise = log(total) - (<double>c[i].logit - <double>c[0].logit)
            self.other[i].logit = <float>-fabs(surprise - entropy)
            self.other[i].token = <int32_t>i
            self.other[i].weight = c[i].weight
        kept = edge_keep_mass(self.other, count, self.typical_p * total)
        for i in range(kept):
            self.other[i] = c[self.other[i].token]
        memcpy(c, self.other, kept * sizeof(edge_candidate))
        return kept

    cdef size_t _exclude_top(self, edge_candidate *c, size_t count) noexcept nogil:
        """Say how many of the best to leave out (XTC, p-e-w 2024); ``c`` is then in order."""
        cdef double total
        cdef size_t above = 0
        cdef double draw = self._uniform()
        if draw >= self.xtc_probability or count < 2:
            return 0
        edge_sort(c, count)
        total = _weight(c, count)
        while above < count and c[above].weight >= self.xtc_threshold * total:
            above += 1
        return above - 1 if above > 1 else 0

    cdef double _heat(self, edge_candidate *c, size_t count) noexcept nogil:
        """The temperature; a dynamic one follows the entropy (kalomaze 2023)."""
        cdef double total, share, entropy = 0.0, low, high
        cdef size_t i
        if self.dynamic_range == 0.0 or count < 2:
            return self.temperature
        total = _weight(c, count)
        for i in range(count):
            share = c[i].weight / total
            if share > 0.0:
                entropy -= share * log(share)
        low = fmax(0.0, self.temperature - self.dynamic_range)
        high = self.temperature + self.dynamic_range
        share = entropy / log(<double>count)
        return low + (high - low) * pow(share, self.dynamic_exponent)

    cdef int64_t _mirostat(self, Row *row) noexcept nogil:
        """Mirostat 2.0 (Basu et al. 2020, arXiv:2007.14966): keep the surprise near tau."""
        cdef double heat = self.temperature if self.temperature > 0.0 else 1.0
        cdef float scale = <float>(1.0 / heat)
        cdef double total = self._mass(row, scale)
        cdef double floor = heat * (log(total) - self.mu * 0.69314718055994531)
        cdef size_t count = self._collect(row, <float>min(row.top, <double>row.top + floor)), n
        cdef double held, share
        cdef edge_candidate *c = self.found
        self.kernels.weigh(c, count, row.top, scale)
        held = _weight(c, count)
        n = edge_keep_mass(c, count, self._uniform() * held)
        share = c[n - 1].weight / held
        self.mu -= self.mirostat_eta * (-log2(share) - self.mirostat_tau)
        return c[n - 1].token

    cdef int64_t _pick(self, edge_candidate *c, size_t count, double heat) noexcept nogil:
        """Draw by inverse distribution over the candidates, the best first."""
        if count == 0:
            return -3
        if heat < COLD:
            edge_keep_best(c, count, 1)
            return c[0].token
        self.kernels.weigh(c, count, _highest(c, count), <float>(1.0 / heat))
        return c[edge_keep_mass(c, count, self._uniform() * _weight(c, count)) - 1].token

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


cdef int64_t draw_from(Sampler sampler, Row *row, double *stats) noexcept nogil:
    """Draw a token; fill seven numbers in the order of ``TokenStats`` where they are wanted."""
    cdef int64_t token = sampler._draw(row)
    cdef double log_sum
    if token < 0 or not sampler.statistics:
        return token
    log_sum = log(row.sums.mass)
    stats[0] = <double>row.x[token] - <double>row.best - log_sum
    stats[1] = fmax(0.0, log_sum - row.sums.moment / row.sums.mass)
    stats[2] = <double>row.best - <double>row.second if isfinite(row.second) else INFINITY
    stats[3] = <double>row.best + log_sum
    stats[4] = row.sums.square / (row.sums.mass * row.sums.mass)
    stats[5] = min(1.0, row.sums.allowed / row.sums.mass)
    stats[6] = 0.0
    if row.x[token] < row.best:
        stats[6] = <double>sampler.kernels.above(
            row.x, sampler.vocab_size, row.x[token], sampler.maxima
        )
    return token


cdef void accept_token(Sampler sampler, Py_ssize_t token) noexcept nogil:
    """Add a token of the vocabulary to the history."""
    sampler._accept(token)


REFUSALS = (
    "The row of logits holds NaN or +inf.",
    "No token of the row is possible: every logit is -inf.",
    "No allowed token is possible: every logit is -inf.",
)


cdef inline bint _allows(const uint32_t *allowed, int32_t token) noexcept nogil:
    return allowed == NULL or (allowed[token >> 5] >> (token & 31)) & 1


cdef double _weight(const edge_candidate *c, size_t count) noexcept nogil:
    cdef double total = 0.0
    cdef size_t i
    for i in range(count):
        total += c[i].weight
    return total


cdef float _highest(const edge_candidate *c, size_t count) noexcept nogil:
    cdef float best = -INFINITY
    cdef size_t i
    for i in range(count):
        best = max(best, c[i].logit)
    return best


cdef size_t _at_least(edge_candidate *c, size_t count, float floor) noexcept nogil:
    """Move the candidates of at least ``floor`` to the front, in their order."""
    cdef size_t i, kept = 0
    for i in range(count):
        if c[i].logit >= floor:
            c[kept] = c[i]
            kept += 1
    return kept
