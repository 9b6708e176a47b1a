/* swiglu.cuh: SwiGLU of one number between two products, by the device's fast exponential and division: their error of
 * a few units in the last place of a float does not show in bf16. */
#ifndef GROUTER_KERNELS_SWIGLU_CUH
#define GROUTER_KERNELS_SWIGLU_CUH

#include "kernels/device.cuh"

/* 1 / (1 + exp(-u)) */
static __device__ __forceinline__ float gr_sigmoid(float u) {
    return __fdividef(1.0f, 1.0f + __expf(-u));
}

/* g silu(u) v */
static __device__ __forceinline__ float gr_swiglu(float g, float u, float v) {
    return g * u * gr_sigmoid(u) * v;
}

/* What da, the gradient of silu(u) v without its gate, becomes. */
typedef struct gr_swiglu_gradient {
    float a, du, dv; /* a: g silu(u) v once more */
    float dgate;     /* da silu(u) v */
} gr_swiglu_gradient;

static __device__ __forceinline__ gr_swiglu_gradient gr_swiglu_backward(float g, float u, float v, float da) {
    const float sigmoid = gr_sigmoid(u), silu = u * sigmoid, d = g * da;
    return {g * u * sigmoid * v, d * v * (sigmoid + silu * (1.0f - sigmoid)), d * silu, da * silu * v};
}

#endif
