/* plan.c: one micro-batch's routes of a whole group, turned into one rank's rows, pairs and sum lists.
 *
 * One pass over the ids finds the pairs of this rank in the order of rows (own tokens, then other ranks' tokens by rank
 * and token) and, for own tokens, the set of other ranks they go to. Two counting sorts then give every list its total
 * order: found pairs by expert, sent rows by rank. Nearly all time is the first pass over ids of other ranks, of which
 * only one in n_rank is ours at random: it stores every candidate and keeps it by advancing the cursor, because a
 * branch would be mispredicted once per pair.
 */
#include "grouter/plan.h"

#include <string.h>

enum { NO_SLOT = 0xFFFF };

struct gr_plan_builder {
    uint16_t *slot;   /* [E] slot of an expert of this rank, NO_SLOT for others */
    uint64_t *away;   /* [N][n_word] other ranks that hold experts of an own token, one bit each */
    uint64_t *found;  /* [pair_max + K] pairs by row, then slot of the token: row << 32 | expert << 8 | slot */
    uint32_t *cursor; /* [max(n_rank, E_local)] next free place of each list in a counting sort */
    uint32_t n_word;
};

/* What the scan has found so far. */
typedef struct scan {
    gr_plan *plan;
    const gr_plan_builder *builder;
    const gr_plan_limits *limits;
    const gr_expert_map *map;
    const uint16_t *ids;
    const float *gates;
    uint32_t n_pair, n_recv;
} scan;

void gr_plan_layout(
    gr_arena *arena, const gr_plan_limits *limits, const gr_expert_map *map, gr_plan *plan, gr_plan_builder **builder) {
    GR_ASSERT(map->n_rank == limits->n_rank && map->E_local == limits->E_local,
        "limits of %u ranks with %u experts, map of %u with %u", limits->n_rank, limits->E_local, map->n_rank,
        map->E_local);
    GR_ASSERT((uint64_t)limits->n_rank * limits->N <= UINT32_MAX && limits->send_max <= UINT32_MAX &&
                  limits->N + limits->recv_max + 2 <= UINT32_MAX && limits->pair_max + limits->K <= UINT32_MAX,
        "rows and pairs are numbered in 32 bits: %u ranks of %u tokens, %llu received rows, %llu pairs", limits->n_rank,
        limits->N, (unsigned long long)limits->recv_max, (unsigned long long)limits->pair_max);
    size_t N = limits->N, send = limits->send_max, recv = limits->recv_max, pair = limits->pair_max;
    *plan = (gr_plan){.N = limits->N, .K = limits->K, .n_rank = limits->n_rank, .E_local = limits->E_local};
    plan->send_rows = GR_TAKE(arena, limits->n_rank, uint32_t);
    plan->recv_rows = GR_TAKE(arena, limits->n_rank, uint32_t);
    plan->send_token = GR_TAKE(arena, send, uint32_t);
    plan->recv_token = GR_TAKE(arena, recv + 1, uint32_t); /* + 1: the scan writes a row before it knows of any pair */
    plan->expert_offset = GR_TAKE(arena, limits->E_local + 1, uint32_t);
    plan->pair_row = GR_TAKE(arena, pair, uint32_t);
    plan->pair_slot = GR_TAKE(arena, pair, uint8_t);
    plan->row_pair_offset = GR_TAKE(arena, N + recv + 2, uint32_t); /* one more for the same reason */
    plan->row_pair = GR_TAKE(arena, pair, uint32_t);
    plan->token_return_offset = GR_TAKE(arena, N + 1, uint32_t);
    plan->token_return = GR_TAKE(arena, send, uint32_t);
    plan->tiles = GR_TAKE(arena, gr_tiles_max(pair, limits->E_local), gr_row_tile);
    plan->expert_order = GR_TAKE(arena, limits->E_local, uint32_t);

    uint32_t n_word = (limits->n_rank + 63) / 64;
    gr_plan_builder b = {
        .slot = GR_TAKE(arena, map->E, uint16_t),
        .away = GR_TAKE(arena, N * n_word, uint64_t),
        .found = GR_TAKE(arena, pair + limits->K, uint64_t),
        .cursor = GR_TAKE(arena, limits->n_rank > limits->E_local ? limits->n_rank : limits->E_local, uint32_t),
        .n_word = n_word,
    };
    *builder = GR_TAKE(arena, 1, gr_plan_builder);
    if (*builder)
        **builder = b;
}

GR_MUST static gr_err fail_limit(const scan *s, const char *what, uint64_t limit, uint32_t rank, uint32_t token) {
    return gr_fail(GR_DATA,
        "plan of expert-parallel rank %u: expected at most %llu %s, got more (at token %u of rank %u); the routes are "
        "not those the limits were counted from: remove the tables' .touch files to have them counted again",
        s->plan->rank, (unsigned long long)limit, what, token, rank);
}

/* ---------------------------------------------------------------- the scan */

/* Own tokens: every token is a row; pairs of local experts, and where the other experts are. */
GR_MUST static gr_err scan_own(scan *s) {
    gr_plan *plan = s->plan;
    const gr_plan_builder *b = s->builder;
    const uint16_t *rank_of = s->map->rank_of;
    uint32_t K = plan->K, n = 0;
    const uint16_t *ids = s->ids + (size_t)plan->rank * plan->N * K;
    const float *gates = s->gates + (size_t)plan->rank * plan->N * K;
    plan->row_pair_offset[0] = 0;
    for (uint32_t t = 0; t < plan->N; t++, ids += K, gates += K) {
        uint64_t *away = b->away + (size_t)t * b->n_word;
        for (uint32_t k = 0; k < K; k++) {
            bool used = gates[k] > 0.0f;
            uint32_t expert = b->slot[ids[k]], rank = rank_of[ids[k]];
            b->found[n] = (uint64_t)t << 32 | expert << 8 | k;
            n += used & (expert != NO_SLOT);
            away[rank / 64] |= (uint64_t)used << (rank % 64);
        }
        away[plan->rank / 64] &= ~((uint64_t)1 << (plan->rank % 64));
        plan->row_pair_offset[t + 1] = n;
        if (n > s->limits->pair_max)
            return fail_limit(s, "pairs", s->limits->pair_max, plan->rank, t);
    }
    s->n_pair = n;
    return GR_OK;
}

/* Another rank's tokens: those with a local expert are received rows. */
GR_MUST static gr_err scan_peer(scan *s, uint32_t rank) {
    gr_plan *plan = s->plan;
    const gr_plan_builder *b = s->builder;
    uint32_t K = plan->K, n = s->n_pair, m = s->n_recv;
    const uint16_t *ids = s->ids + (size_t)rank * plan->N * K;
    const float *gates = s->gates + (size_t)rank * plan->N * K;
    for (uint32_t t = 0; t < plan->N; t++, ids += K, gates += K) {
        uint64_t row = (uint64_t)(plan->N + m) << 32;
        uint32_t before = n;
        for (uint32_t k = 0; k < K; k++) {
            uint32_t expert = b->slot[ids[k]];
            b->found[n] = row | expert << 8 | k;
            n += (expert != NO_SLOT) & (gates[k] > 0.0f);
        }
        plan->recv_token[m] = rank * plan->N + t;
        plan->row_pair_offset[plan->N + m + 1] = n;
        m += n > before;
        if (n > s->limits->pair_max)
            return fail_limit(s, "pairs", s->limits->pair_max, rank, t);
        if (m > s->limits->recv_max)
            return fail_limit(s, "received rows", s->limits->recv_max, rank, t);
    }
    plan->recv_rows[rank] = m - s->n_recv;
    s->n_pair = n;
    s->n_recv = m;
    return GR_OK;
}

/* ---------------------------------------------------------------- the sorts */

/* Pairs by expert, then row; and each row's pairs ascending. */
static void place_pairs(scan *s) {
    gr_plan *plan = s->plan;
    const uint64_t *found = s->builder->found;
    uint32_t *cursor = s->builder->cursor, n = s->n_pair;
    memset(cursor, 0, plan->E_local * sizeof *cursor);
    for (uint32_t i = 0; i < n; i++)
        cursor[(uint32_t)found[i] >> 8]++;
    uint32_t offset = 0;
    for (uint32_t e = 0; e < plan->E_local; e++) {
        plan->expert_offset[e] = offset;
        offset += cursor[e];
        cursor[e] = plan->expert_offset[e];
    }
    plan->expert_offset[plan->E_local] = offset;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t row = (uint32_t)(found[i] >> 32), p = cursor[(uint32_t)found[i] >> 8]++;
        plan->pair_row[p] = row;
        plan->pair_slot[p] = (uint8_t)found[i];
        /* Ids ascend, so with experts in blocks this stops at once; a placement may number slots in another order. */
        uint32_t at = i, first = plan->row_pair_offset[row];
        for (; at > first && plan->row_pair[at - 1] > p; at--)
            plan->row_pair[at] = plan->row_pair[at - 1];
        plan->row_pair[at] = p;
    }
}

/* Sent rows by rank, then token; and each token's returned rows by rank. */
GR_MUST static gr_err place_sends(scan *s) {
    gr_plan *plan = s->plan;
    const gr_plan_builder *b = s->builder;
    uint64_t n_send = 0;
    memset(plan->send_rows, 0, plan->n_rank * sizeof *plan->send_rows);
    for (uint32_t t = 0; t < plan->N; t++)
        for (uint32_t w = 0; w < b->n_word; w++)
            for (uint64_t set = b->away[(size_t)t * b->n_word + w]; set; set &= set - 1, n_send++)
                plan->send_rows[w * 64 + (uint32_t)__builtin_ctzll(set)]++;
    if (n_send > s->limits->send_max)
        return fail_limit(s, "sent rows", s->limits->send_max, plan->rank, plan->N - 1);
    uint32_t offset = 0;
    for (uint32_t r = 0; r < plan->n_rank; r++) {
        b->cursor[r] = offset;
        offset += plan->send_rows[r];
    }
    uint32_t n = 0;
    for (uint32_t t = 0; t < plan->N; t++) {
        plan->token_return_offset[t] = n;
        for (uint32_t w = 0; w < b->n_word; w++)
            for (uint64_t set = b->away[(size_t)t * b->n_word + w]; set; set &= set - 1) {
                uint32_t at = b->cursor[w * 64 + (uint32_t)__builtin_ctzll(set)]++;
                plan->send_token[at] = t;
                plan->token_return[n++] = at;
            }
    }
    plan->token_return_offset[plan->N] = n;
    plan->n_send = n;
    return GR_OK;
}

gr_err gr_plan_build(gr_plan *plan, gr_plan_builder *builder, const gr_plan_limits *limits, const gr_expert_map *map,
    uint32_t rank, const uint16_t *ids, const float *gates) {
    GR_ASSERT(rank < limits->n_rank, "rank %u of %u", rank, limits->n_rank);
    plan->rank = rank;
    for (uint32_t e = 0; e < map->E; e++)
        builder->slot[e] = map->rank_of[e] == rank ? map->slot_of[e] : NO_SLOT;
    memset(builder->away, 0, (size_t)plan->N * builder->n_word * sizeof *builder->away);
    scan s = {.plan = plan, .builder = builder, .limits = limits, .map = map, .ids = ids, .gates = gates};
    GR_TRY(scan_own(&s));
    for (uint32_t r = 0; r < plan->n_rank; r++)
        if (r == rank)
            plan->recv_rows[r] = 0;
        else
            GR_TRY(scan_peer(&s, r));
    GR_TRY(place_sends(&s));
    plan->n_pair = s.n_pair;
    plan->n_recv = s.n_recv;
    place_pairs(&s);
    plan->n_tile = gr_tiles_build(plan->expert_offset, plan->E_local, plan->tiles, plan->expert_order);
    return GR_OK;
}

void gr_plan_gates(const gr_plan *plan, const float *gates, float *pair_gate) {
    uint32_t K = plan->K;
    for (uint32_t row = 0; row < plan->N + plan->n_recv; row++) {
        size_t token = row < plan->N ? (size_t)plan->rank * plan->N + row : (size_t)plan->recv_token[row - plan->N];
        for (uint32_t i = plan->row_pair_offset[row]; i < plan->row_pair_offset[row + 1]; i++)
            pair_gate[plan->row_pair[i]] = gates[token * K + plan->pair_slot[plan->row_pair[i]]];
    }
}
