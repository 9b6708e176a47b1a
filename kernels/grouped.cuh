/* grouped.cuh: the product that the kernels of grouped.cu share: 128 x 128 numbers of c = sum over k of a b, by
 * mma.sync, operands on their way to shared memory by cp.async three steps ahead.
 *
 * An operand is one of two kinds. Rows: each row of c (or column) has its own row in memory, which runs along k. Slab:
 * each k has a row in memory, of which the block takes 128 numbers. Rows of both may be gathered. Beyond the end of an
 * operand there are zeros, so lengths of any multiple of 8 are exact. */
#ifndef GROUTER_KERNELS_GROUPED_CUH
#define GROUTER_KERNELS_GROUPED_CUH

#include "kernels/grouped.h"
#include "kernels/mma.cuh"
#include "kernels/warp.cuh"

/* A warp's quarter: 4 x 8 of the tensor cores' results (mma.cuh). */
typedef float gr_quarter[4][8][4];

/* Where a thread stands: its warp's quarter, and its row and first column in each result. */
typedef struct gr_grouped_seat {
    int m, n; /* first row and column of the quarter */
    int g, t; /* lane / 4, lane % 4 */
    int lane, warp;
} gr_grouped_seat;

static __device__ __forceinline__ gr_grouped_seat gr_grouped_seat_here(void) {
    const int lane = (int)threadIdx.x % GR_WARP, warp = (int)threadIdx.x / GR_WARP;
    return {warp % 2 * GR_GROUPED_QUARTER, warp / 2 * GR_GROUPED_QUARTER, lane / 4, lane % 4, lane, warp};
}

/* ---------------------------------------------------------------- operands
 *
 * `load` starts the copies of a step's numbers from k on, steps in order; WHOLE: none of them is beyond the end.
 * `left_at` and `right_at` say where a lane's addresses for ldmatrix begin in a step, for a warp whose rows (columns)
 * begin at `first`; `fragment` loads the i-th 16 rows (columns) at the kk-th 16 k from there. */

enum { GR_GROUPED_EACH = 4 }; /* units a thread copies per step and operand */

/* Rows along k. A thread copies one unit of every 32nd row. */
typedef struct gr_grouped_rows {
    const gr_bf16 *unit[GR_GROUPED_EACH];
    int k_end;

    /* row_at(r): row r of the block; for those that there are not, any other: what becomes of it is not stored. */
    template <typename F> __device__ __forceinline__ gr_grouped_rows(int64_t k_end_, F row_at) : k_end((int)k_end_) {
#pragma unroll
        for (int i = 0; i < GR_GROUPED_EACH; i++)
            unit[i] = row_at((int)threadIdx.x / 4 + 32 * i) + (int)threadIdx.x % 4 * GR_GROUPED_UNIT;
    }

    template <bool WHOLE> __device__ __forceinline__ void load(gr_bf16 *to, int k) {
        const int column = (int)threadIdx.x % 4;
        const bool there = WHOLE || k + column * GR_GROUPED_UNIT < k_end;
#pragma unroll
        for (int i = 0; i < GR_GROUPED_EACH; i++) {
            gr_bf16 *at = to + gr_grouped_row_at((int)threadIdx.x / 4 + 32 * i, column);
            if (WHOLE)
                gr_copy_async(at, unit[i]);
            else
                gr_copy_async(at, unit[i], there);
            unit[i] += GR_GROUPED_DEPTH;
        }
    }

    static __device__ __forceinline__ void left_at(int first, int lane, int (&at)[4]) {
#pragma unroll
        for (int kk = 0; kk < 2; kk++)
            at[kk] = gr_grouped_row_at(first + lane % 16, 2 * kk + lane / 16);
    }

    static __device__ __forceinline__ void right_at(int first, int lane, int (&at)[4]) {
#pragma unroll
        for (int kk = 0; kk < 2; kk++)
            at[kk] = gr_grouped_row_at(first + lane / 16 * 8 + lane % 8, 2 * kk + lane / 8 % 2);
    }

    static __device__ __forceinline__ void fragment(
        const gr_bf16 *from, const int (&at)[4], int i, int kk, uint32_t (&x)[4]) {
        gr_load_matrices(from + at[kk] + i * 16 * GR_GROUPED_DEPTH, x);
    }
} gr_grouped_rows;

/* What slabs have in common. A thread copies one unit of every 8th k; units beyond the width are copies of the first,
 * what becomes of them is not stored. */
typedef struct gr_grouped_slab_fragments {
    static __device__ __forceinline__ int64_t column_of(int64_t first, int64_t width) {
        const int64_t at = first + (int)threadIdx.x % 16 * GR_GROUPED_UNIT;
        return at < width ? at : 0;
    }

    template <bool WHOLE>
    static __device__ __forceinline__ void copy(gr_bf16 *to, int i, const gr_bf16 *from, int k, int k_end) {
        const int at = (int)threadIdx.x / 16 + 8 * i;
        to += gr_grouped_slab_at(at, (int)threadIdx.x % 16);
        if (WHOLE)
            gr_copy_async(to, from);
        else
            gr_copy_async(to, from, k + at < k_end);
    }

    static __device__ __forceinline__ void left_at(int first, int lane, int (&at)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            at[i] = gr_grouped_slab_at(lane / 16 * 8 + lane % 8, first / 8 + 2 * i + lane / 8 % 2);
    }

    static __device__ __forceinline__ void right_at(int first, int lane, int (&at)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            at[i] = gr_grouped_slab_at(lane % 16, first / 8 + 2 * i + lane / 16);
    }

    static __device__ __forceinline__ void fragment(
        const gr_bf16 *from, const int (&at)[4], int i, int kk, uint32_t (&x)[4]) {
        gr_load_turned(from + at[i] + kk * 16 * GR_GROUPED_SIDE, x);
    }
} gr_grouped_slab_fragments;

/* Rows of one k each: those of a matrix [k_end, width]. */
typedef struct gr_grouped_slab : gr_grouped_slab_fragments {
    const gr_bf16 *unit;
    int64_t ld;
    int k_end;

    __device__ __forceinline__ gr_grouped_slab(const gr_bf16 *matrix, int64_t k_end_, int64_t first, int64_t width)
        : unit(matrix + (int)threadIdx.x / 16 * width + column_of(first, width)), ld(width), k_end((int)k_end_) {
    }

    template <bool WHOLE> __device__ __forceinline__ void load(gr_bf16 *to, int k) {
#pragma unroll
        for (int i = 0; i < GR_GROUPED_EACH; i++)
            copy<WHOLE>(to, i, unit + i * (8 * ld), k, k_end);
        unit += GR_GROUPED_DEPTH * ld;
    }
} gr_grouped_slab;

/* Of k the row index[k] of a matrix [*, width], or its row k without an index. Indices are read one step ahead. */
typedef struct gr_grouped_gathered_slab : gr_grouped_slab_fragments {
    const gr_bf16 *column;
    const uint32_t *index;
    uint32_t ld;
    int k_end;
    uint32_t row[GR_GROUPED_EACH];

    __device__ __forceinline__ gr_grouped_gathered_slab(
        const gr_bf16 *matrix, const uint32_t *index_, int64_t k_end_, int64_t first, int64_t width)
        : column(matrix + column_of(first, width)), index(index_), ld((uint32_t)width), k_end((int)k_end_) {
        look_up(0);
    }

    __device__ __forceinline__ void look_up(int k) {
#pragma unroll
        for (int i = 0; i < GR_GROUPED_EACH; i++) {
            const int at = k + (int)threadIdx.x / 16 + 8 * i;
            row[i] = at >= k_end ? 0 : index ? index[at] : (uint32_t)at;
        }
    }

    template <bool WHOLE> __device__ __forceinline__ void load(gr_bf16 *to, int k) {
#pragma unroll
        for (int i = 0; i < GR_GROUPED_EACH; i++)
            copy<WHOLE>(to, i, column + (uint64_t)row[i] * ld, k, k_end);
        look_up(k + GR_GROUPED_DEPTH);
    }
} gr_grouped_gathered_slab;

/* ---------------------------------------------------------------- the product */

/* sum += the quarter's product of one step. */
template <typename A, typename B>
static __device__ __forceinline__ void gr_grouped_step(
    const gr_bf16 *stage, const int (&left)[4], const int (&right)[4], gr_quarter &sum) {
#pragma unroll
    for (int kk = 0; kk < GR_GROUPED_DEPTH / 16; kk++) {
        uint32_t a[4][4], b[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            A::fragment(stage, left, i, kk, a[i]);
            B::fragment(stage + GR_GROUPED_OPERAND, right, i, kk, b[i]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                gr_mma(sum[i][2 * j], a[i], b[j][0], b[j][1]);
                gr_mma(sum[i][2 * j + 1], a[i], b[j][2], b[j][3]);
            }
    }
}

template <typename A, typename B>
static __device__ __forceinline__ void gr_grouped_load(A &a, B &b, int k, int k_end, gr_bf16 *stage) {
    if (k + GR_GROUPED_DEPTH <= k_end) {
        a.template load<true>(stage, k);
        b.template load<true>(stage + GR_GROUPED_OPERAND, k);
    } else if (k < k_end) {
        a.template load<false>(stage, k);
        b.template load<false>(stage + GR_GROUPED_OPERAND, k);
    }
    gr_copy_commit(); /* of nothing, too: waits count commits */
}

/* The whole sum over k < k_end; a warp whose quarter is not needed only copies. Afterwards the room is free. */
template <typename A, typename B>
static __device__ __forceinline__ void gr_grouped_product(
    A &a, B &b, int k_end, bool needed, gr_bf16 *room, const gr_grouped_seat &seat, gr_quarter &sum) {
    constexpr int STAGES = GR_GROUPED_STAGES, AHEAD = STAGES - 1, DEPTH = GR_GROUPED_DEPTH;
    int left[4], right[4];
    A::left_at(seat.m, seat.lane, left);
    B::right_at(seat.n, seat.lane, right);
#pragma unroll
    for (int s = 0; s < AHEAD; s++)
        gr_grouped_load(a, b, s * DEPTH, k_end, room + s * GR_GROUPED_STAGE);
    for (int k = 0; k < k_end; k += STAGES * DEPTH)
#pragma unroll
        for (int s = 0; s < STAGES; s++) {
            if (k + s * DEPTH >= k_end)
                break;
            gr_copy_wait<AHEAD - 1>();
            __syncthreads(); /* this step is there for all, and all are done with the one before it */
            gr_grouped_load(a, b, k + (s + AHEAD) * DEPTH, k_end, room + (s + AHEAD) % STAGES * GR_GROUPED_STAGE);
            if (needed)
                gr_grouped_step<A, B>(room + s * GR_GROUPED_STAGE, left, right, sum);
        }
    gr_copy_wait<0>();
    __syncthreads();
}

/* ---------------------------------------------------------------- results */

/* A patch of shared memory to memory, 16 bytes a lane; at(row, unit): where a unit goes, NULL: nowhere. */
template <typename F> static __device__ __forceinline__ void gr_grouped_patch_store(const gr_bf16 *patch, F at) {
    const int lane = (int)threadIdx.x % GR_WARP;
#pragma unroll
    for (int i = 0; i < GR_GROUPED_QUARTER / 4; i++) {
        const int row = 4 * i + lane / 8, unit = lane % 8;
        gr_bf16 *to = at(row, unit);
        if (to)
            *(gr_pack<uint32_t, 4> *)to = *(const gr_pack<uint32_t, 4> *)(patch + gr_grouped_patch_at(row, unit));
    }
}

template <typename F> static __device__ __forceinline__ void gr_grouped_half_patch_store(const gr_bf16 *patch, F at) {
    const int lane = (int)threadIdx.x % GR_WARP;
#pragma unroll
    for (int i = 0; i < GR_GROUPED_QUARTER / 8; i++) {
        const int row = 8 * i + lane / 4, unit = lane % 4;
        gr_bf16 *to = at(row, unit);
        if (to)
            *(gr_pack<uint32_t, 4> *)to = *(const gr_pack<uint32_t, 4> *)(patch + gr_grouped_half_patch_at(row, unit));
    }
}

/* The quarter, rounded, to c [*, width]: its rows from `first` on of which there are n_row, its columns from `column`
 * on where these are below width. */
static __device__ __forceinline__ void gr_grouped_store(const gr_quarter &sum, const gr_grouped_seat &seat,
    gr_bf16 *patch, gr_bf16 *c, int64_t first, int n_row, int64_t column, int64_t width) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int j = 0; j < 8; j++)
                *(uint32_t *)(patch + gr_grouped_patch_at(16 * i + 8 * half + seat.g, j) + 2 * seat.t) =
                    gr_pair(sum[i][j][2 * half], sum[i][j][2 * half + 1]);
    __syncwarp();
    gr_grouped_patch_store(patch, [&](int row, int unit) {
        const int64_t at = column + unit * GR_GROUPED_UNIT;
        return row < n_row && at < width ? c + (first + row) * width + at : NULL;
    });
}

/* The quarter added to c [height, width] at row m and column n. */
static __device__ __forceinline__ void gr_grouped_add(
    const gr_quarter &sum, const gr_grouped_seat &seat, float *c, int64_t m, int64_t height, int64_t n, int64_t width) {
    typedef gr_pack<float, 2> two;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int64_t row = m + 8 * i + seat.g;
        float *to = c + row * width + n + 2 * seat.t;
        two old[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (row < height && n + 8 * j < width)
                old[j] = *(const two *)(to + 8 * j);
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (row < height && n + 8 * j < width)
                *(two *)(to + 8 * j) = {
                    old[j].x[0] + sum[i / 2][j][i % 2 * 2], old[j].x[1] + sum[i / 2][j][i % 2 * 2 + 1]};
    }
}

#endif
