/* Which objective a run has, and that of a language model. */
#include "internal.h"

static gr_err micro_batch(gr_trainer *t, const gr_micro *micro, double *loss_sum, gr_phases *phases) {
    return gr_model_step(t->model, &micro->batch, (float)(1.0 / t->tokens_per_step), loss_sum, phases);
}

static gr_err open(gr_trainer *t) {
    if (t->found.found)
        return GR_OK;
    gr_params_init(gr_model_params(t->model), t->config->run.seed, gr_model_masters(t->model));
    return GR_OK;
}

static gr_err evaluate(gr_trainer *t) {
    return gr_eval_loss_run(t->valid, t->model, t->comm, &t->last);
}

/* Collective; failures to write are agreed by all ranks. */
static gr_err save(gr_trainer *t, gr_train_result *result) {
    char path[GR_PATH_MAX + 32];
    return gr_params_save(gr_model_params(t->model), t->comm, gr_model_masters(t->model),
        gr_run_path(t->config, "model.safetensors", path),
        &(gr_metadata){.key = "grouter_config", .value = t->config_text}, &result->parameter_hash);
}

static void close(gr_trainer *t) {
    (void)t;
}

const gr_objective gr_objective_train = {
    .open = open, .micro_batch = micro_batch, .evaluate = evaluate, .save = save, .close = close};

const gr_objective *gr_objective_of(const gr_config *c) {
    static const gr_objective *const of[GR_N_CONFIG_KIND] = {
        &gr_objective_train, &gr_objective_distill, &gr_objective_tune};
    return of[c->kind];
}
