/* The training run. One step, top to bottom: next windows and routes -> plan -> per layer norm, attention, dispatch,
 * experts, combine -> head and loss -> layers in reverse with the same plan -> reduce gradients -> norm, clip ->
 * optimizer -> one log line -> now and then evaluation. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/eval.h"
#include "internal.h"

typedef struct trainer {
    const gr_config *config;
    gr_comm *comm;
    gr_backend *backend;
    gr_expert_map map;
    gr_feed *feed, *valid; /* valid NULL without data.valid */
    gr_model *model;
    gr_optimizer *optimizer;
    gr_metrics *metrics;
    double peak_flops; /* of all ranks together */

    gr_micro ready; /* prepared ahead: the next micro-batch */
    double tokens_per_step;
    uint64_t *load; /* [E] pairs per expert in this step's global batch */
    gr_step_record record;
    gr_eval_loss first, last;
} trainer;

/* ---------------------------------------------------------------- start: everything that can be wrong, agreed by all
 */

static gr_err open_feeds(trainer *t) {
    GR_TRY(gr_feed_open(&t->feed, GR_FEED_TRAIN, t->config, t->comm, &t->map, NULL));
    if (t->config->data.n_valid)
        GR_TRY(gr_feed_open(&t->valid, GR_FEED_VALID, t->config, t->comm, &t->map, t->feed));
    return GR_OK;
}

static gr_err open_model(trainer *t) {
    gr_plan_limits limits = *gr_feed_limits(t->feed);
    if (t->valid)
        limits = gr_plan_limits_max(&limits, gr_feed_limits(t->valid));
    gr_model_options o = {.config = &t->config->model,
        .backend = t->backend,
        .comm = t->comm,
        .map = &t->map,
        .limits = &limits,
        .T = t->config->data.seq_len,
        .train = true};
    GR_TRY(gr_model_open(&t->model, &o));
    gr_params_init(gr_model_params(t->model), t->config->run.seed, gr_model_weights(t->model));
    return GR_OK;
}

static gr_err open_optimizer(trainer *t) {
    const gr_config *c = t->config;
    gr_optimizer_options o = {.backend = t->backend,
        .comm = t->comm,
        .params = gr_model_params(t->model),
        .lr = {.schedule = c->optimizer.schedule,
            .lr = c->optimizer.lr,
            .lr_min = c->optimizer.lr_min,
            .warmup_steps = c->optimizer.warmup_steps,
            .decay_steps = c->optimizer.decay_steps ? c->optimizer.decay_steps : c->train.steps},
        .beta1 = c->optimizer.beta1,
        .beta2 = c->optimizer.beta2,
        .eps = c->optimizer.eps,
        .weight_decay = c->optimizer.weight_decay,
        .clip = c->optimizer.clip};
    return gr_optimizer_open(&t->optimizer, &o);
}

static gr_err open_local(trainer *t) {
    GR_TRY(gr_alloc((void **)&t->load, (size_t)t->config->model.num_experts, sizeof *t->load, "expert loads"));
    GR_TRY(open_model(t));
    return open_optimizer(t);
}

/* All ranks measure at the same time, as they will compute: memory bandwidth and turbo clocks are shared. */
static gr_err measure_peak(trainer *t) {
    GR_TRY(t->comm->barrier(t->comm, GR_WORLD));
    GR_TRY(gr_comm_agree(t->comm, t->backend->peak(t->backend, &t->peak_flops)));
    return t->comm->sum(t->comm, GR_WORLD, GR_F64, &t->peak_flops, 1);
}

static gr_err open_metrics(trainer *t) {
    gr_model_count count;
    gr_model_count_config(&t->config->model, t->config->data.seq_len, &count);
    char path[GR_PATH_MAX + 32];
    gr_run_path(t->config, "metrics.jsonl", path);
    gr_metrics_options o = {.path = t->comm->rank[GR_WORLD] == 0 ? path : NULL,
        .steps = t->config->train.steps,
        .log_every = t->config->log.every_steps,
        .tokens_per_step = t->tokens_per_step,
        .flops_per_token = count.flops_per_token,
        .peak_flops = t->peak_flops};
    return gr_metrics_open(&t->metrics, &o);
}

static void describe(const trainer *t) {
    const gr_config *c = t->config;
    gr_model_count n;
    gr_model_count_config(&c->model, c->data.seq_len, &n);
    gr_info("backend %s, comm %s, %d ranks x %d threads, expert parallel %d, data parallel %d", t->backend->name,
        t->comm->name, t->comm->size[GR_WORLD], gr_thread_count(), t->comm->size[GR_EP], t->comm->size[GR_EDP]);
    gr_info("model: %lld parameters, %lld active per token, %lld in experts, %.4g FLOP per token",
        (long long)(n.matrices + n.norms), (long long)n.active, (long long)n.experts, n.flops_per_token);
    gr_info("data: %llu windows of %d tokens, %.0f tokens per step, %lld steps (%.2f epochs)",
        (unsigned long long)gr_feed_windows(t->feed), c->data.seq_len, t->tokens_per_step, (long long)c->train.steps,
        (double)c->train.steps * c->train.global_batch_windows / (double)gr_feed_windows(t->feed));
    gr_info("best GEMM rate of all ranks together: %.1f GFLOP/s", t->peak_flops * 1e-9);
}

static gr_err open_trainer(trainer *t, gr_run_folder folder) {
    const gr_config *c = t->config;
    bool first = t->comm->rank[GR_WORLD] == 0;
    t->tokens_per_step = (double)c->train.global_batch_windows * c->data.seq_len;
    GR_TRY(gr_comm_agree(t->comm, gr_config_check_ranks(c, t->comm->size[GR_WORLD])));
    GR_TRY(gr_comm_agree(t->comm, first ? gr_run_folder_check(c, folder) : GR_OK));
    int R_ep = gr_config_expert_parallel(c);
    GR_TRY(gr_comm_agree(t->comm, gr_comm_group(t->comm, R_ep)));
    GR_TRY(gr_comm_agree(t->comm, gr_expert_map_open(&t->map, (uint32_t)c->model.num_experts, (uint32_t)R_ep)));
    GR_TRY(gr_comm_agree(t->comm, gr_backend_open(&t->backend, gr_config_backend_name(c))));
    GR_TRY(open_feeds(t));
    GR_TRY(gr_comm_agree(t->comm, open_local(t)));
    GR_TRY(measure_peak(t));
    GR_TRY(gr_comm_agree(t->comm, first ? gr_run_folder_make(c, folder, t->comm, t->backend) : GR_OK));
    GR_TRY(gr_comm_agree(t->comm, open_metrics(t)));
    describe(t);
    return GR_OK;
}

static void close_trainer(trainer *t) {
    gr_metrics_close(t->metrics);
    gr_optimizer_close(t->optimizer);
    gr_model_close(t->model);
    gr_feed_close(t->valid);
    gr_feed_close(t->feed);
    gr_backend_close(t->backend);
    gr_expert_map_close(&t->map);
    free(t->load);
}

/* ---------------------------------------------------------------- one step */

static double since_ms(double start_s) {
    return 1e3 * (gr_time_s() - start_s);
}

/* The plan of the micro-batch after (step, micro), unless the run ends there. */
static gr_err prepare_next(trainer *t, int64_t step, uint64_t micro) {
    if (++micro == gr_feed_micro_batches(t->feed)) {
        micro = 0;
        step++;
    }
    if (step == t->config->train.steps)
        return GR_OK;
    double start_s = gr_time_s();
    uint64_t cursor = (uint64_t)step * (uint64_t)t->config->train.global_batch_windows;
    GR_TRY(gr_feed_prepare(t->feed, cursor, micro, &t->ready));
    t->record.prepare_ms += since_ms(start_s);
    return GR_OK;
}

static gr_err run_micro_batches(trainer *t, int64_t step, double *loss) {
    gr_phases phases = {0};
    double loss_sum = 0;
    memset(t->load, 0, (size_t)t->config->model.num_experts * sizeof *t->load);
    GR_TRY(gr_model_zero_gradients(t->model));
    for (uint64_t micro = 0; micro < gr_feed_micro_batches(t->feed); micro++) {
        gr_micro now = t->ready;
        GR_TRY(prepare_next(t, step, micro));
        GR_TRY(gr_model_step(t->model, &now.batch, (float)(1.0 / t->tokens_per_step), &loss_sum, &phases));
        for (int e = 0; e < t->config->model.num_experts; e++)
            t->load[e] += now.load[e];
    }
    GR_TRY(t->comm->sum(t->comm, GR_WORLD, GR_F64, &loss_sum, 1));
    *loss = loss_sum / t->tokens_per_step;
    t->record.forward_ms = phases.forward_ms;
    t->record.backward_ms = phases.backward_ms;
    t->record.exchange_ms = phases.exchange_ms;
    return GR_OK;
}

/* MaxVio of the global batch: every expert-parallel group has counted its own windows. */
static gr_err max_vio(trainer *t, double *out) {
    size_t E = (size_t)t->config->model.num_experts;
    GR_TRY(t->comm->sum(t->comm, GR_EDP, GR_U64, t->load, E));
    uint64_t most = 0, all = 0;
    for (size_t e = 0; e < E; e++) {
        most = t->load[e] > most ? t->load[e] : most;
        all += t->load[e];
    }
    *out = all ? (double)most * (double)E / (double)all - 1 : 0;
    return GR_OK;
}

static gr_err evaluate(trainer *t, gr_eval_loss *out) {
    if (!t->valid)
        return GR_OK;
    double start_s = gr_time_s();
    GR_TRY(gr_eval_loss_run(t->valid, t->model, t->comm, out));
    t->record.loss_valid = out->nats_per_token;
    t->record.bytes_nats_valid = out->nats_per_byte;
    t->record.eval_ms = since_ms(start_s);
    return GR_OK;
}

static bool evaluation_due(const trainer *t, int64_t done) {
    int64_t every = t->config->eval.every_steps;
    return done == t->config->train.steps || (every && done % every == 0);
}

static gr_err train_step(trainer *t, int64_t step) {
    double start_s = gr_time_s();
    t->record = (gr_step_record){.step = step + 1, .loss_valid = NAN, .bytes_nats_valid = NAN};
    t->record.tokens_seen = (uint64_t)(step + 1) * (uint64_t)t->tokens_per_step;
    GR_TRY(run_micro_batches(t, step, &t->record.loss));
    gr_update update;
    GR_TRY(gr_optimizer_step(
        t->optimizer, step, t->record.loss, gr_model_weights(t->model), gr_model_gradients(t->model), &update));
    t->record.lr = update.lr;
    t->record.grad_norm = update.grad_norm;
    t->record.skipped = update.skipped;
    t->record.reduce_ms = update.reduce_ms;
    t->record.optimizer_ms = update.optimizer_ms;
    GR_TRY(max_vio(t, &t->record.max_vio));
    t->record.step_ms = since_ms(start_s);
    if (evaluation_due(t, step + 1))
        GR_TRY(evaluate(t, &t->last));
    gr_metrics_step(t->metrics, &t->record);
    return GR_OK;
}

/* ---------------------------------------------------------------- the run */

/* Record of step 0: only the validation loss of the initial weights. */
static gr_err evaluate_first(trainer *t) {
    const double none = NAN; /* not measured */
    t->record = (gr_step_record){.loss = none,
        .lr = none,
        .grad_norm = none,
        .loss_valid = none,
        .bytes_nats_valid = none,
        .step_ms = none,
        .prepare_ms = none,
        .forward_ms = none,
        .backward_ms = none,
        .exchange_ms = none,
        .reduce_ms = none,
        .optimizer_ms = none,
        .max_vio = none};
    t->first = t->last = (gr_eval_loss){.nats_per_token = NAN, .nats_per_byte = NAN};
    if (!t->valid)
        return GR_OK;
    GR_TRY(evaluate(t, &t->first));
    gr_metrics_step(t->metrics, &t->record);
    return GR_OK;
}

static gr_err train(trainer *t) {
    GR_TRY(evaluate_first(t));
    GR_TRY(gr_feed_prepare(t->feed, 0, 0, &t->ready));
    for (int64_t step = 0; step < t->config->train.steps; step++)
        GR_TRY(train_step(t, step));
    return GR_OK;
}

static gr_err save_weights(trainer *t, gr_train_result *result) {
    char path[GR_PATH_MAX + 32], *text = NULL;
    bool first = t->comm->rank[GR_WORLD] == 0;
    GR_TRY(gr_comm_agree(t->comm, first ? gr_config_text(t->config, &text) : GR_OK));
    gr_err e = gr_params_save(gr_model_params(t->model), t->comm, gr_model_weights(t->model),
        gr_run_path(t->config, "model.safetensors", path), text, &result->parameter_hash);
    free(text);
    return e;
}

gr_err gr_train_run(const gr_config *config, gr_comm *comm, gr_run_folder folder, gr_train_result *result) {
    trainer t = {.config = config, .comm = comm};
    *result = (gr_train_result){0};
    gr_err e = open_trainer(&t, folder);
    if (!e)
        e = train(&t);
    if (!e)
        e = save_weights(&t, result);
    result->loss_valid_first = t.first.nats_per_token;
    result->loss_valid = t.last.nats_per_token;
    result->nats_per_byte_valid_first = t.first.nats_per_byte;
    result->nats_per_byte_valid = t.last.nats_per_byte;
    close_trainer(&t);
    return e;
}
