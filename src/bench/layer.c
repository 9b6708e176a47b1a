/* layer.c: times a layer's forward and backward. */
#include "layer.h"

#include <stdlib.h>

enum { WARM = 2, PLAN_RUNS = 5 };

/* What a rank's time of a part is in: [rank][run][part]. */
static size_t at(const gr_layer_options *o, int rank, uint32_t i, int part) {
    return ((size_t)rank * o->n_repeat + i) * N_LAYER_PART + (size_t)part;
}

static gr_err time_part(bench_experts *l, int part, double *ms) {
    GR_TRY(l->comm->barrier(l->comm, GR_WORLD));
    const double start_s = gr_time_s();
    GR_TRY(gr_bench_experts_run(l, part));
    *ms = 1e3 * (gr_time_s() - start_s);
    return GR_OK;
}

static gr_err time_runs(bench_experts *l, double *ms) {
    const gr_layer_options *o = l->o;
    const int me = l->comm->rank[GR_WORLD];
    for (uint32_t i = 0; i < WARM + o->n_repeat; i++)
        for (int part = 0; part < N_LAYER_PART; part++) {
            double warm, *to = i < WARM ? &warm : &ms[at(o, me, i - WARM, part)];
            GR_TRY(time_part(l, part, to));
        }
    return l->comm->all_gather(l->comm, GR_WORLD, GR_F64, ms, (size_t)o->n_repeat * N_LAYER_PART);
}

/* Of the slowest rank: every part begins when all are there. */
static double slowest(const bench_experts *l, const double *ms, uint32_t i, int part) {
    double most = 0;
    for (int rank = 0; rank < l->comm->size[GR_WORLD]; rank++)
        most = fmax(most, ms[at(l->o, rank, i, part)]);
    return most;
}

static void summarise(const bench_experts *l, const double *ms, double *room, gr_layer_report *report) {
    const uint32_t n = l->o->n_repeat;
    gr_bench_time *of[] = {&report->forward, &report->backward, &report->both};
    for (int part = 0; part <= N_LAYER_PART; part++) {
        for (uint32_t i = 0; i < n; i++)
            room[i] = part < N_LAYER_PART ? slowest(l, ms, i, part)
                                          : slowest(l, ms, i, LAYER_FORWARD) + slowest(l, ms, i, LAYER_BACKWARD);
        *of[part] = gr_bench_quartiles(room, n);
    }
}

static gr_err time_all(bench_experts *l, gr_layer_report *report) {
    const size_t n = l->o->n_repeat, R = (size_t)l->comm->size[GR_WORLD];
    void *memory;
    GR_TRY(gr_comm_agree(l->comm, gr_alloc(&memory, n * (R * N_LAYER_PART + 1), sizeof(double), "times")));
    double *ms = memory;
    gr_err e = time_runs(l, ms);
    if (!e)
        summarise(l, ms, ms + n * R * N_LAYER_PART, report);
    free(memory);
    return e;
}

/* What knowing the routes costs: once for all layers of a micro-batch, ahead of it. */
static gr_err time_plan(bench_experts *l, gr_layer_report *report) {
    double ms[PLAN_RUNS];
    for (int i = 0; i < PLAN_RUNS; i++) {
        const double start_s = gr_time_s();
        GR_TRY(gr_bench_plan_build(&l->plan, &l->batch));
        gr_plan_gates(&l->plan.rows, l->batch.gates, l->host_gate);
        ms[i] = 1e3 * (gr_time_s() - start_s);
    }
    report->plan = gr_bench_quartiles(ms, PLAN_RUNS);
    return GR_OK;
}

/* All ranks measure at the same time, as they compute. The best so far: what else runs on the machine can only make it
 * lower. */
static gr_err measure_peak(bench_experts *l, gr_layer_report *report) {
    gr_comm *c = l->comm;
    double flops = 0;
    GR_TRY(c->barrier(c, GR_WORLD));
    GR_TRY(gr_comm_agree(c, l->backend->peak(l->backend, &flops)));
    GR_TRY(c->sum(c, GR_WORLD, GR_F64, &flops, 1));
    report->peak_flops = fmax(report->peak_flops, flops);
    return GR_OK;
}

static gr_err describe(bench_experts *l, gr_layer_report *report) {
    gr_comm *c = l->comm;
    const bench_batch *b = &l->batch;
    report->backend = l->backend->name;
    report->R = b->R;
    report->N = b->N;
    report->E = b->E;
    report->K = b->K;
    report->T = b->T;
    GR_TRY(gr_comm_agree(c, gr_bench_routes_describe(b, report)));
    const double pairs = (double)report->n_pair * (double)l->D * (double)l->F;
    report->flops[LAYER_FORWARD] = 6 * pairs;
    report->flops[LAYER_BACKWARD] = 12 * pairs;
    report->rows = l->plan.rows.n_send;
    GR_TRY(c->sum(c, GR_WORLD, GR_U64, &report->rows, 1));
    const size_t R = (size_t)c->size[GR_WORLD];
    void *memory;
    GR_TRY(gr_comm_agree(c, gr_alloc(&memory, R, 2 * sizeof(uint64_t), "memory of the ranks")));
    uint64_t *bytes = memory, *own = bytes + 2 * (size_t)c->rank[GR_WORLD];
    own[0] = l->n_byte;
    own[1] = (uint64_t)(((l->N + l->M) * l->D + l->P * 2 * l->F)) * l->backend->elem_size;
    gr_err e = c->all_gather(c, GR_WORLD, GR_U64, bytes, 2);
    for (size_t r = 0; r < R && !e; r++) {
        report->bytes = bytes[2 * r] > report->bytes ? bytes[2 * r] : report->bytes;
        report->bytes_kept = bytes[2 * r + 1] > report->bytes_kept ? bytes[2 * r + 1] : report->bytes_kept;
    }
    free(memory);
    return e;
}

static gr_err save_routes(const bench_experts *l) {
    const bool mine = l->o->save_routes && l->comm->rank[GR_WORLD] == 0;
    return gr_comm_agree(l->comm, mine ? gr_bench_routes_save(&l->batch, l->o) : GR_OK);
}

static gr_err run(bench_experts *l, const gr_layer_options *o, gr_layer_report *report) {
    GR_TRY(gr_bench_experts_open(l, o));
    GR_TRY(describe(l, report));
    GR_TRY(save_routes(l));
    GR_TRY(gr_bench_experts_check(l, report));
    GR_TRY(gr_comm_agree(l->comm, time_plan(l, report)));
    GR_TRY(measure_peak(l, report));
    GR_TRY(time_all(l, report));
    return measure_peak(l, report);
}

gr_err gr_bench_layer(const gr_layer_options *o, gr_layer_report *report) {
    bench_experts l = {0};
    *report = (gr_layer_report){0};
    gr_err e = run(&l, o, report);
    gr_bench_experts_close(&l);
    return e;
}
