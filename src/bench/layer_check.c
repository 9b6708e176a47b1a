/* layer_check.c: sampled results of a layer against loops in double, and norms of all of them. Whatever is random is
 * made again from its place, so that a rank can check sums over experts and tokens of others. */
#include "layer.h"

#include <math.h>
#include <stdlib.h>

enum { TOKENS = 3, ELEMENTS = 4, PAIRS_MAX = 2048 };

static double stored(const bench_experts *l, int stream, int64_t i, float scale) {
    return gr_bench_stored(l->backend->dtype, gr_bench_layer_key(l, stream), (uint64_t)i, scale);
}

static double w13(const bench_experts *l, int64_t e, int64_t i, int64_t d) {
    return stored(l, GR_LAYER_W13, (e * 2 * l->F + i) * l->D + d, gr_bench_w13_scale(l));
}

static double w2(const bench_experts *l, int64_t e, int64_t d, int64_t f) {
    return stored(l, GR_LAYER_W2, (e * l->D + d) * l->F + f, gr_bench_w2_scale(l));
}

/* Of token t, numbered over all ranks. */
static double x_of(const bench_experts *l, int64_t t, int64_t d) {
    return stored(l, GR_LAYER_X, t * l->D + d, 1);
}

static double dy_of(const bench_experts *l, int64_t t, int64_t d) {
    return stored(l, GR_LAYER_DY, t * l->D + d, 1);
}

/* ---------------------------------------------------------------- one token through one expert */

typedef struct token_room {
    double *x, *dy, *out, *dx; /* [D] */
    double *h, *dh;            /* [2F] */
    double *a, *da;            /* [F] */
} token_room;

static void add_expert(const bench_experts *l, const token_room *r, int64_t e, double gate) {
    const int64_t D = l->D, F = l->F;
#pragma omp parallel for
    for (int64_t i = 0; i < 2 * F; i++) {
        r->h[i] = 0;
        for (int64_t d = 0; d < D; d++)
            r->h[i] += w13(l, e, i, d) * r->x[d];
    }
    for (int64_t f = 0; f < F; f++) {
        r->a[f] = gate * gr_bench_silu(r->h[f]) * r->h[F + f];
        r->da[f] = 0;
    }
    for (int64_t d = 0; d < D; d++)
        for (int64_t f = 0; f < F; f++) {
            const double w = w2(l, e, d, f);
            r->out[d] += r->a[f] * w;
            r->da[f] += r->dy[d] * w;
        }
    for (int64_t f = 0; f < F; f++) {
        r->dh[f] = gate * r->da[f] * r->h[F + f] * gr_bench_silu_slope(r->h[f]);
        r->dh[F + f] = gate * r->da[f] * gr_bench_silu(r->h[f]);
    }
    for (int64_t i = 0; i < 2 * F; i++)
        for (int64_t d = 0; d < D; d++)
            r->dx[d] += r->dh[i] * w13(l, e, i, d);
}

static gr_err compare_row(bench_experts *l, const void *from, int64_t row, const double *expected, bench_error *e) {
    gr_backend *b = l->backend;
    const size_t n_byte = (size_t)l->D * b->elem_size;
    GR_TRY(b->download(b, GR_LANE_COMPUTE, l->staging, (const uint8_t *)from + (size_t)row * n_byte, n_byte));
    GR_TRY(b->sync(b));
    for (int64_t d = 0; d < l->D; d++)
        gr_bench_compare(e, gr_bench_get(b->dtype, l->staging, d), expected[d]);
    return GR_OK;
}

static gr_err check_token(bench_experts *l, const token_room *r, int64_t own, bench_error *of_out, bench_error *of_dx) {
    const bench_batch *b = &l->batch;
    const int64_t t = (int64_t)b->rank * l->N + own;
    for (int64_t d = 0; d < l->D; d++) {
        r->x[d] = x_of(l, t, d);
        r->dy[d] = dy_of(l, t, d);
        r->out[d] = r->dx[d] = 0;
    }
    for (uint32_t k = 0; k < b->K; k++) {
        const size_t slot = (size_t)t * b->K + k;
        if (b->gates[slot] > 0)
            add_expert(l, r, b->ids[slot], (double)b->gates[slot]);
    }
    GR_TRY(compare_row(l, l->out, own, r->out, of_out));
    return compare_row(l, l->dx, own, r->dx, of_dx);
}

static gr_err check_tokens(bench_experts *l, double *error) {
    bench_error of_out = {0}, of_dx = {0};
    const size_t D = (size_t)l->D, F = (size_t)l->F;
    void *memory;
    GR_TRY(gr_alloc(&memory, 4 * D + 6 * F, sizeof(double), "a token in double"));
    double *p = memory;
    const token_room r = {
        p, p + D, p + 2 * D, p + 3 * D, p + 4 * D, p + 4 * D + 2 * F, p + 4 * D + 4 * F, p + 4 * D + 5 * F};
    gr_err e = GR_OK;
    for (int64_t i = 0; i < TOKENS && !e; i++)
        e = check_token(l, &r, gr_bench_sample(i, TOKENS, l->N), &of_out, &of_dx);
    free(memory);
    *error = fmax(gr_bench_error_get(&of_out), gr_bench_error_get(&of_dx));
    return e;
}

/* ---------------------------------------------------------------- gradients of weights */

/* Token of a pair, numbered over all ranks. */
static int64_t token_of(const bench_experts *l, uint32_t pair) {
    const gr_plan *p = &l->plan.rows;
    const uint32_t row = p->pair_row[pair];
    return row < p->N ? (int64_t)p->rank * p->N + row : (int64_t)p->recv_token[row - p->N];
}

/* The slot with the most pairs that are not too many to sum up in double; else the one with the fewest. */
static uint32_t choose_slot(const bench_experts *l) {
    const uint32_t *offset = l->plan.rows.expert_offset;
    uint32_t best = 0;
    for (uint32_t s = 1; s < l->E_local; s++) {
        const uint32_t n = offset[s + 1] - offset[s], held = offset[best + 1] - offset[best];
        if (held > PAIRS_MAX ? n < held : n > held && n <= PAIRS_MAX)
            best = s;
    }
    return best;
}

/* dW13[i, d] and dW2[d, i % F] of an expert. */
static void sum_gradients(const bench_experts *l, uint32_t s, int64_t i, int64_t d, double sum[2]) {
    const gr_plan *p = &l->plan.rows;
    const int64_t e = l->batch.map.expert_at[l->batch.rank * l->E_local + s], f = i % l->F;
    double dw13 = 0, dw2 = 0;
    for (uint32_t pair = p->expert_offset[s]; pair < p->expert_offset[s + 1]; pair++) {
        const int64_t t = token_of(l, pair);
        const double gate = (double)l->host_gate[pair];
        double h1 = 0, h3 = 0, da = 0;
        for (int64_t j = 0; j < l->D; j++) {
            const double x = x_of(l, t, j);
            h1 += w13(l, e, f, j) * x;
            h3 += w13(l, e, l->F + f, j) * x;
            da += w2(l, e, j, f) * dy_of(l, t, j);
        }
        dw13 += gate * da * (i < l->F ? h3 * gr_bench_silu_slope(h1) : gr_bench_silu(h1)) * x_of(l, t, d);
        dw2 += dy_of(l, t, d) * gate * gr_bench_silu(h1) * h3;
    }
    sum[0] = dw13;
    sum[1] = dw2;
}

static gr_err get_float(bench_experts *l, const float *from, double *out) {
    float x;
    GR_TRY(l->backend->download(l->backend, GR_LANE_COMPUTE, &x, from, sizeof x));
    GR_TRY(l->backend->sync(l->backend));
    *out = (double)x;
    return GR_OK;
}

static gr_err check_gradients(bench_experts *l, double *error) {
    const uint32_t s = choose_slot(l);
    bench_error of13 = {0}, of2 = {0};
    for (int64_t n = 0; n < ELEMENTS; n++) {
        const int64_t i = gr_bench_sample(n, ELEMENTS, 2 * l->F), d = gr_bench_sample(n, ELEMENTS, l->D);
        double expected[2], got;
        sum_gradients(l, s, i, d, expected);
        GR_TRY(get_float(l, l->dw13 + ((int64_t)s * 2 * l->F + i) * l->D + d, &got));
        gr_bench_compare(&of13, got, expected[0]);
        GR_TRY(get_float(l, l->dw2 + ((int64_t)s * l->D + d) * l->F + i % l->F, &got));
        gr_bench_compare(&of2, got, expected[1]);
    }
    *error = fmax(gr_bench_error_get(&of13), gr_bench_error_get(&of2));
    return GR_OK;
}

/* ---------------------------------------------------------------- all of it */

static gr_err check_all(bench_experts *l, double *error) {
    double of_tokens, of_gradients;
    const double most = gr_bench_error_max(l->backend->dtype);
    GR_TRY(check_tokens(l, &of_tokens));
    GR_TRY(check_gradients(l, &of_gradients));
    *error = fmax(of_tokens, of_gradients);
    if (*error <= most)
        return GR_OK;
    return gr_fail(GR_BUG,
        "bench layer: rank %u: expected sampled tokens and gradients within %.1e of those in double, got %.3e and "
        "%.3e; please report it",
        l->batch.rank, most, of_tokens, of_gradients);
}

static gr_err add_squares(bench_experts *l, gr_dtype dtype, const void *from, int64_t n, double *sum) {
    const int64_t each = (int64_t)(l->n_staging / gr_dtype_size(dtype));
    for (int64_t at = 0; at < n; at += each) {
        const int64_t part = n - at < each ? n - at : each;
        const size_t size = gr_dtype_size(dtype);
        GR_TRY(l->backend->download(
            l->backend, GR_LANE_COMPUTE, l->staging, (const uint8_t *)from + (size_t)at * size, (size_t)part * size));
        GR_TRY(l->backend->sync(l->backend));
        for (int64_t i = 0; i < part; i++) {
            const double x = gr_bench_get(dtype, l->staging, i);
            *sum += x * x;
        }
    }
    return GR_OK;
}

static gr_err sum_squares(bench_experts *l, double sum[4]) {
    const gr_dtype dtype = l->backend->dtype;
    const int64_t weights = (int64_t)l->E_local * l->D * l->F;
    GR_TRY(add_squares(l, dtype, l->out, l->N * l->D, &sum[0]));
    GR_TRY(add_squares(l, dtype, l->dx, l->N * l->D, &sum[1]));
    GR_TRY(add_squares(l, GR_F32, l->dw13, 2 * weights, &sum[2]));
    return add_squares(l, GR_F32, l->dw2, weights, &sum[3]);
}

gr_err gr_bench_experts_check(bench_experts *l, gr_layer_report *report) {
    gr_comm *c = l->comm;
    double sum[4] = {0}, error = 0;
    GR_TRY(gr_bench_experts_run(l, LAYER_FORWARD));
    GR_TRY(gr_bench_experts_run(l, LAYER_BACKWARD));
    GR_TRY(gr_comm_agree(c, check_all(l, &error)));
    GR_TRY(gr_comm_agree(c, sum_squares(l, sum)));
    GR_TRY(c->sum(c, GR_WORLD, GR_F64, sum, 4));
    report->error = error;
    report->norm_out = sqrt(sum[0]);
    report->norm_dx = sqrt(sum[1]);
    report->norm_dw13 = sqrt(sum[2]);
    report->norm_dw2 = sqrt(sum[3]);
    return GR_OK;
}
