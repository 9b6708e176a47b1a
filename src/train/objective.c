/* Which objective a run has, and that of a language model. */
#include "internal.h"

static gr_err reduce_part(void *of, gr_share part) {
    gr_trainer *t = of;
    return gr_optimizer_reduce_part(t->optimizer, gr_model_gradients(t->model), part);
}

/* In the last micro-batch gradients go to their owners while backward goes on. */
static gr_err micro_batch(gr_trainer *t, const gr_micro *micro, double *loss_sum, gr_phases *phases) {
    (void)loss_sum;
    bool beside = t->is_last_micro && gr_trainer_exchanges_beside(t);
    gr_model_gradients_watch(t->model, beside ? reduce_part : NULL, t);
    return gr_model_step(t->model, &micro->batch, (float)(1.0 / t->tokens_per_step), NULL, phases);
}

static gr_err open(gr_trainer *t) {
    if (t->found.found)
        return GR_OK;
    return gr_params_init(gr_model_params(t->model), t->config->run.seed, gr_model_masters(t->model));
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

gr_trained gr_train_part(const gr_config *c) {
    if (c->kind == GR_CONFIG_TUNE && c->tune.mode == GR_TUNE_BIAS)
        return GR_TRAINED_BIAS;
    bool scores = (c->kind == GR_CONFIG_DISTILL && c->distill.scores_only) ||
                  (c->kind == GR_CONFIG_TUNE && c->tune.mode == GR_TUNE_SCORES);
    return scores ? GR_TRAINED_SCORES : GR_TRAINED_ALL;
}

gr_err gr_train_flops_get(const gr_config *c, gr_train_flops *out) {
    *out = (gr_train_flops){0};
    gr_model_count_config(&c->model, c->data.seq_len, &out->count);
    out->model = out->count.flops_per_token;
    if (gr_train_part(c) != GR_TRAINED_ALL)
        out->model /= 3; /* forward: a third of forward and backward */
    if (gr_train_part(c) == GR_TRAINED_SCORES)
        out->model += 2.0 * c->model.num_labels * c->model.hidden_size; /* the gradient of the matrix */
    if (c->kind != GR_CONFIG_DISTILL)
        return GR_OK;
    GR_TRY(gr_teacher_describe(c->distill.teacher, c->distill.teacher_layer, &out->teacher_config));
    gr_model_count_config(&out->teacher_config, c->data.seq_len, &out->teacher_count);
    out->teacher = out->teacher_count.flops_per_token / 3;
    return GR_OK;
}

const gr_objective *gr_objective_of(const gr_config *c) {
    static const gr_objective *const of[GR_N_CONFIG_KIND] = {
        &gr_objective_train, &gr_objective_distill, &gr_objective_tune};
    return of[c->kind];
}
