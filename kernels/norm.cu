/* norm.cu: RMS norm over rows.
 *
 *   forward   y = x * rstd * w,  rstd = 1/sqrt(mean(x^2) + eps), saved
 *   backward  dx (+)= rstd * (w dy - x rstd^2 mean(w dy x)),  dw += sum_i dy x rstd
 *
 * Shapes and layout: n_row rows of `width`, those of x and dx every ldx elements, of y and dy every ldy. w and dw
 * fp32. dx may be dy: a row's only sum is complete before its first element is written, and every element is written
 * by the lane that read it. Heads in rows: head_norm.cu.
 * Order: fp32. A row's sum: a lane takes every 32nd group of N elements, then the lanes as gr_warp_sum. dw: a warp's
 * rows ascending, the warps of a block, then the blocks as gr_partials_add; equal on every GPU.
 * Grid: a warp per row, 8 rows a block: widths of 384 to 8192 all keep 32 lanes reading whole lines, and nothing is
 * synchronised. Backward: a block per gr_partial_rows rows, as many warps as have room in shared memory for their
 * own sums of dw (8 up to a width of 1536; wider than 12288: one, whose sums are its partial), which no two lanes
 * share.
 * Bytes: forward 2 n_row width elements and 4 n_row; backward 3 (4 with GR_ACCUMULATE) and at most 1/4 of an fp32
 * element per element for partials. A row is read twice but from memory once: 8 rows stay in the first-level cache.
 * Flops: 4 and 10 per element. Limit: n_row < 2^34.
 * No rows: nothing is launched, dw keeps its value. CPU: cpu_norm.c.
 * Measured (kernels.h): 2.09 TB/s forward, 1.90 backward. */
#include "kernels/warp.cuh"

namespace {

constexpr int ROWS = 8; /* warps of a forward block */

/* Sum of the row's squares, to all lanes. */
template <typename A, int N> __device__ float squares(const A *x, int64_t width, int lane) {
    float sum = 0;
    for (int64_t j = lane * N; j < width; j += GR_WARP * N) {
        float u[N];
        gr_load<N>(x + j, u);
#pragma unroll
        for (int k = 0; k < N; k++)
            sum += u[k] * u[k];
    }
    return gr_warp_sum(sum);
}

template <typename A, int N> __global__ void __launch_bounds__(GR_WARP *ROWS) forward(gr_norm a) {
    const int lane = (int)threadIdx.x;
    const int64_t i = (int64_t)blockIdx.x * ROWS + threadIdx.y;
    if (i >= a.n_row)
        return;
    const A *x = (const A *)a.x + i * a.ldx;
    A *y = (A *)a.y + i * a.ldy;
    const float rstd = 1.0f / sqrtf(squares<A, N>(x, a.width, lane) / (float)a.width + a.eps);
    if (lane == 0)
        a.rstd[i] = rstd;
    for (int64_t j = lane * N; j < a.width; j += GR_WARP * N) {
        float u[N], w[N];
        gr_load<N>(x + j, u);
        gr_load<N>(a.w + j, w);
#pragma unroll
        for (int k = 0; k < N; k++)
            u[k] = u[k] * rstd * w[k];
        gr_store<N>(y + j, u);
    }
}

/* mean(w dy x) rstd^2, to all lanes. */
template <typename A, int N>
__device__ float along_row(const gr_norm &a, const A *x, const A *dy, float rstd, int lane) {
    float sum = 0;
    for (int64_t j = lane * N; j < a.width; j += GR_WARP * N) {
        float u[N], d[N], w[N];
        gr_load<N>(x + j, u);
        gr_load<N>(dy + j, d);
        gr_load<N>(a.w + j, w);
#pragma unroll
        for (int k = 0; k < N; k++)
            sum += w[k] * d[k] * u[k];
    }
    return rstd * rstd * gr_warp_sum(sum) / (float)a.width;
}

/* dw: this warp's sums. */
template <typename A, int N> __device__ void backward_row(const gr_norm &a, int64_t i, int lane, float *dw) {
    const A *x = (const A *)a.x + i * a.ldx;
    const A *dy = (const A *)a.dy + i * a.ldy;
    A *dx = (A *)a.dx + i * a.ldx;
    const float rstd = a.rstd[i], along = along_row<A, N>(a, x, dy, rstd, lane);
    for (int64_t j = lane * N; j < a.width; j += GR_WARP * N) {
        float u[N], d[N], w[N], sum[N], out[N] = {};
        gr_load<N>(x + j, u);
        gr_load<N>(dy + j, d);
        gr_load<N>(a.w + j, w);
        gr_load<N>(dw + j, sum);
        if (a.dx_write == GR_ACCUMULATE)
            gr_load<N>(dx + j, out);
#pragma unroll
        for (int k = 0; k < N; k++) {
            sum[k] += d[k] * u[k] * rstd;
            out[k] += rstd * (w[k] * d[k] - u[k] * along);
        }
        gr_store<N>(dw + j, sum);
        gr_store<N>(dx + j, out);
    }
}

/* ROOM floats hold the sums of all warps, or there is one warp. partial [gr_partial_count, width]. */
template <typename A, int N, int ROOM>
__global__ void __launch_bounds__(GR_WARP *GR_WARPS_MAX) backward(gr_norm a, float *partial) {
    __shared__ __align__(16) float room[ROOM];
    const int lane = (int)threadIdx.x, warp = (int)threadIdx.y, n_warp = (int)blockDim.y;
    const bool in_room = n_warp * a.width <= ROOM;
    const int64_t each = gr_partial_rows(a.n_row), first = blockIdx.x * each, end = gr_at_most(first + each, a.n_row);
    float *total = partial + blockIdx.x * a.width, *own = in_room ? room + warp * a.width : total;
    for (int64_t j = lane * N; j < a.width; j += GR_WARP * N) {
        const float zero[N] = {};
        gr_store<N>(own + j, zero);
    }
    for (int64_t i = first + warp; i < end; i += n_warp)
        backward_row<A, N>(a, i, lane, own);
    if (!in_room)
        return;
    __syncthreads();
    for (int64_t j = warp * GR_WARP + lane; j < a.width; j += n_warp * GR_WARP) {
        float sum = room[j];
        for (int w = 1; w < n_warp; w++)
            sum += room[w * a.width + j];
        total[j] = sum;
    }
}

/* Rows whose every group of N elements begins at 16 bytes. */
template <typename A> bool is_wide(const gr_norm *a) {
    constexpr int N = GR_WIDE<A>;
    return a->width % N == 0 && a->ldx % N == 0 && a->ldy % N == 0 && gr_is_aligned16(a->x) && gr_is_aligned16(a->w);
}

template <typename A> int launch_forward(cudaStream_t stream, const gr_norm *a) {
    const dim3 block(GR_WARP, ROWS);
    const unsigned grid = gr_blocks(a->n_row, ROWS);
    if (is_wide<A>(a) && gr_is_aligned16(a->y))
        forward<A, GR_WIDE<A>><<<grid, block, 0, stream>>>(*a);
    else
        forward<A, 1><<<grid, block, 0, stream>>>(*a);
    return gr_launched();
}

template <typename A, int N> int launch_backward(cudaStream_t stream, const gr_norm *a, float *partial) {
    const unsigned grid = (unsigned)gr_partial_count(a->n_row);
    const dim3 block(GR_WARP, (unsigned)gr_partial_warps(a->width));
    if (a->width * GR_WARPS_MAX <= GR_SUMS_FEW)
        backward<A, N, GR_SUMS_FEW><<<grid, block, 0, stream>>>(*a, partial);
    else
        backward<A, N, GR_SUMS_MANY><<<grid, block, 0, stream>>>(*a, partial);
    return gr_launched();
}

template <typename A> int launch_backward_of(cudaStream_t stream, const gr_norm *a, float *partial) {
    const bool wide = is_wide<A>(a) && gr_is_aligned16(a->dy) && gr_is_aligned16(a->dx) && gr_is_aligned16(partial);
    return wide ? launch_backward<A, GR_WIDE<A>>(stream, a, partial) : launch_backward<A, 1>(stream, a, partial);
}

bool is_norm(gr_dtype dtype, const gr_norm *a) {
    return gr_is_act(dtype) && a->n_row >= 0 && a->n_row <= (int64_t)ROWS * 0x7fffffff && a->width > 0;
}

} // namespace

int gr_kernel_norm_forward(void *stream, gr_dtype dtype, const gr_norm *a) {
    if (!is_norm(dtype, a))
        return cudaErrorInvalidValue;
    if (a->n_row == 0)
        return 0;
    return dtype == GR_BF16 ? launch_forward<gr_bf16>((cudaStream_t)stream, a)
                            : launch_forward<float>((cudaStream_t)stream, a);
}

int gr_kernel_norm_backward(void *stream, gr_dtype dtype, const gr_norm *a, void *scratch) {
    if (!is_norm(dtype, a))
        return cudaErrorInvalidValue;
    if (a->n_row == 0)
        return 0;
    const cudaStream_t queue = (cudaStream_t)stream;
    float *partial = (float *)scratch;
    const int failed = dtype == GR_BF16 ? launch_backward_of<gr_bf16>(queue, a, partial)
                                        : launch_backward_of<float>(queue, a, partial);
    return failed ? failed : gr_partials_add(queue, partial, gr_partial_count(a->n_row), a->width, a->width, a->dw);
}
