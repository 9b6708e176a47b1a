/* Token embedding: the first op of forward and the last of backward. */
#include "internal.h"

static gr_embed embed_args(gr_model *m) {
    return (gr_embed){.n = m->N,
        .width = m->D,
        .n_vocab = m->config.vocab_size,
        .id = m->now.token,
        .table = weight_at(m, m->embed),
        .out = stream_before(m, 0)};
}

/* A body without attention has no queries and keys to turn: its embeddings turn as one head would. */
static gr_err rotate(gr_model *m, void *x, bool inverse) {
    if (!is_context_free(&m->config) || gr_model_rotated(m) == 0)
        return GR_OK;
    return m->backend->rope(m->backend, GR_LANE_COMPUTE,
        &(gr_rope){.n_row = m->N,
            .T = m->T,
            .n_head = 1,
            .head_dim = m->D,
            .ld = m->D,
            .cosine = m->cosine,
            .sine = m->sine,
            .x = x,
            .inverse = inverse});
}

gr_err gr_model_embed_forward(gr_model *m) {
    gr_embed a = embed_args(m);
    GR_TRY(m->backend->embed_forward(m->backend, GR_LANE_COMPUTE, &a));
    return rotate(m, a.out, false);
}

gr_err gr_model_embed_backward(gr_model *m) {
    gr_embed a = embed_args(m);
    a.dout = m->dres;
    a.dtable = gradient_at(m, m->embed);
    GR_TRY(rotate(m, m->dres, true));
    GR_TRY(m->backend->embed_backward(m->backend, GR_LANE_COMPUTE, &a));
    int64_t zero = gr_params_find(&m->params, "model.embed_tokens.weight")->zero_row;
    if (zero < 0)
        return GR_OK;
    return m->backend->fill_zero(m->backend, GR_LANE_COMPUTE, a.dtable + zero * m->D, (size_t)m->D * sizeof *a.dtable);
}
