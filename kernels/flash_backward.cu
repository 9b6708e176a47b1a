/* flash_backward.cu: gradients of attention in bf16 without scores in memory, on the tensor cores by mma.sync.
 *
 *   queries  delta = <dout, o>;  ds = p (dp - delta),  dq = scale ds k
 *   keys     dv = p^T dout,  dk = scale ds^T q,  summed over the query heads of a key/value head
 *   with p = exp(scale q k^T - lse) over the keys a row sees, dp = dout v^T
 *
 * Two kernels, each with one owner for what it writes, make p and dp once each: 7 products where one kernel with
 * atomics would make 5, but the same bits at every call. delta is taken from the rounded o, as everywhere but in
 * cpu_attention.c and attention.cu: its error is a rounding of o against the distance of a value from o.
 * Shapes and layout: gr_attention as flash_forward.cu; scratch: lse in powers of 2 and delta, fp32 [n_window, H,
 * gr_flash_padded(T)] each, zeros beyond T, by queries for keys. Sums in fp32; p and ds are rounded for the products.
 * Order: tiles from the first stage that counts; query heads in order; within a tile as the tensor cores add.
 * Grid: see flash.cuh; blocks of 128 queries, and of 128 keys of a key/value head, the longest of a causal window
 * first. Registers choose the rest: sums of dq, or of dk and dv, and two arrays of scores leave room for 32 rows of the
 * other side at once, and the block's own rows go to shared memory where they would not fit.
 * Bytes: q, k, v, o, dout, dq, dk, dv once from memory, tiles again from the second-level cache. Flops: 14 head_dim
 * per query and key of the tiles. Limits: as flash_forward.cu.
 * No rows: nothing is launched. CPU: cpu_attention.c.
 * Measured (as flash_forward.cu, 5 T head_dim flops): heads of 48 173 TFLOP/s, 64 250, 128 227. */
#include "kernels/flash.cuh"

namespace {

/* ---------------------------------------------------------------- queries */

/* What the gradients of keys need of the queries: fp32 [heads of all windows, gr_flash_padded(T)] each. */
typedef struct saved {
    float *lse, *delta; /* lse in powers of 2 */
} saved;

/* lse and <dout, o> of a row, 0 beyond the window. */
template <int HD>
__device__ __forceinline__ void row_saved(
    const gr_flash_rows &o, const gr_flash_rows &dout, const float *lse, int row, float &lse2, float &delta) {
    delta = lse2 = 0;
    if (row >= o.end)
        return;
    lse2 = lse[row] * GR_LOG2_E;
#pragma unroll
    for (int c = 0; c < HD; c += 8)
        if (c < o.head_dim) {
            float x[8], y[8];
            gr_load<8>(o.p + row * o.ld + c, x);
            gr_load<8>(dout.p + row * dout.ld + c, y);
#pragma unroll
            for (int k = 0; k < 8; k++)
                delta += x[k] * y[k];
        }
}

template <typename S>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS)
    of_queries(gr_attention a, float scale, gr_flash_order order, int padded, saved to) {
    __shared__ float lse_of[S::ROWS], delta_of[S::ROWS];
    gr_bf16 *const room = gr_launched_room(), *const own = room + (S::HELD ? 0 : S::STAGES);
    const gr_flash_place place = gr_flash_place_of(order);
    const int64_t window = place.head / a.H, head = place.head % a.H, kv_head = head / (a.H / a.H_kv);
    const int block = (order.n_block - 1 - place.rank) * S::ROWS;
    const int in_block = (int)threadIdx.x / GR_WARP * S::WARP_ROWS, first_row = block + in_block;
    const gr_flash_rows of_k = gr_flash_head(a, a.k, a.ldk, window, kv_head);
    const gr_flash_rows of_v = gr_flash_head(a, a.v, a.ldv, window, kv_head);
    const gr_flash_rows of_dout = gr_flash_head(a, a.dout, a.ldo, window, head);
    const gr_flash_range range = gr_flash_view_of(a, false, window, block, S::ROWS).any;
    const gr_flash_view view = gr_flash_view_of(a, false, window, first_row, S::WARP_ROWS);
    const int begin = range.first / S::STAGE * S::STAGE;
    gr_flash_left<S> q, dout;
    gr_flash_fetch<S, S::ROWS>(gr_flash_head(a, a.q, a.ldq, window, head), block, own);
    gr_flash_fetch<S, S::ROWS>(of_dout, block, own + S::ROWS * S::LD);
    gr_copy_commit();
    for (int row = (int)threadIdx.x; row < S::ROWS; row += S::THREADS) {
        row_saved<S::HD>(gr_flash_head(a, a.o, a.ldo, window, head), of_dout, a.lse + place.head * a.T, block + row,
            lse_of[row], delta_of[row]);
        if (block + row < padded) {
            to.lse[(int64_t)place.head * padded + block + row] = lse_of[row];
            to.delta[(int64_t)place.head * padded + block + row] = delta_of[row];
        }
    }
    gr_copy_wait<0>();
    __syncthreads();
    q.open(own);
    dout.open(own + S::ROWS * S::LD);
    float lse[S::MT][2], delta[S::MT][2];
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int row = in_block + 16 * m + 8 * i + (int)threadIdx.x % GR_WARP / 4;
            lse[m][i] = lse_of[row];
            delta[m][i] = delta_of[row];
        }
    if (S::HELD)
        __syncthreads();
    gr_flash_fetch<S, S::STAGE>(of_k, begin, room);
    gr_flash_fetch<S, S::STAGE>(of_v, begin, room + S::ARRAY);
    gr_copy_commit();
    typename S::sums dq = {};
    int stage = 0;
    for (int first = begin; first < range.end; first += S::STAGE, stage ^= 1) {
        gr_copy_wait<0>();
        __syncthreads(); /* the stage is there for all, and all are done with the one before it */
        if (first + S::STAGE < range.end) {
            gr_bf16 *next = room + (stage ^ 1) * 2 * S::ARRAY;
            gr_flash_fetch<S, S::STAGE>(of_k, first + S::STAGE, next);
            gr_flash_fetch<S, S::STAGE>(of_v, first + S::STAGE, next + S::ARRAY);
        }
        gr_copy_commit();
        for (int step = 0; step < S::STAGE; step += S::TILE) {
            const gr_bf16 *k = room + stage * 2 * S::ARRAY + step * S::LD, *v = k + S::ARRAY;
            const int at = first + step;
            typename S::scores s, dp;
            if (at >= view.any.end || at + S::TILE <= view.any.first)
                continue;
            gr_flash_scores<S>(q, k, s);
            gr_flash_scores<S>(dout, v, dp);
            if (at < view.all.first || at + S::TILE > view.all.end)
                gr_flash_hide<S>(a, false, window, first_row, at, s);
#pragma unroll
            for (int m = 0; m < S::MT; m++)
#pragma unroll
                for (int j = 0; j < S::PIECES; j++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        s[m][j][i] =
                            gr_exp2(s[m][j][i] * (scale * GR_LOG2_E) - lse[m][i / 2]) * (dp[m][j][i] - delta[m][i / 2]);
            gr_flash_add<S>(s, k, dq);
        }
    }
    float factor[S::MT][2];
#pragma unroll
    for (int m = 0; m < S::MT; m++)
        factor[m][0] = factor[m][1] = scale;
    gr_copy_wait<0>();
    __syncthreads(); /* the stages are free */
    gr_flash_store<S>(gr_flash_head(a, a.dq, a.ldq, window, head), first_row, dq, factor, room + in_block * S::LD);
}

/* ---------------------------------------------------------------- keys */

template <typename S>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS)
    of_keys(gr_attention a, float scale, gr_flash_order order, int padded, saved of) {
    __shared__ __align__(16) float values[2][2][S::STAGE]; /* lse and delta of a stage's queries */
    gr_bf16 *const room = gr_launched_room(), *const own = room + (S::HELD ? 0 : S::STAGES);
    const gr_flash_place place = gr_flash_place_of(order);
    const int64_t window = place.head / a.H_kv, kv_head = place.head % a.H_kv, group = a.H / a.H_kv;
    const int block = place.rank * S::ROWS;
    const int in_block = (int)threadIdx.x / GR_WARP * S::WARP_ROWS, first_row = block + in_block;
    const gr_flash_range range = gr_flash_view_of(a, true, window, block, S::ROWS).any;
    const gr_flash_view view = gr_flash_view_of(a, true, window, first_row, S::WARP_ROWS);
    const int begin = range.first / S::STAGE * S::STAGE, n_stage = (range.end - begin + S::STAGE - 1) / S::STAGE;
    const auto fetch = [&](int n, int stage) {
        const int64_t head = kv_head * group + n / n_stage, at = (window * a.H + head) * padded;
        const int first = begin + n % n_stage * S::STAGE, t = (int)threadIdx.x;
        gr_bf16 *to = room + stage * 2 * S::ARRAY;
        gr_flash_fetch<S, S::STAGE>(gr_flash_head(a, a.q, a.ldq, window, head), first, to);
        gr_flash_fetch<S, S::STAGE>(gr_flash_head(a, a.dout, a.ldo, window, head), first, to + S::ARRAY);
        if (t < S::STAGE / 2)
            gr_copy_async((gr_bf16 *)&values[stage][0][4 * t],
                (const gr_bf16 *)((t < S::STAGE / 4 ? of.lse : of.delta - S::STAGE) + at + first + 4 * t), true);
    };
    gr_flash_left<S> k, v;
    gr_flash_fetch<S, S::ROWS>(gr_flash_head(a, a.k, a.ldk, window, kv_head), block, own);
    gr_flash_fetch<S, S::ROWS>(gr_flash_head(a, a.v, a.ldv, window, kv_head), block, own + S::ROWS * S::LD);
    if (S::HELD) {
        gr_copy_commit();
        gr_copy_wait<0>();
        __syncthreads();
    }
    k.open(own);
    v.open(own + S::ROWS * S::LD);
    if (S::HELD)
        __syncthreads();
    fetch(0, 0);
    gr_copy_commit();
    typename S::sums dk = {}, dv = {};
    const int n_all = (int)group * n_stage;
    for (int n = 0; n < n_all; n++) {
        const int stage = n % 2, first = begin + n % n_stage * S::STAGE;
        gr_copy_wait<0>();
        __syncthreads(); /* the stage is there for all, and all are done with the one before it */
        if (n + 1 < n_all)
            fetch(n + 1, stage ^ 1);
        gr_copy_commit();
        for (int step = 0; step < S::STAGE; step += S::TILE) {
            const gr_bf16 *q = room + stage * 2 * S::ARRAY + step * S::LD, *dout = q + S::ARRAY;
            const int at = first + step, t = (int)threadIdx.x % 4;
            typename S::scores s, dp;
            if (at >= view.any.end || at + S::TILE <= view.any.first)
                continue;
            gr_flash_scores<S>(k, q, s);
            gr_flash_scores<S>(v, dout, dp);
            if (at < view.all.first || at + S::TILE > view.all.end)
                gr_flash_hide<S>(a, true, window, first_row, at, s);
#pragma unroll
            for (int j = 0; j < S::PIECES; j++) {
                float lse[2], delta[2];
                memcpy(lse, &values[stage][0][step + 8 * j + 2 * t], sizeof lse);
                memcpy(delta, &values[stage][1][step + 8 * j + 2 * t], sizeof delta);
#pragma unroll
                for (int m = 0; m < S::MT; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        s[m][j][i] = gr_exp2(s[m][j][i] * (scale * GR_LOG2_E) - lse[i % 2]);
                        dp[m][j][i] = s[m][j][i] * (dp[m][j][i] - delta[i % 2]);
                    }
            }
            gr_flash_add<S>(s, dout, dv);
            gr_flash_add<S>(dp, q, dk);
        }
    }
    float scaled[S::MT][2], plain[S::MT][2];
#pragma unroll
    for (int m = 0; m < S::MT; m++) {
        scaled[m][0] = scaled[m][1] = scale;
        plain[m][0] = plain[m][1] = 1.0f;
    }
    gr_copy_wait<0>();
    __syncthreads(); /* the stages are free */
    gr_bf16 *patch = room + in_block * S::LD;
    gr_flash_store<S>(gr_flash_head(a, a.dk, a.ldk, window, kv_head), first_row, dk, scaled, patch);
    gr_flash_store<S>(gr_flash_head(a, a.dv, a.ldv, window, kv_head), first_row, dv, plain, patch);
}

saved saved_of(const gr_attention *a, void *scratch) {
    float *p = (float *)scratch;
    return {p, p + a->n_window * a->H * gr_flash_padded(a->T)};
}

template <typename S> int launch_queries(cudaStream_t stream, const gr_attention *a, void *scratch) {
    constexpr int BYTES = gr_flash_bytes<S, 2>();
    static_assert(S::ROWS % GR_FLASH_PAD == 0, "every padded row of lse and delta is written");
    static_assert(S::STAGES >= S::ROWS * S::LD, "room for dq");
    const gr_flash_order order = gr_flash_order_of<S>(a, a->n_window * a->H);
    const cudaError_t set =
        cudaFuncSetAttribute((const void *)of_queries<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (set != cudaSuccess)
        return set;
    const int padded = (int)gr_flash_padded(a->T);
    of_queries<S><<<gr_flash_blocks(order), S::THREADS, BYTES, stream>>>(
        *a, gr_flash_scale(a), order, padded, saved_of(a, scratch));
    return gr_launched();
}

template <typename S> int launch_keys(cudaStream_t stream, const gr_attention *a, void *scratch) {
    constexpr int BYTES = gr_flash_bytes<S, 2>();
    static_assert(GR_FLASH_PAD % S::STAGE == 0 && S::STAGE / 2 <= S::THREADS, "whole stages of lse and delta");
    static_assert(S::STAGES >= S::ROWS * S::LD, "room for dk, dv");
    const gr_flash_order order = gr_flash_order_of<S>(a, a->n_window * a->H_kv);
    const cudaError_t set =
        cudaFuncSetAttribute((const void *)of_keys<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (set != cudaSuccess)
        return set;
    const int padded = (int)gr_flash_padded(a->T);
    of_keys<S><<<gr_flash_blocks(order), S::THREADS, BYTES, stream>>>(
        *a, gr_flash_scale(a), order, padded, saved_of(a, scratch));
    return gr_launched();
}

template <typename Q, typename K> int launch_backward(cudaStream_t stream, const gr_attention *a, void *scratch) {
    const int failed = launch_queries<Q>(stream, a, scratch);
    return failed ? failed : launch_keys<K>(stream, a, scratch);
}

} // namespace

int gr_kernel_flash_backward(void *stream, const gr_attention *a, void *scratch) {
    const cudaStream_t queue = (cudaStream_t)stream;
    if (!gr_kernel_flash_fits(GR_BF16, a))
        return cudaErrorInvalidValue;
    if (a->n_window == 0 || a->T == 0)
        return 0;
    if (a->head_dim <= 32)
        return launch_backward<gr_flash_shape<32, 2, 4, 32, 2, true, 2>, gr_flash_shape<32, 2, 4, 32, 2, true, 2>>(
            queue, a, scratch);
    if (a->head_dim <= 48)
        return launch_backward<gr_flash_shape<48, 2, 4, 32, 2, true, 2>, gr_flash_shape<48, 2, 4, 32, 2, false, 2>>(
            queue, a, scratch);
    if (a->head_dim <= 64)
        return launch_backward<gr_flash_shape<64, 2, 4, 32, 2, true, 2>, gr_flash_shape<64, 2, 4, 32, 4, false, 2>>(
            queue, a, scratch);
    return launch_backward<gr_flash_shape<128, 2, 4, 32, 1, false, 2>, gr_flash_shape<128, 1, 8, 64, 1, false, 1>>(
        queue, a, scratch);
}
