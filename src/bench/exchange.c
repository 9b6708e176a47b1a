/* exchange.c: times the ways to move one layer's rows. The ways take turns, forwards and backwards, so that whatever
 * changes on the machine meanwhile changes them alike, and gains are differences of runs that followed each other. */
#include "exchange.h"
#include "times.h"

#include <stdlib.h>
#include <string.h>

enum { PLAN_RUNS = 9 };

static const gr_exchange_gain gains[GR_EXCHANGE_GAINS] = {
    {.name = "no router", .from = GR_EXCHANGE_ROUTER_PAIRS, .to = GR_EXCHANGE_COUNTS_PAIRS},
    {.name = "no sort, no exchange of counts", .from = GR_EXCHANGE_COUNTS_PAIRS, .to = GR_EXCHANGE_PLAN_PAIRS},
    {.name = "fewer bytes", .from = GR_EXCHANGE_PLAN_PAIRS, .to = GR_EXCHANGE_PLAN_RANKS},
    {.name = "all of these", .from = GR_EXCHANGE_ROUTER_PAIRS, .to = GR_EXCHANGE_PLAN_RANKS},
    {.name = "no router, a row per rank", .from = GR_EXCHANGE_ROUTER_RANKS, .to = GR_EXCHANGE_COUNTS_RANKS},
    {.name = "no counts, a row per rank", .from = GR_EXCHANGE_COUNTS_RANKS, .to = GR_EXCHANGE_PLAN_RANKS},
    {.name = "placement, same batch", .from = GR_EXCHANGE_PLAN_RANKS, .to = GR_EXCHANGE_PLACED_BATCH},
    {.name = "placement, corpus", .from = GR_EXCHANGE_PLAN_RANKS, .to = GR_EXCHANGE_PLACED_CORPUS},
};

typedef struct bench_run {
    const gr_exchange_options *o;
    gr_exchange_report *report;
    bench_batch batch[N_BATCH];
    bench_layer layer;
    double *part_ms; /* [R][way][n_repeat][N_PART] of every rank */
    double *both_ms; /* [way][n_repeat] of the slowest, and twice n_repeat for sorting */
} bench_run;

static size_t part_index(const bench_run *r, int rank, int way, uint32_t i, int part) {
    return (((size_t)rank * GR_N_EXCHANGE_WAY + (size_t)way) * r->o->n_repeat + i) * N_PART + (size_t)part;
}

/* ---------------------------------------------------------------- results before times */

static gr_err check_all(bench_run *r) {
    const gr_comm *c = r->o->comm;
    const size_t R = (size_t)c->size[GR_WORLD];
    void *memory;
    enum { FIGURES = 3 * GR_N_EXCHANGE_WAY };
    GR_TRY(gr_comm_agree(r->o->comm, gr_alloc(&memory, R, FIGURES * sizeof(uint64_t), "figures of all ranks")));
    uint64_t *all = memory, *own = all + (size_t)c->rank[GR_WORLD] * FIGURES;
    gr_err e = GR_OK;
    for (int w = 0; w < GR_N_EXCHANGE_WAY && !e; w++) {
        if (!r->report->way[w].measured)
            continue;
        own[3 * w] = r->layer.plan[gr_bench_ways[w].plan].gates.n_send;
        e = gr_bench_check(&r->layer, (gr_exchange_way)w, own + 3 * w + 1);
    }
    if (!e)
        e = c->all_gather(r->o->comm, GR_WORLD, GR_U64, all, FIGURES);
    for (size_t i = 0; i < R * GR_N_EXCHANGE_WAY && !e; i++) {
        gr_exchange_figures *f = &r->report->way[i % GR_N_EXCHANGE_WAY];
        f->rows += all[3 * i];
        f->rows_max = all[3 * i] > f->rows_max ? all[3 * i] : f->rows_max;
        f->bytes[0] += all[3 * i + 1];
        f->bytes[1] += all[3 * i + 2];
    }
    free(memory);
    return e;
}

/* ---------------------------------------------------------------- times */

static gr_err time_way(bench_run *r, int w, double ms[N_PART]) {
    gr_comm *c = r->o->comm;
    for (int part = 0; part < N_PART; part++) {
        GR_TRY(c->barrier(c, GR_WORLD));
        double start_s = gr_time_s();
        GR_TRY(gr_bench_layer_run(&r->layer, (gr_exchange_way)w, part));
        ms[part] = 1e3 * (gr_time_s() - start_s);
    }
    return GR_OK;
}

static gr_err time_all(bench_run *r) {
    const int me = r->o->comm->rank[GR_WORLD];
    const uint32_t n_warm = 2 + r->o->n_repeat / 10;
    gr_bench_fill(&r->layer, &r->batch[BATCH_PLAIN]);
    for (uint32_t i = 0; i < n_warm + r->o->n_repeat; i++)
        for (int turn = 0; turn < GR_N_EXCHANGE_WAY; turn++) {
            int w = i % 2 ? GR_N_EXCHANGE_WAY - 1 - turn : turn;
            double warm[N_PART], *ms = warm;
            if (!r->report->way[w].measured)
                continue;
            if (i >= n_warm)
                ms = r->part_ms + part_index(r, me, w, i - n_warm, 0);
            GR_TRY(time_way(r, w, ms));
        }
    return r->o->comm->all_gather(
        r->o->comm, GR_WORLD, GR_F64, r->part_ms, (size_t)GR_N_EXCHANGE_WAY * r->o->n_repeat * N_PART);
}

/* Of the slowest rank: every part begins when all are there. */
static double slowest_ms(const bench_run *r, int w, uint32_t i, int part) {
    double most = 0;
    for (int rank = 0; rank < r->o->comm->size[GR_WORLD]; rank++) {
        double ms = r->part_ms[part_index(r, rank, w, i, part)];
        most = ms > most ? ms : most;
    }
    return most;
}

static void summarise_way(bench_run *r, int w) {
    const uint32_t n = r->o->n_repeat;
    gr_exchange_figures *f = &r->report->way[w];
    double *both = r->both_ms + (size_t)w * n, *forward = r->both_ms + (size_t)GR_N_EXCHANGE_WAY * n;
    double *backward = forward + n;
    for (uint32_t i = 0; i < n; i++) {
        forward[i] = slowest_ms(r, w, i, PART_DISPATCH) + slowest_ms(r, w, i, PART_COMBINE);
        backward[i] = slowest_ms(r, w, i, PART_BACK_DISPATCH) + slowest_ms(r, w, i, PART_BACK_COMBINE);
        both[i] = forward[i] + backward[i];
    }
    f->forward = gr_bench_quartiles(forward, n);
    f->backward = gr_bench_quartiles(backward, n);
    memcpy(forward, both, n * sizeof *both); /* `both` stays in the order of runs */
    f->both = gr_bench_quartiles(forward, n);
}

static void summarise_gain(bench_run *r, gr_exchange_gain *g) {
    const uint32_t n = r->o->n_repeat;
    const double *from = r->both_ms + (size_t)g->from * n, *to = r->both_ms + (size_t)g->to * n;
    double *difference = r->both_ms + (size_t)GR_N_EXCHANGE_WAY * n;
    g->measured = r->report->way[g->from].measured && r->report->way[g->to].measured;
    for (uint32_t i = 0; i < n; i++)
        difference[i] = from[i] - to[i];
    if (g->measured)
        g->both = gr_bench_quartiles(difference, n);
}

static void summarise(bench_run *r) {
    for (int w = 0; w < GR_N_EXCHANGE_WAY; w++)
        if (r->report->way[w].measured)
            summarise_way(r, w);
    for (int i = 0; i < GR_EXCHANGE_GAINS; i++)
        summarise_gain(r, &r->report->gain[i]);
}

/* What knowing the routes costs: once for all layers of a micro-batch, ahead of it. */
static gr_err time_plan(bench_run *r) {
    double ms[PLAN_RUNS];
    const bench_batch *b = &r->batch[BATCH_PLAIN];
    bench_plan *p = &r->layer.plan[PLAN_RANKS];
    for (int i = 0; i < PLAN_RUNS; i++) {
        double start_s = gr_time_s();
        GR_TRY(gr_bench_plan_build(p, b));
        gr_plan_gates(&p->gates, b->gates, r->layer.pair_gate[PLAN_RANKS]);
        ms[i] = 1e3 * (gr_time_s() - start_s);
    }
    r->report->plan = gr_bench_quartiles(ms, PLAN_RUNS);
    return GR_OK;
}

/* ---------------------------------------------------------------- the benchmark */

/* E[c] = (R-1)(1 - C(E-E/R, K) / C(E, K)) */
static double uniform_rows(const bench_batch *b) {
    double none = 1;
    for (uint32_t i = 0; i < b->K; i++)
        none *= b->E - b->map.E_local > i ? (double)(b->E - b->map.E_local - i) / (b->E - i) : 0;
    return (b->R - 1) * (1 - none);
}

static gr_err open_run(bench_run *r) {
    const gr_exchange_options *o = r->o;
    gr_comm *c = o->comm;
    const size_t n = (size_t)GR_N_EXCHANGE_WAY * o->n_repeat;
    GR_TRY(gr_comm_agree(c, gr_bench_batches_open(r->batch, o)));
    GR_TRY(gr_comm_agree(c, gr_comm_group(c, c->size[GR_WORLD])));
    GR_TRY(gr_bench_layer_open(&r->layer, o, r->batch));
    gr_err e = gr_alloc((void **)&r->part_ms, (size_t)c->size[GR_WORLD] * n * N_PART, sizeof(double), "times");
    if (!e)
        e = gr_alloc((void **)&r->both_ms, n + 2 * (size_t)o->n_repeat, sizeof(double), "times");
    return gr_comm_agree(c, e);
}

static void describe(bench_run *r) {
    const bench_batch *b = &r->batch[BATCH_PLAIN];
    gr_exchange_report *report = r->report;
    report->R = b->R;
    report->E = b->E;
    report->K = b->K;
    report->T = b->T;
    report->N = b->N;
    report->uniform = uniform_rows(b);
    memcpy(report->gain, gains, sizeof gains);
    for (int w = 0; w < GR_N_EXCHANGE_WAY; w++)
        report->way[w].measured = gr_bench_ways[w].batch < r->layer.n_batch;
}

static gr_err run(bench_run *r) {
    GR_TRY(open_run(r));
    describe(r);
    GR_TRY(check_all(r));
    GR_TRY(time_plan(r));
    GR_TRY(time_all(r));
    summarise(r);
    return GR_OK;
}

gr_err gr_bench_exchange(const gr_exchange_options *o, gr_exchange_report *report) {
    bench_run r = {.o = o, .report = report};
    *report = (gr_exchange_report){0};
    gr_err e = run(&r);
    free(r.both_ms);
    free(r.part_ms);
    gr_bench_layer_close(&r.layer);
    for (int i = 0; i < N_BATCH; i++)
        gr_bench_batch_close(&r.batch[i]);
    return e;
}
