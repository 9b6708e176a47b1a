/* rope.cu: rotary embedding in place, half-split.
 *
 *   x1' = x1 c - x2 s,  x2' = x2 c + x1 s  with x1, x2 at i and i + head_dim/2 of a head, c and s of position row %
 *     T and
 *   i; inverse turns by the negative angle
 *
 * Shapes and layout: n_row rows every ld elements, n_head heads of head_dim at the start of each; cosine and sine
 * fp32 [T, head_dim/2]. An odd head_dim's last element stays. In fp32, each result rounded once; no sums.
 * Grid: 4 rows per block, 64 threads each over the row's pairs, N at a time: a row of q and k has 48 to 320 groups
 * of pairs; heads of one row read the same angles from the first-level cache.
 * Bytes: 2 n_row n_head head_dim elements and 4 n_row head_dim of angles; 3 flops per element. Limit: n_row < 2^33.
 * No rows: nothing is launched. CPU: cpu_norm.c.
 * Measured (kernels.h): 2.62 TB/s. */
#include "kernels/warp.cuh"

namespace {

constexpr int ROWS = 4, THREADS = 64;

template <typename A, int N> __global__ void __launch_bounds__(THREADS *ROWS) turn(gr_rope a) {
    const int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.y, half = a.head_dim / 2;
    if (row >= a.n_row)
        return;
    const int64_t angles = row % a.T * half;
    const int each = (int)(half / N), n_group = (int)a.n_head * each; /* groups of N pairs: of a head, of the row */
    const float sign = a.inverse ? -1.0f : 1.0f;
    A *x = (A *)a.x + row * a.ld;
    for (int g = (int)threadIdx.x; g < n_group; g += THREADS) {
        const int64_t i = (int64_t)(g % each) * N;
        A *x1 = x + (int64_t)(g / each) * a.head_dim + i, *x2 = x1 + half;
        float u[N], v[N], c[N], s[N];
        gr_load<N>(x1, u);
        gr_load<N>(x2, v);
        gr_load<N>(a.cosine + angles + i, c);
        gr_load<N>(a.sine + angles + i, s);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float u_k = u[k], v_k = v[k], s_k = sign * s[k];
            u[k] = u_k * c[k] - v_k * s_k;
            v[k] = v_k * c[k] + u_k * s_k;
        }
        gr_store<N>(x1, u);
        gr_store<N>(x2, v);
    }
}

template <typename A> int launch_turn(cudaStream_t stream, const gr_rope *a) {
    constexpr int N = GR_WIDE<A>;
    const dim3 block(THREADS, ROWS);
    const unsigned grid = gr_blocks(a->n_row, ROWS);
    const bool wide = a->head_dim % (2 * N) == 0 && a->ld % N == 0 && gr_is_aligned16(a->x) &&
                      gr_is_aligned16(a->cosine) && gr_is_aligned16(a->sine);
    if (wide)
        turn<A, N><<<grid, block, 0, stream>>>(*a);
    else
        turn<A, 1><<<grid, block, 0, stream>>>(*a);
    return gr_launched();
}

} // namespace

int gr_kernel_rope(void *stream, gr_dtype dtype, const gr_rope *a) {
    if (!gr_is_act(dtype) || a->n_row < 0 || a->n_row > (int64_t)ROWS * 0x7fffffff || a->T <= 0 || a->n_head < 0 ||
        a->head_dim < 0 || a->n_head * a->head_dim > a->ld || a->ld > 0x7fffffff)
        return cudaErrorInvalidValue;
    if (a->n_row == 0 || a->n_head == 0 || a->head_dim < 2)
        return 0;
    return dtype == GR_BF16 ? launch_turn<gr_bf16>((cudaStream_t)stream, a)
                            : launch_turn<float>((cudaStream_t)stream, a);
}
