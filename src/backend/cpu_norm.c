/* cpu_norm.c: RMS norm over rows, and rotary embedding. */
#include "cpu_ops.h"

#include <math.h>
#include <string.h>

/* Rows whose weight gradients are summed into one partial sum: fixed, so the sum does not depend on the threads. */
#define ROWS_PER_PARTIAL 256

static void norm_row(const gr_norm *a, int64_t i) {
    const gr_act *x = (const gr_act *)a->x + i * a->ldx;
    gr_act *y = (gr_act *)a->y + i * a->ldy;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < a->width; j++)
        sum += gr_act_load(x[j]) * gr_act_load(x[j]);
    const float rstd = 1.0f / sqrtf(sum / (float)a->width + a->eps);
    a->rstd[i] = rstd;
#pragma omp simd
    for (int64_t j = 0; j < a->width; j++)
        y[j] = gr_act_store(gr_act_load(x[j]) * rstd * a->w[j]);
}

gr_err GR_CPU(norm_forward)(gr_backend *b, gr_lane lane, const gr_norm *a) {
    (void)b;
    (void)lane;
#pragma omp parallel for
    for (int64_t i = 0; i < a->n_row; i++)
        norm_row(a, i);
    return GR_OK;
}

/* dx may be dy: the row's only sum is taken before anything is written, and dw reads dy[j] before dx[j] is stored. */
static void norm_row_backward(const gr_norm *a, int64_t i, float *dw) {
    const gr_act *x = (const gr_act *)a->x + i * a->ldx;
    const gr_act *dy = (const gr_act *)a->dy + i * a->ldy;
    gr_act *dx = (gr_act *)a->dx + i * a->ldx;
    const float rstd = a->rstd[i];
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < a->width; j++)
        sum += a->w[j] * gr_act_load(dy[j]) * gr_act_load(x[j]);
    const float along = rstd * rstd * sum / (float)a->width;
    if (a->dx_write == GR_ACCUMULATE) {
#pragma omp simd
        for (int64_t j = 0; j < a->width; j++) {
            const float u = gr_act_load(x[j]), d = gr_act_load(dy[j]);
            dw[j] += d * u * rstd;
            dx[j] = gr_act_store(gr_act_load(dx[j]) + rstd * (a->w[j] * d - u * along));
        }
    } else {
#pragma omp simd
        for (int64_t j = 0; j < a->width; j++) {
            const float u = gr_act_load(x[j]), d = gr_act_load(dy[j]);
            dw[j] += d * u * rstd;
            dx[j] = gr_act_store(rstd * (a->w[j] * d - u * along));
        }
    }
}

gr_err GR_CPU(norm_backward)(gr_backend *b, gr_lane lane, const gr_norm *a) {
    (void)lane;
    const int64_t n_partial = (a->n_row + ROWS_PER_PARTIAL - 1) / ROWS_PER_PARTIAL;
    void *memory = NULL;
    GR_TRY(gr_cpu_scratch(b, (size_t)(n_partial * a->width) * sizeof(float), &memory));
    float *partial = memory;
#pragma omp parallel for
    for (int64_t p = 0; p < n_partial; p++) {
        const int64_t end = (p + 1) * ROWS_PER_PARTIAL;
        float *dw = partial + p * a->width;
        memset(dw, 0, (size_t)a->width * sizeof(float));
        for (int64_t i = p * ROWS_PER_PARTIAL; i < (end < a->n_row ? end : a->n_row); i++)
            norm_row_backward(a, i, dw);
    }
    for (int64_t p = 0; p < n_partial; p++)
        for (int64_t j = 0; j < a->width; j++)
            a->dw[j] += partial[p * a->width + j];
    return GR_OK;
}

static void rope_row(const gr_rope *a, int64_t row) {
    const int64_t half = a->head_dim / 2;
    const float *c = a->cosine + row % a->T * half, *s = a->sine + row % a->T * half;
    const float turn = a->inverse ? -1.0f : 1.0f;
    for (int64_t head = 0; head < a->n_head; head++) {
        gr_act *x1 = (gr_act *)a->x + row * a->ld + head * a->head_dim, *x2 = x1 + half;
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            const float u = gr_act_load(x1[i]), v = gr_act_load(x2[i]), sine = turn * s[i];
            x1[i] = gr_act_store(u * c[i] - v * sine);
            x2[i] = gr_act_store(v * c[i] + u * sine);
        }
    }
}

gr_err GR_CPU(rope)(gr_backend *b, gr_lane lane, const gr_rope *a) {
    (void)b;
    (void)lane;
#pragma omp parallel for
    for (int64_t row = 0; row < a->n_row; row++)
        rope_row(a, row);
    return GR_OK;
}
