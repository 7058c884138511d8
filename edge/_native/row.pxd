"""The C of ``native/row``: passes over a row, what changes it, what cuts its candidates."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "row/kernels.h" nogil:
    ctypedef struct edge_candidate:
        float logit
        int32_t token
        float weight

    ctypedef struct edge_kernels:
        void (*weigh)(edge_candidate *c, size_t n, float best, float scale) noexcept nogil
        const char *name

    const edge_kernels *edge_kernels_of(const char *name)
    void edge_keep_best(edge_candidate *c, size_t n, size_t k)
    size_t edge_keep_mass(edge_candidate *c, size_t n, double target)


cdef extern from "row/cuts.h" nogil:
    double edge_weight(const edge_candidate *c, size_t n)
    float edge_highest(const edge_candidate *c, size_t n)
    size_t edge_keep_above(edge_candidate *c, size_t n, float floor)
    float edge_min_floor(float best, double min_p)
    size_t edge_keep_typical(edge_candidate *c, size_t n, double share, edge_candidate *spare)
    size_t edge_count_top(edge_candidate *c, size_t n, double threshold)
    double edge_heat(const edge_candidate *c, size_t n, double middle, double range,
                     double exponent)


cdef extern from "row/changes.h" nogil:
    ctypedef struct edge_changes:
        double repetition, frequency, presence
        double dry_multiplier, dry_base
        Py_ssize_t dry_allowed, window, dry_window
        size_t n_bias
        int32_t *bias_tokens
        float *bias_values
        uint8_t *breaker

    void edge_changes_reset(edge_changes *changes)
    void edge_accept(edge_changes *changes, int32_t token)
    void edge_forget(edge_changes *changes)


cdef extern from "row/view.h" nogil:
    enum:
        EDGE_STATS
        EDGE_INVALID
        EDGE_EMPTY
        EDGE_MASKED

    ctypedef struct edge_view:
        const edge_kernels *kernels
        edge_changes changes
        edge_candidate *found
        float top

    bint edge_view_open(edge_view *view, size_t size)
    void edge_view_close(edge_view *view)
    int edge_view_look(edge_view *view, const float *x, const uint32_t *allowed, bint statistics)
    int edge_log_sum(const edge_kernels *kernels, const float *x, size_t size, double *out)
    void edge_view_tell(const edge_view *view, int64_t token, double *stats)
    int64_t edge_view_best(const edge_view *view)
    bint edge_view_is_flat(const edge_view *view)
    float edge_view_sigma_floor(const edge_view *view, double sigmas)
    float edge_view_kth(edge_view *view, size_t k)
    size_t edge_view_collect(edge_view *view, float floor)
    size_t edge_view_collect_mass(edge_view *view, double share, double *total)
    double edge_view_mass(edge_view *view, float scale)
    double edge_view_mass_before(edge_view *view, int64_t token)
    int64_t edge_view_walk(edge_view *view, double aim, float scale)


cdef extern from "row/random.h" nogil:
    ctypedef struct edge_random:
        pass

    void edge_seed(edge_random *random, uint64_t seed)
    double edge_uniform(edge_random *random)
