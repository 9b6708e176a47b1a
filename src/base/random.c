/* Counter-based random numbers: every draw is a pure function of (seed, stream, index). */
#include <math.h>
#include <string.h>

#include "grouter/base.h"

void gr_philox(uint64_t key, uint64_t counter_lo, uint64_t counter_hi, uint32_t out[4]) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)counter_lo, c1 = (uint32_t)(counter_lo >> 32);
    uint32_t c2 = (uint32_t)counter_hi, c3 = (uint32_t)(counter_hi >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

uint64_t gr_random_u64(uint64_t seed, uint64_t stream, uint64_t i) {
    uint32_t w[4];
    gr_philox(seed, i, stream, w);
    return (uint64_t)w[1] << 32 | w[0];
}

uint32_t gr_random_below(uint64_t seed, uint64_t stream, uint64_t i, uint32_t n) {
    GR_ASSERT(n >= 1, "n %u", n);
    /* Multiply-shift over 64 random bits: the bias, below n / 2^64, is far below anything observable. */
    return (uint32_t)((unsigned __int128)gr_random_u64(seed, stream, i) * n >> 64);
}

float gr_random_normal(uint64_t seed, uint64_t stream, uint64_t i) {
    uint32_t w[4];
    gr_philox(seed, i, stream, w);
    double u = ((double)w[0] + 1.0) * 0x1p-32; /* (0, 1]: the logarithm is finite */
    double v = (double)w[1] * 0x1p-32;
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

uint64_t gr_stream_id(const char *name) {
    return gr_hash64(name, strlen(name));
}

/* Smallest even number of bits that covers n, so that both Feistel halves are equal. */
static unsigned half_bits(uint64_t n) {
    unsigned bits = n > 1 ? 64u - (unsigned)__builtin_clzll(n - 1) : 1u;
    return (bits + 1) / 2;
}

uint64_t gr_bijection(uint64_t key, uint64_t n, uint64_t index) {
    GR_ASSERT(index < n, "index %llu of %llu", (unsigned long long)index, (unsigned long long)n);
    unsigned bits = half_bits(n);
    uint64_t mask = ((uint64_t)1 << bits) - 1;
    uint64_t x = index;
    /* The network permutes 4^bits < 4n values; walking the cycle until x < n stays a permutation of [0,n). */
    do {
        uint64_t left = x >> bits, right = x & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t mixed = left ^ (gr_random_u64(key, round, right) & mask);
            left = right;
            right = mixed;
        }
        x = left << bits | right;
    } while (x >= n);
    return x;
}
