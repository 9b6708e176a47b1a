/* What distill and tune share. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "student.h"

gr_grouter_spec gr_student_spec(const gr_config *c) {
    return (gr_grouter_spec){
        .network = c->model, .K = (uint32_t)c->model.num_experts_per_tok, .scale = (float)c->routing.scale};
}

float *gr_student_bias(gr_trainer *t) {
    return gr_model_weights(t->model) + gr_params_find(gr_model_params(t->model), "score.bias")->offset;
}

gr_err gr_student_bias_fetch(gr_trainer *t, const float **bias) {
    const void *host;
    GR_TRY(
        gr_staging_fetch(&t->staging, gr_student_bias(t), (size_t)t->config->model.num_labels * sizeof **bias, &host));
    *bias = host;
    return GR_OK;
}

/* ---------------------------------------------------------------- validation */

/* Host copies of scores while an evaluation goes on. */
typedef struct score_rooms {
    gr_staging teacher, student;
} score_rooms;

/* What is compared, but for the scores. A bias that is tuned is one that routes are chosen with, before and after. */
static gr_err pair_of(gr_trainer *t, const int32_t *counted, gr_fidelity_pair *out) {
    bool biased = t->config->kind == GR_CONFIG_TUNE && t->config->tune.mode == GR_TUNE_BIAS;
    gr_fidelity_pair p = {.E = (uint32_t)t->config->model.num_labels,
        .K = (uint32_t)t->config->model.num_experts_per_tok,
        .n = (int64_t)t->config->train.micro_batch_windows * t->config->data.seq_len,
        .counted = counted};
    if (biased) {
        p.teacher_bias = t->untuned.weights + gr_params_find(&t->untuned.params, "score.bias")->offset;
        GR_TRY(gr_student_bias_fetch(t, &p.student_bias));
    }
    *out = p;
    return GR_OK;
}

static gr_err scores_fetch(gr_staging *s, const gr_fidelity_pair *p, const float *memory, const float **scores) {
    const void *host;
    GR_TRY(gr_staging_fetch(s, memory, (size_t)p->n * p->E * sizeof *memory, &host));
    *scores = host;
    return GR_OK;
}

/* Choices of the counted tokens. */
static void count_choices(const gr_fidelity_pair *p, uint64_t *load) {
    const gr_selection s = {.E = p->E, .K = p->K, .scale = 1, .threshold = 1, .bias = p->student_bias};
    for (int64_t i = 0; i < p->n; i++) {
        uint16_t ids[GR_TOPK_MAX];
        float gates[GR_TOPK_MAX];
        if (p->counted[i] < 0)
            continue;
        gr_select(&s, 1, p->student + i * p->E, ids, gates);
        for (uint32_t k = 0; k < p->K; k++)
            load[ids[k]]++;
    }
}

static gr_err evaluate_micro(gr_trainer *t, score_rooms *rooms, const gr_micro *micro, uint64_t *load) {
    const float *logits;
    float *scores;
    gr_phases phases = {0};
    gr_fidelity_pair pair;
    GR_TRY(pair_of(t, micro->batch.target, &pair));
    GR_TRY(gr_teacher_logits(t->teacher, &micro->batch, &logits, &phases));
    GR_TRY(gr_model_scores(t->model, &micro->batch, &scores, NULL, &phases));
    GR_TRY(scores_fetch(&rooms->teacher, &pair, logits, &pair.teacher));
    GR_TRY(scores_fetch(&rooms->student, &pair, scores, &pair.student));
    gr_fidelity_add(&t->fidelity, &pair);
    count_choices(&pair, load);
    return GR_OK;
}

static gr_err evaluate_all(gr_trainer *t, score_rooms *rooms, uint64_t *load) {
    uint64_t n_micro = gr_feed_micro_batches(t->valid);
    t->fidelity = (gr_fidelity){0};
    for (uint64_t i = 0; i < n_micro; i++) {
        gr_micro micro;
        GR_TRY(gr_feed_prepare(t->valid, 0, i, &micro));
        GR_TRY(evaluate_micro(t, rooms, &micro, load));
    }
    GR_TRY(t->comm->sum(t->comm, GR_WORLD, GR_F64, &t->fidelity, GR_FIDELITY_SUMS));
    return t->comm->sum(t->comm, GR_WORLD, GR_U64, load, (size_t)t->config->model.num_labels);
}

gr_err gr_student_evaluate(gr_trainer *t) {
    uint64_t *load;
    score_rooms rooms = {.teacher = {.backend = t->backend}, .student = {.backend = t->backend}};
    uint32_t E = (uint32_t)t->config->model.num_labels;
    GR_TRY(gr_alloc((void **)&load, E, sizeof *load, "expert loads"));
    gr_err e = evaluate_all(t, &rooms, load);
    gr_staging_close(&rooms.teacher);
    gr_staging_close(&rooms.student);
    t->record.max_vio_valid = gr_load_violation(load, E);
    free(load);
    GR_TRY(e);
    t->last = (gr_eval_loss){.nats_per_token = t->fidelity.divergence / t->fidelity.n_token,
        .perplexity = NAN,
        .nats_per_byte = NAN,
        .n_token = (uint64_t)t->fidelity.n_token,
        .n_window = gr_feed_windows(t->valid)};
    return GR_OK;
}

/* ---------------------------------------------------------------- the result */

static gr_err save_alone(gr_trainer *t, const char *made, gr_train_result *result) {
    char path[GR_PATH_MAX + 32];
    const gr_params *p = gr_model_params(t->model);
    const void *weights;
    gr_grouter_spec spec = gr_student_spec(t->config);
    snprintf(spec.made, sizeof spec.made, "%s", made);
    GR_TRY(gr_staging_fetch(&t->staging, gr_model_weights(t->model), (size_t)p->n_element * sizeof(float), &weights));
    return gr_grouter_write(
        &spec, p, weights, gr_run_path(t->config, "grouter.safetensors", path), &result->parameter_hash);
}

gr_err gr_student_save(gr_trainer *t, const char *made, gr_train_result *result) {
    return gr_comm_agree(t->comm, t->comm->rank[GR_WORLD] == 0 ? save_alone(t, made, result) : GR_OK);
}
