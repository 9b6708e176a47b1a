/* feed_limits.c: the largest plans of a run, before it starts. */
#include <stdlib.h>

#include "feed.h"

enum { PACKED_STEPS = 32 }; /* of a run whose windows are packed: what its rows are expected from */

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

gr_plan_limits gr_plan_limits_max(const gr_plan_limits *a, const gr_plan_limits *b) {
    gr_plan_limits m = *a;
    m.send_max = larger(m.send_max, b->send_max);
    m.recv_max = larger(m.recv_max, b->recv_max);
    m.pair_max = larger(m.pair_max, b->pair_max);
    return m;
}

static void raise_limits(gr_feed *f, uint64_t send, uint64_t recv, uint64_t pair) {
    f->limits.send_max = larger(f->limits.send_max, send);
    f->limits.recv_max = larger(f->limits.recv_max, recv);
    f->limits.pair_max = larger(f->limits.pair_max, pair);
}

/* ---------------------------------------------------------------- pairs */

/* Of the window whose histogram is in window_load. */
static uint32_t pairs_on_rank(const gr_feed *f, uint32_t rank) {
    uint64_t most = (uint64_t)f->T * f->K, n = 0;
    for (uint32_t s = 0; s < f->map->E_local; s++)
        n += f->window_load[f->map->expert_at[(size_t)rank * f->map->E_local + s]];
    return (uint32_t)(n < most ? n : most);
}

void gr_feed_pairs(gr_feed *f, const feed_place *p, uint32_t *pairs) {
    gr_routes_histogram(f->source[p->source].routes, p->window, f->window_load);
    for (uint32_t r = 0; r < f->map->n_rank; r++)
        pairs[r] = pairs_on_rank(f, r);
}

/* ---------------------------------------------------------------- micro-batches whose windows are known */

static void micro_limits(gr_feed *f, uint64_t cursor, uint64_t micro) {
    uint32_t R = f->map->n_rank, rank = (uint32_t)f->comm->rank[GR_EP];
    uint64_t first = gr_feed_group_first(f, micro), send = 0, recv = 0, pair = 0;
    for (uint32_t j = 0; j < R * f->B; j++) {
        feed_place p = gr_feed_place(f, cursor, first + j);
        const uint32_t *touch = f->source[p.source].touches + p.window * R;
        gr_routes_histogram(f->source[p.source].routes, p.window, f->window_load);
        pair += pairs_on_rank(f, rank);
        if (j / f->B == rank)
            gr_links_add(&f->links, touch, R, f->map->node_ranks, rank);
        for (uint32_t r = 0; r < R; r++) {
            if (j / f->B == rank && r != rank)
                send += touch[r];
            if (j / f->B != rank && r == rank)
                recv += touch[r];
        }
    }
    raise_limits(f, send, recv, pair);
}

/* ---------------------------------------------------------------- global batches whose windows may lie anywhere */

static int descending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x < y) - (x > y);
}

/* Of the batch's values. */
static uint64_t sum_of_largest(feed_batch *b, uint64_t n_value) {
    uint64_t sum = 0;
    qsort(b->value, b->n, sizeof *b->value, descending);
    for (uint64_t i = 0; i < n_value; i++)
        sum += b->value[i];
    return sum;
}

/* Whichever windows a micro-batch gets: this rank receives rows of (R_ep-1)*B windows, sends those of B, and works on
 * pairs of R_ep*B. */
static void bound_batch(gr_feed *f, uint64_t cursor) {
    feed_batch *b = &f->batch;
    const size_t R = f->map->n_rank, rank = (size_t)f->comm->rank[GR_EP];
    gr_feed_batch_list(f, cursor);
    for (size_t w = 0; w < b->n; w++)
        b->value[w] = b->touch[w * R + rank];
    uint64_t recv = sum_of_largest(b, (R - 1) * f->B);
    for (size_t w = 0; w < b->n; w++)
        b->value[w] = b->pairs[w * R + rank];
    uint64_t pair = sum_of_largest(b, R * f->B);
    for (size_t w = 0; w < b->n; w++) {
        b->value[w] = 0;
        for (size_t r = 0; r < R; r++)
            b->value[w] += r == rank ? 0 : b->touch[w * R + r];
    }
    raise_limits(f, sum_of_largest(b, f->B), recv, pair);
}

/* ---------------------------------------------------------------- the run */

/* Without tables: of any choice, or, where a plan is known before its micro-batch and buffers can grow for it, a little
 * more than uniform routing needs. One rank alone keeps all its pairs: no look at the data is needed. Else maxima over
 * every micro-batch of the run, exact unless windows are packed. */
void gr_feed_find_limits(gr_feed *f) {
    if (f->routing != GR_SOURCE_TABLE) {
        f->limits = f->routing == GR_SOURCE_ONLINE ? gr_forecast_limits(f->config, f->map, GR_FORECAST_SPARE)
                                                   : gr_plan_limits_worst(f->B * f->T, f->K, f->map);
        return;
    }
    f->limits = (gr_plan_limits){.N = f->B * f->T, .K = f->K, .n_rank = f->map->n_rank, .E_local = f->map->E_local};
    if (f->map->n_rank == 1) {
        f->limits.pair_max = (uint64_t)f->limits.N * f->K;
        return;
    }
    int64_t n_step = f->kind == GR_FEED_TRAIN ? f->config->train.steps - f->start.step : 1;
    uint64_t n_micro = gr_feed_micro_batches(f), G = (uint64_t)f->config->train.global_batch_windows;
    for (int64_t step = 0; step < n_step; step++) {
        uint64_t cursor = f->start.cursor + (uint64_t)step * G;
        if (gr_feed_packs(f))
            bound_batch(f, cursor);
        for (uint64_t micro = 0; !gr_feed_packs(f) && micro < n_micro; micro++)
            micro_limits(f, cursor, micro);
    }
}

/* Of all ranks, in the batch that is packed. */
static void add_batch_rows(const gr_feed *f, gr_links *rows) {
    const feed_batch *b = &f->batch;
    const uint32_t R = f->map->n_rank;
    for (uint32_t at = 0; at < b->n; at++)
        gr_links_add(rows, b->touch + (size_t)b->order[at] * R, R, f->map->node_ranks, at / f->B % R);
}

gr_err gr_feed_rows(gr_feed *f, gr_step_links *per_step) {
    int64_t n_step = f->config->train.steps - f->start.step, n = n_step < PACKED_STEPS ? n_step : PACKED_STEPS;
    uint64_t G = (uint64_t)f->config->train.global_batch_windows;
    gr_links rows = f->links;
    double share = (double)n_step;
    for (int64_t step = 0; gr_feed_packs(f) && step < n; step++) {
        GR_TRY(gr_feed_batch_pack(f, f->start.cursor + (uint64_t)step * G));
        add_batch_rows(f, &rows);
        share = (double)n * f->comm->size[GR_WORLD];
    }
    *per_step = (gr_step_links){0};
    if (n_step > 0)
        *per_step = (gr_step_links){.within = (double)rows.within / share, .between = (double)rows.between / share};
    return GR_OK;
}
