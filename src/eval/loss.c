/* Mean loss over the validation windows. */
#include <math.h>
#include <stdlib.h>

#include "grouter/eval.h"

/* The losses at the last positions of windows that count. */
typedef struct last_positions {
    int64_t N, T;
    double *token_loss; /* [N]; NULL: they are not asked for */
    double sum;
} last_positions;

static void add_last(last_positions *last, const int32_t *target) {
    for (int64_t i = last->T - 1; last->token_loss && i < last->N; i += last->T)
        last->sum += target[i] < 0 ? 0 : last->token_loss[i];
}

static gr_err run(gr_feed *valid, gr_model *model, gr_comm *comm, last_positions *last, gr_eval_loss *out) {
    *out = (gr_eval_loss){.nats_per_token = NAN,
        .perplexity = NAN,
        .nats_per_byte = NAN,
        .last_position = NAN,
        .mask = gr_feed_mask(valid)};
    double loss_sum = 0;
    uint64_t counts[2] = {0, 0}; /* targets, bytes */
    gr_phases phases = {0};
    uint64_t n_micro = gr_feed_micro_batches(valid);
    for (uint64_t micro = 0; micro < n_micro; micro++) {
        gr_micro m;
        GR_TRY(gr_feed_prepare(valid, 0, micro, &m));
        GR_TRY(gr_model_make_room(model, m.batch.plan));
        GR_TRY(gr_model_token_losses(model, &m.batch, &loss_sum, last->token_loss, &phases));
        add_last(last, m.batch.target);
        counts[0] += m.n_target;
        counts[1] += m.n_byte;
    }
    double sums[2] = {loss_sum, last->sum};
    GR_TRY(comm->sum(comm, GR_WORLD, GR_F64, sums, 2));
    GR_TRY(comm->sum(comm, GR_WORLD, GR_U64, counts, 2));
    loss_sum = sums[0];
    out->n_token = counts[0];
    out->n_byte = counts[1];
    out->n_window = gr_feed_windows(valid);
    out->nats_per_token = loss_sum / (double)counts[0];
    out->perplexity = exp(out->nats_per_token);
    if (counts[1])
        out->nats_per_byte = loss_sum / (double)counts[1];
    if (last->token_loss)
        out->last_position = sums[1] / (double)out->n_window;
    return GR_OK;
}

gr_err gr_eval_loss_run(gr_feed *valid, gr_model *model, gr_comm *comm, gr_eval_loss *out) {
    return run(valid, model, comm, &(last_positions){0}, out);
}

/* ---------------------------------------------------------------- weights from a file */

typedef struct evaluator {
    gr_backend *backend;
    gr_expert_map map;
    gr_feed *valid;
    gr_model *model;
} evaluator;

static gr_err open_model(evaluator *v, const gr_config *config, gr_comm *comm, const char *weights) {
    gr_model_options o = {.config = &config->model,
        .backend = v->backend,
        .comm = comm,
        .map = &v->map,
        .limits = gr_feed_limits(v->valid),
        .T = config->data.seq_len,
        .train = false};
    GR_TRY(gr_model_open(&v->model, &o));
    GR_TRY(gr_params_load(gr_model_params(v->model), weights, gr_model_masters(v->model)));
    return gr_model_weights_changed(v->model);
}

static gr_err open_evaluator(evaluator *v, const gr_config *config, gr_comm *comm, const char *weights) {
    GR_TRY(gr_comm_agree(comm, gr_config_check_ranks(config, comm->size[GR_WORLD])));
    if (config->data.n_valid == 0)
        return gr_comm_agree(comm, gr_fail(GR_CONFIG, "data.valid: expected at least one file to evaluate, got none"));
    int R_ep = gr_config_expert_parallel(config);
    GR_TRY(gr_comm_agree(comm, gr_comm_group(comm, R_ep)));
    GR_TRY(gr_comm_agree(comm, gr_expert_map_open(&v->map, (uint32_t)config->model.num_experts, (uint32_t)R_ep)));
    GR_TRY(gr_comm_agree(comm, gr_backend_open(&v->backend, gr_config_backend_name(config), gr_config_dtype(config))));
    GR_TRY(gr_comm_agree(comm, gr_backend_set_experts(v->backend, gr_config_expert_kernels_name(config))));
    GR_TRY(gr_comm_agree(comm, gr_backend_set_attention(v->backend, gr_config_attention_kernels_name(config))));
    GR_TRY(gr_comm_agree(comm, gr_backend_set_plans(v->backend, config->parallel.product_plans)));
    GR_TRY(gr_comm_attach(comm, v->backend));
    GR_TRY(gr_feed_open(&v->valid, GR_FEED_VALID, config, comm, &v->map, NULL));
    return gr_comm_agree(comm, open_model(v, config, comm, weights));
}

static gr_err run_evaluator(const evaluator *v, const gr_config *config, gr_comm *comm, gr_eval_loss *out) {
    last_positions last = {
        .T = config->data.seq_len, .N = (int64_t)config->train.micro_batch_windows * config->data.seq_len};
    gr_err e = GR_OK;
    if (gr_mask_sees_ahead(gr_feed_mask(v->valid)))
        e = gr_alloc((void **)&last.token_loss, (size_t)last.N, sizeof *last.token_loss, "losses");
    e = gr_comm_agree(comm, e);
    if (!e)
        e = run(v->valid, v->model, comm, &last, out);
    free(last.token_loss);
    return e;
}

gr_err gr_eval_weights(const gr_config *config, gr_comm *comm, const char *weights, gr_eval_loss *out) {
    evaluator v = {0};
    gr_err e = open_evaluator(&v, config, comm, weights);
    if (!e)
        e = run_evaluator(&v, config, comm, out);
    gr_model_close(v.model);
    gr_feed_close(v.valid);
    gr_comm_detach(comm, e);
    gr_backend_close(v.backend);
    gr_expert_map_close(&v.map);
    return e;
}
