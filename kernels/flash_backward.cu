/* flash_backward.cu: gradients of attention in bf16 without scores in memory, on the tensor cores by mma.sync. Not
 * yet run on a GPU.
 *
 *   queries  delta = <dout, o>;  ds = p (dp - delta),  dq = scale ds k
 *   keys     dv = p^T dout,  dk = scale ds^T q,  summed over the query heads of a key/value head
 *   with p = exp(scale q k^T - lse) over the keys a row sees, dp = dout v^T
 *
 * Two kernels, each with one owner for what it writes, make p and dp once each: 7 products where one kernel with
 * atomics would make 5, but the same bits at every call. delta is taken from the rounded o, as everywhere but in
 * cpu_attention.c and attention.cu: its error is a rounding of o against the distance of a value from o.
 * Shapes and layout: gr_attention as flash_forward.cu; delta fp32 [n_window, H, T] in scratch. Sums in fp32; p and
 * ds are rounded for the products.
 * Order: tiles of 32 keys, or of 32 queries, from the first that counts; query heads in order; within a tile as the
 * tensor cores add.
 * Grid: queries as flash_forward.cu; keys (window, key/value head) x blocks of 64 keys, 4 warps of 16. The other
 * side's tiles are in shared memory (17 KiB at 128), the block's own rows in registers.
 * Bytes: q, k, v, o, dout, dq, dk, dv once from memory, tiles again from the second-level cache. Flops: 14 head_dim
 * per query and key of the tiles. Limits: T <= 65535 * 64.
 * No rows: nothing is launched. CPU: cpu_attention.c. */
#include "kernels/flash.cuh"

namespace {

constexpr int TILE = 32; /* rows of the other side */

template <int HD> using tile = gr_bf16[TILE][HD + GR_FLASH_PAD];

/* ---------------------------------------------------------------- queries */

/* <dout, o> of the lane's two rows. */
template <int HD>
__device__ __forceinline__ void deltas(
    const uint32_t (&dout)[HD / 16][4], const gr_flash_rows &o, int64_t row, float (&delta)[2]) {
    uint32_t other[HD / 16][4];
    gr_flash_operand<HD>(o, row, other);
    delta[0] = delta[1] = 0;
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const gr_pack<gr_bf16, 2> x = *(const gr_pack<gr_bf16, 2> *)&dout[kk][i];
            const gr_pack<gr_bf16, 2> y = *(const gr_pack<gr_bf16, 2> *)&other[kk][i];
            delta[i % 2] += gr_act_load(x.x[0]) * gr_act_load(y.x[0]) + gr_act_load(x.x[1]) * gr_act_load(y.x[1]);
        }
    delta[0] = gr_flash_row_sum(delta[0]);
    delta[1] = gr_flash_row_sum(delta[1]);
}

/* s to ds for keys from `first` on. lse in powers of 2. */
__device__ __forceinline__ void gradients_of_rows(const gr_attend_seen (&seen)[2], int64_t first, float scale,
    const float (&lse)[2], const float (&delta)[2], const float (&dp)[TILE / 8][4], float (&s)[TILE / 8][4]) {
    const int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < TILE / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t key = first + 8 * j + 2 * t + i % 2;
            const bool sees = key >= seen[i / 2].first && key < seen[i / 2].end;
            s[j][i] = sees ? exp2f(s[j][i] * scale - lse[i / 2]) * (dp[j][i] - delta[i / 2]) : 0.0f;
        }
}

template <int HD>
__global__ void __launch_bounds__(GR_FLASH_THREADS) of_queries(gr_attention a, float scale, float *delta_of) {
    __shared__ __align__(16) tile<HD> k, v;
    const int64_t head = blockIdx.x % a.H, window = blockIdx.x / a.H, kv_head = head / (a.H / a.H_kv);
    const int64_t block = (int64_t)(gridDim.y - 1 - blockIdx.y) * GR_FLASH_ROWS;
    const int64_t row = block + (int)threadIdx.x / GR_WARP * 16 + (int)threadIdx.x % GR_WARP / 4;
    const int64_t last = gr_at_most(block + GR_FLASH_ROWS, a.T) - 1, saved = (window * a.H + head) * a.T + row;
    const gr_flash_rows of_k = gr_flash_head(a, a.k, a.ldk, window, kv_head);
    const gr_flash_rows of_v = gr_flash_head(a, a.v, a.ldv, window, kv_head);
    const gr_attend_seen seen[2] = {gr_flash_seen(a, window, row), gr_flash_seen(a, window, row + 8)};
    const int64_t begin = gr_flash_seen(a, window, block).first, end = gr_flash_seen(a, window, last).end;
    uint32_t q[HD / 16][4], dout[HD / 16][4];
    float delta[2], lse[2], dq[HD / 8][4] = {};
    gr_flash_operand<HD>(gr_flash_head(a, a.q, a.ldq, window, head), row, q);
    gr_flash_operand<HD>(gr_flash_head(a, a.dout, a.ldo, window, head), row, dout);
    deltas<HD>(dout, gr_flash_head(a, a.o, a.ldo, window, head), row, delta);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        lse[i] = row + 8 * i < a.T ? a.lse[saved + 8 * i] * GR_LOG2_E : 0.0f;
        if (threadIdx.x % 4 == 0 && row + 8 * i < a.T)
            delta_of[saved + 8 * i] = delta[i];
    }
    for (int64_t first = begin; first < end; first += TILE) {
        float s[TILE / 8][4], dp[TILE / 8][4];
        __syncthreads(); /* the tiles are free */
        gr_flash_load<HD, TILE>(of_k, first, k);
        gr_flash_load<HD, TILE>(of_v, first, v);
        __syncthreads();
        gr_flash_scores<HD, TILE>(q, k, s);
        gr_flash_scores<HD, TILE>(dout, v, dp);
        gradients_of_rows(seen, first, scale * GR_LOG2_E, lse, delta, dp, s);
        gr_flash_add<HD, TILE>(s, k, dq);
    }
    const float factor[2] = {scale, scale};
    gr_flash_store<HD>(gr_flash_head(a, a.dq, a.ldq, window, head), row, dq, factor);
}

/* ---------------------------------------------------------------- keys */

/* What is known of the queries of a tile. */
typedef struct queries {
    float lse[TILE], delta[TILE];   /* lse in powers of 2 */
    int64_t first[TILE], end[TILE]; /* keys seen */
} queries;

__device__ __forceinline__ void load_queries(
    const gr_attention &a, int64_t window, int64_t head, int64_t first, const float *delta_of, queries &to) {
    if (threadIdx.x >= TILE)
        return;
    const int64_t row = first + threadIdx.x, saved = (window * a.H + head) * a.T + row;
    const gr_attend_seen seen = gr_flash_seen(a, window, row);
    to.first[threadIdx.x] = seen.first;
    to.end[threadIdx.x] = seen.end;
    to.lse[threadIdx.x] = row < a.T ? a.lse[saved] * GR_LOG2_E : 0.0f;
    to.delta[threadIdx.x] = row < a.T ? delta_of[saved] : 0.0f;
}

/* s^T to p^T and dp^T to ds^T, for the lane's keys `key` and key + 8. */
__device__ __forceinline__ void gradients_of_keys(
    const queries &of, int64_t key, float scale, float (&s)[TILE / 8][4], float (&dp)[TILE / 8][4]) {
    const int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < TILE / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int query = 8 * j + 2 * t + i % 2;
            const int64_t own = key + 8 * (i / 2);
            const bool seen = own >= of.first[query] && own < of.end[query];
            const float p = seen ? exp2f(s[j][i] * scale - of.lse[query]) : 0.0f;
            s[j][i] = p;
            dp[j][i] = seen ? p * (dp[j][i] - of.delta[query]) : 0.0f;
        }
}

/* The first query that may see keys of a block from `first` on, and the end of those that may see its last one. */
__device__ gr_attend_seen queries_of(const gr_attention &a, int64_t window, int64_t first, int64_t last) {
    const uint32_t *document_first = a.documents.first ? a.documents.first + window * a.T : NULL;
    const uint32_t *document_end = a.documents.end ? a.documents.end + window * a.T : NULL;
    const bool causal = a.mask == GR_ATTEND_CAUSAL;
    return {causal           ? first
            : document_first ? (int64_t)document_first[first]
                             : 0,
        document_end ? (int64_t)document_end[last] : a.T};
}

template <int HD>
__global__ void __launch_bounds__(GR_FLASH_THREADS) of_keys(gr_attention a, float scale, const float *delta_of) {
    __shared__ __align__(16) tile<HD> q, dout;
    __shared__ queries of;
    const int64_t kv_head = blockIdx.x % a.H_kv, window = blockIdx.x / a.H_kv, group = a.H / a.H_kv;
    const int64_t block = (int64_t)blockIdx.y * GR_FLASH_ROWS;
    const int64_t key = block + (int)threadIdx.x / GR_WARP * 16 + (int)threadIdx.x % GR_WARP / 4;
    const gr_attend_seen range = queries_of(a, window, block, gr_at_most(block + GR_FLASH_ROWS, a.T) - 1);
    uint32_t k[HD / 16][4], v[HD / 16][4];
    float dk[HD / 8][4] = {}, dv[HD / 8][4] = {};
    gr_flash_operand<HD>(gr_flash_head(a, a.k, a.ldk, window, kv_head), key, k);
    gr_flash_operand<HD>(gr_flash_head(a, a.v, a.ldv, window, kv_head), key, v);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int64_t first = range.first; first < range.end; first += TILE) {
            float s[TILE / 8][4], dp[TILE / 8][4];
            __syncthreads(); /* the tiles are free */
            gr_flash_load<HD, TILE>(gr_flash_head(a, a.q, a.ldq, window, head), first, q);
            gr_flash_load<HD, TILE>(gr_flash_head(a, a.dout, a.ldo, window, head), first, dout);
            load_queries(a, window, head, first, delta_of, of);
            __syncthreads();
            gr_flash_scores<HD, TILE>(k, q, s);
            gr_flash_scores<HD, TILE>(v, dout, dp);
            gradients_of_keys(of, key, scale * GR_LOG2_E, s, dp);
            gr_flash_add<HD, TILE>(s, dout, dv);
            gr_flash_add<HD, TILE>(dp, q, dk);
        }
    const float scaled[2] = {scale, scale}, plain[2] = {1.0f, 1.0f};
    gr_flash_store<HD>(gr_flash_head(a, a.dk, a.ldk, window, kv_head), key, dk, scaled);
    gr_flash_store<HD>(gr_flash_head(a, a.dv, a.ldv, window, kv_head), key, dv, plain);
}

template <int HD> int launch_backward(cudaStream_t stream, const gr_attention *a, float *delta) {
    const float scale = 1.0f / sqrtf((float)a->head_dim);
    const unsigned n_block = (unsigned)gr_ceil_div(a->T, GR_FLASH_ROWS);
    const dim3 query_grid((unsigned)(a->n_window * a->H), n_block),
        key_grid((unsigned)(a->n_window * a->H_kv), n_block);
    of_queries<HD><<<query_grid, GR_FLASH_THREADS, 0, stream>>>(*a, scale, delta);
    of_keys<HD><<<key_grid, GR_FLASH_THREADS, 0, stream>>>(*a, scale, delta);
    return gr_launched();
}

} // namespace

int gr_kernel_flash_backward(void *stream, const gr_attention *a, void *scratch) {
    const cudaStream_t queue = (cudaStream_t)stream;
    float *delta = (float *)scratch;
    if (!gr_kernel_flash_fits(GR_BF16, a))
        return cudaErrorInvalidValue;
    if (a->n_window == 0 || a->T == 0)
        return 0;
    if (a->head_dim <= 32)
        return launch_backward<32>(queue, a, delta);
    if (a->head_dim <= 48)
        return launch_backward<48>(queue, a, delta);
    return a->head_dim <= 64 ? launch_backward<64>(queue, a, delta) : launch_backward<128>(queue, a, delta);
}
