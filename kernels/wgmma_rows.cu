/* wgmma_rows.cu: the products of grouped experts whose rows are pairs, on sm_90a.
 *
 *   up          h = x_r W13_e^T = [h1 | h3],  a = g silu(h1) h3
 *   down        y = a W2_e^T
 *   down_input  da = dy_r W2_e,  [dh1 | dh3] = [g da h3 silu'(h1) | g da silu(h1)] over h,  a once more
 *               dgate = da . silu(h1) h3, each tile's share of it for itself, then added in order
 *   input       dx = dh W13_e
 *
 * Shapes: gr_ffn, bf16; sums in fp32. a is made of the rounded h, as backward makes it again. da stays in registers.
 * Tiles: 128 pairs of one expert x 128 to 256 columns, whichever leaves the least over; of up, half as many of h1 and
 * the same ones of h3, so that both halves of a pair meet in a thread.
 * Ends: each warp turns its 16 rows in shared memory; down and input move whole lines of 64 columns from there, up and
 * down_input leave whole rows of h in the tile to bulk copies.
 * Bytes of a pair, flops: up 2D + 6F, 4DF; down 2F + 2D, 2DF; down_input 2D + 10F, 2DF; input 4F + 2D, 4DF; weights
 * once for each expert.
 * Limits: D, F multiples of 8; arrays at 16 bytes; n_pair < 2^31. No tiles: nothing is launched.
 * Twins: grouped.cu; CPU: cpu_ffn.c.
 * Measured (H100, 2026-11-26, N 32768, TFLOP/s for tiny-, mini-qwen3, mini-ds-v2-lite, mini-gpt-oss, qwen3-30b-a3b): up
 * 315, 533, 414, 443, 605; down 272, 546, 609, 519, 648; down_input, whose end reads and writes h, 131, 260, 172, 217,
 * 368; input 555, 642, 638, 533, 694. */
#include "kernels/swiglu.cuh"
#include "kernels/wgmma_core.cuh"

namespace {

/* The warp's 16 rows: what is left of the tile for them. */
__device__ __forceinline__ int rows_left(const job &j, int warp) {
    return j.n_row - 16 * warp;
}

/* Where lane's rows of a panel are for whole lines: row lane / 8 + 4i, unit lane % 8. */
__device__ __forceinline__ uint32_t line_unit(uint32_t room, int i) {
    const uint32_t lane = threadIdx.x % 32;
    return room + gr_swizzle(lane / 8 + 4 * (uint32_t)i, lane % 8);
}

/* Where the lane points for groups `group` and `group` + 1 of 8 columns as matrices: rows 0-7, rows 8-15 of each. */
__device__ __forceinline__ uint32_t matrix_row(uint32_t room, uint32_t group) {
    const uint32_t lane = threadIdx.x % 32;
    return room + gr_swizzle(lane % 16, group + lane / 16);
}

/* v[2j], v[2j+1]: rows 0-7 and 8-15 of group j. Writes rows < n_row, columns < n_column (a multiple of 8). */
__device__ __forceinline__ void write_panel(
    uint32_t room, const uint32_t (&v)[16], gr_bf16 *to, int64_t ld, int n_row, int64_t n_column) {
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 8; j += 2)
        gr_store_four(matrix_row(room, (uint32_t)j), v[2 * j], v[2 * j + 1], v[2 * j + 2], v[2 * j + 3]);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 x = gr_load_unit(line_unit(room, i));
        const int row = lane / 8 + 4 * i, column = lane % 8 * 8;
        if (row < n_row && column < n_column)
            *(uint4 *)(to + row * ld + column) = x;
    }
    __syncwarp();
}

/* Of four groups of 8 columns, of which each lane of a quad holds a pair of numbers, lane t gets the t-th as a whole.
 */
__device__ __forceinline__ void turn_quad(uint32_t (&v)[4]) {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? v[i] : v[i + 1], 1);
        v[i] = odd ? got : v[i];
        v[i + 1] = odd ? v[i + 1] : got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i + 2], 2);
        v[i] = upper ? got : v[i];
        v[i + 2] = upper ? v[i + 2] : got;
    }
}

/* Gates of the lane's two rows. */
__device__ __forceinline__ void gates_of(const call &c, const job &j, int warp, float (&g)[2]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = 16 * warp + (int)threadIdx.x % 32 / 4 + 8 * i;
        g[i] = c.gate && row < j.n_row ? c.gate[j.first + (uint32_t)row] : 1.0f;
    }
}

/* The panel from group `first` of d on, rounded. */
template <int N> __device__ __forceinline__ void round_panel(const float (&d)[N], int first, uint32_t (&v)[16]) {
#pragma unroll
    for (int j = 0; j < 16; j++)
        v[j] = gr_pair(d[4 * first + 2 * j], d[4 * first + 2 * j + 1]);
}

/* Columns of a panel that are both in the tile and in the matrix. */
__device__ __forceinline__ int64_t columns_left(int64_t width, int in_tile, int64_t first) {
    return gr_at_most((int64_t)in_tile, width - first);
}

/* One half of h after the other lies in the warp's room, from where bulk copies move it by whole rows of the tile while
 * the next products are made: there is room for the fourth stage of the ring beside it. a leaves by quads of lanes. */
template <int N> struct up {
    static constexpr int COLUMNS = N, HALF = N / 2, PITCH = N + 16 /* rows lie in different banks */,
                         ROOM = 15 * PITCH + N;
    static constexpr bool GATHERED = true, HALVES = true, WEIGHTS = false, FETCHES = false;
    static constexpr int TURNED_A = 0, TURNED_B = 0;
    /* Half `half` of d, rounded, to h. */
    static __device__ __forceinline__ void write_half(
        const call &c, const job &j, int warp, uint32_t room, const float (&d)[N / 2], int half) {
        const int lane = (int)threadIdx.x % 32;
        const uint32_t at = room + (uint32_t)(lane % 16 * PITCH + lane / 16 * 16);
        gr_rows_wait();
        __syncwarp();
#pragma unroll
        for (int i = 0; i < N / 16; i += 2) {
            const int from = 4 * i + half * N / 4;
            gr_store_four(at + 16 * i, gr_pair(d[from], d[from + 1]), gr_pair(d[from + 2], d[from + 3]),
                gr_pair(d[from + 4], d[from + 5]), gr_pair(d[from + 6], d[from + 7]));
        }
        gr_proxy_fence();
        __syncwarp();
        if (lane < 16 && lane < rows_left(j, warp))
            gr_write_row(c.h + (((int64_t)j.first + 16 * warp + lane) * 2 + half) * c.F + j.n,
                room + (uint32_t)(lane * PITCH), (uint32_t)columns_left(c.F, HALF, j.n) * 2);
        gr_rows_commit();
    }
    /* a of two neighbouring columns of group `group`, of both rows of the lane, out of the rounded h. */
    static __device__ __forceinline__ void activate(
        const float (&d)[N / 2], int group, const float (&g)[2], uint32_t (&a)[2]) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int from = 4 * group + 2 * i;
            const uint32_t h1 = gr_pair(d[from], d[from + 1]);
            const uint32_t h3 = gr_pair(d[from + N / 4], d[from + N / 4 + 1]);
            a[i] = gr_pair(gr_swiglu(g[i], gr_low(h1), gr_low(h3)), gr_swiglu(g[i], gr_high(h1), gr_high(h3)));
        }
    }
    static __device__ __forceinline__ void write_act(const call &c, const job &j, int warp, const float (&d)[N / 2]) {
        const int lane = (int)threadIdx.x % 32, n_row = rows_left(j, warp);
        const int64_t left = columns_left(c.F, HALF, j.n);
        gr_bf16 *act = c.act + ((int64_t)j.first + 16 * warp + lane / 4) * c.F + j.n + lane % 4 * 8;
        float g[2];
        gates_of(c, j, warp, g);
#pragma unroll
        for (int column = 0; column < HALF; column += 32) {
            uint32_t v[4][2]; /* [group][row] */
#pragma unroll
            for (int i = 0; i < 4; i++)
                activate(d, column / 8 + i, g, v[i]);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t q[4] = {v[0][i], v[1][i], v[2][i], v[3][i]};
                turn_quad(q);
                if (lane / 4 + 8 * i < n_row && column + lane % 4 * 8 < left)
                    *(uint4 *)(act + 8 * i * c.F + column) = make_uint4(q[0], q[1], q[2], q[3]);
            }
        }
    }
    static __device__ __forceinline__ void end(
        const call &c, const job &j, int warp, uint32_t room, const float (&d)[N / 2]) {
        write_half(c, j, warp, room, d, 0);
        if (c.act)
            write_act(c, j, warp, d);
        write_half(c, j, warp, room, d, 1);
    }
};

/* down and input: out [n_pair, width]. */
template <int N, int TURNED> struct onward {
    static constexpr int COLUMNS = N, ROOM = 16 * 128;
    static constexpr bool GATHERED = false, HALVES = false, WEIGHTS = false, FETCHES = false;
    static constexpr int TURNED_A = 0, TURNED_B = TURNED;
    static __device__ __forceinline__ void end(
        const call &c, const job &j, int warp, uint32_t room, const float (&d)[N / 2]) {
        const int64_t row = (int64_t)j.first + 16 * warp;
#pragma unroll
        for (int first = 0; first < N / 8; first += 8) {
            const int64_t column = j.n + 8 * first;
            uint32_t v[16];
            round_panel(d, first, v);
            write_panel(
                room, v, c.out + row * c.D + column, c.D, rows_left(j, warp), columns_left(c.D, N - 8 * first, column));
        }
    }
};

/* What the tile's columns add to dgate of the lane's two rows, together with the three lanes beside it. */
__device__ __forceinline__ void write_shares(const call &c, const job &j, int warp, const float (&dgate)[2]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = 16 * warp + (int)threadIdx.x % 32 / 4 + 8 * i;
        float sum = dgate[i];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (threadIdx.x % 4 == 0 && row < j.n_row)
            c.share[(int64_t)j.column * c.n_pair + j.first + row] = sum;
    }
}

/* Each warp's rows of [h1 | h3] wait in its room for da and become [dh1 | dh3] there; row l is moved by lane l. */
template <int N> struct down_input {
    static constexpr int COLUMNS = N, PITCH = 4 * N + 16 /* rows lie in different banks */, ROOM = 16 * PITCH;
    static constexpr bool GATHERED = true, HALVES = false, WEIGHTS = false, FETCHES = true;
    static constexpr int TURNED_A = 0, TURNED_B = 1;
    static __device__ __forceinline__ int64_t left_of(const call &c, const job &j) {
        return columns_left(c.F, N, j.n);
    }
    /* Where the lane's row is. */
    static __device__ __forceinline__ gr_bf16 *row_of(const call &c, const job &j, int warp) {
        return c.h + ((int64_t)j.first + 16 * warp + threadIdx.x % 32) * 2 * c.F + j.n;
    }
    static __device__ __forceinline__ void fetch(
        const call &c, const job &j, int warp, uint32_t room, uint32_t barrier) {
        const int lane = (int)threadIdx.x % 32, n_row = (int)gr_at_most(16, rows_left(j, warp));
        const uint32_t n_byte = (uint32_t)left_of(c, j) * 2;
        gr_rows_wait(); /* what the end before left here */
        if (lane == 0)
            gr_barrier_arrive_for(barrier, n_row > 0 ? (uint32_t)n_row * 2 * n_byte : 0);
        __syncwarp();
        if (lane >= n_row)
            return;
        const gr_bf16 *h = row_of(c, j, warp);
        gr_copy_row(room + (uint32_t)(lane * PITCH), h, n_byte, barrier);
        gr_copy_row(room + (uint32_t)(lane * PITCH) + 2 * N, h + c.F, n_byte, barrier);
    }
    /* Groups `group` and the next of 8 columns: a of row lane / 4 and of that + 8, and what they add to dgate. */
    static __device__ __forceinline__ void turn_pair(
        uint32_t at, const float *d, const float (&g)[2], int64_t left, float (&dgate)[2], uint32_t (&a)[2][2]) {
        uint32_t v1[4], v3[4];
        gr_load_four(at, v1);
        gr_load_four(at + 2 * N, v3);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float gate = g[i % 2];
            const gr_swiglu_gradient low = gr_swiglu_backward(gate, gr_low(v1[i]), gr_low(v3[i]), d[2 * i]);
            const gr_swiglu_gradient high = gr_swiglu_backward(gate, gr_high(v1[i]), gr_high(v3[i]), d[2 * i + 1]);
            dgate[i % 2] += i / 2 * 8 < left ? low.dgate + high.dgate : 0.0f; /* beyond is what was there before */
            a[i % 2][i / 2] = gr_pair(low.a, high.a);
            v1[i] = gr_pair(low.du, high.du);
            v3[i] = gr_pair(low.dv, high.dv);
        }
        gr_store_four(at, v1[0], v1[1], v1[2], v1[3]);
        gr_store_four(at + 2 * N, v3[0], v3[1], v3[2], v3[3]);
    }
    static __device__ __forceinline__ void end(
        const call &c, const job &j, int warp, uint32_t room, const float (&d)[N / 2]) {
        const int lane = (int)threadIdx.x % 32, n_row = rows_left(j, warp);
        const int64_t left = left_of(c, j);
        const uint32_t at = room + (uint32_t)(lane % 16 * PITCH + lane / 16 * 16);
        gr_bf16 *act = c.act + ((int64_t)j.first + 16 * warp + lane / 4) * c.F + j.n + lane % 4 * 8;
        float g[2], dgate[2] = {};
        gates_of(c, j, warp, g);
#pragma unroll
        for (int column = 0; column < N; column += 32) {
            if (column >= left)
                break;
            uint32_t near[2][2], far[2][2]; /* [row][group] */
            turn_pair(at + 2 * column, d + column / 2, g, left - column, dgate, near);
            turn_pair(at + 2 * column + 32, d + column / 2 + 8, g, left - column - 16, dgate, far);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t v[4] = {near[i][0], near[i][1], far[i][0], far[i][1]};
                turn_quad(v);
                if (lane / 4 + 8 * i < n_row && column + lane % 4 * 8 < left)
                    *(uint4 *)(act + 8 * i * c.F + column) = make_uint4(v[0], v[1], v[2], v[3]);
            }
        }
        gr_proxy_fence();
        __syncwarp();
        if (lane < n_row && lane < 16) {
            gr_bf16 *h = row_of(c, j, warp);
            gr_write_row(h, room + (uint32_t)(lane * PITCH), (uint32_t)left * 2);
            gr_write_row(h + c.F, room + (uint32_t)(lane * PITCH) + 2 * N, (uint32_t)left * 2);
        }
        gr_rows_commit();
        if (c.share)
            write_shares(c, j, warp, dgate);
    }
};

/* ---------------------------------------------------------------- launching */

call call_of(const gr_ffn *a) {
    call c = {};
    c.pair_row = a->pair_row;
    c.gate = a->pair_gate;
    c.tiles = a->tiles;
    c.h = (gr_bf16 *)a->h;
    c.act = (gr_bf16 *)a->a;
    c.D = a->D;
    c.F = a->F;
    return c;
}

/* n columns of the whole product, n_tile tiles of COLUMNS for them. */
template <class Op> int launch_rows(void *stream, const gr_ffn *a, call *c, int64_t n) {
    c->n_column = tiles_of(n, Op::HALVES ? Op::COLUMNS / 2 : Op::COLUMNS);
    const int64_t n_job = a->n_tile * c->n_column;
    if (!gr_kernel_wgmma_fits(GR_BF16, a) || n_job > INT32_MAX)
        return cudaErrorInvalidValue;
    c->n_job = (uint32_t)n_job;
    return launch<Op>(stream, *c);
}

bool is_done(const gr_ffn *a) {
    return a->n_tile == 0;
}

} // namespace

int gr_kernel_wgmma_up(void *stream, const gr_ffn *a) {
    if (is_done(a))
        return 0;
    const int columns = gr_wgmma_columns(2 * a->F, 2);
    call c = call_of(a);
    c.in = (const gr_bf16 *)a->x;
    c.act = a->y ? c.act : NULL;
    c.depth = (int32_t)a->D;
    const int status = map_of(&c.b, a->w13, a->D, 2 * a->F, a->n_expert, columns / 2);
    if (status)
        return status;
    switch (columns) {
    case 128:
        return launch_rows<up<128>>(stream, a, &c, a->F);
    case 192:
        return launch_rows<up<192>>(stream, a, &c, a->F);
    default:
        return launch_rows<up<256>>(stream, a, &c, a->F);
    }
}

int gr_kernel_wgmma_down(void *stream, const gr_ffn *a) {
    if (is_done(a))
        return 0;
    const int columns = gr_wgmma_columns(a->D, 1);
    call c = call_of(a);
    c.out = (gr_bf16 *)a->y;
    c.depth = (int32_t)a->F;
    int status = map_of(&c.a, a->a, a->F, a->n_pair, 1, ROWS);
    if (!status)
        status = map_of(&c.b, a->w2, a->F, a->D, a->n_expert, columns);
    if (status)
        return status;
    switch (columns) {
    case 128:
        return launch_rows<onward<128, 0>>(stream, a, &c, a->D);
    case 192:
        return launch_rows<onward<192, 0>>(stream, a, &c, a->D);
    default:
        return launch_rows<onward<256, 0>>(stream, a, &c, a->D);
    }
}

int gr_kernel_wgmma_down_input(void *stream, const gr_ffn *a) {
    if (is_done(a))
        return 0;
    const int columns = gr_wgmma_columns(a->F, 1) == 128 ? 128 : 192; /* more leave too few registers for the end */
    call c = call_of(a);
    c.in = (const gr_bf16 *)a->dy;
    c.share = a->dgate ? (float *)a->da : NULL;
    c.n_pair = a->n_pair;
    c.depth = (int32_t)a->D;
    int status = map_of(&c.b, a->w2, a->F, a->D, a->n_expert, DEPTH);
    if (status)
        return status;
    switch (columns) {
    case 128:
        status = launch_rows<down_input<128>>(stream, a, &c, a->F);
        break;
    default:
        status = launch_rows<down_input<192>>(stream, a, &c, a->F);
        break;
    }
    return status ? status : gr_kernel_grouped_gates(stream, a, tiles_of(a->F, columns));
}

int gr_kernel_wgmma_input(void *stream, const gr_ffn *a) {
    if (is_done(a))
        return 0;
    const int columns = gr_wgmma_columns(a->D, 1);
    call c = call_of(a);
    c.out = (gr_bf16 *)a->dx;
    c.depth = (int32_t)(2 * a->F);
    int status = map_of(&c.a, a->h, 2 * a->F, a->n_pair, 1, ROWS);
    if (!status)
        status = map_of(&c.b, a->w13, a->D, 2 * a->F, a->n_expert, DEPTH);
    if (status)
        return status;
    switch (columns) {
    case 128:
        return launch_rows<onward<128, 1>>(stream, a, &c, a->D);
    case 192:
        return launch_rows<onward<192, 1>>(stream, a, &c, a->D);
    default:
        return launch_rows<onward<256, 1>>(stream, a, &c, a->D);
    }
}
