/* warp.cuh: what kernels with a warp per row or a block per row share: several elements at a time, sums over a warp or
 * a block in fixed order, exponentials summed while their largest is still looked for.
 *
 * N is the number of elements a thread moves at once: 16 bytes of activations where rows and addresses allow it,
 * else 1. */
#ifndef GROUTER_KERNELS_WARP_CUH
#define GROUTER_KERNELS_WARP_CUH

#include "kernels/device.cuh"
#include "kernels/geometry.h"

#include <math.h>

constexpr int GR_WARP = 32;
constexpr unsigned GR_ALL_LANES = 0xffffffffu;

/* Elements of A in 16 bytes. */
template <typename A> constexpr int GR_WIDE = (int)(16 / sizeof(A));

/* ---------------------------------------------------------------- elements */

template <typename A, int N> struct alignas(sizeof(A) * N) gr_pack { A x[N]; };

/* N elements at `from` as floats, in loads of up to 16 bytes, to which `from` is aligned. */
template <int N, typename A> static __device__ __forceinline__ void gr_load(const A *from, float (&to)[N]) {
    constexpr int EACH = N < GR_WIDE<A> ? N : GR_WIDE<A>;
#pragma unroll
    for (int first = 0; first < N; first += EACH) {
        const gr_pack<A, EACH> part = *(const gr_pack<A, EACH> *)(from + first);
#pragma unroll
        for (int k = 0; k < EACH; k++)
            to[first + k] = gr_act_load(part.x[k]);
    }
}

template <int N, typename A> static __device__ __forceinline__ void gr_store(A *to, const float (&from)[N]) {
    constexpr int EACH = N < GR_WIDE<A> ? N : GR_WIDE<A>;
#pragma unroll
    for (int first = 0; first < N; first += EACH) {
        gr_pack<A, EACH> part;
#pragma unroll
        for (int k = 0; k < EACH; k++)
            part.x[k] = gr_act_store<A>(from[first + k]);
        *(gr_pack<A, EACH> *)(to + first) = part;
    }
}

/* ---------------------------------------------------------------- sums
 *
 * Every lane, and every thread, gets the same bits. All lanes of the warp, or threads of the block, must call. */

/* Lanes 16 apart first, then 8, 4, 2, 1. */
template <typename T> static __device__ __forceinline__ T gr_warp_sum(T x) {
#pragma unroll
    for (int apart = GR_WARP / 2; apart > 0; apart /= 2)
        x += __shfl_xor_sync(GR_ALL_LANES, x, apart);
    return x;
}

/* NaN only if there is nothing else. */
static __device__ __forceinline__ float gr_warp_max(float x) {
#pragma unroll
    for (int apart = GR_WARP / 2; apart > 0; apart /= 2)
        x = fmaxf(x, __shfl_xor_sync(GR_ALL_LANES, x, apart));
    return x;
}

/* Of a block of at most 32 whole warps: warp after warp. room: a T for each warp, free again after the call. */
template <typename T> static __device__ __forceinline__ T gr_warps_sum(T x, T *room) {
    const int n_warp = (int)blockDim.x / GR_WARP;
    x = gr_warp_sum(x);
    if (threadIdx.x % GR_WARP == 0)
        room[threadIdx.x / GR_WARP] = x;
    __syncthreads();
    T sum = room[0];
    for (int w = 1; w < n_warp; w++)
        sum += room[w];
    __syncthreads();
    return sum;
}

static __device__ __forceinline__ float gr_warps_max(float x, float *room) {
    const int n_warp = (int)blockDim.x / GR_WARP;
    x = gr_warp_max(x);
    if (threadIdx.x % GR_WARP == 0)
        room[threadIdx.x / GR_WARP] = x;
    __syncthreads();
    float largest = room[0];
    for (int w = 1; w < n_warp; w++)
        largest = fmaxf(largest, room[w]);
    __syncthreads();
    return largest;
}

/* ---------------------------------------------------------------- softmax in one pass */

/* Of the scores a thread has seen: the largest, and the sum of exp(score - largest). */
typedef struct gr_exponentials {
    float largest, sum;
} gr_exponentials;

static __device__ __forceinline__ gr_exponentials gr_exponentials_none(void) {
    return {-INFINITY, 0.0f};
}

/* As if all were summed once the largest is known: -infinity adds nothing, NaN and +infinity make the sum NaN. The
 * first score finds exp(-infinity) = 0. */
static __device__ __forceinline__ void gr_exponentials_take(gr_exponentials *e, float score) {
    if (score > e->largest) {
        e->sum = e->sum * expf(e->largest - score) + (1.0f + (score - score));
        e->largest = score;
    } else if (score != -INFINITY)
        e->sum += expf(score - e->largest);
}

/* The sum as it is relative to the block's largest; 0 of a thread that has seen nothing. */
static __device__ __forceinline__ float gr_exponentials_share(const gr_exponentials *e, float largest) {
    return e->sum == 0.0f ? 0.0f : e->sum * expf(e->largest - largest);
}

/* ---------------------------------------------------------------- launching (host) */

/* out[j] += sum over p < n_partial of partial[p * ld + j], for j < width; see geometry.h for the order. In sums.cu. */
int gr_partials_add(
    cudaStream_t stream, const float *partial, int64_t n_partial, int64_t ld, int64_t width, float *out);

#endif
