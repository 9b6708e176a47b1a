/* cpu_gates.c: learned gates on their way between rows and pairs: fp32 whatever activations are. */
#include "cpu.h"

#include <string.h>

gr_err gr_cpu_pair_gates_forward(gr_backend *b, gr_lane lane, const gr_pair_gates *a) {
    (void)b;
    (void)lane;
#pragma omp parallel for
    for (int64_t p = 0; p < a->n_pair; p++)
        a->pair_gate[p] = a->gate[(int64_t)a->pair_row[p] * a->K + a->pair_slot[p]];
    return GR_OK;
}

gr_err gr_cpu_pair_gates_backward(gr_backend *b, gr_lane lane, const gr_pair_gates *a) {
    (void)b;
    (void)lane;
    memset(a->dgate, 0, (size_t)(a->n_row * a->K) * sizeof *a->dgate);
#pragma omp parallel for
    for (int64_t p = 0; p < a->n_pair; p++)
        a->dgate[(int64_t)a->pair_row[p] * a->K + a->pair_slot[p]] = a->dpair_gate[p];
    return GR_OK;
}

gr_err gr_cpu_gather_f32(gr_backend *b, gr_lane lane, const gr_gather *a) {
    (void)b;
    (void)lane;
    const float *in = a->in;
    float *out = a->out;
#pragma omp parallel for
    for (int64_t r = 0; r < a->n_row; r++)
        memcpy(out + r * a->width, in + (int64_t)a->index[r] * a->width, (size_t)a->width * sizeof *out);
    return GR_OK;
}

/* Column by column, so that a sum stays in a register: these rows are K wide. */
static void sum_row(const gr_sum *a, int64_t r) {
    const float *base = a->base;
    float *out = a->out;
    for (int64_t j = 0; j < a->width; j++) {
        float sum = base ? base[r * a->width + j] : 0;
        for (int s = 0; s < 2; s++) {
            const float *source = a->source[s];
            for (uint32_t i = source ? a->offset[s][r] : 0; source && i < a->offset[s][r + 1]; i++)
                sum += source[(int64_t)a->index[s][i] * a->width + j];
        }
        out[r * a->width + j] = sum;
    }
}

gr_err gr_cpu_sum_f32(gr_backend *b, gr_lane lane, const gr_sum *a) {
    (void)b;
    (void)lane;
#pragma omp parallel for
    for (int64_t r = 0; r < a->n_row; r++)
        sum_row(a, r);
    return GR_OK;
}
