/* packing.c: windows of a global batch to ranks, exactly, then to bins by swaps.
 *
 * A rank's pairs over all bins together are the same whoever takes which window: only which windows share a bin is
 * open. So the fullest rank of the fullest bin gives one of its bin's windows for another bin's of the same rank, as
 * long as that lowers the fuller of the two bins below what was the fullest. */
#include "grouter/packing.h"

#include <stdlib.h>

#include "grouter/transport.h"

typedef struct work {
    const gr_packing *p;
    size_t n;        /* windows */
    int32_t *cost;   /* [n][R] */
    uint64_t *room;  /* [R] */
    uint16_t *rank;  /* [n] of a window */
    uint32_t *taken; /* [R] windows that have a place */
    uint64_t *load;  /* [n_bin][R] pairs */
    uint64_t total;  /* pairs of all */
} work;

static gr_err work_open(work *w, const gr_packing *p, size_t n) {
    const char *what = "packing of a global batch";
    *w = (work){.p = p, .n = n};
    GR_TRY(gr_alloc((void **)&w->cost, n * p->R, sizeof *w->cost, what));
    GR_TRY(gr_alloc((void **)&w->room, p->R, sizeof *w->room, what));
    GR_TRY(gr_alloc((void **)&w->rank, n, sizeof *w->rank, what));
    GR_TRY(gr_alloc((void **)&w->taken, p->R, sizeof *w->taken, what));
    return gr_alloc((void **)&w->load, (size_t)p->n_bin * p->R, sizeof *w->load, what);
}

static void work_close(work *w) {
    free(w->load);
    free(w->taken);
    free(w->rank);
    free(w->room);
    free(w->cost);
}

/* ---------------------------------------------------------------- figures */

static const uint32_t *pairs_of(const work *w, uint32_t window) {
    return w->p->pairs + (size_t)window * w->p->R;
}

static void count_load(work *w, const uint32_t *order) {
    const uint32_t R = w->p->R, per_bin = R * w->p->B;
    for (size_t i = 0; i < (size_t)w->p->n_bin * R; i++)
        w->load[i] = 0;
    w->total = 0;
    for (size_t at = 0; at < w->n; at++)
        for (uint32_t r = 0; r < R; r++) {
            w->load[at / per_bin * R + r] += pairs_of(w, order[at])[r];
            w->total += pairs_of(w, order[at])[r];
        }
}

/* The cell of the fullest rank of any bin; ties to the first. */
static size_t fullest(const work *w) {
    size_t most = 0;
    for (size_t i = 1; i < (size_t)w->p->n_bin * w->p->R; i++)
        if (w->load[i] > w->load[most])
            most = i;
    return most;
}

/* As a multiple of the mean over ranks and bins; 1 where there are no pairs. */
static double over_mean(const work *w, double pairs) {
    double cells = (double)w->p->n_bin * w->p->R;
    return w->total ? pairs * cells / (double)w->total : 1;
}

/* Pairs that the fullest rank of some bin has whatever the packing: a rank's share of all, evenly over the bins. */
static double least_fullest(const work *w) {
    uint64_t most = 0;
    for (uint32_t r = 0; r < w->p->R; r++) {
        uint64_t sum = 0;
        for (uint32_t bin = 0; bin < w->p->n_bin; bin++)
            sum += w->load[(size_t)bin * w->p->R + r];
        most = sum > most ? sum : most;
    }
    return (double)most / w->p->n_bin;
}

static uint64_t count_rows(const work *w, const uint32_t *order) {
    const uint32_t R = w->p->R;
    uint64_t rows = 0;
    for (size_t at = 0; at < w->n; at++)
        for (uint32_t r = 0; r < R; r++)
            rows += r == at / w->p->B % R ? 0 : w->p->touch[(size_t)order[at] * R + r];
    return rows;
}

/* ---------------------------------------------------------------- windows to ranks */

/* A window costs its rows but for those that stay, and the rows of all windows together are given. */
static gr_err choose_ranks(work *w) {
    const uint32_t R = w->p->R;
    for (size_t i = 0; i < w->n * R; i++)
        w->cost[i] = -(int32_t)w->p->touch[i];
    for (uint32_t r = 0; r < R; r++)
        w->room[r] = (uint64_t)w->p->n_bin * w->p->B;
    const gr_transport t = {.n = w->n, .P = R, .cost = w->cost, .room = w->room};
    return gr_transport_solve(&t, w->rank, NULL);
}

/* Each rank's windows fill the bins in their order. */
static void fill_bins(work *w, uint32_t *order) {
    const uint32_t R = w->p->R, B = w->p->B;
    for (uint32_t i = 0; i < w->n; i++) {
        uint32_t r = w->rank[i], k = w->taken[r]++;
        order[((size_t)(k / B) * R + r) * B + k % B] = i;
    }
}

/* ---------------------------------------------------------------- swaps */

/* Pairs of the fullest rank of two bins if `mine`, a window of the first, and `theirs`, of the second, changed places;
 * UINT64_MAX unless it is below `limit`. */
static uint64_t after_swap(const work *w, const uint64_t *mine_load, const uint64_t *their_load, const uint32_t *mine,
    const uint32_t *theirs, uint64_t limit) {
    uint64_t most = 0;
    for (uint32_t r = 0; r < w->p->R; r++) {
        uint64_t a = mine_load[r] - mine[r] + theirs[r], b = their_load[r] - theirs[r] + mine[r];
        most = a > most ? a : most;
        most = b > most ? b : most;
        if (most >= limit)
            return UINT64_MAX;
    }
    return most;
}

typedef struct swap {
    size_t a, b;   /* places of the order */
    uint64_t most; /* pairs of the fullest rank of both bins afterwards */
} swap;

/* The best swap of the window at place a with one of the same rank in another bin, if it beats *best. */
static void look_for_swap(const work *w, const uint32_t *order, size_t a, swap *best) {
    const uint32_t R = w->p->R, B = w->p->B;
    const size_t per_bin = (size_t)R * B, bin = a / per_bin, column = a / B % R * B;
    for (size_t other = 0; other < w->p->n_bin; other++)
        for (size_t i = 0; i < B && other != bin; i++) {
            size_t b = other * per_bin + column + i;
            uint64_t most = after_swap(
                w, w->load + bin * R, w->load + other * R, pairs_of(w, order[a]), pairs_of(w, order[b]), best->most);
            if (most < best->most)
                *best = (swap){.a = a, .b = b, .most = most};
        }
}

static void apply(work *w, uint32_t *order, const swap *s) {
    const uint32_t R = w->p->R;
    const size_t per_bin = (size_t)R * w->p->B;
    const uint32_t *mine = pairs_of(w, order[s->a]), *theirs = pairs_of(w, order[s->b]);
    uint64_t *a = w->load + s->a / per_bin * R, *b = w->load + s->b / per_bin * R;
    for (uint32_t r = 0; r < R; r++) {
        a[r] = a[r] - mine[r] + theirs[r];
        b[r] = b[r] - theirs[r] + mine[r];
    }
    uint32_t window = order[s->a];
    order[s->a] = order[s->b];
    order[s->b] = window;
}

/* Every swap makes the list of all loads, largest first, smaller, so it ends. */
static void level_bins(work *w, uint32_t *order) {
    const uint32_t R = w->p->R;
    const size_t per_bin = (size_t)R * w->p->B;
    for (;;) {
        size_t most = fullest(w), first = most / R * per_bin;
        if (over_mean(w, (double)w->load[most]) <= w->p->goal || (double)w->load[most] <= least_fullest(w))
            return;
        swap best = {.most = w->load[most]};
        for (size_t a = first; a < first + per_bin; a++)
            look_for_swap(w, order, a, &best);
        if (best.most == w->load[most])
            return;
        apply(w, order, &best);
    }
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* ---------------------------------------------------------------- all of it */

static gr_err pack(work *w, uint32_t *order, gr_packing_report *report) {
    for (uint32_t i = 0; i < w->n; i++)
        order[i] = i;
    count_load(w, order);
    report->rows_before = count_rows(w, order);
    report->imbalance_before = over_mean(w, (double)w->load[fullest(w)]);
    GR_TRY(choose_ranks(w));
    fill_bins(w, order);
    count_load(w, order);
    level_bins(w, order);
    for (size_t at = 0; at < w->n; at += w->p->B)
        qsort(order + at, w->p->B, sizeof *order, ascending);
    report->rows = count_rows(w, order);
    report->imbalance = over_mean(w, (double)w->load[fullest(w)]);
    report->imbalance_bound = over_mean(w, least_fullest(w));
    return GR_OK;
}

gr_err gr_packing_run(const gr_packing *p, uint32_t *order, gr_packing_report *report) {
    size_t n = (size_t)p->n_bin * p->R * p->B;
    GR_ASSERT(n >= 1 && n < UINT32_MAX, "%u bins of %u ranks with %u windows", p->n_bin, p->R, p->B);
    work w;
    gr_err e = work_open(&w, p, n);
    if (!e)
        e = pack(&w, order, report);
    work_close(&w);
    return e;
}
