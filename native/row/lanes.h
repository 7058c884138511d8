/* Sixteen float lanes and what the passes do with them, for the instruction set whose file includes
 * this after defining one of LANES_AVX512, LANES_AVX2, LANES_NEON or none of them.
 *
 * Every set does the same operations on the same lanes in the same order, so that a row gives the same
 * bits everywhere: multiplication and addition are fused in l_fma and nowhere else. Masks are 16 bits,
 * lane 0 lowest.
 */
#include <math.h>
#include <string.h>

#include "kernels.h"

#if defined(LANES_AVX512)

typedef __m512 lanes;
static inline lanes l_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void l_store(float *p, lanes a) { _mm512_storeu_ps(p, a); }
static inline lanes l_set(float a) { return _mm512_set1_ps(a); }
static inline lanes l_add(lanes a, lanes b) { return _mm512_add_ps(a, b); }
static inline lanes l_sub(lanes a, lanes b) { return _mm512_sub_ps(a, b); }
static inline lanes l_mul(lanes a, lanes b) { return _mm512_mul_ps(a, b); }
static inline lanes l_fma(lanes a, lanes b, lanes c) { return _mm512_fmadd_ps(a, b, c); }
static inline lanes l_max(lanes a, lanes b) { return _mm512_max_ps(a, b); }
static inline uint32_t l_ge(lanes a, lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static inline uint32_t l_gt(lanes a, lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline uint32_t l_nan(lanes a, lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
static inline lanes l_pick(uint32_t mask, lanes a, lanes b) {
    return _mm512_mask_blend_ps((__mmask16)mask, b, a);
}
static inline lanes l_scale(lanes p, lanes shifted) {
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), n));
}

#elif defined(LANES_AVX2)

typedef struct { __m256 a, b; } lanes;
static inline lanes l_load(const float *p) {
    return (lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void l_store(float *p, lanes x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
static inline lanes l_set(float x) { return (lanes){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline lanes l_add(lanes x, lanes y) {
    return (lanes){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
static inline lanes l_sub(lanes x, lanes y) {
    return (lanes){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
static inline lanes l_mul(lanes x, lanes y) {
    return (lanes){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
static inline lanes l_fma(lanes x, lanes y, lanes z) {
    return (lanes){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline lanes l_max(lanes x, lanes y) {
    return (lanes){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
#define L_COMPARE(name, how)                                                        \
    static inline uint32_t name(lanes x, lanes y) {                                 \
        uint32_t low = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, how));  \
        uint32_t high = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, how)); \
        return low | high << 8;                                                     \
    }
L_COMPARE(l_ge, _CMP_GE_OQ)
L_COMPARE(l_gt, _CMP_GT_OQ)
L_COMPARE(l_nan, _CMP_UNORD_Q)
#undef L_COMPARE
static inline __m256 l_spread(uint32_t mask) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i set = _mm256_and_si256(_mm256_set1_epi32((int)mask), bits);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bits));
}
static inline lanes l_pick(uint32_t mask, lanes x, lanes y) {
    return (lanes){_mm256_blendv_ps(y.a, x.a, l_spread(mask)),
                   _mm256_blendv_ps(y.b, x.b, l_spread(mask >> 8))};
}
static inline __m256 l_scale8(__m256 p, __m256 shifted) {
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n));
}
static inline lanes l_scale(lanes p, lanes s) {
    return (lanes){l_scale8(p.a, s.a), l_scale8(p.b, s.b)};
}

#elif defined(LANES_NEON)

typedef struct { float32x4_t v[4]; } lanes;
#define L_EACH(expression)                            \
    lanes out;                                        \
    for (int i = 0; i < 4; i++) out.v[i] = expression; \
    return out
static inline lanes l_load(const float *p) { L_EACH(vld1q_f32(p + 4 * i)); }
static inline void l_store(float *p, lanes x) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
}
static inline lanes l_set(float x) { L_EACH(vdupq_n_f32(x)); }
static inline lanes l_add(lanes x, lanes y) { L_EACH(vaddq_f32(x.v[i], y.v[i])); }
static inline lanes l_sub(lanes x, lanes y) { L_EACH(vsubq_f32(x.v[i], y.v[i])); }
static inline lanes l_mul(lanes x, lanes y) { L_EACH(vmulq_f32(x.v[i], y.v[i])); }
static inline lanes l_fma(lanes x, lanes y, lanes z) {
    L_EACH(vfmaq_f32(z.v[i], x.v[i], y.v[i]));
}
/* As on x86: the second operand where the comparison is false. */
static inline lanes l_max(lanes x, lanes y) {
    L_EACH(vbslq_f32(vcgtq_f32(x.v[i], y.v[i]), x.v[i], y.v[i]));
}
static inline uint32_t l_bits4(uint32x4_t set) {
    const uint32x4_t weights = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(set, weights));
}
static inline uint32_t l_ge(lanes x, lanes y) {
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) out |= l_bits4(vcgeq_f32(x.v[i], y.v[i])) << (4 * i);
    return out;
}
static inline uint32_t l_gt(lanes x, lanes y) {
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) out |= l_bits4(vcgtq_f32(x.v[i], y.v[i])) << (4 * i);
    return out;
}
static inline uint32_t l_nan(lanes x, lanes y) {
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32x4_t fine = vandq_u32(vceqq_f32(x.v[i], x.v[i]), vceqq_f32(y.v[i], y.v[i]));
        out |= l_bits4(vmvnq_u32(fine)) << (4 * i);
    }
    return out;
}
static inline lanes l_pick(uint32_t mask, lanes x, lanes y) {
    const uint32x4_t bits = {1, 2, 4, 8};
    L_EACH(vbslq_f32(vtstq_u32(vdupq_n_u32(mask >> (4 * i)), bits), x.v[i], y.v[i]));
}
static inline lanes l_scale(lanes p, lanes s) {
    L_EACH(vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(p.v[i]),
                                           vshlq_n_u32(vreinterpretq_u32_f32(s.v[i]), 23))));
}
#undef L_EACH

#else

typedef struct { float v[16]; } lanes;
#define L_EACH(expression)                             \
    lanes out;                                         \
    for (int i = 0; i < 16; i++) out.v[i] = expression; \
    return out
static inline lanes l_load(const float *p) { L_EACH(p[i]); }
static inline void l_store(float *p, lanes x) { memcpy(p, x.v, sizeof x.v); }
static inline lanes l_set(float x) { L_EACH(x); }
static inline lanes l_add(lanes x, lanes y) { L_EACH(x.v[i] + y.v[i]); }
static inline lanes l_sub(lanes x, lanes y) { L_EACH(x.v[i] - y.v[i]); }
static inline lanes l_mul(lanes x, lanes y) { L_EACH(x.v[i] * y.v[i]); }
/* x * y + z rounded once. Without an instruction for it: the product is exact in double, the sum is
 * rounded to odd (Boldo and Melquiond 2008), and so the second rounding is right. */
static inline float fused(float x, float y, float z) {
#if defined(__FP_FAST_FMAF) || defined(FP_FAST_FMAF)
    return fmaf(x, y, z);
#else
    double product = (double)x * (double)y, sum = product + (double)z;
    double part = sum - product;
    double error = (product - (sum - part)) + ((double)z - part);
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    if (error != 0.0 && !(bits & 1)) bits += (error > 0.0) == (sum > 0.0) ? 1 : -(uint64_t)1;
    memcpy(&sum, &bits, sizeof bits);
    return (float)sum;
#endif
}
static inline lanes l_fma(lanes x, lanes y, lanes z) { L_EACH(fused(x.v[i], y.v[i], z.v[i])); }
static inline lanes l_max(lanes x, lanes y) { L_EACH(x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
#define L_COMPARE(name, test)                                              \
    static inline uint32_t name(lanes x, lanes y) {                        \
        uint32_t out = 0;                                                  \
        for (int i = 0; i < 16; i++) out |= (uint32_t)(test) << i;         \
        return out;                                                        \
    }
L_COMPARE(l_ge, x.v[i] >= y.v[i])
L_COMPARE(l_gt, x.v[i] > y.v[i])
L_COMPARE(l_nan, !(x.v[i] == x.v[i] && y.v[i] == y.v[i]))
#undef L_COMPARE
static inline lanes l_pick(uint32_t mask, lanes x, lanes y) {
    L_EACH((mask >> i & 1u) ? x.v[i] : y.v[i]);
}
static inline lanes l_scale(lanes p, lanes s) {
    lanes out;
    for (int i = 0; i < 16; i++) {
        uint32_t bits, shifted;
        memcpy(&bits, &p.v[i], 4);
        memcpy(&shifted, &s.v[i], 4);
        bits += shifted << 23;
        memcpy(&out.v[i], &bits, 4);
    }
    return out;
}
#undef L_EACH

#endif
