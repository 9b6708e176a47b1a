/* cuda_runtime.h of kernels/host: as much of CUDA as kernels/ uses, on the CPU, so that tests run every kernel without
 * a GPU and without the toolkit. A .cu file is compiled as C++ with this folder before others, after NAME<<<grid,
 * block, 0, stream>>>(arguments) has become gr_host::grid(grid, block, 0, stream).run(NAME, arguments).
 *
 * Blocks run one after the other, the threads of a block as fibers of one thread that change at barriers and shuffles
 * only, a warp for as long as it can: an order that a GPU could take, and by gr_host_set_order its reverse. A result
 * that differs between the two has a race. Ends the process where threads wait for ones that returned or took another
 * way, which CUDA leaves undefined. What it cannot show: races between fibers that never change, memory out of bounds
 * (a sanitizer does), speed. */
#ifndef GROUTER_HOST_CUDA_RUNTIME_H
#define GROUTER_HOST_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __shared__ static /* blocks do not run at the same time */

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {
    }
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

static inline cudaError_t cudaGetLastError(void) {
    return cudaSuccess;
}

namespace gr_host {

enum collective { SYNC_WARP, SHUFFLE_XOR, SHUFFLE_DOWN, SHUFFLE };

/* Hands a value to the warp and returns the one of lane `from` (of the caller's own where there is no such lane), when
 * all 32 lanes have called the same. */
uint64_t exchange(collective what, unsigned lanes, uint64_t value, int from);
int lane(void);
/* room: bytes of shared memory that the launch asks for. */
void run(dim3 blocks, dim3 threads, size_t room, void (*body)(const void *arguments), const void *arguments);

/* The block's room, at GR_HOST_ROOM_ALIGN; NaNs at its start, guarded behind its end. */
void *room(void);
enum { GR_HOST_ROOM_ALIGN = 128, GR_HOST_ROOM_MAX = 227 << 10 };

/* Copies that arrive only when the thread waits for them: `to` holds NaNs until then. See gr_copy_async in
 * kernels/mma.cuh; n_byte 0: zeros. */
void copy_later(void *to, const void *from, size_t n_byte);
void copies_commit(void);
void copies_wait(int but);

/* The addresses that the lanes of this warp hand over, when all have. */
const void *const *hand_over(const void *p);

template <typename T> T shuffle(collective what, unsigned lanes, T value, int from) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a word");
    uint64_t word = 0;
    memcpy(&word, &value, sizeof value);
    word = exchange(what, lanes, word, from);
    memcpy(&value, &word, sizeof value);
    return value;
}

/* What is done with work of a stream: at once where NULL. `run` frees the work. See gr_host_queue_launches. */
extern void (*queue)(void *stream, void (*run)(void *work), void *work);

template <typename W> void enqueue(cudaStream_t stream, const W &work) {
    if (!queue)
        return work();
    void *later = malloc(sizeof(W));
    queue(
        stream,
        [](void *p) {
            (*(W *)p)();
            free(p);
        },
        new (later) W(work));
}

struct grid {
    dim3 blocks, threads;
    size_t room;
    cudaStream_t stream;
    grid(dim3 blocks_, dim3 threads_, size_t room_, cudaStream_t stream_)
        : blocks(blocks_), threads(threads_), room(room_), stream(stream_) {
    }

    template <typename... P, typename... Q> void run(void (*kernel)(P...), Q... arguments) const {
        const dim3 b = blocks, t = threads;
        const size_t n_byte = room;
        enqueue(stream, [=] {
            const auto body = [=] { kernel(arguments...); };
            gr_host::run(
                b, t, n_byte, [](const void *p) { (*static_cast<decltype(&body)>(p))(); }, &body);
        });
    }
};

} // namespace gr_host

static inline cudaError_t cudaMemsetAsync(void *p, int value, size_t n_byte, cudaStream_t stream) {
    gr_host::enqueue(stream, [=] { memset(p, value, n_byte); });
    return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

static inline cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int n_byte) {
    return n_byte <= gr_host::GR_HOST_ROOM_MAX ? cudaSuccess : cudaErrorInvalidValue;
}

void __syncthreads(void);

static inline void __syncwarp(unsigned lanes = 0xffffffffu) {
    gr_host::exchange(gr_host::SYNC_WARP, lanes, 0, gr_host::lane());
}

template <typename T> T __shfl_xor_sync(unsigned lanes, T value, int mask) {
    return gr_host::shuffle(gr_host::SHUFFLE_XOR, lanes, value, gr_host::lane() ^ mask);
}

template <typename T> T __shfl_down_sync(unsigned lanes, T value, unsigned by) {
    return gr_host::shuffle(gr_host::SHUFFLE_DOWN, lanes, value, gr_host::lane() + (int)by);
}

template <typename T> T __shfl_sync(unsigned lanes, T value, int from) {
    return gr_host::shuffle(gr_host::SHUFFLE, lanes, value, from);
}

/* Of integers: kernels/ adds no floats with atomics. */
template <typename T> T atomicAdd(T *p, T v) {
    static_assert(T(1) / T(2) == T(0), "an integer");
    const T old = *p;
    *p = old + v;
    return old;
}

static inline uint32_t __float_as_uint(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float __uint_as_float(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* The device's are less exact. */
#define __expf expf /* a name of the C library too */

static inline float __fdividef(float a, float b) {
    return a / b;
}

static inline float __fmul_rn(float a, float b) {
    return a * b;
}

#endif
