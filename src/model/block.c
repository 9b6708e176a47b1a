/* Feed-forward half of a block: out = mid + experts(norm(mid)) (+ shared expert), or mid + dense FFN(norm(mid)). */
#include "internal.h"

static bool is_moe(const gr_model *m, int l) {
    return m->layer[l].expert13 != NONE;
}

gr_norm gr_model_middle_norm(gr_model *m, int l) {
    ffn_saved *s = ffn_of(m, l);
    return (gr_norm){.n_row = m->N,
        .width = m->D,
        .ldx = m->D,
        .ldy = m->D,
        .eps = (float)m->config.rms_norm_eps,
        .x = attention_of(m, l)->mid,
        .w = norm_at(m, m->layer[l].norm2),
        .y = s->n2,
        .rstd = s->rstd2};
}

/* The dense layer's FFN or the shared expert: one expert that takes every own token with gate 1. */
static gr_ffn plain_ffn(gr_model *m, int l) {
    const layer_params *p = &m->layer[l];
    ffn_saved *s = ffn_of(m, l);
    gr_ffn f = {.n_expert = 1,
        .D = m->D,
        .F = p->ffn_width,
        .n_pair = m->N,
        .x = s->n2,
        .w13 = weight_at(m, p->ffn13),
        .w2 = weight_at(m, p->ffn2),
        .h = s->ffn_h,
        .a = m->ffn_a,
        .y = m->ffn_y};
    if (m->train) {
        f.dy = m->dres;
        f.da = m->ffn_da;
        f.dw13 = gradient_at(m, p->ffn13);
        f.dw2 = gradient_at(m, p->ffn2);
        f.dx = m->dn;
    }
    return f;
}

static gr_expert_weights expert_weights(const gr_model *m, int l) {
    const layer_params *p = &m->layer[l];
    return (gr_expert_weights){.w13 = weight_at(m, p->expert13),
        .w2 = weight_at(m, p->expert2),
        .dw13 = m->train ? gradient_at(m, p->expert13) : NULL,
        .dw2 = m->train ? gradient_at(m, p->expert2) : NULL};
}

/* out = a + b for arrays [N, D]: a sum of rows whose list is the identity. */
static gr_err add(gr_model *m, const void *a, const void *b, void *out) {
    return m->backend->sum_rows(m->backend, GR_LANE_COMPUTE,
        &(gr_sum){.n_row = m->N,
            .width = m->D,
            .base = a,
            .source = {b},
            .offset = {m->iota},
            .index = {m->iota},
            .out = out});
}

gr_err gr_model_ffn_forward(gr_model *m, int l) {
    gr_backend *b = m->backend;
    ffn_saved *s = ffn_of(m, l);
    void *out = stream_before(m, l + 1);
    gr_norm norm = gr_model_middle_norm(m, l);
    GR_TRY(b->norm_forward(b, GR_LANE_COMPUTE, &norm));
    const void *base = attention_of(m, l)->mid;
    if (m->layer[l].ffn_width) {
        gr_ffn f = plain_ffn(m, l);
        GR_TRY(b->ffn_forward(b, GR_LANE_COMPUTE, &f));
        GR_TRY(add(m, base, m->ffn_y, out));
        base = out;
    }
    if (!is_moe(m, l))
        return GR_OK;
    gr_expert_weights w = expert_weights(m, l);
    GR_TRY(gr_model_gate_forward(m, l));
    GR_TRY(gr_moe_dispatch(&m->moe, s->n2));
    GR_TRY(gr_moe_experts_forward(&m->moe, &w, s->n2, s->h));
    return gr_moe_combine(&m->moe, base, out);
}

gr_err gr_model_ffn_recompute(gr_model *m, int l) {
    gr_backend *b = m->backend;
    ffn_saved *s = ffn_of(m, l);
    gr_norm norm = gr_model_middle_norm(m, l);
    GR_TRY(b->norm_forward(b, GR_LANE_COMPUTE, &norm));
    if (m->layer[l].ffn_width) {
        gr_ffn f = plain_ffn(m, l);
        f.y = NULL;
        GR_TRY(b->ffn_forward(b, GR_LANE_COMPUTE, &f));
    }
    if (!is_moe(m, l))
        return GR_OK;
    gr_expert_weights w = expert_weights(m, l);
    gr_model_gate_select(m, l);
    GR_TRY(gr_moe_dispatch(&m->moe, s->n2));
    return gr_moe_experts_recompute(&m->moe, &w, s->n2, s->h);
}

/* dres is the gradient of the block's output on entry and of mid on return. */
gr_err gr_model_ffn_backward(gr_model *m, int l) {
    gr_backend *b = m->backend;
    ffn_saved *s = ffn_of(m, l);
    const void *base = NULL;
    if (m->layer[l].ffn_width) {
        gr_ffn f = plain_ffn(m, l);
        GR_TRY(b->ffn_backward(b, GR_LANE_COMPUTE, &f));
        base = m->dn;
    }
    if (is_moe(m, l)) {
        gr_expert_weights w = expert_weights(m, l);
        gr_model_gate_select(m, l);
        GR_TRY(gr_moe_dispatch(&m->moe, m->dres));
        GR_TRY(gr_moe_experts_backward(&m->moe, &w, s->n2, m->dres, s->h));
        GR_TRY(gr_moe_combine(&m->moe, base, m->dn));
        GR_TRY(gr_model_gate_backward(m, l));
    }
    gr_norm norm = gr_model_middle_norm(m, l);
    norm.dy = m->dn;
    norm.dx = m->dres;
    norm.dx_write = GR_ACCUMULATE;
    norm.dw = gradient_at(m, m->layer[l].norm2.offset);
    return b->norm_backward(b, GR_LANE_COMPUTE, &norm);
}
