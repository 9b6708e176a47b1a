/* layer_experts.c: one layer with experts: its arrays, random data in them, and its two parts. */
#include "layer.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- memory */

static void *take_act(const bench_experts *l, gr_arena *a, int64_t n_row, int64_t width) {
    return gr_arena_take(a, (size_t)n_row, (size_t)width * l->backend->elem_size);
}

/* The plan's lists that ops read; where memory is the host's, the plan itself serves. */
static void layout_plan(const bench_experts *l, gr_arena *a, gr_plan *device) {
    const gr_plan *p = &l->plan.rows;
    *device = *p;
    if (l->backend->host_memory)
        return;
    device->send_token = GR_TAKE(a, p->n_send, uint32_t);
    device->pair_row = GR_TAKE(a, p->n_pair, uint32_t);
    device->row_pair_offset = GR_TAKE(a, p->N + p->n_recv + 1, uint32_t);
    device->row_pair = GR_TAKE(a, p->n_pair, uint32_t);
    device->token_return_offset = GR_TAKE(a, p->N + 1, uint32_t);
    device->token_return = GR_TAKE(a, p->n_send, uint32_t);
    device->expert_offset = GR_TAKE(a, p->E_local + 1, uint32_t);
    device->tiles = GR_TAKE(a, p->n_tile, gr_row_tile);
    device->expert_order = GR_TAKE(a, p->E_local, uint32_t);
}

static void layout(bench_experts *l, gr_arena *a) {
    const int64_t N = l->N, M = l->M, P = l->P, D = l->D, F = l->F, E = l->E_local;
    gr_moe *m = &l->moe;
    l->x = take_act(l, a, N + M, D);
    l->dy = take_act(l, a, N + M, D);
    l->out = take_act(l, a, N, D);
    l->dx = take_act(l, a, N, D);
    l->h = take_act(l, a, P, 2 * F);
    l->w13 = take_act(l, a, E * 2 * F, D);
    l->w2 = take_act(l, a, E * D, F);
    l->dw13 = GR_TAKE(a, E * 2 * F * D, float);
    l->dw2 = GR_TAKE(a, E * D * F, float);
    l->pair_gate = GR_TAKE(a, P, float);
    m->send = take_act(l, a, l->plan.rows.n_send, D);
    m->partial = take_act(l, a, M, D);
    m->pair_out = take_act(l, a, P, D);
    m->a = take_act(l, a, P, F);
    m->da = take_act(l, a, P, F);
    layout_plan(l, a, &m->device);
}

static gr_err place(bench_experts *l) {
    gr_arena a = {.base = l->memory, .size = l->n_byte};
    layout(l, &a);
    l->moe.backend = l->backend;
    l->moe.comm = l->comm;
    l->moe.plan = &l->plan.rows;
    l->moe.pair_gate = l->pair_gate;
    l->moe.D = l->D;
    l->moe.F = l->F;
    l->weights = (gr_expert_weights){.w13 = l->w13, .w2 = l->w2, .dw13 = l->dw13, .dw2 = l->dw2};
    const size_t rows = (size_t)l->N * (size_t)l->D, weights = 2 * (size_t)l->F * (size_t)l->D;
    l->n_staging = (rows > weights ? rows : weights) * l->backend->elem_size;
    GR_TRY(gr_alloc((void **)&l->host_gate, (size_t)l->P, sizeof(float), "gates of the pairs"));
    return gr_alloc(&l->staging, l->n_staging, 1, "rows on the way to the backend");
}

/* ---------------------------------------------------------------- data */

static gr_err put(bench_experts *l, void *to, const void *from, size_t n_byte) {
    if (n_byte == 0)
        return GR_OK;
    GR_TRY(l->backend->upload(l->backend, GR_LANE_COMPUTE, to, from, n_byte));
    return l->backend->sync(l->backend);
}

/* n numbers of a stream from `first` on, into act memory. */
static gr_err put_normal(bench_experts *l, void *to, int stream, uint64_t first, int64_t n, float scale) {
    gr_bench_fill_normal(l->backend->dtype, l->staging, n, gr_bench_layer_key(l, stream), first, scale);
    return put(l, to, l->staging, (size_t)n * l->backend->elem_size);
}

static gr_err put_weights(bench_experts *l) {
    const int64_t n13 = 2 * l->F * l->D, n2 = l->D * l->F;
    for (uint32_t s = 0; s < l->E_local; s++) {
        const uint64_t e = l->batch.map.expert_at[l->batch.rank * l->E_local + s];
        GR_TRY(put_normal(l, (uint8_t *)l->w13 + (size_t)(s * n13) * l->backend->elem_size, GR_LAYER_W13,
            e * (uint64_t)n13, n13, gr_bench_w13_scale(l)));
        GR_TRY(put_normal(l, (uint8_t *)l->w2 + (size_t)(s * n2) * l->backend->elem_size, GR_LAYER_W2, e * (uint64_t)n2,
            n2, gr_bench_w2_scale(l)));
    }
    return GR_OK;
}

static gr_err put_plan(bench_experts *l) {
    const gr_plan *p = &l->plan.rows, *d = &l->moe.device;
    const size_t size = sizeof(uint32_t);
    if (l->backend->host_memory)
        return GR_OK;
    GR_TRY(put(l, d->send_token, p->send_token, p->n_send * size));
    GR_TRY(put(l, d->pair_row, p->pair_row, p->n_pair * size));
    GR_TRY(put(l, d->row_pair_offset, p->row_pair_offset, ((size_t)p->N + p->n_recv + 1) * size));
    GR_TRY(put(l, d->row_pair, p->row_pair, p->n_pair * size));
    GR_TRY(put(l, d->token_return_offset, p->token_return_offset, ((size_t)p->N + 1) * size));
    GR_TRY(put(l, d->token_return, p->token_return, p->n_send * size));
    GR_TRY(put(l, d->expert_offset, p->expert_offset, ((size_t)p->E_local + 1) * size));
    GR_TRY(put(l, d->tiles, p->tiles, p->n_tile * sizeof *p->tiles));
    return put(l, d->expert_order, p->expert_order, p->E_local * size);
}

static gr_err fill(bench_experts *l) {
    const int64_t n = l->N * l->D;
    const uint64_t first = (uint64_t)l->batch.rank * (uint64_t)n;
    gr_plan_gates(&l->plan.rows, l->batch.gates, l->host_gate);
    GR_TRY(put(l, l->pair_gate, l->host_gate, (size_t)l->P * sizeof(float)));
    GR_TRY(put_normal(l, l->x, GR_LAYER_X, first, n, 1));
    GR_TRY(put_normal(l, l->dy, GR_LAYER_DY, first, n, 1));
    GR_TRY(put_weights(l));
    memset(l->staging, 0xFF, (size_t)n * l->backend->elem_size); /* NaN until it is written */
    GR_TRY(put(l, l->out, l->staging, (size_t)n * l->backend->elem_size));
    GR_TRY(put(l, l->dx, l->staging, (size_t)n * l->backend->elem_size));
    return put_plan(l);
}

/* ---------------------------------------------------------------- opening */

static gr_err open_plan(bench_experts *l) {
    const gr_layer_options *o = l->o;
    GR_TRY(gr_bench_routes_open(&l->batch, o));
    GR_TRY(gr_bench_plan_open(&l->plan, &l->batch, false, NULL));
    GR_TRY(gr_bench_plan_build(&l->plan, &l->batch));
    GR_TRY(gr_backend_open(&l->backend, o->backend, o->dtype));
    GR_TRY(gr_backend_set_experts(l->backend, o->expert_kernels));
    const gr_plan *p = &l->plan.rows;
    l->N = p->N;
    l->D = o->D;
    l->F = o->F;
    l->M = p->n_recv;
    l->P = p->n_pair;
    l->E_local = p->E_local;
    return GR_OK;
}

static gr_err measure(bench_experts *l) {
    gr_arena a = {0};
    layout(l, &a);
    l->n_byte = a.peak;
    if (a.overflow)
        return gr_fail(
            GR_RESOURCE, "bench layer: expected sizes that fit the address space; lower --tokens or --width");
    return GR_OK;
}

gr_err gr_bench_experts_open(bench_experts *l, const gr_layer_options *o) {
    gr_comm *c = o->comm;
    *l = (bench_experts){.o = o, .comm = c};
    GR_TRY(gr_comm_agree(c, gr_comm_group(c, c->size[GR_WORLD])));
    GR_TRY(gr_comm_agree(c, open_plan(l)));
    GR_TRY(gr_comm_agree(c, measure(l)));
    if (l->backend->host_memory)
        GR_TRY(gr_bench_room(c, l->n_byte, "bench layer", "lower --tokens or --experts"));
    gr_err e = l->backend->alloc(l->backend, l->n_byte, "arrays of the layer benchmark", &l->memory);
    if (!e)
        e = place(l);
    if (!e)
        e = fill(l);
    return gr_comm_agree(c, e);
}

void gr_bench_experts_close(bench_experts *l) {
    free(l->staging);
    free(l->host_gate);
    if (l->memory)
        l->backend->release(l->backend, l->memory);
    gr_backend_close(l->backend);
    gr_bench_plan_close(&l->plan);
    gr_bench_batch_close(&l->batch);
    *l = (bench_experts){0};
}

/* ---------------------------------------------------------------- its parts */

gr_err gr_bench_experts_run(bench_experts *l, int part) {
    gr_moe *m = &l->moe;
    void *in = part == LAYER_FORWARD ? l->x : l->dy;
    GR_TRY(gr_moe_dispatch(m, in));
    if (part == LAYER_FORWARD)
        GR_TRY(gr_moe_experts_forward(m, &l->weights, l->x, l->h));
    else
        GR_TRY(gr_moe_experts_backward(m, &l->weights, l->x, l->dy, l->h));
    GR_TRY(gr_moe_combine(m, NULL, part == LAYER_FORWARD ? l->out : l->dx));
    return l->backend->sync(l->backend);
}
