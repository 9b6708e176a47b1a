/* attention.cu: the rows of attention between its matrix products (src/backend/cuda_attention.c).
 *
 *   softmax    p = exp(scale s - lse) over the keys a row sees, 0 elsewhere;  lse = log sum exp(scale s), saved
 *   gradient   p as above from the saved lse,  delta = sum_j p_j dp_j,  ds = scale p (dp - delta), 0 where unseen
 *   round      sums of dk and dv to the activations' type
 *
 * Shapes and layout: a block of n_query rows of n_head query heads (one of each key/value head in the batch), scores
 * s, dp fp32 and p, ds act at [head][row][ld], of which n_key columns are written: those the next product reads.
 * scale = 1/sqrt(head_dim). p and ds may lie on s and dp: an element is written by the thread that read it last.
 * delta is taken from p and dp rather than from <dout, o>: o is rounded, and its error would stay in dp - delta
 * where both are nearly equal, as they are for the first tokens of a window.
 * Order: fp32; a thread takes a group of 4 keys of each 4 times the threads, then the lanes as gr_warp_sum, then the
 * warps in order. In the softmax a thread's sum is scaled whenever it meets a larger score.
 * Grid: a block per row, of a thread per 4 keys, at most 256: rows are hundreds to thousands of keys long, and all
 * rows of a block of queries fill the GPU; the second pass reads the row from the first-level cache (16 KiB at 4096
 * keys).
 * Bytes per score: softmax 4 read, 2 (bf16) or 4 written; gradient 8 read, 4 or 8 written. Flops: 5 and 9 with an
 * exponential or two. Limits: T < 2^31 - 8, 65535 heads of a batch.
 * No rows: nothing is launched. A row sees itself at least. CPU: cpu_attention.c.
 * Measured (kernels.h): with its products, 57 TFLOP/s forward, 72 backward. */
#include "kernels/warp.cuh"

namespace {

constexpr int THREADS = 256; /* of a block, at most */
constexpr int N = 4;         /* keys a thread takes at once: rows begin at 16 bytes */

/* One row: what it sees, where its scores are, where its lse is. */
typedef struct row {
    int64_t first, end, scores, lse;
} row;

__device__ row row_of(const gr_attention &a, const gr_attend_block &b) {
    const int64_t position = b.first + blockIdx.x, token = b.window * a.T + position;
    const int64_t head = (b.kv_head + blockIdx.y) * (a.H / a.H_kv) + b.member;
    const gr_attend_seen seen = gr_attend_seen_by(a.mask == GR_ATTEND_CAUSAL, a.T, position,
        a.documents.first ? a.documents.first + token : NULL, a.documents.end ? a.documents.end + token : NULL);
    return {seen.first, seen.end, ((int64_t)blockIdx.y * b.n_query + blockIdx.x) * b.ld,
        (b.window * a.H + head) * a.T + position};
}

__device__ __forceinline__ bool sees(const row &r, int64_t key) {
    return key >= r.first && key < r.end;
}

/* Groups of N keys may reach beyond n_key, never beyond ld. */
template <typename A>
__global__ void __launch_bounds__(THREADS) softmax(gr_attention a, gr_attend_block b, float scale) {
    __shared__ float room[THREADS / GR_WARP];
    const row r = row_of(a, b);
    const float *s = b.scores + r.scores;
    A *p = (A *)b.p + r.scores;
    gr_exponentials e = gr_exponentials_none();
    for (int64_t j = threadIdx.x * N; j < b.n_key; j += blockDim.x * N) {
        float score[N];
        gr_load<N>(s + j, score);
#pragma unroll
        for (int k = 0; k < N; k++)
            if (sees(r, j + k))
                gr_exponentials_take(&e, scale * score[k]);
    }
    const float largest = gr_warps_max(e.largest, room);
    const float sum = gr_warps_sum(gr_exponentials_share(&e, largest), room), inverse = 1.0f / sum;
    if (threadIdx.x == 0)
        a.lse[r.lse] = largest + logf(sum);
    for (int64_t j = threadIdx.x * N; j < b.n_key; j += blockDim.x * N) {
        float score[N];
        gr_load<N>(s + j, score);
#pragma unroll
        for (int k = 0; k < N; k++)
            score[k] = sees(r, j + k) ? expf(scale * score[k] - largest) * inverse : 0;
        gr_store<N>(p + j, score);
    }
}

template <typename A>
__global__ void __launch_bounds__(THREADS) gradient(gr_attention a, gr_attend_block b, float scale) {
    __shared__ float room[THREADS / GR_WARP];
    const row r = row_of(a, b);
    const float *s = b.scores + r.scores, *d = b.dscores + r.scores, lse = a.lse[r.lse];
    A *p = (A *)b.p + r.scores, *ds = (A *)b.ds + r.scores;
    float sum = 0;
    for (int64_t j = threadIdx.x * N; j < b.n_key; j += blockDim.x * N) {
        float score[N], dp[N];
        gr_load<N>(s + j, score);
        gr_load<N>(d + j, dp);
#pragma unroll
        for (int k = 0; k < N; k++)
            if (sees(r, j + k))
                sum += expf(scale * score[k] - lse) * dp[k];
    }
    const float delta = gr_warps_sum(sum, room);
    for (int64_t j = threadIdx.x * N; j < b.n_key; j += blockDim.x * N) {
        float score[N], dp[N];
        gr_load<N>(s + j, score);
        gr_load<N>(d + j, dp);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const bool seen = sees(r, j + k);
            score[k] = seen ? expf(scale * score[k] - lse) : 0;
            dp[k] = seen ? scale * score[k] * (dp[k] - delta) : 0;
        }
        gr_store<N>(p + j, score);
        gr_store<N>(ds + j, dp);
    }
}

/* to[(head), t, c] = from[head, t, c] for the heads of the batch; a thread per element. */
template <typename A>
__global__ void __launch_bounds__(THREADS)
    round_heads(int64_t T, int64_t head_dim, const float *from, A *to, int64_t ld) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, head = blockIdx.y;
    if (i < T * head_dim)
        to[i / head_dim * ld + head * head_dim + i % head_dim] = gr_act_store<A>(from[head * T * head_dim + i]);
}

/* As many as a row has work for. */
unsigned threads_of(const gr_attend_block *b) {
    return (unsigned)gr_at_most(gr_round_up(gr_ceil_div(b->n_key, N), GR_WARP), THREADS);
}

template <typename A> int launch_softmax(cudaStream_t stream, const gr_attention *a, const gr_attend_block *b) {
    const dim3 grid((unsigned)b->n_query, (unsigned)b->n_head);
    softmax<A><<<grid, threads_of(b), 0, stream>>>(*a, *b, 1.0f / sqrtf((float)a->head_dim));
    return gr_launched();
}

template <typename A> int launch_gradient(cudaStream_t stream, const gr_attention *a, const gr_attend_block *b) {
    const dim3 grid((unsigned)b->n_query, (unsigned)b->n_head);
    gradient<A><<<grid, threads_of(b), 0, stream>>>(*a, *b, 1.0f / sqrtf((float)a->head_dim));
    return gr_launched();
}

template <typename A>
int launch_round(cudaStream_t stream, const gr_attention *a, int64_t n_head, const float *from, A *to, int64_t ld) {
    const dim3 grid(gr_blocks(a->T * a->head_dim, THREADS), (unsigned)n_head);
    round_heads<A><<<grid, THREADS, 0, stream>>>(a->T, a->head_dim, from, to, ld);
    return gr_launched();
}

bool is_block(gr_dtype dtype, const gr_attention *a, const gr_attend_block *b) {
    return gr_is_act(dtype) && a->H_kv > 0 && a->H % a->H_kv == 0 && a->head_dim > 0 && b->n_query >= 0 &&
           b->n_query <= 0x7fffffff && b->n_head >= 0 && b->n_head <= 65535 && b->n_key > 0 && b->n_key <= a->T &&
           b->ld % 8 == 0 && b->ld >= b->n_key && gr_is_aligned16(b->scores) && gr_is_aligned16(b->p);
}

} // namespace

int gr_kernel_attend_softmax(void *stream, gr_dtype dtype, const gr_attention *a, const gr_attend_block *b) {
    if (!is_block(dtype, a, b))
        return cudaErrorInvalidValue;
    if (b->n_query == 0 || b->n_head == 0)
        return 0;
    return dtype == GR_BF16 ? launch_softmax<gr_bf16>((cudaStream_t)stream, a, b)
                            : launch_softmax<float>((cudaStream_t)stream, a, b);
}

int gr_kernel_attend_gradient(void *stream, gr_dtype dtype, const gr_attention *a, const gr_attend_block *b) {
    if (!is_block(dtype, a, b) || !gr_is_aligned16(b->dscores) || !gr_is_aligned16(b->ds))
        return cudaErrorInvalidValue;
    if (b->n_query == 0 || b->n_head == 0)
        return 0;
    return dtype == GR_BF16 ? launch_gradient<gr_bf16>((cudaStream_t)stream, a, b)
                            : launch_gradient<float>((cudaStream_t)stream, a, b);
}

int gr_kernel_attend_round(
    void *stream, gr_dtype dtype, const gr_attention *a, int64_t n_head, const float *from, void *to, int64_t ld) {
    if (!gr_is_act(dtype) || n_head < 0 || n_head > 65535 || a->T * a->head_dim > (int64_t)THREADS * 0x7fffffff)
        return cudaErrorInvalidValue;
    if (n_head == 0 || a->T == 0 || a->head_dim == 0)
        return 0;
    return dtype == GR_BF16 ? launch_round((cudaStream_t)stream, a, n_head, from, (gr_bf16 *)to, ld)
                            : launch_round((cudaStream_t)stream, a, n_head, from, (float *)to, ld);
}
