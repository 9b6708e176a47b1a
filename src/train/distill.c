/* The objective of distill: a Grouter whose scores are those of a trained source's router, token by token. */
#include <stdlib.h>

#include "student.h"

static gr_teacher_options teacher_options(const gr_trainer *t) {
    const gr_config *c = t->config;
    return (gr_teacher_options){.path = c->distill.teacher,
        .layer = c->distill.teacher_layer,
        .backend = t->backend,
        .N = (int64_t)c->train.micro_batch_windows * c->data.seq_len,
        .T = c->data.seq_len};
}

static gr_err measure(const gr_trainer *t, size_t *n_byte) {
    gr_teacher_options o = teacher_options(t);
    return gr_teacher_measure(&o, n_byte);
}

static gr_err open(gr_trainer *t) {
    gr_teacher_options o = teacher_options(t);
    GR_TRY(gr_teacher_open(&t->teacher, &o));
    return gr_objective_train.open(t); /* weights start as any model's do */
}

static gr_err micro_batch(gr_trainer *t, const gr_micro *micro, double *loss_sum, gr_phases *phases) {
    const gr_config *c = t->config;
    const float *teacher;
    float *scores;
    (void)loss_sum;
    GR_TRY(gr_teacher_logits(t->teacher, &micro->batch, &teacher, phases));
    GR_TRY(gr_model_scores(t->model, &micro->batch, &scores, NULL, phases));
    GR_TRY(t->backend->divergence(t->backend, GR_LANE_COMPUTE,
        &(gr_divergence){.n = (int64_t)c->train.micro_batch_windows * c->data.seq_len,
            .E = c->model.num_labels,
            .teacher = teacher,
            .student = scores,
            .temperature = (float)c->distill.temperature,
            .scale = (float)(1.0 / t->tokens_per_step),
            .loss_sum = gr_model_loss_sum(t->model),
            .dstudent = scores}));
    return gr_model_scores_backward(t->model, scores, phases);
}

static gr_err evaluate(gr_trainer *t) {
    return gr_student_evaluate(t);
}

static gr_err save(gr_trainer *t, gr_train_result *result) {
    const gr_config *c = t->config;
    char made[GR_PROVENANCE_MAX];
    snprintf(made, sizeof made, "distilled from layer %d of %.150s in %lld steps of %d windows",
        c->distill.teacher_layer, c->distill.teacher, (long long)t->state.step, c->train.global_batch_windows);
    return gr_student_save(t, made, result);
}

static void close(gr_trainer *t) {
    gr_teacher_close(t->teacher);
}

const gr_objective gr_objective_distill = {
    .measure = measure, .open = open, .micro_batch = micro_batch, .evaluate = evaluate, .save = save, .close = close};
