/* rows.cu: rows moved and summed by index.
 *
 *   gather  out[r,:] = in[index[r],:]
 *   sum     out[r,:] = (base ? base[r,:] : 0) + sum_s sum_{j in list s of r} source[s][index[s][j],:], in that order,
 * in fp32, rounded once pair gates  pair_gate[p] = gate[pair_row[p], pair_slot[p]], and back into a zeroed array: no
 * two pairs have a place
 *
 * Layout: packed rows of `width` elements. Grid: a warp per row, 8 rows per block: rows are at least a few hundred
 * bytes wide where there are many, so the lanes of a warp read whole lines, and a row's index is read once per warp.
 * Lanes take every 32nd unit of 16 bytes where the row's bytes and the arrays' addresses allow, else single elements.
 * Bytes: gather 2 n_row width elements and 4 n_row of index; sum (1 + base + terms per row) n_row width elements and
 * the lists. No flops to speak of. Limit: n_row < 2^34 (8 rows times the largest grid). No rows: nothing is launched.
 * CPU: cpu_rows.c, cpu_gates.c.
 * Measured (kernels.h): gather 1.75 TB/s, sum 2.72, pair gates 13 and 18 us. */
#include "kernels/warp.cuh"

namespace {

constexpr int ROWS = 8; /* warps of a block */

struct alignas(16) unit16 {
    uint32_t word[4];
};

__device__ __forceinline__ int64_t row_of_warp() {
    return (int64_t)blockIdx.x * ROWS + threadIdx.y;
}

/* `width` counts units of U. */
template <typename U>
__global__ void __launch_bounds__(32 * ROWS)
    gather_rows(int64_t n_row, int64_t width, const U *in, const uint32_t *index, U *out) {
    const int64_t r = row_of_warp();
    if (r >= n_row)
        return;
    const U *from = in + (int64_t)index[r] * width;
    U *to = out + r * width;
    for (int64_t j = threadIdx.x; j < width; j += 32)
        to[j] = from[j];
}

template <typename T, int N> __device__ __forceinline__ void add(const T *from, float (&sum)[N]) {
    float x[N];
    gr_load<N>(from, x);
    for (int i = 0; i < N; i++)
        sum[i] += x[i];
}

/* N elements at a time; N divides the width. out may be base: each lane reads what it then writes. */
template <typename T, int N> __global__ void __launch_bounds__(32 * ROWS) sum_rows(gr_sum a) {
    const int64_t r = row_of_warp();
    if (r >= a.n_row)
        return;
    for (int64_t j = (int64_t)threadIdx.x * N; j < a.width; j += 32 * N) {
        float sum[N] = {};
        if (a.base)
            add<T, N>((const T *)a.base + r * a.width + j, sum);
        for (int s = 0; s < 2; s++) {
            if (!a.source[s])
                continue;
            const uint32_t end = a.offset[s][r + 1];
            for (uint32_t i = a.offset[s][r]; i < end; i++)
                add<T, N>((const T *)a.source[s] + (int64_t)a.index[s][i] * a.width + j, sum);
        }
        gr_store<N>((T *)a.out + r * a.width + j, sum);
    }
}

__global__ void pair_gates_forward(gr_pair_gates a) {
    const int64_t p = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (p < a.n_pair)
        a.pair_gate[p] = a.gate[(int64_t)a.pair_row[p] * a.K + a.pair_slot[p]];
}

__global__ void pair_gates_backward(gr_pair_gates a) {
    const int64_t p = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (p < a.n_pair)
        a.dgate[(int64_t)a.pair_row[p] * a.K + a.pair_slot[p]] = a.dpair_gate[p];
}

constexpr int64_t ROWS_MAX = (int64_t)ROWS * 0x7fffffff;
constexpr int PAIRS = 256; /* threads of a block, one per pair */

template <typename U> int launch_gather(cudaStream_t stream, int64_t width, const gr_gather *a) {
    gather_rows<U><<<gr_blocks(a->n_row, ROWS), dim3(32, ROWS), 0, stream>>>(
        a->n_row, width, (const U *)a->in, a->index, (U *)a->out);
    return gr_launched();
}

template <typename T> int launch_sum(cudaStream_t stream, const gr_sum *a) {
    constexpr int N = GR_WIDE<T>;
    const bool whole = gr_is_aligned16(a->base) && gr_is_aligned16(a->source[0]) && gr_is_aligned16(a->source[1]) &&
                       gr_is_aligned16(a->out) && a->width % N == 0;
    const dim3 block(32, ROWS);
    const unsigned grid = gr_blocks(a->n_row, ROWS);
    if (whole)
        sum_rows<T, N><<<grid, block, 0, stream>>>(*a);
    else
        sum_rows<T, 1><<<grid, block, 0, stream>>>(*a);
    return gr_launched();
}

bool is_pairs(const gr_pair_gates *a) {
    return a->n_row >= 0 && a->K > 0 && a->n_pair >= 0 && a->n_pair <= INT64_C(0x7fffffff) * PAIRS;
}

} // namespace

int gr_kernel_gather(void *stream, gr_dtype dtype, const gr_gather *a) {
    if (a->n_row < 0 || a->n_row > ROWS_MAX || a->width < 0 || !gr_is_act(dtype))
        return cudaErrorInvalidValue;
    if (a->n_row == 0 || a->width == 0)
        return 0;
    const cudaStream_t queue = (cudaStream_t)stream;
    const int64_t size = dtype == GR_BF16 ? 2 : 4, n_byte = a->width * size;
    if (n_byte % 16 == 0 && gr_is_aligned16(a->in) && gr_is_aligned16(a->out))
        return launch_gather<unit16>(queue, n_byte / 16, a);
    return dtype == GR_BF16 ? launch_gather<uint16_t>(queue, a->width, a) : launch_gather<uint32_t>(queue, a->width, a);
}

int gr_kernel_sum(void *stream, gr_dtype dtype, const gr_sum *a) {
    if (a->n_row < 0 || a->n_row > ROWS_MAX || a->width < 0 || !gr_is_act(dtype))
        return cudaErrorInvalidValue;
    if (a->n_row == 0 || a->width == 0)
        return 0;
    const cudaStream_t queue = (cudaStream_t)stream;
    return dtype == GR_BF16 ? launch_sum<gr_bf16>(queue, a) : launch_sum<float>(queue, a);
}

int gr_kernel_pair_gates_forward(void *stream, const gr_pair_gates *a) {
    if (!is_pairs(a))
        return cudaErrorInvalidValue;
    if (a->n_pair == 0)
        return 0;
    pair_gates_forward<<<gr_blocks(a->n_pair, PAIRS), PAIRS, 0, (cudaStream_t)stream>>>(*a);
    return gr_launched();
}

int gr_kernel_pair_gates_backward(void *stream, const gr_pair_gates *a) {
    if (!is_pairs(a))
        return cudaErrorInvalidValue;
    if (a->n_row == 0)
        return 0;
    const cudaError_t zeroed =
        cudaMemsetAsync(a->dgate, 0, (size_t)(a->n_row * a->K) * sizeof *a->dgate, (cudaStream_t)stream);
    if (zeroed || a->n_pair == 0)
        return zeroed;
    pair_gates_backward<<<gr_blocks(a->n_pair, PAIRS), PAIRS, 0, (cudaStream_t)stream>>>(*a);
    return gr_launched();
}
