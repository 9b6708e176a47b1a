/* The feed: which windows come next, their tokens and checked routes, and the plan made from them. */
#include <stdlib.h>
#include <string.h>

#include "feed.h"

/* ---------------------------------------------------------------- which window */

static feed_place valid_place(const gr_feed *f, uint64_t index) {
    feed_place p = {.ignored = index >= f->n_window};
    uint64_t left = p.ignored ? 0 : index;
    while (left >= f->stream_file[p.source].n_window)
        left -= f->stream_file[p.source++].n_window;
    p.window = left;
    return p;
}

static feed_place train_place(gr_feed *f, uint64_t index) {
    if (index < f->stream.index)
        gr_stream_seek(&f->stream, index);
    while (f->stream.index < index)
        (void)gr_stream_next(&f->stream);
    gr_window_ref ref = gr_stream_next(&f->stream);
    return (feed_place){.source = ref.file, .window = ref.window};
}

feed_place gr_feed_place(gr_feed *f, uint64_t index) {
    return f->kind == GR_FEED_TRAIN ? train_place(f, index) : valid_place(f, index);
}

uint64_t gr_feed_group_first(const gr_feed *f, uint64_t cursor, uint64_t micro) {
    uint64_t first_rank = (uint64_t)(f->comm->rank[GR_WORLD] - f->comm->rank[GR_EP]);
    return gr_stream_index(cursor, micro, (uint64_t)f->comm->size[GR_WORLD], f->B, first_rank, 0);
}

/* ---------------------------------------------------------------- opening */

/* Both ends of a file, as far as windows go: enough to tell one file from another without reading it all. */
static gr_err hash_ends(gr_feed *f, feed_source *s, uint64_t n_window) {
    size_t n = f->T + 1;
    void *memory;
    GR_TRY(gr_alloc(&memory, 2 * n, sizeof(uint32_t), "two windows"));
    uint32_t *token = memory, V = (uint32_t)f->config->model.vocab_size;
    gr_err e = gr_window_read(s->tokens, 0, f->T, V, token);
    if (!e)
        e = gr_window_read(s->tokens, n_window - 1, f->T, V, token + n);
    s->ends_hash = gr_hash64(token, 2 * n * sizeof *token);
    free(memory);
    return e;
}

static gr_err check_slots(const gr_feed *f, const gr_routes_info *info, const char *path) {
    if (f->config->routing.gates == GR_GATES_FIXED || !info->variable_k)
        return GR_OK;
    return gr_fail(GR_DATA,
        "%s: expected routes in which every token uses all its K slots, got some with unused slots (variable_k); "
        "learned gates need others, or set routing.gates to fixed",
        path);
}

static gr_err check_router(const gr_feed *f, const gr_routes *routes, const gr_routes *other) {
    const gr_routes_info *a = gr_routes_get(routes), *b = gr_routes_get(other);
    if (memcmp(&a->router, &b->router, sizeof a->router) == 0)
        return GR_OK;
    char ours[33], theirs[33];
    return gr_fail(GR_DATA,
        "%s: expected routes of router %s (as %s), got router %s; route %s data with the same router",
        gr_routes_path(routes), gr_hash128_text(b->router, theirs), gr_routes_path(other),
        gr_hash128_text(a->router, ours), f->kind == GR_FEED_VALID ? "validation" : "training");
}

static gr_err open_source(gr_feed *f, int i, const gr_data_file *file, const gr_feed *like) {
    feed_source *s = &f->source[i];
    GR_TRY(gr_tokens_open(&s->tokens, file->tokens));
    uint64_t n = gr_window_count(gr_tokens_count(s->tokens), f->T);
    if (n == 0)
        return gr_fail(GR_DATA, "%s: expected at least data.seq_len+1 = %u tokens, got %llu; use a longer file",
            file->tokens, f->T + 1, (unsigned long long)gr_tokens_count(s->tokens));
    f->stream_file[i] = (gr_stream_file){.n_window = n, .weight = file->weight};
    f->n_window += n;
    if (f->routing != GR_SOURCE_TABLE)
        return hash_ends(f, s, n);
    GR_TRY(gr_routes_open(&s->routes, file->routes));
    GR_TRY(gr_routes_match(s->routes, s->tokens, f->T, f->E, f->K));
    GR_TRY(check_slots(f, gr_routes_get(s->routes), file->routes));
    return check_router(f, s->routes, like ? like->source[0].routes : f->source[0].routes);
}

static gr_err open_online(gr_feed *f, const gr_feed *like) {
    f->owns_online = !like;
    if (like)
        f->online = like->online;
    else
        GR_TRY(gr_online_open(&f->online, f->config));
    return check_slots(f, gr_online_info(f->online), f->config->online.grouter);
}

static gr_err open_sources(gr_feed *f, const gr_feed *like) {
    const gr_data_file *files = f->kind == GR_FEED_TRAIN ? f->config->data.train : f->config->data.valid;
    f->n_source = f->kind == GR_FEED_TRAIN ? f->config->data.n_train : f->config->data.n_valid;
    GR_TRY(gr_alloc((void **)&f->window_load, f->E, sizeof *f->window_load, "expert loads"));
    GR_TRY(gr_alloc((void **)&f->source, (size_t)f->n_source, sizeof *f->source, "data files"));
    GR_TRY(gr_alloc((void **)&f->stream_file, (size_t)f->n_source, sizeof *f->stream_file, "data files"));
    if (f->routing == GR_SOURCE_ONLINE)
        GR_TRY(open_online(f, like));
    for (int i = 0; i < f->n_source; i++)
        GR_TRY(open_source(f, i, &files[i], like));
    if (f->routing == GR_SOURCE_TABLE && *f->config->online.grouter)
        GR_TRY(gr_online_check_tables(f));
    if (f->kind == GR_FEED_TRAIN)
        gr_stream_open(&f->stream, f->config->run.seed, f->stream_file, f->n_source);
    else if (f->config->eval.windows && (uint64_t)f->config->eval.windows < f->n_window)
        f->n_window = (uint64_t)f->config->eval.windows;
    return GR_OK;
}

static gr_err open_touch(gr_feed *f, bool save) {
    uint32_t n_vocab = (uint32_t)f->config->model.vocab_size;
    for (int i = 0; i < f->n_source; i++) {
        feed_source *s = &f->source[i];
        GR_TRY(gr_touch_open(&s->touch, s->routes, s->tokens, n_vocab, f->map->n_rank, save));
    }
    return GR_OK;
}

/* Rank 0 makes missing sidecars, then everyone reads them. */
static gr_err open_touch_counts(gr_feed *f) {
    if (f->map->n_rank == 1 || f->routing != GR_SOURCE_TABLE)
        return GR_OK;
    bool first = f->comm->rank[GR_WORLD] == 0;
    GR_TRY(gr_comm_agree(f->comm, first ? open_touch(f, true) : GR_OK));
    return gr_comm_agree(f->comm, first ? GR_OK : open_touch(f, false));
}

/* ---------------------------------------------------------------- limits */

/* The histogram is a hint until the window is read and refused with it: a damaged one must not ask for more memory
 * than a window can need. */
static uint64_t pairs_on_rank(gr_feed *f, const feed_place *p, uint32_t rank) {
    uint64_t most = (uint64_t)f->T * f->K;
    gr_routes_histogram(f->source[p->source].routes, p->window, f->window_load);
    uint64_t n = 0;
    for (uint32_t s = 0; s < f->map->E_local; s++)
        n += f->window_load[f->map->expert_at[(size_t)rank * f->map->E_local + s]];
    return n < most ? n : most;
}

static void micro_limits(gr_feed *f, uint64_t cursor, uint64_t micro) {
    uint32_t R = f->map->n_rank, rank = (uint32_t)f->comm->rank[GR_EP];
    uint64_t first = gr_feed_group_first(f, cursor, micro), send = 0, recv = 0, pair = 0;
    for (uint32_t j = 0; j < R * f->B; j++) {
        feed_place p = gr_feed_place(f, first + j);
        const uint32_t *touch = f->source[p.source].touch.count + p.window * R;
        pair += pairs_on_rank(f, &p, rank);
        if (j / f->B == rank)
            gr_links_add(&f->links, touch, R, f->map->node_ranks, rank);
        for (uint32_t r = 0; r < R; r++) {
            if (j / f->B == rank && r != rank)
                send += touch[r];
            if (j / f->B != rank && r == rank)
                recv += touch[r];
        }
    }
    f->limits.send_max = send > f->limits.send_max ? send : f->limits.send_max;
    f->limits.recv_max = recv > f->limits.recv_max ? recv : f->limits.recv_max;
    f->limits.pair_max = pair > f->limits.pair_max ? pair : f->limits.pair_max;
}

/* Exact maxima over every micro-batch of the run. Without tables: of any choice, or, where a plan is known before its
 * micro-batch and buffers can grow for it, a little more than uniform routing needs. One rank alone keeps all its
 * pairs: no look at the data is needed. */
static void find_limits(gr_feed *f, gr_feed_start start) {
    if (f->routing != GR_SOURCE_TABLE) {
        f->limits = f->routing == GR_SOURCE_ONLINE ? gr_forecast_limits(f->config, f->map, GR_FORECAST_SPARE)
                                                   : gr_plan_limits_worst(f->B * f->T, f->K, f->map);
        return;
    }
    f->limits = (gr_plan_limits){.N = f->B * f->T, .K = f->K, .n_rank = f->map->n_rank, .E_local = f->map->E_local};
    if (f->map->n_rank == 1) {
        f->limits.pair_max = (uint64_t)f->limits.N * f->K;
        return;
    }
    int64_t n_step = f->kind == GR_FEED_TRAIN ? f->config->train.steps - start.step : 1;
    uint64_t n_micro = gr_feed_micro_batches(f), G = (uint64_t)f->config->train.global_batch_windows;
    for (int64_t step = 0; step < n_step; step++)
        for (uint64_t micro = 0; micro < n_micro; micro++)
            micro_limits(f, start.cursor + (uint64_t)step * G, micro);
}

gr_plan_limits gr_plan_limits_max(const gr_plan_limits *a, const gr_plan_limits *b) {
    gr_plan_limits m = *a;
    m.send_max = b->send_max > m.send_max ? b->send_max : m.send_max;
    m.recv_max = b->recv_max > m.recv_max ? b->recv_max : m.recv_max;
    m.pair_max = b->pair_max > m.pair_max ? b->pair_max : m.pair_max;
    return m;
}

/* ---------------------------------------------------------------- memory */

gr_plan_limits gr_feed_plan_limits(const gr_feed *f) {
    return f->routing == GR_SOURCE_ONLINE ? gr_plan_limits_worst(f->limits.N, f->K, f->map) : f->limits;
}

static void layout_slot(const gr_feed *f, gr_arena *a, const gr_plan_limits *limits, feed_slot *s) {
    s->token = GR_TAKE(a, limits->N, uint32_t);
    s->target = GR_TAKE(a, limits->N, int32_t);
    if (f->routing != GR_SOURCE_TABLE && f->routing != GR_SOURCE_ONLINE)
        return;
    s->pair_gate = GR_TAKE(a, limits->pair_max, float);
    s->ids = f->config->routing.gates == GR_GATES_LEARNED ? GR_TAKE(a, (size_t)limits->N * f->K, uint16_t) : NULL;
    s->load = GR_TAKE(a, f->E, uint32_t);
    gr_plan_layout(a, limits, f->map, &s->plan, &s->builder);
}

static void layout(gr_feed *f, gr_arena *a) {
    gr_plan_limits limits = gr_feed_plan_limits(f);
    bool tables = f->routing == GR_SOURCE_TABLE, online = f->routing == GR_SOURCE_ONLINE;
    size_t group = (size_t)limits.N * limits.n_rank * f->K;
    f->window_token = GR_TAKE(a, f->T + 1, uint32_t);
    f->ids = tables ? GR_TAKE(a, group, uint16_t) : NULL;
    f->gates = tables || online ? GR_TAKE(a, group, float) : NULL;
    for (int i = 0; i < 2; i++)
        layout_slot(f, a, &limits, &f->slot[i]);
    for (int i = 0; i < 2 && online; i++) {
        f->records[i].own = GR_TAKE(a, f->B, feed_place);
        f->records[i].ids = GR_TAKE(a, group, uint16_t);
        f->records[i].gates = GR_TAKE(a, group, uint16_t);
    }
}

static gr_err measure(gr_feed *f, size_t *n_byte) {
    gr_arena a = {0};
    layout(f, &a);
    *n_byte = a.peak;
    if (a.overflow)
        return gr_fail(GR_RESOURCE, "plans: expected a size that fits the address space; use a smaller micro-batch");
    return GR_OK;
}

static void set_shape(gr_feed *f, const gr_config *config, const gr_expert_map *map) {
    f->config = config;
    f->map = map;
    f->routing = config->routing.source;
    f->B = (uint32_t)config->train.micro_batch_windows;
    f->T = (uint32_t)config->data.seq_len;
    f->K = (uint32_t)config->model.num_experts_per_tok;
    f->E = (uint32_t)config->model.num_experts;
}

gr_err gr_feed_measure(
    const gr_config *config, const gr_expert_map *map, const gr_plan_limits *limits, size_t *n_byte) {
    gr_feed f = {.limits = *limits};
    set_shape(&f, config, map);
    return measure(&f, n_byte);
}

static gr_err allocate(gr_feed *f) {
    size_t n_byte;
    GR_TRY(measure(f, &n_byte));
    GR_TRY(gr_alloc(&f->memory, n_byte + GR_ALIGN, 1, "plans"));
    uintptr_t base = ((uintptr_t)f->memory + GR_ALIGN - 1) & ~(uintptr_t)(GR_ALIGN - 1);
    gr_arena a = {.base = (uint8_t *)base, .size = n_byte};
    layout(f, &a);
    return f->owns_online ? gr_online_prepare(f->online) : GR_OK;
}

gr_err gr_feed_allocate(gr_feed *f) {
    return gr_comm_agree(f->comm, allocate(f));
}

static gr_err survey(gr_feed *f, const gr_feed *like, gr_feed_start start) {
    GR_TRY(gr_comm_agree(f->comm, open_sources(f, like)));
    GR_TRY(open_touch_counts(f));
    find_limits(f, start);
    f->end = start.cursor +
             (uint64_t)(f->config->train.steps - start.step) * (uint64_t)f->config->train.global_batch_windows;
    return GR_OK;
}

gr_err gr_feed_survey(gr_feed **out, gr_feed_kind kind, const gr_config *config, gr_comm *comm,
    const gr_expert_map *map, const gr_feed *like, gr_feed_start start) {
    *out = NULL;
    gr_feed *f;
    GR_TRY(gr_alloc((void **)&f, 1, sizeof *f, "feed"));
    f->kind = kind;
    f->comm = comm;
    set_shape(f, config, map);
    gr_err e = survey(f, like, start);
    if (e) {
        gr_feed_close(f);
        return e;
    }
    *out = f;
    return GR_OK;
}

gr_err gr_feed_open(gr_feed **out, gr_feed_kind kind, const gr_config *config, gr_comm *comm, const gr_expert_map *map,
    const gr_feed *like) {
    GR_TRY(gr_feed_survey(out, kind, config, comm, map, like, (gr_feed_start){0}));
    gr_err e = gr_feed_allocate(*out);
    if (e) {
        gr_feed_close(*out);
        *out = NULL;
    }
    return e;
}

void gr_feed_close(gr_feed *f) {
    if (!f)
        return;
    for (int i = 0; f->source && i < f->n_source; i++) {
        gr_touch_close(&f->source[i].touch);
        gr_routes_close(f->source[i].routes);
        gr_tokens_close(f->source[i].tokens);
    }
    if (f->owns_online)
        gr_online_close(f->online);
    free(f->memory);
    free(f->window_load);
    free(f->stream_file);
    free(f->source);
    free(f);
}

const gr_plan_limits *gr_feed_limits(const gr_feed *f) {
    return &f->limits;
}

gr_links gr_feed_links(const gr_feed *f) {
    return f->links;
}

const gr_routes_info *gr_feed_routes(const gr_feed *f) {
    if (f->routing == GR_SOURCE_ONLINE)
        return gr_online_info(f->online);
    return f->routing == GR_SOURCE_TABLE ? gr_routes_get(f->source[0].routes) : NULL;
}

const char *gr_feed_content(const gr_feed *f, int i, char text[GR_FEED_CONTENT_MAX]) {
    const feed_source *s = &f->source[i];
    const gr_routes_info *routes = f->routing == GR_SOURCE_TABLE ? gr_routes_get(s->routes) : gr_feed_routes(f);
    char router[33];
    int n = 0;
    if (f->routing == GR_SOURCE_TABLE)
        n = snprintf(text, GR_FEED_CONTENT_MAX, "table %016llx", (unsigned long long)routes->table_hash);
    else
        n = snprintf(text, GR_FEED_CONTENT_MAX, "%llu tokens, ends %016llx",
            (unsigned long long)gr_tokens_count(s->tokens), (unsigned long long)s->ends_hash);
    if (routes)
        snprintf(text + n, GR_FEED_CONTENT_MAX - (size_t)n, "%s of router %s",
            f->routing == GR_SOURCE_ONLINE ? ", routes" : "", gr_hash128_text(routes->router, router));
    return text;
}

gr_mask gr_feed_mask(const gr_feed *f) {
    const gr_routes_info *routes = gr_feed_routes(f);
    return routes ? routes->mask : GR_MASK_NONE;
}

uint64_t gr_feed_windows(const gr_feed *f) {
    return f->n_window;
}

uint64_t gr_feed_micro_batches(const gr_feed *f) {
    uint64_t per_micro = (uint64_t)f->comm->size[GR_WORLD] * f->B;
    if (f->kind == GR_FEED_TRAIN)
        return (uint64_t)f->config->train.global_batch_windows / per_micro;
    return (f->n_window + per_micro - 1) / per_micro;
}
