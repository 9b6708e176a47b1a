/* network.c: a Grouter's network evaluated one window at a time. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

struct gr_network {
    gr_comm *alone;
    gr_model *model;
    gr_plan_limits limits;
    gr_staging scores, features; /* for host code */
    size_t n_score, n_feature;   /* bytes of a window's */
};

/* One window a call. */
static gr_err model_options(gr_network *n, gr_model_options *o, const gr_model_config *config, const gr_expert_map *map,
    gr_backend *backend, uint32_t T) {
    GR_TRY(gr_comm_open(&n->alone, "self"));
    n->limits = (gr_plan_limits){.N = T, .n_rank = 1, .E_local = map->E_local};
    *o = (gr_model_options){
        .config = config, .backend = backend, .comm = n->alone, .map = map, .limits = &n->limits, .T = T};
    return GR_OK;
}

static gr_err open_model(gr_network *n, const gr_grouter *g, gr_backend *backend, uint32_t T) {
    gr_model_options o;
    n->scores.backend = n->features.backend = backend;
    n->n_score = (size_t)T * (size_t)g->spec.network.num_labels * sizeof(float);
    n->n_feature = (size_t)T * (size_t)g->spec.network.hidden_size * sizeof(float);
    GR_TRY(model_options(n, &o, &g->spec.network, &g->map, backend, T));
    GR_TRY(gr_model_open(&n->model, &o));
    GR_TRY(backend->upload(backend, GR_LANE_COMPUTE, gr_model_weights(n->model), g->weights,
        (size_t)g->params.n_element * sizeof *g->weights));
    return gr_model_weights_changed(n->model);
}

gr_err gr_network_open(gr_network **out, const gr_grouter *g, gr_backend *backend, uint32_t T) {
    *out = NULL;
    gr_network *n;
    GR_TRY(gr_alloc((void **)&n, 1, sizeof *n, "Grouter network"));
    gr_err e = open_model(n, g, backend, T);
    if (e) {
        gr_network_close(n);
        return e;
    }
    *out = n;
    return GR_OK;
}

void gr_network_close(gr_network *n) {
    if (!n)
        return;
    gr_staging_close(&n->features);
    gr_staging_close(&n->scores);
    gr_model_close(n->model);
    gr_comm_close(n->alone, GR_OK);
    free(n);
}

gr_err gr_network_scores(gr_network *n, const uint32_t *tokens, const float **scores, const float **features) {
    float *found;
    const float *inputs;
    const void *host;
    gr_phases phases = {0};
    GR_TRY(gr_model_scores(n->model, &(gr_batch){.token = tokens}, &found, &inputs, &phases));
    GR_TRY(gr_staging_fetch(&n->scores, found, n->n_score, &host));
    *scores = host;
    if (!features)
        return GR_OK;
    GR_TRY(gr_staging_fetch(&n->features, inputs, n->n_feature, &host));
    *features = host;
    return GR_OK;
}

static gr_err measure(gr_network *n, const gr_grouter *g, gr_backend *backend, gr_router_cost *out) {
    gr_model_options o;
    uint32_t T = n->limits.N;
    GR_TRY(model_options(n, &o, &g->spec.network, &g->map, backend, T));
    GR_TRY(gr_model_measure(&n->model, &o));
    gr_model_memory m = gr_model_memory_get(n->model);
    gr_model_count_config(&g->spec.network, T, &out->count);
    out->flops_per_token = out->count.flops_per_token / 3;
    out->n_byte =
        2 * m.weights + m.weights_act + m.activations + m.logits + m.scratch + m.tables + m.plans + m.attention;
    return GR_OK;
}

gr_err gr_router_cost_get(gr_router_cost *out, const char *grouter, gr_backend *backend, uint32_t T) {
    gr_grouter g;
    gr_network n = {.limits = {.N = T}};
    *out = (gr_router_cost){0};
    GR_TRY(gr_grouter_describe(&g, grouter));
    gr_err e = measure(&n, &g, backend, out);
    gr_model_close(n.model);
    gr_comm_close(n.alone, GR_OK);
    gr_grouter_close(&g);
    return e;
}
