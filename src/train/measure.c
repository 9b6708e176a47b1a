/* Steps of a run without the run: no folder, no checkpoint, no evaluation; for `bench step`. */
#include <math.h>

#include "internal.h"

/* A step that was skipped is no measure of one. */
static gr_err check_step(const gr_step_record *r) {
    if (isfinite(r->loss) && isfinite(r->grad_norm) && !r->skipped)
        return GR_OK;
    return gr_fail(GR_NONFINITE,
        "step %lld: expected a finite loss and gradient, got loss %g and norm %g; lower optimizer.lr",
        (long long)r->step, r->loss, r->grad_norm);
}

static gr_err open(gr_trainer *t, bool tune) {
    const gr_metrics_options silent = {.steps = t->config->train.steps};
    GR_TRY(gr_trainer_shape(t));
    if (tune)
        GR_TRY(gr_comm_agree(t->comm, gr_backend_tune(t->backend, false))); /* before long work: can it? */
    GR_TRY(gr_trainer_survey(t));
    GR_TRY(gr_forecast_fit_host(&t->memory, t->comm));
    GR_TRY(gr_comm_agree(t->comm, gr_forecast_fit_device(&t->memory, t->backend)));
    GR_TRY(gr_trainer_allocate(t));
    GR_TRY(gr_trainer_peak(t));
    GR_TRY(gr_comm_agree(t->comm, gr_metrics_open(&t->metrics, &silent)));
    return gr_feed_prepare(t->feed, 0, 0, &t->ready);
}

/* All ranks tune, since all take part in the steps; what rank 0 met is kept. */
static gr_err end_tuning(gr_trainer *t, const gr_train_tuning *tuning) {
    const bool first = t->comm->rank[GR_WORLD] == 0;
    GR_TRY(gr_comm_agree(t->comm, gr_backend_tune(t->backend, false)));
    return gr_comm_agree(t->comm, first ? gr_backend_save_plans(t->backend, tuning->out) : GR_OK);
}

static gr_err run_steps(gr_trainer *t, const gr_train_tuning *tuning, gr_step_record *record) {
    const gr_config *c = t->config;
    if (tuning->n_step)
        GR_TRY(gr_comm_agree(t->comm, gr_backend_tune(t->backend, true)));
    while (t->state.step < c->train.steps) {
        GR_TRY(gr_trainer_step(t, t->state.step));
        record[t->state.step] = t->record;
        GR_TRY(gr_comm_agree(t->comm, check_step(&t->record)));
        t->state.step++;
        t->state.cursor += (uint64_t)c->train.global_batch_windows;
        if (t->state.step == tuning->n_step)
            GR_TRY(end_tuning(t, tuning));
    }
    return GR_OK;
}

static void describe(const gr_trainer *t, gr_train_measured *out) {
    gr_model_count n;
    gr_model_count_config(&t->config->model, t->config->data.seq_len, &n);
    const uint64_t now = gr_trainer_room(t), before = t->room_before;
    *out = (gr_train_measured){.n_rank = t->comm->size[GR_WORLD],
        .R_ep = t->comm->size[GR_EP],
        .backend = t->backend->name,
        .dtype = t->backend->dtype,
        .n_parameter = n.matrices + n.norms,
        .n_active = n.active,
        .tokens_per_step = t->tokens_per_step,
        .flops_per_token = t->flops_per_token,
        .peak_flops = t->peak_flops,
        .bytes_predicted = t->backend->host_memory ? t->memory.total : t->memory.device,
        .bytes_measured = now < before ? before - now : 0};
}

gr_err gr_train_measure(const gr_config *config, gr_comm *comm, const gr_train_tuning *tuning, gr_step_record *record,
    gr_train_measured *out) {
    gr_trainer t = {.config = config, .comm = comm, .lock = -1};
    GR_ASSERT(config->kind == GR_CONFIG_TRAIN && config->data.n_valid == 0, "a config to measure with %d valid files",
        config->data.n_valid);
    gr_err e = open(&t, tuning->n_step > 0);
    if (!e)
        e = run_steps(&t, tuning, record);
    if (!e)
        describe(&t, out);
    gr_comm_detach(t.comm, e);
    gr_trainer_close(&t);
    return e;
}
