/* See changes.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "changes.h"

#define DRY_LONGEST 64

size_t edge_changes_most(const edge_changes *h) { return 2 * (size_t)h->keeps + h->n_bias + 1; }

int edge_changes_open(edge_changes *h, size_t size) {
    h->size = size;
    h->keeps = h->window > h->dry_window ? h->window : h->dry_window;
    h->bias_tokens = malloc((h->n_bias + 1) * sizeof *h->bias_tokens);
    h->bias_values = malloc((h->n_bias + 1) * sizeof *h->bias_values);
    h->breaker = calloc(size, 1);
    h->history = malloc(((size_t)h->keeps + 1) * sizeof *h->history);
    h->counts = calloc(size, sizeof *h->counts);
    h->changed = malloc(edge_changes_most(h) * sizeof *h->changed);
    h->touched = calloc(size, 1);
    return h->bias_tokens && h->bias_values && h->breaker && h->history && h->counts &&
           h->changed && h->touched;
}

void edge_changes_close(edge_changes *h) {
    free(h->bias_tokens);
    free(h->bias_values);
    free(h->breaker);
    free(h->history);
    free(h->counts);
    free(h->changed);
    free(h->touched);
}

void edge_changes_reset(edge_changes *h) {
    h->seen = 0;
    memset(h->counts, 0, h->size * sizeof *h->counts);
}

/* The token accepted `back` tokens ago; 1 is the latest. */
static inline int32_t past(const edge_changes *h, ptrdiff_t back) {
    return h->history[(h->seen - back) % h->keeps];
}

void edge_accept(edge_changes *h, int32_t token) {
    if (h->keeps == 0) return;
    if (h->window > 0) {
        if (h->seen >= h->window) h->counts[past(h, h->window)]--;
        h->counts[token]++;
    }
    h->history[h->seen % h->keeps] = token;
    h->seen++;
}

static inline void touch(edge_changes *h, const float *x, int32_t token) {
    if (h->touched[token]) return;
    h->touched[token] = 1;
    h->changed[h->n_changed].token = token;
    h->changed[h->n_changed].logit = x[token];
    h->n_changed++;
}

static void bias_and_penalise(edge_changes *h) {
    for (size_t i = 0; i < h->n_changed; i++) {
        double value = h->changed[i].logit;
        if (i < h->n_bias) value = (float)(value + h->bias_values[i]);
        const int32_t seen = h->window > 0 ? h->counts[h->changed[i].token] : 0;
        if (seen > 0) {
            value = value > 0 ? value / h->repetition : value * h->repetition;
            value = (float)(value - seen * h->frequency - h->presence);
        }
        h->changed[i].logit = (float)value;
    }
}

/* Lowers one token by the largest of its repetitions. */
static void lower(edge_changes *h, int32_t token, double by) {
    edge_candidate *at = h->changed;
    while (at->token != token) at++;
    const float before = h->touched[token] == 2 ? at->weight : 0.0f;
    if (by > before) {
        at->logit = (float)((double)at->logit + before - by);
        at->weight = (float)by;
        h->touched[token] = 2;
    }
}

/* How long the end of the history is that was there `back - 1` tokens ago as well. */
static ptrdiff_t repeated(const edge_changes *h, ptrdiff_t back, ptrdiff_t n) {
    ptrdiff_t length = 0;
    while (length < DRY_LONGEST && back + length <= n &&
           past(h, back + length) == past(h, 1 + length) && !h->breaker[past(h, 1 + length)])
        length++;
    return length;
}

/* Lowers what would go on with a repetition (DRY, p-e-w 2024, as llama.cpp has it). */
static void dry(edge_changes *h, const float *x) {
    const ptrdiff_t n = h->seen < h->dry_window ? h->seen : h->dry_window;
    if (n < 2 || h->breaker[past(h, 1)]) return;
    for (ptrdiff_t back = 2; back <= n; back++) {
        const ptrdiff_t length = repeated(h, back, n);
        if (length < h->dry_allowed || length == 0) continue;
        const int32_t token = past(h, back - 1);
        touch(h, x, token);
        lower(h, token, h->dry_multiplier * pow(h->dry_base, (double)(length - h->dry_allowed)));
    }
}

void edge_change(edge_changes *h, const float *x) {
    const ptrdiff_t n = h->seen < h->window ? h->seen : h->window;
    h->n_changed = 0;
    for (size_t i = 0; i < h->n_bias; i++) touch(h, x, h->bias_tokens[i]);
    for (ptrdiff_t back = 1; back <= n; back++) touch(h, x, past(h, back));
    bias_and_penalise(h);
    if (h->dry_window > 0) dry(h, x);
}

void edge_forget(edge_changes *h) {
    for (size_t i = 0; i < h->n_changed; i++) h->touched[h->changed[i].token] = 0;
}

float edge_logit(const edge_changes *h, const float *x, int64_t token) {
    for (size_t i = 0; i < h->n_changed; i++)
        if (h->changed[i].token == token) return h->changed[i].logit;
    return x[token];
}
