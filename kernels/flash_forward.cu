/* flash_forward.cu: attention in bf16 without scores in memory: softmax over tiles of keys (Dao 2023,
 * FlashAttention-2), on the tensor cores by mma.sync. Not yet run on a GPU.
 *
 *   o = softmax(scale q k^T) v over the keys a row sees, lse = log sum exp(scale q k^T)
 *
 * Shapes and layout: gr_attention; head_dim a multiple of 8 up to 128, rows at 16 bytes. Scores, sums and lse in
 * fp32; probabilities relative to the largest score so far are rounded for the product with v and summed before they
 * are.
 * Order: tiles of 64 keys from the first one that any row of the block sees; within a tile as the tensor cores add;
 * a row's sum over its four lanes. The same bits at every call.
 * Grid: (window, head) x blocks of 64 query rows, the last, longest of a causal window first; 4 warps of 16 rows. A
 * tile of k and one of v in shared memory (35 KiB at 128) are read by all warps; rows of q stay in registers.
 * Bytes: q, o once; k, v once per block of queries, from the second-level cache. Flops: 4 head_dim per query and key
 * of the tiles, up to 63 keys more than seen. Limits: T <= 65535 * 64.
 * No rows: nothing is launched. CPU: cpu_attention.c. */
#include "kernels/flash.cuh"

namespace {

constexpr int KEYS = 64; /* of a tile */

/* What the lane's two rows have seen. */
typedef struct progress {
    float largest[2], sum[2]; /* of scores in powers of 2 */
} progress;

/* Scores of a tile from key `first` on become probabilities relative to the largest so far; o is scaled to that. */
template <int HD>
__device__ __forceinline__ void soften(const gr_attend_seen (&seen)[2], int64_t first, float scale,
    float (&s)[KEYS / 8][4], progress &r, float (&o)[HD / 8][4]) {
    const int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float largest = r.largest[i];
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int64_t key = first + 8 * j + 2 * t + k;
                float &score = s[j][2 * i + k];
                score = key >= seen[i].first && key < seen[i].end ? score * scale : -INFINITY;
                largest = fmaxf(largest, score);
            }
        largest = gr_flash_row_max(largest);
        const float base = largest == -INFINITY ? 0.0f : largest; /* nothing seen yet */
        const float kept = exp2f(r.largest[i] - base);
        float sum = 0;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                s[j][2 * i + k] = exp2f(s[j][2 * i + k] - base);
                sum += s[j][2 * i + k];
            }
        r.sum[i] = r.sum[i] * kept + sum;
        r.largest[i] = largest;
#pragma unroll
        for (int j = 0; j < HD / 8; j++) {
            o[j][2 * i] *= kept;
            o[j][2 * i + 1] *= kept;
        }
    }
}

template <int HD> __global__ void __launch_bounds__(GR_FLASH_THREADS) forward(gr_attention a, float scale) {
    __shared__ __align__(16) gr_bf16 k[KEYS][HD + GR_FLASH_PAD], v[KEYS][HD + GR_FLASH_PAD];
    const int64_t head = blockIdx.x % a.H, window = blockIdx.x / a.H, kv_head = head / (a.H / a.H_kv);
    const int64_t block = (int64_t)(gridDim.y - 1 - blockIdx.y) * GR_FLASH_ROWS;
    const int64_t row = block + (int)threadIdx.x / GR_WARP * 16 + (int)threadIdx.x % GR_WARP / 4;
    const int64_t last = gr_at_most(block + GR_FLASH_ROWS, a.T) - 1;
    const gr_flash_rows of_k = gr_flash_head(a, a.k, a.ldk, window, kv_head);
    const gr_flash_rows of_v = gr_flash_head(a, a.v, a.ldv, window, kv_head);
    const gr_attend_seen seen[2] = {gr_flash_seen(a, window, row), gr_flash_seen(a, window, row + 8)};
    const int64_t begin = gr_flash_seen(a, window, block).first, end = gr_flash_seen(a, window, last).end;
    uint32_t q[HD / 16][4];
    gr_flash_operand<HD>(gr_flash_head(a, a.q, a.ldq, window, head), row, q);
    float o[HD / 8][4] = {}, s[KEYS / 8][4];
    progress r = {{-INFINITY, -INFINITY}, {0, 0}};
    for (int64_t first = begin; first < end; first += KEYS) {
        __syncthreads(); /* the tiles are free */
        gr_flash_load<HD, KEYS>(of_k, first, k);
        gr_flash_load<HD, KEYS>(of_v, first, v);
        __syncthreads();
        gr_flash_scores<HD, KEYS>(q, k, s);
        soften<HD>(seen, first, scale * GR_LOG2_E, s, r, o);
        gr_flash_add<HD, KEYS>(s, v, o);
    }
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float sum = gr_flash_row_sum(r.sum[i]);
        factor[i] = 1.0f / sum;
        if (threadIdx.x % 4 == 0 && row + 8 * i < a.T)
            a.lse[(window * a.H + head) * a.T + row + 8 * i] = r.largest[i] / GR_LOG2_E + logf(sum);
    }
    gr_flash_store<HD>(gr_flash_head(a, a.o, a.ldo, window, head), row, o, factor);
}

template <int HD> int launch_forward(cudaStream_t stream, const gr_attention *a) {
    const dim3 grid((unsigned)(a->n_window * a->H), (unsigned)gr_ceil_div(a->T, GR_FLASH_ROWS));
    forward<HD><<<grid, GR_FLASH_THREADS, 0, stream>>>(*a, 1.0f / sqrtf((float)a->head_dim));
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
        return launch_forward<32>(queue, a);
    if (a->head_dim <= 48)
        return launch_forward<48>(queue, a);
    return a->head_dim <= 64 ? launch_forward<64>(queue, a) : launch_forward<128>(queue, a);
}
