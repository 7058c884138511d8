/* The passes for AVX-512 (F, BW, DQ, VL). */
#include "kernels.h"

#if defined(EDGE_X86)
#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,popcnt"))), \
                             apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,popcnt,prefer-vector-width=512")
#include <immintrin.h>
#else
#include <intrin.h>
#endif
#define LANES_AVX512 1
#include "lanes.h"
#include "passes.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
const edge_kernels edge_avx512 = PASSES("avx512");
#else
const edge_kernels edge_avx512 = {0};
#endif
