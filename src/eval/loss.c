/* Mean loss over the validation windows. */
#include <math.h>

#include "grouter/eval.h"

gr_err gr_eval_loss_run(gr_feed *valid, gr_model *model, gr_comm *comm, gr_eval_loss *out) {
    *out = (gr_eval_loss){.nats_per_token = NAN, .perplexity = NAN, .nats_per_byte = NAN};
    double loss_sum = 0;
    uint64_t counts[2] = {0, 0}; /* targets, bytes */
    gr_phases phases = {0};
    uint64_t n_micro = gr_feed_micro_batches(valid);
    for (uint64_t micro = 0; micro < n_micro; micro++) {
        gr_micro m;
        GR_TRY(gr_feed_prepare(valid, 0, micro, &m));
        GR_TRY(gr_model_loss(model, &m.batch, &loss_sum, &phases));
        counts[0] += m.n_target;
        counts[1] += m.n_byte;
    }
    GR_TRY(comm->sum(comm, GR_WORLD, GR_F64, &loss_sum, 1));
    GR_TRY(comm->sum(comm, GR_WORLD, GR_U64, counts, 2));
    out->n_token = counts[0];
    out->n_byte = counts[1];
    out->n_window = gr_feed_windows(valid);
    out->nats_per_token = loss_sum / (double)counts[0];
    out->perplexity = exp(out->nats_per_token);
    if (counts[1])
        out->nats_per_byte = loss_sum / (double)counts[1];
    return GR_OK;
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
    GR_TRY(gr_feed_open(&v->valid, GR_FEED_VALID, config, comm, &v->map, NULL));
    return gr_comm_agree(comm, open_model(v, config, comm, weights));
}

gr_err gr_eval_weights(const gr_config *config, gr_comm *comm, const char *weights, gr_eval_loss *out) {
    evaluator v = {0};
    gr_err e = open_evaluator(&v, config, comm, weights);
    if (!e)
        e = gr_eval_loss_run(v.valid, v.model, comm, out);
    gr_model_close(v.model);
    gr_feed_close(v.valid);
    gr_backend_close(v.backend);
    gr_expert_map_close(&v.map);
    return e;
}
