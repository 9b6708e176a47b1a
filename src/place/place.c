/* place.c: from route tables to a placement, in the order in which it happens. */
#include "internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct work {
    const gr_place_options *o;
    const gr_routes_info *info; /* of the first table, E, K, T and router of all */
    uint32_t R;
    uint64_t *load; /* [E] pairs over all windows */
    gr_place_sample sample;
    uint16_t *paper;             /* [E] part of each expert, by granularity */
    uint16_t *rank;              /* [E] of the candidate being made */
    uint16_t *capped, *balanced; /* [E] ranks */
    gr_place_scores scores;
} work;

/* ---------------------------------------------------------------- what fits together */

static gr_err check_topology(const gr_place_options *o, const gr_routes_info *info) {
    const uint64_t R = (uint64_t)o->n_node * o->node_ranks;
    if (R < 1 || R > GR_PLACEMENT_RANKS_MAX)
        return gr_fail(GR_CONFIG,
            "place: expected 1 to %d ranks on all nodes, got %" PRIu32 " nodes of %" PRIu32 "; use fewer",
            GR_PLACEMENT_RANKS_MAX, o->n_node, o->node_ranks);
    if (R > info->E)
        return gr_fail(GR_CONFIG,
            "place: expected at most as many ranks as the %" PRIu32 " experts of %s, got %" PRIu64 " (%" PRIu32
            " nodes of %" PRIu32 "); each rank needs an expert",
            info->E, gr_routes_path(o->table[0]), R, o->n_node, o->node_ranks);
    if (info->E % R != 0)
        return gr_fail(GR_CONFIG,
            "place: expected a number of ranks that divides the %" PRIu32 " experts of %s, got %" PRIu64 " (%" PRIu32
            " nodes of %" PRIu32 "); each rank has equally many",
            info->E, gr_routes_path(o->table[0]), R, o->n_node, o->node_ranks);
    return GR_OK;
}

static gr_err check_pair(const gr_routes *first, const gr_routes *table) {
    const gr_routes_info *a = gr_routes_get(first), *b = gr_routes_get(table);
    char hash[2][33];
    if (a->E != b->E || a->K != b->K || a->T != b->T)
        return gr_fail(GR_DATA,
            "%s: expected E = %" PRIu32 ", K = %" PRIu32 ", T = %" PRIu32 " as in %s, got E = %" PRIu32 ", K = %" PRIu32
            ", T = %" PRIu32 "; place tables of one model together",
            gr_routes_path(table), a->E, a->K, a->T, gr_routes_path(first), b->E, b->K, b->T);
    if (a->router.lo != b->router.lo || a->router.hi != b->router.hi)
        return gr_fail(GR_DATA, "%s: expected the router %s of %s, got %s; route it with that router",
            gr_routes_path(table), gr_hash128_text(a->router, hash[0]), gr_routes_path(first),
            gr_hash128_text(b->router, hash[1]));
    return GR_OK;
}

static gr_err check_tables(const gr_place_options *o) {
    for (int i = 0; i < o->n_table; i++) {
        GR_TRY(check_pair(o->table[0], o->table[i]));
        for (int j = 0; j < i; j++)
            if (gr_routes_get(o->table[i])->table_hash == gr_routes_get(o->table[j])->table_hash)
                return gr_fail(GR_DATA, "%s: expected each table once, got the content of %s again; leave one out",
                    gr_routes_path(o->table[i]), gr_routes_path(o->table[j]));
    }
    if (gr_routes_get(o->table[0])->T >= 1u << 30)
        return gr_fail(GR_DATA, "%s: expected windows of fewer than 2^30 tokens, got %" PRIu32,
            gr_routes_path(o->table[0]), gr_routes_get(o->table[0])->T);
    return GR_OK;
}

/* ---------------------------------------------------------------- the paper's experts */

static gr_err find_paper(work *w) {
    const uint32_t n_part = w->o->grain == GR_PLACE_BY_NODE ? w->o->n_node : w->R;
    float *centre = NULL;
    gr_err e = gr_alloc((void **)&centre, (size_t)n_part * w->info->E, sizeof *centre, "centres of clusters");
    if (!e)
        e = gr_place_centres(&w->sample, n_part, w->o->entropy_max, w->o->seed, centre);
    if (!e)
        e = gr_place_match(centre, n_part, w->info->E, w->paper);
    free(centre);
    return e;
}

/* ---------------------------------------------------------------- candidates */

static void shuffle_experts(const work *w) {
    const uint32_t E = w->info->E;
    const uint64_t key = gr_random_u64(w->o->seed, gr_stream_id("placement: random experts"), 0);
    for (uint32_t e = 0; e < E; e++)
        w->rank[e] = (uint16_t)(gr_bijection(key, E, e) / (E / w->R));
}

static gr_err add_candidates(work *w) {
    gr_place_scores *s = &w->scores;
    const uint32_t E = w->info->E;
    for (uint32_t e = 0; e < E; e++)
        w->rank[e] = (uint16_t)(e % w->R);
    GR_TRY(gr_place_scores_add(s, "round-robin", GR_PLACE_IN_TURN, w->rank));
    shuffle_experts(w);
    GR_TRY(gr_place_scores_add(s, "random", GR_PLACE_SHUFFLED, w->rank));
    memcpy(w->rank, w->paper, E * sizeof *w->rank);
    if (w->o->grain == GR_PLACE_BY_NODE)
        gr_place_spread(w->paper, E, w->o->n_node, w->o->node_ranks, w->rank);
    GR_TRY(gr_place_scores_add(s, "paper", GR_PLACE_LOCAL, w->rank));
    if (w->o->method == GR_PLACE_PAPER)
        return GR_OK;
    GR_TRY(gr_place_scores_add(s, "paper, capped", GR_PLACE_MATCHED, w->capped));
    return gr_place_scores_add(s, "balanced", GR_PLACE_MATCHED, w->balanced);
}

/* ---------------------------------------------------------------- the result */

static gr_err fill_table(
    const work *w, const gr_place_candidate *c, uint64_t before, gr_placed_table *t, const gr_routes *r) {
    const gr_routes_info *info = gr_routes_get(r);
    const size_t n = (size_t)info->n_window, n_path = strlen(gr_routes_path(r)) + 1;
    *t = (gr_placed_table){.table_hash = info->table_hash,
        .n_window = info->n_window,
        .touch = {.n_rank = w->R, .n_window = info->n_window}};
    GR_TRY(gr_alloc((void **)&t->path, n_path, 1, "path of a table"));
    memcpy(t->path, gr_routes_path(r), n_path);
    GR_TRY(gr_alloc((void **)&t->rank, n, sizeof *t->rank, "ranks of windows"));
    memcpy(t->rank, c->home + before, n * sizeof *t->rank);
    GR_TRY(gr_alloc((void **)&t->touch.count, n * w->R, sizeof *t->touch.count, "touch counts"));
    memcpy(t->touch.count, c->touch + before * w->R, n * w->R * sizeof *t->touch.count);
    return GR_OK;
}

static void fill_experts(const work *w, const gr_place_candidate *c, gr_placement *out) {
    uint32_t count[GR_PLACEMENT_RANKS_MAX] = {0};
    double total = 0;
    for (uint32_t e = 0; e < out->E; e++) {
        const uint32_t r = c->rank[e];
        out->expert_at[r * (out->E / out->R) + count[r]++] = (uint16_t)e;
        out->rank_load[r] += (double)w->load[e];
        total += (double)w->load[e];
    }
    for (uint32_t r = 0; r < out->R; r++)
        out->rank_load[r] *= out->R / total; /* every token has a pair */
}

static gr_err fill(const work *w, gr_placement *out) {
    const gr_place_candidate *c = &w->scores.at[w->scores.n - 1];
    uint64_t before = 0;
    GR_TRY(gr_alloc((void **)&out->expert_at, out->E, sizeof *out->expert_at, "placement"));
    GR_TRY(gr_alloc((void **)&out->rank_load, out->R, sizeof *out->rank_load, "placement"));
    GR_TRY(gr_alloc((void **)&out->table, (size_t)w->o->n_table, sizeof *out->table, "placement"));
    fill_experts(w, c, out);
    out->load_bound = gr_place_load_bound(w->load, out->E, out->R);
    out->n_score = w->scores.n;
    for (int i = 0; i < w->scores.n; i++)
        out->score[i] = gr_place_scores_get(&w->scores, i, w->load);
    out->n_table = w->o->n_table;
    for (int i = 0; i < w->o->n_table; i++) {
        GR_TRY(fill_table(w, c, before, &out->table[i], w->o->table[i]));
        before += out->table[i].n_window;
    }
    return GR_OK;
}

/* ---------------------------------------------------------------- all of it */

static gr_err work_open(work *w, const gr_place_options *o) {
    *w = (work){.o = o, .info = gr_routes_get(o->table[0]), .R = o->n_node * o->node_ranks};
    w->scores = (gr_place_scores){.o = o, .R = w->R, .n_window = gr_place_window_count(o->table, o->n_table)};
    const size_t E = w->info->E;
    uint64_t *one = NULL;
    GR_TRY(gr_alloc((void **)&w->load, 2 * E, sizeof *w->load, "expert loads"));
    GR_TRY(gr_alloc((void **)&w->paper, E, sizeof *w->paper, "parts of experts"));
    GR_TRY(gr_alloc((void **)&w->rank, E, sizeof *w->rank, "ranks of experts"));
    GR_TRY(gr_alloc((void **)&w->capped, E, sizeof *w->capped, "ranks of experts"));
    GR_TRY(gr_alloc((void **)&w->balanced, E, sizeof *w->balanced, "ranks of experts"));
    one = w->load + E;
    for (int i = 0; i < o->n_table; i++) { /* the scan of all windows verifies them later */
        gr_routes_load(o->table[i], one);
        for (size_t e = 0; e < E; e++)
            w->load[e] += one[e];
    }
    return GR_OK;
}

static void work_close(work *w) {
    gr_place_scores_close(&w->scores);
    free(w->balanced);
    free(w->capped);
    free(w->rank);
    free(w->paper);
    gr_place_sample_close(&w->sample);
    free(w->load);
}

/* What needs the sample, which then makes room. */
static gr_err use_sample(work *w, gr_placement *out) {
    const size_t E = w->info->E;
    gr_place_view all = {0};
    GR_TRY(gr_place_sample_open(&w->sample, w->o));
    GR_TRY(gr_alloc((void **)&out->together, E * E, sizeof *out->together, "experts chosen together"));
    gr_err e = gr_place_view_open(&all, &w->sample, SIZE_MAX);
    if (!e)
        e = gr_place_together(&all, out->together);
    out->n_sampled = all.n * w->info->T;
    gr_place_view_close(&all);
    if (!e)
        e = find_paper(w);
    if (!e && w->o->method == GR_PLACE_BALANCED)
        e = gr_place_balance_run(&(gr_place_balance){.o = w->o,
            .sample = &w->sample,
            .load = w->load,
            .together = out->together,
            .paper = w->paper,
            .capped = w->capped,
            .balanced = w->balanced});
    gr_place_sample_close(&w->sample);
    return e;
}

/* The search looked at a sample; over all windows what it began from may have fewer rows, and then that is kept. */
static void keep_the_better(work *w) {
    if (w->o->method != GR_PLACE_BALANCED)
        return;
    const gr_place_candidate *capped = &w->scores.at[w->scores.n - 2];
    gr_place_candidate *found = &w->scores.at[w->scores.n - 1];
    const bool by_node = w->o->grain == GR_PLACE_BY_NODE;
    const size_t n = (size_t)w->scores.n_window;
    if (by_node ? found->node_rows <= capped->node_rows : found->rows <= capped->rows)
        return;
    memcpy(found->rank, capped->rank, w->info->E * sizeof *found->rank);
    memcpy(found->home, capped->home, n * sizeof *found->home);
    memcpy(found->touch, capped->touch, n * w->R * sizeof *found->touch);
    found->rows = capped->rows;
    found->node_rows = capped->node_rows;
    found->own_pairs = capped->own_pairs;
}

static gr_err place(work *w, gr_placement *out) {
    GR_TRY(use_sample(w, out));
    GR_TRY(add_candidates(w));
    GR_TRY(gr_place_scores_run(&w->scores));
    keep_the_better(w);
    return fill(w, out);
}

gr_err gr_place(const gr_place_options *o, gr_placement *out) {
    GR_ASSERT(o->n_table >= 1 && o->n_sample >= 1, "%d tables, %llu sampled windows", o->n_table,
        (unsigned long long)o->n_sample);
    const gr_routes_info *info = gr_routes_get(o->table[0]);
    *out = (gr_placement){0};
    GR_TRY(check_tables(o));
    GR_TRY(check_topology(o, info));
    *out = (gr_placement){.n_node = o->n_node,
        .node_ranks = o->node_ranks,
        .R = o->n_node * o->node_ranks,
        .E = info->E,
        .K = info->K,
        .T = info->T,
        .router = info->router,
        .method = o->method,
        .grain = o->grain,
        .load_max = o->method == GR_PLACE_BALANCED ? o->load_max : 0,
        .seed = o->seed};
    work w;
    gr_err e = work_open(&w, o);
    if (!e)
        e = place(&w, out);
    work_close(&w);
    if (e)
        gr_placement_close(out);
    return e;
}
