/* The heads that give scores. A Grouter's: scores = features W^T with one row of W per expert; features are the body's
 * output after its final norm, or as it is where the body has none. A cut source's last layer makes its router's logits
 * by itself. */
#include "internal.h"

static double since_ms(double start_s) {
    return 1e3 * (gr_time_s() - start_s);
}

static void *features_of(gr_model *m) {
    if (m->config.head == GR_HEAD_ROUTER)
        return ffn_of(m, m->config.num_hidden_layers - 1)->n2;
    return m->final_norm.offset == NONE ? stream_before(m, m->config.num_hidden_layers) : m->final;
}

static gr_err make_scores(gr_model *m) {
    gr_backend *b = m->backend;
    if (m->final_norm.offset != NONE) {
        gr_norm norm = gr_model_final_norm(m);
        GR_TRY(b->norm_forward(b, GR_LANE_COMPUTE, &norm));
    }
    return b->gemm(b, GR_LANE_COMPUTE,
        &(gr_gemm){.layout = GR_NT,
            .m = m->N,
            .n = m->config.num_labels,
            .k = m->D,
            .a = features_of(m),
            .lda = m->D,
            .b = weight_at(m, m->head),
            .ldb = m->D,
            .c = m->scores,
            .ldc = m->config.num_labels,
            .c_dtype = GR_F32});
}

gr_err gr_model_scores(gr_model *m, const gr_batch *batch, float **scores, const float **features, gr_phases *phases) {
    gr_backend *b = m->backend;
    GR_ASSERT(m->config.head != GR_HEAD_TOKENS && b->dtype == GR_F32, "a model without scores, or stored as %s",
        gr_dtype_name(b->dtype));
    double start_s = gr_time_s();
    GR_TRY(gr_model_layers_forward(m, batch, 0));
    if (m->config.head == GR_HEAD_SCORES)
        GR_TRY(make_scores(m));
    *scores = m->scores;
    if (features)
        *features = features_of(m);
    phases->exchange_ms += m->moe.exchange_ms;
    phases->forward_ms += since_ms(start_s) - m->moe.exchange_ms;
    return GR_OK;
}

/* From d(features) in dn to the gradient of the body's output in dres. */
static gr_err features_backward(gr_model *m) {
    gr_backend *b = m->backend;
    if (m->final_norm.offset == NONE)
        return b->copy(b, GR_LANE_COMPUTE, m->dres, m->dn, (size_t)(m->N * m->D) * b->elem_size);
    gr_norm norm = gr_model_final_norm(m);
    norm.dy = m->dn;
    norm.dx = m->dres;
    norm.dx_write = GR_OVERWRITE;
    norm.dw = gradient_at(m, m->final_norm.offset);
    return b->norm_backward(b, GR_LANE_COMPUTE, &norm);
}

static gr_err body_backward(gr_model *m, const float *dscores) {
    gr_backend *b = m->backend;
    GR_TRY(b->gemm(b, GR_LANE_COMPUTE,
        &(gr_gemm){.layout = GR_NN,
            .m = m->N,
            .n = m->D,
            .k = m->config.num_labels,
            .a = dscores,
            .lda = m->config.num_labels,
            .b = weight_at(m, m->head),
            .ldb = m->D,
            .c = m->dn,
            .ldc = m->D,
            .c_dtype = b->dtype}));
    GR_TRY(features_backward(m));
    return gr_model_layers_backward(m);
}

gr_err gr_model_scores_backward(gr_model *m, const float *dscores, gr_phases *phases) {
    gr_backend *b = m->backend;
    GR_ASSERT(m->train, "model opened without training");
    double start_s = gr_time_s();
    GR_TRY(b->gemm(b, GR_LANE_COMPUTE,
        &(gr_gemm){.layout = GR_TN,
            .write = GR_ACCUMULATE,
            .m = m->config.num_labels,
            .n = m->D,
            .k = m->N,
            .a = dscores,
            .lda = m->config.num_labels,
            .b = features_of(m),
            .ldb = m->D,
            .c = gradient_at(m, m->head),
            .ldc = m->D,
            .c_dtype = GR_F32}));
    if (trains_body(m))
        GR_TRY(body_backward(m, dscores));
    phases->backward_ms += since_ms(start_s);
    return GR_OK;
}
