"""The C of ``native/decode``: one generation's tokens and text, and the steps of the loop."""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t


cdef extern from "decode/slot.h" nogil:
    ctypedef int32_t (*edge_piece_call)(
        const void *, int32_t, char *, int32_t, int32_t, unsigned char
    ) noexcept
    ctypedef void (*edge_accept_call)(void *, Py_ssize_t) noexcept

    ctypedef struct edge_vocabulary:
        edge_piece_call piece
        edge_accept_call accept
        const void *vocab
        uint8_t *ends

    enum:
        EDGE_STATS
        EDGE_RUNNING
        EDGE_STOP
        EDGE_LENGTH
        EDGE_CANCELLED
        EDGE_FAILED

    ctypedef struct edge_slot:
        void *sampler
        bint statistics
        int32_t sequence
        int32_t *tokens
        int32_t n_prompt, n_tokens, kept, room, boundary
        double *stats
        char *text
        size_t n_text, certain, taken
        const char **stops
        size_t *stop_sizes
        size_t n_stops, longest
        uint32_t *mask
        bint constrained, mask_ready, streams
        int32_t row
        int finish, why, cancel

    bint edge_wants_mask(const edge_slot *slot)
    bint edge_at_boundary(const edge_slot *slot)
    void edge_take(edge_slot *slot, const edge_vocabulary *vocabulary, int32_t token,
                   const double *stats)


cdef extern from "decode/loop.h" nogil:
    enum:
        EDGE_MOST

    ctypedef struct edge_batch:
        int32_t n_tokens
        int32_t *token
        float *embd
        int32_t *pos
        int32_t *n_seq_id
        int32_t **seq_id
        int8_t *logits

    ctypedef int32_t (*edge_decode_call)(void *, edge_batch) noexcept
    ctypedef float *(*edge_logits_call)(void *, int32_t) noexcept
    ctypedef unsigned char (*edge_remove_call)(void *, int32_t, int32_t, int32_t) noexcept
    ctypedef void (*edge_copy_call)(void *, int32_t, int32_t, int32_t, int32_t) noexcept
    ctypedef int64_t (*edge_draw_call)(
        void *, const float *, const uint32_t *, double *
    ) noexcept

    ctypedef struct edge_loop:
        edge_decode_call decode
        edge_logits_call logits
        edge_remove_call remove
        edge_copy_call copy
        edge_draw_call draw
        edge_vocabulary vocabulary
        void *context
        void *memory
        int32_t chunk
        edge_slot **slots
        int32_t count
        Py_ssize_t steps

    bint edge_loop_open(edge_loop *loop, int32_t room, int32_t size)
    void edge_loop_close(edge_loop *loop)
    bint edge_loop_step(edge_loop *loop)
    int edge_loop_bare(edge_loop *loop, int32_t sequence, int32_t token, int32_t count)
