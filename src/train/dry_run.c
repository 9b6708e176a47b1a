/* A dry run: everything a run does before its first step, stopped where it would begin, and the figures that follow. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dry_run.h"

#define CALIBRATION_S 60.0 /* at most, for measuring */
#define GUESSED_SHARE 0.3  /* of the best GEMM rate: how fast a first micro-batch is taken to be */

/* ---------------------------------------------------------------- data files that are not here */

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* Prints and counts a file unless it is here. */
static int note_absent(const char *path, FILE *out) {
    if (gr_path_exists(path))
        return 0;
    if (out) {
        fprintf(out, "not checked: ");
        gr_print_plain(out, path, strlen(path));
        fprintf(out, " is not here\n");
    }
    return 1;
}

/* Of the pair of a token file, which may be named by either. */
static int note_absent_tokens(const char *prefix, FILE *out) {
    char path[GR_PATH_MAX + 8];
    int n = (int)strlen(prefix);
    if (ends_with(prefix, ".bin") || ends_with(prefix, ".idx"))
        n -= 4;
    snprintf(path, sizeof path, "%.*s.bin", n, prefix);
    int n_absent = note_absent(path, out);
    snprintf(path, sizeof path, "%.*s.idx", n, prefix);
    return n_absent + note_absent(path, out);
}

static int note_absent_files(const gr_data_file *file, int n_file, FILE *out) {
    int n_absent = 0;
    for (int i = 0; i < n_file; i++)
        n_absent += note_absent_tokens(file[i].tokens, out) + (*file[i].routes ? note_absent(file[i].routes, out) : 0);
    return n_absent;
}

static int note_all_absent(const gr_config *c, FILE *out) {
    if (*c->parallel.product_plans)
        note_absent(c->parallel.product_plans, out); /* no size follows from it */
    return note_absent_files(c->data.train, c->data.n_train, out) +
           note_absent_files(c->data.valid, c->data.n_valid, out) +
           (*c->online.grouter ? note_absent(c->online.grouter, out) : 0) +
           (*c->parallel.placement ? note_absent(c->parallel.placement, out) : 0);
}

/* Those that are here must be whole and belong together, as far as their partners are here. */
static gr_err check_present(const gr_config *c, const gr_data_file *file) {
    gr_tokens *tokens = NULL;
    gr_routes *routes = NULL;
    gr_err e = GR_OK;
    if (note_absent_tokens(file->tokens, NULL) == 0)
        e = gr_tokens_open(&tokens, file->tokens);
    if (!e && *file->routes && gr_path_exists(file->routes))
        e = gr_routes_open(&routes, file->routes);
    if (!e && tokens && routes)
        e = gr_routes_match(routes, tokens, (uint32_t)c->data.seq_len, (uint32_t)c->model.num_experts,
            (uint32_t)c->model.num_experts_per_tok);
    gr_routes_close(routes);
    gr_tokens_close(tokens);
    return e;
}

static gr_err check_all_present(const gr_config *c) {
    for (int i = 0; i < c->data.n_train; i++)
        GR_TRY(check_present(c, &c->data.train[i]));
    for (int i = 0; i < c->data.n_valid; i++)
        GR_TRY(check_present(c, &c->data.valid[i]));
    return GR_OK;
}

/* ---------------------------------------------------------------- figures of a surveyed trainer */

static gr_err take_shape(gr_dry_report *r, const gr_trainer *t) {
    gr_plan_limits limits = gr_forecast_limits(t->config, &t->map, 1);
    gr_model_options o = gr_trainer_model_options(t, &limits);
    gr_model *model;
    r->n_rank = t->comm->size[GR_WORLD];
    r->R_ep = t->comm->size[GR_EP];
    r->backend = t->backend->name;
    r->dtype = gr_dtype_name(t->backend->dtype);
    r->row_bytes = (size_t)t->config->model.hidden_size * t->backend->elem_size;
    GR_TRY(gr_model_measure(&model, &o));
    r->weight_bytes = o.shared_weights ? t->backend->elem_size : sizeof(float);
    r->node_ranks = (int)t->map.node_ranks;
    gr_optimizer_options optimizer = gr_trainer_optimizer_options(t, gr_model_params(model));
    r->update = gr_optimizer_traffic_get(&optimizer, o.shared_weights);
    gr_model_close(model);
    const gr_placement *p = &t->placement;
    if (t->placed)
        snprintf(r->placement, sizeof r->placement, "%s by %s, %u nodes x %u ranks", gr_place_method_name(p->method),
            gr_place_grain_name(p->grain), p->n_node, p->node_ranks);
    r->packed = t->placed && r->n_absent == 0 && t->config->routing.source == GR_SOURCE_TABLE && p->R > 1 &&
                t->config->data.windows == GR_WINDOWS_BATCH;
    return GR_OK;
}

static void take_largest(gr_dry_report *r, const gr_trainer *t) {
    if (t->memory.total > r->memory.total) {
        r->memory = t->memory;
        r->limits = *gr_feed_limits(t->feed);
    }
    r->n_window = gr_feed_windows(t->feed);
    r->exact = !r->learned && r->config->routing.source != GR_SOURCE_ONLINE;
}

/* Adds these rows divided by n. */
static void add_rows(gr_dry_report *r, gr_step_links rows, double n) {
    r->rows += (rows.within + rows.between) / n;
    r->rows_between += rows.between / n;
}

/* Rows of a step without tables: as many to each other rank. */
static void expect_rows(gr_dry_report *r, const gr_trainer *t) {
    const gr_config *c = t->config;
    double n_micro = (double)c->train.global_batch_windows / (r->n_rank * c->train.micro_batch_windows);
    r->rows = gr_forecast_rows(c, &t->map) * n_micro;
    r->rows_between = r->R_ep > 1 ? r->rows * (r->R_ep - r->node_ranks) / (r->R_ep - 1) : 0;
    gr_plan_limits worst = gr_forecast_limits_worst(c, &t->map);
    r->sent_worst = (double)worst.send_max * n_micro;
    r->returned_worst = (double)worst.recv_max * n_micro;
}

/* Memory if all tokens of a group chose experts of one rank. */
static gr_err at_worst(gr_dry_report *r, const gr_trainer *t) {
    gr_plan_limits worst = gr_forecast_limits_worst(t->config, &t->map);
    gr_memory_table memory;
    if (r->exact || r->learned)
        return GR_OK;
    GR_TRY(gr_forecast_memory(t, &worst, t->config->data.n_valid ? &worst : NULL, &memory));
    r->memory_worst = memory.total;
    return GR_OK;
}

/* ---------------------------------------------------------------- ranks that are not here
 * Their figures follow from the config, and from the tables if they are here: no rank has to exist for that. */

/* A comm that only has ranks and sizes, rank `rank` of n_rank: what `self` does with data, nothing, is what every
 * question to it needs. */
static gr_err pretend(gr_comm **out, const gr_config *c, int n_rank, int rank) {
    GR_TRY(gr_comm_open(out, "self"));
    int R_ep = gr_config_expert_parallel(c);
    gr_comm *comm = *out;
    comm->size[GR_WORLD] = n_rank;
    comm->rank[GR_WORLD] = rank;
    comm->size[GR_EP] = R_ep;
    comm->rank[GR_EP] = rank % R_ep;
    comm->size[GR_EDP] = n_rank / R_ep;
    comm->rank[GR_EDP] = rank / R_ep;
    return GR_OK;
}

/* Rows and pairs at uniform routing. */
static gr_err forecast_uniform(gr_dry_report *r, gr_trainer *t) {
    const gr_config *c = t->config;
    gr_plan_limits likely = gr_forecast_limits(c, &t->map, GR_FORECAST_SPARE);
    GR_TRY(at_worst(r, t));
    expect_rows(r, t);
    if (r->learned) {
        gr_plan_limits worst = gr_forecast_limits_worst(c, &t->map);
        return gr_forecast_memory(t, &worst, c->data.n_valid ? &worst : NULL, &r->memory);
    }
    return gr_forecast_memory(t, &likely, c->data.n_valid ? &likely : NULL, &r->memory);
}

static gr_err visit_rows(gr_dry_report *r, gr_feed *feed) {
    gr_step_links rows;
    GR_TRY(gr_feed_rows(feed, &rows));
    add_rows(r, rows, r->R_ep);
    return GR_OK;
}

/* One rank as if it were this one. */
static gr_err visit_rank(gr_dry_report *r, int n_rank, int rank) {
    gr_comm *comm;
    gr_trainer t = {.config = r->config, .elsewhere = true, .lock = -1};
    GR_TRY(pretend(&comm, r->config, n_rank, rank));
    t.comm = comm;
    gr_err e = gr_trainer_shape(&t);
    if (!e)
        e = take_shape(r, &t);
    if (!e && r->n_absent)
        e = forecast_uniform(r, &t);
    else if (!e && !(e = gr_trainer_survey(&t))) {
        take_largest(r, &t);
        e = at_worst(r, &t);
        if (!r->exact)
            expect_rows(r, &t);
        else if (!e)
            e = visit_rows(r, t.feed);
    }
    gr_trainer_close(&t);
    gr_comm_close(comm, GR_OK);
    return e;
}

/* With tables, the ranks of the first expert-parallel group: the other groups differ by chance only. */
static gr_err visit_ranks(gr_dry_report *r, int n_rank) {
    GR_TRY(gr_config_check_ranks(r->config, n_rank));
    int n = r->n_absent ? 1 : gr_config_expert_parallel(r->config);
    for (int rank = 0; rank < n; rank++)
        GR_TRY(visit_rank(r, n_rank, rank));
    snprintf(r->time.why_not, sizeof r->time.why_not, "%s",
        r->n_absent        ? "there is no data"
        : !r->has_products ? "this machine does not compute with this train.dtype"
                           : "these ranks are not here; start under mpirun with as many");
    return GR_OK;
}

/* ---------------------------------------------------------------- ranks that are here */

/* The largest table and the mean rows of all ranks, on every rank. */
static gr_err agree_figures(gr_dry_report *r, gr_trainer *t) {
    gr_step_links rows;
    int R = t->comm->size[GR_WORLD];
    GR_TRY(gr_comm_agree(t->comm, gr_feed_rows(t->feed, &rows)));
    void *block;
    GR_TRY(gr_comm_agree(t->comm, gr_alloc(&block, (size_t)R, sizeof(uint64_t), "memory of all ranks")));
    uint64_t *total = block;
    total[t->comm->rank[GR_WORLD]] = t->memory.total;
    gr_err e = t->comm->sum(t->comm, GR_WORLD, GR_U64, total, (size_t)R);
    int largest = 0;
    for (int i = 1; i < R; i++)
        largest = total[i] > total[largest] ? i : largest;
    free(total);
    if (!e)
        e = t->comm->bcast(t->comm, GR_WORLD, &r->memory, sizeof r->memory, largest);
    if (!e)
        e = t->comm->bcast(t->comm, GR_WORLD, &r->limits, sizeof r->limits, largest);
    double sum[2] = {rows.within, rows.between};
    if (!e)
        e = t->comm->sum(t->comm, GR_WORLD, GR_F64, sum, 2);
    add_rows(r, (gr_step_links){.within = sum[0], .between = sum[1]}, R);
    if (!r->exact)
        expect_rows(r, t);
    return e;
}

/* Seconds that two micro-batches would take, the same guess on all ranks. */
static double guess_s(const gr_trainer *t) {
    double tokens = 2.0 * t->comm->size[GR_WORLD] * t->config->train.micro_batch_windows * t->config->data.seq_len;
    return tokens * t->flops_per_token / (t->peak_flops * GUESSED_SHARE);
}

static gr_err run_micro_batch(gr_trainer *t, uint64_t micro, double *loss, double *prepare_s, double *seconds) {
    gr_phases phases = {0};
    gr_micro m;
    GR_TRY(t->comm->barrier(t->comm, GR_WORLD));
    double start_s = gr_time_s();
    GR_TRY(gr_feed_prepare(t->feed, 0, micro, &m));
    *prepare_s = gr_time_s() - start_s;
    GR_TRY(gr_model_make_room(t->model, m.batch.plan));
    GR_TRY(gr_objective_of(t->config)->micro_batch(t, &m, loss, &phases));
    GR_TRY(t->backend->sync(t->backend));
    *seconds = gr_time_s() - start_s;
    return GR_OK;
}

/* Two micro-batches, of which the second counts, and one update. */
static gr_err measure_time(gr_trainer *t, gr_calibration *out) {
    double loss = 0, first_s, first_prepare_s;
    gr_update update;
    uint64_t n_micro = gr_feed_micro_batches(t->feed);
    GR_TRY(gr_trainer_allocate(t));
    GR_TRY(gr_model_zero_gradients(t->model));
    GR_TRY(run_micro_batch(t, 0, &loss, &first_prepare_s, &first_s));
    GR_TRY(run_micro_batch(t, 1 % n_micro, &loss, &out->prepare_s, &out->micro_s));
    double start_s = gr_time_s();
    GR_TRY(gr_optimizer_step(t->optimizer, 0, 0, gr_model_masters(t->model), gr_model_gradients(t->model), &update));
    GR_TRY(t->backend->sync(t->backend));
    out->update_s = gr_time_s() - start_s;
    out->measured = true;
    return GR_OK;
}

static gr_err calibrate(gr_trainer *t, gr_calibration *out) {
    GR_TRY(gr_trainer_peak(t));
    double guess = guess_s(t);
    if (guess <= CALIBRATION_S)
        return measure_time(t, out);
    char text[16];
    snprintf(out->why_not, sizeof out->why_not,
        "two micro-batches would take about %s here, above the %.0f s meant for it", gr_duration_text(guess, text),
        CALIBRATION_S);
    return GR_OK;
}

/* *fit: whether this machine has the memory, before any of it is taken. */
static gr_err visit_here(gr_dry_report *r, gr_trainer *t, gr_err *fit) {
    GR_TRY(gr_trainer_shape(t));
    GR_TRY(gr_trainer_survey(t));
    GR_TRY(gr_comm_agree(t->comm, take_shape(r, t)));
    take_largest(r, t);
    GR_TRY(gr_comm_agree(t->comm, at_worst(r, t)));
    GR_TRY(agree_figures(r, t));
    *fit = gr_forecast_fit_host(&t->memory, t->comm);
    if (!*fit)
        *fit = gr_comm_agree(t->comm, gr_forecast_fit_device(&t->memory, t->backend));
    if (!*fit)
        return calibrate(t, &r->time);
    snprintf(r->time.why_not, sizeof r->time.why_not, "it does not fit this machine");
    return GR_OK;
}

/* ---------------------------------------------------------------- the dry run */

static gr_err check_fit(const gr_dry_report *r, const gr_dry_run *o) {
    if (o->memory_gib > 0)
        return gr_forecast_fit(&r->memory, (uint64_t)fmin(o->memory_gib * 0x1p30, 0x1p63));
    return GR_OK;
}

static gr_err run_elsewhere(gr_dry_report *r, const gr_comm *comm, int n_rank, const gr_dry_run *o, FILE *out) {
    if (comm->rank[GR_WORLD] != 0)
        return GR_OK;
    if (r->n_absent)
        GR_TRY(check_all_present(r->config));
    GR_TRY(visit_ranks(r, n_rank));
    gr_dry_report_print(r, out);
    note_all_absent(r->config, out);
    return check_fit(r, o);
}

static gr_err run_here(gr_dry_report *r, gr_comm *comm, const gr_dry_run *o, FILE *out) {
    gr_trainer t = {.config = r->config, .comm = comm, .lock = -1};
    gr_err fit = GR_OK, e = visit_here(r, &t, &fit);
    if (!e && comm->rank[GR_WORLD] == 0)
        gr_dry_report_print(r, out);
    gr_comm_detach(comm, e);
    gr_trainer_close(&t);
    if (!e && o->memory_gib > 0)
        return gr_comm_agree(comm, comm->rank[GR_WORLD] == 0 ? check_fit(r, o) : GR_OK);
    if (e || fit)
        return e ? e : fit;
    return gr_comm_agree(comm, comm->rank[GR_WORLD] == 0 ? gr_forecast_fit_disk(r->config) : GR_OK);
}

/* Can this machine compute with the config's storage type? */
static bool has_products(const gr_config *c) {
    gr_backend *b;
    bool has = !gr_backend_open(&b, gr_config_backend_name(c), gr_config_dtype(c));
    gr_backend_close(b);
    return has;
}

gr_err gr_train_dry_run(const gr_config *config, gr_comm *comm, const gr_dry_run *o, FILE *out) {
    gr_dry_report r = {.config = config,
        .learned = config->routing.source == GR_SOURCE_LEARNED,
        .grouter = config->kind != GR_CONFIG_TRAIN};
    GR_TRY(gr_comm_agree(comm, gr_train_flops_get(config, &r.flops)));
    int n_rank = o->n_rank ? o->n_rank : comm->size[GR_WORLD];
    bool asked = o->n_rank || o->memory_gib > 0;
    r.has_products = true;
    if (comm->rank[GR_WORLD] == 0 && asked) {
        r.n_absent = note_all_absent(config, NULL);
        r.has_products = has_products(config);
    }
    int found[2] = {r.n_absent, r.has_products};
    GR_TRY(comm->bcast(comm, GR_WORLD, found, sizeof found, 0));
    r.n_absent = found[0];
    r.has_products = found[1];
    GR_TRY(gr_comm_agree(comm, gr_forecast_grouter(&r.router, config)));
    if (n_rank == comm->size[GR_WORLD] && r.n_absent == 0 && r.has_products)
        return run_here(&r, comm, o, out);
    return gr_comm_agree(comm, run_elsewhere(&r, comm, n_rank, o, out));
}
