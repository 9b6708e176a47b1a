/* cpu_head_norm.c: RMS norm and rotary embedding of the heads of q and k, in one pass. */
#include "cpu_ops.h"

#include <math.h>
#include <string.h>

/* Rows whose weight gradients are summed into one partial sum: fixed, so the sum does not depend on the threads. */
#define ROWS_PER_PARTIAL 64

/* Cosines and sines of a row's position; NULL where heads are not turned. */
typedef struct angles {
    const float *cosine, *sine;
} angles;

static angles angles_of(const gr_head_norm *a, int64_t row) {
    if (!a->cosine)
        return (angles){0};
    const int64_t at = row % a->T * (a->head_dim / 2);
    return (angles){a->cosine + at, a->sine + at};
}

static void forward_head(const gr_head_norm *a, angles angle, const gr_act *x, const float *w, float rstd, gr_act *y) {
    const int64_t half = a->head_dim / 2;
    const gr_act *x2 = x + half;
    const float *w2 = w + half, *c = angle.cosine, *s = angle.sine;
    gr_act *y2 = y + half;
#pragma omp simd
    for (int64_t i = c ? 2 * half : 0; i < a->head_dim; i++)
        y[i] = gr_act_store(gr_act_load(x[i]) * rstd * w[i]);
    if (!c)
        return;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float u = gr_act_load(x[i]) * rstd * w[i], v = gr_act_load(x2[i]) * rstd * w2[i];
        y[i] = gr_act_store(u * c[i] - v * s[i]);
        y2[i] = gr_act_store(v * c[i] + u * s[i]);
    }
}

static void forward_row(const gr_head_norm *a, int64_t row) {
    const int64_t n_head = a->n_q + a->n_k;
    const angles angle = angles_of(a, row);
    for (int64_t head = 0; head < n_head; head++) {
        const gr_act *x = (const gr_act *)a->x + row * a->ldx + head * a->head_dim;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < a->head_dim; i++)
            sum += gr_act_load(x[i]) * gr_act_load(x[i]);
        const float rstd = 1.0f / sqrtf(sum / (float)a->head_dim + a->eps);
        a->rstd[row * n_head + head] = rstd;
        forward_head(
            a, angle, x, head < a->n_q ? a->wq : a->wk, rstd, (gr_act *)a->y + row * a->ldy + head * a->head_dim);
    }
}

gr_err GR_CPU(head_norm_forward)(gr_backend *b, gr_lane lane, const gr_head_norm *a) {
    (void)b;
    (void)lane;
#pragma omp parallel for
    for (int64_t row = 0; row < a->n_row; row++)
        forward_row(a, row);
    return GR_OK;
}

/* d[head_dim] := dy turned back. */
static void turn_back(int64_t head_dim, angles angle, const gr_act *dy, float *d) {
    const int64_t half = head_dim / 2;
    const gr_act *dy2 = dy + half;
    const float *c = angle.cosine, *s = angle.sine;
    float *d2 = d + half;
#pragma omp simd
    for (int64_t i = c ? 2 * half : 0; i < head_dim; i++)
        d[i] = gr_act_load(dy[i]);
    if (!c)
        return;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float u = gr_act_load(dy[i]), v = gr_act_load(dy2[i]);
        d[i] = u * c[i] + v * s[i];
        d2[i] = v * c[i] - u * s[i];
    }
}

/* dx may be where d comes from: nothing of the head's dy is read any more. */
static void backward_head(
    int64_t head_dim, const gr_act *x, const float *w, float rstd, const float *d, float *dw, gr_act *dx) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < head_dim; i++) {
        const float u = gr_act_load(x[i]);
        dw[i] += d[i] * u * rstd;
        sum += w[i] * d[i] * u;
    }
    const float along = rstd * rstd * sum / (float)head_dim;
#pragma omp simd
    for (int64_t i = 0; i < head_dim; i++)
        dx[i] = gr_act_store(rstd * (w[i] * d[i] - gr_act_load(x[i]) * along));
}

/* room [3, head_dim]: this partial sum's dwq and dwk, and one head's dy turned back. */
static void backward_row(const gr_head_norm *a, int64_t row, float *room) {
    const int64_t n_head = a->n_q + a->n_k, width = a->head_dim;
    const angles angle = angles_of(a, row);
    float *d = room + 2 * width;
    for (int64_t head = 0; head < n_head; head++) {
        const bool query = head < a->n_q;
        const int64_t x = row * a->ldx + head * width;
        turn_back(width, angle, (const gr_act *)a->dy + row * a->ldy + head * width, d);
        backward_head(width, (const gr_act *)a->x + x, query ? a->wq : a->wk, a->rstd[row * n_head + head], d,
            query ? room : room + width, (gr_act *)a->dx + x);
    }
}

gr_err GR_CPU(head_norm_backward)(gr_backend *b, gr_lane lane, const gr_head_norm *a) {
    (void)lane;
    const int64_t n_partial = (a->n_row + ROWS_PER_PARTIAL - 1) / ROWS_PER_PARTIAL, width = a->head_dim;
    void *memory = NULL;
    GR_TRY(gr_cpu_scratch(b, (size_t)(n_partial * 3 * width) * sizeof(float), &memory));
    float *room = memory;
#pragma omp parallel for
    for (int64_t p = 0; p < n_partial; p++) {
        const int64_t end = (p + 1) * ROWS_PER_PARTIAL;
        float *own = room + p * 3 * width;
        memset(own, 0, (size_t)(2 * width) * sizeof *own);
        for (int64_t row = p * ROWS_PER_PARTIAL; row < (end < a->n_row ? end : a->n_row); row++)
            backward_row(a, row, own);
    }
    for (int64_t p = 0; p < n_partial; p++) {
        const float *own = room + p * 3 * width;
        for (int64_t i = 0; a->n_q > 0 && i < width; i++)
            a->dwq[i] += own[i];
        for (int64_t i = 0; a->n_k > 0 && i < width; i++)
            a->dwk[i] += own[width + i];
    }
    return GR_OK;
}
