/* Final norm, head and cross-entropy. Head and loss are one op: its forward and backward share each chunk of logits. */
#include "internal.h"

gr_norm gr_model_final_norm(gr_model *m) {
    return (gr_norm){.n_row = m->N,
        .width = m->D,
        .ldx = m->D,
        .ldy = m->D,
        .eps = (float)m->config.rms_norm_eps,
        .x = stream_before(m, m->config.num_hidden_layers),
        .w = norm_at(m, m->final_norm),
        .y = m->final,
        .rstd = m->rstd_final};
}

static gr_cross_entropy head_args(gr_model *m) {
    return (gr_cross_entropy){.n = m->N,
        .D = m->D,
        .V = m->config.vocab_size,
        .x = m->final,
        .w = weight_at(m, m->head),
        .target = m->now.target,
        .loss_sum = m->loss_sum,
        .logits = m->logits};
}

static gr_err run_head(gr_model *m, const gr_cross_entropy *args) {
    gr_backend *b = m->backend;
    gr_norm norm = gr_model_final_norm(m);
    GR_TRY(gr_model_part_need(m, 1 + m->config.num_hidden_layers));
    GR_TRY(b->norm_forward(b, GR_LANE_COMPUTE, &norm));
    return b->cross_entropy(b, GR_LANE_COMPUTE, args);
}

/* The same with its loss read. */
static gr_err run_head_read(gr_model *m, const gr_cross_entropy *args, double *loss_sum, double *token_loss) {
    gr_backend *b = m->backend;
    GR_TRY(b->fill_zero(b, GR_LANE_COMPUTE, m->loss_sum, sizeof *m->loss_sum));
    GR_TRY(run_head(m, args));
    GR_TRY(b->download(b, GR_LANE_COMPUTE, m->sums_read, m->loss_sum, sizeof *m->loss_sum));
    if (args->token_loss != token_loss)
        GR_TRY(b->download(b, GR_LANE_COMPUTE, token_loss, m->token_loss, (size_t)m->N * sizeof *token_loss));
    GR_TRY(b->sync(b));
    *loss_sum += *m->sums_read;
    return GR_OK;
}

gr_err gr_model_head_forward(gr_model *m, double *loss_sum, double *token_loss) {
    gr_cross_entropy args = head_args(m);
    args.token_loss = token_loss && m->token_loss ? m->token_loss : token_loss;
    return run_head_read(m, &args, loss_sum, token_loss);
}

gr_err gr_model_head_backward(gr_model *m, float loss_scale, double *loss_sum) {
    gr_cross_entropy args = head_args(m);
    args.scale = loss_scale;
    args.dx = m->dn;
    args.dw = gradient_at(m, m->head);
    if (!loss_sum)
        args.loss_sum = gr_model_loss_sum(m);
    GR_TRY(loss_sum ? run_head_read(m, &args, loss_sum, NULL) : run_head(m, &args));
    gr_norm norm = gr_model_final_norm(m);
    norm.dy = m->dn;
    norm.dx = m->dres;
    norm.dx_write = GR_OVERWRITE;
    norm.dw = gradient_at(m, m->final_norm.offset);
    return m->backend->norm_backward(m->backend, GR_LANE_COMPUTE, &norm);
}
