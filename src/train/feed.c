/* The feed: which windows come next, their tokens and checked routes, and the plan made from them. */
#include <stdlib.h>
#include <string.h>

#include "feed.h"

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

/* The counts of every training table are looked up in the placement, so it must be of these tables. */
static gr_err find_section(gr_feed *f, feed_source *s) {
    if (!f->placement)
        return GR_OK;
    const gr_routes_info *info = gr_routes_get(s->routes);
    s->placed = gr_placement_find(f->placement, info->table_hash);
    if (s->placed && s->placed->n_window == info->n_window)
        return GR_OK;
    return gr_fail(GR_DATA,
        "parallel.placement: %s: expected a placement of route table %s (hash %016llx), got one for other routes, %d "
        "tables of which the first is %s; make one with `grouter-train place` from all tables of data.train",
        f->config->parallel.placement, gr_routes_path(s->routes), (unsigned long long)info->table_hash,
        f->placement->n_table, f->placement->n_table ? f->placement->table[0].path : "absent");
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
    GR_TRY(check_router(f, s->routes, like ? like->source[0].routes : f->source[0].routes));
    return find_section(f, s);
}

static gr_err open_online(gr_feed *f, const gr_feed *like) {
    f->owns_online = !like;
    if (like)
        f->online = like->online;
    else
        GR_TRY(gr_online_open(&f->online, f->config));
    GR_TRY(check_slots(f, gr_online_info(f->online), f->config->online.grouter));
    const gr_hash128 *ours = &gr_online_info(f->online)->router;
    if (!f->placement || memcmp(&f->placement->router, ours, sizeof *ours) == 0)
        return GR_OK;
    char theirs[33], expected[33];
    return gr_fail(GR_DATA,
        "parallel.placement: %s: expected a placement of routes of router %s (routing.grouter %s, used as "
        "routing.threshold and routing.bias say), got one of router %s; place tables of this router",
        f->config->parallel.placement, gr_hash128_text(*ours, expected), f->config->online.grouter,
        gr_hash128_text(f->placement->router, theirs));
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
        if (!s->placed)
            GR_TRY(gr_touch_open(&s->touch, s->routes, s->tokens, n_vocab, f->map->n_rank, f->map->rank_of, save));
        s->touches = s->placed ? s->placed->touch.count : s->touch.count;
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

static gr_err survey(gr_feed *f, const gr_feed *like) {
    GR_TRY(gr_comm_agree(f->comm, open_sources(f, like)));
    GR_TRY(open_touch_counts(f));
    GR_TRY(gr_comm_agree(f->comm, gr_feed_order_open(f)));
    gr_feed_find_limits(f);
    f->end = f->start.cursor +
             (uint64_t)(f->config->train.steps - f->start.step) * (uint64_t)f->config->train.global_batch_windows;
    return GR_OK;
}

gr_err gr_feed_survey(gr_feed **out, const gr_feed_options *o) {
    *out = NULL;
    gr_feed *f;
    GR_TRY(gr_alloc((void **)&f, 1, sizeof *f, "feed"));
    f->kind = o->kind;
    f->comm = o->comm;
    f->placement = o->placement;
    f->start = o->start;
    set_shape(f, o->config, o->map);
    gr_err e = survey(f, o->like);
    if (e) {
        gr_feed_close(f);
        return e;
    }
    *out = f;
    return GR_OK;
}

gr_err gr_feed_open(gr_feed **out, gr_feed_kind kind, const gr_config *config, gr_comm *comm, const gr_expert_map *map,
    const gr_feed *like) {
    const gr_feed_options o = {.kind = kind, .config = config, .comm = comm, .map = map, .like = like};
    GR_TRY(gr_feed_survey(out, &o));
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
    gr_feed_order_close(f);
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

const char *gr_feed_placement(const gr_feed *f, char text[GR_FEED_CONTENT_MAX]) {
    uint64_t windows = 0;
    int n = snprintf(text, GR_FEED_CONTENT_MAX, "none");
    if (!f->placement)
        return text;
    n = snprintf(text, GR_FEED_CONTENT_MAX, "experts %016llx", (unsigned long long)gr_placement_hash(f->placement));
    for (int i = 0; f->group_stream && i < f->n_source; i++) {
        const gr_placed_table *t = f->source[i].placed;
        uint64_t both[2] = {windows, gr_hash64(t->rank, t->n_window * sizeof *t->rank)};
        windows = gr_hash64(both, sizeof both);
    }
    if (f->group_stream)
        snprintf(text + n, GR_FEED_CONTENT_MAX - (size_t)n, ", groups of windows %016llx", (unsigned long long)windows);
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
