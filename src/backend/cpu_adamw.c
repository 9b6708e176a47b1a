/* cpu_adamw.c: the optimizer's passes over flat ranges: sum of squares and AdamW. */
#include "cpu.h"

#include <math.h>

/* Elements per partial sum, fixed: the total does not depend on the threads. */
#define SQUARES_BLOCK 16384

gr_err gr_cpu_sum_squares(gr_backend *b, gr_lane lane, const float *x, int64_t n, double *out) {
    (void)lane;
    const int64_t n_block = (n + SQUARES_BLOCK - 1) / SQUARES_BLOCK;
    void *memory = NULL;
    GR_TRY(gr_cpu_scratch(b, (size_t)n_block * sizeof(double), &memory));
    double *partial = memory;
#pragma omp parallel for
    for (int64_t block = 0; block < n_block; block++) {
        const int64_t end = (block + 1) * SQUARES_BLOCK < n ? (block + 1) * SQUARES_BLOCK : n;
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = block * SQUARES_BLOCK; i < end; i++)
            sum += (double)x[i] * (double)x[i];
        partial[block] = sum;
    }
    for (int64_t block = 0; block < n_block; block++)
        *out += partial[block];
    return GR_OK;
}

/* lr mhat / (sqrt(vhat) + eps) with mhat = m/c1, vhat = v/c2: c1 goes into the rate and sqrt(c2) into the root. */
gr_err gr_cpu_adamw(gr_backend *b, gr_lane lane, const gr_adamw *a) {
    (void)b;
    (void)lane;
    GR_ASSERT(!a->p_act, "weights are stored as fp32: no copy to refresh");
    const float rate = (float)((double)a->lr / (1 - pow((double)a->beta1, (double)a->step)));
    const float root = (float)(1 / sqrt(1 - pow((double)a->beta2, (double)a->step)));
    const float keep = (float)(1 - (double)a->lr * (double)a->weight_decay);
    const float beta1 = a->beta1, rest1 = (float)(1 - (double)beta1), beta2 = a->beta2,
                rest2 = (float)(1 - (double)beta2);
    float *p = a->p, *m = a->m, *v = a->v;
#pragma omp parallel for simd
    for (int64_t i = 0; i < a->n; i++) {
        const float g = a->g[i] * a->grad_scale;
        m[i] = beta1 * m[i] + rest1 * g;
        v[i] = beta2 * v[i] + rest2 * g * g;
        p[i] = keep * p[i] - rate * m[i] / (sqrtf(v[i]) * root + a->eps);
    }
    return GR_OK;
}
