/* The passes over a row of logits, written once over sixteen lanes; see kernels.h.
 *
 * Included once by each instruction set's file, after lanes.h.
 */

#if defined(_MSC_VER)
static inline int lowest(uint32_t bits) {
    unsigned long at;
    _BitScanForward(&at, bits);
    return (int)at;
}
static inline int ones(uint32_t bits) { return (int)__popcnt(bits); }
#else
static inline int lowest(uint32_t bits) { return __builtin_ctz(bits); }
static inline int ones(uint32_t bits) { return __builtin_popcount(bits); }
#endif

/* 2^t for -125 <= t <= 0.5, relative error below 3e-7: the nearest integer, and on the rest a
 * polynomial of degree 5, minimax in the relative error on [-0.5, 0.5]. */
static inline lanes two_to(lanes t) {
    lanes shifted = l_add(t, l_set(12582912.0f));
    lanes f = l_sub(t, l_sub(shifted, l_set(12582912.0f)));
    lanes p = l_set(1.32765e-3f);
    p = l_fma(p, f, l_set(9.67554e-3f));
    p = l_fma(p, f, l_set(5.550713e-2f));
    p = l_fma(p, f, l_set(2.402212e-1f));
    p = l_fma(p, f, l_set(6.9314697e-1f));
    p = l_fma(p, f, l_set(1.00000007f));
    return l_scale(p, shifted);
}

static inline float highest(lanes a) {
    float lane[16];
    l_store(lane, a);
    float best = lane[0];
    for (int i = 1; i < 16; i++) best = lane[i] > best ? lane[i] : best;
    return best;
}

static inline uint32_t sixteen(const uint32_t *allowed, size_t at) {
    return allowed[at >> 5] >> (at & 16) & 0xffffu;
}

/* Sixteen entries from `at` on; those beyond the end are -inf. */
static inline lanes tail(const float *x, size_t n, size_t at) {
    float rest[16];
    for (size_t i = 0; i < 16; i++) rest[i] = at + i < n ? x[at + i] : -INFINITY;
    return l_load(rest);
}

static int maxima(const float *x, size_t n, const uint32_t *allowed, float *out) {
    const lanes nothing = l_set(-INFINITY);
    uint32_t nan = 0;
    for (size_t start = 0, block = 0; start < n; start += EDGE_BLOCK, block++) {
        size_t end = start + EDGE_BLOCK < n ? start + EDGE_BLOCK : n, i = start;
        lanes a = nothing, b = nothing, c = nothing, d = nothing;
        if (allowed == NULL) {
            for (; i + 64 <= end; i += 64) {
                lanes x0 = l_load(x + i), x1 = l_load(x + i + 16);
                lanes x2 = l_load(x + i + 32), x3 = l_load(x + i + 48);
                nan |= l_nan(x0, x1) | l_nan(x2, x3);
                a = l_max(x0, a);
                b = l_max(x1, b);
                c = l_max(x2, c);
                d = l_max(x3, d);
            }
        }
        for (; i < end; i += 16) {
            lanes v = i + 16 <= end ? l_load(x + i) : tail(x, n, i);
            nan |= l_nan(v, v);
            a = l_max(allowed == NULL ? v : l_pick(sixteen(allowed, i), v, nothing), a);
        }
        out[block] = highest(l_max(l_max(a, b), l_max(c, d)));
    }
    return nan != 0;
}

static void sums(const float *x, size_t n, float best, float scale,
                         const uint32_t *allowed, double *blocks, edge_sums *out) {
    const lanes m = l_set(best), by = l_set(scale * 1.44269504088896341f);
    const lanes least = l_set(-125.0f), zero = l_set(0.0f);
    double mass[16] = {0}, moment[16] = {0}, square[16] = {0}, within[16] = {0};
    for (size_t start = 0, block = 0; start < n; start += EDGE_SUM_BLOCK, block++) {
        size_t end = start + EDGE_SUM_BLOCK < n ? start + EDGE_SUM_BLOCK : n;
        lanes z = zero, w = zero, c = zero, inside = zero;
        for (size_t i = start; i < end; i += 16) {
            lanes v = i + 16 <= end ? l_load(x + i) : tail(x, n, i);
            lanes t = l_max(l_mul(l_sub(v, m), by), least);
            lanes e = two_to(t);
            z = l_add(z, e);
            w = l_fma(e, t, w);
            c = l_fma(e, e, c);
            if (allowed) inside = l_add(inside, l_pick(sixteen(allowed, i), e, zero));
        }
        float lane[4][16];
        l_store(lane[0], z);
        l_store(lane[1], w);
        l_store(lane[2], c);
        l_store(lane[3], allowed ? inside : z);
        for (int i = 0; i < 16; i++) {
            mass[i] += lane[0][i];
            moment[i] += lane[1][i];
            square[i] += lane[2][i];
            within[i] += lane[3][i];
        }
        if (blocks != NULL) {
            double total = 0.0;
            for (int i = 0; i < 16; i++) total += lane[3][i];
            blocks[block] = total;
        }
    }
    *out = (edge_sums){0};
    for (int i = 0; i < 16; i++) {
        out->mass += mass[i];
        out->moment += moment[i];
        out->square += square[i];
        out->allowed += within[i];
    }
    out->moment *= 0.69314718055994531;
}

static void before(const float *x, size_t n, float value, size_t token, float best, float scale,
                   const uint32_t *allowed, const float *maxima, double *blocks) {
    const lanes m = l_set(best), by = l_set(scale * 1.44269504088896341f), edge = l_set(value);
    const lanes least = l_set(-125.0f), zero = l_set(0.0f);
    for (size_t start = 0; start < n; start += EDGE_SUM_BLOCK) {
        size_t end = start + EDGE_SUM_BLOCK < n ? start + EDGE_SUM_BLOCK : n;
        lanes z = zero;
        for (size_t i = start; i < end; i += 16) {
            if (i % EDGE_BLOCK == 0 && maxima != NULL && maxima[i / EDGE_BLOCK] < value) {
                i += EDGE_BLOCK - 16;
                continue;
            }
            lanes v = i + 16 <= end ? l_load(x + i) : tail(x, n, i);
            uint32_t hits = i < token ? l_ge(v, edge) : l_gt(v, edge);
            if (i < token && token < i + 16) hits &= l_gt(v, edge) | ((1u << (token - i)) - 1u);
            if (allowed != NULL) hits &= sixteen(allowed, i);
            lanes e = two_to(l_max(l_mul(l_sub(v, m), by), least));
            z = l_add(z, l_pick(hits, e, zero));
        }
        float lane[16];
        double total = 0.0;
        l_store(lane, z);
        for (int i = 0; i < 16; i++) total += lane[i];
        blocks[start / EDGE_SUM_BLOCK] = total;
    }
}

static size_t collect(const float *x, size_t n, float floor, const float *maxima,
                              const uint32_t *allowed, const uint8_t *touched,
                              edge_candidate *out) {
    const lanes least = l_set(floor);
    size_t count = 0;
    for (size_t start = 0, block = 0; start < n; start += EDGE_BLOCK, block++) {
        if (!(maxima[block] >= floor) || maxima[block] == -INFINITY) continue;
        size_t end = start + EDGE_BLOCK < n ? start + EDGE_BLOCK : n;
        for (size_t i = start; i < end; i += 16) {
            lanes v = i + 16 <= end ? l_load(x + i) : tail(x, n, i);
            uint32_t hits = l_ge(v, least);
            if (allowed != NULL) hits &= sixteen(allowed, i);
            for (; hits; hits &= hits - 1) {
                size_t at = i + (size_t)lowest(hits);
                if (at < n && !touched[at] && x[at] > -INFINITY)
                    out[count++] = (edge_candidate){x[at], (int32_t)at, 0.0f};
            }
        }
    }
    return count;
}

static size_t above(const float *x, size_t n, float value, const float *maxima) {
    const lanes least = l_set(value);
    size_t count = 0;
    for (size_t start = 0, block = 0; start < n; start += EDGE_BLOCK, block++) {
        if (!(maxima[block] > value)) continue;
        size_t end = start + EDGE_BLOCK < n ? start + EDGE_BLOCK : n;
        for (size_t i = start; i < end; i += 16) {
            lanes v = i + 16 <= end ? l_load(x + i) : tail(x, n, i);
            uint32_t hits = l_gt(v, least);
            count += (size_t)ones(hits);
        }
    }
    return count;
}

static void spread(const float *x, size_t n, float best, edge_spread *out) {
    const lanes m = l_set(best), nothing = l_set(-INFINITY), zero = l_set(0.0f);
    double first[16] = {0}, second[16] = {0};
    size_t count = 0;
    for (size_t start = 0; start < n; start += EDGE_SUM_BLOCK) {
        size_t end = start + EDGE_SUM_BLOCK < n ? start + EDGE_SUM_BLOCK : n;
        lanes s = zero, q = zero;
        for (size_t i = start; i < end; i += 16) {
            lanes v = i + 16 <= end ? l_load(x + i) : tail(x, n, i);
            uint32_t possible = l_gt(v, nothing);
            lanes d = l_pick(possible, l_sub(v, m), zero);
            s = l_add(s, d);
            q = l_fma(d, d, q);
            count += (size_t)ones(possible);
        }
        float lane[2][16];
        l_store(lane[0], s);
        l_store(lane[1], q);
        for (int i = 0; i < 16; i++) {
            first[i] += lane[0][i];
            second[i] += lane[1][i];
        }
    }
    *out = (edge_spread){0.0, 0.0, count};
    for (int i = 0; i < 16; i++) {
        out->first += first[i];
        out->second += second[i];
    }
}

static void weigh(edge_candidate *c, size_t n, float best, float scale) {
    const lanes m = l_set(best), by = l_set(scale * 1.44269504088896341f);
    const lanes least = l_set(-125.0f);
    float part[16];
    for (size_t start = 0; start < n; start += 16) {
        size_t size = n - start < 16 ? n - start : 16;
        for (size_t i = 0; i < 16; i++) part[i] = i < size ? c[start + i].logit : best;
        l_store(part, two_to(l_max(l_mul(l_sub(l_load(part), m), by), least)));
        for (size_t i = 0; i < size; i++) c[start + i].weight = part[i];
    }
}

#define PASSES(name) {maxima, sums, before, collect, above, spread, weigh, name}
