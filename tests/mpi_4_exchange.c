/* mpi_4_exchange.c: rows that carry their own rank and token go through dispatch and combine in groups of 1, 2 and 4
 * ranks, so that every received row is recognised and every sum is a known integer; and the experts' results and
 * gradients do not depend on the group. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/moe.h"

enum { N = 24, K = 3, E = 8, D = 16, F = 24 };

typedef enum routing { UNIFORM, SOME_UNUSED, ONE_EXPERT, NOTHING, N_ROUTING } routing;

static gr_comm *comm;
static gr_backend *backend;

/* One rank's layer with a plan over a group of n_rank ranks that begins at world rank `first`. */
typedef struct layer {
    routing kind;
    gr_expert_map map;
    uint16_t *ids;
    float *gates;
    void *arena;
    gr_plan plan;
    float *pair_gate, *x, *dy, *out, *dx, *h, *w13, *w2, *dw13, *dw2;
    gr_moe moe;
} layer;

static float *floats(size_t n) {
    void *p;
    assert_int_equal(backend->alloc(backend, (n ? n : 1) * sizeof(float), "test", &p), 0);
    return p;
}

static void draw_token(routing kind, uint32_t world_token, uint16_t *ids, float *gates) {
    uint32_t got = 0;
    for (uint32_t e = 0; e < E && got < K; e++)
        if (kind == ONE_EXPERT || gr_random_below(3, world_token, e, E - e) < K - got)
            ids[got++] = (uint16_t)e;
    for (uint32_t k = 0; k < K; k++) {
        bool used = kind == UNIFORM || (kind == SOME_UNUSED && gr_random_below(4, world_token, k, 2)) ||
                    (kind == ONE_EXPERT && k == 0);
        gates[k] = used ? 0.25f * (float)(k + 1) : 0;
    }
}

static void make_plan(layer *a, uint32_t n_rank, uint32_t rank) {
    gr_plan_limits limits = {.N = N,
        .K = K,
        .n_rank = n_rank,
        .E_local = E / n_rank,
        .send_max = N * n_rank,
        .recv_max = N * n_rank,
        .pair_max = N * K * n_rank};
    gr_plan_builder *builder;
    gr_arena arena = {0};
    gr_plan_layout(&arena, &limits, &a->map, &a->plan, &builder);
    assert_int_equal(gr_alloc(&a->arena, arena.peak, 1, "plan"), 0);
    arena = (gr_arena){.base = a->arena, .size = arena.peak};
    gr_plan_layout(&arena, &limits, &a->map, &a->plan, &builder);
    assert_int_equal(gr_plan_build(&a->plan, builder, &limits, &a->map, rank, a->ids, a->gates), 0);
    a->pair_gate = floats(a->plan.n_pair);
    gr_plan_gates(&a->plan, a->gates, a->pair_gate);
}

static void layer_open(layer *a, routing kind, uint32_t n_rank, uint32_t rank, uint32_t first) {
    *a = (layer){.kind = kind};
    assert_int_equal(gr_expert_map_open(&a->map, E, n_rank), 0);
    a->ids = calloc(n_rank * N * K, sizeof *a->ids);
    a->gates = calloc(n_rank * N * K, sizeof *a->gates);
    assert_true(a->ids && a->gates);
    for (uint32_t t = 0; t < n_rank * N; t++)
        draw_token(kind, first * N + t, a->ids + t * K, a->gates + t * K);
    make_plan(a, n_rank, rank);
    const gr_plan *p = &a->plan;
    size_t n_row = p->N + p->n_recv, E_local = p->E_local;
    a->x = floats(n_row * D), a->dy = floats(n_row * D);
    a->out = floats(N * D), a->dx = floats(N * D);
    a->h = floats((size_t)p->n_pair * 2 * F);
    a->w13 = floats(E_local * 2 * F * D), a->dw13 = floats(E_local * 2 * F * D);
    a->w2 = floats(E_local * D * F), a->dw2 = floats(E_local * D * F);
    a->moe = (gr_moe){.backend = backend,
        .comm = comm,
        .plan = p,
        .device = *p,
        .pair_gate = a->pair_gate,
        .D = D,
        .F = F,
        .send = floats((size_t)p->n_send * D),
        .partial = floats((size_t)p->n_recv * D),
        .pair_out = floats((size_t)p->n_pair * D),
        .a = floats((size_t)p->n_pair * F),
        .da = floats((size_t)p->n_pair * F)};
}

static void layer_close(layer *a) {
    void *const owned[] = {a->pair_gate, a->x, a->dy, a->out, a->dx, a->h, a->w13, a->w2, a->dw13, a->dw2, a->moe.send,
        a->moe.partial, a->moe.pair_out, a->moe.a, a->moe.da};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        backend->release(backend, owned[i]);
    free(a->arena);
    free(a->ids);
    free(a->gates);
    gr_expert_map_close(&a->map);
}

/* The layer of this rank in its expert-parallel group of R_ep. */
static void layer_open_group(layer *a, routing kind, int R_ep) {
    assert_int_equal(gr_comm_group(comm, R_ep), 0);
    uint32_t world = (uint32_t)comm->rank[GR_WORLD], rank = (uint32_t)comm->rank[GR_EP];
    layer_open(a, kind, (uint32_t)R_ep, rank, world - rank);
}

/* Element j of the row of a token numbered over the world. */
static float stamp(uint32_t world_token, uint32_t j) {
    return (float)(world_token / N * 1000 + world_token % N + 10000 * j);
}

static uint32_t first_token(void) {
    return (uint32_t)(comm->rank[GR_WORLD] - comm->rank[GR_EP]) * N;
}

static void stamp_own_rows(layer *a) {
    for (uint32_t t = 0; t < N; t++)
        for (uint32_t j = 0; j < D; j++)
            a->x[t * D + j] = stamp((uint32_t)comm->rank[GR_WORLD] * N + t, j);
}

static void for_every_group(void (*check)(layer *a)) {
    for (int R_ep = 1; R_ep <= 4; R_ep *= 2)
        for (routing kind = 0; kind < N_ROUTING; kind++) {
            layer a;
            layer_open_group(&a, kind, R_ep);
            check(&a);
            layer_close(&a);
        }
}

static void check_dispatch(layer *a) {
    stamp_own_rows(a);
    assert_int_equal(gr_moe_dispatch(&a->moe, a->x), 0);
    for (uint32_t row = 0; row < N + a->plan.n_recv; row++) {
        uint32_t token =
            first_token() + (row < N ? (uint32_t)comm->rank[GR_EP] * N + row : a->plan.recv_token[row - N]);
        for (uint32_t j = 0; j < D; j++)
            assert_true(a->x[row * D + j] == stamp(token, j));
    }
}

/* An "expert" e that multiplies its rows by e + 1. */
static void scale_pairs(layer *a) {
    float *out = a->moe.pair_out;
    for (uint32_t e = 0; e < a->plan.E_local; e++) {
        float factor = (float)(a->map.expert_at[a->plan.rank * a->plan.E_local + e] + 1);
        for (uint32_t p = a->plan.expert_offset[e]; p < a->plan.expert_offset[e + 1]; p++)
            for (uint32_t j = 0; j < D; j++)
                out[p * D + j] = factor * a->x[a->plan.pair_row[p] * D + j];
    }
}

static void expect_scaled_sums(const layer *a, float base) {
    uint32_t me = (uint32_t)comm->rank[GR_WORLD];
    for (uint32_t t = 0; t < N; t++) {
        const size_t entry = (size_t)(a->plan.rank * N + t) * K;
        float factor = 0;
        for (uint32_t k = 0; k < K; k++)
            factor += a->gates[entry + k] > 0 ? (float)(a->ids[entry + k] + 1) : 0;
        for (uint32_t j = 0; j < D; j++)
            assert_true(a->out[t * D + j] == base + factor * stamp(me * N + t, j));
    }
}

static void check_combine(layer *a) {
    stamp_own_rows(a);
    assert_int_equal(gr_moe_dispatch(&a->moe, a->x), 0);
    scale_pairs(a);
    assert_int_equal(gr_moe_combine(&a->moe, NULL, a->out), 0);
    expect_scaled_sums(a, 0);
    for (uint32_t i = 0; i < N * D; i++)
        a->out[i] = 7;
    assert_int_equal(gr_moe_combine(&a->moe, a->out, a->out), 0);
    expect_scaled_sums(a, 7);
    assert_int_equal(a->moe.exchange_ms > 0, a->plan.n_rank > 1);
}

/* ---------------------------------------------------------------- experts: a group against one rank with all experts
 */

static void fill_normal(float *x, size_t n, const char *name, uint64_t first) {
    for (size_t i = 0; i < n; i++)
        x[i] = gr_random_normal(5, gr_stream_id(name), first + i);
}

static void run_experts(layer *a) {
    uint64_t token = (uint64_t)comm->rank[GR_WORLD] * N;
    uint64_t slot = (uint64_t)a->plan.rank * a->plan.E_local;
    fill_normal(a->x, N * D, "x", token * D);
    fill_normal(a->dy, N * D, "dy", token * D);
    fill_normal(a->w13, (size_t)a->plan.E_local * 2 * F * D, "w13", slot * 2 * F * D);
    fill_normal(a->w2, (size_t)a->plan.E_local * D * F, "w2", slot * D * F);
    gr_expert_weights w = {.w13 = a->w13, .w2 = a->w2, .dw13 = a->dw13, .dw2 = a->dw2};
    assert_int_equal(gr_moe_dispatch(&a->moe, a->x), 0);
    assert_int_equal(gr_moe_experts_forward(&a->moe, &w, a->x, a->h), 0);
    assert_int_equal(gr_moe_combine(&a->moe, NULL, a->out), 0);
    assert_int_equal(gr_moe_dispatch(&a->moe, a->dy), 0);
    assert_int_equal(gr_moe_experts_backward(&a->moe, &w, a->x, a->dy, a->h), 0);
    assert_int_equal(gr_moe_combine(&a->moe, NULL, a->dx), 0);
}

/* ||a-b|| <= 1e-5 ||b||; b must be non-zero if a is. */
static void expect_close(const float *a, const float *b, size_t n) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    assert_true(sqrt(difference) <= 1e-5 * sqrt(norm));
}

static void check_experts(layer *a) {
    layer all;
    run_experts(a);
    layer_open(&all, a->kind, 1, 0, (uint32_t)comm->rank[GR_WORLD]); /* routes depend on the token alone */
    run_experts(&all);
    expect_close(a->out, all.out, N * D);
    expect_close(a->dx, all.dx, N * D);
    size_t n13 = (size_t)2 * F * D, n2 = (size_t)D * F, slot = (size_t)a->plan.rank * a->plan.E_local;
    assert_int_equal(comm->sum(comm, GR_EP, GR_F32, all.dw13, E * n13), 0);
    assert_int_equal(comm->sum(comm, GR_EP, GR_F32, all.dw2, E * n2), 0);
    expect_close(a->dw13, all.dw13 + slot * n13, a->plan.E_local * n13);
    expect_close(a->dw2, all.dw2 + slot * n2, a->plan.E_local * n2);
    layer_close(&all);
}

static void dispatched_rows_are_those_the_plan_names(void **state) {
    (void)state;
    for_every_group(check_dispatch);
}

static void combined_sums_are_exact(void **state) {
    (void)state;
    for_every_group(check_combine);
}

static void experts_give_the_same_in_any_group(void **state) {
    (void)state;
    for_every_group(check_experts);
}

int main(void) {
    alarm(120); /* a failed assertion on one rank leaves the others waiting */
    if (gr_comm_open(&comm, "mpi") || comm->size[GR_WORLD] != 4 || gr_backend_open(&backend, "cpu", GR_F32))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dispatched_rows_are_those_the_plan_names),
        cmocka_unit_test(combined_sums_are_exact),
        cmocka_unit_test(experts_give_the_same_in_any_group),
    };
    if (cmocka_run_group_tests(tests, NULL, NULL))
        _exit(1); /* the ranks may be out of step: finalising could wait for ever */
    gr_backend_close(backend);
    gr_comm_close(comm, GR_OK);
    return 0;
}
