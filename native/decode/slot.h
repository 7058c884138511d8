/* One generation in C: its tokens, their statistics, and the text that is certain so far. */
#ifndef EDGE_SLOT_H
#define EDGE_SLOT_H

#include <stddef.h>
#include <stdint.h>

#include "row/view.h"

/* llama_token_to_piece and the sampler's history, as they are called here. */
typedef int32_t (*edge_piece_call)(const void *vocab, int32_t token, char *piece, int32_t size,
                                   int32_t strip, unsigned char special);
typedef void (*edge_accept_call)(void *sampler, ptrdiff_t token);

typedef struct {
    edge_piece_call piece;
    edge_accept_call accept;
    const void *vocab;
    uint8_t *ends; /* of every token: whether it ends a generation */
} edge_vocabulary;

enum { EDGE_RUNNING, EDGE_STOP, EDGE_LENGTH, EDGE_CANCELLED, EDGE_FAILED };

typedef struct {
    void *sampler;
    int statistics;
    int32_t sequence; /* -1 outside of the engine */
    int32_t *tokens;  /* prompt, then answer */
    int32_t n_prompt, n_tokens, kept, room;
    int32_t boundary; /* stop reading the prompt here once, 0 for nowhere */
    double *stats;    /* EDGE_STATS for every token of the answer */
    char *text;
    size_t n_text, text_room;
    size_t certain, taken; /* bytes that no stop string can take back, and those handed over */
    const char **stops;
    size_t *stop_sizes;
    size_t n_stops, longest;
    uint32_t *mask;
    int constrained, mask_ready, streams;
    int32_t fed, row; /* tokens in the batch, and which of its rows to draw from, or -1 */
    int finish, why;  /* why: a refusal of the sampler, negative, or llama.cpp's status */
    int cancel;
} edge_slot;

/* Whether it waits for its mask. */
static inline int edge_wants_mask(const edge_slot *slot) {
    return slot->constrained && !slot->mask_ready;
}

/* Whether its prompt has been read exactly up to the boundary. */
static inline int edge_at_boundary(const edge_slot *slot) {
    return slot->boundary > 0 && slot->kept == slot->boundary;
}

/* Adds a token to the answer and sees whether it ends with it. `stats` are the token's, or NULL
 * where it was not drawn. */
void edge_take(edge_slot *slot, const edge_vocabulary *vocabulary, int32_t token,
               const double *stats);

#endif
