/* device.cuh: what the kernels share: the storage types of activations, sums of a block in fixed order, launching. */
#ifndef GROUTER_KERNELS_DEVICE_CUH
#define GROUTER_KERNELS_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/kernels.h"

typedef __nv_bfloat16 gr_bf16;

/* An activation as a float and back: to nearest, ties to even; NaN stays NaN. */
static __device__ __forceinline__ float gr_act_load(float x) {
    return x;
}

static __device__ __forceinline__ float gr_act_load(gr_bf16 x) {
    return __bfloat162float(x);
}

template <typename T> static __device__ __forceinline__ T gr_act_store(float x);

template <> __device__ __forceinline__ float gr_act_store<float>(float x) {
    return x;
}

template <> __device__ __forceinline__ gr_bf16 gr_act_store<gr_bf16>(float x) {
    return __float2bfloat16_rn(x);
}

/* The sum of x over a block of THREADS (a power of 2), to every thread. room: THREADS values of shared memory; it may
 * be used again after the call. Order: halves added to halves, the same at every call. */
template <int THREADS, typename T> static __device__ __forceinline__ T gr_block_sum(T x, T *room) {
    static_assert(THREADS > 0 && (THREADS & (THREADS - 1)) == 0, "a power of 2");
    const int t = (int)threadIdx.x;
    room[t] = x;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half)
            room[t] += room[t + half];
        __syncthreads();
    }
    const T sum = room[0];
    __syncthreads();
    return sum;
}

/* ---------------------------------------------------------------- launching (host) */

static inline bool gr_is_act(gr_dtype dtype) {
    return dtype == GR_F32 || dtype == GR_BF16;
}

static inline bool gr_is_aligned16(const void *p) {
    return (uintptr_t)p % 16 == 0; /* NULL is */
}

static inline int gr_launched(void) {
    return (int)cudaGetLastError();
}

/* Blocks of `size` items for n items in one dimension of a grid, at most 2^31 - 1 (its x). */
static inline unsigned gr_blocks(int64_t n, int64_t size) {
    const int64_t most = INT64_C(0x7fffffff), blocks = (n + size - 1) / size;
    return (unsigned)(blocks < most ? blocks : most);
}

#endif
