/* exchange_plan.c: plans made ahead, with a row per rank or per pair. */
#include "exchange.h"

#include <stdlib.h>
#include <string.h>

static void layout(bench_plan *p, gr_arena *arena, const gr_expert_map *map) {
    const gr_plan_limits *l = &p->limits;
    gr_plan_layout(arena, l, map, &p->gates, &p->builder);
    p->rows = p->gates;
    if (!p->per_pair)
        return;
    p->rows.N = p->N;
    p->rows.K = p->K;
    p->rows.send_token = GR_TAKE(arena, l->send_max, uint32_t);
    p->rows.recv_token = GR_TAKE(arena, l->recv_max, uint32_t);
    p->rows.pair_row = GR_TAKE(arena, l->pair_max, uint32_t);
    p->rows.row_pair_offset = GR_TAKE(arena, p->N + l->recv_max + 1, uint32_t);
    p->rows.token_return_offset = GR_TAKE(arena, p->N + 1, uint32_t);
}

gr_err gr_bench_plan_open(bench_plan *p, const bench_batch *b, bool per_pair, const gr_plan_limits *limits) {
    *p = (bench_plan){.per_pair = per_pair, .N = b->N, .K = b->K};
    p->limits = limits     ? *limits
                : per_pair ? gr_plan_limits_worst(b->N * b->K, 1, &b->map)
                           : gr_plan_limits_worst(b->N, b->K, &b->map);
    gr_arena arena = {0};
    layout(p, &arena, &b->map);
    if (arena.overflow)
        return gr_fail(GR_RESOURCE, "plans: expected a size that fits the address space; lower --windows");
    GR_TRY(gr_alloc(&p->memory, arena.peak + GR_ALIGN, 1, "plans"));
    uintptr_t base = ((uintptr_t)p->memory + GR_ALIGN - 1) & ~(uintptr_t)(GR_ALIGN - 1);
    arena = (gr_arena){.base = (uint8_t *)base, .size = arena.peak};
    layout(p, &arena, &b->map);
    return GR_OK;
}

void gr_bench_plan_close(bench_plan *p) {
    free(p->memory);
    *p = (bench_plan){0};
}

/* Pair i of the own tokens belongs to token i / K; received rows follow. */
void gr_bench_plan_fold(bench_plan *p) {
    const gr_plan *pairs = &p->gates;
    gr_plan *rows = &p->rows;
    const uint32_t N = p->N, K = p->K;
    rows->rank = pairs->rank;
    rows->n_send = pairs->n_send;
    rows->n_recv = pairs->n_recv;
    rows->n_pair = pairs->n_pair;
    for (uint32_t i = 0; i < pairs->n_send; i++)
        rows->send_token[i] = pairs->send_token[i] / K;
    for (uint32_t i = 0; i < pairs->n_pair; i++)
        rows->pair_row[i] = pairs->pair_row[i] < N * K ? pairs->pair_row[i] / K : pairs->pair_row[i] - N * K + N;
    for (uint32_t t = 0; t <= N; t++)
        rows->token_return_offset[t] = pairs->token_return_offset[t * K];
    for (uint32_t t = 0; t < N; t++)
        rows->row_pair_offset[t] = pairs->row_pair_offset[t * K];
    memcpy(rows->row_pair_offset + N, pairs->row_pair_offset + (size_t)N * K,
        (pairs->n_recv + 1) * sizeof *rows->row_pair_offset);
}

gr_err gr_bench_plan_build(bench_plan *p, const bench_batch *b) {
    GR_TRY(gr_plan_build(&p->gates, p->builder, &p->limits, &b->map, b->rank, b->ids, b->gates));
    if (p->per_pair)
        gr_bench_plan_fold(p);
    else
        p->rows = p->gates;
    return GR_OK;
}
