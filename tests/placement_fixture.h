/* placement_fixture.h: a placement of given tables, made without `place`: experts dealt out in a seeded order, each
 * window on the rank that most of its tokens touch, at equal counts or without. */
#ifndef GROUTER_PLACEMENT_FIXTURE_H
#define GROUTER_PLACEMENT_FIXTURE_H

#include <stdlib.h>
#include <string.h>

#include "grouter/placement.h"
#include "grouter/transport.h"

typedef struct placement_fixture {
    const char *const *routes, *const *tokens; /* [n_table] paths */
    int n_table;
    uint32_t n_vocab, n_node, node_ranks;
    uint64_t seed;
    bool equal; /* as many windows on each rank, to one */
} placement_fixture;

static inline void *placement_fixture_take(size_t n, size_t size) {
    void *p;
    gr_err e = gr_alloc(&p, n, size, "placement of a test");
    GR_ASSERT(!e, "%s", gr_error_text());
    return p;
}

static inline int placement_fixture_ascending(const void *a, const void *b) {
    return (int)*(const uint16_t *)a - (int)*(const uint16_t *)b;
}

static inline void placement_fixture_deal(gr_placement *p, uint64_t seed) {
    uint32_t E_local = p->E / p->R;
    p->expert_at = placement_fixture_take(p->E, sizeof *p->expert_at);
    p->rank_load = placement_fixture_take(p->R, sizeof *p->rank_load);
    p->together = placement_fixture_take((size_t)p->E * p->E, sizeof *p->together);
    for (uint32_t i = 0; i < p->E; i++)
        p->expert_at[i] = (uint16_t)gr_bijection(seed, p->E, i);
    for (uint32_t r = 0; r < p->R; r++)
        qsort(p->expert_at + r * E_local, E_local, sizeof *p->expert_at, placement_fixture_ascending);
}

static inline void placement_fixture_windows(gr_placed_table *t, uint32_t R, bool equal) {
    size_t n = t->n_window;
    int32_t *cost = placement_fixture_take(n * R, sizeof *cost);
    uint64_t *room = placement_fixture_take(R, sizeof *room);
    for (size_t i = 0; i < n * R; i++)
        cost[i] = -(int32_t)t->touch.count[i];
    for (uint32_t r = 0; r < R; r++)
        room[r] = equal ? (n + R - 1) / R : n;
    gr_transport assignment = {.n = n, .P = R, .cost = cost, .room = room};
    t->rank = placement_fixture_take(n, sizeof *t->rank);
    gr_err e = gr_transport_solve(&assignment, t->rank, NULL);
    GR_ASSERT(!e, "%s", gr_error_text());
    free(room);
    free(cost);
}

static inline void placement_fixture_table(
    gr_placement *p, const placement_fixture *f, int i, const uint16_t *rank_of) {
    gr_placed_table *t = &p->table[i];
    gr_routes *routes;
    gr_tokens *tokens;
    gr_err e = gr_routes_open(&routes, f->routes[i]);
    GR_ASSERT(!e, "%s", gr_error_text());
    e = gr_tokens_open(&tokens, f->tokens[i]);
    GR_ASSERT(!e, "%s", gr_error_text());
    t->path = strdup(f->routes[i]);
    t->table_hash = gr_routes_get(routes)->table_hash;
    t->n_window = gr_routes_get(routes)->n_window;
    e = gr_touch_open(&t->touch, routes, tokens, f->n_vocab, p->R, rank_of, false);
    GR_ASSERT(!e && t->path, "%s", gr_error_text());
    gr_tokens_close(tokens);
    gr_routes_close(routes);
    placement_fixture_windows(t, p->R, f->equal);
}

static inline void placement_fixture_make(gr_placement *p, const placement_fixture *f) {
    gr_routes *first;
    gr_err e = gr_routes_open(&first, f->routes[0]);
    GR_ASSERT(!e, "%s", gr_error_text());
    const gr_routes_info *info = gr_routes_get(first);
    *p = (gr_placement){.n_node = f->n_node,
        .node_ranks = f->node_ranks,
        .R = f->n_node * f->node_ranks,
        .E = info->E,
        .K = info->K,
        .T = info->T,
        .router = info->router,
        .method = f->equal ? GR_PLACE_BALANCED : GR_PLACE_PAPER,
        .grain = GR_PLACE_BY_RANK,
        .seed = f->seed,
        .n_score = 1,
        .score = {{.name = "test"}},
        .n_table = f->n_table};
    gr_routes_close(first);
    placement_fixture_deal(p, f->seed);
    uint16_t *rank_of = placement_fixture_take(p->E, sizeof *rank_of);
    for (uint32_t at = 0; at < p->E; at++)
        rank_of[p->expert_at[at]] = (uint16_t)(at / (p->E / p->R));
    p->table = placement_fixture_take((size_t)f->n_table, sizeof *p->table);
    for (int i = 0; i < f->n_table; i++)
        placement_fixture_table(p, f, i, rank_of);
    free(rank_of);
}

#endif
