"""What other compiled modules may use of the sampler."""

from libc.stdint cimport int64_t, uint32_t

from edge._native.row cimport edge_candidate, edge_random, edge_view


cdef class Sampler:
    cdef readonly object params
    cdef readonly Py_ssize_t vocab_size
    cdef readonly bint statistics
    cdef edge_view view
    cdef edge_random random
    cdef edge_candidate *spare  # only for typical
    cdef double temperature, top_p, min_p, typical_p, top_n_sigma
    cdef double xtc_probability, xtc_threshold, dynamic_range, dynamic_exponent
    cdef double mirostat_tau, mirostat_eta, mu
    cdef size_t top_k
    cdef bint cuts, only_top_p

    cdef _choose(self, instruction_set)
    cdef _read(self, params)
    cdef _read_changes(self, params)
    cdef _allocate(self)
    cdef _read_tokens(self, params)
    cdef _check(self, Py_ssize_t token)
    cdef object _sample(self, const float *x, allowed)
    cdef int64_t _draw(self, const float *x, const uint32_t *allowed) noexcept nogil
    cdef int64_t _from_changed(self) noexcept nogil
    cdef int64_t _from_few(self) noexcept nogil
    cdef size_t _exclude_top(self, edge_candidate *c, size_t count) noexcept nogil
    cdef int64_t _pick(self, edge_candidate *c, size_t count, double heat) noexcept nogil
    cdef int64_t _from_most(self) noexcept nogil
    cdef int64_t _from_all(self) noexcept nogil
    cdef int64_t _mirostat(self) noexcept nogil


cdef int64_t draw_from(Sampler sampler, const float *x, const uint32_t *allowed,
                       double *stats) noexcept nogil
cdef void accept_token(Sampler sampler, Py_ssize_t token) noexcept nogil
