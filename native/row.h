/* Passes over one row of logits: maximum, log-sum-exp and entropy, mass and top-k selection.
 *
 * Portable C that compilers vectorise by themselves: every inner loop runs over LANES independent
 * lanes. Sums are kept in float within a block of BLOCK entries and in double across blocks.
 */
#ifndef EDGE_ROW_H
#define EDGE_ROW_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EDGE_LANES 16
#define EDGE_BLOCK 1024

enum { EDGE_ROW_OK = 0, EDGE_ROW_NAN_OR_INF = 1, EDGE_ROW_EMPTY = 2 };

typedef struct {
    float best;        /* largest logit */
    float second;      /* second largest; equals best on a tie */
    int32_t best_at;   /* first index of the largest */
    double log_sum;    /* log of the sum of exp(logit - best) */
    double entropy;    /* in nats */
} edge_row;

/* exp for x <= 0, relative error below 3e-7: Cody-Waite reduction and a degree-6 polynomial. */
static inline float edge_expf(float x) {
    float clamped = x < -87.0f ? -87.0f : x;
    float shifted = clamped * 1.44269504088896341f + 12582912.0f;
    float n = shifted - 12582912.0f;
    float r = clamped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.3888889e-3f;
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* The maximum of one block; sets *bad where an entry is NaN or +inf. */
static inline float edge_block_max(const float *x, size_t n, int *bad) {
    float lane[EDGE_LANES];
    int32_t wrong[EDGE_LANES] = {0};
    size_t i = 0;
    for (int j = 0; j < EDGE_LANES; j++) lane[j] = -INFINITY;
    for (; i + EDGE_LANES <= n; i += EDGE_LANES)
        for (int j = 0; j < EDGE_LANES; j++) {
            float v = x[i + j];
            lane[j] = v > lane[j] ? v : lane[j];
            wrong[j] |= !(v < INFINITY);
        }
    for (; i < n; i++) {
        lane[0] = x[i] > lane[0] ? x[i] : lane[0];
        wrong[0] |= !(x[i] < INFINITY);
    }
    float best = lane[0];
    for (int j = 0; j < EDGE_LANES; j++) {
        best = lane[j] > best ? lane[j] : best;
        *bad |= wrong[j];
    }
    return best;
}

/* Best, second best and where; the second needs only the block that holds the best. */
static int edge_row_max(const float *x, size_t n, edge_row *out) {
    float best = -INFINITY, runner_up = -INFINITY;
    size_t at = 0;
    int bad = 0;
    for (size_t start = 0; start < n; start += EDGE_BLOCK) {
        size_t size = n - start < EDGE_BLOCK ? n - start : EDGE_BLOCK;
        float top = edge_block_max(x + start, size, &bad);
        if (top > best) {
            runner_up = best;
            best = top;
            at = start;
        } else if (top > runner_up) {
            runner_up = top;
        }
    }
    if (bad) return EDGE_ROW_NAN_OR_INF;
    if (best == -INFINITY) return EDGE_ROW_EMPTY;
    size_t end = n - at < EDGE_BLOCK ? n : at + EDGE_BLOCK, where = n;
    for (size_t i = at; i < end; i++) {
        if (where == n && x[i] == best) where = i;
        else if (x[i] > runner_up) runner_up = x[i];
    }
    out->best = best;
    out->second = runner_up;
    out->best_at = (int32_t)where;
    return EDGE_ROW_OK;
}

/* Log-sum-exp and entropy relative to out->best, which must be set. */
static void edge_row_sums(const float *x, size_t n, edge_row *out) {
    double sum = 0.0, weighted = 0.0;
    const float best = out->best;
    for (size_t start = 0; start < n; start += EDGE_BLOCK) {
        size_t end = n - start < EDGE_BLOCK ? n : start + EDGE_BLOCK, i = start;
        float mass[EDGE_LANES] = {0}, moment[EDGE_LANES] = {0};
        for (; i + EDGE_LANES <= end; i += EDGE_LANES)
            for (int j = 0; j < EDGE_LANES; j++) {
                float d = x[i + j] - best;
                d = d < -87.0f ? -87.0f : d;
                float e = edge_expf(d);
                mass[j] += e;
                moment[j] += e * d;
            }
        for (; i < end; i++) {
            float d = x[i] - best;
            d = d < -87.0f ? -87.0f : d;
            float e = edge_expf(d);
            mass[0] += e;
            moment[0] += e * d;
        }
        double block_mass = 0.0, block_moment = 0.0;
        for (int j = 0; j < EDGE_LANES; j++) {
            block_mass += mass[j];
            block_moment += moment[j];
        }
        sum += block_mass;
        weighted += block_moment;
    }
    out->log_sum = log(sum);
    out->entropy = out->log_sum - weighted / sum;
    if (out->entropy < 0.0) out->entropy = 0.0;
}

static int edge_row_stats(const float *x, size_t n, edge_row *out) {
    int status = edge_row_max(x, n, out);
    if (status == EDGE_ROW_OK) edge_row_sums(x, n, out);
    return status;
}

/* Forbids the tokens whose bit is not set. */
static void edge_row_mask(float *x, size_t n, const uint32_t *allowed) {
    for (size_t i = 0; i < n; i++)
        if (!((allowed[i >> 5] >> (i & 31)) & 1u)) x[i] = -INFINITY;
}

typedef struct {
    float logit;
    int32_t token;
} edge_candidate;

/* Order of candidates: larger logit first, then smaller token. */
static inline int edge_before(edge_candidate a, edge_candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

static int edge_compare(const void *a, const void *b) {
    edge_candidate left = *(const edge_candidate *)a, right = *(const edge_candidate *)b;
    return edge_before(left, right) ? -1 : edge_before(right, left) ? 1 : 0;
}

static void edge_sift_down(edge_candidate *heap, size_t n, size_t i) {
    for (;;) {
        size_t last = i, left = 2 * i + 1, right = left + 1;
        if (left < n && edge_before(heap[last], heap[left])) last = left;
        if (right < n && edge_before(heap[last], heap[right])) last = right;
        if (last == i) return;
        edge_candidate moved = heap[i];
        heap[i] = heap[last];
        heap[last] = moved;
        i = last;
    }
}

/* Fills out with the k best, in order, and returns how many there are; -inf is never among them. */
static size_t edge_top_k(const float *x, size_t n, size_t k, edge_candidate *out) {
    size_t size = 0, i = 0;
    for (; i < n && size < k; i++)
        if (x[i] > -INFINITY) out[size++] = (edge_candidate){x[i], (int32_t)i};
    for (size_t j = size / 2; j-- > 0;) edge_sift_down(out, size, j);
    for (; i < n && size; i++)
        if (x[i] > out[0].logit) {
            out[0] = (edge_candidate){x[i], (int32_t)i};
            edge_sift_down(out, size, 0);
        }
    qsort(out, size, sizeof *out, edge_compare);
    return size;
}

/* Collects every entry of at least `floor`, in no order, and returns how many. */
static size_t edge_above(const float *x, size_t n, float floor, edge_candidate *out) {
    size_t size = 0;
    for (size_t i = 0; i < n; i++)
        if (x[i] >= floor && x[i] > -INFINITY) out[size++] = (edge_candidate){x[i], (int32_t)i};
    return size;
}

#endif
