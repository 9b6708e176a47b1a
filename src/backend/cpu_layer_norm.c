/* cpu_layer_norm.c: layer norm with ReLU and an optional residual: one layer of a context-free Grouter after its
 * product. */
#include "cpu_ops.h"

#include <math.h>
#include <string.h>

/* Rows whose parameter gradients are summed into one partial sum: fixed, so the sum does not depend on the threads. */
#define ROWS_PER_PARTIAL 256

/* A NaN passes. */
static inline float relu(float v) {
    return v <= 0 ? 0 : v;
}

static void forward_row(const gr_layer_norm *a, int64_t i) {
    const gr_act *x = (const gr_act *)a->x + i * a->width;
    const gr_act *residual = a->residual ? (const gr_act *)a->residual + i * a->width : NULL;
    gr_act *y = (gr_act *)a->y + i * a->width;
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < a->width; j++)
        sum += gr_act_load(x[j]);
    const float mean = sum / (float)a->width;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < a->width; j++)
        squares += (gr_act_load(x[j]) - mean) * (gr_act_load(x[j]) - mean);
    const float rstd = 1.0f / sqrtf(squares / (float)a->width + a->eps);
    a->mean[i] = mean;
    a->rstd[i] = rstd;
    if (!residual) {
#pragma omp simd
        for (int64_t j = 0; j < a->width; j++)
            y[j] = gr_act_store(relu((gr_act_load(x[j]) - mean) * rstd * a->w[j] + a->b[j]));
        return;
    }
#pragma omp simd
    for (int64_t j = 0; j < a->width; j++)
        y[j] = gr_act_store(relu((gr_act_load(x[j]) - mean) * rstd * a->w[j] + a->b[j]) + gr_act_load(residual[j]));
}

gr_err GR_CPU(layer_norm_forward)(gr_backend *b, gr_lane lane, const gr_layer_norm *a) {
    (void)b;
    (void)lane;
#pragma omp parallel for
    for (int64_t i = 0; i < a->n_row; i++)
        forward_row(a, i);
    return GR_OK;
}

/* dw[width] and db[width] are this partial sum's; wg[width] is room for w g, rounded once for the sum and for what is
 * compared with it: a row of one element has no gradient, not even a rounding error. */
static void backward_row(const gr_layer_norm *a, int64_t i, float *dw, float *db, float *wg) {
    const gr_act *x = (const gr_act *)a->x + i * a->width, *dy = (const gr_act *)a->dy + i * a->width;
    gr_act *dx = (gr_act *)a->dx + i * a->width;
    const float mean = a->mean[i], rstd = a->rstd[i];
    float sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (int64_t j = 0; j < a->width; j++) {
        const float n = (gr_act_load(x[j]) - mean) * rstd;
        const float g = n * a->w[j] + a->b[j] > 0 ? gr_act_load(dy[j]) : 0;
        dw[j] += g * n;
        db[j] += g;
        wg[j] = a->w[j] * g;
        sum += wg[j];
        along += wg[j] * n;
    }
    sum /= (float)a->width;
    along /= (float)a->width;
#pragma omp simd
    for (int64_t j = 0; j < a->width; j++) {
        const float n = (gr_act_load(x[j]) - mean) * rstd;
        dx[j] = gr_act_store(rstd * (wg[j] - sum - n * along));
    }
}

gr_err GR_CPU(layer_norm_backward)(gr_backend *b, gr_lane lane, const gr_layer_norm *a) {
    (void)lane;
    const int64_t n_partial = (a->n_row + ROWS_PER_PARTIAL - 1) / ROWS_PER_PARTIAL, each = 3 * a->width;
    void *memory = NULL;
    GR_TRY(gr_cpu_scratch(b, (size_t)(n_partial * each) * sizeof(float), &memory));
    float *partial = memory;
#pragma omp parallel for
    for (int64_t p = 0; p < n_partial; p++) {
        const int64_t end = (p + 1) * ROWS_PER_PARTIAL;
        float *dw = partial + p * each;
        memset(dw, 0, (size_t)each * sizeof(float));
        for (int64_t i = p * ROWS_PER_PARTIAL; i < (end < a->n_row ? end : a->n_row); i++)
            backward_row(a, i, dw, dw + a->width, dw + 2 * a->width);
    }
    for (int64_t p = 0; p < n_partial; p++)
        for (int64_t j = 0; j < a->width; j++) {
            a->dw[j] += partial[p * each + j];
            a->db[j] += partial[p * each + a->width + j];
        }
    return GR_OK;
}
