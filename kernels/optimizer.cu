/* optimizer.cu: passes over flat ranges of weights and gradients, and what is decided between them.
 *
 *   adamw          g' = grad_scale g;  m = b1 m + (1-b1) g';  v = b2 v + (1-b2) g'^2;
 *                  p = (1 - lr wd) p - (lr / (1 - b1^step)) m / (sqrt(v) / sqrt(1 - b2^step) + eps);  p_act = p rounded
 *   round_weights  to = from rounded to nearest, ties to even
 *   sum_squares    *out += sum_i x_i^2 in double
 *   decide         the norm, the scale and whether the step is skipped: see gr_decide
 *
 * Grid. adamw: blocks of 256 threads, one per ADAMW_CHUNK elements of a range, all ranges in one launch (up to
 * ADAMW_RANGES of them, whose list is an argument: a block finds its range by halving it); a thread takes 4 neighbours
 * (16 bytes) at a time where the addresses allow, else one element. round_weights: a thread per 4 neighbours or per
 * element. sum_squares: a block of 256 per GR_SQUARES_BLOCK elements, whose threads take every 256th element and are
 * then added up in halves; one block of 1024 adds up the blocks' sums, its threads every 1024th of them. The order
 * depends on n alone, so the same x gives the same bits on any GPU. decide: one thread.
 * Bytes per element: adamw 28 (p, m, v read and written, g read) and 2 for p_act, none where the step is skipped;
 * round_weights 6 (bf16) or 8; sum_squares 4. Flops are far below what memory allows, in double too but for GPUs whose
 * doubles are at 1/64. n = 0: nothing is launched. CPU: cpu_adamw.c, cpu_squares.c.
 * Measured (kernels.h): adamw 2.81 TB/s, round_weights 2.24, sum_squares 1.43. */
#include <float.h>
#include <math.h>

#include "kernels/warp.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int TOTAL_THREADS = 1024;
constexpr int64_t N_MAX = (int64_t)THREADS * 0x7fffffff;

constexpr int ADAMW_CHUNK = 4096;
constexpr int ADAMW_RANGES = 128; /* 3 of the 4 KiB that any launch may have as arguments */

struct adamw_rates {
    float rate, root, keep[2], beta1, rest1, beta2, rest2; /* keep: without decay, with it */
};

struct adamw_part {
    int64_t first, n;
    unsigned first_block;
    int decay;
};

struct adamw_list {
    int n;
    adamw_part part[ADAMW_RANGES];
};

/* What a block needs of gr_adamw. */
struct adamw_arrays {
    float *p, *m, *v;
    const float *g;
    void *act;
    const gr_decision *decision;
    float eps;
};

__device__ __forceinline__ int64_t thread_index() {
    return (int64_t)blockIdx.x * THREADS + threadIdx.x;
}

/* N elements from i on. T: what act holds; NULL where weights are stored as fp32. */
template <typename T, int N>
__device__ __forceinline__ void adamw_update(
    const adamw_arrays &a, const adamw_rates &s, float scale, float keep, int64_t i) {
    float p[N], m[N], v[N], grad[N];
    gr_load<N>(a.p + i, p);
    gr_load<N>(a.m + i, m);
    gr_load<N>(a.v + i, v);
    gr_load<N>(a.g + i, grad);
#pragma unroll
    for (int j = 0; j < N; j++) {
        const float g = grad[j] * scale;
        m[j] = s.beta1 * m[j] + s.rest1 * g;
        v[j] = s.beta2 * v[j] + s.rest2 * g * g;
        p[j] = keep * p[j] - s.rate * m[j] / (sqrtf(v[j]) * s.root + a.eps);
    }
    gr_store<N>(a.p + i, p);
    gr_store<N>(a.m + i, m);
    gr_store<N>(a.v + i, v);
    if (a.act)
        gr_store<N>((T *)a.act + i, p);
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    adamw(const adamw_arrays a, const adamw_rates s, const __grid_constant__ adamw_list list) {
    if (a.decision->skipped)
        return;
    int low = 0;
    for (int high = list.n; high - low > 1;) {
        const int middle = (low + high) / 2;
        if (list.part[middle].first_block <= blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    const int64_t begin = (int64_t)(blockIdx.x - list.part[low].first_block) * ADAMW_CHUNK;
    const int64_t left = list.part[low].n - begin, first = list.part[low].first + begin;
    const int n = left < ADAMW_CHUNK ? (int)left : ADAMW_CHUNK;
    const float scale = a.decision->grad_scale, keep = s.keep[list.part[low].decay];
    for (int i = (int)threadIdx.x * N; i < n; i += THREADS * N) {
        if (i + N <= n)
            adamw_update<T, N>(a, s, scale, keep, first + i);
        else
            for (int j = i; j < n; j++)
                adamw_update<T, 1>(a, s, scale, keep, first + j);
    }
}

/* As gr_cpu_decide: products, a quotient and a root, each rounded once, so the same bits. */
__global__ void decide_one(gr_decide a) {
    const double norm = sqrt(*a.squares), scale = a.clip > 0 && norm > a.clip ? a.clip / norm : 1;
    const double applied = scale * norm;
    const bool proceeds = applied * applied <= (double)FLT_MAX && fabs(*a.loss) <= DBL_MAX; /* NaN fails both */
    a.out->norm = norm;
    a.out->grad_scale = (float)scale;
    a.out->skipped = proceeds ? 0 : 1;
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
    s.keep[0] = 1;
    s.keep[1] = (float)(1 - lr * (double)a->weight_decay);
    s.beta1 = a->beta1;
    s.rest1 = (float)(1 - beta1);
    s.beta2 = a->beta2;
    s.rest2 = (float)(1 - beta2);
    return s;
}

/* The list's next part, in blocks of its own. */
void part_add(adamw_list *list, const gr_adamw_range *range, unsigned *n_block) {
    list->part[list->n++] = {range->first, range->n, *n_block, range->decay ? 1 : 0};
    *n_block += gr_blocks(range->n, ADAMW_CHUNK);
}

template <typename T> int launch_adamw(cudaStream_t stream, const gr_adamw *a) {
    const adamw_arrays arrays = {a->p, a->m, a->v, a->g, a->p_act, a->decision, a->eps};
    const adamw_rates rates = rates_of(a);
    const bool wide = gr_is_aligned16(a->p) && gr_is_aligned16(a->m) && gr_is_aligned16(a->v) &&
                      gr_is_aligned16(a->g) && (uintptr_t)a->p_act % (4 * sizeof(T)) == 0;
    for (int64_t r = 0; r < a->n_range;) {
        adamw_list list;
        unsigned n_block = 0;
        for (list.n = 0; list.n < ADAMW_RANGES && r < a->n_range; r++)
            if (a->range[r].n > 0)
                part_add(&list, &a->range[r], &n_block);
        if (n_block == 0)
            continue;
        if (wide)
            adamw<T, 4><<<n_block, THREADS, 0, stream>>>(arrays, rates, list);
        else
            adamw<T, 1><<<n_block, THREADS, 0, stream>>>(arrays, rates, list);
    }
    return gr_launched();
}

bool ranges_fit(const gr_adamw *a) {
    for (int64_t r = 0; r < a->n_range; r++) {
        const gr_adamw_range *range = &a->range[r];
        if (range->first < 0 || range->first % GR_ADAMW_ALIGN || range->n < 0 || range->n > a->n - range->first)
            return false;
    }
    return true;
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
    if (a->n < 0 || a->n > N_MAX || !gr_is_act(dtype) || !a->p_act != (dtype == GR_F32) || !ranges_fit(a))
        return cudaErrorInvalidValue;
    const cudaStream_t queue = (cudaStream_t)stream;
    return dtype == GR_BF16 ? launch_adamw<gr_bf16>(queue, a) : launch_adamw<float>(queue, a);
}

int gr_kernel_decide(void *stream, const gr_decide *a) {
    decide_one<<<1, 1, 0, (cudaStream_t)stream>>>(*a);
    return gr_launched();
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
