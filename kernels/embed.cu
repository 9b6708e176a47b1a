/* embed.cu: token embedding: its gradient; forward is a gather (rows.cu).
 *
 *   dtable[id[i],:] += dout[i,:], for each id over its rows i ascending, in fp32
 *
 * Shapes and layout: id [n] below n_vocab, dout act [n, width], dtable fp32 [n_vocab, width], both packed.
 * No float atomics: each id has one owner, which needs the id's rows in order. Scratch (gr_embed_lists) holds them:
 *   1 count   an integer atomic per row counts its id; the value found is the row's slot, and slot 0 speaks for the id
 *   2 start   these rows take room for their id's list, by another integer atomic
 *   3 rough   each row writes itself into its slot: the right rows in an order that may differ from run to run
 *   4 list    each row's true place is the number of smaller rows in its list: that is the same in every run
 *   5 sum     a block per row that speaks for an id: each of its threads has columns of its own
 * Where a list lies, and which row speaks, may differ from run to run; what is summed, and in which order, does not.
 * Order: what dtable held, then the rows from the first on: one sum, as the CPU makes it, to the bit.
 * Grid: 1-4 a thread per row. 5 n x width / (256 N) blocks, of which those that speak for no id end at once: no
 * launch needs the number of ids on the host. A frequent id is one block's work; 8 of its rows are on their way at a
 * time, so that one of 1000 rows takes some 100 us beside the others.
 * Bytes: n width elements, 8 width per distinct id, about 40 n + 4 n_vocab. 4 compares a row with the others of its
 * id: n^2 compares when all are equal (32,768 rows: 10^9, a fraction of a millisecond), few in text. Limit: n <
 * 2^31.
 * No rows: nothing is launched, dtable keeps its values. CPU: cpu_rows.c.
 * Measured (kernels.h): 1.70 ms, 0.20 TB/s: the most frequent id is one block's work. */
#include "kernels/warp.cuh"

namespace {

constexpr int THREADS = 256; /* of the blocks that make the lists */
constexpr int COLUMNS = 256; /* threads of a block that sums, at most: N columns each */

/* The arrays in scratch. */
typedef struct lists {
    uint32_t *cursor, *count, *start, *slot, *rough, *list;
} lists;

__global__ void count(int64_t n, const uint32_t *id, lists l) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n)
        l.slot[i] = atomicAdd(&l.count[id[i]], 1u);
}

__global__ void start(int64_t n, const uint32_t *id, lists l) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n && l.slot[i] == 0)
        l.start[id[i]] = atomicAdd(l.cursor, l.count[id[i]]);
}

__global__ void rough(int64_t n, const uint32_t *id, lists l) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n)
        l.rough[l.start[id[i]] + l.slot[i]] = (uint32_t)i;
}

__global__ void order(int64_t n, const uint32_t *id, lists l) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    const uint32_t begin = l.start[id[i]], n_row = l.count[id[i]];
    uint32_t before = 0;
    for (uint32_t j = 0; j < n_row; j++)
        before += l.rough[begin + j] < (uint32_t)i;
    l.list[begin + before] = (uint32_t)i;
}

/* N columns a thread. */
template <typename A, int N> __global__ void __launch_bounds__(COLUMNS) sum(gr_embed a, lists l) {
    const int64_t column = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (l.slot[blockIdx.x] != 0 || column >= a.width)
        return;
    const int64_t id = a.id[blockIdx.x];
    const uint32_t *list = l.list + l.start[id], n_row = l.count[id];
    const A *dout = (const A *)a.dout + column;
    float *out = a.dtable + id * a.width + column, total[N];
    gr_load<N>(out, total);
#pragma unroll 8
    for (uint32_t j = 0; j < n_row; j++) {
        float d[N];
        gr_load<N>(dout + list[j] * a.width, d);
#pragma unroll
        for (int k = 0; k < N; k++)
            total[k] += d[k];
    }
    gr_store<N>(out, total);
}

int make_lists(cudaStream_t stream, const gr_embed *a, const gr_embed_lists *size, lists l) {
    const unsigned grid = gr_blocks(a->n, THREADS);
    const cudaError_t zeroed = cudaMemsetAsync(l.cursor, 0, (size_t)size->n_zero * sizeof *l.cursor, stream);
    if (zeroed)
        return zeroed;
    count<<<grid, THREADS, 0, stream>>>(a->n, a->id, l);
    start<<<grid, THREADS, 0, stream>>>(a->n, a->id, l);
    rough<<<grid, THREADS, 0, stream>>>(a->n, a->id, l);
    order<<<grid, THREADS, 0, stream>>>(a->n, a->id, l);
    return gr_launched();
}

template <typename A, int N> int launch_sum(cudaStream_t stream, const gr_embed *a, lists l) {
    const int n_thread = (int)gr_at_most(gr_round_up(gr_ceil_div(a->width, N), GR_WARP), COLUMNS);
    const dim3 grid((unsigned)a->n, gr_blocks(a->width, (int64_t)n_thread * N));
    sum<A, N><<<grid, n_thread, 0, stream>>>(*a, l);
    return gr_launched();
}

template <typename A> int launch_sum_of(cudaStream_t stream, const gr_embed *a, lists l) {
    const bool wide = a->width % GR_WIDE<A> == 0 && gr_is_aligned16(a->dout) && gr_is_aligned16(a->dtable);
    return wide ? launch_sum<A, GR_WIDE<A>>(stream, a, l) : launch_sum<A, 1>(stream, a, l);
}

} // namespace

int gr_kernel_embed_backward(void *stream, gr_dtype dtype, const gr_embed *a, void *scratch) {
    if (!gr_is_act(dtype) || a->n < 0 || a->n > 0x7fffffff || a->width < 0 || a->width > COLUMNS * 65535 ||
        a->n_vocab < 0)
        return cudaErrorInvalidValue;
    if (a->n == 0 || a->width == 0)
        return 0;
    const cudaStream_t queue = (cudaStream_t)stream;
    const gr_embed_lists size = gr_embed_lists_of(a->n, a->n_vocab);
    uint32_t *word = (uint32_t *)scratch;
    const lists l = {word + size.cursor, word + size.count, word + size.start, word + size.slot, word + size.rough,
        word + size.list};
    const int failed = make_lists(queue, a, &size, l);
    if (failed)
        return failed;
    return dtype == GR_BF16 ? launch_sum_of<gr_bf16>(queue, a, l) : launch_sum_of<float>(queue, a, l);
}
