/* balanced.c: from the paper's experts to fewest rows under a cap of load. Starts from several places run on a small
 * part of the sample, the best of them goes on with all of it. By node, experts first go to nodes, then each node's to
 * its ranks: swaps within a node leave the rows between nodes as they are. */
#include "internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COARSE_PAIRS = 1 << 21, STARTS = 3 };

void gr_place_spread(const uint16_t *node, uint32_t E, uint32_t n_node, uint32_t node_ranks, uint16_t *rank) {
    uint32_t count[GR_PLACEMENT_RANKS_MAX];
    memset(count, 0, n_node * sizeof *count);
    for (uint32_t e = 0; e < E; e++)
        rank[e] = (uint16_t)(node[e] * node_ranks + count[node[e]]++ % node_ranks);
}

/* ---------------------------------------------------------------- levels */

/* The cap of load_max, or what even loads come to where they cannot be evener. start[E] gives each expert's group. */
static gr_err set_cap(gr_place_level *l, double load_max, const uint16_t *start) {
    uint16_t *part = NULL;
    uint64_t *sum = NULL;
    double total = 0;
    for (uint32_t e = 0; e < l->E; e++)
        total += (double)l->load[e];
    l->cap = (uint64_t)floor(fmin(load_max * total / l->n_part, 0x1p62));
    gr_err e = gr_alloc((void **)&part, l->E, sizeof *part, "parts of experts");
    if (!e)
        e = gr_alloc((void **)&sum, l->n_part, sizeof *sum, "pairs by part");
    if (!e) {
        memcpy(part, start, l->E * sizeof *part);
        gr_place_even(l, part);
        const uint64_t least = gr_place_fullest(l, part, sum);
        l->cap = least > l->cap ? least : l->cap;
    }
    free(sum);
    free(part);
    return e;
}

/* ---------------------------------------------------------------- starts */

/* Parts grow one after the other from the heaviest expert that is left, each time by the one that is most often chosen
 * together with those in it, measured as a cosine. */
static void grow(const gr_place_balance *b, uint32_t E, uint32_t n_part, uint16_t *part) {
    const uint32_t *together = b->together;
    double pull[GR_EXPERTS_MAX];
    memset(part, 0xff, E * sizeof *part);
    for (uint32_t p = 0; p < n_part; p++) {
        for (uint32_t e = 0; e < E; e++)
            pull[e] = (double)b->load[e] * 1e-20; /* the first is the heaviest; ties go on by weight */
        for (uint32_t i = 0; i < E / n_part; i++) {
            uint32_t best = E;
            for (uint32_t e = 0; e < E; e++)
                if (part[e] == UINT16_MAX && (best == E || pull[e] > pull[best]))
                    best = e;
            part[best] = (uint16_t)p;
            for (uint32_t e = 0; e < E; e++) {
                const double both = (double)together[(size_t)best * E + e];
                const double scale = (double)together[(size_t)best * E + best] * (double)together[(size_t)e * E + e];
                pull[e] += scale > 0 ? both / sqrt(scale) : 0;
            }
        }
    }
}

/* start[E]: the paper's within the cap, even loads, or experts that are chosen together. */
static gr_err make_start(
    const gr_place_balance *b, gr_place_search *coarse, int i, const uint16_t *capped, uint16_t *start) {
    const gr_place_level *l = &coarse->level;
    memcpy(start, capped, l->E * sizeof *start);
    if (i == 1)
        gr_place_even(l, start);
    if (i == 2) {
        grow(b, l->E, l->n_part, start);
        return gr_place_repair(coarse, start);
    }
    return GR_OK;
}

/* best[E] := of all starts the one that ends with fewest rows; ties to the earlier. */
static gr_err try_starts(
    const gr_place_balance *b, gr_place_search *coarse, const uint16_t *capped, uint16_t *start, uint16_t *best) {
    uint64_t least = UINT64_MAX;
    const double n_token = (double)coarse->view->n * coarse->view->T;
    for (int i = 0; i < STARTS; i++) {
        uint64_t rows;
        GR_TRY(make_start(b, coarse, i, capped, start));
        GR_TRY(gr_place_improve(coarse, start, &rows));
        gr_info("search from start %d of %d: %.4f rows per token", i + 1, STARTS, (double)rows / n_token);
        if (rows < least) {
            least = rows;
            memcpy(best, start, coarse->level.E * sizeof *best);
        }
    }
    return GR_OK;
}

/* ---------------------------------------------------------------- one level */

typedef struct stage {
    const gr_place_balance *b;
    gr_place_level level;
    gr_place_view all, coarse;
    gr_place_search search;
    uint16_t *start; /* [E] */
} stage;

static gr_err stage_open(stage *s, const gr_place_balance *b, const gr_place_level *l) {
    *s = (stage){.b = b, .level = *l};
    GR_TRY(gr_place_view_open(&s->all, b->sample, SIZE_MAX));
    GR_TRY(gr_place_view_open(&s->coarse, b->sample, COARSE_PAIRS));
    return gr_alloc((void **)&s->start, l->E, sizeof *s->start, "parts of experts");
}

static void stage_close(stage *s) {
    free(s->start);
    gr_place_search_close(&s->search);
    gr_place_view_close(&s->coarse);
    gr_place_view_close(&s->all);
}

/* part[E] within the cap. */
static gr_err run_repair(const gr_place_balance *b, gr_place_level *l, double load_max, uint16_t *part) {
    stage s;
    GR_TRY(set_cap(l, load_max, part));
    gr_err e = stage_open(&s, b, l);
    if (!e)
        e = gr_place_search_open(&s.search, l, &s.coarse);
    if (!e)
        e = gr_place_repair(&s.search, part);
    stage_close(&s);
    return e;
}

/* best[E]: from part[E], which is within the cap. Where parts are in several groups, there is no other start. */
static gr_err run_descent(const gr_place_balance *b, const gr_place_level *l, const uint16_t *part, uint16_t *best) {
    stage s;
    uint64_t rows;
    memmove(best, part, l->E * sizeof *best);
    gr_err e = stage_open(&s, b, l);
    if (!e)
        e = gr_place_search_open(&s.search, l, &s.coarse);
    if (!e && l->group_size == l->n_part)
        e = try_starts(b, &s.search, part, s.start, best);
    else if (!e)
        e = gr_place_improve(&s.search, best, &rows);
    gr_place_search_close(&s.search);
    if (!e)
        e = gr_place_search_open(&s.search, l, &s.all);
    if (!e)
        e = gr_place_descend(&s.search, best, &rows);
    if (!e)
        gr_info("search on all %zu windows whose routes were kept: %.4f rows per token", s.all.n,
            (double)rows / ((double)s.all.n * s.all.T));
    stage_close(&s);
    return e;
}

/* ---------------------------------------------------------------- ranks, or nodes and then ranks */

static gr_err by_rank(const gr_place_balance *b, gr_place_level l) {
    memcpy(b->capped, b->paper, l.E * sizeof *b->capped);
    GR_TRY(run_repair(b, &l, b->o->load_max, b->capped));
    return run_descent(b, &l, b->capped, b->balanced);
}

/* Nodes get half of the room that ranks have, so that ranks have some left within a node. */
static gr_err by_node(const gr_place_balance *b, const gr_place_level *ranks, uint16_t *node, uint16_t *best) {
    const uint32_t n_node = b->o->n_node, node_ranks = b->o->node_ranks, E = ranks->E;
    gr_place_level nodes = *ranks, within = *ranks, within_best = *ranks;
    nodes.n_part = nodes.group_size = n_node;
    nodes.part_ranks = node_ranks;
    within.group_size = within_best.group_size = node_ranks;
    memcpy(node, b->paper, E * sizeof *node);
    GR_TRY(run_repair(b, &nodes, 1 + (b->o->load_max - 1) / 2, node));
    GR_TRY(run_descent(b, &nodes, node, best));
    gr_place_spread(node, E, n_node, node_ranks, b->capped);
    GR_TRY(run_repair(b, &within, b->o->load_max, b->capped));
    gr_place_spread(best, E, n_node, node_ranks, b->balanced);
    GR_TRY(run_repair(b, &within_best, b->o->load_max, b->balanced));
    return run_descent(b, &within_best, b->balanced, b->balanced);
}

gr_err gr_place_balance_run(const gr_place_balance *b) {
    const uint32_t R = b->o->n_node * b->o->node_ranks;
    const gr_place_level ranks = {.E = b->sample->E, .n_part = R, .group_size = R, .part_ranks = 1, .load = b->load};
    if (b->o->grain == GR_PLACE_BY_RANK)
        return by_rank(b, ranks);
    uint16_t *node = NULL, *best = NULL;
    gr_err e = gr_alloc((void **)&node, ranks.E, sizeof *node, "nodes of experts");
    if (!e)
        e = gr_alloc((void **)&best, ranks.E, sizeof *best, "nodes of experts");
    if (!e)
        e = by_node(b, &ranks, node, best);
    free(best);
    free(node);
    return e;
}
