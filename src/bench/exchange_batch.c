/* exchange_batch.c: the routes of one micro-batch: uniform ones or those of a table's windows, and where a placement
 * puts experts and windows. */
#include "exchange.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/router.h"
#include "grouter/transport.h"

/* Where windows come from. */
typedef struct source {
    gr_routes *table;
    gr_router *uniform;
    uint32_t E, K, T;
    float scale;
    uint64_t n_window;
    uint64_t seed;
} source;

static gr_err source_open(source *s, const gr_exchange_options *o) {
    *s = (source){.E = o->E, .K = o->K, .T = o->T, .scale = 1, .n_window = UINT64_MAX, .seed = o->seed};
    if (!o->routes)
        return gr_router_make_random(&s->uniform, o->seed, o->E, o->K, s->scale);
    GR_TRY(gr_routes_open(&s->table, o->routes));
    const gr_routes_info *i = gr_routes_get(s->table);
    if (i->variable_k)
        return gr_fail(GR_DATA,
            "%s: expected routes in which every token uses all its K slots, as a router's do, got some with unused "
            "slots (variable_k); use another table",
            o->routes);
    s->E = i->E;
    s->K = i->K;
    s->T = i->T;
    s->scale = i->scale;
    s->n_window = i->n_window;
    return GR_OK;
}

static void source_close(source *s) {
    gr_router_close(s->uniform);
    gr_routes_close(s->table);
}

static gr_err source_read(const source *s, uint64_t window, uint16_t *ids, float *gates) {
    if (s->table)
        return gr_routes_read(s->table, window, NULL, ids, gates);
    return gr_router_route(s->uniform, window, s->T, NULL, ids, gates);
}

/* The i-th window of the sample: any order without repeats will do. */
static uint64_t source_window(const source *s, uint64_t i) {
    return s->table ? gr_bijection(s->seed, s->n_window, i) : i;
}

/* ---------------------------------------------------------------- does it fit */

static gr_err check_shape(const source *s, const gr_exchange_options *o) {
    const uint32_t R = (uint32_t)o->comm->size[GR_WORLD];
    const double pairs = (double)R * o->B * s->T * s->K;
    if (R < 2)
        return gr_fail(GR_CONFIG, "bench exchange: expected at least 2 ranks, got 1; start it with mpirun -n 2");
    if (s->E % R != 0)
        return gr_fail(GR_CONFIG,
            "bench exchange: expected a number of ranks that divides the %" PRIu32 " experts, got %" PRIu32
            "; start another number",
            s->E, R);
    if (s->E > o->D)
        return gr_fail(GR_CONFIG,
            "bench exchange: expected a width of at least the %" PRIu32 " experts, got %" PRIu32
            "; the rows tell the router what to choose, raise --width",
            s->E, o->D);
    if (pairs > 0x1p30 || pairs * o->D > 0x1p42)
        return gr_fail(GR_CONFIG,
            "bench exchange: expected at most 2^30 pairs of all ranks and 2^42 numbers in them, got %.3g of width "
            "%" PRIu32 "; lower --windows or --width",
            pairs, o->D);
    if (s->n_window < (uint64_t)R * o->B)
        return gr_fail(GR_DATA,
            "%s: expected at least %" PRIu64 " windows, %" PRIu32 " for each of %" PRIu32 " ranks, got %" PRIu64
            "; lower --windows or take a longer table",
            o->routes, (uint64_t)R * o->B, o->B, R, s->n_window);
    return GR_OK;
}

static gr_err find_section(const source *s, const gr_exchange_options *o, const gr_placed_table **out) {
    const gr_placement *p = o->placement;
    GR_ASSERT(s->table, "a placement without the table it is of");
    const gr_routes_info *i = gr_routes_get(s->table);
    if (p->R != (uint32_t)o->comm->size[GR_WORLD])
        return gr_fail(GR_CONFIG,
            "bench exchange: expected a placement for %d ranks as there are, got one for %" PRIu32
            "; start as many or place again",
            o->comm->size[GR_WORLD], p->R);
    *out = gr_placement_find(p, i->table_hash);
    if (*out && (*out)->n_window == i->n_window && p->E == i->E && p->K == i->K && p->T == i->T)
        return GR_OK;
    return gr_fail(GR_DATA,
        "bench exchange: expected a placement of the table %s (hash %016" PRIx64
        "), got one of other routes; place this table",
        o->routes, i->table_hash);
}

/* ---------------------------------------------------------------- one batch */

/* placement: where experts are, or NULL. */
static gr_err batch_open(bench_batch *b, const source *s, const gr_exchange_options *o, const gr_placement *placement) {
    *b = (bench_batch){.R = (uint32_t)o->comm->size[GR_WORLD],
        .rank = (uint32_t)o->comm->rank[GR_WORLD],
        .N = o->B * s->T,
        .K = s->K,
        .E = s->E,
        .T = s->T,
        .scale = s->scale};
    size_t n = (size_t)b->R * b->N * b->K;
    GR_TRY(placement ? gr_expert_map_open_placed(&b->map, b->E, b->R, placement->expert_at)
                     : gr_expert_map_open(&b->map, b->E, b->R));
    b->map.node_ranks = placement ? placement->node_ranks : b->R;
    GR_TRY(gr_alloc((void **)&b->ids, n, sizeof *b->ids, "routes of the micro-batch"));
    return gr_alloc((void **)&b->gates, n, sizeof *b->gates, "gates of the micro-batch");
}

void gr_bench_batch_close(bench_batch *b) {
    free(b->gates);
    free(b->ids);
    gr_expert_map_close(&b->map);
    *b = (bench_batch){0};
}

/* window[R*B] by rank. */
static gr_err batch_read(bench_batch *b, const source *s, const uint64_t *window) {
    const size_t n = (size_t)b->T * b->K, n_window = (size_t)b->R * b->N / b->T;
    for (size_t i = 0; i < n_window; i++)
        GR_TRY(source_read(s, window[i], b->ids + i * n, b->gates + i * n));
    return GR_OK;
}

/* ---------------------------------------------------------------- placed ones */

/* The batch's windows, as many on each rank as before, where they leave the fewest rows. */
static gr_err assign_windows(const bench_batch *b, const gr_placed_table *t, const uint64_t *window, uint64_t *placed) {
    const uint32_t R = b->R;
    const size_t B = b->N / b->T, n = R * B;
    void *memory;
    GR_TRY(gr_alloc(
        &memory, R * sizeof(uint64_t) + n * (R * sizeof(int32_t) + sizeof(uint16_t)), 1, "windows being placed"));
    uint64_t *room = memory;
    int32_t *cost = (int32_t *)(room + R);
    uint16_t *rank = (uint16_t *)(cost + n * R);
    for (size_t i = 0; i < n; i++)
        for (uint32_t r = 0; r < R; r++)
            cost[i * R + r] = -(int32_t)t->touch.count[window[i] * R + r];
    for (uint32_t r = 0; r < R; r++)
        room[r] = B;
    gr_err e = gr_transport_solve(&(gr_transport){.n = n, .P = R, .cost = cost, .room = room}, rank, NULL);
    for (uint32_t r = 0; r < R && !e; r++)
        for (size_t i = 0; i < n; i++)
            if (rank[i] == r)
                *placed++ = window[i];
    free(memory);
    return e;
}

/* For each rank the first windows of the sample that the placement gives it. */
static gr_err choose_windows(const bench_batch *b, const source *s, const gr_placed_table *t, uint64_t *placed) {
    const uint64_t B = b->N / b->T;
    void *memory;
    GR_TRY(gr_alloc(&memory, b->R, sizeof(uint64_t), "windows of each rank"));
    uint64_t *n = memory, n_full = 0;
    for (uint64_t i = 0; i < s->n_window && n_full < b->R; i++) {
        uint64_t w = source_window(s, i);
        uint32_t r = t->rank[w];
        if (n[r] == B)
            continue;
        placed[r * B + n[r]++] = w;
        n_full += n[r] == B;
    }
    gr_err e = GR_OK;
    for (uint32_t r = 0; r < b->R && !e; r++)
        if (n[r] < B)
            e = gr_fail(GR_DATA,
                "bench exchange: expected at least %" PRIu64 " windows for rank %" PRIu32
                " in the placement, got %" PRIu64 "; lower --windows",
                B, r, n[r]);
    free(memory);
    return e;
}

static void expect_rows(bench_batch *b, const gr_placed_table *t, const uint64_t *window) {
    const uint32_t B = b->N / b->T;
    for (uint32_t i = b->rank * B; i < (b->rank + 1) * B; i++)
        gr_links_add(&b->expected, t->touch.count + window[i] * b->R, b->R, b->map.node_ranks, b->rank);
}

/* window[2][R*B]: those of the plain batch, and room for others. */
static gr_err open_placed(
    bench_batch batch[N_BATCH], const source *s, const gr_exchange_options *o, uint64_t *const window[2]) {
    const gr_placed_table *t = NULL;
    GR_TRY(find_section(s, o, &t));
    for (int i = BATCH_PLACED; i <= BATCH_CORPUS; i++) {
        bench_batch *b = &batch[i];
        GR_TRY(batch_open(b, s, o, o->placement));
        GR_TRY(i == BATCH_PLACED ? assign_windows(b, t, window[0], window[1]) : choose_windows(b, s, t, window[1]));
        GR_TRY(batch_read(b, s, window[1]));
        expect_rows(b, t, window[1]);
    }
    return GR_OK;
}

static gr_err open_all(bench_batch batch[N_BATCH], const source *s, const gr_exchange_options *o) {
    GR_TRY(check_shape(s, o));
    GR_TRY(batch_open(&batch[BATCH_PLAIN], s, o, NULL));
    const size_t n = (size_t)batch->R * o->B;
    void *memory;
    GR_TRY(gr_alloc(&memory, 2 * n, sizeof(uint64_t), "windows of the micro-batch"));
    uint64_t *const window[2] = {memory, (uint64_t *)memory + n};
    for (size_t i = 0; i < n; i++)
        window[0][i] = source_window(s, i);
    gr_err e = batch_read(&batch[BATCH_PLAIN], s, window[0]);
    if (!e && o->placement)
        e = open_placed(batch, s, o, window);
    free(memory);
    return e;
}

gr_err gr_bench_batches_open(bench_batch batch[N_BATCH], const gr_exchange_options *o) {
    source s;
    gr_err e = source_open(&s, o);
    if (!e)
        e = open_all(batch, &s, o);
    source_close(&s);
    return e;
}
