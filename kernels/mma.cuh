/* mma.cuh: the tensor cores' bf16 product of a warp (PTX mma.sync.m16n8k16, sm_80 and later), and how its operands lie
 * in the lanes. With g = lane / 4 and t = lane % 4, and pairs of neighbours in one register, the lower one in the lower
 * half:
 *
 *   a [16,16]  a[0]: row g, columns 2t, 2t+1   a[1]: row g+8   a[2]: row g, columns 2t+8, 2t+9   a[3]: row g+8 of these
 *   b [16,8]   b0: rows 2t, 2t+1 of column g   b1: rows 2t+8, 2t+9 of it
 *   d [16,8]   d[0], d[1]: row g, columns 2t, 2t+1   d[2], d[3]: row g+8
 *
 * so that two neighbouring d, rounded, are an a. kernels/host/kernels/mma.cuh is the same for the CPU. */
#ifndef GROUTER_KERNELS_MMA_CUH
#define GROUTER_KERNELS_MMA_CUH

#include "kernels/device.cuh"

/* d += a b */
static __device__ __forceinline__ void gr_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8 x 8 matrices in shared memory, turned: lane l points to row l % 8 of matrix l / 8 (16 bytes, aligned); b[m]
 * are then rows 2t, 2t+1 of column g of matrix m. */
static __device__ __forceinline__ void gr_load_turned(const gr_bf16 *row, uint32_t (&b)[4]) {
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(address)
                 : "memory");
}

/* The same four as they lie: b[m] are columns 2t, 2t+1 of row g of matrix m. */
static __device__ __forceinline__ void gr_load_matrices(const gr_bf16 *row, uint32_t (&b)[4]) {
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(address)
                 : "memory");
}

/* 16 bytes to shared memory while the thread goes on; zeros where there is nothing to copy (`from` is then not read).
 * Copies belong to the thread's next commit; a wait returns when all but its last N commits have arrived. */
static __device__ __forceinline__ void gr_copy_async(gr_bf16 *to, const gr_bf16 *from) {
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}

static __device__ __forceinline__ void gr_copy_async(gr_bf16 *to, const gr_bf16 *from, bool there) {
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

static __device__ __forceinline__ void gr_copy_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> static __device__ __forceinline__ void gr_copy_wait(void) {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* The block's shared memory whose size the launch says. */
static __device__ __forceinline__ gr_bf16 *gr_launched_room(void) {
    extern __shared__ __align__(128) unsigned char gr_room_of_launch[];
    return (gr_bf16 *)gr_room_of_launch;
}

/* Two neighbours, rounded. */
static __device__ __forceinline__ uint32_t gr_pair(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&pair;
}

/* The lower and the upper one of such two. */
static __device__ __forceinline__ float gr_low(uint32_t pair) {
    return __uint_as_float(pair << 16);
}

static __device__ __forceinline__ float gr_high(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

#endif
