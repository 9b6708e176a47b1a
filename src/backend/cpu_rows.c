/* cpu_rows.c: rows moved and summed by index: gather, sums of a plan, embedding. */
#include "cpu_ops.h"

#include <string.h>

/* Columns of a row that are summed together. */
#define SUM_PART 2048

gr_err GR_CPU(gather_rows)(gr_backend *b, gr_lane lane, const gr_gather *a) {
    (void)b;
    (void)lane;
    const gr_act *in = a->in;
    gr_act *out = a->out;
#pragma omp parallel for
    for (int64_t r = 0; r < a->n_row; r++)
        memcpy(out + r * a->width, in + (int64_t)a->index[r] * a->width, (size_t)a->width * sizeof(gr_act));
    return GR_OK;
}

static void add_part(int64_t n, const gr_act *x, float *sum) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++)
        sum[j] += gr_act_load(x[j]);
}

/* Columns [first, first + n) of row r. They are summed as floats in the first-level cache, so one pass per term is no
 * slower than one pass over all, and rounded once. */
static void sum_part(const gr_sum *a, int64_t r, int64_t first, int64_t n) {
    gr_act *out = (gr_act *)a->out + r * a->width + first;
    const gr_act *base = a->base ? (const gr_act *)a->base + r * a->width + first : NULL;
    float room[SUM_PART], *sum = gr_act_floats(out, room);
#pragma omp simd
    for (int64_t j = 0; j < n; j++)
        sum[j] = base ? gr_act_load(base[j]) : 0;
    for (int s = 0; s < 2; s++) {
        const gr_act *source = a->source[s];
        for (uint32_t j = source ? a->offset[s][r] : 0; source && j < a->offset[s][r + 1]; j++)
            add_part(n, source + (int64_t)a->index[s][j] * a->width + first, sum);
    }
    gr_act_round(n, sum, out);
}

gr_err GR_CPU(sum_rows)(gr_backend *b, gr_lane lane, const gr_sum *a) {
    (void)b;
    (void)lane;
#pragma omp parallel for
    for (int64_t r = 0; r < a->n_row; r++)
        for (int64_t first = 0; first < a->width; first += SUM_PART)
            sum_part(a, r, first, a->width - first < SUM_PART ? a->width - first : SUM_PART);
    return GR_OK;
}

gr_err GR_CPU(embed_forward)(gr_backend *b, gr_lane lane, const gr_embed *a) {
    gr_gather gather = {.n_row = a->n, .width = a->width, .in = a->table, .index = a->id, .out = a->out};
    return GR_CPU(gather_rows)(b, lane, &gather);
}

/* Each share owns the ids equal to it modulo n_share and walks all tokens in order: a row's sum has one owner and one
 * order whatever the number of shares, and frequent neighbouring ids (letters) spread evenly. */
gr_err GR_CPU(embed_backward)(gr_backend *b, gr_lane lane, const gr_embed *a) {
    (void)lane;
    const gr_act *dout = a->dout;
    const uint32_t n_share = (uint32_t)((const gr_cpu *)b->state)->n_thread;
#pragma omp parallel for
    for (uint32_t share = 0; share < n_share; share++) {
        for (int64_t i = 0; i < a->n; i++) {
            if (a->id[i] % n_share != share)
                continue;
            float *sum = a->dtable + (int64_t)a->id[i] * a->width;
#pragma omp simd
            for (int64_t j = 0; j < a->width; j++)
                sum[j] += gr_act_load(dout[i * a->width + j]);
        }
    }
    return GR_OK;
}
