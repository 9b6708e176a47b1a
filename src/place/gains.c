/* gains.c: one pass over the tokens gives the change of rows for every swap of two experts, exactly.
 *
 * Expert e leaves part A for B. For a token with e a row less travels if e was its only expert on A, and A is not home;
 * a row more, if it had none on B, and B is not home. So for all tokens with e together
 *   move(e, B) = total[e] - settled[e][B] - alone[e][e].
 * Swapping e and f is move(e, B) + move(f, A), but for tokens with both nothing changes, while each sum has counted
 * the row less of an expert that is alone: alone[e][f] + alone[f][e] come back. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum { TABLES_MAX = 1 << 26 }; /* counts of all threads' tables together: 256 MiB */

/* What one thread has counted. */
typedef struct counts {
    uint64_t rows;
    uint32_t *total;   /* [E] */
    uint32_t *settled; /* [E][n_part] */
    uint32_t *alone;   /* [E][E] */
} counts;

typedef struct pass {
    const gr_place_view *v;
    const uint16_t *part, *home; /* NULL: only `alone` is filled, with tokens that have both */
    uint32_t n_part;
    uint32_t *touch; /* [n][n_part] */
    int n_worker;
    counts *by_worker; /* [n_worker]; the first are the result */
} pass;

static const uint16_t *window_ids(const gr_place_view *v, size_t window) {
    return v->ids + window * v->step * v->T * v->K;
}

/* ---------------------------------------------------------------- one token */

typedef struct token {
    uint32_t n_expert, n_part;
    uint16_t expert[GR_TOPK_MAX], at[GR_TOPK_MAX]; /* its experts and their parts */
    uint16_t part[GR_TOPK_MAX];                    /* the parts, each once */
} token;

/* count[n_part] is 0 before, and the token's experts per part afterwards. */
static void look_at(token *t, const uint16_t *ids, uint32_t K, const uint16_t *part, uint8_t *count) {
    t->n_expert = t->n_part = 0;
    for (uint32_t k = 0; k < K; k++) {
        if (ids[k] == GR_PLACE_NONE)
            continue;
        const uint16_t p = part[ids[k]];
        t->expert[t->n_expert] = ids[k];
        t->at[t->n_expert++] = p;
        if (count[p]++ == 0)
            t->part[t->n_part++] = p;
    }
}

static void count_token(counts *c, const token *t, const uint8_t *count, uint32_t home, uint32_t E, uint32_t n_part) {
    c->rows += t->n_part - (count[home] > 0);
    for (uint32_t i = 0; i < t->n_expert; i++) {
        const uint32_t e = t->expert[i];
        uint32_t *settled = c->settled + (size_t)e * n_part;
        c->total[e]++;
        settled[home] += count[home] == 0;
        for (uint32_t p = 0; p < t->n_part; p++)
            settled[t->part[p]]++;
        if (count[t->at[i]] != 1 || t->at[i] == home)
            continue;
        uint32_t *alone = c->alone + (size_t)e * E;
        for (uint32_t j = 0; j < t->n_expert; j++)
            alone[t->expert[j]]++;
    }
}

/* ---------------------------------------------------------------- one thread's windows */

static void count_window(const pass *p, counts *c, size_t window, uint8_t *count) {
    const gr_place_view *v = p->v;
    const uint16_t *ids = window_ids(v, window);
    uint32_t *touch = p->touch + window * p->n_part;
    token t;
    memset(touch, 0, p->n_part * sizeof *touch);
    for (uint32_t i = 0; i < v->T; i++, ids += v->K) {
        look_at(&t, ids, v->K, p->part, count);
        count_token(c, &t, count, p->home[window], v->E, p->n_part);
        for (uint32_t k = 0; k < t.n_part; k++) {
            touch[t.part[k]]++;
            count[t.part[k]] = 0;
        }
    }
}

static void pair_window(const pass *p, counts *c, size_t window) {
    const gr_place_view *v = p->v;
    const uint16_t *ids = window_ids(v, window);
    for (uint32_t i = 0; i < v->T; i++, ids += v->K)
        for (uint32_t a = 0; a < v->K; a++)
            for (uint32_t b = 0; b < v->K && ids[a] != GR_PLACE_NONE; b++)
                if (ids[b] != GR_PLACE_NONE)
                    c->alone[(size_t)ids[a] * v->E + ids[b]]++;
}

static void work(const pass *p, int worker) {
    uint8_t count[GR_PLACEMENT_RANKS_MAX] = {0};
    const size_t begin = (size_t)((unsigned __int128)p->v->n * (unsigned)worker / (unsigned)p->n_worker);
    const size_t end = (size_t)((unsigned __int128)p->v->n * ((unsigned)worker + 1) / (unsigned)p->n_worker);
    for (size_t w = begin; w < end; w++)
        if (p->part)
            count_window(p, &p->by_worker[worker], w, count);
        else
            pair_window(p, &p->by_worker[worker], w);
}

/* ---------------------------------------------------------------- all threads */

static gr_err counts_open(counts *c, uint32_t E, uint32_t n_part) {
    GR_TRY(gr_alloc((void **)&c->total, E, sizeof *c->total, "experts' tokens"));
    GR_TRY(gr_alloc((void **)&c->settled, (size_t)E * n_part, sizeof *c->settled, "experts' tokens by part"));
    return gr_alloc((void **)&c->alone, (size_t)E * E, sizeof *c->alone, "experts' tokens by pair");
}

static void counts_close(counts *c) {
    free(c->alone);
    free(c->settled);
    free(c->total);
}

static void add(uint32_t *to, const uint32_t *from, size_t n) {
    for (size_t i = 0; i < n; i++)
        to[i] += from[i];
}

static gr_err run_workers(pass *p) {
    const uint32_t E = p->v->E;
    for (int i = 1; i < p->n_worker; i++)
        GR_TRY(counts_open(&p->by_worker[i], E, p->n_part));
#pragma omp parallel for schedule(static, 1)
    for (int i = 0; i < p->n_worker; i++)
        work(p, i);
    counts *sum = &p->by_worker[0];
    for (int i = 1; i < p->n_worker; i++) {
        const counts *c = &p->by_worker[i];
        sum->rows += c->rows;
        add(sum->total, c->total, E);
        add(sum->settled, c->settled, (size_t)E * p->n_part);
        add(sum->alone, c->alone, (size_t)E * E);
    }
    return GR_OK;
}

/* Adds to *result, whose tables are 0. Sums of whole numbers: the number of threads changes nothing. */
static gr_err run(pass *p, counts *result) {
    const size_t each = (size_t)p->v->E * (p->v->E + p->n_part + 1);
    const size_t fits = each < TABLES_MAX ? TABLES_MAX / each : 1;
    p->n_worker = gr_thread_count();
    if (p->v->n * p->v->T * p->v->K < GR_PLACE_WIDE_MIN)
        p->n_worker = 1;
    if ((size_t)p->n_worker > fits)
        p->n_worker = (int)fits;
    GR_TRY(gr_alloc((void **)&p->by_worker, (size_t)p->n_worker, sizeof *p->by_worker, "threads' counts"));
    p->by_worker[0] = *result;
    gr_err e = run_workers(p);
    *result = p->by_worker[0];
    for (int i = 1; i < p->n_worker; i++)
        counts_close(&p->by_worker[i]);
    free(p->by_worker);
    return e;
}

/* ---------------------------------------------------------------- interface */

gr_err gr_place_gains_open(gr_place_gains *g, const gr_place_view *v, uint32_t n_part) {
    size_t n_touch;
    *g = (gr_place_gains){.E = v->E, .n_part = n_part, .n = v->n};
    if (!gr_mul_size(v->n, n_part, &n_touch))
        return gr_fail(GR_RESOURCE, "place: touch counts of %zu windows on %u ranks do not fit memory", v->n, n_part);
    GR_TRY(gr_alloc((void **)&g->touch, n_touch, sizeof *g->touch, "touch counts of the sample"));
    counts c = {0};
    gr_err e = counts_open(&c, v->E, n_part);
    g->total = c.total;
    g->settled = c.settled;
    g->alone = c.alone;
    return e;
}

void gr_place_gains_close(gr_place_gains *g) {
    free(g->alone);
    free(g->settled);
    free(g->total);
    free(g->touch);
    *g = (gr_place_gains){0};
}

gr_err gr_place_gains_count(gr_place_gains *g, const gr_place_view *v, const uint16_t *part, const uint16_t *home) {
    const size_t E = g->E;
    counts c = {.total = g->total, .settled = g->settled, .alone = g->alone};
    memset(g->total, 0, E * sizeof *g->total);
    memset(g->settled, 0, E * g->n_part * sizeof *g->settled);
    memset(g->alone, 0, E * E * sizeof *g->alone);
    pass p = {.v = v, .part = part, .home = home, .n_part = g->n_part, .touch = g->touch};
    GR_TRY(run(&p, &c));
    g->rows = c.rows;
    return GR_OK;
}

static int64_t move(const gr_place_gains *g, uint32_t e, uint32_t to) {
    return (int64_t)g->total[e] - g->settled[(size_t)e * g->n_part + to] - g->alone[(size_t)e * g->E + e];
}

int64_t gr_place_gains_swap(const gr_place_gains *g, const uint16_t *part, uint32_t e, uint32_t f) {
    return move(g, e, part[f]) + move(g, f, part[e]) + g->alone[(size_t)e * g->E + f] + g->alone[(size_t)f * g->E + e];
}

gr_err gr_place_together(const gr_place_view *v, uint32_t *together) {
    counts c = {0};
    gr_err e = counts_open(&c, v->E, 1);
    pass p = {.v = v, .n_part = 1};
    if (!e)
        e = run(&p, &c);
    if (!e)
        memcpy(together, c.alone, (size_t)v->E * v->E * sizeof *together);
    counts_close(&c);
    return e;
}
