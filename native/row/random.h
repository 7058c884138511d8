/* xoshiro256** (Blackman and Vigna 2018), seeded by splitmix64 (Steele et al. 2014). */
#ifndef EDGE_RANDOM_H
#define EDGE_RANDOM_H

#include <stdint.h>

typedef struct {
    uint64_t s[4];
} edge_random;

static inline void edge_seed(edge_random *random, uint64_t seed) {
    for (int i = 0; i < 4; i++) {
        seed += 0x9E3779B97F4A7C15u;
        uint64_t z = seed;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        random->s[i] = z ^ z >> 31;
    }
}

static inline uint64_t edge_rotate(uint64_t x, int by) { return x << by | x >> (64 - by); }

/* One double in [0, 1). */
static inline double edge_uniform(edge_random *random) {
    uint64_t *s = random->s;
    const uint64_t result = edge_rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = edge_rotate(s[3], 45);
    return (double)(result >> 11) * (1.0 / 9007199254740992.0);
}

#endif
