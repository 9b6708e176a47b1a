/* cpu_adamw.c: the optimizer's pass over flat ranges, and the rounding of the weights it keeps. */
#include "cpu_ops.h"

#include <math.h>

/* Elements that are rounded while they are still in the first-level cache. */
#define BLOCK 2048

gr_err GR_CPU(round_weights)(gr_backend *b, gr_lane lane, const float *from, void *to, int64_t n) {
    (void)b;
    (void)lane;
    gr_act *act = to;
#pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++)
        act[i] = gr_act_store(from[i]);
    return GR_OK;
}

/* lr mhat / (sqrt(vhat) + eps) with mhat = m/c1, vhat = v/c2: c1 goes into the rate and sqrt(c2) into the root. */
static void update(const gr_adamw *a, gr_adamw_range range) {
    const float rate = (float)((double)a->lr / (1 - pow((double)a->beta1, (double)a->step)));
    const float root = (float)(1 / sqrt(1 - pow((double)a->beta2, (double)a->step)));
    const float keep = (float)(1 - (double)a->lr * (range.decay ? (double)a->weight_decay : 0));
    const float beta1 = a->beta1, rest1 = (float)(1 - (double)beta1), beta2 = a->beta2,
                rest2 = (float)(1 - (double)beta2), scale = a->decision->grad_scale;
    float *p = a->p, *m = a->m, *v = a->v;
    const int64_t range_end = range.first + range.n;
#pragma omp parallel for
    for (int64_t first = range.first; first < range_end; first += BLOCK) {
        const int64_t end = first + BLOCK < range_end ? first + BLOCK : range_end;
#pragma omp simd
        for (int64_t i = first; i < end; i++) {
            const float g = a->g[i] * scale;
            m[i] = beta1 * m[i] + rest1 * g;
            v[i] = beta2 * v[i] + rest2 * g * g;
            p[i] = keep * p[i] - rate * m[i] / (sqrtf(v[i]) * root + a->eps);
        }
        if (a->p_act)
            gr_act_round(end - first, p + first, (gr_act *)a->p_act + first);
    }
}

gr_err GR_CPU(adamw)(gr_backend *b, gr_lane lane, const gr_adamw *a) {
    (void)b;
    (void)lane;
    GR_ASSERT(!a->p_act == !GR_ACT_ROOM, "a copy of the weights is kept where they are not stored as fp32, only there");
    if (a->decision->skipped)
        return GR_OK;
    for (int64_t r = 0; r < a->n_range; r++)
        update(a, a->range[r]);
    return GR_OK;
}
