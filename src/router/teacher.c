/* teacher.c: a source cut off at a router, or a Grouter, as the giver of logits. */
#include "grouter/teacher.h"
#include "grouter/hf.h"

#include <stdlib.h>

struct gr_teacher {
    gr_model_config config;
    gr_comm *alone;
    gr_expert_map map; /* of the source; a Grouter brings its own */
    gr_plan_limits limits;
    gr_model *model;
};

/* ---------------------------------------------------------------- the source */

static gr_err cut_off(const char *path, int layer, gr_model_config *c) {
    if (c->first_k_dense_replace >= c->num_hidden_layers)
        return gr_fail(GR_CHECKPOINT,
            "%s: expected a source with layers of experts, got %d dense layers; give a Mixture-of-Experts model", path,
            c->num_hidden_layers);
    if (layer < c->first_k_dense_replace || layer >= c->num_hidden_layers)
        return gr_fail(GR_CHECKPOINT,
            "%s: expected distill.teacher_layer among its layers with experts, %d to %d, got %d", path,
            c->first_k_dense_replace, c->num_hidden_layers - 1, layer);
    bool alone = layer == c->first_k_dense_replace; /* no layer before it chooses experts */
    if (c->routing.gates != GR_GATES_LEARNED || (c->routing.source != GR_SOURCE_LEARNED && !alone))
        return gr_fail(GR_CHECKPOINT,
            "%s: expected a source with learned routers in all layers up to %d, got one trained with %s; train it "
            "with routing.source \"learned\"",
            path, layer, c->routing.gates == GR_GATES_LEARNED ? "experts of a route table" : "a route table");
    c->head = GR_HEAD_ROUTER;
    c->num_hidden_layers = layer + 1;
    return GR_OK;
}

static gr_err describe(gr_hf **hf, const char *path, int layer, gr_model_config *out) {
    GR_TRY(gr_hf_open(hf, path));
    *out = gr_hf_get(*hf)->model;
    return cut_off(path, layer, out);
}

gr_err gr_teacher_describe(const char *path, int layer, gr_model_config *out) {
    gr_hf *hf = NULL;
    gr_err e = describe(&hf, path, layer, out);
    gr_hf_close(hf);
    return e;
}

static gr_err identify(gr_hf **hf, gr_expert_map *map, const char *path, int layer, char text[33]) {
    gr_model_config c;
    gr_params params;
    GR_TRY(describe(hf, path, layer, &c));
    GR_TRY(gr_expert_map_open(map, (uint32_t)c.num_experts, 1));
    GR_TRY(gr_params_open(&params, &c, map, 0, 1, 1));
    gr_err e = gr_hf_identity(*hf, &params, text);
    gr_params_close(&params);
    return e;
}

gr_err gr_teacher_identity(const char *path, int layer, char text[33]) {
    gr_hf *hf = NULL;
    gr_expert_map map = {0};
    gr_err e = identify(&hf, &map, path, layer, text);
    gr_expert_map_close(&map);
    gr_hf_close(hf);
    return e;
}

/* ---------------------------------------------------------------- its network */

static gr_model_options model_options(const gr_teacher *t, const gr_teacher_options *o) {
    return (gr_model_options){.config = &t->config,
        .backend = o->backend,
        .comm = t->alone,
        .map = o->grouter ? &o->grouter->map : &t->map,
        .limits = &t->limits,
        .T = o->T};
}

/* Everything but memory and weights. hf is opened for a source. */
static gr_err shape(gr_teacher *t, const gr_teacher_options *o, gr_hf **hf) {
    if (o->grouter)
        t->config = o->grouter->spec.network;
    else
        GR_TRY(describe(hf, o->path, o->layer, &t->config));
    GR_TRY(gr_comm_open(&t->alone, "self"));
    t->limits = (gr_plan_limits){.N = (uint32_t)o->N, .n_rank = 1, .E_local = 1};
    if (o->grouter)
        return GR_OK;
    GR_TRY(gr_expert_map_open(&t->map, (uint32_t)t->config.num_experts, 1));
    t->limits = gr_plan_limits_worst((uint32_t)o->N, (uint32_t)t->config.num_experts_per_tok, &t->map);
    if (t->config.num_hidden_layers == t->config.first_k_dense_replace + 1) /* its experts are never asked */
        t->limits.pair_max = 0;
    return GR_OK;
}

static gr_err load(gr_teacher *t, const gr_teacher_options *o, gr_hf *hf) {
    const gr_params *p = gr_model_params(t->model);
    if (o->grouter)
        GR_TRY(o->backend->upload(o->backend, GR_LANE_COMPUTE, gr_model_weights(t->model), o->grouter->weights,
            (size_t)p->n_element * sizeof(float)));
    else
        GR_TRY(gr_hf_load(hf, p, gr_model_masters(t->model)));
    return gr_model_weights_changed(t->model);
}

static gr_err open_teacher(gr_teacher *t, const gr_teacher_options *o) {
    gr_hf *hf = NULL;
    gr_err e = shape(t, o, &hf);
    if (!e) {
        gr_model_options m = model_options(t, o);
        e = gr_model_open(&t->model, &m);
    }
    if (!e)
        e = load(t, o, hf);
    gr_hf_close(hf);
    return e;
}

gr_err gr_teacher_open(gr_teacher **out, const gr_teacher_options *o) {
    *out = NULL;
    gr_teacher *t;
    GR_TRY(gr_alloc((void **)&t, 1, sizeof *t, "teacher"));
    gr_err e = open_teacher(t, o);
    if (e) {
        gr_teacher_close(t);
        return e;
    }
    *out = t;
    return GR_OK;
}

void gr_teacher_close(gr_teacher *t) {
    if (!t)
        return;
    gr_model_close(t->model);
    gr_expert_map_close(&t->map);
    gr_comm_close(t->alone, GR_OK);
    free(t);
}

gr_err gr_teacher_measure(const gr_teacher_options *o, size_t *n_byte) {
    gr_teacher *t;
    gr_hf *hf = NULL;
    GR_TRY(gr_alloc((void **)&t, 1, sizeof *t, "teacher"));
    gr_err e = shape(t, o, &hf);
    if (!e) {
        gr_model_options m = model_options(t, o);
        e = gr_model_measure(&t->model, &m);
    }
    if (!e) {
        gr_model_memory m = gr_model_memory_get(t->model);
        *n_byte = m.weights + m.activations + m.logits + m.scratch + m.tables + m.plans + m.attention;
    }
    gr_hf_close(hf);
    gr_teacher_close(t);
    return e;
}

gr_err gr_teacher_logits(gr_teacher *t, const gr_batch *b, const float **logits, gr_phases *phases) {
    float *scores;
    GR_TRY(gr_model_scores(t->model, &(gr_batch){.token = b->token}, &scores, NULL, phases));
    *logits = scores;
    return GR_OK;
}
