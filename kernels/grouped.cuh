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

/* ---------------------------------------------------------------- operands */

enum { GR_GROUPED_EACH = 4 }; /* units a thread copies per step and operand */

/* Rows along k. A thread copies one unit of every 32nd row. */
typedef struct gr_grouped_rows {
    const gr_bf16 *row[GR_GROUPED_EACH];
    int k_end;
    uint32_t there; /* a bit per row */

    /* row_at(r): row r of the block, NULL where there is none; somewhere: any address. */
    template <typename F>
    __device__ __forceinline__ gr_grouped_rows(int k_end_, const gr_bf16 *somewhere, F row_at)
        : k_end(k_end_), there(0) {
#pragma unroll
        for (int i = 0; i < GR_GROUPED_EACH; i++) {
            const gr_bf16 *p = row_at((int)threadIdx.x / 4 + 32 * i);
            row[i] = (p ? p : somewhere) + (int)threadIdx.x % 4 * GR_GROUPED_UNIT;
            there |= (uint32_t)(p != NULL) << i;
        }
    }

    __device__ __forceinline__ void load(gr_bf16 *to, int k) {
        const int unit = (int)threadIdx.x % 4;
        const bool inside = k + unit * GR_GROUPED_UNIT < k_end;
#pragma unroll
        for (int i = 0; i < GR_GROUPED_EACH; i++)
            gr_copy_async(
                to + gr_grouped_row_at((int)threadIdx.x / 4 + 32 * i, unit), row[i] + k, inside && (there >> i & 1));
    }

    /* 16 rows from `first` on at 16 k: as a left operand, and as two right ones. */
    static __device__ __forceinline__ void left(const gr_bf16 *from, int first, int kk, int lane, uint32_t (&a)[4]) {
        gr_load_matrices(from + gr_grouped_row_at(first + lane % 16, 2 * kk + lane / 16), a);
    }

    static __device__ __forceinline__ void right(const gr_bf16 *from, int first, int kk, int lane, uint32_t (&b)[4]) {
        gr_load_matrices(from + gr_grouped_row_at(first + lane / 16 * 8 + lane % 8, 2 * kk + lane / 8 % 2), b);
    }
} gr_grouped_rows;

/* Rows of one k each. A thread copies one unit of every 8th k. Steps must be loaded in order: the numbers of gathered
 * rows are read one step ahead. */
typedef struct gr_grouped_slab {
    const gr_bf16 *column; /* of row 0 */
    int64_t ld;
    const uint32_t *index; /* row of k, or NULL: k */
    int k_end;
    bool there;
    uint32_t next[GR_GROUPED_EACH];

    __device__ __forceinline__ gr_grouped_slab(
        const gr_bf16 *row0, int64_t ld_, const uint32_t *index_, int k_end_, int64_t first, int64_t width)
        : ld(ld_), index(index_), k_end(k_end_) {
        const int64_t at = first + (int)threadIdx.x % 16 * GR_GROUPED_UNIT;
        there = at < width;
        column = row0 + (there ? at : 0);
        look_up(0);
    }

    __device__ __forceinline__ void look_up(int k) {
#pragma unroll
        for (int i = 0; i < GR_GROUPED_EACH; i++) {
            const int at = k + (int)threadIdx.x / 16 + 8 * i;
            next[i] = at >= k_end ? 0 : index ? index[at] : (uint32_t)at;
        }
    }

    __device__ __forceinline__ void load(gr_bf16 *to, int k) {
#pragma unroll
        for (int i = 0; i < GR_GROUPED_EACH; i++) {
            const int at = (int)threadIdx.x / 16 + 8 * i;
            gr_copy_async(to + gr_grouped_slab_at(at, (int)threadIdx.x % 16), column + (int64_t)next[i] * ld,
                there && k + at < k_end);
        }
        look_up(k + GR_GROUPED_DEPTH);
    }

    static __device__ __forceinline__ void left(const gr_bf16 *from, int first, int kk, int lane, uint32_t (&a)[4]) {
        gr_load_turned(from + gr_grouped_slab_at(16 * kk + lane / 16 * 8 + lane % 8, first / 8 + lane / 8 % 2), a);
    }

    static __device__ __forceinline__ void right(const gr_bf16 *from, int first, int kk, int lane, uint32_t (&b)[4]) {
        gr_load_turned(from + gr_grouped_slab_at(16 * kk + lane % 16, first / 8 + lane / 16), b);
    }
} gr_grouped_slab;

/* ---------------------------------------------------------------- the product */

/* sum += the quarter's product of one step. */
template <typename A, typename B>
static __device__ __forceinline__ void gr_grouped_step(
    const gr_bf16 *stage, const gr_grouped_seat &seat, gr_quarter &sum) {
#pragma unroll
    for (int kk = 0; kk < GR_GROUPED_DEPTH / 16; kk++) {
        uint32_t a[4][4], b[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            A::left(stage, seat.m + 16 * i, kk, seat.lane, a[i]);
#pragma unroll
        for (int j = 0; j < 4; j++)
            B::right(stage + GR_GROUPED_OPERAND, seat.n + 16 * j, kk, seat.lane, b[j]);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                gr_mma(sum[i][2 * j], a[i], b[j][0], b[j][1]);
                gr_mma(sum[i][2 * j + 1], a[i], b[j][2], b[j][3]);
            }
    }
}

/* The whole sum over k < k_end; a warp whose quarter is not needed only copies. Afterwards the room is free. */
template <typename A, typename B>
static __device__ __forceinline__ void gr_grouped_product(
    A &a, B &b, int k_end, bool needed, gr_bf16 *room, const gr_grouped_seat &seat, gr_quarter &sum) {
    constexpr int AHEAD = GR_GROUPED_STAGES - 1;
    const int n_step = (k_end + GR_GROUPED_DEPTH - 1) / GR_GROUPED_DEPTH;
    for (int s = 0; s < AHEAD; s++) {
        if (s < n_step) {
            a.load(room + s * GR_GROUPED_STAGE, s * GR_GROUPED_DEPTH);
            b.load(room + s * GR_GROUPED_STAGE + GR_GROUPED_OPERAND, s * GR_GROUPED_DEPTH);
        }
        gr_copy_commit();
    }
    for (int s = 0; s < n_step; s++) {
        gr_copy_wait<AHEAD - 1>();
        __syncthreads(); /* step s is there for all, and all are done with the one before it */
        const int later = s + AHEAD;
        if (later < n_step) {
            gr_bf16 *to = room + later % GR_GROUPED_STAGES * GR_GROUPED_STAGE;
            a.load(to, later * GR_GROUPED_DEPTH);
            b.load(to + GR_GROUPED_OPERAND, later * GR_GROUPED_DEPTH);
        }
        gr_copy_commit();
        if (needed)
            gr_grouped_step<A, B>(room + s % GR_GROUPED_STAGES * GR_GROUPED_STAGE, seat, sum);
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
