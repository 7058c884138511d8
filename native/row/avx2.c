/* The passes for AVX2 with FMA. */
#include "kernels.h"

#if defined(EDGE_X86)
#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,popcnt"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma,popcnt")
#include <immintrin.h>
#else
#include <intrin.h>
#endif
#define LANES_AVX2 1
#include "lanes.h"
#include "passes.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
const edge_kernels edge_avx2 = PASSES("avx2");
#else
const edge_kernels edge_avx2 = {0};
#endif
