/* cross_entropy.cu: logits to losses and their gradients, in place.
 *
 *   loss_i = log sum_v exp(z_iv) - z_i,target;   z_iv := scale * (exp(z_iv) / sum_v exp(z_iv) - [v = target])
 *
 * Shapes and layout: logits act [n, V] packed, target [n] (-1: row zeroed, loss 0), loss double [n]. The target's
 * logit is read before the block's first barrier, and nothing is written before its last.
 * Order: fp32 within a thread, which takes every 128th or 1024th group of N logits and scales its sum whenever it
 * meets a larger one; then doubles: the lanes as gr_warp_sum, the warps in order. Gradients are rounded once.
 * Grid: a block per token: of 1024 threads, so that the few hundred KiB of a row of a large vocabulary are in flight
 * at once and its second reading finds it in the second-level cache; of 128 below 8192 logits.
 * Bytes: 2 n V elements read (the second time mostly from the second-level cache: 132 rows of 151,680 bf16 logits
 * are 40 MB), n V written. Flops: about 8 with two exponentials per logit. Limit: n < 2^31.
 * No tokens: nothing is launched. CPU: cpu_loss.c.
 * Measured (kernels.h): with its products, 490 TFLOP/s for the loss, 565 with gradients. */
#include "kernels/warp.cuh"

namespace {

constexpr int THREADS_MAX = 1024;

template <typename A, int N> __device__ void zero_row(A *z, int64_t V) {
    for (int64_t j = threadIdx.x * N; j < V; j += (int64_t)blockDim.x * N) {
        const float zero[N] = {};
        gr_store<N>(z + j, zero);
    }
}

template <typename A, int N> __device__ gr_exponentials exponentials_of(const A *z, int64_t V) {
    gr_exponentials e = gr_exponentials_none();
    for (int64_t j = threadIdx.x * N; j < V; j += (int64_t)blockDim.x * N) {
        float u[N];
        gr_load<N>(z + j, u);
#pragma unroll
        for (int k = 0; k < N; k++)
            gr_exponentials_take(&e, u[k]);
    }
    return e;
}

template <typename A, int N> __global__ void __launch_bounds__(THREADS_MAX) losses(gr_token_losses a) {
    __shared__ float largest_room[GR_WARP];
    __shared__ double sum_room[GR_WARP];
    const int64_t i = blockIdx.x;
    const int32_t target = a.target[i];
    A *z = (A *)a.logits + i * a.V;
    if (target < 0) {
        zero_row<A, N>(z, a.V);
        if (threadIdx.x == 0)
            a.loss[i] = 0;
        return;
    }
    const float hit = gr_act_load(z[target]);
    const gr_exponentials e = exponentials_of<A, N>(z, a.V);
    const float largest = gr_warps_max(e.largest, largest_room);
    const double sum = gr_warps_sum((double)gr_exponentials_share(&e, largest), sum_room);
    if (threadIdx.x == 0)
        a.loss[i] = log(sum) + ((double)largest - (double)hit);
    if (!a.gradient)
        return;
    const float factor = (float)((double)a.scale / sum);
    for (int64_t j = threadIdx.x * N; j < a.V; j += (int64_t)blockDim.x * N) {
        float u[N];
        gr_load<N>(z + j, u);
#pragma unroll
        for (int k = 0; k < N; k++)
            u[k] = expf(u[k] - largest) * factor - (j + k == target ? a.scale : 0.0f);
        gr_store<N>(z + j, u);
    }
}

template <typename A> int launch_losses(cudaStream_t stream, const gr_token_losses *a) {
    const int n_thread = a->V < 8192 ? 128 : THREADS_MAX;
    const unsigned grid = (unsigned)a->n;
    if (a->V % GR_WIDE<A> == 0 && gr_is_aligned16(a->logits))
        losses<A, GR_WIDE<A>><<<grid, n_thread, 0, stream>>>(*a);
    else
        losses<A, 1><<<grid, n_thread, 0, stream>>>(*a);
    return gr_launched();
}

} // namespace

int gr_kernel_token_losses(void *stream, gr_dtype dtype, const gr_token_losses *a) {
    if (!gr_is_act(dtype) || a->n < 0 || a->n > 0x7fffffff || a->V <= 0)
        return cudaErrorInvalidValue;
    if (a->n == 0)
        return 0;
    return dtype == GR_BF16 ? launch_losses<gr_bf16>((cudaStream_t)stream, a)
                            : launch_losses<float>((cudaStream_t)stream, a);
}
