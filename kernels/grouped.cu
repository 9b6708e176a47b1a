/* grouped.cu: SwiGLU experts in bf16, each product of all experts in one launch, on the tensor cores by mma.sync
 * (sm_80 and later).
 *
 *   up             h = x_r W13^T = [h1 | h3], a = g silu(h1) h3           per pair, r its row, g its gate
 *   down           y = a W2^T
 *   down_input     da = dy_r W2 (in registers); dh1, dh3, a and dgate from it and h; dh over h
 *   down_weights   dW2 += dy_r^T a          up_weights   dW13 += dh^T x_r          input   dx = dh W13
 *
 * Shapes and layout: gr_ffn; D and F multiples of 8, all arrays at 16 bytes. a is made of h as it is stored, so that
 * backward makes it again bit for bit. fp32 sums along k in steps of 16, in order; a gradient of weights is the sum
 * over all pairs of an expert, then added once; dgate is added up over the warps' columns of 64, in order. Each number
 * has one owner: the same bits at every call. Grid: a block of 128 threads per 128 rows of an expert x 128 columns (64
 * of h1 with their 64 of h3), or per 128 x 128 of an expert's gradient; experts with most pairs first, since blocks are
 * given out in order. 64 KiB of shared memory: two blocks a multiprocessor. Four stages of 32 k; the gather costs
 * nothing, since rows come by cp.async anyway. A warp whose quarter lies beyond the pairs or columns multiplies
 * nothing. Flops: 2 x 3 D F per pair forward, twice that backward, plus tails of rows and columns. Bytes: rows once per
 * column tile and weights once per row tile, mostly from the second-level cache; h and a written, then read and
 * written. Limits: fewer than 2^31 pairs and blocks. No pairs: nothing is launched. CPU: cpu_ffn.c.
 * Measured (kernels.h, on an H100, whose fast way is wgmma_*.cu): 325 TFLOP/s forward, 287 backward. */
#include "kernels/grouped.cuh"
#include "kernels/swiglu.cuh"

namespace {

constexpr int BLOCKS = 2; /* on a multiprocessor at once */

__device__ __forceinline__ gr_bf16 *row_of(const void *array, int64_t row, int64_t width) {
    return (gr_bf16 *)array + row * width;
}

/* Rows of pairs in `in` [rows, width]: where a row tile's are, gathered or not. */
__device__ __forceinline__ gr_grouped_rows pairs_of(
    const gr_row_tile &tile, const void *in, const uint32_t *pair_row, int64_t width) {
    return gr_grouped_rows(width, [&](int r) {
        const int64_t pair = (int64_t)tile.first + (r < (int)tile.n_row ? r : 0);
        return row_of(in, pair_row ? (int64_t)pair_row[pair] : pair, width);
    });
}

/* Rows [first, first + 128) of a matrix [height, width]. */
__device__ __forceinline__ gr_grouped_rows weights_of(
    const gr_bf16 *matrix, int64_t first, int64_t height, int64_t width) {
    return gr_grouped_rows(width, [&](int r) { return row_of(matrix, first + r < height ? first + r : first, width); });
}

__device__ __forceinline__ float gate_of(const gr_ffn &a, int64_t pair, bool there) {
    return a.pair_gate && there ? a.pair_gate[pair] : 1.0f;
}

/* Where a thread's two numbers of a unit are. */
__device__ __forceinline__ uint32_t *in_patch(gr_bf16 *patch, int at, const gr_grouped_seat &seat) {
    return (uint32_t *)(patch + at + 2 * seat.t);
}

/* ---------------------------------------------------------------- forward */

/* The quarter's h1 and h3, from column `column` of each on, and a of them. */
__device__ __forceinline__ void up_results(const gr_ffn &a, int64_t first, int n_row, int64_t column,
    const gr_quarter &sum, const gr_grouped_seat &seat, gr_bf16 *patch) {
    uint32_t act[8][4];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = 8 * i + seat.g;
        const float g = gate_of(a, first + row, row < n_row);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float(&left)[4] = sum[i / 2][2 * j], (&right)[4] = sum[i / 2][2 * j + 1];
            const uint32_t h1 = gr_pair(left[i % 2 * 2], left[i % 2 * 2 + 1]);
            const uint32_t h3 = gr_pair(right[i % 2 * 2], right[i % 2 * 2 + 1]);
            *in_patch(patch, gr_grouped_patch_at(row, j), seat) = h1;
            *in_patch(patch, gr_grouped_patch_at(row, j + 4), seat) = h3;
            act[i][j] = gr_pair(gr_swiglu(g, gr_low(h1), gr_low(h3)), gr_swiglu(g, gr_high(h1), gr_high(h3)));
        }
    }
    __syncwarp();
    gr_grouped_patch_store(patch, [&](int row, int unit) -> gr_bf16 * {
        const int64_t at = column + unit % 4 * GR_GROUPED_UNIT;
        return row < n_row && at < a.F ? row_of(a.h, first + row, 2 * a.F) + unit / 4 * a.F + at : NULL;
    });
    if (!a.y)
        return;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            *in_patch(patch, gr_grouped_half_patch_at(8 * i + seat.g, j), seat) = act[i][j];
    __syncwarp();
    gr_grouped_half_patch_store(patch, [&](int row, int unit) -> gr_bf16 * {
        const int64_t at = column + unit * GR_GROUPED_UNIT;
        return row < n_row && at < a.F ? row_of(a.a, first + row, a.F) + at : NULL;
    });
}

__global__ void __launch_bounds__(GR_GROUPED_THREADS, BLOCKS) up(gr_ffn a) {
    gr_bf16 *room = gr_launched_room();
    const gr_grouped_seat seat = gr_grouped_seat_here();
    const gr_grouped_spot spot = gr_grouped_spot_of(blockIdx.x, gr_ceil_div(a.F, GR_GROUPED_UP));
    const gr_row_tile tile = a.tiles[spot.row_tile];
    const int64_t column = spot.column_tile * GR_GROUPED_UP;
    const gr_bf16 *w13 = row_of(a.w13, (int64_t)tile.expert * 2 * a.F, a.D);
    gr_grouped_rows x = pairs_of(tile, a.x, a.pair_row, a.D);
    gr_grouped_rows w(a.D, [&](int n) {
        const int64_t row = gr_grouped_up_row(a.F, column, n);
        return row_of(w13, row < 0 ? column : row, a.D);
    });
    gr_quarter sum = {};
    const bool needed = seat.m < (int)tile.n_row && column + seat.n / 2 < a.F;
    gr_grouped_product(x, w, (int)a.D, needed, room, seat, sum);
    if (needed)
        up_results(a, (int64_t)tile.first + seat.m, (int)tile.n_row - seat.m, column + seat.n / 2, sum, seat,
            room + seat.warp * GR_GROUPED_PATCH);
}

__global__ void __launch_bounds__(GR_GROUPED_THREADS, BLOCKS) down(gr_ffn a) {
    gr_bf16 *room = gr_launched_room();
    const gr_grouped_seat seat = gr_grouped_seat_here();
    const gr_grouped_spot spot = gr_grouped_spot_of(blockIdx.x, gr_grouped_sides(a.D));
    const gr_row_tile tile = a.tiles[spot.row_tile];
    const int64_t column = spot.column_tile * GR_GROUPED_SIDE;
    gr_grouped_rows act = pairs_of(tile, a.a, NULL, a.F);
    gr_grouped_rows w = weights_of(row_of(a.w2, tile.expert * a.D, a.F), column, a.D, a.F);
    gr_quarter sum = {};
    const bool needed = seat.m < (int)tile.n_row && column + seat.n < a.D;
    gr_grouped_product(act, w, (int)a.F, needed, room, seat, sum);
    if (needed)
        gr_grouped_store(sum, seat, room + seat.warp * GR_GROUPED_PATCH, (gr_bf16 *)a.y, (int64_t)tile.first + seat.m,
            (int)tile.n_row - seat.m, column + seat.n, a.D);
}

/* ---------------------------------------------------------------- backward of rows */

/* The quarter of h1 and h3 into two patches. */
__device__ __forceinline__ void h_load(
    const gr_ffn &a, int64_t first, int n_row, int64_t column, int lane, gr_bf16 *patch) {
#pragma unroll
    for (int i = 0; i < GR_GROUPED_QUARTER / 4; i++) {
        const int row = 4 * i + lane / 8, unit = lane % 8;
        const int64_t at = column + unit * GR_GROUPED_UNIT;
        const bool there = row < n_row && at < a.F;
        const gr_bf16 *h1 = row_of(a.h, there ? first + row : first, 2 * a.F) + (there ? at : 0);
        gr_copy_async(patch + gr_grouped_patch_at(row, unit), h1, there);
        gr_copy_async(patch + GR_GROUPED_PATCH + gr_grouped_patch_at(row, unit), h1 + a.F, there);
    }
    gr_copy_commit();
    gr_copy_wait<0>();
    __syncwarp();
}

/* dh, a and this warp's share of dgate from da in `sum`. */
__device__ __forceinline__ void down_input_results(const gr_ffn &a, int64_t first, int n_row, int64_t column,
    const gr_quarter &sum, const gr_grouped_seat &seat, gr_bf16 *patch) {
    float *share = (float *)a.da + column / GR_GROUPED_GATE_COLUMNS * a.n_pair;
    uint32_t act[8][8];
    h_load(a, first, n_row, column, seat.lane, patch);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = 8 * i + seat.g;
        const float g = gate_of(a, first + row, row < n_row);
        float dgate = 0;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            uint32_t *h1 = in_patch(patch, gr_grouped_patch_at(row, j), seat), *h3 = h1 + GR_GROUPED_PATCH / 2;
            const float(&da)[4] = sum[i / 2][j];
            const gr_swiglu_gradient low = gr_swiglu_backward(g, gr_low(*h1), gr_low(*h3), da[i % 2 * 2]);
            const gr_swiglu_gradient high = gr_swiglu_backward(g, gr_high(*h1), gr_high(*h3), da[i % 2 * 2 + 1]);
            *h1 = gr_pair(low.du, high.du);
            *h3 = gr_pair(low.dv, high.dv);
            act[i][j] = gr_pair(low.a, high.a);
            dgate += low.dgate + high.dgate;
        }
        dgate += __shfl_xor_sync(GR_ALL_LANES, dgate, 1);
        dgate += __shfl_xor_sync(GR_ALL_LANES, dgate, 2);
        if (a.dgate && seat.t == 0 && row < n_row)
            share[first + row] = dgate;
    }
    __syncwarp();
#pragma unroll
    for (int part = 0; part < 2; part++)
        gr_grouped_patch_store(patch + part * GR_GROUPED_PATCH, [&](int row, int unit) -> gr_bf16 * {
            const int64_t at = column + unit * GR_GROUPED_UNIT;
            return row < n_row && at < a.F ? row_of(a.h, first + row, 2 * a.F) + part * a.F + at : NULL;
        });
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
            *in_patch(patch, gr_grouped_patch_at(8 * i + seat.g, j), seat) = act[i][j];
    __syncwarp();
    gr_grouped_patch_store(patch, [&](int row, int unit) -> gr_bf16 * {
        const int64_t at = column + unit * GR_GROUPED_UNIT;
        return row < n_row && at < a.F ? row_of(a.a, first + row, a.F) + at : NULL;
    });
}

__global__ void __launch_bounds__(GR_GROUPED_THREADS, BLOCKS) down_input(gr_ffn a) {
    gr_bf16 *room = gr_launched_room();
    const gr_grouped_seat seat = gr_grouped_seat_here();
    const gr_grouped_spot spot = gr_grouped_spot_of(blockIdx.x, gr_grouped_sides(a.F));
    const gr_row_tile tile = a.tiles[spot.row_tile];
    const int64_t column = spot.column_tile * GR_GROUPED_SIDE;
    gr_grouped_rows dy = pairs_of(tile, a.dy, a.pair_row, a.D);
    gr_grouped_slab w(row_of(a.w2, tile.expert * a.D, a.F), a.D, column, a.F);
    gr_quarter sum = {};
    const bool needed = seat.m < (int)tile.n_row && column + seat.n < a.F;
    gr_grouped_product(dy, w, (int)a.D, needed, room, seat, sum);
    if (needed)
        down_input_results(a, (int64_t)tile.first + seat.m, (int)tile.n_row - seat.m, column + seat.n, sum, seat,
            room + seat.warp * 2 * GR_GROUPED_PATCH);
}

__global__ void __launch_bounds__(GR_GROUPED_THREADS)
    gates(int64_t n_pair, int64_t n_part, const float *share, float *dgate) {
    const int64_t p = (int64_t)blockIdx.x * GR_GROUPED_THREADS + threadIdx.x;
    if (p >= n_pair)
        return;
    float sum = 0;
    for (int64_t i = 0; i < n_part; i++)
        sum += share[i * n_pair + p];
    dgate[p] = sum;
}

__global__ void __launch_bounds__(GR_GROUPED_THREADS, BLOCKS) input(gr_ffn a) {
    gr_bf16 *room = gr_launched_room();
    const gr_grouped_seat seat = gr_grouped_seat_here();
    const gr_grouped_spot spot = gr_grouped_spot_of(blockIdx.x, gr_grouped_sides(a.D));
    const gr_row_tile tile = a.tiles[spot.row_tile];
    const int64_t column = spot.column_tile * GR_GROUPED_SIDE;
    gr_grouped_rows dh = pairs_of(tile, a.h, NULL, 2 * a.F);
    gr_grouped_slab w(row_of(a.w13, tile.expert * 2 * a.F, a.D), 2 * a.F, column, a.D);
    gr_quarter sum = {};
    const bool needed = seat.m < (int)tile.n_row && column + seat.n < a.D;
    gr_grouped_product(dh, w, (int)(2 * a.F), needed, room, seat, sum);
    if (needed)
        gr_grouped_store(sum, seat, room + seat.warp * GR_GROUPED_PATCH, (gr_bf16 *)a.dx, (int64_t)tile.first + seat.m,
            (int)tile.n_row - seat.m, column + seat.n, a.D);
}

/* ---------------------------------------------------------------- gradients of weights */

/* One expert's pairs in `in`: packed rows of their own, or rows that pairs share. */
__device__ __forceinline__ gr_grouped_slab packed_pairs(
    const void *in, uint32_t begin, int n, int64_t first, int64_t width) {
    return gr_grouped_slab(row_of(in, begin, width), n, first, width);
}

__device__ __forceinline__ gr_grouped_gathered_slab shared_pairs(
    const gr_ffn &a, const void *in, uint32_t begin, int n, int64_t first) {
    return gr_grouped_gathered_slab(
        row_of(in, a.pair_row ? 0 : begin, a.D), a.pair_row ? a.pair_row + begin : NULL, n, first, a.D);
}

__global__ void __launch_bounds__(GR_GROUPED_THREADS, BLOCKS) down_weights(gr_ffn a) {
    gr_bf16 *room = gr_launched_room();
    const gr_grouped_seat seat = gr_grouped_seat_here();
    const gr_grouped_part part = gr_grouped_part_of(blockIdx.x, a.D, a.F);
    const uint32_t e = a.expert_order[part.place], begin = a.device_offset[e];
    const int n = (int)(a.device_offset[e + 1] - begin);
    if (n == 0)
        return;
    gr_grouped_gathered_slab dy = shared_pairs(a, a.dy, begin, n, part.m);
    gr_grouped_slab act = packed_pairs(a.a, begin, n, part.n, a.F);
    gr_quarter sum = {};
    const bool needed = part.m + seat.m < a.D && part.n + seat.n < a.F;
    gr_grouped_product(dy, act, n, needed, room, seat, sum);
    if (needed)
        gr_grouped_add(sum, seat, a.dw2 + e * a.D * a.F, part.m + seat.m, a.D, part.n + seat.n, a.F);
}

__global__ void __launch_bounds__(GR_GROUPED_THREADS, BLOCKS) up_weights(gr_ffn a) {
    gr_bf16 *room = gr_launched_room();
    const gr_grouped_seat seat = gr_grouped_seat_here();
    const gr_grouped_part part = gr_grouped_part_of(blockIdx.x, 2 * a.F, a.D);
    const uint32_t e = a.expert_order[part.place], begin = a.device_offset[e];
    const int n = (int)(a.device_offset[e + 1] - begin);
    if (n == 0)
        return;
    gr_grouped_slab dh = packed_pairs(a.h, begin, n, part.m, 2 * a.F);
    gr_grouped_gathered_slab x = shared_pairs(a, a.x, begin, n, part.n);
    gr_quarter sum = {};
    const bool needed = part.m + seat.m < 2 * a.F && part.n + seat.n < a.D;
    gr_grouped_product(dh, x, n, needed, room, seat, sum);
    if (needed)
        gr_grouped_add(sum, seat, a.dw13 + e * 2 * a.F * a.D, part.m + seat.m, 2 * a.F, part.n + seat.n, a.D);
}

/* ---------------------------------------------------------------- launching */

int launch(void (*kernel)(gr_ffn), void *stream, int64_t n_block, const gr_ffn *a) {
    const cudaStream_t queue = (cudaStream_t)stream;
    if (!gr_kernel_grouped_fits(GR_BF16, a) || n_block > INT32_MAX)
        return cudaErrorInvalidValue;
    if (a->n_tile == 0)
        return 0;
    const cudaError_t status =
        cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, GR_GROUPED_ROOM);
    if (status)
        return status;
    kernel<<<(unsigned)n_block, GR_GROUPED_THREADS, GR_GROUPED_ROOM, queue>>>(*a);
    return gr_launched();
}

} // namespace

int gr_kernel_grouped_up(void *stream, const gr_ffn *a) {
    return launch(up, stream, a->n_tile * gr_ceil_div(a->F, GR_GROUPED_UP), a);
}

int gr_kernel_grouped_down(void *stream, const gr_ffn *a) {
    return launch(down, stream, a->n_tile * gr_grouped_sides(a->D), a);
}

int gr_kernel_grouped_gates(void *stream, const gr_ffn *a, int64_t n_part) {
    const cudaStream_t queue = (cudaStream_t)stream;
    if (!a->dgate || a->n_pair == 0)
        return 0;
    gates<<<gr_blocks(a->n_pair, GR_GROUPED_THREADS), GR_GROUPED_THREADS, 0, queue>>>(
        a->n_pair, n_part, (const float *)a->da, a->dgate);
    return gr_launched();
}

int gr_kernel_grouped_down_input(void *stream, const gr_ffn *a) {
    const int status = launch(down_input, stream, a->n_tile * gr_grouped_sides(a->F), a);
    return status ? status : gr_kernel_grouped_gates(stream, a, gr_grouped_gate_parts(a->F));
}

int gr_kernel_grouped_input(void *stream, const gr_ffn *a) {
    return launch(input, stream, a->n_tile * gr_grouped_sides(a->D), a);
}

int gr_kernel_grouped_down_weights(void *stream, const gr_ffn *a) {
    return launch(down_weights, stream, gr_grouped_parts(a->n_expert, a->D, a->F), a);
}

int gr_kernel_grouped_up_weights(void *stream, const gr_ffn *a) {
    return launch(up_weights, stream, gr_grouped_parts(a->n_expert, 2 * a->F, a->D), a);
}
