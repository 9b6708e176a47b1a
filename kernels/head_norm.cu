/* head_norm.cu: RMS norm and rotary embedding of the heads of q and k, in one pass.
 *
 *   forward   y = turn(x * rstd * w),  rstd = 1/sqrt(mean(x^2) + eps) over a head, saved
 *   backward  d = dy turned back;  dx = rstd * (w d - x rstd^2 mean(w d x)),  dw += sum over heads of d x rstd
 *   turn      y1 = u1 c - u2 s,  y2 = u2 c + u1 s  with 1 and 2 at i and i + head_dim/2 of a head, c and s of position
 *             row % T and i; back: by the negative angle; an odd head's last element stays
 *
 * Shapes and layout: n_row rows, those of x and dx every ldx elements, of y and dy every ldy, each with n_q heads of
 * head_dim, then n_k; wq, wk, dwq, dwk fp32 [head_dim]; cosine and sine fp32 [T, head_dim/2] or NULL. dx may be dy: the
 * head's only sum is complete before its first element is written, and every pair is written by the lane that read it.
 * Order: fp32, rounded once at the end. Heads in registers: a lane's pairs, then the lanes of the head, those farthest
 * apart first; dw a lane's heads ascending, the heads of a warp, its warps, then the blocks as gr_partials_add. Other
 * heads: as norm.cu. Equal on every GPU.
 * Grid: a block of 8 warps per part (geometry.h): heads of q or heads of k, so that a block has one w. A head is held
 * by the fewest lanes, a power of two, that take 16 bytes of each half: bf16 heads of 64 are 4 lanes, of 128 8, and a
 * warp takes 8 or 4 heads at a time, of which every element is read once and all lanes but those of 48, 80, 96, ...
 * have work. Heads of a row read the same angles and w from the first-level cache. Heads that 16 bytes do not divide,
 * that begin elsewhere or are wider than a warp holds (bf16 512, fp32 256) take a warp each, which reads them twice.
 * Bytes, with n = n_row (n_q + n_k): forward 2 n head_dim elements and 4 n; backward 3 n head_dim elements, 4 n and at
 * most 1/64 of an fp32 element per element for partials; angles 4 T head_dim. Flops: 7 and 14 per element. Limits:
 * n < 2^38, n_q + n_k and T < 2^31.
 * No heads: nothing is launched, dw keeps its value. CPU: cpu_head_norm.c.
 * Not measured on a GPU yet. */
#include "kernels/warp.cuh"

namespace {

constexpr int WARPS = 8, THREADS = GR_WARP * WARPS;

/* ---------------------------------------------------------------- pairs */

__host__ __device__ __forceinline__ gr_heads heads_of(const gr_head_norm &a) {
    return {a.n_row, a.n_q, a.n_k, a.cosine ? a.T : 0};
}

/* Where a head lies in x and y, its angles, its rstd. */
struct head_at {
    int64_t x, y, angle, rstd;
};

__device__ __forceinline__ head_at locate(const gr_head_norm &a, const gr_head_part &part, int i) {
    const gr_head_place at = gr_head_place_of(&part, i);
    const int64_t in_row = at.column * a.head_dim;
    return {at.row * a.ldx + in_row, at.row * a.ldy + in_row, at.position * (a.head_dim / 2),
        at.row * (a.n_q + a.n_k) + at.column};
}

/* N pairs (u, v) from i on turn by the angles of their head; sign -1: back. */
template <int N>
__device__ __forceinline__ void turn(const gr_head_norm &a, int64_t angle, float sign, float (&u)[N], float (&v)[N]) {
    float c[N], s[N];
    if (!a.cosine)
        return;
    gr_load<N>(a.cosine + angle, c);
    gr_load<N>(a.sine + angle, s);
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float u_k = u[k], v_k = v[k], s_k = sign * s[k];
        u[k] = u_k * c[k] - v_k * s_k;
        v[k] = v_k * c[k] + u_k * s_k;
    }
}

/* x := x * rstd * w. */
template <int N> __device__ __forceinline__ void scale(const float *w, float rstd, float (&x)[N]) {
    float w_k[N];
    gr_load<N>(w, w_k);
#pragma unroll
    for (int k = 0; k < N; k++)
        x[k] = x[k] * rstd * w_k[k];
}

/* dw += d x rstd, then d := w d; returns the sum of w d x. */
template <int N>
__device__ __forceinline__ float weigh(const float *w, float rstd, const float (&x)[N], float (&d)[N], float (&dw)[N]) {
    float w_k[N], sum = 0;
    gr_load<N>(w, w_k);
#pragma unroll
    for (int k = 0; k < N; k++) {
        dw[k] += d[k] * x[k] * rstd;
        d[k] *= w_k[k];
        sum += d[k] * x[k];
    }
    return sum;
}

template <int N> __device__ __forceinline__ float squares(const float (&x)[N]) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < N; k++)
        sum += x[k] * x[k];
    return sum;
}

/* To dx, of d = w d. */
template <int N, typename A>
__device__ __forceinline__ void put_dx(A *dx, float rstd, float along, const float (&x)[N], float (&d)[N]) {
#pragma unroll
    for (int k = 0; k < N; k++)
        d[k] = rstd * (d[k] - x[k] * along);
    gr_store<N>(dx, d);
}

/* Of the `lanes` neighbours that hold a head, to all of them. All lanes of the warp must call. */
__device__ __forceinline__ float head_sum(float x, int lanes) {
    for (int apart = lanes / 2; apart > 0; apart /= 2)
        x += __shfl_xor_sync(GR_ALL_LANES, x, apart);
    return x;
}

/* ---------------------------------------------------------------- heads that a warp holds in registers */

template <typename A, int N> __global__ void __launch_bounds__(THREADS) forward(gr_head_norm a, int lanes) {
    const gr_heads all = heads_of(a);
    const gr_head_part part = gr_head_part_of(all, gr_head_parts_forward(all), blockIdx.x);
    const int t = (int)threadIdx.x, at_once = THREADS / lanes;
    const int half = (int)a.head_dim / 2, j = t % lanes * N; /* this lane's pairs */
    const float *w = part.is_key ? a.wk : a.wq;
    for (int first = 0; first < part.n; first += at_once) {
        const int i = first + t / lanes;
        const bool here = i < part.n && j < half;
        head_at h = {};
        float u[N] = {}, v[N] = {};
        if (here) {
            h = locate(a, part, i);
            gr_load<N>((const A *)a.x + h.x + j, u);
            gr_load<N>((const A *)a.x + h.x + half + j, v);
        }
        const float sum = head_sum(squares(u) + squares(v), lanes);
        if (!here)
            continue;
        const float rstd = 1.0f / sqrtf(sum / (float)a.head_dim + a.eps);
        if (j == 0)
            a.rstd[h.rstd] = rstd;
        scale(w + j, rstd, u);
        scale(w + half + j, rstd, v);
        turn(a, h.angle + j, 1.0f, u, v);
        gr_store<N>((A *)a.y + h.y + j, u);
        gr_store<N>((A *)a.y + h.y + half + j, v);
    }
}

/* Sum of this lane's x over the lanes of the warp that hold the same pairs of other heads, to all of them. */
template <int N> __device__ __forceinline__ void sum_heads(int lanes, float (&x)[N]) {
    for (int apart = lanes; apart < GR_WARP; apart *= 2) {
#pragma unroll
        for (int k = 0; k < N; k++)
            x[k] += __shfl_xor_sync(GR_ALL_LANES, x[k], apart);
    }
}

/* partial [parts, head_dim]. */
template <typename A, int N>
__global__ void __launch_bounds__(THREADS) backward(gr_head_norm a, int lanes, float *partial) {
    __shared__ __align__(16) float room[WARPS][2 * GR_HEAD_LANES_MAX * N];
    const gr_heads all = heads_of(a);
    const gr_head_part part = gr_head_part_of(all, gr_head_parts_backward(all), blockIdx.x);
    const int t = (int)threadIdx.x, at_once = THREADS / lanes;
    const int half = (int)a.head_dim / 2, j = t % lanes * N;
    const float *w = part.is_key ? a.wk : a.wq;
    float dw_u[N] = {}, dw_v[N] = {};
    for (int first = 0; first < part.n; first += at_once) {
        const int i = first + t / lanes;
        const bool here = i < part.n && j < half;
        head_at h = {};
        float u[N], v[N], du[N], dv[N], rstd = 0, sum = 0;
        if (here) {
            h = locate(a, part, i);
            gr_load<N>((const A *)a.x + h.x + j, u);
            gr_load<N>((const A *)a.x + h.x + half + j, v);
            gr_load<N>((const A *)a.dy + h.y + j, du);
            gr_load<N>((const A *)a.dy + h.y + half + j, dv);
            rstd = a.rstd[h.rstd];
            turn(a, h.angle + j, -1.0f, du, dv);
            sum = weigh(w + j, rstd, u, du, dw_u) + weigh(w + half + j, rstd, v, dv, dw_v);
        }
        const float along = rstd * rstd * head_sum(sum, lanes) / (float)a.head_dim;
        if (!here)
            continue;
        put_dx((A *)a.dx + h.x + j, rstd, along, u, du);
        put_dx((A *)a.dx + h.x + half + j, rstd, along, v, dv);
    }
    sum_heads(lanes, dw_u);
    sum_heads(lanes, dw_v);
    if (t % GR_WARP < lanes && j < half) {
        gr_store<N>(room[t / GR_WARP] + j, dw_u);
        gr_store<N>(room[t / GR_WARP] + half + j, dw_v);
    }
    __syncthreads();
    for (int64_t c = t; c < a.head_dim; c += THREADS) {
        float sum = room[0][c];
        for (int warp = 1; warp < WARPS; warp++)
            sum += room[warp][c];
        partial[blockIdx.x * a.head_dim + c] = sum;
    }
}

/* ---------------------------------------------------------------- other heads, a warp each */

template <typename A> __global__ void __launch_bounds__(THREADS) forward_any(gr_head_norm a) {
    const gr_heads all = heads_of(a);
    const gr_head_part part = gr_head_part_of(all, gr_head_parts_forward(all), blockIdx.x);
    const int lane = (int)threadIdx.x % GR_WARP;
    const int64_t hd = a.head_dim, half = hd / 2;
    const float *w = part.is_key ? a.wk : a.wq;
    for (int i = (int)threadIdx.x / GR_WARP; i < part.n; i += WARPS) {
        const head_at h = locate(a, part, i);
        const A *x = (const A *)a.x + h.x;
        A *y = (A *)a.y + h.y;
        float sum = 0, u[1], v[1];
        for (int64_t j = lane; j < hd; j += GR_WARP) {
            gr_load<1>(x + j, u);
            sum += squares(u);
        }
        const float rstd = 1.0f / sqrtf(gr_warp_sum(sum) / (float)hd + a.eps);
        if (lane == 0)
            a.rstd[h.rstd] = rstd;
        for (int64_t j = lane; j < half; j += GR_WARP) {
            gr_load<1>(x + j, u);
            gr_load<1>(x + half + j, v);
            scale(w + j, rstd, u);
            scale(w + half + j, rstd, v);
            turn(a, h.angle + j, 1.0f, u, v);
            gr_store<1>(y + j, u);
            gr_store<1>(y + half + j, v);
        }
        if (hd % 2 && lane == 0) {
            gr_load<1>(x + hd - 1, u);
            scale(w + hd - 1, rstd, u);
            gr_store<1>(y + hd - 1, u);
        }
    }
}

/* Sum of w d x, to all lanes; d x rstd is added to dw [head_dim], this warp's. */
template <typename A>
__device__ float add_head(const gr_head_norm &a, const head_at &h, const float *w, int lane, float *dw) {
    const int64_t hd = a.head_dim, half = hd / 2;
    const A *x = (const A *)a.x + h.x, *dy = (const A *)a.dy + h.y;
    const float rstd = a.rstd[h.rstd];
    float u[1], v[1], du[1], dv[1], sum = 0;
    for (int64_t j = lane; j < half; j += GR_WARP) {
        float dw_u[1] = {dw[j]}, dw_v[1] = {dw[half + j]};
        gr_load<1>(x + j, u);
        gr_load<1>(x + half + j, v);
        gr_load<1>(dy + j, du);
        gr_load<1>(dy + half + j, dv);
        turn(a, h.angle + j, -1.0f, du, dv);
        sum += weigh(w + j, rstd, u, du, dw_u) + weigh(w + half + j, rstd, v, dv, dw_v);
        dw[j] = dw_u[0];
        dw[half + j] = dw_v[0];
    }
    if (hd % 2 && lane == 0) {
        float dw_u[1] = {dw[hd - 1]};
        gr_load<1>(x + hd - 1, u);
        gr_load<1>(dy + hd - 1, du);
        sum += weigh(w + hd - 1, rstd, u, du, dw_u);
        dw[hd - 1] = dw_u[0];
    }
    return gr_warp_sum(sum);
}

template <typename A>
__device__ void dx_head(const gr_head_norm &a, const head_at &h, const float *w, int lane, float sum) {
    const int64_t hd = a.head_dim, half = hd / 2;
    const A *x = (const A *)a.x + h.x, *dy = (const A *)a.dy + h.y;
    A *dx = (A *)a.dx + h.x;
    const float rstd = a.rstd[h.rstd], along = rstd * rstd * sum / (float)hd;
    float u[1], v[1], du[1], dv[1];
    for (int64_t j = lane; j < half; j += GR_WARP) {
        gr_load<1>(x + j, u);
        gr_load<1>(x + half + j, v);
        gr_load<1>(dy + j, du);
        gr_load<1>(dy + half + j, dv);
        turn(a, h.angle + j, -1.0f, du, dv);
        du[0] *= w[j];
        dv[0] *= w[half + j];
        put_dx(dx + j, rstd, along, u, du);
        put_dx(dx + half + j, rstd, along, v, dv);
    }
    if (hd % 2 && lane == 0) {
        gr_load<1>(x + hd - 1, u);
        gr_load<1>(dy + hd - 1, du);
        du[0] *= w[hd - 1];
        put_dx(dx + hd - 1, rstd, along, u, du);
    }
}

/* As many warps as have room for sums of their own; the sums of a lone one may be its partial: see norm.cu. */
template <typename A> __global__ void __launch_bounds__(THREADS) backward_any(gr_head_norm a, float *partial) {
    __shared__ float room[GR_SUMS_MANY];
    const gr_heads all = heads_of(a);
    const gr_head_part part = gr_head_part_of(all, gr_head_parts_backward(all), blockIdx.x);
    const int t = (int)threadIdx.x, lane = t % GR_WARP, warp = t / GR_WARP, n_warp = (int)blockDim.x / GR_WARP;
    const int64_t hd = a.head_dim;
    const bool in_room = n_warp * hd <= GR_SUMS_MANY;
    const float *w = part.is_key ? a.wk : a.wq;
    float *total = partial + blockIdx.x * hd, *own = in_room ? room + warp * hd : total;
    /* Zeros where this lane adds. */
    for (int64_t j = lane; j < hd / 2; j += GR_WARP)
        own[j] = own[hd / 2 + j] = 0;
    if (lane == 0)
        own[hd - 1] = 0;
    for (int i = warp; i < part.n; i += n_warp) {
        const head_at h = locate(a, part, i);
        dx_head<A>(a, h, w, lane, add_head<A>(a, h, w, lane, own));
    }
    if (!in_room)
        return;
    __syncthreads();
    for (int64_t c = t; c < hd; c += blockDim.x) {
        float sum = room[c];
        for (int other = 1; other < n_warp; other++)
            sum += room[other * hd + c];
        total[c] = sum;
    }
}

/* ---------------------------------------------------------------- launching */

/* Lanes of a head whose every group of N pairs begins at 16 bytes; 0: it is for kernels of other heads. */
template <typename A> int held_lanes(const gr_head_norm *a) {
    constexpr int N = GR_WIDE<A>;
    const bool wide = a->head_dim % (2 * N) == 0 && a->ldx % N == 0 && a->ldy % N == 0 && gr_is_aligned16(a->x) &&
                      gr_is_aligned16(a->wq) && gr_is_aligned16(a->wk) && gr_is_aligned16(a->cosine) &&
                      gr_is_aligned16(a->sine);
    return wide ? gr_head_lanes(a->head_dim / (2 * N)) : 0;
}

template <typename A> int launch_forward(cudaStream_t stream, const gr_head_norm *a, unsigned grid) {
    const int lanes = gr_is_aligned16(a->y) ? held_lanes<A>(a) : 0;
    if (lanes)
        forward<A, GR_WIDE<A>><<<grid, THREADS, 0, stream>>>(*a, lanes);
    else
        forward_any<A><<<grid, THREADS, 0, stream>>>(*a);
    return gr_launched();
}

template <typename A> int launch_backward(cudaStream_t stream, const gr_head_norm *a, unsigned grid, float *partial) {
    const int lanes = gr_is_aligned16(a->dy) && gr_is_aligned16(a->dx) ? held_lanes<A>(a) : 0;
    if (lanes)
        backward<A, GR_WIDE<A>><<<grid, THREADS, 0, stream>>>(*a, lanes, partial);
    else
        backward_any<A><<<grid, (unsigned)(GR_WARP * gr_partial_warps(a->head_dim)), 0, stream>>>(*a, partial);
    return gr_launched();
}

bool is_head_norm(gr_dtype dtype, const gr_head_norm *a) {
    const int64_t n_head = a->n_q + a->n_k, most = INT64_C(0x7fffffff);
    return gr_is_act(dtype) && a->n_row >= 0 && a->n_q >= 0 && a->n_q <= most && a->n_k >= 0 && n_head <= most &&
           a->head_dim > 0 && a->head_dim <= most && n_head * a->head_dim <= a->ldx && n_head * a->head_dim <= a->ldy &&
           (n_head == 0 || a->n_row <= (INT64_C(1) << 38) / n_head) && !a->cosine == !a->sine &&
           (!a->cosine || (a->T > 0 && a->T <= most));
}

} // namespace

int gr_kernel_head_norm_forward(void *stream, gr_dtype dtype, const gr_head_norm *a) {
    if (!is_head_norm(dtype, a))
        return cudaErrorInvalidValue;
    const gr_head_parts parts = gr_head_parts_forward(heads_of(*a));
    const unsigned grid = (unsigned)(parts.n_q + parts.n_k);
    if (grid == 0)
        return 0;
    return dtype == GR_BF16 ? launch_forward<gr_bf16>((cudaStream_t)stream, a, grid)
                            : launch_forward<float>((cudaStream_t)stream, a, grid);
}

int gr_kernel_head_norm_backward(void *stream, gr_dtype dtype, const gr_head_norm *a, void *scratch) {
    if (!is_head_norm(dtype, a))
        return cudaErrorInvalidValue;
    const gr_head_parts parts = gr_head_parts_backward(heads_of(*a));
    const unsigned grid = (unsigned)(parts.n_q + parts.n_k);
    if (grid == 0)
        return 0;
    const cudaStream_t queue = (cudaStream_t)stream;
    float *of_q = (float *)scratch, *of_k = of_q + parts.n_q * a->head_dim;
    int failed = dtype == GR_BF16 ? launch_backward<gr_bf16>(queue, a, grid, of_q)
                                  : launch_backward<float>(queue, a, grid, of_q);
    if (!failed)
        failed = gr_partials_add(queue, of_q, parts.n_q, a->head_dim, a->head_dim, a->dwq);
    return failed ? failed : gr_partials_add(queue, of_k, parts.n_k, a->head_dim, a->head_dim, a->dwk);
}
