/* sample.c: windows drawn evenly over all tables: their affinity vectors, and the routes of as many as memory allows.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    PAIRS_MAX = 1 << 27, /* of routes kept: 256 MiB */
    PHI_MAX = 1 << 28,   /* numbers of affinity vectors: 1 GiB */
};

static size_t ceil_div(size_t n, size_t by) {
    return n / by + (n % by != 0);
}

/* One window of each of n stretches of equal length. */
static void draw(gr_place_sample *s, uint64_t n_all, uint64_t seed) {
    const uint64_t stream = gr_stream_id("placement: sampled windows");
    for (uint64_t i = 0; i < s->n; i++) {
        const uint64_t begin = (uint64_t)((unsigned __int128)n_all * i / s->n);
        const uint64_t end = (uint64_t)((unsigned __int128)n_all * (i + 1) / s->n);
        const uint64_t word = gr_random_u64(seed, stream, i);
        s->window[i] = begin + (uint64_t)((unsigned __int128)word * (end - begin) >> 64);
    }
}

static void find_tables(gr_place_sample *s, const gr_place_options *o) {
    uint64_t end = 0;
    size_t i = 0;
    for (int table = 0; table < o->n_table; table++) {
        end += gr_routes_get(o->table[table])->n_window;
        while (i < s->n && s->window[i] < end)
            i++;
        s->begin[table + 1] = ceil_div(i, s->step);
    }
}

/* Of one window: its affinity, and its routes if they are kept. */
static void visit(void *context, uint64_t i, const uint16_t *ids) {
    gr_place_sample *s = context;
    const size_t n_pair = (size_t)s->T * s->K;
    uint32_t count[GR_EXPERTS_MAX];
    memset(count, 0, s->E * sizeof *count);
    size_t n = 0;
    for (size_t pair = 0; pair < n_pair; pair++)
        if (ids[pair] != GR_PLACE_NONE) {
            count[ids[pair]]++;
            n++;
        }
    for (uint32_t e = 0; e < s->E; e++)
        s->phi[i * s->E + e] = (float)((double)count[e] / (double)n); /* every token has a gate above 0 */
    if (i % s->step == 0)
        memcpy(s->ids + i / s->step * n_pair, ids, n_pair * sizeof *ids);
}

static gr_err sample_alloc(gr_place_sample *s) {
    const size_t n_pair = (size_t)s->T * s->K; /* below 2^36 */
    const size_t n_kept = n_pair > PAIRS_MAX / s->n ? (n_pair < PAIRS_MAX ? PAIRS_MAX / n_pair : 1) : s->n;
    s->step = ceil_div(s->n, n_kept);
    size_t n_id;
    if (!gr_mul_size(ceil_div(s->n, s->step), n_pair, &n_id))
        return gr_fail(GR_RESOURCE, "place: routes of %zu windows do not fit memory", s->n);
    GR_TRY(gr_alloc((void **)&s->window, s->n, sizeof *s->window, "sampled windows"));
    GR_TRY(gr_alloc((void **)&s->phi, s->n * s->E, sizeof *s->phi, "affinity vectors"));
    GR_TRY(gr_alloc((void **)&s->ids, n_id, sizeof *s->ids, "routes of sampled windows"));
    return gr_alloc((void **)&s->begin, (size_t)s->n_table + 1, sizeof *s->begin, "sampled windows by table");
}

static gr_err sample_read(gr_place_sample *s, const gr_place_options *o, uint64_t n_all) {
    GR_TRY(sample_alloc(s));
    draw(s, n_all, o->seed);
    find_tables(s, o);
    return gr_place_scan_run(&(gr_place_scan){.table = o->table,
        .n_table = o->n_table,
        .window = s->window,
        .n = s->n,
        .label = "reading the sample",
        .visit = visit,
        .context = s});
}

gr_err gr_place_sample_open(gr_place_sample *s, const gr_place_options *o) {
    const gr_routes_info *info = gr_routes_get(o->table[0]);
    const uint64_t n_all = gr_place_window_count(o->table, o->n_table), fits = PHI_MAX / info->E;
    uint64_t n = o->n_sample < n_all ? o->n_sample : n_all;
    n = n < fits ? n : fits;
    *s = (gr_place_sample){.E = info->E, .K = info->K, .T = info->T, .n_table = o->n_table, .n = (size_t)n};
    gr_err e = sample_read(s, o, n_all);
    if (e)
        gr_place_sample_close(s);
    return e;
}

void gr_place_sample_close(gr_place_sample *s) {
    free(s->begin);
    free(s->ids);
    free(s->phi);
    free(s->window);
    *s = (gr_place_sample){0};
}

/* ---------------------------------------------------------------- views */

gr_err gr_place_view_open(gr_place_view *v, const gr_place_sample *s, size_t n_pair) {
    const size_t n_kept = s->begin[s->n_table], each = (size_t)s->T * s->K;
    const size_t wanted = n_pair / each > 0 ? n_pair / each : 1;
    const size_t step = wanted < n_kept ? ceil_div(n_kept, wanted) : 1;
    *v = (gr_place_view){.E = s->E,
        .K = s->K,
        .T = s->T,
        .ids = s->ids,
        .n = ceil_div(n_kept, step),
        .step = step,
        .n_table = s->n_table};
    GR_TRY(gr_alloc((void **)&v->begin, (size_t)s->n_table + 1, sizeof *v->begin, "sampled windows by table"));
    for (int i = 0; i <= s->n_table; i++)
        v->begin[i] = ceil_div(s->begin[i], step);
    return GR_OK;
}

void gr_place_view_close(gr_place_view *v) {
    free(v->begin);
    *v = (gr_place_view){0};
}
