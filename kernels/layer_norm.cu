/* layer_norm.cu: layer norm with ReLU and an optional residual.
 *
 *   forward   y = relu(n w + b) (+ residual),  n = (x - mean) * rstd,  rstd = 1/sqrt(variance + eps); mean, rstd saved
 *   backward  g = dy where n w + b > 0, else 0;  dx = rstd * (w g - mean(w g) - n mean(w g n)),
 *             dw += sum_i g n,  db += sum_i g
 *
 * Shapes and layout: packed rows [n_row, width]; w, b, dw, db fp32 [width]. A NaN in a row makes its y and dx NaN. w
 * g is rounded once for the sum and for what is compared with it (__fmul_rn: never part of a fused operation): a row
 * of one element has no gradient, not even a rounding error.
 * Order: fp32, as norm.cu: a lane takes every 32nd group of N elements, then the lanes as gr_warp_sum; dw and db a
 * warp's rows ascending, the warps of a block, the blocks as gr_partials_add. The variance is summed around the
 * mean.
 * Grid: a warp per row, 8 rows a block; backward: a block per gr_partial_rows rows with as many warps as have room
 * in shared memory for 2 width sums of their own.
 * Bytes: forward 2 (3 with a residual) n_row width elements; backward 3 and at most 1/2 of an fp32 element per
 * element for partials; rows are read again from the first-level cache. Flops: 8 and 16 per element. Limit: n_row <
 * 2^34.
 * No rows: nothing is launched, dw and db keep their values. CPU: cpu_layer_norm.c.
 * Measured (kernels.h): forward 2.47 TB/s, backward 1.62. */
#include "kernels/warp.cuh"

namespace {

constexpr int ROWS = 8; /* warps of a forward block */

/* A NaN passes. */
__device__ __forceinline__ float relu(float v) {
    return v <= 0 ? 0 : v;
}

/* Sum of the row, or of the squares of what is left without `mean`, to all lanes. */
template <typename A, int N, bool SQUARES> __device__ float row_sum(const A *x, int64_t width, float mean, int lane) {
    float sum = 0;
    for (int64_t j = lane * N; j < width; j += GR_WARP * N) {
        float u[N];
        gr_load<N>(x + j, u);
#pragma unroll
        for (int k = 0; k < N; k++)
            sum += SQUARES ? (u[k] - mean) * (u[k] - mean) : u[k];
    }
    return gr_warp_sum(sum);
}

template <typename A, int N> __global__ void __launch_bounds__(GR_WARP *ROWS) forward(gr_layer_norm a) {
    const int lane = (int)threadIdx.x;
    const int64_t i = (int64_t)blockIdx.x * ROWS + threadIdx.y;
    if (i >= a.n_row)
        return;
    const A *x = (const A *)a.x + i * a.width;
    const float mean = row_sum<A, N, false>(x, a.width, 0, lane) / (float)a.width;
    const float rstd = 1.0f / sqrtf(row_sum<A, N, true>(x, a.width, mean, lane) / (float)a.width + a.eps);
    if (lane == 0) {
        a.mean[i] = mean;
        a.rstd[i] = rstd;
    }
    for (int64_t j = lane * N; j < a.width; j += GR_WARP * N) {
        float u[N], w[N], b[N], residual[N] = {};
        gr_load<N>(x + j, u);
        gr_load<N>(a.w + j, w);
        gr_load<N>(a.b + j, b);
        if (a.residual)
            gr_load<N>((const A *)a.residual + i * a.width + j, residual);
#pragma unroll
        for (int k = 0; k < N; k++)
            u[k] = relu((u[k] - mean) * rstd * w[k] + b[k]) + residual[k];
        gr_store<N>((A *)a.y + i * a.width + j, u);
    }
}

typedef struct row_means {
    float wg, wgn; /* mean(w g), mean(w g n) */
} row_means;

/* Adds the row to this warp's sums dw and db. */
template <typename A, int N>
__device__ row_means means_of(const gr_layer_norm &a, int64_t i, int lane, float *dw, float *db) {
    const A *x = (const A *)a.x + i * a.width, *dy = (const A *)a.dy + i * a.width;
    const float mean = a.mean[i], rstd = a.rstd[i];
    float sum = 0, along = 0;
    for (int64_t j = lane * N; j < a.width; j += GR_WARP * N) {
        float u[N], d[N], w[N], b[N], w_sum[N], b_sum[N];
        gr_load<N>(x + j, u);
        gr_load<N>(dy + j, d);
        gr_load<N>(a.w + j, w);
        gr_load<N>(a.b + j, b);
        gr_load<N>(dw + j, w_sum);
        gr_load<N>(db + j, b_sum);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float n = (u[k] - mean) * rstd;
            const float g = n * w[k] + b[k] > 0 ? d[k] : 0, wg = __fmul_rn(w[k], g);
            w_sum[k] += g * n;
            b_sum[k] += g;
            sum += wg;
            along += wg * n;
        }
        gr_store<N>(dw + j, w_sum);
        gr_store<N>(db + j, b_sum);
    }
    return {gr_warp_sum(sum) / (float)a.width, gr_warp_sum(along) / (float)a.width};
}

template <typename A, int N> __device__ void dx_row(const gr_layer_norm &a, int64_t i, int lane, row_means m) {
    const A *x = (const A *)a.x + i * a.width, *dy = (const A *)a.dy + i * a.width;
    const float mean = a.mean[i], rstd = a.rstd[i];
    for (int64_t j = lane * N; j < a.width; j += GR_WARP * N) {
        float u[N], d[N], w[N], b[N];
        gr_load<N>(x + j, u);
        gr_load<N>(dy + j, d);
        gr_load<N>(a.w + j, w);
        gr_load<N>(a.b + j, b);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float n = (u[k] - mean) * rstd;
            const float g = n * w[k] + b[k] > 0 ? d[k] : 0, wg = __fmul_rn(w[k], g);
            u[k] = rstd * (wg - m.wg - n * m.wgn);
        }
        gr_store<N>((A *)a.dx + i * a.width + j, u);
    }
}

/* ROOM floats hold the sums of all warps, or there is one warp. A warp's sums, and a partial: dw, then db. */
template <typename A, int N, int ROOM>
__global__ void __launch_bounds__(GR_WARP *GR_WARPS_MAX) backward(gr_layer_norm a, float *partial) {
    __shared__ __align__(16) float room[ROOM];
    const int lane = (int)threadIdx.x, warp = (int)threadIdx.y, n_warp = (int)blockDim.y;
    const int64_t both = 2 * a.width;
    const bool in_room = n_warp * both <= ROOM;
    const int64_t each = gr_partial_rows(a.n_row), first = blockIdx.x * each, end = gr_at_most(first + each, a.n_row);
    float *total = partial + blockIdx.x * both, *own = in_room ? room + warp * both : total;
    for (int64_t j = lane * N; j < a.width; j += GR_WARP * N) {
        const float zero[N] = {};
        gr_store<N>(own + j, zero);
        gr_store<N>(own + a.width + j, zero);
    }
    for (int64_t i = first + warp; i < end; i += n_warp)
        dx_row<A, N>(a, i, lane, means_of<A, N>(a, i, lane, own, own + a.width));
    if (!in_room)
        return;
    __syncthreads();
    for (int64_t j = warp * GR_WARP + lane; j < both; j += n_warp * GR_WARP) {
        float sum = room[j];
        for (int w = 1; w < n_warp; w++)
            sum += room[w * both + j];
        total[j] = sum;
    }
}

template <typename A> bool is_wide(const gr_layer_norm *a) {
    return a->width % GR_WIDE<A> == 0 && gr_is_aligned16(a->x) && gr_is_aligned16(a->w) && gr_is_aligned16(a->b);
}

template <typename A> int launch_forward(cudaStream_t stream, const gr_layer_norm *a) {
    const dim3 block(GR_WARP, ROWS);
    const unsigned grid = gr_blocks(a->n_row, ROWS);
    if (is_wide<A>(a) && gr_is_aligned16(a->residual) && gr_is_aligned16(a->y))
        forward<A, GR_WIDE<A>><<<grid, block, 0, stream>>>(*a);
    else
        forward<A, 1><<<grid, block, 0, stream>>>(*a);
    return gr_launched();
}

template <typename A, int N> int launch_backward(cudaStream_t stream, const gr_layer_norm *a, float *partial) {
    const unsigned grid = (unsigned)gr_partial_count(a->n_row);
    const dim3 block(GR_WARP, (unsigned)gr_partial_warps(2 * a->width));
    if (2 * a->width * GR_WARPS_MAX <= GR_SUMS_FEW)
        backward<A, N, GR_SUMS_FEW><<<grid, block, 0, stream>>>(*a, partial);
    else
        backward<A, N, GR_SUMS_MANY><<<grid, block, 0, stream>>>(*a, partial);
    return gr_launched();
}

template <typename A> int launch_backward_of(cudaStream_t stream, const gr_layer_norm *a, float *partial) {
    const bool wide = is_wide<A>(a) && gr_is_aligned16(a->dy) && gr_is_aligned16(a->dx) && gr_is_aligned16(partial);
    return wide ? launch_backward<A, GR_WIDE<A>>(stream, a, partial) : launch_backward<A, 1>(stream, a, partial);
}

bool is_layer_norm(gr_dtype dtype, const gr_layer_norm *a) {
    return gr_is_act(dtype) && a->n_row >= 0 && a->n_row <= (int64_t)ROWS * 0x7fffffff && a->width > 0;
}

} // namespace

int gr_kernel_layer_norm_forward(void *stream, gr_dtype dtype, const gr_layer_norm *a) {
    if (!is_layer_norm(dtype, a))
        return cudaErrorInvalidValue;
    if (a->n_row == 0)
        return 0;
    return dtype == GR_BF16 ? launch_forward<gr_bf16>((cudaStream_t)stream, a)
                            : launch_forward<float>((cudaStream_t)stream, a);
}

int gr_kernel_layer_norm_backward(void *stream, gr_dtype dtype, const gr_layer_norm *a, void *scratch) {
    if (!is_layer_norm(dtype, a))
        return cudaErrorInvalidValue;
    if (a->n_row == 0)
        return 0;
    const cudaStream_t queue = (cudaStream_t)stream;
    const int64_t n_partial = gr_partial_count(a->n_row), both = 2 * a->width;
    float *partial = (float *)scratch;
    int failed = dtype == GR_BF16 ? launch_backward_of<gr_bf16>(queue, a, partial)
                                  : launch_backward_of<float>(queue, a, partial);
    if (!failed)
        failed = gr_partials_add(queue, partial, n_partial, both, a->width, a->dw);
    return failed ? failed : gr_partials_add(queue, partial + a->width, n_partial, both, a->width, a->db);
}
