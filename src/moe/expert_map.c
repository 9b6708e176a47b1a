/* expert_map.c: where experts live, and what that bounds. */
#include "grouter/plan.h"

#include <stdlib.h>

#define NOWHERE UINT16_MAX

static gr_err allocate(gr_expert_map *m, uint32_t E, uint32_t n_rank) {
    GR_ASSERT(n_rank > 0 && E > 0 && E % n_rank == 0, "%u experts on %u ranks", E, n_rank);
    *m = (gr_expert_map){.E = E, .n_rank = n_rank, .E_local = E / n_rank, .node_ranks = n_rank};
    void *p;
    GR_TRY(gr_alloc(&p, (size_t)3 * E, sizeof(uint16_t), "expert map"));
    m->rank_of = p;
    m->slot_of = m->rank_of + E;
    m->expert_at = m->slot_of + E;
    return GR_OK;
}

static void put(gr_expert_map *m, uint32_t at, uint16_t expert) {
    m->expert_at[at] = expert;
    m->rank_of[expert] = (uint16_t)(at / m->E_local);
    m->slot_of[expert] = (uint16_t)(at % m->E_local);
}

gr_err gr_expert_map_open(gr_expert_map *m, uint32_t E, uint32_t n_rank) {
    GR_TRY(allocate(m, E, n_rank));
    for (uint32_t e = 0; e < E; e++)
        put(m, e, (uint16_t)e);
    return GR_OK;
}

gr_err gr_expert_map_open_placed(gr_expert_map *m, uint32_t E, uint32_t n_rank, const uint16_t *expert_at) {
    GR_TRY(allocate(m, E, n_rank));
    for (uint32_t e = 0; e < E; e++)
        m->rank_of[e] = NOWHERE;
    for (uint32_t at = 0; at < E; at++) {
        GR_ASSERT(expert_at[at] < E && m->rank_of[expert_at[at]] == NOWHERE, "expert %u at slot %u", expert_at[at], at);
        put(m, at, expert_at[at]);
    }
    return GR_OK;
}

gr_plan_limits gr_plan_limits_worst(uint32_t N, uint32_t K, const gr_expert_map *map) {
    uint64_t others = map->n_rank - 1, here = K < map->E_local ? K : map->E_local;
    return (gr_plan_limits){.N = N,
        .K = K,
        .n_rank = map->n_rank,
        .E_local = map->E_local,
        .send_max = N * (others < K ? others : K),
        .recv_max = N * others,
        .pair_max = (uint64_t)N * map->n_rank * here};
}

void gr_expert_map_close(gr_expert_map *m) {
    free(m->rank_of); /* the other arrays follow it in the same memory */
    *m = (gr_expert_map){0};
}
