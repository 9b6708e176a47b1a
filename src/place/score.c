/* score.c: what several ways to place come to over all windows: one scan of the tables for all of them. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- candidates */

static bool keeps_touch(const gr_place_candidate *c) {
    return c->rule == GR_PLACE_LOCAL || c->rule == GR_PLACE_MATCHED;
}

/* Nodes are neither the ranks nor all of them. */
static bool has_nodes(const gr_place_options *o) {
    return o->n_node > 1 && o->node_ranks > 1;
}

static gr_err alloc_candidate(const gr_place_scores *s, gr_place_candidate *c, uint32_t E) {
    const bool keep = keeps_touch(c);
    size_t n;
    if (!gr_mul_size(s->n_window, s->R, &n))
        return gr_fail(GR_RESOURCE, "place: touch counts of %llu windows on %u ranks do not fit memory",
            (unsigned long long)s->n_window, s->R);
    GR_TRY(gr_alloc((void **)&c->rank, E, sizeof *c->rank, "ranks of experts"));
    GR_TRY(gr_alloc((void **)&c->node, E, sizeof *c->node, "nodes of experts"));
    GR_TRY(gr_alloc((void **)&c->home, s->n_window, sizeof *c->home, "ranks of windows"));
    if (keep)
        GR_TRY(gr_alloc((void **)&c->touch, n, sizeof *c->touch, "touch counts"));
    if (keep && has_nodes(s->o)) /* fewer nodes than ranks: no overflow */
        GR_TRY(gr_alloc(
            (void **)&c->node_touch, s->n_window * s->o->n_node, sizeof *c->node_touch, "touch counts of nodes"));
    return GR_OK;
}

gr_err gr_place_scores_add(gr_place_scores *s, const char *name, gr_place_rule rule, const uint16_t *rank) {
    GR_ASSERT(s->n < GR_PLACE_SCORES_MAX, "%d candidates", s->n);
    const uint32_t E = gr_routes_get(s->o->table[0])->E;
    gr_place_candidate *c = &s->at[s->n++];
    *c = (gr_place_candidate){.name = name, .rule = rule};
    GR_TRY(alloc_candidate(s, c, E));
    for (uint32_t e = 0; e < E; e++) {
        c->rank[e] = rank[e];
        c->node[e] = (uint16_t)(rank[e] / s->o->node_ranks);
    }
    const uint64_t key = gr_random_u64(s->o->seed, gr_stream_id("placement: random windows"), 0);
    for (uint64_t w = 0; w < s->n_window && !keeps_touch(c); w++)
        c->home[w] = (uint16_t)((rule == GR_PLACE_SHUFFLED ? gr_bijection(key, s->n_window, w) : w) % s->R);
    return GR_OK;
}

void gr_place_scores_close(gr_place_scores *s) {
    for (int i = 0; i < s->n; i++) {
        free(s->at[i].node_touch);
        free(s->at[i].touch);
        free(s->at[i].home);
        free(s->at[i].node);
        free(s->at[i].rank);
    }
    *s = (gr_place_scores){0};
}

/* ---------------------------------------------------------------- the scan */

static uint64_t sum_but(const uint32_t *touch, uint32_t n, uint32_t home) {
    uint64_t sum = 0;
    for (uint32_t p = 0; p < n; p++)
        sum += touch[p];
    return sum - touch[home];
}

static void visit_candidate(const gr_place_scores *s, gr_place_candidate *c, uint64_t w, const uint16_t *ids) {
    const gr_routes_info *info = gr_routes_get(s->o->table[0]);
    const uint32_t n_node = s->o->n_node;
    uint32_t scratch[GR_PLACEMENT_RANKS_MAX], *touch = c->touch ? c->touch + w * s->R : scratch;
    uint64_t rows = 0, node_rows = 0;
    gr_place_touch(ids, info->T, info->K, c->rank, s->R, touch);
    if (!c->touch)
        rows = sum_but(touch, s->R, c->home[w]);
    if (has_nodes(s->o)) {
        touch = c->node_touch ? c->node_touch + w * n_node : scratch;
        gr_place_touch(ids, info->T, info->K, c->node, n_node, touch);
        if (!c->touch)
            node_rows = sum_but(touch, n_node, c->home[w] / s->o->node_ranks);
    }
    if (c->touch) /* added up when the homes are known */
        return;
#pragma omp atomic
    c->rows += rows;
#pragma omp atomic
    c->node_rows += node_rows;
}

static void visit(void *context, uint64_t w, const uint16_t *ids) {
    gr_place_scores *s = context;
    for (int i = 0; i < s->n; i++)
        visit_candidate(s, &s->at[i], w, ids);
}

/* ---------------------------------------------------------------- homes */

static uint16_t most_tokens(const uint32_t *touch, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t p = 1; p < n; p++)
        best = touch[p] > touch[best] ? p : best;
    return (uint16_t)best;
}

/* Algorithm 1; by node the windows of a node go round its ranks. */
static void place_locally(const gr_place_scores *s, gr_place_candidate *c) {
    const uint32_t n_node = s->o->n_node, node_ranks = s->o->node_ranks;
    uint64_t count[GR_PLACEMENT_RANKS_MAX] = {0};
    for (uint64_t w = 0; w < s->n_window; w++) {
        if (s->o->grain == GR_PLACE_BY_RANK || node_ranks == 1) {
            c->home[w] = most_tokens(c->touch + w * s->R, s->R);
            continue;
        }
        const uint16_t node = c->node_touch ? most_tokens(c->node_touch + w * n_node, n_node) : 0;
        c->home[w] = (uint16_t)(node * node_ranks + count[node]++ % node_ranks);
    }
}

/* group[n]: the node of each window of this table. */
static gr_err match_nodes(
    const gr_place_scores *s, const gr_place_homes *ranks, const uint32_t *node_touch, uint16_t *group) {
    gr_place_homes nodes = *ranks;
    nodes.n_part = nodes.group_size = s->o->n_node;
    nodes.part_ranks = s->o->node_ranks;
    nodes.touch = node_touch;
    return gr_place_homes_find(&nodes, group);
}

static gr_err match_table(const gr_place_scores *s, gr_place_candidate *c, uint64_t before, uint64_t n) {
    gr_place_homes h = {.n = (size_t)n,
        .before = before,
        .n_part = s->R,
        .group_size = s->R,
        .part_ranks = 1,
        .touch = c->touch + before * s->R};
    if (s->o->grain == GR_PLACE_BY_RANK || !has_nodes(s->o))
        return gr_place_homes_find(&h, c->home + before);
    uint16_t *group = NULL;
    gr_err e = gr_alloc((void **)&group, (size_t)n, sizeof *group, "nodes of windows");
    if (!e)
        e = match_nodes(s, &h, c->node_touch + before * s->o->n_node, group);
    h.group = group;
    h.group_size = s->o->node_ranks;
    if (!e)
        e = gr_place_homes_find(&h, c->home + before);
    free(group);
    return e;
}

static gr_err match_windows(const gr_place_scores *s, gr_place_candidate *c) {
    uint64_t before = 0;
    for (int i = 0; i < s->o->n_table; i++) {
        const uint64_t n = gr_routes_get(s->o->table[i])->n_window;
        GR_TRY(match_table(s, c, before, n));
        before += n;
    }
    return GR_OK;
}

static gr_err find_homes(const gr_place_scores *s, gr_place_candidate *c) {
    if (!c->touch)
        return GR_OK;
    if (c->rule == GR_PLACE_LOCAL)
        place_locally(s, c);
    else
        GR_TRY(match_windows(s, c));
    for (uint64_t w = 0; w < s->n_window; w++) {
        c->rows += sum_but(c->touch + w * s->R, s->R, c->home[w]);
        if (c->node_touch)
            c->node_rows += sum_but(c->node_touch + w * s->o->n_node, s->o->n_node, c->home[w] / s->o->node_ranks);
    }
    return GR_OK;
}

/* ---------------------------------------------------------------- pairs that stay, from the histograms */

static void add_window(gr_place_scores *s, const gr_routes *table, uint64_t window, uint64_t w, uint64_t *own) {
    const uint32_t E = gr_routes_get(table)->E;
    uint32_t count[GR_EXPERTS_MAX];
    gr_routes_histogram(table, window, count);
    for (int i = 0; i < s->n; i++)
        for (uint32_t e = 0; e < E; e++)
            own[i] += s->at[i].rank[e] == s->at[i].home[w] ? count[e] : 0;
}

static void count_own_pairs(gr_place_scores *s) {
    uint64_t own[GR_PLACE_SCORES_MAX] = {0}, before = 0;
    for (int t = 0; t < s->o->n_table; t++) {
        const gr_routes *table = s->o->table[t];
        const uint64_t n = gr_routes_get(table)->n_window;
#pragma omp parallel for schedule(static) reduction(+ : own)
        for (uint64_t w = 0; w < n; w++)
            add_window(s, table, w, before + w, own);
        before += n;
    }
    for (int i = 0; i < s->n; i++)
        s->at[i].own_pairs = own[i];
}

/* ---------------------------------------------------------------- interface */

gr_err gr_place_scores_run(gr_place_scores *s) {
    GR_TRY(gr_place_scan_run(&(gr_place_scan){.table = s->o->table,
        .n_table = s->o->n_table,
        .n = s->n_window,
        .label = "counting and verifying all windows",
        .visit = visit,
        .context = s}));
    for (int i = 0; i < s->o->n_table; i++)
        GR_TRY(gr_routes_check_hash(s->o->table[i]));
    for (int i = 0; i < s->n; i++)
        GR_TRY(find_homes(s, &s->at[i]));
    count_own_pairs(s);
    return GR_OK;
}

/* The most of rank[i] (weighted by `weight`, or 1 each) over the mean of R ranks. */
static double fullest_over_mean(const uint16_t *rank, const uint64_t *weight, uint64_t n, uint32_t R) {
    uint64_t sum[GR_PLACEMENT_RANKS_MAX] = {0}, most = 0;
    double total = 0;
    for (uint64_t i = 0; i < n; i++)
        sum[rank[i]] += weight ? weight[i] : 1;
    for (uint32_t r = 0; r < R; r++) {
        most = sum[r] > most ? sum[r] : most;
        total += (double)sum[r];
    }
    return total > 0 ? (double)most * R / total : 1;
}

gr_place_score gr_place_scores_get(const gr_place_scores *s, int i, const uint64_t *load) {
    const gr_routes_info *info = gr_routes_get(s->o->table[0]);
    const gr_place_candidate *c = &s->at[i];
    const double n_token = (double)s->n_window * info->T;
    double n_pair = 0;
    for (uint32_t e = 0; e < info->E; e++)
        n_pair += (double)load[e];
    gr_place_score score = {.rows = (double)c->rows / n_token,
        .pairs = (n_pair - (double)c->own_pairs) / n_token,
        .node_rows = (double)(s->o->node_ranks == 1 ? c->rows : c->node_rows) / n_token,
        .load = fullest_over_mean(c->rank, load, info->E, s->R),
        .windows = fullest_over_mean(c->home, NULL, s->n_window, s->R)};
    snprintf(score.name, sizeof score.name, "%s", c->name);
    return score;
}
