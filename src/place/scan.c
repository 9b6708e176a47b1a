/* scan.c: windows of route tables, verified and handed out by all threads. Each thread has its own handles, since a
 * handle has one reader at a time, and consecutive windows. */
#include "internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct worker {
    const gr_place_scan *scan;
    gr_routes **table; /* [n_table] */
    uint16_t *ids;     /* [T][K] */
    float *gates;      /* [T][K] */
    uint64_t begin, end;
    gr_progress *progress; /* the first worker's: it speaks for all */
    /* where it is */
    uint64_t i, first; /* index of the scan; first window of the table */
    int at;            /* table */
    gr_err err;
} worker;

uint64_t gr_place_window_count(gr_routes *const *table, int n_table) {
    uint64_t n = 0;
    for (int i = 0; i < n_table; i++)
        n += gr_routes_get(table[i])->n_window;
    return n;
}

void gr_place_touch(
    const uint16_t *ids, uint32_t T, uint32_t K, const uint16_t *part, uint32_t n_part, uint32_t *touch) {
    uint32_t seen[GR_PLACEMENT_RANKS_MAX];
    memset(seen, 0, n_part * sizeof *seen);
    memset(touch, 0, n_part * sizeof *touch);
    for (uint32_t t = 0; t < T; t++)
        for (uint32_t k = 0; k < K; k++) {
            const uint16_t e = ids[(size_t)t * K + k];
            if (e == GR_PLACE_NONE)
                continue;
            const uint16_t p = part[e];
            touch[p] += seen[p] != t + 1;
            seen[p] = t + 1;
        }
}

/* ---------------------------------------------------------------- one worker */

static gr_err open_again(gr_routes **out, const gr_routes *table) {
    const gr_routes_info *a = gr_routes_get(table);
    GR_TRY(gr_routes_open(out, gr_routes_path(table)));
    const gr_routes_info *b = gr_routes_get(*out);
    if (a->table_hash == b->table_hash && a->n_window == b->n_window && a->E == b->E && a->K == b->K && a->T == b->T)
        return GR_OK;
    return gr_fail(GR_DATA,
        "%s: expected the table that was opened at the start (hash %016" PRIx64 "), got another (%016" PRIx64
        "); leave it alone while it is read",
        gr_routes_path(table), a->table_hash, b->table_hash);
}

static gr_err worker_open(worker *w, const gr_place_scan *s) {
    *w = (worker){.scan = s};
    const gr_routes_info *info = gr_routes_get(s->table[0]);
    const size_t n_pair = (size_t)info->T * info->K;
    GR_TRY(gr_alloc((void **)&w->table, (size_t)s->n_table, sizeof *w->table, "route tables"));
    for (int i = 0; i < s->n_table; i++)
        GR_TRY(open_again(&w->table[i], s->table[i]));
    GR_TRY(gr_alloc((void **)&w->ids, n_pair, sizeof *w->ids, "window expert ids"));
    return gr_alloc((void **)&w->gates, n_pair, sizeof *w->gates, "window gates");
}

static void worker_close(worker *w) {
    free(w->gates);
    free(w->ids);
    for (int i = 0; w->table && i < w->scan->n_table; i++)
        gr_routes_close(w->table[i]);
    free(w->table);
}

static gr_err read_window(worker *w) {
    const gr_place_scan *s = w->scan;
    const uint64_t window = s->window ? s->window[w->i] : w->i;
    for (uint64_t n; window >= w->first + (n = gr_routes_get(w->table[w->at])->n_window); w->at++)
        w->first += n;
    const gr_routes_info *info = gr_routes_get(w->table[w->at]);
    GR_TRY(gr_routes_read(w->table[w->at], window - w->first, NULL, w->ids, w->gates));
    const size_t n_pair = (size_t)info->T * info->K;
    for (size_t i = 0; info->variable_k && i < n_pair; i++)
        if (!(w->gates[i] > 0.0f))
            w->ids[i] = GR_PLACE_NONE;
    return GR_OK;
}

static void work(worker *w) {
    const gr_place_scan *s = w->scan;
    const uint64_t T = gr_routes_get(s->table[0])->T;
    for (w->i = w->begin; w->i < w->end; w->i++) {
        w->err = read_window(w);
        if (w->err)
            return;
        s->visit(s->context, w->i, w->ids);
        if (w->progress)
            gr_progress_update(w->progress, (uint64_t)((double)(w->i + 1) / (double)w->end * (double)s->n * (double)T));
    }
}

/* ---------------------------------------------------------------- all of them */

/* The first fault in the order of windows, whoever met it: read again, so that its text is this thread's. */
static gr_err report(worker *w, int n_worker) {
    for (int i = 0; i < n_worker; i++) {
        if (!w[i].err)
            continue;
        GR_TRY(read_window(&w[i]));
        return gr_fail(GR_DATA, "%s: window %" PRIu64 ": its bytes changed while it was read; leave the table alone",
            gr_routes_path(w[i].table[w[i].at]), (w[i].scan->window ? w[i].scan->window[w[i].i] : w[i].i) - w[i].first);
    }
    return GR_OK;
}

static gr_err run(worker *w, int n_worker, const gr_place_scan *s) {
    const uint64_t n_token = s->n * gr_routes_get(s->table[0])->T;
    gr_progress progress;
    for (int i = 0; i < n_worker; i++) {
        GR_TRY(worker_open(&w[i], s));
        w[i].begin = s->n / (uint64_t)n_worker * (uint64_t)i;
        w[i].end = i + 1 < n_worker ? s->n / (uint64_t)n_worker * (uint64_t)(i + 1) : s->n;
    }
    gr_progress_start(&progress, s->label, "tokens", n_token);
    w[0].progress = &progress;
#pragma omp parallel for schedule(static, 1)
    for (int i = 0; i < n_worker; i++)
        work(&w[i]);
    GR_TRY(report(w, n_worker));
    gr_progress_finish(&progress, n_token);
    return GR_OK;
}

gr_err gr_place_scan_run(const gr_place_scan *s) {
    worker *w = NULL;
    const int n_worker = gr_thread_count();
    GR_TRY(gr_alloc((void **)&w, (size_t)n_worker, sizeof *w, "scan"));
    gr_err e = run(w, n_worker, s);
    for (int i = 0; i < n_worker; i++)
        if (w[i].scan)
            worker_close(&w[i]);
    free(w);
    return e;
}
