/* The objective of tune: a Grouter that loads its experts evenly, as near to what it was as that allows. */
#include <math.h>
#include <stdlib.h>

#include "grouter/balance.h"
#include "student.h"

static int64_t tokens_of(const gr_trainer *t) {
    return (int64_t)t->config->train.micro_batch_windows * t->config->data.seq_len;
}

static gr_teacher_options untuned_options(const gr_trainer *t) {
    return (gr_teacher_options){
        .grouter = &t->untuned, .backend = t->backend, .N = tokens_of(t), .T = t->config->data.seq_len};
}

static gr_err measure(const gr_trainer *t, size_t *n_byte) {
    const gr_model_config *m = &t->config->model;
    gr_grouter untuned;
    size_t network = 0;
    GR_TRY(gr_grouter_describe(&untuned, t->config->tune.grouter));
    gr_teacher_options o = untuned_options(t);
    o.grouter = &untuned;
    gr_err e = gr_teacher_measure(&o, &network);
    size_t weights = (size_t)untuned.params.n_element * sizeof *untuned.weights; /* kept beside the network's copy */
    gr_grouter_close(&untuned);
    *n_byte = network + weights +
              gr_balance_memory(
                  tokens_of(t), t->config->data.seq_len, (uint32_t)m->num_labels, (uint32_t)m->num_experts_per_tok);
    return e;
}

static gr_err open(gr_trainer *t) {
    const gr_model_config *m = &t->config->model;
    GR_TRY(gr_grouter_open(&t->untuned, t->config->tune.grouter));
    const gr_params *to = gr_model_params(t->model), *from = &t->untuned.params;
    for (int i = 0; i < to->n; i++)
        GR_TRY(t->backend->upload(t->backend, GR_LANE_COMPUTE, gr_model_weights(t->model) + to->list[i].offset,
            t->untuned.weights + from->list[i].offset, (size_t)gr_param_size(&to->list[i]) * sizeof(float)));
    gr_teacher_options o = untuned_options(t);
    GR_TRY(gr_teacher_open(&t->teacher, &o));
    gr_balance *balance;
    GR_TRY(gr_balance_open(&balance, t->backend, tokens_of(t), t->config->data.seq_len, (uint32_t)m->num_labels,
        (uint32_t)m->num_experts_per_tok));
    t->own = balance;
    return GR_OK;
}

static gr_err micro_batch(gr_trainer *t, const gr_micro *micro, double *loss_sum, gr_phases *phases) {
    bool biased = t->config->tune.mode == GR_TUNE_BIAS;
    float *scores;
    const float *dscores, *bias = NULL;
    GR_TRY(gr_model_scores(t->model, &micro->batch, &scores, NULL, phases));
    if (biased)
        GR_TRY(gr_student_bias_fetch(t, &bias));
    GR_TRY(gr_balance_forward(t->own, scores, bias, loss_sum, t->load));
    if (biased)
        return GR_OK;
    GR_TRY(gr_balance_backward(t->own, scores, 1.0 / t->tokens_per_step, &dscores));
    return gr_model_scores_backward(t->model, dscores, phases);
}

/* The sign rule, at the schedule's rate; loads are the global batch's by now. */
static gr_err after_update(gr_trainer *t) {
    const uint32_t E = (uint32_t)t->config->model.num_labels;
    const float *bias;
    void *room;
    if (t->config->tune.mode != GR_TUNE_BIAS || t->record.skipped)
        return GR_OK;
    GR_TRY(gr_student_bias_fetch(t, &bias));
    GR_TRY(gr_staging_room(&t->staging, gr_student_bias(t), E * sizeof *bias, &room)); /* with what was fetched */
    gr_balance_bias(E, t->load, t->record.lr, room);
    return gr_staging_store(&t->staging, gr_student_bias(t), E * sizeof *bias);
}

static gr_err evaluate(gr_trainer *t) {
    GR_TRY(gr_student_evaluate(t));
    double aim = t->config->tune.until_maxvio;
    t->done = aim > 0 && t->record.max_vio_valid <= aim;
    return GR_OK;
}

static gr_err save(gr_trainer *t, gr_train_result *result) {
    static const char *const modes[] = {"scores", "bias", "full"};
    char made[GR_PROVENANCE_MAX], hash[33];
    snprintf(made, sizeof made, "%s of Grouter %.32s tuned in %lld steps of %d windows", modes[t->config->tune.mode],
        gr_hash128_text(t->untuned.hash, hash), (long long)t->state.step, t->config->train.global_batch_windows);
    return gr_student_save(t, made, result);
}

static void close(gr_trainer *t) {
    gr_balance_close(t->own);
    gr_teacher_close(t->teacher);
    gr_grouter_close(&t->untuned);
}

const gr_objective gr_objective_tune = {.measure = measure,
    .open = open,
    .micro_batch = micro_batch,
    .after_update = after_update,
    .evaluate = evaluate,
    .save = save,
    .close = close};
