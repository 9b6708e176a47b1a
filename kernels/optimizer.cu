/* optimizer.cu: passes over flat ranges of weights and gradients. Not yet run on a GPU.
 *
 *   adamw          g' = grad_scale g;  m = b1 m + (1-b1) g';  v = b2 v + (1-b2) g'^2;
 *                  p = (1 - lr wd) p - (lr / (1 - b1^step)) m / (sqrt(v) / sqrt(1 - b2^step) + eps);  p_act = p rounded
 *   round_weights  to = from rounded to nearest, ties to even
 *   sum_squares    *out += sum_i x_i^2 in double
 *
 * Grid: elementwise passes: 256 threads per block, a thread per 4 neighbours (16 bytes) where n and the addresses
 * allow, else per element. sum_squares: a block of 256 per GR_SQUARES_BLOCK elements, whose threads take every 256th
 * element and are then added up in halves; one block of 1024 adds up the blocks' sums, its threads every 1024th of
 * them. The order depends on n alone, so the same x gives the same bits on any GPU. Bytes per element: adamw 28 (p, m,
 * v read and written, g read) and 2 for p_act; round_weights 6 (bf16) or 8; sum_squares 4. Flops are far below what
 * memory allows, in double too but for GPUs whose doubles are at 1/64. n = 0: nothing is launched. CPU: cpu_adamw.c,
 * cpu_squares.c. */
#include <math.h>

#include "kernels/warp.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int TOTAL_THREADS = 1024;
constexpr int64_t N_MAX = (int64_t)THREADS * 0x7fffffff;

struct adamw_rates {
    float rate, root, keep, beta1, rest1, beta2, rest2;
};

__device__ __forceinline__ int64_t thread_index() {
    return (int64_t)blockIdx.x * THREADS + threadIdx.x;
}

/* n is a multiple of N. T: what p_act holds; NULL where weights are stored as fp32. */
template <typename T, int N> __global__ void __launch_bounds__(THREADS) adamw(gr_adamw a, adamw_rates s) {
    const int64_t i = thread_index() * N;
    if (i >= a.n)
        return;
    float p[N], m[N], v[N], grad[N];
    gr_load<N>(a.p + i, p);
    gr_load<N>(a.m + i, m);
    gr_load<N>(a.v + i, v);
    gr_load<N>(a.g + i, grad);
    for (int j = 0; j < N; j++) {
        const float g = grad[j] * a.grad_scale;
        m[j] = s.beta1 * m[j] + s.rest1 * g;
        v[j] = s.beta2 * v[j] + s.rest2 * g * g;
        p[j] = s.keep * p[j] - s.rate * m[j] / (sqrtf(v[j]) * s.root + a.eps);
    }
    gr_store<N>(a.p + i, p);
    gr_store<N>(a.m + i, m);
    gr_store<N>(a.v + i, v);
    if (a.p_act)
        gr_store<N>((T *)a.p_act + i, p);
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS) round_weights(const float *from, T *to, int64_t n) {
    const int64_t i = thread_index() * N;
    if (i >= n)
        return;
    float x[N];
    gr_load<N>(from + i, x);
    gr_store<N>(to + i, x);
}

__global__ void __launch_bounds__(THREADS) squares_of_blocks(const float *x, int64_t n, double *partial) {
    __shared__ double room[THREADS];
    const int64_t first = (int64_t)blockIdx.x * GR_SQUARES_BLOCK;
    const int64_t end = first + GR_SQUARES_BLOCK < n ? first + GR_SQUARES_BLOCK : n;
    double sum = 0;
    for (int64_t i = first + threadIdx.x; i < end; i += THREADS)
        sum += (double)x[i] * (double)x[i];
    sum = gr_block_sum<THREADS>(sum, room);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(TOTAL_THREADS) add_blocks(const double *partial, int64_t n_block, double *out) {
    __shared__ double room[TOTAL_THREADS];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n_block; i += TOTAL_THREADS)
        sum += partial[i];
    sum = gr_block_sum<TOTAL_THREADS>(sum, room);
    if (threadIdx.x == 0)
        *out += sum;
}

/* In double on the host, as the CPU does. */
adamw_rates rates_of(const gr_adamw *a) {
    const double lr = (double)a->lr, beta1 = (double)a->beta1, beta2 = (double)a->beta2, step = (double)a->step;
    adamw_rates s;
    s.rate = (float)(lr / (1 - pow(beta1, step)));
    s.root = (float)(1 / sqrt(1 - pow(beta2, step)));
    s.keep = (float)(1 - lr * (double)a->weight_decay);
    s.beta1 = a->beta1;
    s.rest1 = (float)(1 - beta1);
    s.beta2 = a->beta2;
    s.rest2 = (float)(1 - beta2);
    return s;
}

template <typename T> int launch_adamw(cudaStream_t stream, const gr_adamw *a) {
    const bool whole = a->n % 4 == 0 && gr_is_aligned16(a->p) && gr_is_aligned16(a->m) && gr_is_aligned16(a->v) &&
                       gr_is_aligned16(a->g) && (uintptr_t)a->p_act % (4 * sizeof(T)) == 0;
    if (whole)
        adamw<T, 4><<<gr_blocks(a->n / 4, THREADS), THREADS, 0, stream>>>(*a, rates_of(a));
    else
        adamw<T, 1><<<gr_blocks(a->n, THREADS), THREADS, 0, stream>>>(*a, rates_of(a));
    return gr_launched();
}

template <typename T> int launch_round(cudaStream_t stream, const float *from, void *to, int64_t n) {
    if (n % 4 == 0 && gr_is_aligned16(from) && (uintptr_t)to % (4 * sizeof(T)) == 0)
        round_weights<T, 4><<<gr_blocks(n / 4, THREADS), THREADS, 0, stream>>>(from, (T *)to, n);
    else
        round_weights<T, 1><<<gr_blocks(n, THREADS), THREADS, 0, stream>>>(from, (T *)to, n);
    return gr_launched();
}

} // namespace

int gr_kernel_adamw(void *stream, gr_dtype dtype, const gr_adamw *a) {
    if (a->n < 0 || a->n > N_MAX || !gr_is_act(dtype) || !a->p_act != (dtype == GR_F32))
        return cudaErrorInvalidValue;
    if (a->n == 0)
        return 0;
    const cudaStream_t queue = (cudaStream_t)stream;
    return dtype == GR_BF16 ? launch_adamw<gr_bf16>(queue, a) : launch_adamw<float>(queue, a);
}

int gr_kernel_round_weights(void *stream, gr_dtype dtype, const float *from, void *to, int64_t n) {
    if (n < 0 || n > N_MAX || !gr_is_act(dtype))
        return cudaErrorInvalidValue;
    if (n == 0)
        return 0;
    const cudaStream_t queue = (cudaStream_t)stream;
    return dtype == GR_BF16 ? launch_round<gr_bf16>(queue, from, to, n) : launch_round<float>(queue, from, to, n);
}

int gr_kernel_sum_squares(void *stream, const float *x, int64_t n, double *out, void *scratch) {
    if (n < 0 || n > N_MAX)
        return cudaErrorInvalidValue;
    if (n == 0)
        return 0;
    const cudaStream_t queue = (cudaStream_t)stream;
    const unsigned n_block = gr_blocks(n, GR_SQUARES_BLOCK);
    squares_of_blocks<<<n_block, THREADS, 0, queue>>>(x, n, (double *)scratch);
    add_blocks<<<1, TOTAL_THREADS, 0, queue>>>((const double *)scratch, n_block, out);
    return gr_launched();
}
