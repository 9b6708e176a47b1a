/* divergence.cu: how far a student's scores are from a teacher's.
 *
 *   d_i = t^2 sum_e p_e (ln p_e - ln q_e),  p = softmax(teacher/t), q = softmax(student/t);  *loss_sum += sum_i d_i
 *   dstudent = scale t (q - p)
 *
 * Shapes and layout: teacher, student, dstudent fp32 [n,E] packed; dstudent may be student: an element is written by
 * the lane that read it, after both normalisers are complete. In double: near the end of a distillation the two are
 * so close that fp32 would lose what is left. ln p is (z - largest)/t - log sum, never largest + log sum: large
 * scores would swallow the log.
 * Order: doubles, a lane every 32nd score, then gr_warp_sum; a number per token, summed by gr_kernel_sum_tokens.
 * Grid: a warp per token, 8 a block: E is 8 to a few hundred. Bytes: 8 n E (three times, twice from the first-level
 * cache), 4 n E of gradient. Flops: 4 exponentials in double per score. Limit: n < 2^34.
 * No tokens: nothing is launched, loss_sum keeps its value. CPU: cpu_divergence.c.
 * Measured (kernels.h): 109 us (N 32768, E 128), 0.46 TB/s. */
#include "kernels/warp.cuh"

namespace {

constexpr int ROWS = 8; /* warps of a block */

/* ln softmax(z/t)_e = (z_e - largest) / t - log_sum */
typedef struct normaliser {
    double largest, log_sum;
} normaliser;

__device__ normaliser normaliser_of(const float *z, int64_t E, double t, int lane) {
    float largest = -INFINITY;
    for (int64_t e = lane; e < E; e += GR_WARP)
        largest = fmaxf(largest, z[e]);
    largest = gr_warp_max(largest);
    double sum = 0;
    for (int64_t e = lane; e < E; e += GR_WARP)
        sum += exp(((double)z[e] - (double)largest) / t);
    return {(double)largest, log(gr_warp_sum(sum))};
}

__device__ __forceinline__ double log_share(const normaliser &n, double t, float z) {
    return ((double)z - n.largest) / t - n.log_sum;
}

__global__ void __launch_bounds__(GR_WARP *ROWS) divergences(gr_divergence a, double *loss) {
    const int lane = (int)threadIdx.x;
    const int64_t i = (int64_t)blockIdx.x * ROWS + threadIdx.y;
    if (i >= a.n)
        return;
    const double t = (double)a.temperature;
    const float *teacher = a.teacher + i * a.E, *student = a.student + i * a.E;
    const normaliser of_p = normaliser_of(teacher, a.E, t, lane), of_q = normaliser_of(student, a.E, t, lane);
    double sum = 0;
    for (int64_t e = lane; e < a.E; e += GR_WARP) {
        const double ln_p = log_share(of_p, t, teacher[e]), ln_q = log_share(of_q, t, student[e]), p = exp(ln_p);
        if (p > 0) /* p ln p -> 0 */
            sum += p * (ln_p - ln_q);
        if (a.dstudent)
            a.dstudent[i * a.E + e] = (float)((double)a.scale * t * (exp(ln_q) - p));
    }
    sum = gr_warp_sum(sum);
    if (lane == 0)
        loss[i] = t * t * sum;
}

} // namespace

int gr_kernel_divergence(void *stream, const gr_divergence *a, void *scratch) {
    if (a->n < 0 || a->n > (int64_t)ROWS * 0x7fffffff || a->E <= 0)
        return cudaErrorInvalidValue;
    if (a->n == 0)
        return 0;
    double *loss = (double *)scratch;
    divergences<<<gr_blocks(a->n, ROWS), dim3(GR_WARP, ROWS), 0, (cudaStream_t)stream>>>(*a, loss);
    const int failed = gr_launched();
    return failed ? failed : gr_kernel_sum_tokens(stream, loss, a->n, 1, a->loss_sum);
}
