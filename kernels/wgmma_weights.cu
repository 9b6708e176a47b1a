/* wgmma_weights.cu: gradients of grouped experts' weights on sm_90a.
 *
 *   down_weights  dW2_e [D, F] += dy_r^T a        up_weights  dW13_e [2F, D] += dh^T x_r
 *
 * Shapes: gr_ffn; bf16 in, fp32 out; sums over exactly the expert's pairs. In both the gathered rows give the 128 rows
 * of a tile; the second is computed as its transpose and stored turned.
 * Tiles: 128 x 128, 192 or 256; those of one expert are neighbours, experts in the order of their pairs, most first.
 * Each element is read, added to and written by one thread, in whole lines. Experts without pairs: nothing is read or
 * written. Bytes: for each expert the rows from the second-level cache once per tile, gradients twice. Flops: 2DF and
 * 4DF a pair. Limits: D, F multiples of 8; arrays at 16 bytes; n_pair < 2^31. The last rows of the last 64 of k are
 * those of the next expert, met by zeros: they must be finite. Twins: grouped.cu; CPU: cpu_ffn.c. */
#include "kernels/wgmma_core.cuh"

namespace {

constexpr int SIDE = 64; /* of the patch of a tile that a warpgroup turns at once */
constexpr int LINES = 8; /* that a thread moves for it */

/* Byte of number `column` of row `row` of a patch: numbers in groups of 8, at places group ^ key, so that four rows
 * with different keys lie in different banks. */
__device__ __forceinline__ uint32_t in_patch(int row, int column, int key) {
    return (uint32_t)(row * SIDE * 4 + (column ^ key % 4 * 8) * 4);
}

/* What a warpgroup's patch is added to: rows at `to`, ld apart. */
typedef struct patch_rows {
    float *to;
    int64_t ld;
    int n_row, n_column;
} patch_rows;

/* A thread's share of a patch: row lane / 16 + 2 (warp + 4 i), 4 numbers from 4 (lane % 16) on. */
__device__ __forceinline__ int line_row(int i) {
    return (int)threadIdx.x % 32 / 16 + 2 * ((int)threadIdx.x / 32 % 4 + 4 * i);
}

__device__ __forceinline__ void load_lines(const patch_rows &p, float4 (&x)[LINES]) {
    const int column = (int)threadIdx.x % 16 * 4;
#pragma unroll
    for (int i = 0; i < LINES; i++)
        if (line_row(i) < p.n_row && column < p.n_column)
            x[i] = *(const float4 *)(p.to + line_row(i) * p.ld + column);
}

/* KEY: of a row's key the bits from KEY on. */
template <int KEY>
__device__ __forceinline__ void add_lines(const patch_rows &p, uint32_t room, const float4 (&x)[LINES]) {
    const int column = (int)threadIdx.x % 16 * 4;
#pragma unroll
    for (int i = 0; i < LINES; i++) {
        const int row = line_row(i);
        const uint4 d = gr_load_unit(room + in_patch(row, column, row >> KEY));
        if (row < p.n_row && column < p.n_column)
            *(float4 *)(p.to + row * p.ld + column) = make_float4(x[i].x + __uint_as_float(d.x),
                x[i].y + __uint_as_float(d.y), x[i].z + __uint_as_float(d.z), x[i].w + __uint_as_float(d.w));
    }
}

template <int N> struct weights {
    static constexpr int COLUMNS = N, ROOM = SIDE * SIDE * 4 / 4; /* of a warpgroup: that of its four warps */
    static constexpr bool GATHERED = true, HALVES = false, WEIGHTS = true, FETCHES = false;
    static constexpr int TURNED_A = 1, TURNED_B = 1;
};

/* The warpgroup's 64 rows of d from column `first` on. */
template <int N> struct down_weights : weights<N> {
    static constexpr int KEY = 0; /* the four rows that are written at once follow each other */
    static __device__ __forceinline__ patch_rows rows_of(const call &c, const job &j, int group, int first) {
        const int64_t row = j.m + SIDE * group, column = j.n + first;
        return {c.dw + (j.expert * c.D + row) * c.F + column, c.F, (int)gr_at_most(SIDE, c.D - row),
            (int)gr_at_most(SIDE, c.F - column)};
    }
    static __device__ __forceinline__ void store(uint32_t room, int row, int column, float low, float high) {
        gr_store_pair(room + in_patch(row, column, row), low, high);
    }
    static __device__ __forceinline__ void cache(const call &c, const job &j) {
        const int64_t row = j.m + (int)threadIdx.x, column = j.n;
        if (row < c.D)
            gr_cache_row(c.dw + (j.expert * c.D + row) * c.F + column, (uint32_t)gr_at_most(N, c.F - column) * 4);
    }
};

template <int N> struct up_weights : weights<N> {
    static constexpr int KEY = 1; /* they are two apart */
    static __device__ __forceinline__ patch_rows rows_of(const call &c, const job &j, int group, int first) {
        const int64_t of_x = j.m + SIDE * group, of_h = j.n + first;
        return {c.dw + (j.expert * 2 * c.F + of_h) * c.D + of_x, c.D, (int)gr_at_most(SIDE, 2 * c.F - of_h),
            (int)gr_at_most(SIDE, c.D - of_x)};
    }
    static __device__ __forceinline__ void store(uint32_t room, int row, int column, float low, float high) {
        gr_store_number(room + in_patch(column, row, column / 2), low);
        gr_store_number(room + in_patch(column + 1, row, column / 2), high);
    }
    static __device__ __forceinline__ void cache(const call &c, const job &j) {
        for (int i = (int)threadIdx.x; i < N && j.n + i < 2 * c.F; i += GR_WARPGROUP)
            gr_cache_row(c.dw + (j.expert * 2 * c.F + j.n + i) * c.D + j.m, (uint32_t)gr_at_most(ROWS, c.D - j.m) * 4);
    }
};

/* Panel after panel of 64 columns of d: through shared memory, so that whole lines are read, added to and written. */
template <class Op> struct added : Op {
    static __device__ __forceinline__ void end(
        const call &c, const job &j, int warp, uint32_t room, const float (&d)[Op::COLUMNS / 2]) {
        const int group = warp / 4, lane = (int)threadIdx.x % 32;
        const int row = warp % 4 * 16 + lane / 4, column = 2 * (lane % 4);
        room -= (uint32_t)(warp % 4) * Op::ROOM;
#pragma unroll
        for (int first = 0; first < Op::COLUMNS; first += SIDE) {
            const patch_rows p = Op::rows_of(c, j, group, first);
            float4 x[LINES];
            load_lines(p, x);
            gr_warpgroup_sync(group);
#pragma unroll
            for (int i = 0; i < SIDE / 8; i++) {
                const int from = first / 2 + 4 * i;
                Op::store(room, row, column + 8 * i, d[from], d[from + 1]);
                Op::store(room, row + 8, column + 8 * i, d[from + 2], d[from + 3]);
            }
            gr_warpgroup_sync(group);
            add_lines<Op::KEY>(p, room, x);
        }
    }
};

/* ---------------------------------------------------------------- launching */

/* The gradient as rows of `in` times columns of b. */
template <class Op> int launch_weights(void *stream, const gr_ffn *a, call *c, int64_t n) {
    c->n_m = tiles_of(a->D, ROWS);
    c->n_column = tiles_of(n, Op::COLUMNS);
    c->n_job = (uint32_t)((int64_t)a->n_expert * c->n_m * c->n_column);
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
        return launch_weights<added<down_weights<128>>>(stream, a, &c, a->F);
    case 192:
        return launch_weights<added<down_weights<192>>>(stream, a, &c, a->F);
    default:
        return launch_weights<added<down_weights<256>>>(stream, a, &c, a->F);
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
        return launch_weights<added<up_weights<128>>>(stream, a, &c, 2 * a->F);
    case 192:
        return launch_weights<added<up_weights<192>>>(stream, a, &c, 2 * a->F);
    default:
        return launch_weights<added<up_weights<256>>>(stream, a, &c, 2 * a->F);
    }
}
