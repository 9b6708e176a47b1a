/* cuda_bf16.h of kernels/host: see cuda_runtime.h beside it. */
#ifndef GROUTER_HOST_CUDA_BF16_H
#define GROUTER_HOST_CUDA_BF16_H

#include <stdint.h>
#include <string.h>

struct __nv_bfloat16 {
    uint16_t bits;
};

static inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t wide = (uint32_t)x.bits << 16;
    float f;
    memcpy(&f, &wide, sizeof f);
    return f;
}

/* To nearest, ties to even; a NaN becomes the one the hardware makes. */
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return {(uint16_t)(x == x ? (u + 0x7fffu + (u >> 16 & 1u)) >> 16 : 0x7fffu)};
}

#endif
