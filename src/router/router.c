/* router.c: routers of every kind behind one interface. */
#include "internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *gr_router_method_name(gr_router_method method) {
    static const char *const names[GR_N_ROUTER_METHOD] = {"hash", "random", "grouter"};
    return names[method];
}

/* ---------------------------------------------------------------- opening */

/* Names the Grouter together with the way it is used. */
static gr_err set_hash(gr_router *r) {
    gr_hasher *h;
    float use[2] = {r->threshold < r->info.scale ? r->threshold : 0, r->bias ? 1 : 0};
    r->info.hash = r->grouter.hash;
    if (use[0] == 0 && use[1] == 0)
        return GR_OK;
    GR_TRY(gr_hasher_open(&h));
    gr_hasher_add(h, &r->grouter.hash, sizeof r->grouter.hash);
    gr_hasher_add(h, use, sizeof use);
    r->info.hash = gr_hasher_128(h);
    gr_hasher_close(h);
    return GR_OK;
}

static gr_err open_grouter(gr_router **out, const char *path) {
    gr_router *r;
    GR_TRY(gr_alloc((void **)&r, 1, sizeof *r, "router"));
    gr_err e = gr_grouter_open(&r->grouter, path);
    if (e) {
        gr_router_close(r);
        return e;
    }
    const gr_grouter_spec *s = &r->grouter.spec;
    r->info = (gr_router_info){.method = GR_ROUTER_GROUTER,
        .V = (uint32_t)s->network.vocab_size,
        .E = (uint32_t)s->network.num_labels,
        .K = s->K,
        .scale = s->scale,
        .mask = s->network.mask,
        .position = s->network.position,
        .hash = r->grouter.hash};
    r->threshold = s->scale;
    *out = r;
    return GR_OK;
}

gr_err gr_router_open(gr_router **out, const char *path) {
    gr_map map = {0};
    *out = NULL;
    if (gr_grouter_is(path))
        return open_grouter(out, path);
    GR_TRY(gr_map_open(&map, path, GR_DATA));
    gr_err err = gr_router_open_table(out, map, path);
    gr_map_close(&map);
    if (err) {
        gr_router_close(*out);
        *out = NULL;
    }
    return err;
}

void gr_router_close(gr_router *r) {
    if (!r)
        return;
    gr_network_close(r->network);
    gr_grouter_close(&r->grouter);
    free(r->table);
    free(r);
}

const gr_router_info *gr_router_get(const gr_router *r) {
    return &r->info;
}

const float *gr_router_scores(const gr_router *r) {
    return r->scores;
}

void gr_router_describe(const gr_router *r, gr_routes_info *info) {
    info->E = r->info.E;
    info->K = r->info.K;
    info->scale = r->info.scale;
    info->variable_k = r->info.variable_k;
    info->mask = r->info.mask;
    info->position = r->info.position;
    info->router = r->info.hash;
}

/* ---------------------------------------------------------------- ways to use a Grouter */

static gr_err check_is_grouter(const gr_router *r, const char *what) {
    if (r->info.method == GR_ROUTER_GROUTER)
        return GR_OK;
    return gr_fail(GR_USAGE, "%s: expected a Grouter to use it with, got a router of method %s; leave it out", what,
        gr_router_method_name(r->info.method));
}

gr_err gr_router_use_threshold(gr_router *r, float threshold) {
    GR_TRY(check_is_grouter(r, "dynamic activation"));
    if (!(threshold > 0 && threshold < r->info.scale))
        return gr_fail(GR_USAGE,
            "dynamic activation: expected a threshold above 0 and below the Grouter's scale of %g, got %g",
            (double)r->info.scale, (double)threshold);
    r->threshold = threshold;
    r->info.variable_k = true;
    return set_hash(r);
}

gr_err gr_router_use_bias(gr_router *r) {
    GR_TRY(check_is_grouter(r, "bias routing"));
    r->bias = true;
    return set_hash(r);
}

/* ---------------------------------------------------------------- routing */

gr_err gr_router_prepare(gr_router *r, gr_backend *backend, uint32_t T) {
    if (r->info.method != GR_ROUTER_GROUTER)
        return GR_OK;
    gr_network_close(r->network);
    return gr_network_open(&r->network, &r->grouter, backend, T);
}

/* Tokens that a Grouter scores with NaN or Inf have no routes. */
static gr_err check_scores(const gr_router *r, uint64_t first, uint32_t T) {
    const uint32_t E = r->info.E;
    for (size_t i = 0; i < (size_t)T * E; i++)
        if (!isfinite(r->scores[i]))
            return gr_fail(GR_NONFINITE,
                "token %" PRIu64 ": expected finite scores from the Grouter, got %g for expert %zu; its weights are "
                "not usable: make it again",
                first + i / E, (double)r->scores[i], i % E);
    return GR_OK;
}

static gr_err route_grouter(
    gr_router *r, uint64_t window, uint32_t T, const uint32_t *tokens, uint16_t *ids, float *gates) {
    GR_ASSERT(r->network, "a Grouter must be prepared before it routes");
    for (uint32_t t = 0; t < T; t++)
        if (tokens[t] >= r->info.V)
            return gr_fail(GR_DATA,
                "token %" PRIu64 ": expected an id below the Grouter's vocabulary of %" PRIu32 ", got %" PRIu32,
                window * T + t, r->info.V, tokens[t]);
    GR_TRY(gr_network_scores(r->network, tokens, &r->scores, NULL));
    GR_TRY(check_scores(r, window * T, T));
    const gr_selection s = {.E = r->info.E,
        .K = r->info.K,
        .scale = r->info.scale,
        .threshold = r->threshold,
        .bias = r->bias ? r->grouter.weights + gr_params_find(&r->grouter.params, "score.bias")->offset : NULL};
    gr_select(&s, T, r->scores, ids, gates);
    return GR_OK;
}

gr_err gr_router_route(gr_router *r, uint64_t window, uint32_t T, const uint32_t *tokens, uint16_t *ids, float *gates) {
    if (r->info.method == GR_ROUTER_GROUTER)
        return route_grouter(r, window, T, tokens, ids, gates);
    return gr_router_route_table(r, window, T, tokens, ids, gates);
}
