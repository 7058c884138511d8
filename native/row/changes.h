/* What changes single logits before a draw: bias, penalties and DRY, and the history they look at.
 *
 * The row is never written to: the changed tokens are a short list beside it, each with its new
 * logit. Tokens given here are in the vocabulary; the caller has checked them.
 */
#ifndef EDGE_CHANGES_H
#define EDGE_CHANGES_H

#include "kernels.h"

typedef struct {
    /* Set before edge_changes_open. */
    double repetition, frequency, presence; /* 1, 0 and 0 change nothing */
    double dry_multiplier, dry_base;
    ptrdiff_t dry_allowed;        /* the shortest repetition that DRY lowers */
    ptrdiff_t window, dry_window; /* tokens that the penalties and DRY look back; 0 for neither */
    size_t n_bias;
    /* Filled by the caller after it: distinct tokens; and the tokens that end a repetition. */
    int32_t *bias_tokens;
    float *bias_values;
    uint8_t *breaker;
    /* The history: a ring of `keeps` tokens, and how often each lies in the window. */
    ptrdiff_t keeps, seen;
    int32_t *history;
    int32_t *counts;
    /* Of one draw. */
    edge_candidate *changed; /* where DRY lowered one, its weight is by how much */
    size_t n_changed;
    uint8_t *touched; /* of every token: 1 in the list, 2 lowered by DRY too */
    size_t size;
} edge_changes;

/* Takes memory for a vocabulary of `size`; returns 0 where there is none. */
int edge_changes_open(edge_changes *changes, size_t size);
void edge_changes_close(edge_changes *changes);

/* The most tokens that the list may hold. */
size_t edge_changes_most(const edge_changes *changes);

/* Forgets the history. */
void edge_changes_reset(edge_changes *changes);

/* Adds a token to the history. */
void edge_accept(edge_changes *changes, int32_t token);

/* Lists the tokens of row `x` whose logits change. */
void edge_change(edge_changes *changes, const float *x);

/* Ends a draw: the list is used up. */
void edge_forget(edge_changes *changes);

/* A token's logit with its change. */
float edge_logit(const edge_changes *changes, const float *x, int64_t token);

#endif
