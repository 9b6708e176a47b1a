/* fold.c: affinity counts, the ways to group experts by them, and the sum of score rows over a group. */
#include "grouter/fold.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- affinity */

gr_err gr_affinity_open(gr_affinity *a, uint32_t E) {
    *a = (gr_affinity){0};
    if (E < 1 || E > GR_EXPERTS_MAX)
        return gr_fail(GR_CONFIG, "affinity: expected 1 to %d experts, got %" PRIu32, GR_EXPERTS_MAX, E);
    const size_t n_pair = (size_t)E * E;
    GR_TRY(gr_alloc((void **)&a->block, n_pair + E + 1, sizeof *a->block, "affinity counts"));
    a->E = E;
    a->n_block = n_pair + E + 1;
    a->pair = a->block;
    a->load = a->pair + n_pair;
    a->n_token = a->load + E;
    return GR_OK;
}

void gr_affinity_close(gr_affinity *a) {
    free(a->block);
    *a = (gr_affinity){0};
}

static void count_token(gr_affinity *a, const uint16_t *used, uint32_t n) {
    for (uint32_t k = 0; k < n; k++) {
        a->load[used[k]]++;
        for (uint32_t other = 0; other < n; other++)
            a->pair[(size_t)used[k] * a->E + used[other]] += other != k;
    }
    ++*a->n_token;
}

gr_err gr_affinity_add(gr_affinity *a, const uint16_t *ids, const float *gates, size_t n_token, uint32_t K) {
    uint16_t used[GR_TOPK_MAX];
    GR_ASSERT(K >= 1 && K <= GR_TOPK_MAX, "K %" PRIu32, K);
    for (size_t t = 0; t < n_token; t++) {
        const uint16_t *row = ids + t * K;
        uint32_t n = 0;
        for (uint32_t k = 0; k < K; k++) {
            if (row[k] >= a->E || (k > 0 && row[k] <= row[k - 1]))
                return gr_fail(GR_DATA,
                    "affinity: expected ascending expert ids below %" PRIu32 " at token %zu, got %u in slot %" PRIu32,
                    a->E, t, (unsigned)row[k], k);
            if (!gates || gates[t * K + k] != 0.0f)
                used[n++] = row[k];
        }
        count_token(a, used, n);
    }
    return GR_OK;
}

/* ---------------------------------------------------------------- grouping */

static int by_id(const void *a, const void *b) {
    return (int)*(const uint16_t *)a - (int)*(const uint16_t *)b;
}

/* A group's first expert is the one with the largest sum over no members: all are 0, so it is the lowest free one. */
static gr_err group_by_affinity(gr_mapping *m, const gr_affinity *a) {
    const uint32_t E = m->E_S;
    uint64_t *sum = NULL; /* [E] of pair counts with the group's members so far */
    bool *taken = NULL;
    gr_err err = gr_alloc((void **)&sum, E, sizeof *sum, "affinity grouping");
    if (!err)
        err = gr_alloc((void **)&taken, E, sizeof *taken, "affinity grouping");
    for (uint32_t g = 0; g < m->n_group && !err; g++) {
        memset(sum, 0, E * sizeof *sum);
        for (uint32_t at = m->offset[g]; at < m->offset[g + 1]; at++) {
            uint32_t best = E;
            for (uint32_t e = 0; e < E; e++)
                if (!taken[e] && (best == E || sum[e] > sum[best]))
                    best = e;
            taken[best] = true;
            m->member[at] = (uint16_t)best;
            for (uint32_t e = 0; e < E; e++)
                sum[e] += a->pair[(size_t)best * E + e];
        }
    }
    free(taken);
    free(sum);
    return err;
}

typedef struct loaded {
    uint64_t load;
    uint16_t id;
} loaded;

static int by_load(const void *a, const void *b) {
    const loaded *x = a, *y = b;
    if (x->load != y->load)
        return x->load < y->load ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* order[E]: experts by ascending load, ties to the lower id. */
static void order_by_load(const gr_affinity *a, uint16_t *order) {
    loaded l[GR_EXPERTS_MAX];
    for (uint32_t e = 0; e < a->E; e++)
        l[e] = (loaded){.load = a->load[e], .id = (uint16_t)e};
    qsort(l, a->E, sizeof *l, by_load);
    for (uint32_t e = 0; e < a->E; e++)
        order[e] = l[e].id;
}

/* low_moves false is the reference code's fault. */
static void group_by_balance(gr_mapping *m, const uint16_t *order, bool low_moves) {
    uint32_t low = 0, high = m->E_S;
    for (uint32_t g = 0; g < m->n_group; g++) {
        const uint32_t at = m->offset[g], size = m->offset[g + 1] - at, n_low = size / 2;
        for (uint32_t i = 0; i < n_low; i++)
            m->member[at + i] = order[low + i];
        for (uint32_t i = n_low; i < size; i++)
            m->member[at + i] = order[--high];
        if (low_moves)
            low += n_low;
    }
}

/* Fisher-Yates. */
static void permute(uint16_t *id, uint32_t n, uint64_t seed) {
    const uint64_t stream = gr_stream_id("random folding");
    for (uint32_t i = 0; i < n; i++)
        id[i] = (uint16_t)i;
    for (uint32_t left = n; left > 1; left--) {
        const uint32_t other = gr_random_below(seed, stream, left, left);
        const uint16_t moved = id[left - 1];
        id[left - 1] = id[other];
        id[other] = moved;
    }
}

static gr_err fill_groups(gr_mapping *m, const gr_grouping *g) {
    uint16_t order[GR_EXPERTS_MAX];
    switch (g->method) {
    case GR_FOLD_AFFINITY:
        return group_by_affinity(m, g->affinity);
    case GR_FOLD_BALANCE:
    case GR_FOLD_BALANCE_REFERENCE:
        order_by_load(g->affinity, order);
        group_by_balance(m, order, g->method == GR_FOLD_BALANCE);
        return GR_OK;
    case GR_FOLD_GREEDY:
        order_by_load(g->affinity, m->member);
        return GR_OK;
    case GR_FOLD_RANDOM:
        permute(m->member, m->E_S, g->seed);
        return GR_OK;
    default: /* block and expand */
        for (uint32_t e = 0; e < m->E_S; e++)
            m->member[e] = (uint16_t)e;
        return GR_OK;
    }
}

static gr_err check_counts(const gr_grouping *g) {
    const gr_affinity *a = g->affinity;
    GR_ASSERT(!a || a->E == g->E_S, "counts of %" PRIu32 " experts for %" PRIu32, a->E, g->E_S);
    bool blind = g->method == GR_FOLD_RANDOM || g->method == GR_FOLD_BLOCK || g->method == GR_FOLD_EXPAND;
    if (!blind && (!a || *a->n_token == 0))
        return gr_fail(GR_CONFIG,
            "fold: method %s: expected counts of at least 1 routed token, got none; give it tokens, or use random or "
            "block",
            gr_fold_method_name(g->method));
    return GR_OK;
}

gr_err gr_mapping_group(gr_mapping *m, const gr_grouping *g) {
    GR_TRY(gr_mapping_open(m, g->method, g->E_S, g->E_T));
    m->fold = g->fold;
    m->router = g->router;
    m->n_token = g->affinity ? *g->affinity->n_token : 0;
    gr_err err = check_counts(g);
    if (!err)
        err = fill_groups(m, g);
    if (err) {
        gr_mapping_close(m);
        return err;
    }
    for (uint32_t i = 0; i < m->n_group; i++)
        qsort(m->member + m->offset[i], m->offset[i + 1] - m->offset[i], sizeof *m->member, by_id);
    return GR_OK;
}

/* ---------------------------------------------------------------- folding */

void gr_mapping_fold(const gr_mapping *m, uint32_t D, const float *W, float *out) {
    GR_ASSERT(m->n_group == m->E_T, "%" PRIu32 " groups for %" PRIu32 " experts", m->n_group, m->E_T);
    for (uint32_t g = 0; g < m->n_group; g++) {
        const uint32_t first = m->offset[g], end = m->offset[g + 1];
        const double share = m->fold == GR_FOLD_MEAN ? (double)(end - first) : 1.0;
        for (uint32_t d = 0; d < D; d++) {
            double sum = 0;
            for (uint32_t at = first; at < end; at++)
                sum += (double)W[(size_t)m->member[at] * D + d];
            out[(size_t)g * D + d] = (float)(sum / share);
        }
    }
}
