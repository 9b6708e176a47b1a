/* flash_forward.cu: attention in bf16 without scores in memory: softmax over tiles of keys (Dao 2023,
 * FlashAttention-2), on the tensor cores by mma.sync.
 *
 *   o = softmax(scale q k^T) v over the keys a row sees, lse = log sum exp(scale q k^T)
 *
 * Shapes and layout: gr_attention; head_dim a multiple of 8 up to 128, computed as 32, 48, 64 or 128 columns; rows at
 * 16 bytes. Scores, sums and lse in fp32; probabilities are relative to a base of the row, at most 2^8 and rounded for
 * the product with v, but summed before they are.
 * Order: tiles of 32 keys up to 48 columns, else of 64, from the first that any row of the block sees; within a tile
 * as the tensor cores add; a row's sum over its four lanes. The same bits at every call.
 * Grid: see flash.cuh; blocks of 128 query rows, the last, longest of a causal window first; 4 warps of 32 rows. Two
 * blocks share a multiprocessor, up to 48 columns three, so that exponentials of one run under products of another.
 * Bytes: q, o once; k, v once per block of queries, from the second-level cache. Flops: 4 head_dim per query and key
 * of the tiles, for a warp up to 94 keys more than seen. Limits: T < 2^22; shared memory of 163 KiB a block.
 * No rows: nothing is launched. CPU: cpu_attention.c.
 * Measured (H100, N 32768, T 4096, causal, 2 T head_dim flops a row and head): heads of 48 192 TFLOP/s, 64 304, 128
 * 344. */
#include "kernels/flash.cuh"

namespace {

/* What the lane's rows have seen: the sum of their probabilities relative to 2^base. */
template <typename S> struct progress { float base[S::MT][2], sum[S::MT][2]; };

constexpr float LOWEST = -3.0e38f; /* a base below every score */
constexpr float SLACK = 8.0f;      /* probabilities of at most 2^8, which sum up in fp32 like those of at most 1 */

/* A row whose scores rise above its base by more than SLACK gets their largest as its base, and what it has summed is
 * scaled to that. Few rows do after their first tile, so most tiles go without the products. scale: to powers of 2. */
template <typename S>
__device__ __forceinline__ void raise(float scale, const typename S::scores &s, progress<S> &r, typename S::sums &o) {
    float kept[S::MT][2];
    bool raised = false;
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float largest = -INFINITY;
#pragma unroll
            for (int j = 0; j < S::PIECES; j++)
                largest = fmaxf(largest, fmaxf(s[m][j][2 * i], s[m][j][2 * i + 1]));
            largest = gr_flash_row_max(largest) * scale;
            const bool higher = largest > r.base[m][i] + SLACK;
            kept[m][i] = higher ? gr_exp2(r.base[m][i] - largest) : 1.0f;
            r.base[m][i] = higher ? largest : r.base[m][i];
            raised |= higher;
        }
    if (!__any_sync(GR_ALL_LANES, raised))
        return;
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            r.sum[m][i] *= kept[m][i];
#pragma unroll
            for (int j = 0; j < S::HD / 8; j++) {
                o[m][j][2 * i] *= kept[m][i];
                o[m][j][2 * i + 1] *= kept[m][i];
            }
        }
}

/* Scores become probabilities relative to 2^base. */
template <typename S> __device__ __forceinline__ void soften(float scale, typename S::scores &s, progress<S> &r) {
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int j = 0; j < S::PIECES; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                s[m][j][k] = gr_exp2(s[m][j][k] * scale - r.base[m][k / 2]);
                r.sum[m][k / 2] += s[m][j][k];
            }
}

template <typename S>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS) forward(gr_attention a, float scale, gr_flash_order order) {
    static_assert(S::STAGE == S::TILE, "a stage is worked on at once");
    gr_bf16 *const room = gr_launched_room(), *const own = room + (S::HELD ? 0 : S::STAGES);
    const gr_flash_place place = gr_flash_place_of(order);
    const int64_t window = place.head / a.H, head = place.head % a.H, kv_head = head / (a.H / a.H_kv);
    const int block = (order.n_block - 1 - place.rank) * S::ROWS;
    const int first_row = block + (int)threadIdx.x / GR_WARP * S::WARP_ROWS;
    const gr_flash_rows of_k = gr_flash_head(a, a.k, a.ldk, window, kv_head);
    const gr_flash_rows of_v = gr_flash_head(a, a.v, a.ldv, window, kv_head);
    const gr_flash_range range = gr_flash_view_of(a, false, window, block, S::ROWS).any;
    const gr_flash_view view = gr_flash_view_of(a, false, window, first_row, S::WARP_ROWS);
    const int begin = range.first / S::STAGE * S::STAGE;
    gr_flash_left<S> q;
    gr_flash_fetch<S, S::ROWS>(gr_flash_head(a, a.q, a.ldq, window, head), block, own);
    if (S::HELD) {
        gr_copy_commit();
        gr_copy_wait<0>();
        __syncthreads();
        q.open(own);
        __syncthreads();
    }
    gr_flash_fetch<S, S::STAGE>(of_k, begin, room);
    gr_flash_fetch<S, S::STAGE>(of_v, begin, room + S::ARRAY);
    gr_copy_commit();
    if (!S::HELD)
        q.open(own);
    typename S::sums o = {};
    typename S::scores s;
    progress<S> r = {};
#pragma unroll
    for (int m = 0; m < S::MT; m++)
        r.base[m][0] = r.base[m][1] = LOWEST;
    int stage = 0;
    for (int first = begin; first < range.end; first += S::STAGE, stage ^= 1) {
        const gr_bf16 *k = room + stage * 2 * S::ARRAY, *v = k + S::ARRAY;
        gr_copy_wait<0>();
        __syncthreads(); /* the tile is there for all, and all are done with the one before it */
        if (first + S::STAGE < range.end) {
            gr_bf16 *next = room + (stage ^ 1) * 2 * S::ARRAY;
            gr_flash_fetch<S, S::STAGE>(of_k, first + S::STAGE, next);
            gr_flash_fetch<S, S::STAGE>(of_v, first + S::STAGE, next + S::ARRAY);
        }
        gr_copy_commit();
        if (first >= view.any.end || first + S::STAGE <= view.any.first)
            continue;
        gr_flash_scores<S>(q, k, s);
        if (first < view.all.first || first + S::STAGE > view.all.end)
            gr_flash_hide<S>(a, false, window, first_row, first, s);
        raise<S>(scale * GR_LOG2_E, s, r, o);
        soften<S>(scale * GR_LOG2_E, s, r);
        gr_flash_add<S>(s, v, o);
    }
    float factor[S::MT][2];
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float sum = gr_flash_row_sum(r.sum[m][i]);
            const int row = first_row + 16 * m + 8 * i + (int)threadIdx.x % GR_WARP / 4;
            factor[m][i] = 1.0f / sum;
            if (threadIdx.x % 4 == 0 && row < a.T)
                a.lse[place.head * a.T + row] = r.base[m][i] * GR_LOG_2 + logf(sum);
        }
    __syncthreads(); /* the stages are free */
    gr_flash_store<S>(
        gr_flash_head(a, a.o, a.ldo, window, head), first_row, o, factor, room + (first_row - block) * S::LD);
}

template <typename S> int launch_forward(cudaStream_t stream, const gr_attention *a) {
    constexpr int BYTES = gr_flash_bytes<S, 1>();
    static_assert(S::STAGES >= S::ROWS * S::LD, "room for o");
    const gr_flash_order order = gr_flash_order_of<S>(a, a->n_window * a->H);
    const cudaError_t set =
        cudaFuncSetAttribute((const void *)forward<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (set != cudaSuccess)
        return set;
    forward<S><<<gr_flash_blocks(order), S::THREADS, BYTES, stream>>>(*a, gr_flash_scale(a), order);
    return gr_launched();
}

} // namespace

int gr_kernel_flash_forward(void *stream, const gr_attention *a) {
    const cudaStream_t queue = (cudaStream_t)stream;
    if (!gr_kernel_flash_fits(GR_BF16, a))
        return cudaErrorInvalidValue;
    if (a->n_window == 0 || a->T == 0)
        return 0;
    if (a->head_dim <= 32)
        return launch_forward<gr_flash_shape<32, 2, 4, 32, 1, true, 3>>(queue, a);
    if (a->head_dim <= 48)
        return launch_forward<gr_flash_shape<48, 2, 4, 32, 1, false, 3>>(queue, a);
    if (a->head_dim <= 64)
        return launch_forward<gr_flash_shape<64, 2, 4, 64, 1, true, 2>>(queue, a);
    return launch_forward<gr_flash_shape<128, 2, 4, 64, 1, false, 2>>(queue, a);
}
