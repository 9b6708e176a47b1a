/* wgmma_weights.cu: gradients of grouped experts' weights on sm_90a.
 *
 *   down_weights  dW2_e [D, F] += dy_r^T a        up_weights  dW13_e [2F, D] += dh^T x_r
 *
 * Shapes: gr_ffn; bf16 in, fp32 out; sums over exactly the expert's pairs. In both the gathered rows give the 128 rows
 * of a tile; the second is computed as its transpose and stored turned.
 * Tiles: 128 x 128, 192 or 256; those of one expert are neighbours, experts in the order of their pairs, most first.
 * The second-level cache adds in whole sectors, nothing waits for it. The same bits at every call: each element gets
 * one addition in a launch, of a sum made with k ascending, so there is no order of additions that could vary; sums
 * below 2^-126 become 0. Experts without pairs: nothing is added. Bytes: for each expert the rows from the second-level
 * cache once per tile, gradients twice. Flops: 2DF and 4DF a pair. Limits: D, F multiples of 8; arrays at 16 bytes;
 * n_pair < 2^31. At most 15 rows of the last 16 of k are those of the next experts, met by zeros: where they are not
 * finite, dW of this expert is not either. Twins: grouped.cu; CPU: cpu_ffn.c. Measured (as wgmma_rows.cu): down_weights
 * 333, 448, 489, 445, 535; up_weights 419, 521, 518, 503, 530. */
#include "kernels/wgmma_core.cuh"

namespace {

template <int N> struct weights {
    static constexpr int COLUMNS = N, ROOM = 0;
    static constexpr bool GATHERED = true, HALVES = false, WEIGHTS = true, FETCHES = false;
    static constexpr int TURNED_A = 1, TURNED_B = 1;
};

/* Four lanes that differ in lane % 4 add 32 bytes of a row. */
template <int N> struct down_weights : weights<N> {
    static __device__ __forceinline__ void end(
        const call &c, const job &j, int warp, uint32_t, const float (&d)[N / 2]) {
        const int lane = (int)threadIdx.x % 32;
        const int64_t row = j.m + 16 * warp + lane / 4, column = j.n + 2 * (lane % 4);
        float *to = c.dw + (j.expert * c.D + row) * c.F + column;
#pragma unroll
        for (int i = 0; i < N / 8; i++) {
            if (j.n + 8 * i >= c.F)
                break;
            if (row < c.D)
                gr_add_pair(to + 8 * i, d[4 * i], d[4 * i + 1]);
            if (row + 8 < c.D)
                gr_add_pair(to + 8 * c.F + 8 * i, d[4 * i + 2], d[4 * i + 3]);
        }
    }
};

/* Eight lanes that differ in lane / 4 do. */
template <int N> struct up_weights : weights<N> {
    static __device__ __forceinline__ void end(
        const call &c, const job &j, int warp, uint32_t, const float (&d)[N / 2]) {
        const int lane = (int)threadIdx.x % 32;
        const int64_t of_x = j.m + 16 * warp + lane / 4, of_h = j.n + 2 * (lane % 4);
        float *to = c.dw + (j.expert * 2 * c.F + of_h) * c.D + of_x;
#pragma unroll
        for (int i = 0; i < N / 8; i++) {
            if (j.n + 8 * i >= 2 * c.F)
                break;
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (of_x + k / 2 * 8 < c.D)
                    gr_add_number(to + (8 * i + k % 2) * c.D + k / 2 * 8, d[4 * i + k]);
        }
    }
};

/* ---------------------------------------------------------------- launching */

/* The gradient as rows of `in` times columns of b. */
template <class Op> int launch_weights(void *stream, const gr_ffn *a, call *c, int64_t n) {
    c->n_m = tiles_of(a->D, ROWS);
    c->n_column = tiles_of(n, Op::COLUMNS);
    const int64_t n_job = (int64_t)a->n_expert * c->n_m * c->n_column;
    if (!gr_kernel_wgmma_fits(GR_BF16, a) || n_job > INT32_MAX)
        return cudaErrorInvalidValue;
    c->n_job = (uint32_t)n_job;
    return launch<Op>(stream, *c);
}

int call_of(const gr_ffn *a, const void *in, const void *b, int64_t n, float *dw, call *c) {
    *c = {};
    c->in = (const gr_bf16 *)in;
    c->pair_row = a->pair_row;
    c->order = a->expert_order;
    c->offset = a->device_offset;
    c->dw = dw;
    c->D = a->D;
    c->F = a->F;
    return map_of(&c->b, b, n, a->n_pair, 1, DEPTH);
}

} // namespace

int gr_kernel_wgmma_down_weights(void *stream, const gr_ffn *a) {
    if (a->n_tile == 0)
        return 0;
    call c;
    const int status = call_of(a, a->dy, a->a, a->F, a->dw2, &c);
    if (status)
        return status;
    switch (gr_wgmma_columns(a->F, 1)) {
    case 128:
        return launch_weights<down_weights<128>>(stream, a, &c, a->F);
    case 192:
        return launch_weights<down_weights<192>>(stream, a, &c, a->F);
    default:
        return launch_weights<down_weights<256>>(stream, a, &c, a->F);
    }
}

int gr_kernel_wgmma_up_weights(void *stream, const gr_ffn *a) {
    if (a->n_tile == 0)
        return 0;
    call c;
    const int status = call_of(a, a->x, a->h, 2 * a->F, a->dw13, &c);
    if (status)
        return status;
    switch (gr_wgmma_columns(2 * a->F, 1)) {
    case 128:
        return launch_weights<up_weights<128>>(stream, a, &c, 2 * a->F);
    case 192:
        return launch_weights<up_weights<192>>(stream, a, &c, 2 * a->F);
    default:
        return launch_weights<up_weights<256>>(stream, a, &c, 2 * a->F);
    }
}
