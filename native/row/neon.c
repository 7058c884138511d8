/* The passes for NEON on 64-bit Arm. */
#include "kernels.h"

#if defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>
#define LANES_NEON 1
#include "lanes.h"
#include "passes.h"
const edge_kernels edge_neon = PASSES("neon");
#else
const edge_kernels edge_neon = {0};
#endif
