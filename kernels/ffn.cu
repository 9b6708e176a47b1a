/* ffn.cu: SwiGLU between an expert layer's products.
 *
 *   forward   a = g silu(h1) h3, silu(u) = u s, s = 1/(1 + exp(-u)), of each pair with its gate g (NULL: 1)
 *   backward  from da, with d = g da:  dh1 = d h3 (s + silu(h1) (1 - s)),  dh3 = d silu(h1)  in place of h1 and h3;
 *             a again as forward made it; dgate = <da, silu(h1) h3>
 *
 * Layout: h [n_pair, 2F], h1 before h3 in each row; a and da [n_pair, F]; packed rows. In fp32, rounded once.
 * Grid: a warp per pair, 8 pairs per block, all experts in one launch: only the products care which expert a row has.
 * Lanes take every 32nd unit of 16 bytes where the row's bytes and the arrays' addresses allow, else single elements;
 * dgate is each lane's sum over its units, in order, then the warp's sum: the same bits at every call.
 * Bytes per pair: forward 3F elements, backward 6F; about 10 and 20 flops for each of F, so memory decides.
 * Limit: n_pair < 2^34. No pairs: nothing is launched. CPU: cpu_ffn.c (swiglu_row, swiglu_row_backward).
 * Measured (kernels.h): in the library's way through experts, which reaches 273 TFLOP/s forward, 256 backward. */
#include "kernels/warp.cuh"

namespace {

constexpr int PAIRS = 8; /* warps of a block */
constexpr int64_t PAIRS_MAX = (int64_t)PAIRS * 0x7fffffff;

__device__ __forceinline__ int64_t pair_of_warp() {
    return (int64_t)blockIdx.x * PAIRS + threadIdx.y;
}

template <typename T, int N>
__global__ void __launch_bounds__(32 * PAIRS) forward(int64_t n_pair, int64_t F, const float *gate, const T *h, T *a) {
    const int64_t p = pair_of_warp();
    if (p >= n_pair)
        return;
    const float g = gate ? gate[p] : 1.0f;
    const T *h1 = h + p * 2 * F, *h3 = h1 + F;
    for (int64_t j = (int64_t)threadIdx.x * N; j < F; j += 32 * N) {
        float left[N], right[N], out[N];
        gr_load<N>(h1 + j, left);
        gr_load<N>(h3 + j, right);
        for (int i = 0; i < N; i++)
            out[i] = g * left[i] / (1.0f + expf(-left[i])) * right[i];
        gr_store<N>(a + p * F + j, out);
    }
}

/* h becomes dh: each lane reads the units that it then writes. */
template <typename T, int N>
__global__ void __launch_bounds__(32 * PAIRS)
    backward(int64_t n_pair, int64_t F, const float *gate, const T *da, T *h, T *a, float *dgate) {
    const int64_t p = pair_of_warp();
    if (p >= n_pair)
        return;
    const float g = gate ? gate[p] : 1.0f;
    T *h1 = h + p * 2 * F, *h3 = h1 + F;
    float sum = 0;
    for (int64_t j = (int64_t)threadIdx.x * N; j < F; j += 32 * N) {
        float left[N], right[N], in[N], out[N];
        gr_load<N>(h1 + j, left);
        gr_load<N>(h3 + j, right);
        gr_load<N>(da + p * F + j, in);
        for (int i = 0; i < N; i++) {
            const float u = left[i], v = right[i], d = g * in[i];
            const float sigmoid = 1.0f / (1.0f + expf(-u)), silu = u * sigmoid;
            out[i] = g * silu * v;
            sum += in[i] * silu * v;
            left[i] = d * v * (sigmoid + silu * (1.0f - sigmoid));
            right[i] = d * silu;
        }
        gr_store<N>(a + p * F + j, out);
        gr_store<N>(h1 + j, left);
        gr_store<N>(h3 + j, right);
    }
    sum = gr_warp_sum(sum); /* all lanes are here: p is the warp's */
    if (dgate && threadIdx.x == 0)
        dgate[p] = sum;
}

template <typename T, int N> void launch_forward(cudaStream_t stream, const gr_ffn *a) {
    forward<T, N><<<gr_blocks(a->n_pair, PAIRS), dim3(32, PAIRS), 0, stream>>>(
        a->n_pair, a->F, a->pair_gate, (const T *)a->h, (T *)a->a);
}

template <typename T, int N> void launch_backward(cudaStream_t stream, const gr_ffn *a) {
    backward<T, N><<<gr_blocks(a->n_pair, PAIRS), dim3(32, PAIRS), 0, stream>>>(
        a->n_pair, a->F, a->pair_gate, (const T *)a->da, (T *)a->h, (T *)a->a, a->dgate);
}

/* Whole units of 16 bytes in every row; da may be NULL. */
bool is_whole(gr_dtype dtype, const gr_ffn *a) {
    return a->F * (dtype == GR_BF16 ? 2 : 4) % 16 == 0 && gr_is_aligned16(a->h) && gr_is_aligned16(a->a) &&
           gr_is_aligned16(a->da);
}

bool is_ffn(gr_dtype dtype, const gr_ffn *a) {
    return a->n_pair >= 0 && a->n_pair <= PAIRS_MAX && a->F >= 0 && gr_is_act(dtype);
}

} // namespace

int gr_kernel_swiglu_forward(void *stream, gr_dtype dtype, const gr_ffn *a) {
    const cudaStream_t queue = (cudaStream_t)stream;
    if (!is_ffn(dtype, a))
        return cudaErrorInvalidValue;
    if (a->n_pair == 0 || a->F == 0)
        return 0;
    const bool whole = is_whole(dtype, a);
    if (dtype == GR_BF16)
        whole ? launch_forward<gr_bf16, 8>(queue, a) : launch_forward<gr_bf16, 1>(queue, a);
    else
        whole ? launch_forward<float, 4>(queue, a) : launch_forward<float, 1>(queue, a);
    return gr_launched();
}

int gr_kernel_swiglu_backward(void *stream, gr_dtype dtype, const gr_ffn *a) {
    const cudaStream_t queue = (cudaStream_t)stream;
    if (!is_ffn(dtype, a))
        return cudaErrorInvalidValue;
    if (a->n_pair == 0)
        return 0;
    const bool whole = is_whole(dtype, a);
    if (dtype == GR_BF16)
        whole ? launch_backward<gr_bf16, 8>(queue, a) : launch_backward<gr_bf16, 1>(queue, a);
    else
        whole ? launch_backward<float, 4>(queue, a) : launch_backward<float, 1>(queue, a);
    return gr_launched();
}
