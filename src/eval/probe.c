/* probe.c: one window, given routes, the loss of each of its tokens. */
#include "probe.h"

#include <stdlib.h>

struct gr_probe {
    gr_comm *alone;
    gr_expert_map map;
    gr_plan_limits limits;
    gr_model *model;
    uint32_t T;
    void *memory; /* of the plan and the two arrays */
    gr_plan plan;
    gr_plan_builder *builder;
    float *pair_gate; /* [pair_max] */
    int32_t *target;  /* [T] */
};

static void layout(gr_probe *p, gr_arena *a) {
    gr_plan_layout(a, &p->limits, &p->map, &p->plan, &p->builder);
    p->pair_gate = GR_TAKE(a, p->limits.pair_max, float);
    p->target = GR_TAKE(a, p->T, int32_t);
}

static gr_err place(gr_probe *p) {
    gr_arena measured = {0};
    layout(p, &measured);
    if (measured.overflow)
        return gr_fail(GR_RESOURCE, "plan of a window: expected a size that fits the address space");
    GR_TRY(gr_alloc(&p->memory, measured.peak + GR_ALIGN, 1, "plan of a window"));
    uintptr_t base = ((uintptr_t)p->memory + GR_ALIGN - 1) & ~(uintptr_t)(GR_ALIGN - 1);
    gr_arena placed = {.base = (uint8_t *)base, .size = measured.peak};
    layout(p, &placed);
    return GR_OK;
}

static gr_err open_probe(gr_probe *p, const gr_config *config, gr_backend *backend, const char *weights) {
    p->T = (uint32_t)config->data.seq_len;
    GR_TRY(gr_comm_open(&p->alone, "self"));
    GR_TRY(gr_expert_map_open(&p->map, (uint32_t)config->model.num_experts, 1));
    p->limits = gr_plan_limits_worst(p->T, (uint32_t)config->model.num_experts_per_tok, &p->map);
    GR_TRY(place(p));
    GR_TRY(gr_model_open(&p->model, &(gr_model_options){.config = &config->model,
                                        .backend = backend,
                                        .comm = p->alone,
                                        .map = &p->map,
                                        .limits = &p->limits,
                                        .T = p->T}));
    GR_TRY(gr_params_load(gr_model_params(p->model), weights, gr_model_masters(p->model)));
    return gr_model_weights_changed(p->model);
}

gr_err gr_probe_open(gr_probe **out, const gr_config *config, gr_backend *backend, const char *weights) {
    *out = NULL;
    gr_probe *p;
    GR_TRY(gr_alloc((void **)&p, 1, sizeof *p, "target"));
    gr_err e = open_probe(p, config, backend, weights);
    if (e) {
        gr_probe_close(p);
        return e;
    }
    *out = p;
    return GR_OK;
}

void gr_probe_close(gr_probe *p) {
    if (!p)
        return;
    gr_model_close(p->model);
    free(p->memory);
    gr_expert_map_close(&p->map);
    gr_comm_close(p->alone, GR_OK);
    free(p);
}

gr_err gr_probe_losses(gr_probe *p, const uint32_t *tokens, const uint16_t *ids, const float *gates, double *loss) {
    double sum = 0;
    gr_phases phases = {0};
    for (uint32_t t = 0; t < p->T; t++)
        p->target[t] = (int32_t)tokens[t + 1];
    GR_TRY(gr_plan_build(&p->plan, p->builder, &p->limits, &p->map, 0, ids, gates));
    gr_plan_gates(&p->plan, gates, p->pair_gate);
    const gr_batch batch = {
        .token = tokens, .target = p->target, .plan = &p->plan, .pair_gate = p->pair_gate, .ids = ids};
    return gr_model_token_losses(p->model, &batch, &sum, loss, &phases);
}
