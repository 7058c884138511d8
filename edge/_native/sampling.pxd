"""What other compiled modules may use of the sampler."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "row/kernels.h" nogil:
    ctypedef struct edge_candidate:
        float logit
        int32_t token
        float weight

    ctypedef struct edge_sums:
        double mass
        double moment
        double square
        double allowed

    ctypedef struct edge_spread:
        double first
        double second
        size_t count

    ctypedef struct edge_kernels:
        int (*maxima)(const float *x, size_t n, const uint32_t *allowed, float *out) noexcept nogil
        void (*sums)(const float *x, size_t n, float best, float scale, const uint32_t *allowed,
                     double *blocks, edge_sums *out) noexcept nogil
        void (*before)(const float *x, size_t n, float value, size_t token, float best,
                       float scale, const uint32_t *allowed, const float *maxima,
                       double *blocks) noexcept nogil
        size_t (*collect)(const float *x, size_t n, float floor, const float *maxima,
                          const uint32_t *allowed, const uint8_t *touched,
                          edge_candidate *out) noexcept nogil
        size_t (*above)(const float *x, size_t n, float value, const float *maxima) noexcept nogil
        void (*spread)(const float *x, size_t n, float best, edge_spread *out) noexcept nogil
        void (*weigh)(edge_candidate *c, size_t n, float best, float scale) noexcept nogil
        const char *name

    const edge_kernels *edge_kernels_of(const char *name)
    void edge_sort(edge_candidate *c, size_t n)
    float edge_kth_largest(float *x, size_t n, size_t k)
    void edge_keep_best(edge_candidate *c, size_t n, size_t k)
    size_t edge_keep_mass(edge_candidate *c, size_t n, double target)


cdef struct Row:
    const float *x
    const uint32_t *allowed
    float best            # of the unmasked row
    float second
    float top             # of the changed and masked row
    bint summed
    edge_sums sums


cdef class Sampler:
    cdef readonly object params
    cdef readonly Py_ssize_t vocab_size
    cdef readonly bint statistics
    cdef const edge_kernels *kernels
    cdef size_t blocks, sum_blocks
    cdef float *maxima          # of the unmasked row
    cdef float *own             # of what is allowed and not changed
    cdef float *spare
    cdef double *masses
    cdef double *before         # as masses, of the tokens better than one
    cdef edge_candidate *found
    cdef edge_candidate *other  # only for typical; made when needed
    cdef edge_candidate *changed
    cdef size_t n_changed, n_bias
    cdef int32_t *bias_tokens
    cdef float *bias_values
    cdef uint8_t *touched
    cdef uint8_t *breaker
    cdef int32_t *counts
    cdef int32_t *history
    cdef Py_ssize_t keeps, seen, window, dry_window
    cdef uint64_t state[4]
    cdef double temperature, top_p, min_p, typical_p, top_n_sigma
    cdef double repetition, frequency, presence
    cdef double xtc_probability, xtc_threshold, dynamic_range, dynamic_exponent
    cdef double mirostat_tau, mirostat_eta, mu
    cdef double dry_multiplier, dry_base
    cdef Py_ssize_t dry_allowed
    cdef size_t top_k
    cdef bint cuts, only_top_p

    cdef _choose(self, instruction_set)
    cdef _read(self, params)
    cdef _allocate(self)
    cdef _read_tokens(self, params)
    cdef _check(self, Py_ssize_t token)
    cdef void _accept(self, Py_ssize_t token) noexcept nogil
    cdef int32_t _past(self, Py_ssize_t back) noexcept nogil
    cdef object _sample(self, const float *x, allowed)
    cdef int64_t _draw(self, Row *row) noexcept nogil
    cdef int _measure(self, Row *row) noexcept nogil
    cdef void _find_second(self, Row *row) noexcept nogil
    cdef void _sum(self, Row *row) noexcept nogil
    cdef void _change(self, Row *row) noexcept nogil
    cdef void _touch(self, Row *row, int32_t token) noexcept nogil
    cdef void _bias_and_penalise(self, Row *row) noexcept nogil
    cdef void _dry(self, Row *row) noexcept nogil
    cdef void _lower(self, Py_ssize_t at, int32_t token, double by, Py_ssize_t back) noexcept nogil
    cdef float _untouched_best(self, Row *row, size_t block) noexcept nogil
    cdef void _forget(self) noexcept nogil
    cdef int64_t _best(self, Row *row) noexcept nogil
    cdef int64_t _from_few(self, Row *row) noexcept nogil
    cdef bint _is_flat(self, Row *row) noexcept nogil
    cdef int64_t _from_most(self, Row *row) noexcept nogil
    cdef double _before(self, Row *row, int64_t token) noexcept nogil
    cdef float _logit(self, Row *row, int64_t token) noexcept nogil
    cdef float _sigma_floor(self, Row *row) noexcept nogil
    cdef float _kth(self, Row *row) noexcept nogil
    cdef float _kth_of_all(self, Row *row) noexcept nogil
    cdef float _min_floor(self, float best) noexcept nogil
    cdef size_t _collect(self, Row *row, float floor) noexcept nogil
    cdef size_t _holding(self, Row *row, double *total) noexcept nogil
    cdef double _mass(self, Row *row, float scale) noexcept nogil
    cdef void _patch(self, Row *row, float value, size_t token, float best,
                     float scale) noexcept nogil
    cdef size_t _patched(self, Row *row, size_t block, float *part) noexcept nogil
    cdef int64_t _from_all(self, Row *row) noexcept nogil
    cdef int64_t _walk(self, Row *row, double aim, float scale) noexcept nogil
    cdef size_t _typical(self, size_t count) noexcept nogil
    cdef size_t _exclude_top(self, edge_candidate *c, size_t count) noexcept nogil
    cdef double _heat(self, edge_candidate *c, size_t count) noexcept nogil
    cdef int64_t _mirostat(self, Row *row) noexcept nogil
    cdef int64_t _pick(self, edge_candidate *c, size_t count, double heat) noexcept nogil
    cdef double _uniform(self) noexcept nogil


cdef int64_t draw_from(Sampler sampler, Row *row, double *stats) noexcept nogil
cdef void accept_token(Sampler sampler, Py_ssize_t token) noexcept nogil
