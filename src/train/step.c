/* The training run. One step, top to bottom: next windows and routes -> plan -> per layer norm, attention, dispatch,
 * experts, combine -> head and loss -> layers in reverse with the same plan -> reduce gradients -> norm, clip ->
 * optimizer -> one log line -> now and then evaluation. With learned routes each layer's router makes a plan in
 * between.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* ---------------------------------------------------------------- one step */

static double since_ms(double start_s) {
    return 1e3 * (gr_time_s() - start_s);
}

/* The plan of the micro-batch after `micro` of the step that starts at state.cursor, unless the run ends there. */
static gr_err prepare_next(gr_trainer *t, int64_t step, uint64_t micro) {
    uint64_t cursor = t->state.cursor;
    if (++micro == gr_feed_micro_batches(t->feed)) {
        micro = 0;
        step++;
        cursor += (uint64_t)t->config->train.global_batch_windows;
    }
    if (step == t->config->train.steps)
        return GR_OK;
    double start_s = gr_time_s();
    GR_TRY(gr_feed_prepare(t->feed, cursor, micro, &t->ready));
    t->record.prepare_ms += since_ms(start_s);
    return GR_OK;
}

/* Bytes of experts' rows that this rank has sent so far. */
static uint64_t rows_sent(const gr_trainer *t) {
    return t->comm->sent[GR_TRAFFIC_DISPATCH] + t->comm->sent[GR_TRAFFIC_COMBINE];
}

/* Where the optimizer finds this rank's losses. They are the model's, or the host has read them already. */
static gr_err hand_over_losses(gr_trainer *t) {
    gr_backend *b = t->backend;
    double *losses = gr_optimizer_losses(t->optimizer);
    GR_TRY(gr_model_sums_copy(t->model, losses));
    return t->loss_sum != 0 ? b->upload(b, GR_LANE_COMPUTE, losses, &t->loss_sum, sizeof t->loss_sum) : GR_OK;
}

bool gr_trainer_exchanges_beside(const gr_trainer *t) {
    return t->config->kind == GR_CONFIG_TRAIN && t->config->parallel.zero && t->comm->queues;
}

static gr_err gather_part(void *of, gr_share part) {
    gr_trainer *t = of;
    return gr_optimizer_gather_part(t->optimizer, gr_model_masters(t->model), part);
}

/* Now, or in the forward of the next step. */
static gr_err gather_weights(gr_trainer *t) {
    if (!gr_trainer_exchanges_beside(t))
        return gr_optimizer_gather(t->optimizer, gr_model_masters(t->model));
    GR_TRY(gr_optimizer_gather_vectors(t->optimizer, gr_model_masters(t->model)));
    return gr_model_weights_await(t->model, gather_part, t);
}

/* What became of the step. The host waits for the backend here, in a step with given routes nowhere else. */
static gr_err finish_update(gr_trainer *t) {
    gr_update update;
    GR_TRY(gr_optimizer_finish(t->optimizer, t->tokens_per_step, &update));
    t->record.loss = update.loss[0];
    if (t->config->routing.source == GR_SOURCE_LEARNED) {
        t->record.aux_loss = update.loss[1];
        GR_TRY(gr_model_load_get(t->model, t->load));
        GR_TRY(t->backend->sync(t->backend));
    }
    if (t->config->routing.gates == GR_GATES_LEARNED)
        t->record.z_loss = update.loss[2];
    t->record.lr = update.lr;
    t->record.grad_norm = update.grad_norm;
    t->record.skipped = update.skipped;
    t->record.reduce_ms = update.reduce_ms;
    t->record.optimizer_ms = update.optimizer_ms;
    return GR_OK;
}

/* Rows and pairs of a micro-batch, of this rank. */
static void count_rows(gr_trainer *t, const gr_micro *micro) {
    gr_step_rows *mine = t->traffic ? &t->traffic[t->comm->rank[GR_WORLD]] : NULL;
    if (!mine)
        return;
    uint64_t n_pair = micro->batch.plan->n_pair;
    mine->n_row += micro->batch.plan->n_send;
    mine->n_pair += n_pair;
    mine->pair_most = n_pair > mine->pair_most ? n_pair : mine->pair_most;
    t->record.rows_per_token_best = micro->rows_best / t->tokens_per_step;
    t->record.imbalance_best = micro->imbalance_best;
}

/* What all ranks have moved. The hosts talk while their devices work. */
static gr_err gather_traffic(gr_trainer *t) {
    const int R = t->comm->size[GR_WORLD];
    gr_step_rows all = {0};
    if (t->config->routing.source != GR_SOURCE_NONE)
        GR_TRY(t->comm->sum(t->comm, GR_WORLD, GR_F64, &t->record.bytes_sent, 1));
    if (!t->traffic)
        return GR_OK;
    GR_TRY(t->comm->all_gather(t->comm, GR_WORLD, GR_U64, t->traffic, sizeof *t->traffic / sizeof(uint64_t)));
    for (int r = 0; r < R; r++) {
        all.n_row += t->traffic[r].n_row;
        all.n_pair += t->traffic[r].n_pair;
        all.pair_most = t->traffic[r].pair_most > all.pair_most ? t->traffic[r].pair_most : all.pair_most;
    }
    double mean = (double)all.n_pair / ((double)R * (double)gr_feed_micro_batches(t->feed));
    t->record.rows_per_token = (double)all.n_row / t->tokens_per_step;
    t->record.imbalance = (double)all.pair_most / mean;
    return GR_OK;
}

static gr_err run_micro_batches(gr_trainer *t, int64_t step) {
    gr_phases phases = {0};
    uint64_t sent_before = rows_sent(t);
    t->loss_sum = 0;
    memset(t->load, 0, (size_t)t->n_load * (size_t)t->config->model.num_experts * sizeof *t->load);
    if (t->traffic)
        t->traffic[t->comm->rank[GR_WORLD]] = (gr_step_rows){0};
    GR_TRY(gr_model_zero_gradients(t->model));
    for (uint64_t micro = 0; micro < gr_feed_micro_batches(t->feed); micro++) {
        gr_micro now = t->ready;
        GR_TRY(gr_model_make_room(t->model, now.batch.plan));
        t->is_last_micro = micro + 1 == gr_feed_micro_batches(t->feed);
        GR_TRY(gr_objective_of(t->config)->micro_batch(t, &now, &t->loss_sum, &phases));
        GR_TRY(prepare_next(t, step, micro)); /* while the backend works on this one */
        count_rows(t, &now);
        for (int e = 0; now.load && e < t->config->model.num_experts; e++)
            t->load[e] += now.load[e];
    }
    if (t->config->routing.source != GR_SOURCE_NONE)
        t->record.bytes_sent = (double)(rows_sent(t) - sent_before);
    t->record.forward_ms = phases.forward_ms;
    t->record.backward_ms = phases.backward_ms;
    t->record.exchange_ms = phases.exchange_ms;
    return GR_OK;
}

/* MaxVio of the global batch. From tables every expert-parallel group has counted its own windows; learned routers have
 * counted those of their rank. */
static gr_err max_vio(gr_trainer *t) {
    bool learned = t->config->routing.source == GR_SOURCE_LEARNED;
    size_t E = (size_t)t->config->model.num_experts, n_layer = (size_t)t->n_load;
    GR_TRY(t->comm->sum(t->comm, learned ? GR_WORLD : GR_EDP, GR_U64, t->load, n_layer * E));
    double sum = 0, most = 0;
    for (size_t l = 0; l < n_layer; l++) {
        double vio = gr_load_violation(t->load + l * E, (uint32_t)E);
        sum += vio;
        most = vio > most ? vio : most;
    }
    t->record.max_vio = n_layer ? sum / (double)n_layer : NAN;
    t->record.max_vio_layer = learned && n_layer ? most : NAN;
    return GR_OK;
}

static gr_err evaluate(gr_trainer *t) {
    if (!t->valid)
        return GR_OK;
    double start_s = gr_time_s();
    GR_TRY(gr_objective_of(t->config)->evaluate(t));
    t->record.loss_valid = t->last.nats_per_token;
    t->record.bytes_nats_valid = t->last.nats_per_byte;
    t->record.eval_ms = since_ms(start_s);
    if (!(t->fidelity.n_token > 0))
        return GR_OK;
    t->record.exact_match = t->fidelity.exact / t->fidelity.n_token;
    t->record.overlap = t->fidelity.overlap / t->fidelity.n_token;
    t->record.gate_cosine = t->fidelity.cosine / t->fidelity.n_token;
    t->max_vio_last = t->record.max_vio_valid;
    return GR_OK;
}

static bool is_last(const gr_trainer *t, int64_t done) {
    return t->done || done == t->config->train.steps;
}

static bool evaluation_due(const gr_trainer *t, int64_t done) {
    int64_t every = t->config->eval.every_steps;
    return is_last(t, done) || (every && done % every == 0);
}

/* The forecast's proof: after the third step all that this rank will ever touch has been touched. */
static void compare_memory(const gr_trainer *t) {
    const uint64_t now = gr_trainer_room(t), before = t->room_before;
    const uint64_t expected = t->backend->host_memory ? t->memory.total : t->memory.device;
    char measured[32], predicted[32];
    if (now < before)
        gr_info("memory after 3 steps: %s measured, %s predicted", gr_bytes_text(before - now, measured),
            gr_bytes_text(expected, predicted));
}

/* How often the host waited for the backend in the step that is over. */
static void describe_waits(const gr_trainer *t) {
    const gr_backend *b = t->backend;
    if (!b->host_memory)
        gr_info("backend %s: %llu copies to the host and %llu waits of the host in a step", b->name,
            (unsigned long long)(b->n_download - t->n_download), (unsigned long long)(b->n_sync - t->n_sync));
}

/* Nothing measured yet. */
static gr_step_record empty_record(void) {
    const double none = NAN;
    return (gr_step_record){.loss = none,
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
        .aux_loss = none,
        .z_loss = none,
        .max_vio = none,
        .max_vio_layer = none,
        .exact_match = none,
        .overlap = none,
        .gate_cosine = none,
        .max_vio_valid = none,
        .bytes_sent = none,
        .rows_per_token = none,
        .rows_per_token_best = none,
        .imbalance = none,
        .imbalance_best = none};
}

gr_err gr_trainer_step(gr_trainer *t, int64_t step) {
    const gr_objective *objective = gr_objective_of(t->config);
    double start_s = gr_time_s();
    t->record = empty_record();
    t->record.step = step + 1;
    t->record.prepare_ms = 0;
    t->record.tokens_seen = (uint64_t)(step + 1) * (uint64_t)t->tokens_per_step;
    t->n_download = t->backend->n_download;
    t->n_sync = t->backend->n_sync;
    GR_TRY(run_micro_batches(t, step));
    float *gradients = gr_model_gradients(t->model);
    GR_TRY(hand_over_losses(t));
    GR_TRY(gr_optimizer_reduce(t->optimizer, gradients));
    GR_TRY(gr_optimizer_apply(t->optimizer, step, gr_model_masters(t->model), gradients));
    GR_TRY(gather_weights(t));
    GR_TRY(gather_traffic(t));
    GR_TRY(finish_update(t));
    GR_TRY(max_vio(t));
    if (objective->after_update)
        GR_TRY(objective->after_update(t));
    t->record.step_ms = since_ms(start_s);
    if (step + 1 - t->found.state.step == 3)
        describe_waits(t);
    if (evaluation_due(t, step + 1))
        GR_TRY(evaluate(t));
    gr_metrics_step(t->metrics, &t->record);
    if (step + 1 - t->found.state.step == 3)
        compare_memory(t);
    return GR_OK;
}

/* ---------------------------------------------------------------- the run */

/* Record of step 0: only the validation loss of the initial weights. A run that goes on has its record already, and
 * only asks whether its aim was reached. */
static gr_err evaluate_first(gr_trainer *t) {
    t->record = empty_record();
    if (!t->valid)
        return GR_OK;
    GR_TRY(evaluate(t));
    if (t->state.step > 0)
        return GR_OK;
    t->first = t->last;
    t->fidelity_first = t->fidelity;
    t->max_vio_first = t->record.max_vio_valid;
    gr_metrics_step(t->metrics, &t->record);
    return GR_OK;
}

/* Failed saves are survived: the older checkpoints are as they were, and the next one may succeed. */
#define FAILED_SAVES_MAX 2

static gr_err save_checkpoint(gr_trainer *t) {
    GR_TRY(gr_model_weights_settle(t->model));
    t->state.optimizer = gr_optimizer_counts_get(t->optimizer);
    gr_err e = gr_checkpoint_save(t->checkpointer, &t->state);
    if (e == GR_STORAGE && ++t->failed_saves <= FAILED_SAVES_MAX) {
        gr_warn(
            "checkpoint of step %lld was not saved: %s; training goes on", (long long)t->state.step, gr_error_text());
        return GR_OK;
    }
    GR_TRY(e);
    t->failed_saves = 0;
    gr_stop_remember(t->state.step);
    return GR_OK;
}

/* At the boundary between two steps: a checkpoint where one is due, and the end where one was asked for. */
static gr_err step_boundary(gr_trainer *t) {
    bool stop;
    GR_TRY(gr_stop_agreed(t->comm, &stop));
    int64_t done = t->state.step, every = t->config->checkpoint.every_steps;
    if (stop || is_last(t, done) || (every && done % every == 0))
        GR_TRY(save_checkpoint(t));
    if (!stop || is_last(t, done))
        return GR_OK;
    gr_info("asked to stop after step %lld; run the same command again to go on", (long long)done);
    return gr_comm_agree(t->comm, t->failed_saves ? GR_STORAGE : gr_fail_silently(GR_PREEMPTED));
}

static gr_err train(gr_trainer *t) {
    const gr_config *c = t->config;
    if (t->state.step >= c->train.steps) {
        gr_info("nothing to do: %lld of %lld steps are done", (long long)t->state.step, (long long)c->train.steps);
        return GR_OK;
    }
    if (t->state.step == 0 || c->tune.until_maxvio > 0)
        GR_TRY(evaluate_first(t));
    if (t->done) {
        gr_info("nothing to do: MaxVio is %.4f already", t->max_vio_last);
        return GR_OK;
    }
    GR_TRY(gr_feed_prepare(t->feed, t->state.cursor, 0, &t->ready));
    while (!is_last(t, t->state.step)) {
        GR_TRY(gr_trainer_step(t, t->state.step));
        t->state.step++;
        t->state.cursor += (uint64_t)c->train.global_batch_windows;
        GR_TRY(step_boundary(t));
    }
    return GR_OK;
}

gr_err gr_train_run(const gr_train_options *o, gr_train_result *result) {
    gr_trainer t = {.o = o, .config = o->config, .comm = o->comm, .lock = -1};
    t.first = t.last = (gr_eval_loss){.nats_per_token = NAN, .nats_per_byte = NAN};
    *result = (gr_train_result){0};
    gr_err e = gr_trainer_open(&t);
    if (!e)
        e = train(&t);
    if (!e)
        e = gr_objective_of(t.config)->save(&t, result);
    if (t.feed)
        result->mask = gr_trainer_mask(&t);
    result->loss_valid_first = t.first.nats_per_token;
    result->loss_valid = t.last.nats_per_token;
    result->nats_per_byte_valid_first = t.first.nats_per_byte;
    result->nats_per_byte_valid = t.last.nats_per_byte;
    result->fidelity_first = t.fidelity_first;
    result->fidelity = t.fidelity;
    result->max_vio_first = t.max_vio_first;
    result->max_vio = t.max_vio_last;
    gr_comm_detach(t.comm, e);
    gr_trainer_close(&t);
    return e;
}
