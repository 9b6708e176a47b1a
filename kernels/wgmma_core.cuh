/* wgmma_core.cuh: the products of all experts in one launch on sm_90a, which wgmma_rows.cu and wgmma_weights.cu give
 * their operands and their ends.
 *
 * A block does jobs blockIdx.x, + gridDim.x, ...: a tile of 128 x COLUMNS of a product, 64 rows for each of two
 * warpgroups that multiply. A third one copies blocks of 64 of k into a ring of stages, further ahead than a tile if
 * there is room. A stage's barriers: `full` when its copies are there, `empty` when all 8 warps have multiplied.
 *   b, and a where its rows follow each other: by TMA, one thread.
 *   a where rows are gathered: by cp.async, 8 units of 16 bytes a thread, which report themselves when they are there.
 * Jobs of one tile of rows are neighbours, so that its rows and the expert's weights come from the second-level cache.
 *
 * Of the last block of k only the steps of 16 that are needed are multiplied. Outside of arrays all is zero; rows of b
 * that belong to the next expert meet zeros of a (weights) or are not stored (rows). They are finite if that expert's
 * numbers are.
 * Sums: k ascending in one accumulator, so the same bits at every call and for every number of blocks. */
#ifndef GROUTER_KERNELS_WGMMA_CORE_CUH
#define GROUTER_KERNELS_WGMMA_CORE_CUH

#include "kernels/geometry.h"
#include "kernels/wgmma.cuh"

namespace {

constexpr int ROWS = 128, DEPTH = 64;     /* of a tile; of a stage */
constexpr int THREADS = 3 * GR_WARPGROUP; /* copy, multiply, multiply */
constexpr int WARPS = 8;                  /* that multiply */
constexpr int A_BYTES = ROWS * DEPTH * 2;
constexpr int SHARED_MAX = 227 * 1024;
constexpr uint32_t NO_ROW = 0xffffffffu;

/* What kernels get. */
typedef struct call {
    CUtensorMap a, b;
    const gr_bf16 *in; /* [rows, D], gathered */
    const uint32_t *pair_row;
    const float *gate;
    const gr_row_tile *tiles;
    const uint32_t *order, *offset;
    gr_bf16 *h, *act, *out;
    float *dw;
    float *share; /* [n_column][n_pair], of gradients of gates */
    int64_t D, F, n_pair;
    int32_t depth;         /* of products of rows */
    int32_t n_column, n_m; /* tiles in a row, and in a column of an expert's gradient */
    uint32_t n_job;
} call;

/* One tile of a product. */
typedef struct job {
    uint32_t expert, first; /* first: pair */
    int32_t n_row;          /* pairs */
    int32_t m, n;           /* first row (gradients) and column */
    int32_t column;         /* number of the column tile */
} job;

/* Op: COLUMNS of a tile; GATHERED: a's rows; TURNED_A, TURNED_B: see wgmma.cuh; HALVES: the columns of b are those of
 * two matrices of F rows each; WEIGHTS: products over pairs; ROOM: bytes of shared memory for each warp's end; FETCHES:
 * Op::fetch begins to read what the end needs into that room when the tile's first products have begun. */
template <class Op> struct layout {
    static constexpr int B_BYTES = Op::TURNED_B ? (Op::COLUMNS + 63) / 64 * 8192 : Op::COLUMNS * 128;
    static constexpr int STAGE = A_BYTES + B_BYTES;
    static constexpr int REST = WARPS * (Op::ROOM + 8 /* barrier */) + 1024 /* alignment */;
    static constexpr int STAGES_MAX = (SHARED_MAX - REST) / (STAGE + 16 /* barriers */);
    static constexpr int STAGES = STAGES_MAX < 8 ? STAGES_MAX : 8;
    static constexpr int BYTES = STAGES * (STAGE + 16) + REST;
    static_assert(STAGES >= 3, "one multiplied, one to multiply, one copied");
};

/* Addresses in shared memory. */
template <class Op> struct ring {
    uint32_t base;
    uint32_t stage, parity;

    __device__ __forceinline__ uint32_t a(void) const {
        return base + stage * layout<Op>::STAGE;
    }
    __device__ __forceinline__ uint32_t full(uint32_t i) const {
        return base + layout<Op>::STAGES * layout<Op>::STAGE + WARPS * Op::ROOM + 8 * i;
    }
    __device__ __forceinline__ uint32_t empty(uint32_t i) const {
        return full(layout<Op>::STAGES + i);
    }
    __device__ __forceinline__ uint32_t fetched(uint32_t warp) const {
        return full(2 * layout<Op>::STAGES + warp);
    }
    __device__ __forceinline__ uint32_t room(uint32_t warp) const {
        return base + layout<Op>::STAGES * layout<Op>::STAGE + warp * Op::ROOM;
    }
    __device__ __forceinline__ uint32_t back(uint32_t n) const { /* stage n before this one */
        return stage >= n ? stage - n : stage + layout<Op>::STAGES - n;
    }
    __device__ __forceinline__ void next(void) {
        if (++stage == layout<Op>::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

template <class Op> __device__ __forceinline__ job job_of(const call &c, uint32_t index) {
    job j = {};
    if (index >= c.n_job)
        return j;
    if constexpr (Op::WEIGHTS) {
        const uint32_t n_tile = (uint32_t)(c.n_m * c.n_column), tile = index % n_tile;
        j.expert = c.order[index / n_tile];
        j.first = c.offset[j.expert];
        j.n_row = (int32_t)(c.offset[j.expert + 1] - j.first);
        j.m = (int32_t)tile / c.n_column * ROWS;
        j.n = (int32_t)tile % c.n_column * Op::COLUMNS;
    } else {
        const uint4 tile = *(const uint4 *)&c.tiles[index / (uint32_t)c.n_column];
        j.expert = tile.x;
        j.first = tile.y;
        j.n_row = (int32_t)tile.z;
        j.column = (int32_t)(index % (uint32_t)c.n_column);
        j.n = j.column * (Op::HALVES ? Op::COLUMNS / 2 : Op::COLUMNS);
    }
    return j;
}

/* Steps of 16 of k. 0: nothing to do. */
template <class Op> __device__ __forceinline__ int steps_of(const call &c, const job &j) {
    return ((Op::WEIGHTS || j.n_row == 0 ? j.n_row : c.depth) + 15) / 16;
}

/* ---------------------------------------------------------------- copying */

/* Boxes of a stage. */
template <class Op>
__device__ __forceinline__ void copy_boxes(const call &c, const job &j, int block, const ring<Op> &r) {
    const uint32_t full = r.full(r.stage), a = r.a(), b = a + A_BYTES;
    const int32_t k = block * DEPTH, e = (int32_t)j.expert;
    gr_barrier_arrive_for(full, layout<Op>::B_BYTES + (Op::GATHERED ? 0 : A_BYTES));
    if constexpr (!Op::GATHERED)
        gr_copy_box(a, &c.a, k, (int32_t)j.first, 0, full);
    if constexpr (Op::HALVES) {
        gr_copy_box(b, &c.b, k, j.n, e, full);
        gr_copy_box(b + layout<Op>::B_BYTES / 2, &c.b, k, (int32_t)c.F + j.n, e, full);
    } else if constexpr (!Op::TURNED_B)
        gr_copy_box(b, &c.b, k, j.n, e, full);
    else
#pragma unroll
        for (int panel = 0; panel < (Op::COLUMNS + 63) / 64; panel++)
            gr_copy_box(b + panel * 8192, &c.b, j.n + panel * 64, Op::WEIGHTS ? (int32_t)j.first + k : k,
                Op::WEIGHTS ? 0 : e, full);
}

/* The pair of the job's row r. */
__device__ __forceinline__ uint32_t pair_at(const call &c, const job &j, int r) {
    if (r >= j.n_row)
        return NO_ROW;
    return c.pair_row ? c.pair_row[j.first + (uint32_t)r] : j.first + (uint32_t)r;
}

/* 16 bytes of it from `column` on; zeros beyond the rows and columns that there are. */
__device__ __forceinline__ void copy_unit(const call &c, uint32_t row, int64_t column, uint32_t to) {
    const bool there = row != NO_ROW && column < c.D;
    gr_copy_unit(to, c.in + (there ? (int64_t)row * c.D + column : 0), there ? 16 : 0);
}

/* The warpgroup that copies, with gathered rows: all its threads. Those of a tile: thread t copies units t % 8 of rows
 * t / 8 + 16 i, which it looks up a tile ahead. */
template <class Op> __device__ __forceinline__ void gather_tiles(const call &c, ring<Op> r) {
    const uint32_t t = threadIdx.x, at = gr_swizzle(t / 8, t % 8);
    uint32_t row[8];
    uint32_t index = blockIdx.x;
    job j = job_of<Op>(c, index);
#pragma unroll
    for (int i = 0; i < 8; i++)
        row[i] = pair_at(c, j, (int)t / 8 + 16 * i);
    while (index < c.n_job) {
        index += gridDim.x;
        const job next = job_of<Op>(c, index);
        const int n_block = (steps_of<Op>(c, j) + 3) / 4;
        for (int block = 0; block < n_block; block++) {
            gr_barrier_wait(r.empty(r.stage), r.parity ^ 1);
            if (t == 0)
                copy_boxes<Op>(c, j, block, r);
#pragma unroll
            for (int i = 0; i < 8; i++)
                copy_unit(c, row[i], (int64_t)block * DEPTH + t % 8 * 8, r.a() + at + 2048 * i);
            gr_units_arrive(r.full(r.stage));
            r.next();
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            row[i] = pair_at(c, next, (int)t / 8 + 16 * i);
        j = next;
    }
}

/* Those of 64 pairs: thread t copies units t % 16 of rows t / 16 + 8 i. A warp has 16 of these rows, lanes l and l + 16
 * look up the one of i = l / 2, lane / 16 = l % 2: so that a lookup is one register, AHEAD blocks before its rows are
 * copied. Looked up later they would make each block of k wait for the second-level cache. */
template <class Op> __device__ __forceinline__ void gather_pairs(const call &c, ring<Op> r) {
    constexpr int AHEAD = 4;
    const uint32_t t = threadIdx.x, lane = t % 32, at = t % 16 / 8 * 8192 + gr_swizzle(t / 16, t % 8);
    const int mine = (int)(lane % 16 / 2 * 8 + t / 32 * 2 + lane % 2);
    uint32_t row[AHEAD];
    uint32_t index = blockIdx.x;
    job j = job_of<Op>(c, index);
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        row[i] = pair_at(c, j, i * DEPTH + mine);
    while (index < c.n_job) {
        index += gridDim.x;
        const job next = job_of<Op>(c, index);
        const int n_block = (steps_of<Op>(c, j) + 3) / 4;
        for (int first = 0; first < n_block; first += AHEAD)
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                const int block = first + k;
                if (block >= n_block)
                    break;
                gr_barrier_wait(r.empty(r.stage), r.parity ^ 1);
                if (t == 0)
                    copy_boxes<Op>(c, j, block, r);
                __syncwarp();
#pragma unroll
                for (int i = 0; i < 8; i++)
                    copy_unit(c, __shfl_sync(0xffffffffu, row[k], 2 * i + lane / 16), j.m + (int64_t)(t % 16) * 8,
                        r.a() + at + 1024 * i);
                gr_units_arrive(r.full(r.stage));
                row[k] = pair_at(c, j, (block + AHEAD) * DEPTH + mine);
                r.next();
            }
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            row[i] = pair_at(c, next, i * DEPTH + mine);
        j = next;
    }
}

/* One thread of it, without. */
template <class Op> __device__ __forceinline__ void copy(const call &c, ring<Op> r) {
    for (uint32_t index = blockIdx.x; index < c.n_job; index += gridDim.x) {
        const job j = job_of<Op>(c, index);
        const int n_block = (steps_of<Op>(c, j) + 3) / 4;
        for (int block = 0; block < n_block; block++) {
            gr_barrier_wait(r.empty(r.stage), r.parity ^ 1);
            copy_boxes<Op>(c, j, block, r);
            r.next();
        }
    }
}

/* ---------------------------------------------------------------- multiplying */

/* STEPS of 16 of k from the next stage. The stage before is given back when this one's products have begun. */
template <class Op, int STEPS>
__device__ __forceinline__ void multiply_stage(
    const call &c, const job &j, bool is_first, ring<Op> &r, float (&d)[Op::COLUMNS / 2]) {
    const uint32_t warp = threadIdx.x / 32 - 4, group = warp / 4;
    gr_barrier_wait(r.full(r.stage), r.parity);
    if (Op::GATHERED)
        gr_proxy_fence();
    const uint64_t a = gr_panel_descriptor<Op::TURNED_A>(r.a() + group * 8192);
    const uint64_t b = gr_panel_descriptor<Op::TURNED_B>(r.a() + A_BYTES);
    gr_products_begin();
#pragma unroll
    for (int i = 0; i < STEPS; i++)
        gr_wgmma<Op::COLUMNS, Op::TURNED_A, Op::TURNED_B>(
            d, a + i * GR_K16_STEP<Op::TURNED_A>, b + i * GR_K16_STEP<Op::TURNED_B>, !is_first || i > 0);
    gr_products_commit();
    if constexpr (Op::FETCHES)
        if (is_first)
            Op::fetch(c, j, (int)warp, r.room(warp), r.fetched(warp));
    gr_products_wait<1>();
    if (!is_first && threadIdx.x % 32 == 0)
        gr_barrier_arrive(r.empty(r.back(1)));
    r.next();
}

/* d [64, COLUMNS] of a warpgroup; n_step > 0. */
template <class Op>
__device__ __forceinline__ void multiply(
    const call &c, const job &j, int n_step, ring<Op> &r, float (&d)[Op::COLUMNS / 2]) {
    int step = 0;
    for (; step + 4 <= n_step; step += 4)
        multiply_stage<Op, 4>(c, j, step == 0, r, d);
    switch (n_step - step) {
    case 3:
        multiply_stage<Op, 3>(c, j, step == 0, r, d);
        break;
    case 2:
        multiply_stage<Op, 2>(c, j, step == 0, r, d);
        break;
    case 1:
        multiply_stage<Op, 1>(c, j, step == 0, r, d);
        break;
    default:
        break;
    }
    gr_products_wait<0>();
    if (threadIdx.x % 32 == 0)
        gr_barrier_arrive(r.empty(r.back(1)));
}

template <class Op> __device__ __forceinline__ void run(const call &c) {
    extern __shared__ char memory[];
    ring<Op> r = {(gr_shared(memory) + 1023) & ~1023u, 0, 0};
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < layout<Op>::STAGES; i++) {
            gr_barrier_open(r.full(i), Op::GATHERED ? GR_WARPGROUP + 1 : 1);
            gr_barrier_open(r.empty(i), WARPS);
        }
        for (uint32_t i = 0; i < WARPS; i++)
            gr_barrier_open(r.fetched(i), 1);
        gr_barriers_show();
    }
    __syncthreads();
    if (threadIdx.x < GR_WARPGROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        if constexpr (Op::WEIGHTS)
            gather_pairs<Op>(c, r);
        else if constexpr (Op::GATHERED)
            gather_tiles<Op>(c, r);
        else if (threadIdx.x == 0)
            copy<Op>(c, r);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        const int warp = (int)threadIdx.x / 32 - 4;
        uint32_t turn = 0; /* parity of `fetched` */
        job next = job_of<Op>(c, blockIdx.x);
        for (uint32_t index = blockIdx.x; index < c.n_job; index += gridDim.x) {
            const job j = next;
            const int n_step = steps_of<Op>(c, j);
            next = job_of<Op>(c, index + gridDim.x); /* read while this one is multiplied */
            if (n_step == 0)
                continue;
            float d[Op::COLUMNS / 2];
            multiply<Op>(c, j, n_step, r, d);
            if constexpr (Op::FETCHES) {
                gr_barrier_wait(r.fetched((uint32_t)warp), turn);
                turn ^= 1;
            }
            Op::end(c, j, warp, r.room((uint32_t)warp), d);
        }
        gr_rows_wait();
    }
}

template <class Op> __global__ void __launch_bounds__(THREADS, 1) product(const __grid_constant__ call c) {
    run<Op>(c);
}

/* ---------------------------------------------------------------- launching (host) */

/* A tensor [n, rows, columns] read in boxes of n_row x 64. */
inline int map_of(CUtensorMap *map, const void *p, int64_t columns, int64_t rows, int64_t n, int n_row) {
    void *encode = NULL;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault, &found);
    if (status != cudaSuccess || found != cudaDriverEntryPointSuccess)
        return status != cudaSuccess ? (int)status : (int)cudaErrorNotSupported;
    const cuuint64_t size[3] = {(cuuint64_t)columns, (cuuint64_t)rows, (cuuint64_t)n};
    const cuuint64_t stride[2] = {(cuuint64_t)columns * 2, (cuuint64_t)(columns * rows) * 2};
    const cuuint32_t box[3] = {64, (cuuint32_t)n_row, 1}, step[3] = {1, 1, 1};
    const CUresult made = ((decltype(&cuTensorMapEncodeTiled))encode)(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3,
        const_cast<void *>(p), size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return made == CUDA_SUCCESS ? 0 : (int)cudaErrorInvalidValue;
}

inline int32_t tiles_of(int64_t n, int64_t size) {
    return (int32_t)((n + size - 1) / size);
}

/* One block for each multiprocessor: shared memory has room for no more. */
template <class Op> int launch(void *stream, const call &c) {
    int device = 0, n_block = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&n_block, cudaDevAttrMultiProcessorCount, device);
    if (status == cudaSuccess)
        status = cudaFuncSetAttribute(product<Op>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)layout<Op>::BYTES);
    if (status != cudaSuccess)
        return (int)status;
    const unsigned grid = c.n_job < (uint32_t)n_block ? c.n_job : (unsigned)n_block;
    product<Op><<<grid, THREADS, layout<Op>::BYTES, (cudaStream_t)stream>>>(c);
    return gr_launched();
}

} // namespace

#endif
