/* sums.cu: sums that end an op: of partial sums of rows, and of a number per token.
 *
 *   partials  out[j] += sum_p partial[p,j]              n_partial rows of ld floats, `width` of them summed
 *   tokens    *out += factor * sum_i x[i]               doubles
 *
 * Order. Partials: GR_PARTIAL_PARTS parts of neighbours, each summed from its first on, then the parts from the
 * first on. Tokens: GR_SUM_PARTS parts of neighbours likewise. Neither depends on the device.
 * Grid. Partials: a block per 32 columns, of 32 x 32 threads: x is the column, so that a warp reads lines, y the
 * part, so that a thread has at most GR_PARTIAL_MAX / 32 = 32 loads one after the other. Tokens: one block of 1024
 * threads: a token's number is 8 bytes, 32,768 of them 256 KiB, a few microseconds.
 * Bytes: 4 n_partial width, 8 n. No partials, no tokens: nothing is launched, out keeps its value.
 * CPU: the last loops of cpu_norm.c, cpu_layer_norm.c, cpu_loss.c, cpu_router.c, cpu_divergence.c.
 * Measured (kernels.h): sum_squares 1.43 TB/s; the others are in the times of their ops. */
#include "kernels/warp.cuh"

namespace {

constexpr int COLUMNS = 32;
constexpr int PARTS = GR_PARTIAL_PARTS;

__global__ void __launch_bounds__(COLUMNS *PARTS)
    partials(const float *partial, int64_t n_partial, int64_t ld, int64_t width, float *out) {
    __shared__ float of_part[PARTS][COLUMNS];
    const int64_t column = (int64_t)blockIdx.x * COLUMNS + threadIdx.x;
    const int64_t each = gr_ceil_div(n_partial, PARTS), first = threadIdx.y * each;
    const int64_t end = gr_at_most(first + each, n_partial);
    float sum = 0;
    if (column < width) {
#pragma unroll 8
        for (int64_t p = first; p < end; p++)
            sum += partial[p * ld + column];
    }
    of_part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= width)
        return;
    for (int y = 1; y < PARTS; y++)
        sum += of_part[y][threadIdx.x];
    out[column] += sum;
}

__global__ void __launch_bounds__(GR_SUM_PARTS) tokens(const double *x, int64_t n, double factor, double *out) {
    __shared__ double of_part[GR_SUM_PARTS];
    const int64_t each = gr_sum_each(n), first = threadIdx.x * each, end = gr_at_most(first + each, n);
    double sum = 0;
    for (int64_t i = first; i < end; i++)
        sum += x[i];
    of_part[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x > 0)
        return;
    for (int t = 1; t < GR_SUM_PARTS; t++)
        sum += of_part[t];
    *out += factor * sum;
}

} // namespace

int gr_partials_add(
    cudaStream_t stream, const float *partial, int64_t n_partial, int64_t ld, int64_t width, float *out) {
    if (n_partial == 0 || width == 0)
        return 0;
    partials<<<gr_blocks(width, COLUMNS), dim3(COLUMNS, PARTS), 0, stream>>>(partial, n_partial, ld, width, out);
    return gr_launched();
}

int gr_kernel_sum_tokens(void *stream, const double *x, int64_t n, double factor, double *out) {
    if (n < 0)
        return cudaErrorInvalidValue;
    if (n == 0)
        return 0;
    tokens<<<1, GR_SUM_PARTS, 0, (cudaStream_t)stream>>>(x, n, factor, out);
    return gr_launched();
}
