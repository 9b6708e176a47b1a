/* exchange_dynamic.c: what a layer does when routes are known only in it. Each rank knows the experts of its own
 * tokens: it sorts, tells the others how many rows come, waits for theirs, and both sides make their lists. */
#include "exchange.h"

#include <stdlib.h>
#include <string.h>

static void layout(bench_dynamic *d, gr_arena *a, const bench_batch *b) {
    const gr_plan_limits *l = &d->plan.limits;
    size_t n_pair = (size_t)b->N * b->K;
    d->counts = GR_TAKE(a, b->E, uint32_t);
    d->coming = GR_TAKE(a, b->E, uint32_t);
    d->cursor = GR_TAKE(a, b->E + 1, uint32_t);
    d->order = GR_TAKE(a, n_pair, uint32_t);
    d->place = GR_TAKE(a, n_pair + b->R, uint32_t);
    d->one_row = GR_TAKE(a, b->R, uint32_t);
    d->ids_out = GR_TAKE(a, l->send_max * b->K, uint16_t);
    d->ids_in = GR_TAKE(a, l->recv_max * b->K, uint16_t);
}

gr_err gr_bench_dynamic_open(bench_dynamic *d, gr_comm *comm, const bench_batch *b, const bench_plan *like) {
    gr_plan_limits limits = like->limits;
    limits.send_max = like->gates.n_send;
    limits.recv_max = like->gates.n_recv;
    limits.pair_max = like->gates.n_pair;
    *d = (bench_dynamic){.comm = comm, .map = &b->map, .rank = b->rank};
    GR_TRY(gr_bench_plan_open(&d->plan, b, like->per_pair, &limits));
    gr_arena arena = {0};
    layout(d, &arena, b);
    GR_TRY(gr_alloc(&d->memory, arena.peak + GR_ALIGN, 1, "lists of a layer"));
    uintptr_t base = ((uintptr_t)d->memory + GR_ALIGN - 1) & ~(uintptr_t)(GR_ALIGN - 1);
    arena = (gr_arena){.base = (uint8_t *)base, .size = arena.peak};
    layout(d, &arena, b);
    for (uint32_t r = 0; r < b->R; r++)
        d->one_row[r] = 1;
    d->plan.gates.rank = d->plan.rows.rank = b->rank;
    return GR_OK;
}

void gr_bench_dynamic_close(bench_dynamic *d) {
    gr_bench_plan_close(&d->plan);
    free(d->memory);
    *d = (bench_dynamic){0};
}

/* n counts of this rank for each rank against those of each rank for this one. Nothing of the layer can go on before
 * they are there. */
static gr_err exchange_counts(bench_dynamic *d, const uint32_t *mine, uint32_t *theirs, uint32_t n) {
    gr_exchange x = {.group = GR_EP,
        .dtype = GR_U32,
        .width = n,
        .send = mine,
        .send_rows = d->one_row,
        .recv = theirs,
        .recv_rows = d->one_row};
    d->comm->traffic = GR_TRAFFIC_ROUTES;
    GR_TRY(d->comm->exchange_start(d->comm, &x));
    return d->comm->exchange_wait(d->comm);
}

/* The room is what the same routes need. */
static gr_err check_room(const bench_dynamic *d, const char *what, uint64_t n, uint64_t expected) {
    if (n == expected)
        return GR_OK;
    return gr_fail(GR_BUG, "bench exchange: rank %u: expected %llu %s as the plan of these routes has, got %llu",
        d->rank, (unsigned long long)expected, what, (unsigned long long)n);
}

/* ---------------------------------------------------------------- a row per pair */

static uint32_t slot_of(const bench_dynamic *d, uint16_t expert) {
    return d->map->rank_of[expert] * d->map->E_local + d->map->slot_of[expert];
}

static void sort_pairs(bench_dynamic *d, const uint16_t *ids) {
    const uint32_t n = d->plan.gates.N, E = d->map->E;
    memset(d->counts, 0, E * sizeof *d->counts);
    for (uint32_t i = 0; i < n; i++)
        d->counts[slot_of(d, ids[i])]++;
    for (uint32_t s = 0, at = 0; s < E; s++) {
        d->cursor[s] = at;
        at += d->counts[s];
    }
    for (uint32_t i = 0; i < n; i++)
        d->order[d->cursor[slot_of(d, ids[i])]++] = i;
}

/* Pairs of other ranks' experts, which stand before and behind the own ones in `order`, and where each returns to. */
static gr_err list_sends(bench_dynamic *d) {
    gr_plan *p = &d->plan.gates;
    const uint32_t E_local = p->E_local, n_own_first = d->rank * E_local;
    uint32_t first = 0, n_here = 0;
    for (uint32_t r = 0; r < p->n_rank; r++) {
        p->send_rows[r] = 0;
        for (uint32_t s = r * E_local; s < (r + 1) * E_local; s++)
            p->send_rows[r] += d->counts[s];
    }
    for (uint32_t s = 0; s < n_own_first; s++)
        first += d->counts[s];
    n_here = p->send_rows[d->rank];
    p->send_rows[d->rank] = 0;
    p->n_send = p->N - n_here;
    GR_TRY(check_room(d, "rows to send", p->n_send, d->plan.limits.send_max));
    for (uint32_t i = 0; i < p->n_send; i++)
        p->send_token[i] = d->order[i < first ? i : i + n_here];
    return GR_OK;
}

/* Pairs by expert: own ones, then those of each rank; its rows come by expert. Leaves in `place` the pair of each own
 * pair that stays here. */
static gr_err list_pairs(bench_dynamic *d) {
    gr_plan *p = &d->plan.gates;
    const uint32_t E_local = p->E_local, R = p->n_rank;
    const uint32_t *own = d->counts + d->rank * E_local;
    uint32_t n = 0, at = 0;
    for (uint32_t s = 0; s < d->rank * E_local; s++)
        at += d->counts[s];
    p->n_recv = 0;
    for (uint32_t r = 0; r < R; r++) {
        p->recv_rows[r] = 0;
        for (uint32_t e = 0; e < E_local && r != d->rank; e++)
            p->recv_rows[r] += d->coming[r * E_local + e];
        p->n_recv += p->recv_rows[r];
    }
    GR_TRY(check_room(d, "rows to receive", p->n_recv, d->plan.limits.recv_max));
    for (uint32_t e = 0; e < E_local; e++) {
        p->expert_offset[e] = n;
        for (uint32_t i = 0; i < own[e]; i++, at++, n++) {
            p->pair_row[n] = d->order[at];
            d->place[d->order[at]] = n;
        }
        d->cursor[e] = n;
        for (uint32_t r = 0; r < R; r++)
            n += r == d->rank ? 0 : d->coming[r * E_local + e];
    }
    p->expert_offset[E_local] = p->n_pair = n;
    return check_room(d, "pairs", n, d->plan.limits.pair_max);
}

/* For each own pair its place here or among the rows that return; for each received row its pair. */
static void list_rows(bench_dynamic *d, const uint16_t *ids) {
    gr_plan *p = &d->plan.gates;
    uint32_t n_here = 0, n_away = 0, row = p->N;
    for (uint32_t i = 0; i < p->n_send; i++)
        d->place[p->send_token[i]] = i;
    for (uint32_t i = 0; i < p->N; i++) {
        p->row_pair_offset[i] = n_here;
        p->token_return_offset[i] = n_away;
        if (d->map->rank_of[ids[i]] == d->rank)
            p->row_pair[n_here++] = d->place[i];
        else
            p->token_return[n_away++] = d->place[i];
    }
    p->token_return_offset[p->N] = n_away;
    for (uint32_t r = 0; r < p->n_rank; r++)
        for (uint32_t e = 0; e < p->E_local && r != d->rank; e++)
            for (uint32_t i = 0; i < d->coming[r * p->E_local + e]; i++, row++) {
                p->row_pair_offset[row] = n_here;
                p->row_pair[n_here++] = d->cursor[e];
                p->pair_row[d->cursor[e]++] = row;
            }
    p->row_pair_offset[row] = n_here;
    for (uint32_t i = 0; i < p->n_pair; i++)
        p->pair_slot[i] = 0;
}

static gr_err rows_by_pair(bench_dynamic *d, const uint16_t *ids) {
    sort_pairs(d, ids);
    GR_TRY(list_sends(d));
    GR_TRY(exchange_counts(d, d->counts, d->coming, d->map->E_local));
    GR_TRY(list_pairs(d));
    list_rows(d, ids);
    gr_bench_plan_fold(&d->plan);
    return GR_OK;
}

/* ---------------------------------------------------------------- a row per rank */

/* True once for each rank that a token goes to. `mark` differs from token to token and is never 0. */
static bool is_first(const bench_dynamic *d, uint32_t rank, uint32_t mark) {
    if (rank == d->rank || d->place[rank] == mark)
        return false;
    d->place[rank] = mark;
    return true;
}

static gr_err list_ranks(bench_dynamic *d, const uint16_t *ids) {
    gr_plan *p = &d->plan.gates;
    const uint32_t N = p->N, K = p->K, R = p->n_rank;
    uint32_t n = 0;
    memset(d->place, 0, R * sizeof *d->place);
    memset(p->send_rows, 0, R * sizeof *p->send_rows);
    for (uint32_t t = 0; t < N; t++)
        for (uint32_t k = 0; k < K; k++) {
            uint32_t r = d->map->rank_of[ids[t * K + k]];
            if (is_first(d, r, 1 + t))
                p->send_rows[r]++;
        }
    for (uint32_t r = 0; r < R; r++) {
        d->cursor[r] = n;
        n += p->send_rows[r];
    }
    p->n_send = n;
    GR_TRY(check_room(d, "rows to send", n, d->plan.limits.send_max));
    n = 0;
    for (uint32_t t = 0; t < N; t++) {
        p->token_return_offset[t] = n;
        for (uint32_t k = 0; k < K; k++) {
            uint32_t r = d->map->rank_of[ids[t * K + k]];
            if (!is_first(d, r, 1 + N + t))
                continue;
            p->token_return[n++] = d->cursor[r];
            p->send_token[d->cursor[r]++] = t;
        }
    }
    p->token_return_offset[N] = n;
    return GR_OK;
}

static gr_err rows_by_rank(bench_dynamic *d, const uint16_t *ids) {
    gr_plan *p = &d->plan.gates;
    GR_TRY(list_ranks(d, ids));
    GR_TRY(exchange_counts(d, p->send_rows, p->recv_rows, 1));
    p->n_recv = 0;
    for (uint32_t r = 0; r < p->n_rank; r++)
        p->n_recv += p->recv_rows[r];
    GR_TRY(check_room(d, "rows to receive", p->n_recv, d->plan.limits.recv_max));
    d->plan.rows = d->plan.gates;
    return GR_OK;
}

static gr_err exchange_ids(bench_dynamic *d, const uint16_t *ids) {
    const gr_plan *p = &d->plan.gates;
    const size_t K = p->K;
    for (uint32_t i = 0; i < p->n_send; i++)
        memcpy(d->ids_out + i * K, ids + p->send_token[i] * K, K * sizeof *ids);
    gr_exchange x = {.group = GR_EP,
        .dtype = GR_U16,
        .width = p->K,
        .send = d->ids_out,
        .send_rows = p->send_rows,
        .recv = d->ids_in,
        .recv_rows = p->recv_rows};
    d->comm->traffic = GR_TRAFFIC_ROUTES;
    GR_TRY(d->comm->exchange_start(d->comm, &x));
    return d->comm->exchange_wait(d->comm);
}

/* Experts of row `row`. */
static const uint16_t *row_ids(const bench_dynamic *d, const uint16_t *ids, uint32_t row) {
    const gr_plan *p = &d->plan.gates;
    return row < p->N ? ids + (size_t)row * p->K : d->ids_in + (size_t)(row - p->N) * p->K;
}

gr_err gr_bench_dynamic_pairs(bench_dynamic *d, const uint16_t *ids) {
    gr_plan *p = &d->plan.gates;
    const uint32_t n_row = p->N + p->n_recv, *counts = d->counts;
    GR_TRY(exchange_ids(d, ids));
    memset(d->counts, 0, p->E_local * sizeof *d->counts);
    for (uint32_t row = 0; row < n_row; row++)
        for (uint32_t k = 0; k < p->K; k++) {
            uint16_t e = row_ids(d, ids, row)[k];
            if (d->map->rank_of[e] == d->rank)
                d->counts[d->map->slot_of[e]]++;
        }
    uint32_t n = 0;
    for (uint32_t e = 0; e < p->E_local; e++) {
        p->expert_offset[e] = d->cursor[e] = n;
        n += counts[e];
    }
    p->expert_offset[p->E_local] = p->n_pair = n;
    GR_TRY(check_room(d, "pairs", n, d->plan.limits.pair_max));
    n = 0;
    for (uint32_t row = 0; row < n_row; row++) {
        p->row_pair_offset[row] = n;
        for (uint32_t k = 0; k < p->K; k++) {
            uint16_t e = row_ids(d, ids, row)[k];
            if (d->map->rank_of[e] != d->rank)
                continue;
            uint32_t pair = d->cursor[d->map->slot_of[e]]++;
            p->pair_row[pair] = row;
            p->pair_slot[pair] = (uint8_t)k;
            p->row_pair[n++] = pair;
        }
    }
    p->row_pair_offset[n_row] = n;
    d->plan.rows = d->plan.gates;
    return GR_OK;
}

gr_err gr_bench_dynamic_rows(bench_dynamic *d, const uint16_t *ids) {
    return d->plan.per_pair ? rows_by_pair(d, ids) : rows_by_rank(d, ids);
}
