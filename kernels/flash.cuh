/* flash.cuh: tiles and products that the kernels of flash_forward.cu and flash_backward.cu share. A block has 4 warps;
 * a warp owns 16 rows, of which a lane holds two: g and g + 8 (see mma.cuh). HD is head_dim or more: a multiple of 16,
 * the columns beyond are zeros. Rows begin at 16 bytes. */
#ifndef GROUTER_KERNELS_FLASH_CUH
#define GROUTER_KERNELS_FLASH_CUH

#include "kernels/mma.cuh"
#include "kernels/warp.cuh"

constexpr int GR_FLASH_WARPS = 4, GR_FLASH_THREADS = GR_FLASH_WARPS * GR_WARP;
constexpr int GR_FLASH_ROWS = GR_FLASH_WARPS * 16; /* of a block */
constexpr int GR_FLASH_PAD = 8; /* rows of a tile begin 16 bytes on in the banks, so that no access waits for another */
constexpr float GR_LOG2_E = 1.44269504088896340736f;

/* Rows of one head of q, k, v, o or of a gradient. */
typedef struct gr_flash_rows {
    const gr_bf16 *p; /* row 0 of the window */
    int64_t ld;
    int64_t end; /* rows from here on count as zeros */
    int head_dim;
} gr_flash_rows;

static __device__ __forceinline__ gr_flash_rows gr_flash_head(
    const gr_attention &a, const void *array, int64_t ld, int64_t window, int64_t head) {
    return {(const gr_bf16 *)array + window * a.T * ld + head * a.head_dim, ld, a.T, (int)a.head_dim};
}

/* Rows [first, first + ROWS) into shared memory. */
template <int HD, int ROWS>
static __device__ __forceinline__ void gr_flash_load(
    const gr_flash_rows &from, int64_t first, gr_bf16 (*to)[HD + GR_FLASH_PAD]) {
    constexpr int EACH = HD / 8;
    for (int i = (int)threadIdx.x; i < ROWS * EACH; i += GR_FLASH_THREADS) {
        const int row = i / EACH, column = i % EACH * 8;
        gr_pack<uint32_t, 4> part = {};
        if (first + row < from.end && column < from.head_dim)
            part = *(const gr_pack<uint32_t, 4> *)(from.p + (first + row) * from.ld + column);
        *(gr_pack<uint32_t, 4> *)&to[row][column] = part;
    }
}

/* This lane's part of rows `row` and row + 8 as left operands of products over the head. */
template <int HD>
static __device__ __forceinline__ void gr_flash_operand(
    const gr_flash_rows &from, int64_t row, uint32_t (&a)[HD / 16][4]) {
    const int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int column = 16 * kk + 8 * (i / 2) + 2 * t;
            const int64_t r = row + 8 * (i % 2);
            const bool inside = r < from.end && column < from.head_dim;
            a[kk][i] = inside ? *(const uint32_t *)(from.p + r * from.ld + column) : 0;
        }
}

/* s [16, ROWS] = operand times the tile's rows. */
template <int HD, int ROWS>
static __device__ __forceinline__ void gr_flash_scores(
    const uint32_t (&a)[HD / 16][4], gr_bf16 (*tile)[HD + GR_FLASH_PAD], float (&s)[ROWS / 8][4]) {
    const int lane = (int)threadIdx.x % GR_WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < ROWS / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[j][i] = 0;
#pragma unroll
        for (int kk = 0; kk < HD / 16; kk++) {
            const gr_bf16 *b = &tile[8 * j + g][16 * kk + 2 * t];
            gr_mma(s[j], a[kk], *(const uint32_t *)b, *(const uint32_t *)(b + 8));
        }
    }
}

/* sum [16, HD] += p [16, ROWS], rounded, times the tile. */
template <int HD, int ROWS>
static __device__ __forceinline__ void gr_flash_add(
    const float (&p)[ROWS / 8][4], gr_bf16 (*tile)[HD + GR_FLASH_PAD], float (&sum)[HD / 8][4]) {
    const int lane = (int)threadIdx.x % GR_WARP;
#pragma unroll
    for (int kk = 0; kk < ROWS / 16; kk++) {
        const float(&left)[4] = p[2 * kk], (&right)[4] = p[2 * kk + 1];
        const uint32_t a[4] = {gr_pair(left[0], left[1]), gr_pair(left[2], left[3]), gr_pair(right[0], right[1]),
            gr_pair(right[2], right[3])};
#pragma unroll
        for (int j = 0; j < HD / 16; j++) {
            uint32_t b[4];
            gr_load_turned(&tile[16 * kk + lane % 16][16 * j + lane / 16 * 8], b);
            gr_mma(sum[2 * j], a, b[0], b[1]);
            gr_mma(sum[2 * j + 1], a, b[2], b[3]);
        }
    }
}

/* Writes this lane's part of rows `row` and row + 8, times one factor each. */
template <int HD>
static __device__ __forceinline__ void gr_flash_store(
    const gr_flash_rows &to, int64_t row, const float (&sum)[HD / 8][4], const float (&factor)[2]) {
    const int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < HD / 8; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int column = 8 * j + 2 * t;
            const int64_t r = row + 8 * i;
            if (r < to.end && column < to.head_dim)
                *(uint32_t *)((gr_bf16 *)to.p + r * to.ld + column) =
                    gr_pair(sum[j][2 * i] * factor[i], sum[j][2 * i + 1] * factor[i]);
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

/* What a row sees; a row beyond the window sees nothing. */
static __device__ __forceinline__ gr_attend_seen gr_flash_seen(const gr_attention &a, int64_t window, int64_t row) {
    if (row >= a.T)
        return {0, 0};
    const int64_t token = window * a.T + row;
    return gr_attend_seen_by(a.mask == GR_ATTEND_CAUSAL, a.T, row, a.documents.first ? a.documents.first + token : NULL,
        a.documents.end ? a.documents.end + token : NULL);
}

#endif
