/* router.cu: the learned router of a layer.
 *
 *   forward   p = softmax(l), lse; the K largest logits or given experts; gates; counts by window; loads; both losses
 *   backward  dl_i = p_i (aux_scale (count_i - a) + 2 z_scale lse) + [i in S] g_i (dg_i - m / scale)
 *             with `normalise`,
 *             else ... + [i in S] g_i dg_i - p_i m,  with m = sum_S dg g and a = sum_i count_i p_i (backend.h)
 *
 * Shapes and layout: logits fp32 [n,E], made p in place; ids u16, gate fp32 [n,K]; count u32 [n/T,E]; load u64 [E];
 * loss double [2]; dlogits act [n,E].
 * Choice: the largest of all keys (logit, lower id first) below the last one, K times. Keys are integers in which -0
 * is 0 and NaN is below everything, so that any logits give K distinct experts; where there is no NaN it is the
 * CPU's choice.
 * Order: fp32, a lane every 32nd expert or gate, then gr_warp_sum; the softmax's and the balance's sum in double.
 * Counts are integer atomics: no order shows. Losses: a number per token, summed by gr_kernel_sum_tokens.
 * Grid: a warp per token, 8 a block: E is 32 to 512 in practice, 1 to 16 logits a lane; loads a thread per expert.
 * Bytes: forward 8 n E (again K times from the first-level cache to choose), losses 8 n E, backward 8 n E and an
 * element. Flops: about K E / 32 steps of a warp to choose. Limits: E <= 4096, K <= 64, n < 2^34.
 * No tokens: nothing is launched, load and loss keep their values. CPU: cpu_router.c.
 * Measured (kernels.h): forward 165 us, backward 32 us (N 32768, E 128, K 8). */
#include "kernels/warp.cuh"

namespace {

constexpr int ROWS = 8; /* warps of a block */
constexpr int K_MAX = 64, E_MAX = 4096, THREADS = 256;

__device__ __forceinline__ int64_t token_of_warp() {
    return (int64_t)blockIdx.x * ROWS + threadIdx.y;
}

/* ---------------------------------------------------------------- one token, forward */

/* Larger for the larger logit, then for the lower id. */
__device__ __forceinline__ unsigned long long key_of(float logit, uint32_t id) {
    const uint32_t bits = __float_as_uint(logit + 0.0f); /* -0 + 0 is 0 */
    const uint32_t rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (unsigned long long)(logit == logit ? rising : 0u) << 32 | (0xffffffffu - id);
}

/* The K largest of l[E] by ascending id. chosen: K_MAX ids of shared memory. */
__device__ void choose(const gr_router_op &a, int64_t t, int lane, uint32_t *chosen) {
    const float *l = a.p + t * a.E;
    const int E = (int)a.E, K = (int)a.K;
    unsigned long long last = ~0ull;
    for (int k = 0; k < K; k++) {
        unsigned long long best = 0;
        for (int i = lane; i < E; i += GR_WARP) {
            const unsigned long long key = key_of(l[i], (uint32_t)i);
            best = key < last && key > best ? key : best;
        }
        for (int apart = GR_WARP / 2; apart > 0; apart /= 2) {
            const unsigned long long other = __shfl_xor_sync(GR_ALL_LANES, best, apart);
            best = other > best ? other : best;
        }
        last = best;
        if (lane == 0)
            chosen[k] = 0xffffffffu - (uint32_t)best;
    }
    __syncwarp();
    for (int k = lane; k < K; k += GR_WARP) {
        int before = 0;
        for (int j = 0; j < K; j++)
            before += chosen[j] < chosen[k];
        a.ids[t * a.K + before] = (uint16_t)chosen[k];
    }
    __syncwarp();
}

/* g = scale * softmax of the chosen logits. */
__device__ void gates_of_chosen(const gr_router_op &a, int64_t t, int lane) {
    const float *l = a.p + t * a.E;
    const uint16_t *ids = a.ids + t * a.K;
    float *g = a.gate + t * a.K, largest = -INFINITY, sum = 0;
    for (int k = lane; k < a.K; k += GR_WARP)
        largest = fmaxf(largest, l[ids[k]]);
    largest = gr_warp_max(largest);
    for (int k = lane; k < a.K; k += GR_WARP) {
        const float e = expf(l[ids[k]] - largest);
        g[k] = e;
        sum += e;
    }
    const float factor = a.scale / gr_warp_sum(sum);
    for (int k = lane; k < a.K; k += GR_WARP)
        g[k] *= factor;
    __syncwarp(); /* the logits are overwritten next */
}

/* The token's logits to their softmax; its log-sum-exp. */
__device__ void softmax(const gr_router_op &a, int64_t t, int lane) {
    float *l = a.p + t * a.E, largest = -INFINITY;
    double sum = 0;
    for (int i = lane; i < a.E; i += GR_WARP)
        largest = fmaxf(largest, l[i]);
    largest = gr_warp_max(largest);
    for (int i = lane; i < a.E; i += GR_WARP) {
        const float e = expf(l[i] - largest);
        l[i] = e;
        sum += (double)e;
    }
    sum = gr_warp_sum(sum);
    const float factor = (float)(1 / sum);
    for (int i = lane; i < a.E; i += GR_WARP)
        l[i] *= factor;
    if (lane == 0)
        a.lse[t] = (float)((double)largest + log(sum));
    __syncwarp(); /* the gates read what other lanes wrote */
}

__global__ void __launch_bounds__(GR_WARP *ROWS) forward(gr_router_op a) {
    __shared__ uint32_t chosen[ROWS][K_MAX];
    const int lane = (int)threadIdx.x;
    const int64_t t = token_of_warp();
    if (t >= a.n)
        return;
    if (a.choice == GR_CHOICE_TOP_K)
        choose(a, t, lane, chosen[threadIdx.y]);
    if (a.normalise)
        gates_of_chosen(a, t, lane);
    softmax(a, t, lane);
    if (a.normalise)
        return;
    for (int k = lane; k < a.K; k += GR_WARP)
        a.gate[t * a.K + k] = a.scale * a.p[t * a.E + a.ids[t * a.K + k]];
}

/* ---------------------------------------------------------------- windows */

__global__ void count(gr_router_op a) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < a.n * a.K)
        atomicAdd(&a.count[i / (a.T * a.K) * a.E + a.ids[i]], 1u);
}

__global__ void add_load(gr_router_op a) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= a.E)
        return;
    uint64_t sum = 0;
    for (int64_t w = 0; w < a.n / a.T; w++)
        sum += a.count[w * a.E + i];
    a.load[i] += sum;
}

/* sum_i count_i p_ti, to all lanes. */
__device__ double balance(const gr_router_op &a, int64_t t, int lane) {
    const float *p = a.p + t * a.E;
    const uint32_t *of_window = a.count + t / a.T * a.E;
    double sum = 0;
    for (int i = lane; i < a.E; i += GR_WARP)
        sum += (double)of_window[i] * (double)p[i];
    return gr_warp_sum(sum);
}

/* What a token adds to both losses, without their scales. */
__global__ void __launch_bounds__(GR_WARP *ROWS) token_losses(gr_router_op a, double *aux, double *z) {
    const int64_t t = token_of_warp();
    if (t >= a.n)
        return;
    const double sum = balance(a, t, (int)threadIdx.x);
    if (threadIdx.x > 0)
        return;
    aux[t] = sum;
    z[t] = (double)a.lse[t] * (double)a.lse[t];
}

/* ---------------------------------------------------------------- backward */

template <typename A> __global__ void __launch_bounds__(GR_WARP *ROWS) backward(gr_router_op a) {
    const int lane = (int)threadIdx.x;
    const int64_t t = token_of_warp();
    if (t >= a.n)
        return;
    const float *p = a.p + t * a.E, *g = a.gate + t * a.K, *dg = a.dgate + t * a.K;
    const uint16_t *ids = a.ids + t * a.K;
    const uint32_t *of_window = a.count + t / a.T * a.E;
    A *dl = (A *)a.dlogits + t * a.E;
    float mean = 0; /* of dgate over the gates, times their sum */
    for (int k = lane; k < a.K; k += GR_WARP)
        mean += dg[k] * g[k];
    mean = gr_warp_sum(mean);
    const float aux = (float)a.aux_scale;
    const double even = a.aux_scale != 0 ? a.aux_scale * balance(a, t, lane) : 0;
    float all = (float)(2 * a.z_scale * (double)a.lse[t] - even);
    all -= a.normalise ? 0 : mean;
    for (int i = lane; i < a.E; i += GR_WARP)
        dl[i] = gr_act_store<A>(p[i] * (aux * (float)of_window[i] + all));
    __syncwarp(); /* those of the chosen are written again, rounded once */
    for (int k = lane; k < a.K; k += GR_WARP) {
        const int i = ids[k];
        const float chosen = g[k] * (dg[k] - (a.normalise ? mean / a.scale : 0));
        dl[i] = gr_act_store<A>(p[i] * (aux * (float)of_window[i] + all) + chosen);
    }
}

/* ---------------------------------------------------------------- launching */

bool is_router(const gr_router_op *a) {
    return a->n >= 0 && a->T > 0 && a->n % a->T == 0 && a->E > 0 && a->E <= E_MAX && a->K > 0 && a->K <= K_MAX &&
           a->K <= a->E && a->n <= (int64_t)ROWS * 0x7fffffff;
}

int count_windows(cudaStream_t stream, const gr_router_op *a) {
    const cudaError_t zeroed = cudaMemsetAsync(a->count, 0, (size_t)(a->n / a->T * a->E) * sizeof *a->count, stream);
    if (zeroed)
        return zeroed;
    count<<<gr_blocks(a->n * a->K, THREADS), THREADS, 0, stream>>>(*a);
    if (a->load)
        add_load<<<gr_blocks(a->E, THREADS), THREADS, 0, stream>>>(*a);
    return gr_launched();
}

int add_losses(cudaStream_t stream, const gr_router_op *a, double *aux) {
    double *z = aux + a->n;
    token_losses<<<gr_blocks(a->n, ROWS), dim3(GR_WARP, ROWS), 0, stream>>>(*a, aux, z);
    int failed = gr_launched();
    if (!failed)
        failed = gr_kernel_sum_tokens(stream, aux, a->n, a->aux_scale, &a->loss[0]);
    return failed ? failed : gr_kernel_sum_tokens(stream, z, a->n, a->z_scale, &a->loss[1]);
}

template <typename A> int launch_backward(cudaStream_t stream, const gr_router_op *a) {
    backward<A><<<gr_blocks(a->n, ROWS), dim3(GR_WARP, ROWS), 0, stream>>>(*a);
    return gr_launched();
}

} // namespace

int gr_kernel_router_forward(void *stream, const gr_router_op *a, void *scratch) {
    if (!is_router(a) || a->n * a->K > (int64_t)THREADS * 0x7fffffff)
        return cudaErrorInvalidValue;
    if (a->n == 0)
        return 0;
    const cudaStream_t queue = (cudaStream_t)stream;
    forward<<<gr_blocks(a->n, ROWS), dim3(GR_WARP, ROWS), 0, queue>>>(*a);
    int failed = gr_launched();
    if (!failed)
        failed = count_windows(queue, a);
    return failed || !a->loss ? failed : add_losses(queue, a, (double *)scratch);
}

int gr_kernel_router_backward(void *stream, gr_dtype dtype, const gr_router_op *a) {
    if (!gr_is_act(dtype) || !is_router(a))
        return cudaErrorInvalidValue;
    if (a->n == 0)
        return 0;
    return dtype == GR_BF16 ? launch_backward<gr_bf16>((cudaStream_t)stream, a)
                            : launch_backward<float>((cudaStream_t)stream, a);
}
