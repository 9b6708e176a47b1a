/* exchange_layer.c: one layer's arrays, and the ways to bring its rows to the experts and back. */
#include "exchange.h"
#include "times.h"

#include <stdlib.h>
#include <string.h>

const bench_way gr_bench_ways[GR_N_EXCHANGE_WAY] = {
    [GR_EXCHANGE_ROUTER_PAIRS] = {"router", "pair", true, true, PLAN_PAIRS, BATCH_PLAIN},
    [GR_EXCHANGE_COUNTS_PAIRS] = {"counts", "pair", false, true, PLAN_PAIRS, BATCH_PLAIN},
    [GR_EXCHANGE_PLAN_PAIRS] = {"plan", "pair", false, false, PLAN_PAIRS, BATCH_PLAIN},
    [GR_EXCHANGE_ROUTER_RANKS] = {"router", "rank", true, true, PLAN_RANKS, BATCH_PLAIN},
    [GR_EXCHANGE_COUNTS_RANKS] = {"counts", "rank", false, true, PLAN_RANKS, BATCH_PLAIN},
    [GR_EXCHANGE_PLAN_RANKS] = {"plan", "rank", false, false, PLAN_RANKS, BATCH_PLAIN},
    [GR_EXCHANGE_PLACED_BATCH] = {"plan", "rank, placed batch", false, false, PLAN_PLACED, BATCH_PLACED},
    [GR_EXCHANGE_PLACED_CORPUS] = {"plan", "rank, placed corpus", false, false, PLAN_CORPUS, BATCH_CORPUS},
};

const char *gr_exchange_way_routes(gr_exchange_way w) {
    return gr_bench_ways[w].routes;
}

const char *gr_exchange_way_row(gr_exchange_way w) {
    return gr_bench_ways[w].row;
}

/* ---------------------------------------------------------------- plans */

static bench_batch *batch_of(bench_layer *l, int plan) {
    return &l->batch[plan == PLAN_PLACED ? BATCH_PLACED : plan == PLAN_CORPUS ? BATCH_CORPUS : BATCH_PLAIN];
}

static gr_err make_plan(bench_layer *l, int i) {
    const bench_batch *b = batch_of(l, i);
    bench_plan *p = &l->plan[i];
    GR_TRY(gr_bench_plan_open(p, b, i == PLAN_PAIRS, NULL));
    GR_TRY(gr_bench_plan_build(p, b));
    uint64_t expected = b->expected.within + b->expected.between;
    if (i >= PLAN_PLACED && p->gates.n_send != expected)
        return gr_fail(GR_DATA,
            "bench exchange: rank %u: expected %llu rows by the placement's touch counts, got %u by the routes of its "
            "windows; place the table again",
            b->rank, (unsigned long long)expected, p->gates.n_send);
    return i < PLAN_PLACED ? gr_bench_dynamic_open(&l->dynamic[i], l->comm, b, p) : GR_OK;
}

/* ---------------------------------------------------------------- arrays */

/* The largest of what the plans need. */
typedef struct sizes {
    size_t send, recv, pair, gate_send, gate_recv;
} sizes;

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static sizes sizes_of(const bench_layer *l) {
    sizes s = {0};
    for (int i = 0; i < N_PLAN; i++) {
        const gr_plan *p = &l->plan[i].gates;
        s.send = larger(s.send, p->n_send);
        s.recv = larger(s.recv, p->n_recv);
        s.pair = larger(s.pair, p->n_pair);
        s.gate_send = larger(s.gate_send, (size_t)p->n_send * p->K);
        s.gate_recv = larger(s.gate_recv, (size_t)p->n_recv * p->K);
    }
    return s;
}

static void *take_act(const bench_layer *l, gr_arena *a, size_t n_row, int64_t width) {
    return gr_arena_take(a, n_row, (size_t)width * l->backend->elem_size);
}

static void layout(bench_layer *l, gr_arena *a) {
    const bench_batch *b = &l->batch[BATCH_PLAIN];
    const sizes s = sizes_of(l);
    const size_t N = b->N, E = b->E, own = N * b->K;
    l->recv_max = (uint32_t)s.recv;
    l->x = take_act(l, a, N + s.recv, l->D);
    l->dy = take_act(l, a, N + s.recv, l->D);
    l->out = take_act(l, a, N, l->D);
    l->dx = take_act(l, a, N, l->D);
    l->send = take_act(l, a, s.send, l->D);
    l->partial = take_act(l, a, s.recv, l->D);
    l->pair_out = take_act(l, a, s.pair, l->D);
    l->given = GR_TAKE(a, own + s.gate_recv, float);
    l->chosen = GR_TAKE(a, own + s.gate_recv, float);
    l->dgate = GR_TAKE(a, own + s.gate_recv, float);
    l->gate_send = GR_TAKE(a, s.gate_send, float);
    for (int i = 0; i < N_PLAN; i++)
        l->pair_gate[i] = GR_TAKE(a, l->plan[i].gates.n_pair, float);
    l->moved_gate = GR_TAKE(a, s.pair, float);
    l->pair_dgate = GR_TAKE(a, s.pair, float);
    l->router = take_act(l, a, E, l->D);
    l->dlogits = take_act(l, a, N, (int64_t)E);
    l->drouter = GR_TAKE(a, E * (size_t)l->D, float);
    l->p = GR_TAKE(a, N * E, float);
    l->lse = GR_TAKE(a, N, float);
    l->ids = GR_TAKE(a, own, uint16_t);
    l->count = GR_TAKE(a, N / b->T * E, uint32_t);
}

static gr_err allocate(bench_layer *l) {
    gr_arena a = {0};
    layout(l, &a);
    GR_TRY(gr_bench_room(l->comm, a.peak, "bench exchange", "lower --windows or --width"));
    GR_TRY(l->backend->alloc(l->backend, a.peak, "arrays of the exchange benchmark", &l->memory));
    a = (gr_arena){.base = l->memory, .size = a.peak};
    layout(l, &a);
    return GR_OK;
}

/* Row e of the router finds column e. */
static void fill_router(bench_layer *l) {
    const float one = 1;
    const uint16_t one_bf16 = gr_bf16_from_f32(1);
    const size_t size = l->backend->elem_size;
    for (uint32_t e = 0; e < l->batch->E; e++)
        memcpy((uint8_t *)l->router + (e * (size_t)l->D + e) * size, size == 2 ? (const void *)&one_bf16 : &one, size);
}

static void fill_gates(bench_layer *l) {
    const bench_batch *b = &l->batch[BATCH_PLAIN];
    const size_t own = (size_t)b->N * b->K;
    memcpy(l->given, b->gates + b->rank * own, own * sizeof *l->given);
    for (int i = 0; i < N_PLAN; i++)
        if (l->plan[i].memory)
            gr_plan_gates(&l->plan[i].gates, batch_of(l, i)->gates, l->pair_gate[i]);
}

gr_err gr_bench_layer_open(bench_layer *l, const gr_exchange_options *o, bench_batch *batch) {
    *l = (bench_layer){.comm = o->comm, .batch = batch, .n_batch = o->placement ? N_BATCH : 1, .D = o->D};
    /* Whatever else is there: it compares ways to move rows, which host code fills, sorts and checks in place. */
    gr_err e = gr_backend_open(&l->backend, "cpu", o->dtype);
    for (int i = 0; i < (o->placement ? N_PLAN : PLAN_PLACED) && !e; i++)
        e = make_plan(l, i);
    GR_TRY(gr_comm_agree(l->comm, e));
    GR_TRY(gr_comm_agree(l->comm, allocate(l)));
    fill_router(l);
    fill_gates(l);
    return GR_OK;
}

void gr_bench_layer_close(bench_layer *l) {
    for (int i = 0; i < N_PLAN; i++)
        gr_bench_plan_close(&l->plan[i]);
    for (int i = 0; i < 2; i++)
        gr_bench_dynamic_close(&l->dynamic[i]);
    if (l->backend)
        l->backend->release(l->backend, l->memory);
    gr_backend_close(l->backend);
    *l = (bench_layer){0};
}

/* ---------------------------------------------------------------- the router */

static gr_router_op router_op(bench_layer *l) {
    const bench_batch *b = &l->batch[BATCH_PLAIN];
    return (gr_router_op){.choice = GR_CHOICE_TOP_K,
        .normalise = true,
        .n = b->N,
        .T = b->T,
        .E = b->E,
        .K = b->K,
        .scale = b->scale,
        .p = l->p,
        .lse = l->lse,
        .ids = l->ids,
        .gate = l->chosen,
        .count = l->count,
        .dgate = l->dgate,
        .dlogits = l->dlogits};
}

static gr_err route(bench_layer *l) {
    gr_backend *b = l->backend;
    gr_router_op op = router_op(l);
    gr_gemm logits = {.layout = GR_NT,
        .m = op.n,
        .n = op.E,
        .k = l->D,
        .a = l->x,
        .lda = l->D,
        .b = l->router,
        .ldb = l->D,
        .c = l->p,
        .ldc = op.E,
        .c_dtype = GR_F32};
    GR_TRY(b->gemm(b, GR_LANE_COMPUTE, &logits));
    GR_TRY(b->router_forward(b, GR_LANE_COMPUTE, &op));
    return b->sync(b); /* the host sorts what was chosen */
}

/* dx += dlogits router, drouter += dlogits^T x. */
static gr_err route_backward(bench_layer *l) {
    gr_backend *b = l->backend;
    gr_router_op op = router_op(l);
    GR_TRY(gr_moe_gates_combine(&l->gates, l->dgate));
    GR_TRY(b->router_backward(b, GR_LANE_COMPUTE, &op));
    gr_gemm dx = {.layout = GR_NN,
        .write = GR_ACCUMULATE,
        .m = op.n,
        .n = l->D,
        .k = op.E,
        .a = l->dlogits,
        .lda = op.E,
        .b = l->router,
        .ldb = l->D,
        .c = l->dx,
        .ldc = l->D,
        .c_dtype = b->dtype};
    gr_gemm drouter = {.layout = GR_TN,
        .write = GR_ACCUMULATE,
        .m = op.E,
        .n = l->D,
        .k = op.n,
        .a = l->dlogits,
        .lda = op.E,
        .b = l->x,
        .ldb = l->D,
        .c = l->drouter,
        .ldc = l->D,
        .c_dtype = GR_F32};
    GR_TRY(b->gemm(b, GR_LANE_COMPUTE, &dx));
    return b->gemm(b, GR_LANE_COMPUTE, &drouter);
}

/* ---------------------------------------------------------------- a way, part by part */

/* What moves, by this plan from now on. */
static void select_plan(bench_layer *l, const bench_plan *p, const float *pair_gate) {
    l->rows = (gr_moe){.backend = l->backend,
        .comm = l->comm,
        .plan = &p->rows,
        .device = p->rows,
        .pair_gate = pair_gate,
        .D = l->D,
        .send = l->send,
        .partial = l->partial,
        .pair_out = l->pair_out};
    l->gates = (gr_moe){.backend = l->backend,
        .comm = l->comm,
        .plan = &p->gates,
        .device = p->gates,
        .gate_send = l->gate_send,
        .pair_dgate = l->pair_dgate};
}

static gr_err dispatch_known(bench_layer *l, const bench_way *way) {
    select_plan(l, &l->plan[way->plan], l->pair_gate[way->plan]);
    return gr_moe_dispatch(&l->rows, l->x);
}

static gr_err dispatch_dynamic(bench_layer *l, const bench_way *way) {
    const bench_batch *b = &l->batch[BATCH_PLAIN];
    bench_dynamic *d = &l->dynamic[way->plan];
    const uint16_t *ids = way->router ? l->ids : b->ids + (size_t)b->rank * b->N * b->K;
    if (way->router)
        GR_TRY(route(l));
    GR_TRY(gr_bench_dynamic_rows(d, ids));
    select_plan(l, &d->plan, l->moved_gate);
    GR_TRY(gr_moe_dispatch(&l->rows, l->x));
    if (!d->plan.per_pair) {
        GR_TRY(gr_bench_dynamic_pairs(d, ids));
        select_plan(l, &d->plan, l->moved_gate);
    }
    return gr_moe_gates_dispatch(&l->gates, way->router ? l->chosen : l->given, l->moved_gate);
}

gr_err gr_bench_layer_run(bench_layer *l, gr_exchange_way w, int part) {
    const bench_way *way = &gr_bench_ways[w];
    switch (part) {
    case PART_DISPATCH:
        return way->counts ? dispatch_dynamic(l, way) : dispatch_known(l, way);
    case PART_COMBINE:
        return gr_moe_combine(&l->rows, NULL, l->out);
    case PART_BACK_DISPATCH:
        return gr_moe_dispatch(&l->rows, l->dy);
    default:
        GR_TRY(gr_moe_combine(&l->rows, NULL, l->dx));
        return way->router ? route_backward(l) : GR_OK;
    }
}

const float *gr_bench_layer_gates(const bench_layer *l, gr_exchange_way w) {
    const bench_way *way = &gr_bench_ways[w];
    return way->counts ? l->moved_gate : l->pair_gate[way->plan];
}

void gr_bench_layer_forecast(const bench_layer *l, gr_exchange_way w, uint64_t bytes[2]) {
    const bench_way *way = &gr_bench_ways[w];
    const gr_plan *p = &l->plan[way->plan].gates;
    const uint64_t row = (uint64_t)l->D * l->backend->elem_size, gate_row = p->K * sizeof(float);
    const uint64_t others = l->batch->R - 1;
    bytes[0] = bytes[1] = (uint64_t)(p->n_send + p->n_recv) * row;
    if (way->counts && way->plan == PLAN_PAIRS)
        bytes[0] += others * p->E_local * sizeof(uint32_t) + p->n_send * gate_row;
    if (way->counts && way->plan == PLAN_RANKS)
        bytes[0] += others * sizeof(uint32_t) + p->n_send * (gate_row + p->K * sizeof(uint16_t));
    if (way->router)
        bytes[1] += p->n_recv * gate_row;
}
