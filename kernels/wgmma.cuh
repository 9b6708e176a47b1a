/* wgmma.cuh: the instructions of sm_90a that the grouped products are made of: barriers in shared memory, copies of
 * boxes (TMA) and of rows (cp.async) into it, products of a warpgroup out of it (wgmma), and how operands lie there.
 *
 * Operands lie in panels: rows of 128 bytes (64 bf16), one after the other, the 16-byte units of row r at places
 * unit ^ (r % 8): what TMA writes with 128-byte swizzling. A panel begins at a multiple of 1024 bytes.
 *   k along the rows ("plain"):  row = m or n, 64 of k in one panel. 8 rows are 1024 bytes (the descriptor's stride);
 *       the next 16 of k are 32 bytes on.
 *   m or n along the rows ("turned"):  row = k, 64 of m or n in a panel of 64 rows, the next 64 in the next panel.
 *       8 of k are 1024 bytes (stride), 64 of m or n are 8192 bytes (leading); the next 16 of k are 2048 bytes on.
 *
 * Sums of a product d [64, N] of a warpgroup, with g = lane / 4, t = lane % 4 and w the warp in its group:
 *   d[4j], d[4j+1]: row 16w + g, columns 8j + 2t, 8j + 2t + 1   d[4j+2], d[4j+3]: row 16w + g + 8
 *
 * Two proxies: wgmma and TMA read and write shared memory in the asynchronous one, cp.async writes in the other. Who
 * multiplies what cp.async wrote passes gr_proxy_fence between waiting for it and that. */
#ifndef GROUTER_KERNELS_WGMMA_CUH
#define GROUTER_KERNELS_WGMMA_CUH

#include "kernels/mma.cuh"

#include <cuda.h>

constexpr int GR_WARPGROUP = 128; /* threads */

static __device__ __forceinline__ uint32_t gr_shared(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* Byte of 16-byte unit `unit` of row `row` in a panel. */
static __device__ __forceinline__ uint32_t gr_swizzle(uint32_t row, uint32_t unit) {
    return row * 128 + ((unit ^ (row & 7)) << 4);
}

/* ---------------------------------------------------------------- barriers (addresses in shared memory) */

static __device__ __forceinline__ void gr_barrier_open(uint32_t barrier, uint32_t n_arrival) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(barrier), "r"(n_arrival) : "memory");
}

static __device__ __forceinline__ void gr_barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(barrier) : "memory");
}

/* An arrival that also announces bytes of TMA: the phase ends after they are there. */
static __device__ __forceinline__ void gr_barrier_arrive_for(uint32_t barrier, uint32_t n_byte) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(barrier), "r"(n_byte) : "memory");
}

/* Until the phase of this parity has ended. */
static __device__ __forceinline__ void gr_barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t ended;
    do {
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n}"
                     : "=r"(ended)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!ended);
}

/* Barriers opened by this thread are seen by TMA; a __syncthreads shows them to other threads. */
static __device__ __forceinline__ void gr_barriers_show(void) {
    asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}

static __device__ __forceinline__ void gr_proxy_fence(void) {
    asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

/* The threads of warpgroup `group` (0 or 1 of those that multiply) wait for each other. */
static __device__ __forceinline__ void gr_warpgroup_sync(int group) {
    asm volatile("bar.sync %0, 128;" : : "r"(group + 1) : "memory");
}

/* ---------------------------------------------------------------- copies into shared memory */

/* The box at (c0, c1, c2) of the tensor, zeros outside of it; its bytes are reported to the barrier. */
static __device__ __forceinline__ void gr_copy_box(
    uint32_t to, const CUtensorMap *from, int32_t c0, int32_t c1, int32_t c2, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
        "[%5];"
        :
        : "r"(to), "l"(from), "r"(c0), "r"(c1), "r"(c2), "r"(barrier)
        : "memory");
}

/* 16 bytes: the first n_byte of them from memory, zeros after. */
static __device__ __forceinline__ void gr_copy_unit(uint32_t to, const void *from, uint32_t n_byte) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(to), "l"(from), "r"(n_byte) : "memory");
}

/* An arrival at the barrier as soon as all units that this thread has begun to copy are there. */
static __device__ __forceinline__ void gr_units_arrive(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" : : "r"(barrier) : "memory");
}

/* n_byte bytes, a multiple of 16, one after the other, both sides at 16 bytes; reported to the barrier. */
static __device__ __forceinline__ void gr_copy_row(uint32_t to, const void *from, uint32_t n_byte, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :
                 : "r"(to), "l"(from), "r"(n_byte), "r"(barrier)
                 : "memory");
}

/* The same out of shared memory: what this thread began to write since the last commit is one group. */
static __device__ __forceinline__ void gr_write_row(void *to, uint32_t from, uint32_t n_byte) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                 :
                 : "l"(to), "r"(from), "r"(n_byte)
                 : "memory");
}

static __device__ __forceinline__ void gr_rows_commit(void) {
    asm volatile("cp.async.bulk.commit_group;" : : : "memory");
}

/* Until all that this thread began to write has been read out of shared memory. */
static __device__ __forceinline__ void gr_rows_wait(void) {
    asm volatile("cp.async.bulk.wait_group.read 0;" : : : "memory");
}

/* ---------------------------------------------------------------- products */

static __device__ __forceinline__ uint64_t gr_descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 |
           UINT64_C(1) << 62; /* 128-byte swizzling */
}

/* turned: 0 or 1 as above. */
template <int TURNED> static __device__ __forceinline__ uint64_t gr_panel_descriptor(uint32_t address) {
    return gr_descriptor(address, TURNED ? 8192 : 16, 1024);
}

/* From a descriptor to that of the next 16 of k. */
template <int TURNED> constexpr uint64_t GR_K16_STEP = (TURNED ? 2048 : 32) >> 4;

static __device__ __forceinline__ void gr_products_begin(void) {
    asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
}

static __device__ __forceinline__ void gr_products_commit(void) {
    asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
}

template <int N> static __device__ __forceinline__ void gr_products_wait(void) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(N) : "memory");
}

#define GR_TEN(p) "%" #p "0,%" #p "1,%" #p "2,%" #p "3,%" #p "4,%" #p "5,%" #p "6,%" #p "7,%" #p "8,%" #p "9"
#define GR_TENS_5 GR_TEN() "," GR_TEN(1) "," GR_TEN(2) "," GR_TEN(3) "," GR_TEN(4) ","
#define GR_TENS_8 GR_TENS_5 GR_TEN(5) "," GR_TEN(6) "," GR_TEN(7) ","
#define GR_TENS_11 GR_TENS_8 GR_TEN(8) "," GR_TEN(9) "," GR_TEN(10) ","
#define GR_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define GR_D8(i) GR_D4(i), GR_D4((i) + 4)
#define GR_D32(i) GR_D8(i), GR_D8((i) + 8), GR_D8((i) + 16), GR_D8((i) + 24)

/* N, its N/2 registers, the numbers of the five operands after them, then the constraints of the registers. */
#define GR_WGMMA(N, REGISTERS, A, B, ADD, TURN_A, TURN_B, ...)                                                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ADD ", 0;\n"                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGISTERS "}, %" #A ", %" #B             \
                 ", p, 1, 1, %" #TURN_A ", %" #TURN_B ";\n}"                                                           \
                 : __VA_ARGS__                                                                                         \
                 : "l"(a), "l"(b), "r"(add), "n"(TURNED_A), "n"(TURNED_B))

/* d = a b (add 0) or d += a b, for 16 of k, begun: d may be read after gr_products_wait. */
template <int N, int TURNED_A, int TURNED_B>
static __device__ __forceinline__ void gr_wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, int add) {
    static_assert(N == 128 || N == 192 || N == 256, "no other width is spelled out");
    if constexpr (N == 128)
        GR_WGMMA(128, GR_TENS_5 GR_TEN(5) ",%60,%61,%62,%63", 64, 65, 66, 67, 68, GR_D32(0), GR_D32(32));
    else if constexpr (N == 192)
        GR_WGMMA(192, GR_TENS_8 GR_TEN(8) ",%90,%91,%92,%93,%94,%95", 96, 97, 98, 99, 100, GR_D32(0), GR_D32(32),
            GR_D32(64));
    else
        GR_WGMMA(256, GR_TENS_11 GR_TEN(11) ",%120,%121,%122,%123,%124,%125,%126,%127", 128, 129, 130, 131, 132,
            GR_D32(0), GR_D32(32), GR_D32(64), GR_D32(96));
}

#undef GR_WGMMA

/* ---------------------------------------------------------------- matrices of 8 x 8 between registers and panels
 *
 * A lane holds row lane / 4, columns 2 (lane % 4) and the next of each matrix, as a pair; lane l points to row l % 8 of
 * matrix l / 8. */

static __device__ __forceinline__ void gr_store_four(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
                 :
                 : "r"(to), "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

static __device__ __forceinline__ void gr_load_four(uint32_t from, uint32_t (&m)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
}

static __device__ __forceinline__ uint4 gr_load_unit(uint32_t from) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(from)
                 : "memory");
    return x;
}

/* Added to memory by the second-level cache: nothing waits for it. */
static __device__ __forceinline__ void gr_add_number(float *to, float x) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" : : "l"(to), "f"(x) : "memory");
}

/* Two neighbours, at 8 bytes. */
static __device__ __forceinline__ void gr_add_pair(float *to, float x, float y) {
    asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1,%2};" : : "l"(to), "f"(x), "f"(y) : "memory");
}

#endif
