/* online.c: the frozen Grouter of a run: routes of windows as they come, and tables compared with it. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "feed.h"

struct gr_online {
    gr_backend *backend;
    gr_router *router;
    gr_routes_info info;
};

/* ---------------------------------------------------------------- opening */

static gr_err check_shape(const gr_router_info *r, const gr_config *c) {
    const char *path = c->online.grouter;
    if (r->method != GR_ROUTER_GROUTER)
        return gr_fail(GR_DATA,
            "routing.grouter: %s: expected a Grouter, got a router of method %s; use it through tables", path,
            gr_router_method_name(r->method));
    if (r->E != (uint32_t)c->model.num_experts || r->K != (uint32_t)c->model.num_experts_per_tok)
        return gr_fail(GR_DATA,
            "routing.grouter: %s: expected E = %d, K = %d as the config's model has, got E = %u, K = %u; fold it or "
            "change the config",
            path, c->model.num_experts, c->model.num_experts_per_tok, r->E, r->K);
    if (r->V < (uint32_t)c->model.vocab_size)
        return gr_fail(GR_DATA,
            "routing.grouter: %s: expected a vocabulary of at least model.vocab_size = %d, got %u; it is of another "
            "vocabulary",
            path, c->model.vocab_size, r->V);
    return GR_OK;
}

static gr_err use(gr_online *o, const gr_config *c) {
    if (c->online.threshold > 0)
        GR_TRY(gr_router_use_threshold(o->router, (float)c->online.threshold));
    return c->online.bias ? gr_router_use_bias(o->router) : GR_OK;
}

static gr_err open_router(gr_online *o, const gr_config *c) {
    GR_TRY(gr_router_open(&o->router, c->online.grouter));
    GR_TRY(check_shape(gr_router_get(o->router), c));
    if (use(o, c))
        return gr_fail(GR_CONFIG, "routing.threshold: %s", gr_error_text());
    gr_router_describe(o->router, &o->info);
    o->info.T = (uint32_t)c->data.seq_len;
    return gr_backend_open(&o->backend, gr_config_backend_name(c), GR_F32);
}

gr_err gr_online_open(gr_online **out, const gr_config *config) {
    *out = NULL;
    gr_online *o;
    GR_TRY(gr_alloc((void **)&o, 1, sizeof *o, "Grouter of the run"));
    gr_err e = open_router(o, config);
    if (e) {
        gr_online_close(o);
        return e;
    }
    *out = o;
    return GR_OK;
}

gr_err gr_online_prepare(gr_online *o) {
    return gr_router_prepare(o->router, o->backend, o->info.T);
}

void gr_online_close(gr_online *o) {
    if (!o)
        return;
    gr_router_close(o->router);
    gr_backend_close(o->backend);
    free(o);
}

const gr_routes_info *gr_online_info(const gr_online *o) {
    return &o->info;
}

/* ---------------------------------------------------------------- routing */

gr_err gr_online_route(gr_online *o, const char *path, uint64_t window, const uint32_t *tokens, uint16_t *ids,
    float *gates, uint32_t *counts) {
    char where[GR_PATH_MAX + 64];
    GR_TRY(gr_router_route(o->router, window, o->info.T, tokens, ids, gates));
    snprintf(where, sizeof where, "routes of %s: window %" PRIu64, path, window);
    return gr_routes_check_rows(&o->info, where, ids, gates, counts);
}

/* ---------------------------------------------------------------- tables against the Grouter */

enum { CHECKED_ROWS = 1000, CHECKED_WINDOWS = 4, DIFFERING_PER_THOUSAND = 1 };

typedef struct table_check {
    const gr_feed *feed;
    gr_online *online;
    uint32_t *token;       /* [T+1] */
    uint16_t *ids[2];      /* [T*K] of the table, of the Grouter */
    float *gates[2];       /* [T*K] */
    uint32_t *counts;      /* [E] */
    uint64_t n_row, n_off; /* compared, with other experts */
} table_check;

static bool same_experts(const table_check *c, size_t row) {
    const uint32_t K = c->feed->K;
    for (size_t i = row * K; i < (row + 1) * K; i++)
        if (c->ids[0][i] != c->ids[1][i] || (c->gates[0][i] > 0) != (c->gates[1][i] > 0))
            return false;
    return true;
}

/* So many rows of a window, evenly spread over it: a Grouter that sees context errs elsewhere late than early. */
static gr_err check_window(table_check *c, const feed_source *s, uint64_t window, uint32_t n_row) {
    const gr_feed *f = c->feed;
    GR_TRY(gr_window_read(s->tokens, window, f->T, (uint32_t)f->config->model.vocab_size, c->token));
    GR_TRY(gr_routes_read(s->routes, window, c->token, c->ids[0], c->gates[0]));
    GR_TRY(
        gr_online_route(c->online, gr_tokens_prefix(s->tokens), window, c->token, c->ids[1], c->gates[1], c->counts));
    for (uint32_t i = 0; i < n_row; i++)
        c->n_off += !same_experts(c, (size_t)((uint64_t)i * f->T / n_row));
    c->n_row += n_row;
    return GR_OK;
}

static gr_err check_table(table_check *c, const feed_source *s) {
    const gr_routes_info *table = gr_routes_get(s->routes), *ours = gr_online_info(c->online);
    const char *grouter = c->feed->config->online.grouter;
    char theirs[33], expected[33];
    if (memcmp(&table->router, &ours->router, sizeof ours->router) != 0)
        return gr_fail(GR_DATA,
            "%s: expected routes of router %s (routing.grouter %s, used as routing.threshold and routing.bias say), "
            "got "
            "router %s; route again with that Grouter, or leave routing.grouter out",
            gr_routes_path(s->routes), gr_hash128_text(ours->router, expected), grouter,
            gr_hash128_text(table->router, theirs));
    uint64_t n = ((uint64_t)CHECKED_ROWS + c->feed->T - 1) / c->feed->T;
    n = n < CHECKED_WINDOWS ? CHECKED_WINDOWS : n;
    n = n < table->n_window ? n : table->n_window;
    uint64_t each = (CHECKED_ROWS + n - 1) / n;
    c->n_row = c->n_off = 0;
    for (uint64_t i = 0; i < n; i++)
        GR_TRY(check_window(c, s, i * table->n_window / n, each < c->feed->T ? (uint32_t)each : c->feed->T));
    if (c->n_off * 1000 <= c->n_row * DIFFERING_PER_THOUSAND)
        return GR_OK;
    return gr_fail(GR_DATA,
        "%s: expected the experts that routing.grouter %s chooses, got others in %" PRIu64 " of %" PRIu64
        " rows compared; 0.1 %% may differ between machines, route again with that Grouter",
        gr_routes_path(s->routes), grouter, c->n_off, c->n_row);
}

static gr_err open_check(table_check *c) {
    const gr_feed *f = c->feed;
    size_t n_pair = (size_t)f->T * f->K;
    GR_TRY(gr_online_open(&c->online, f->config));
    GR_TRY(gr_online_prepare(c->online));
    GR_TRY(gr_alloc((void **)&c->token, (size_t)f->T + 1, sizeof *c->token, "window being compared"));
    GR_TRY(gr_alloc((void **)&c->counts, f->E, sizeof *c->counts, "window being compared"));
    for (int i = 0; i < 2; i++) {
        GR_TRY(gr_alloc((void **)&c->ids[i], n_pair, sizeof *c->ids[i], "window being compared"));
        GR_TRY(gr_alloc((void **)&c->gates[i], n_pair, sizeof *c->gates[i], "window being compared"));
    }
    return GR_OK;
}

gr_err gr_online_check_tables(const gr_feed *f) {
    table_check c = {.feed = f};
    int rank = f->comm->rank[GR_WORLD], n_rank = f->comm->size[GR_WORLD];
    if (rank >= f->n_source)
        return GR_OK;
    gr_err e = open_check(&c);
    for (int i = rank; i < f->n_source && !e; i += n_rank)
        e = check_table(&c, &f->source[i]);
    for (int i = 0; i < 2; i++) {
        free(c.gates[i]);
        free(c.ids[i]);
    }
    free(c.counts);
    free(c.token);
    gr_online_close(c.online);
    return e;
}
