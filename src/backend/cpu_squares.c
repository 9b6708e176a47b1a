/* cpu_squares.c: sum of squares, for the gradient norm, and what is decided by it. */
#include "cpu.h"

#include <float.h>
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

gr_err gr_cpu_decide(gr_backend *b, gr_lane lane, const gr_decide *a) {
    (void)b;
    (void)lane;
    const double norm = sqrt(*a->squares), scale = a->clip > 0 && norm > a->clip ? a->clip / norm : 1;
    const double applied = scale * norm;
    const bool proceeds = applied * applied <= (double)FLT_MAX && isfinite(*a->loss); /* NaN fails both */
    *a->out = (gr_decision){.norm = norm, .grad_scale = (float)scale, .skipped = !proceeds};
    return GR_OK;
}
