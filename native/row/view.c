/* See view.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cuts.h"
#include "view.h"

#define SMALL 8192
#define TOO_FAR 20.0
#define FLAT_REACH 8.0f
#define FLAT_BLOCKS 16

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

int edge_view_open(edge_view *v, size_t size) {
    v->size = size;
    v->blocks = (size + EDGE_BLOCK - 1) / EDGE_BLOCK;
    v->sum_blocks = (size + EDGE_SUM_BLOCK - 1) / EDGE_SUM_BLOCK;
    if (!edge_changes_open(&v->changes, size)) return 0;
    const size_t most = edge_changes_most(&v->changes), small = least(size, SMALL);
    v->maxima = malloc(v->blocks * sizeof *v->maxima);
    v->own = malloc(v->blocks * sizeof *v->own);
    v->spare = malloc(((v->blocks > small ? v->blocks : small) + most) * sizeof *v->spare);
    v->masses = malloc(v->sum_blocks * sizeof *v->masses);
    v->ahead = malloc(v->sum_blocks * sizeof *v->ahead);
    v->found = malloc((size + most) * sizeof *v->found);
    return v->maxima && v->own && v->spare && v->masses && v->ahead && v->found;
}

void edge_view_close(edge_view *v) {
    edge_changes_close(&v->changes);
    free(v->maxima);
    free(v->own);
    free(v->spare);
    free(v->masses);
    free(v->ahead);
    free(v->found);
}

/* Says what is wrong with a row of these block maxima, and finds its best. */
static int refuse(int nan, const float *maxima, size_t blocks, float *best) {
    *best = -INFINITY;
    for (size_t b = 0; b < blocks; b++) *best = maxima[b] > *best ? maxima[b] : *best;
    if (nan || *best == INFINITY) return EDGE_INVALID;
    return *best == -INFINITY ? EDGE_EMPTY : 0;
}

int edge_log_sum(const edge_kernels *kernels, const float *x, size_t size, double *out) {
    const size_t blocks = (size + EDGE_BLOCK - 1) / EDGE_BLOCK;
    float *maxima = malloc(blocks * sizeof *maxima), best;
    if (maxima == NULL) return -1;
    const int nan = kernels->maxima(x, size, NULL, maxima);
    const int wrong = refuse(nan, maxima, blocks, &best);
    free(maxima);
    if (wrong) return wrong;
    edge_sums sums;
    kernels->sums(x, size, best, 1.0f, NULL, NULL, &sums);
    *out = (double)best + log(sums.mass);
    return 0;
}

/* The second largest logit; equal to the best on a tie. */
static float second_of(const edge_view *v) {
    float second = -INFINITY;
    size_t at = v->blocks;
    for (size_t b = 0; b < v->blocks; b++) {
        if (at == v->blocks && v->maxima[b] == v->best)
            at = b;
        else if (v->maxima[b] > second)
            second = v->maxima[b];
    }
    const size_t end = least((at + 1) * EDGE_BLOCK, v->size);
    int found = 0;
    for (size_t i = at * EDGE_BLOCK; i < end; i++) {
        if (!found && v->x[i] == v->best)
            found = 1;
        else if (v->x[i] > second)
            second = v->x[i];
    }
    return second;
}

static void sum(edge_view *v) {
    if (v->summed) return;
    v->kernels->sums(v->x, v->size, v->best, 1.0f, v->allowed, v->masses, &v->sums);
    v->summed = 1;
}

static float untouched_best(const edge_view *v, size_t block) {
    const size_t start = block * EDGE_BLOCK, size = least(EDGE_BLOCK, v->size - start);
    const uint8_t *touched = v->changes.touched + start;
    float part[EDGE_BLOCK], best;
    for (size_t i = 0; i < size; i++) part[i] = touched[i] ? -INFINITY : v->x[start + i];
    v->kernels->maxima(part, size, v->allowed ? v->allowed + start / 32 : NULL, &best);
    return best;
}

/* Lists the changes, and finds the best of the changed, masked row. */
static void change(edge_view *v) {
    edge_candidate *changed = v->changes.changed;
    float *own = v->own, *whole = v->spare, top = -INFINITY;
    if (v->allowed)
        v->kernels->maxima(v->x, v->size, v->allowed, own);
    else
        memcpy(own, v->maxima, v->blocks * sizeof *own);
    memcpy(whole, own, v->blocks * sizeof *own);
    edge_change(&v->changes, v->x);
    for (size_t i = 0; i < v->changes.n_changed; i++) {
        const size_t b = (size_t)changed[i].token / EDGE_BLOCK;
        if (!edge_allows(v->allowed, changed[i].token)) changed[i].logit = -INFINITY;
        if (v->x[changed[i].token] == whole[b] && own[b] == whole[b]) own[b] = untouched_best(v, b);
    }
    for (size_t b = 0; b < v->blocks; b++) top = own[b] > top ? own[b] : top;
    for (size_t i = 0; i < v->changes.n_changed; i++)
        top = changed[i].logit > top ? changed[i].logit : top;
    v->top = top;
}

int edge_view_look(edge_view *v, const float *x, const uint32_t *allowed, int statistics) {
    v->x = x;
    v->allowed = allowed;
    v->summed = 0;
    const int nan = v->kernels->maxima(x, v->size, NULL, v->maxima);
    const int wrong = refuse(nan, v->maxima, v->blocks, &v->best);
    if (wrong) return wrong;
    if (statistics) {
        v->second = second_of(v);
        sum(v);
    }
    change(v);
    return v->top == -INFINITY ? EDGE_MASKED : 0;
}

void edge_view_tell(const edge_view *v, int64_t token, double *stats) {
    const float *x = v->x;
    const edge_sums *sums = &v->sums;
    const double log_sum = log(sums->mass), within = sums->allowed / sums->mass;
    stats[0] = (double)x[token] - (double)v->best - log_sum;
    stats[1] = fmax(0.0, log_sum - sums->moment / sums->mass);
    stats[2] = isfinite(v->second) ? (double)v->best - (double)v->second : INFINITY;
    stats[3] = (double)v->best + log_sum;
    stats[4] = sums->square / (sums->mass * sums->mass);
    stats[5] = within < 1.0 ? within : 1.0;
    stats[6] = 0.0;
    if (x[token] < v->best) stats[6] = (double)v->kernels->above(x, v->size, x[token], v->maxima);
}

int64_t edge_view_best(const edge_view *v) {
    const edge_changes *h = &v->changes;
    int64_t token = (int64_t)v->size;
    for (size_t i = 0; i < h->n_changed; i++)
        if (h->changed[i].logit == v->top && h->changed[i].token < token)
            token = h->changed[i].token;
    for (size_t b = 0; b < v->blocks; b++) {
        if (v->own[b] != v->top) continue;
        const size_t end = least((b + 1) * EDGE_BLOCK, v->size);
        for (size_t i = b * EDGE_BLOCK; i < end; i++)
            if (v->x[i] == v->top && !h->touched[i] && edge_allows(v->allowed, (int32_t)i))
                return (int64_t)i < token ? (int64_t)i : token;
    }
    return token;
}

int edge_view_is_flat(const edge_view *v) {
    size_t near = 0;
    for (size_t b = 0; b < v->blocks; b++) near += v->maxima[b] > v->best - FLAT_REACH;
    return v->blocks >= FLAT_BLOCKS && 4 * near > 3 * v->blocks;
}

float edge_view_sigma_floor(const edge_view *v, double sigmas) {
    edge_spread spread;
    v->kernels->spread(v->x, v->size, v->best, &spread);
    const double mean = spread.first / spread.count;
    const double variance = fmax(0.0, spread.second / spread.count - mean * mean);
    return (float)(v->top - sigmas * sqrt(variance));
}

/* The logit of the k-th best token itself; for a small vocabulary. */
static float kth_of_all(edge_view *v, size_t k) {
    const edge_changes *h = &v->changes;
    if (v->allowed == NULL)
        memcpy(v->spare, v->x, v->size * sizeof *v->spare);
    else
        for (size_t i = 0; i < v->size; i++)
            v->spare[i] = edge_allows(v->allowed, (int32_t)i) ? v->x[i] : -INFINITY;
    for (size_t i = 0; i < h->n_changed; i++) v->spare[h->changed[i].token] = h->changed[i].logit;
    return edge_kth_largest(v->spare, v->size, k);
}

float edge_view_kth(edge_view *v, size_t k) {
    if (v->size <= SMALL) return kth_of_all(v, k);
    size_t count = v->blocks;
    memcpy(v->spare, v->own, count * sizeof *v->spare);
    for (size_t i = 0; i < v->changes.n_changed; i++)
        v->spare[count++] = v->changes.changed[i].logit;
    return k > count ? -INFINITY : edge_kth_largest(v->spare, count, k);
}

size_t edge_view_collect(edge_view *v, float floor) {
    const edge_changes *h = &v->changes;
    size_t count =
        v->kernels->collect(v->x, v->size, floor, v->own, v->allowed, h->touched, v->found);
    for (size_t i = 0; i < h->n_changed; i++)
        if (h->changed[i].logit >= floor && h->changed[i].logit > -INFINITY)
            v->found[count++] = h->changed[i];
    return count;
}

size_t edge_view_collect_mass(edge_view *v, double share, double *total) {
    sum(v);
    /* Below the best: first as far as a token is on average, and a little more. */
    double reach = 3.0 - v->sums.moment / v->sums.mass - ((double)v->best - (double)v->top);
    reach = fmax(reach, 5.0);
    *total = edge_view_mass(v, 1.0f);
    const double most = log((double)v->size / ((1.0 - share) * *total));
    for (;; reach += 3.0) {
        const size_t count = edge_view_collect(v, (float)(v->top - reach));
        v->kernels->weigh(v->found, count, v->top, 1.0f);
        if (reach > most || edge_weight(v->found, count) >= share * *total) return count;
    }
}

/* Copies one sum block with the changed logits in their places; returns its size. */
static size_t patched(const edge_view *v, size_t block, float *part) {
    const edge_changes *h = &v->changes;
    const size_t start = block * EDGE_SUM_BLOCK, size = least(EDGE_SUM_BLOCK, v->size - start);
    memcpy(part, v->x + start, size * sizeof *part);
    for (size_t i = 0; i < h->n_changed; i++)
        if ((size_t)h->changed[i].token / EDGE_SUM_BLOCK == block)
            part[(size_t)h->changed[i].token - start] = h->changed[i].logit;
    return size;
}

/* Sums the blocks of `masses` again that hold a changed token: what comes before (value, token). */
static void patch(const edge_view *v, double *masses, float value, size_t token, float best,
                  float scale) {
    float part[EDGE_SUM_BLOCK];
    size_t done = v->sum_blocks;
    for (size_t i = 0; i < v->changes.n_changed; i++) {
        const size_t block = (size_t)v->changes.changed[i].token / EDGE_SUM_BLOCK;
        if (block == done) continue;
        done = block;
        const size_t start = block * EDGE_SUM_BLOCK, size = patched(v, block, part);
        v->kernels->before(part, size, value, token > start ? token - start : 0, best, scale,
                           v->allowed ? v->allowed + start / 32 : NULL, NULL, masses + block);
    }
}

double edge_view_mass(edge_view *v, float scale) {
    float best = v->top;
    double total = 0.0, unit = 1.0;
    if (scale == 1.0f && v->summed && v->best - v->top < TOO_FAR) {
        best = v->best;
        unit = exp((double)v->best - (double)v->top);
    } else {
        v->kernels->before(v->x, v->size, -INFINITY, v->size, best, scale, v->allowed, NULL,
                           v->masses);
    }
    v->summed = 0;
    patch(v, v->masses, -INFINITY, v->size, best, scale);
    for (size_t b = 0; b < v->sum_blocks; b++) {
        v->masses[b] *= unit;
        total += v->masses[b];
    }
    return total;
}

double edge_view_mass_before(edge_view *v, int64_t token) {
    const float value = edge_logit(&v->changes, v->x, token);
    const size_t at = (size_t)token;
    double total = 0.0;
    v->kernels->before(v->x, v->size, value, at, v->top, 1.0f, v->allowed, v->own, v->ahead);
    patch(v, v->ahead, value, at, v->top, 1.0f);
    for (size_t b = 0; b < v->sum_blocks; b++) total += v->ahead[b];
    return total;
}

int64_t edge_view_walk(edge_view *v, double aim, float scale) {
    float part[EDGE_SUM_BLOCK];
    edge_candidate *c = v->found;
    double held = 0.0;
    size_t block = 0;
    int64_t last = -1;
    while (block + 1 < v->sum_blocks && held + v->masses[block] <= aim) held += v->masses[block++];
    while (last < 0) {
        const size_t size = patched(v, block, part);
        for (size_t i = 0; i < size; i++) {
            c[i].logit = part[i];
            c[i].token = (int32_t)(block * EDGE_SUM_BLOCK + i);
        }
        v->kernels->weigh(c, size, v->top, scale);
        for (size_t i = 0; i < size; i++) {
            if (part[i] == -INFINITY || !edge_allows(v->allowed, c[i].token)) continue;
            last = c[i].token;
            held += c[i].weight;
            if (held > aim) break;
        }
        block = block > 0 ? block - 1 : v->sum_blocks - 1;
    }
    return last;
}
