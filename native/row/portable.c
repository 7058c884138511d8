/* The passes in plain C, and the choice of an instruction set at run time. */
#include "kernels.h"

#if defined(_MSC_VER)
#include <intrin.h>
#endif
#include "lanes.h"
#include "passes.h"

const edge_kernels edge_portable = PASSES("portable");

static int has(const edge_kernels *set) {
    if (set->name == NULL) return 0;
#if defined(EDGE_X86)
    if (set == &edge_avx512 || set == &edge_avx2) {
#if defined(_MSC_VER) && !defined(__clang__)
        int leaf[4];
        __cpuid(leaf, 1);
        if (!(leaf[2] >> 27 & 1)) return 0; /* the system does not save wide registers */
        const int fma = leaf[2] >> 12 & 1;
        unsigned long long saved = _xgetbv(0);
        __cpuidex(leaf, 7, 0);
        if (set == &edge_avx2) return fma && (saved & 6) == 6 && (leaf[1] >> 5 & 1);
        const int wanted = 1 << 16 | 1 << 17 | 1 << 30 | (int)(1u << 31);
        return (saved & 0xe6) == 0xe6 && (leaf[1] & wanted) == wanted;
#else
        __builtin_cpu_init();
        if (set == &edge_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    }
#endif
    return 1;
}

const edge_kernels *edge_kernels_of(const char *name) {
    const edge_kernels *sets[] = {&edge_avx512, &edge_avx2, &edge_neon, &edge_portable};
    for (int i = 0; i < 4; i++)
        if (has(sets[i]) && (name == NULL || strcmp(name, sets[i]->name) == 0)) return sets[i];
    return NULL;
}
