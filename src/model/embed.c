/* Token embedding: the first op of forward and the last of backward. */
#include "internal.h"

static gr_embed embed_args(gr_model *m, const uint32_t *token) {
    return (gr_embed){.n = m->N,
        .width = m->D,
        .n_vocab = m->config.vocab_size,
        .id = token,
        .table = weight_at(m, m->embed),
        .out = stream_before(m, 0)};
}

gr_err gr_model_embed_forward(gr_model *m, const uint32_t *token) {
    gr_embed a = embed_args(m, token);
    return m->backend->embed_forward(m->backend, GR_LANE_COMPUTE, &a);
}

gr_err gr_model_embed_backward(gr_model *m, const uint32_t *token) {
    gr_embed a = embed_args(m, token);
    a.dout = m->dres;
    a.dtable = gradient_at(m, m->embed);
    return m->backend->embed_backward(m->backend, GR_LANE_COMPUTE, &a);
}
