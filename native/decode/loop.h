/* The steps of the decode loop over the slots of one llama.cpp context: fill a batch, decode it,
 * draw.
 *
 * Calls the loaded library through addresses; knows neither Python nor the sampler.
 */
#ifndef EDGE_LOOP_H
#define EDGE_LOOP_H

#include "slot.h"

#define EDGE_MOST 256 /* slots of one loop */

/* As llama.h has it. */
typedef struct {
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos;
    int32_t *n_seq_id;
    int32_t **seq_id;
    int8_t *logits;
} edge_batch;

typedef int32_t (*edge_decode_call)(void *context, edge_batch batch);
typedef float *(*edge_logits_call)(void *context, int32_t row);
typedef unsigned char (*edge_remove_call)(void *memory, int32_t sequence, int32_t from, int32_t to);
typedef void (*edge_copy_call)(void *memory, int32_t source, int32_t target, int32_t from,
                               int32_t to);
/* Draws a token from a row, or gives a negative refusal. */
typedef int64_t (*edge_draw_call)(void *sampler, const float *x, const uint32_t *allowed,
                                  double *stats);

typedef struct {
    edge_decode_call decode;
    edge_logits_call logits;
    edge_remove_call remove;
    edge_copy_call copy;
    edge_draw_call draw;
    edge_vocabulary vocabulary;
    void *context;
    void *memory;
    int32_t room, chunk; /* tokens of a pass, and prompt tokens of one while others generate */
    edge_batch batch;
    int32_t *single; /* the sequence of every token of the batch */
    edge_slot *slots[EDGE_MOST];
    int32_t count, turn;
    ptrdiff_t steps;
} edge_loop;

/* Takes memory for batches of `room` tokens and a vocabulary of `size`; returns 0 where there is
 * none. */
int edge_loop_open(edge_loop *loop, int32_t room, int32_t size);
void edge_loop_close(edge_loop *loop);

/* One forward pass for all; returns whether a slot needs the caller. */
int edge_loop_step(edge_loop *loop);

/* Decodes one token `count` times and draws nothing; returns the last status. */
int edge_loop_bare(edge_loop *loop, int32_t sequence, int32_t token, int32_t count);

#endif
