/* Passes over a row of logits, with one implementation per instruction set and the same bits from
 * each. A row is a float array; -inf is an impossible token. `allowed` is a bit per token or NULL.
 */
#ifndef EDGE_KERNELS_H
#define EDGE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#define EDGE_X86 1
#endif

#define EDGE_BLOCK 256      /* entries per maximum */
#define EDGE_SUM_BLOCK 1024 /* entries summed in float before they are added in double */

typedef struct {
    float logit;
    int32_t token;
    float weight; /* exp of (logit - best) * scale, see weigh */
} edge_candidate;

typedef struct {
    double mass;    /* sum of e = exp((x - best) * scale) */
    double moment;  /* sum of e * (x - best) * scale */
    double square;  /* sum of e^2 */
    double allowed; /* sum of e over the allowed tokens; mass without a mask */
} edge_sums;

typedef struct {
    double first, second; /* sums of (x - best) and its square over the possible tokens */
    size_t count;
} edge_spread;

typedef struct {
    /* The maximum of every block; returns whether an entry is NaN. */
    int (*maxima)(const float *x, size_t n, const uint32_t *allowed, float *out);
    /* `blocks` takes the allowed mass of every sum block, or is NULL. */
    void (*sums)(const float *x, size_t n, float best, float scale, const uint32_t *allowed,
                 double *blocks, edge_sums *out);
    /* Takes for every sum block the mass, as `sums` has it, of the allowed entries that come before
     * (value, token): larger than `value`, or equal at a smaller index. `maxima`, or NULL, says which
     * blocks hold none. With -inf and n it is the allowed mass. */
    void (*before)(const float *x, size_t n, float value, size_t token, float best, float scale,
                   const uint32_t *allowed, const float *maxima, double *blocks);
    /* Every allowed and untouched entry of at least `floor`, in order; returns how many. */
    size_t (*collect)(const float *x, size_t n, float floor, const float *maxima,
                      const uint32_t *allowed, const uint8_t *touched, edge_candidate *out);
    /* How many entries are larger than `value`. */
    size_t (*above)(const float *x, size_t n, float value, const float *maxima);
    void (*spread)(const float *x, size_t n, float best, edge_spread *out);
    void (*weigh)(edge_candidate *c, size_t n, float best, float scale);
    const char *name; /* avx512, avx2, neon or portable; NULL where not built */
} edge_kernels;

extern const edge_kernels edge_avx512, edge_avx2, edge_neon, edge_portable;

/* The kernels of the set named `name`, or of the best one where it is NULL; NULL where this machine
 * or this build has no such set. Names: avx512, avx2, neon, portable. */
const edge_kernels *edge_kernels_of(const char *name);

static inline int edge_allows(const uint32_t *allowed, int32_t token) {
    return allowed == NULL || (allowed[token >> 5] >> (token & 31) & 1);
}

/* Candidates in order: larger logit first, then smaller token. */
void edge_sort(edge_candidate *c, size_t n);

/* The value of the k-th largest of n floats, 1 <= k <= n; reorders them. */
float edge_kth_largest(float *x, size_t n, size_t k);

/* Reorders so that the k best come first, in no order. */
void edge_keep_best(edge_candidate *c, size_t n, size_t k);

/* Reorders so that the shortest run of best candidates whose weights reach `target` comes first and
 * ends with its worst; returns its length, n where all weigh less. The others are lost. */
size_t edge_keep_mass(edge_candidate *c, size_t n, double target);

#endif
