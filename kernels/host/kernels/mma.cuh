/* mma.cuh of kernels/host: see kernels/mma.cuh, of which this is the meaning on the CPU. */
#ifndef GROUTER_HOST_MMA_CUH
#define GROUTER_HOST_MMA_CUH

#include "kernels/device.cuh"

static inline float gr_host_half(uint32_t pair, int high) {
    return __bfloat162float(__nv_bfloat16{(uint16_t)(pair >> 16 * high)});
}

/* Row (of a) or column (of b) i of the lanes 4 i .. 4 i + 3, as floats [16]: their registers low and high hold the
 * numbers 2t, 2t+1 and 2t+8, 2t+9. */
static inline void gr_host_gather(uint32_t low, uint32_t high, int i, float (&to)[16]) {
    for (int t = 0; t < 4; t++) {
        const uint64_t both = gr_host::shuffle(gr_host::SHUFFLE, 0xffffffffu, (uint64_t)high << 32 | low, 4 * i + t);
        for (int k = 0; k < 2; k++) {
            to[2 * t + k] = gr_host_half((uint32_t)both, k);
            to[2 * t + 8 + k] = gr_host_half((uint32_t)(both >> 32), k);
        }
    }
}

static inline void gr_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const int g = gr_host::lane() / 4, t = gr_host::lane() % 4;
    float upper[16], lower[16], left[16], right[16];
    gr_host_gather(a[0], a[2], g, upper);
    gr_host_gather(a[1], a[3], g, lower);
    gr_host_gather(b0, b1, 2 * t, left);
    gr_host_gather(b0, b1, 2 * t + 1, right);
    for (int k = 0; k < 16; k++) {
        d[0] += upper[k] * left[k];
        d[1] += upper[k] * right[k];
        d[2] += lower[k] * left[k];
        d[3] += lower[k] * right[k];
    }
}

static inline void gr_load_turned(const gr_bf16 *row, uint32_t (&b)[4]) {
    const int g = gr_host::lane() / 4, t = gr_host::lane() % 4;
    for (int m = 0; m < 4; m++) {
        const gr_bf16 *low = gr_host::shuffle(gr_host::SHUFFLE, 0xffffffffu, row, 8 * m + 2 * t);
        const gr_bf16 *high = gr_host::shuffle(gr_host::SHUFFLE, 0xffffffffu, row, 8 * m + 2 * t + 1);
        b[m] = (uint32_t)high[g].bits << 16 | low[g].bits;
    }
}

static inline uint32_t gr_pair(float low, float high) {
    return (uint32_t)__float2bfloat16_rn(high).bits << 16 | __float2bfloat16_rn(low).bits;
}

#endif
