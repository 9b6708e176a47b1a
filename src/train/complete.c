/* What a config for distill or tune leaves to the files it names. */
#include "grouter/train.h"

static gr_err check_vocabulary(const gr_config *c, int vocab_size) {
    if (c->model.vocab_size == 0 || c->model.vocab_size == vocab_size)
        return GR_OK;
    return gr_fail(GR_CONFIG, "model.vocab_size: expected the teacher's %d, got %d; leave it out", vocab_size,
        c->model.vocab_size);
}

/* Plans of the teacher's layers number pairs in 32 bits. */
static gr_err check_pairs(const gr_config *c, int K) {
    int64_t pairs = (int64_t)c->train.micro_batch_windows * c->data.seq_len * K;
    if (pairs <= INT32_MAX)
        return GR_OK;
    return gr_fail(GR_CONFIG,
        "train.micro_batch_windows * data.seq_len * experts per token = %d * %d * %d: expected at most %d, got %lld; "
        "use smaller micro-batches",
        c->train.micro_batch_windows, c->data.seq_len, K, INT32_MAX, (long long)pairs);
}

static gr_err complete_distill(gr_config *c) {
    gr_model_config teacher;
    GR_TRY(gr_teacher_describe(c->distill.teacher, c->distill.teacher_layer, &teacher));
    GR_TRY(check_vocabulary(c, teacher.vocab_size));
    GR_TRY(check_pairs(c, teacher.num_experts_per_tok));
    int K = c->distill.experts_per_tok ? c->distill.experts_per_tok : teacher.num_experts_per_tok;
    c->model.vocab_size = teacher.vocab_size;
    c->model.num_labels = c->model.num_experts = teacher.num_experts;
    c->model.num_experts_per_tok = K;
    c->model.first_k_dense_replace = c->model.num_hidden_layers;
    c->routing.scale = c->distill.scale;
    gr_grouter_spec spec = {.network = c->model, .K = (uint32_t)K, .scale = (float)c->distill.scale};
    gr_err e = gr_grouter_check(&spec, "the Grouter of this config");
    return e == GR_DATA ? gr_fail(GR_CONFIG, "%s", gr_error_text()) : e;
}

static gr_err complete_tune(gr_config *c) {
    gr_grouter g;
    GR_TRY(gr_grouter_describe(&g, c->tune.grouter));
    c->model = g.spec.network;
    c->model.num_experts = c->model.num_labels;
    c->model.num_experts_per_tok = (int)g.spec.K;
    c->model.initializer_range = 0.02; /* never used: every weight comes from the file */
    c->routing.scale = (double)g.spec.scale;
    gr_grouter_close(&g);
    return GR_OK;
}

gr_err gr_train_complete(gr_config *c) {
    if (c->kind == GR_CONFIG_DISTILL)
        return complete_distill(c);
    return c->kind == GR_CONFIG_TUNE ? complete_tune(c) : GR_OK;
}
