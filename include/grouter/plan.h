/* plan.h: for one micro-batch and rank: which rows go where, which pairs they become, which sums bring them back.
 *
 * Pure host data and indices only: no gates, no layer, no communication. Every rank derives its whole plan from the
 * routes of all tokens of its expert-parallel group, so nothing is exchanged to agree on sizes.
 *
 * The experts' input is one buffer of rows [N own tokens | M received rows]; received rows come by source rank, then
 * token. Total order everywhere:
 *   send_token  by destination rank, then token          pair  by local expert, then row
 *   recv_token  by source rank, then token
 * Backward of dispatch is combine and the other way round: the same plan with roles swapped.
 */
#ifndef GROUTER_PLAN_H
#define GROUTER_PLAN_H

#include "grouter/data.h"
#include "grouter/tiles.h"

/* Where experts live: expert e is local slot slot_of[e] of rank rank_of[e]. */
typedef struct gr_expert_map {
    uint32_t E, n_rank, E_local; /* E_local = E / n_rank */
    uint32_t node_ranks;         /* rank r is on node r / node_ranks; n_rank: all on one */
    uint16_t *rank_of;           /* [E] */
    uint16_t *slot_of;           /* [E] */
    uint16_t *expert_at;         /* [n_rank][E_local] logical id of a slot */
} gr_expert_map;
/* Consecutive blocks of E/n_rank experts. One node. E % n_rank == 0 is an invariant (checked by the config). */
GR_MUST gr_err gr_expert_map_open(gr_expert_map *m, uint32_t E, uint32_t n_rank);
/* As a placement says: expert_at[n_rank][E/n_rank], each expert once (an invariant). */
GR_MUST gr_err gr_expert_map_open_placed(gr_expert_map *m, uint32_t E, uint32_t n_rank, const uint16_t *expert_at);
void gr_expert_map_close(gr_expert_map *m);

/* Largest sizes any plan of the run may have; buffers are made from these. */
typedef struct gr_plan_limits {
    uint32_t N; /* own tokens, exact */
    uint32_t K;
    uint32_t n_rank; /* R_ep */
    uint32_t E_local;
    uint64_t send_max, recv_max, pair_max;
} gr_plan_limits;

/* The largest that any choice of K distinct experts per token can need: all tokens to one rank. */
gr_plan_limits gr_plan_limits_worst(uint32_t N, uint32_t K, const gr_expert_map *map);

typedef struct gr_plan {
    uint32_t N, K, n_rank, rank, E_local;
    uint32_t n_send; /* rows sent = rows returned to us */
    uint32_t n_recv; /* M */
    uint32_t n_pair; /* P */
    uint32_t n_tile;
    uint32_t *send_rows;           /* [n_rank], own entry 0 */
    uint32_t *recv_rows;           /* [n_rank], own entry 0 */
    uint32_t *send_token;          /* [n_send] own token of each row sent */
    uint32_t *recv_token;          /* [n_recv] token of each received row, numbered over the group: rank*N + token */
    uint32_t *expert_offset;       /* [E_local+1] pairs of each local expert; empty is legal */
    uint32_t *pair_row;            /* [n_pair] row of [N | M] */
    uint8_t *pair_slot;            /* [n_pair] which of its token's K entries */
    uint32_t *row_pair_offset;     /* [N+M+1] sum list: pairs of each row... */
    uint32_t *row_pair;            /* [n_pair] ...ascending */
    uint32_t *token_return_offset; /* [N+1] sum list: returned rows of each own token... */
    uint32_t *token_return;        /* [n_send] ...by rank: indices into the sent rows */
    gr_row_tile *tiles;            /* [n_tile] the pairs in row tiles (gr_tiles_build) */
    uint32_t *expert_order;        /* [E_local] local experts by descending pairs */
} gr_plan;

/* Layout function: takes everything a plan and its builder's scratch need within `limits`. */
typedef struct gr_plan_builder gr_plan_builder;
void gr_plan_layout(
    gr_arena *arena, const gr_plan_limits *limits, const gr_expert_map *map, gr_plan *plan, gr_plan_builder **builder);

/* Builds the plan of `rank` from ids[n_rank*N*K] and gates[n_rank*N*K] (all windows of the group, rank-major, rows as
 * the route table's reader checked them). A slot with gate exactly 0 makes no pair, no row and no count. Exceeding a
 * limit is 65, before anything beyond the plan itself is written. Deterministic; O(n_rank*N*K). */
GR_MUST gr_err gr_plan_build(gr_plan *plan, gr_plan_builder *builder, const gr_plan_limits *limits,
    const gr_expert_map *map, uint32_t rank, const uint16_t *ids, const float *gates);

/* Gates of the plan's pairs from the same gates[n_rank*N*K]: pair_gate[n_pair]. */
void gr_plan_gates(const gr_plan *plan, const float *gates, float *pair_gate);

#endif
