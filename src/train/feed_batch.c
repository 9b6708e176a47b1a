/* One micro-batch of the feed: its windows, their routes from tables or made online, and the plan. */
#include <math.h>
#include <string.h>

#include "feed.h"

/* ---------------------------------------------------------------- tokens and plans */

/* Tokens and targets of window b of this rank. */
static void fill_own(const gr_feed *f, feed_slot *s, uint32_t b, const feed_place *p, gr_micro *out) {
    uint32_t *token = s->token + (size_t)b * f->T;
    int32_t *target = s->target + (size_t)b * f->T;
    memcpy(token, f->window_token, f->T * sizeof *token);
    bool bytes = f->config->model.vocab_size == GR_BYTE_VOCAB;
    for (uint32_t t = 0; t < f->T; t++) {
        uint32_t next = f->window_token[t + 1];
        target[t] = p->ignored ? -1 : (int32_t)next;
        out->n_byte += bytes && !p->ignored && next < GR_BYTE_EOD;
    }
    out->n_target += p->ignored ? 0 : f->T;
}

/* Tokens of window j of the group with an expert on the rank. */
static uint32_t tokens_on_rank(const gr_feed *f, uint32_t j, uint32_t rank) {
    uint32_t n = 0;
    for (uint32_t t = 0; t < f->T; t++) {
        size_t row = ((size_t)j * f->T + t) * f->K;
        bool touches = false;
        for (size_t i = row; i < row + f->K; i++)
            touches |= f->gates[i] > 0 && f->map->rank_of[f->ids[i]] == rank;
        n += touches;
    }
    return n;
}

/* A plan above its limits: names the window with more tokens than were counted. */
static gr_err fail_limits(gr_feed *f, const feed_place *group) {
    uint32_t R = f->map->n_rank;
    for (uint32_t j = 0; R > 1 && j < R * f->B; j++) {
        const feed_source *src = &f->source[group[j].source];
        for (uint32_t r = 0; r < R; r++) {
            uint32_t counted = src->touches[group[j].window * R + r], n = tokens_on_rank(f, j, r);
            if (n <= counted)
                continue;
            char where[GR_PATH_MAX + 64];
            if (src->placed)
                snprintf(where, sizeof where, "%s; place again", f->config->parallel.placement);
            else
                snprintf(where, sizeof where, "its .touch%u file; remove that file to have them counted again", R);
            return gr_fail(GR_DATA,
                "%s: window %llu: expected %u tokens with experts of expert-parallel rank %u, got %u: it was counted "
                "wrongly in %s",
                gr_routes_path(src->routes), (unsigned long long)group[j].window, counted, r, n, where);
        }
    }
    return GR_DATA; /* what the plan said */
}

/* The own windows alone. */
static gr_err prepare_tokens(gr_feed *f, feed_slot *s, const feed_place *group, gr_micro *out) {
    for (uint32_t b = 0; b < f->B; b++) {
        const feed_place *p = &group[(uint32_t)f->comm->rank[GR_EP] * f->B + b];
        feed_source *src = &f->source[p->source];
        GR_TRY(gr_window_read(src->tokens, p->window, f->T, (uint32_t)f->config->model.vocab_size, f->window_token));
        fill_own(f, s, b, p, out);
    }
    return GR_OK;
}

/* The plan and its gates, from routes of the whole group. */
static gr_err build_plan(gr_feed *f, feed_slot *s, const uint16_t *ids) {
    uint32_t rank = (uint32_t)f->comm->rank[GR_EP];
    size_t n_own = (size_t)f->limits.N * f->K;
    gr_plan_limits limits = gr_feed_plan_limits(f);
    GR_TRY(gr_plan_build(&s->plan, s->builder, &limits, f->map, rank, ids, f->gates));
    gr_plan_gates(&s->plan, f->gates, s->pair_gate);
    if (s->ids)
        memcpy(s->ids, ids + rank * n_own, n_own * sizeof *s->ids);
    return GR_OK;
}

/* ---------------------------------------------------------------- routes from tables */

/* All windows of the group and their routes. */
static gr_err prepare_from_tables(gr_feed *f, feed_slot *s, const feed_place *group, gr_micro *out) {
    memset(s->load, 0, f->E * sizeof *s->load);
    uint32_t rank = (uint32_t)f->comm->rank[GR_EP];
    for (uint32_t j = 0; j < f->map->n_rank * f->B; j++) {
        const feed_place *p = &group[j];
        feed_source *src = &f->source[p->source];
        size_t row = (size_t)j * f->T * f->K;
        GR_TRY(gr_window_read(src->tokens, p->window, f->T, (uint32_t)f->config->model.vocab_size, f->window_token));
        GR_TRY(gr_routes_read(src->routes, p->window, f->window_token, f->ids + row, f->gates + row));
        gr_routes_histogram(src->routes, p->window, f->window_load);
        for (uint32_t e = 0; e < f->E; e++)
            s->load[e] += f->window_load[e];
        if (j / f->B == rank)
            fill_own(f, s, j % f->B, p, out);
    }
    return build_plan(f, s, f->ids) ? fail_limits(f, group) : GR_OK;
}

/* ---------------------------------------------------------------- routes made online
 * While micro-batch m computes, lane SIDE routes this rank's windows of m+2: prepare(m+1), called before m computes,
 *   1. collects the records of m+1, routed meanwhile: waits for SIDE, gathers the group's;
 *   2. gives SIDE the windows of m+2;
 *   3. builds the plan of m+1.
 * With the CPU backend a lane computes where it is called, so step 2 takes its time there. The first micro-batch, and
 * the first after going back, finds no records and has its own made on the spot. */

static gr_err route_own(gr_feed *f, feed_records *r, uint32_t b) {
    const feed_source *src = &f->source[r->own[b].source];
    size_t n = (size_t)f->T * f->K, row = ((size_t)f->comm->rank[GR_EP] * f->B + b) * n;
    uint64_t window = r->own[b].window;
    GR_TRY(gr_window_read(src->tokens, window, f->T, (uint32_t)f->config->model.vocab_size, f->window_token));
    GR_TRY(gr_online_route(f->online, gr_tokens_prefix(src->tokens), window, f->window_token, r->ids + row,
        f->gates + row, f->window_load));
    for (size_t i = row; i < row + n; i++)
        r->gates[i] = gr_bf16_from_f32(f->gates[i]); /* exact: they are rounded already */
    return GR_OK;
}

/* Gives lane SIDE the own windows of a micro-batch. */
static gr_err start_routing(gr_feed *f, feed_records *r, uint64_t cursor, uint64_t micro) {
    const feed_place *group;
    GR_TRY(gr_feed_group(f, cursor, micro, &group));
    *r = (feed_records){.cursor = cursor, .micro = micro, .own = r->own, .ids = r->ids, .gates = r->gates};
    for (uint32_t b = 0; b < f->B; b++) {
        r->own[b] = group[(uint32_t)f->comm->rank[GR_EP] * f->B + b];
        GR_TRY(route_own(f, r, b));
    }
    r->routed = true;
    return GR_OK;
}

/* Records of the whole group: ids and gates, and how often each expert is used. */
static gr_err collect(gr_feed *f, feed_slot *s, feed_records *r) {
    size_t n_own = (size_t)f->limits.N * f->K, n = n_own * f->map->n_rank;
    f->comm->traffic = GR_TRAFFIC_ROUTES;
    GR_TRY(f->comm->all_gather(f->comm, GR_EP, GR_U16, r->ids, n_own));
    f->comm->traffic = GR_TRAFFIC_ROUTES;
    GR_TRY(f->comm->all_gather(f->comm, GR_EP, GR_U16, r->gates, n_own));
    memset(s->load, 0, f->E * sizeof *s->load);
    for (size_t i = 0; i < n; i++)
        s->load[r->ids[i]] += r->gates[i] != 0;
    r->routed = false;
    return GR_OK;
}

/* The micro-batch after this one; false at the end of the run or evaluation. */
static bool advance(const gr_feed *f, uint64_t *cursor, uint64_t *micro) {
    if (++*micro < gr_feed_micro_batches(f))
        return true;
    *micro = 0;
    *cursor += (uint64_t)f->config->train.global_batch_windows;
    return f->kind == GR_FEED_TRAIN && *cursor < f->end;
}

static gr_err prepare_online(gr_feed *f, feed_slot *s, uint64_t cursor, uint64_t micro, gr_micro *out) {
    feed_records *now = NULL;
    for (int i = 0; i < 2; i++)
        if (f->records[i].routed && f->records[i].cursor == cursor && f->records[i].micro == micro)
            now = &f->records[i];
    if (!now) {
        now = &f->records[0];
        GR_TRY(start_routing(f, now, cursor, micro));
    }
    GR_TRY(collect(f, s, now));
    if (advance(f, &cursor, &micro))
        GR_TRY(start_routing(f, &f->records[now == f->records], cursor, micro));
    for (uint32_t b = 0; b < f->B; b++) {
        const feed_place *p = &now->own[b];
        GR_TRY(gr_window_read(
            f->source[p->source].tokens, p->window, f->T, (uint32_t)f->config->model.vocab_size, f->window_token));
        fill_own(f, s, b, p, out);
    }
    size_t n = (size_t)f->limits.N * f->K * f->map->n_rank;
    for (size_t i = 0; i < n; i++)
        f->gates[i] = gr_f32_from_bf16(now->gates[i]);
    return build_plan(f, s, now->ids);
}

/* ---------------------------------------------------------------- any micro-batch */

gr_err gr_feed_prepare(gr_feed *f, uint64_t cursor, uint64_t micro, gr_micro *out) {
    feed_slot *s = &f->slot[f->next_slot];
    f->next_slot ^= 1;
    const feed_place *group = NULL;
    *out = (gr_micro){.batch = {.token = s->token, .target = s->target}, .rows_best = NAN, .imbalance_best = NAN};
    if (f->routing != GR_SOURCE_ONLINE)
        GR_TRY(gr_feed_group(f, cursor, micro, &group));
    if (f->routing != GR_SOURCE_TABLE && f->routing != GR_SOURCE_ONLINE)
        return prepare_tokens(f, s, group, out);
    if (f->batch.packed) {
        out->rows_best = (double)f->batch.report.rows;
        out->imbalance_best = f->batch.report.imbalance_bound;
    }
    out->load = s->load;
    out->batch.plan = &s->plan;
    out->batch.pair_gate = s->pair_gate;
    out->batch.ids = s->ids;
    if (f->routing == GR_SOURCE_ONLINE)
        return prepare_online(f, s, cursor, micro, out);
    return prepare_from_tables(f, s, group, out);
}
