/* flash.cuh: tiles and products that the kernels of flash_forward.cu and flash_backward.cu share.
 *
 * A block owns rows of one side (queries, or keys) and walks over the other side's rows in stages of two arrays, two
 * stages in shared memory: one arrives by cp.async while the one before it is worked on, tile after tile. A warp owns
 * MT times 16 rows, of which a lane holds g and g + 8 of each 16 (see mma.cuh). Each operand that a warp reads from
 * shared memory serves its MT products: at 16 rows a warp, reading takes longer than the products, at 32 not.
 * HD is head_dim or more: a multiple of 16, the columns beyond are zeros. Rows begin at 16 bytes. Positions in a window
 * fit into an int (T < 2^22). */
#ifndef GROUTER_KERNELS_FLASH_CUH
#define GROUTER_KERNELS_FLASH_CUH

#include "kernels/mma.cuh"
#include "kernels/warp.cuh"

/* TILE: rows that a warp works on at once, STEPS of them in a stage. HELD: the block's own rows are in registers, not
 * in shared memory. BLOCKS: of a multiprocessor, for the compiler. Every loop over a stage must take all its steps. */
template <int HD_, int MT_, int WARPS_, int TILE_, int STEPS_, bool HELD_, int BLOCKS_> struct gr_flash_shape {
    static constexpr int HD = HD_, MT = MT_, TILE = TILE_, STEPS = STEPS_, STAGE = TILE_ * STEPS_, BLOCKS = BLOCKS_;
    static constexpr bool HELD = HELD_;
    static constexpr int THREADS = WARPS_ * GR_WARP, WARP_ROWS = 16 * MT, ROWS = WARPS_ * WARP_ROWS;
    static constexpr int LD = HD + 8; /* rows begin 16 bytes on in the banks, so that no access waits for another */
    static constexpr int COLUMNS = HD / 16, PIECES = TILE / 8;
    /* Elements of shared memory for two arrays of the other side, two stages, and for `own` arrays of the block's own
     * rows, which may lie on the stages where they are held; results are put together there too. */
    static constexpr int ARRAY = STAGE * LD, STAGES = 4 * ARRAY;
    static constexpr int room(int own) {
        return !HELD ? STAGES + own * ROWS * LD : STAGES > own * ROWS * LD ? STAGES : own * ROWS * LD;
    }
    static_assert(HD % 16 == 0 && TILE % 16 == 0, "whole products");
    typedef float scores[MT][TILE / 8][4];
    typedef float sums[MT][HD / 8][4];
};

constexpr float GR_LOG2_E = 1.44269504088896340736f, GR_LOG_2 = 0.69314718055994530942f;

/* ---------------------------------------------------------------- rows */

/* Rows of one head of q, k, v, o or of a gradient. */
typedef struct gr_flash_rows {
    const gr_bf16 *p; /* row 0 of the window */
    int64_t ld;
    int end; /* rows from here on count as zeros */
    int head_dim;
} gr_flash_rows;

static __device__ __forceinline__ gr_flash_rows gr_flash_head(
    const gr_attention &a, const void *array, int64_t ld, int64_t window, int64_t head) {
    return {(const gr_bf16 *)array + window * a.T * ld + head * a.head_dim, ld, (int)a.T, (int)a.head_dim};
}

/* Sends for rows [first, first + ROWS): NEAR threads side by side for 16 bytes each of a row. */
template <typename S, int ROWS>
static __device__ __forceinline__ void gr_flash_fetch(const gr_flash_rows &from, int first, gr_bf16 *to) {
    constexpr int EACH = S::HD / 8, NEAR = EACH & -EACH, AT_ONCE = S::THREADS / NEAR;
    const int row = (int)threadIdx.x / NEAR, column = (int)threadIdx.x % NEAR * 8;
    const gr_bf16 *p = from.p + (first + row) * from.ld + column;
    gr_bf16 *at = to + row * S::LD + column;
    const int n_row = from.end - first - row, n_column = from.head_dim - column;
#pragma unroll
    for (int r = 0; r < ROWS; r += AT_ONCE, p += AT_ONCE * from.ld)
        if (r + AT_ONCE <= ROWS || r + row < ROWS)
#pragma unroll
            for (int c = 0; c < EACH / NEAR; c++)
                gr_copy_async(at + r * S::LD + c * NEAR * 8, p + c * NEAR * 8, r < n_row && c * NEAR * 8 < n_column);
}

/* This warp's sums, times one factor a row, to rows [first, ...) by way of the patch, WARP_ROWS rows of its own. */
template <typename S>
static __device__ __forceinline__ void gr_flash_store(
    const gr_flash_rows &to, int first, const typename S::sums &sum, const float (&factor)[S::MT][2], gr_bf16 *patch) {
    const int lane = (int)threadIdx.x % GR_WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int j = 0; j < S::HD / 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                *(uint32_t *)(patch + (16 * m + 8 * i + g) * S::LD + 8 * j + 2 * t) =
                    gr_pair(sum[m][j][2 * i] * factor[m][i], sum[m][j][2 * i + 1] * factor[m][i]);
    __syncwarp();
    for (int i = lane; i < S::WARP_ROWS * S::HD / 8; i += GR_WARP) {
        const int row = i / (S::HD / 8), column = i % (S::HD / 8) * 8;
        if (first + row < to.end && column < to.head_dim)
            *(gr_pack<uint32_t, 4> *)((gr_bf16 *)to.p + (first + row) * to.ld + column) =
                *(const gr_pack<uint32_t, 4> *)(patch + row * S::LD + column);
    }
    __syncwarp();
}

/* ---------------------------------------------------------------- products */

/* A warp's own rows as left operands. */
template <typename S> struct gr_flash_left {
    const gr_bf16 *row; /* the lane's in shared memory */
    uint32_t held[S::HELD ? S::COLUMNS : 1][S::MT][4];

    __device__ __forceinline__ void load(int kk, uint32_t (&a)[S::MT][4]) const {
#pragma unroll
        for (int m = 0; m < S::MT; m++)
            gr_load_matrices(row + 16 * m * S::LD + 16 * kk, a[m]);
    }

    /* rows: the block's own. */
    __device__ __forceinline__ void open(const gr_bf16 *rows) {
        const int lane = (int)threadIdx.x % GR_WARP, warp = (int)threadIdx.x / GR_WARP;
        row = rows + (warp * S::WARP_ROWS + lane % 16) * S::LD + lane / 16 * 8;
        if (S::HELD)
#pragma unroll
            for (int kk = 0; kk < S::COLUMNS; kk++)
                load(kk, held[S::HELD ? kk : 0]);
    }
};

/* s = own rows times the tile's rows. */
template <typename S>
static __device__ __forceinline__ void gr_flash_scores(
    const gr_flash_left<S> &own, const gr_bf16 *tile, typename S::scores &s) {
    const int lane = (int)threadIdx.x % GR_WARP;
    const gr_bf16 *row = tile + (lane / 16 * 8 + lane % 8) * S::LD + lane / 8 % 2 * 8;
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int j = 0; j < S::PIECES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[m][j][i] = 0;
#pragma unroll
    for (int kk = 0; kk < S::COLUMNS; kk++) {
        uint32_t a[S::MT][4], b[4];
        if (S::HELD)
            memcpy(a, own.held[S::HELD ? kk : 0], sizeof a);
        else
            own.load(kk, a);
#pragma unroll
        for (int j = 0; j < S::PIECES / 2; j++) {
            gr_load_matrices(row + 16 * j * S::LD + 16 * kk, b);
#pragma unroll
            for (int m = 0; m < S::MT; m++) {
                gr_mma(s[m][2 * j], a[m], b[0], b[1]);
                gr_mma(s[m][2 * j + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* sum += p, rounded, times the tile. */
template <typename S>
static __device__ __forceinline__ void gr_flash_add(
    const typename S::scores &p, const gr_bf16 *tile, typename S::sums &sum) {
    const int lane = (int)threadIdx.x % GR_WARP;
    const gr_bf16 *row = tile + lane % 16 * S::LD + lane / 16 * 8;
#pragma unroll
    for (int kk = 0; kk < S::TILE / 16; kk++) {
        uint32_t a[S::MT][4], b[4];
#pragma unroll
        for (int m = 0; m < S::MT; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[m][i] = gr_pair(p[m][2 * kk + i / 2][i % 2 * 2], p[m][2 * kk + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int j = 0; j < S::HD / 16; j++) {
            gr_load_turned(row + 16 * kk * S::LD + 16 * j, b);
#pragma unroll
            for (int m = 0; m < S::MT; m++) {
                gr_mma(sum[m][2 * j], a[m], b[0], b[1]);
                gr_mma(sum[m][2 * j + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* ---------------------------------------------------------------- masks */

typedef struct gr_flash_range {
    int first, end;
} gr_flash_range;

/* The keys that a query sees, or the queries that see a key (`of_keys`): of its document all, or the causal part.
 * Beyond the window: none. Both ends grow with the row. */
static __device__ __forceinline__ gr_flash_range gr_flash_seen(
    const gr_attention &a, bool of_keys, int64_t window, int row) {
    if (row >= a.T)
        return {0, 0};
    const int64_t token = window * a.T + row;
    const bool causal = a.mask == GR_ATTEND_CAUSAL;
    const int first = a.documents.first ? (int)a.documents.first[token] : 0;
    const int end = a.documents.end ? (int)a.documents.end[token] : (int)a.T;
    return {causal && of_keys ? row : first, causal && !of_keys ? row + 1 : end};
}

/* Of a warp's rows, or a block's. */
typedef struct gr_flash_view {
    gr_flash_range any, all; /* what at least one row sees, and what every one does */
} gr_flash_view;

static __device__ __forceinline__ gr_flash_view gr_flash_view_of(
    const gr_attention &a, bool of_keys, int64_t window, int row, int n_row) {
    const int last = (int)gr_at_most(row + n_row, a.T) - 1;
    if (last < row)
        return {{0, 0}, {0, 0}};
    const gr_flash_range upper = gr_flash_seen(a, of_keys, window, row),
                         lower = gr_flash_seen(a, of_keys, window, last);
    return {{upper.first, lower.end}, {lower.first, upper.end}};
}

/* Scores of what a row does not see become -infinity. The warp's rows begin at `row`, the tile at `other`. */
template <typename S>
static __device__ __forceinline__ void gr_flash_hide(
    const gr_attention &a, bool of_keys, int64_t window, int row, int other, typename S::scores &s) {
    const int g = (int)threadIdx.x % GR_WARP / 4, t = (int)threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const gr_flash_range seen = gr_flash_seen(a, of_keys, window, row + 16 * m + 8 * i + g);
#pragma unroll
            for (int j = 0; j < S::PIECES; j++)
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const int at = other + 8 * j + 2 * t + k;
                    if (at < seen.first || at >= seen.end)
                        s[m][j][2 * i + k] = -INFINITY;
                }
        }
}

/* Over the four lanes that hold a row. */
static __device__ __forceinline__ float gr_flash_row_sum(float x) {
    x += __shfl_xor_sync(GR_ALL_LANES, x, 1);
    return x + __shfl_xor_sync(GR_ALL_LANES, x, 2);
}

static __device__ __forceinline__ float gr_flash_row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(GR_ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(GR_ALL_LANES, x, 2));
}

/* ---------------------------------------------------------------- which block does what
 *
 * Blocks take the heads of a section before those of the next, so that what they stream stays in the second-level
 * cache; within a section, rank after rank, the longest blocks of all its heads first. */

typedef struct gr_flash_order {
    int n_head, n_block, section; /* heads of all windows, blocks of each, heads of a section */
} gr_flash_order;

typedef struct gr_flash_place {
    int head, rank; /* head: of all windows */
} gr_flash_place;

static __device__ __forceinline__ gr_flash_place gr_flash_place_of(const gr_flash_order &o) {
    const int each = o.section * o.n_block, first = (int)blockIdx.x / each * o.section, at = (int)blockIdx.x % each;
    const int width = (int)gr_at_most(o.section, o.n_head - first);
    return {first + at % width, at / width};
}

/* ---------------------------------------------------------------- launching (host) */

/* Bytes of a block's shared memory, beside up to 3 KiB more: within gr_kernel_flash_shared. */
template <typename S, int OWN> constexpr int gr_flash_bytes(void) {
    constexpr int BYTES = S::room(OWN) * (int)sizeof(gr_bf16);
    static_assert(BYTES <= (S::HD <= 48 ? 96 : 160) * 1024, "shared memory");
    return BYTES;
}

/* Sections of 16 MiB of rows of two arrays. */
template <typename S> static inline gr_flash_order gr_flash_order_of(const gr_attention *a, int64_t n_head) {
    const int64_t most = (INT64_C(4) << 20) / (a->T * S::HD);
    return {(int)n_head, (int)gr_ceil_div(a->T, S::ROWS), (int)gr_at_most(most < 1 ? 1 : most, n_head)};
}

static inline unsigned gr_flash_blocks(const gr_flash_order &o) {
    return (unsigned)o.n_head * (unsigned)o.n_block;
}

static inline float gr_flash_scale(const gr_attention *a) {
    return 1.0f / sqrtf((float)a->head_dim);
}

#endif
