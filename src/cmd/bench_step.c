/* bench step: whole training steps of a config, measured. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "bench/synthetic.h"
#include "bench/times.h"
#include "cmd.h"
#include "grouter/train.h"
#include "session.h"

enum { SET_MAX = 256 };

typedef struct step_args {
    const char *config, *set[SET_MAX], *steps, *warm, *json, *csv, *plans;
    int n_set;
    uint32_t n_step, n_warm;
} step_args;

/* Phases of a step in the order they are printed; the rest of a step is losses, loads and zeroed gradients. */
enum { STEP, PREPARE, FORWARD, BACKWARD, EXCHANGE, REDUCE, OPTIMIZER, N_PHASE };
static const char *const phase_name[N_PHASE] = {
    "step", "plan of the next", "forward", "backward", "exchange", "reduce", "optimizer"};
static const char *const phase_key[N_PHASE] = {
    "step", "prepare", "forward", "backward", "exchange", "reduce", "optimizer"};

typedef struct step_figures {
    bool synthetic;
    gr_train_measured on;
    gr_bench_time phase[N_PHASE];
    double bytes_sent, loss_first, loss_last;
} step_figures;

static gr_err parse(int argc, char **argv, step_args *a) {
    int n = 0;
    const gr_option options[] = {{"--set", a->set, SET_MAX, &a->n_set}, {"--steps", &a->steps, 1, NULL},
        {"--warm", &a->warm, 1, NULL}, {"--json", &a->json, 1, NULL}, {"--csv", &a->csv, 1, NULL},
        {"--tune-products", &a->plans, 1, NULL}};
    GR_TRY(gr_options_parse(argc, argv, options, sizeof options / sizeof *options, &a->config, 1, &n));
    if (n == 0)
        return gr_fail(GR_USAGE, "bench step: expected a config file, got none; see `grouter-train bench --help`");
    GR_TRY(gr_bench_u32_parse("--steps", a->steps, 1, 100000, 10, &a->n_step));
    return gr_bench_u32_parse("--warm", a->warm, a->plans ? 1 : 0, 1000, 2, &a->n_warm); /* which tune */
}

/* ---------------------------------------------------------------- figures */

static double phase_ms(const gr_step_record *r, int phase) {
    const double ms[N_PHASE] = {
        r->step_ms, r->prepare_ms, r->forward_ms, r->backward_ms, r->exchange_ms, r->reduce_ms, r->optimizer_ms};
    return isfinite(ms[phase]) ? ms[phase] : 0;
}

/* ms[n] is room. */
static void summarise(step_figures *f, const gr_step_record *record, uint32_t n, double *ms) {
    for (int phase = 0; phase < N_PHASE; phase++) {
        for (uint32_t i = 0; i < n; i++)
            ms[i] = phase_ms(&record[i], phase);
        f->phase[phase] = gr_bench_quartiles(ms, n);
    }
    f->bytes_sent = record[n - 1].bytes_sent;
    f->loss_last = record[n - 1].loss;
}

static double tokens_per_s(const step_figures *f) {
    return f->on.tokens_per_step / (f->phase[STEP].median_ms / 1e3);
}

/* ---------------------------------------------------------------- for people */

static void print_figures(const step_args *a, const step_figures *f) {
    const gr_train_measured *on = &f->on;
    const double tokens = tokens_per_s(f), flops = tokens * on->flops_per_token;
    printf("whole steps of ");
    gr_print_plain(stdout, a->config, strlen(a->config));
    printf(": backend %s, %s, %d rank%s x %d threads, expert parallel %d, %s\n", on->backend,
        gr_bench_dtype_text(on->dtype), on->n_rank, on->n_rank == 1 ? "" : "s", gr_thread_count(), on->R_ep,
        f->synthetic ? "synthetic tokens and uniform routes" : "the config's data");
    printf(
        "model: %lld parameters, %lld active per token; %.4g FLOP per token = 6 x active + 12 x L x H x head_dim x T / "
        "2\n",
        (long long)on->n_parameter, (long long)on->n_active, on->flops_per_token);
    printf("peak: %.1f GFLOP/s, the best matrix product of all ranks together, measured before the steps\n",
        on->peak_flops * 1e-9);
    printf("checked: finite losses and gradients, no step skipped; loss %.4f in the first step, %.4f in the last\n\n",
        f->loss_first, f->loss_last);
    printf("%.0f tokens/s = %.0f tokens of a step / its median\n", tokens, on->tokens_per_step);
    printf("%.2f GFLOP/s = tokens/s x FLOP per token, %.1f %% of peak\n", flops * 1e-9, 100 * flops / on->peak_flops);
    printf("%.1f MB (10^6) of memory measured in rank 0, %.1f predicted; %.3f MB sent by dispatch and combine, all "
           "ranks\n\n",
        (double)on->bytes_measured * 1e-6, (double)on->bytes_predicted * 1e-6,
        isfinite(f->bytes_sent) ? f->bytes_sent * 1e-6 : 0);
    printf("%-18s%-26s%8s   of %u steps after %u, rank 0\n", "", "ms [quartiles]", "of step", a->n_step, a->n_warm);
    for (int i = 0; i < N_PHASE; i++) {
        printf("%-18s", phase_name[i]);
        gr_bench_time_print(&f->phase[i]);
        printf("%6.1f %%\n", 100 * f->phase[i].median_ms / f->phase[STEP].median_ms);
    }
}

/* ---------------------------------------------------------------- for programs */

enum { HEAD = 22, COLUMNS = 4 };

static gr_err write_figures(const step_args *a, const step_figures *f, bench_outputs *outputs) {
    const gr_train_measured *on = &f->on;
    const double tokens = tokens_per_s(f), flops = tokens * on->flops_per_token;
    const bench_field head[HEAD] = {{"bench", "step", 0}, {"config", a->config, 0}, {"backend", on->backend, 0},
        {"dtype", gr_bench_dtype_text(on->dtype), 0}, {"ranks", NULL, on->n_rank}, {"threads", NULL, gr_thread_count()},
        {"expert_parallel", NULL, on->R_ep}, {"synthetic", NULL, f->synthetic}, {"steps", NULL, a->n_step},
        {"parameters", NULL, (double)on->n_parameter}, {"active", NULL, (double)on->n_active},
        {"flops_per_token", NULL, on->flops_per_token}, {"tokens_per_step", NULL, on->tokens_per_step},
        {"tokens_per_s", NULL, tokens}, {"model_flops_per_s", NULL, flops}, {"peak_flops_per_s", NULL, on->peak_flops},
        {"share", NULL, flops / on->peak_flops}, {"bytes_measured", NULL, (double)on->bytes_measured},
        {"bytes_predicted", NULL, (double)on->bytes_predicted}, {"bytes_sent", NULL, f->bytes_sent},
        {"loss_first", NULL, f->loss_first}, {"loss_last", NULL, f->loss_last}};
    bench_field field[N_PHASE * COLUMNS];
    for (int i = 0; i < N_PHASE; i++) {
        const gr_bench_time *t = &f->phase[i];
        const bench_field row[COLUMNS] = {{"phase", phase_key[i], 0}, {"median_ms", NULL, t->median_ms},
            {"low_ms", NULL, t->low_ms}, {"high_ms", NULL, t->high_ms}};
        memcpy(field + i * COLUMNS, row, sizeof row);
    }
    const bench_table t = {
        .rows = "phases", .head = head, .n_head = HEAD, .field = field, .n_row = N_PHASE, .n_column = COLUMNS};
    return gr_bench_outputs_write(outputs, &t);
}

static gr_err report(const step_args *a, const step_figures *f, bench_outputs *outputs) {
    print_figures(a, f);
    return write_figures(a, f, outputs);
}

/* ---------------------------------------------------------------- the command */

/* Steps that are not counted come first. */
static gr_err measure(gr_session *s, const step_args *a, gr_out *plans, step_figures *f) {
    gr_config *c = s->config;
    const size_t n = (size_t)a->n_warm + a->n_step;
    const gr_train_tuning tuning = {.n_step = a->plans ? a->n_warm : 0, .out = plans};
    void *memory;
    c->train.steps = (int64_t)n;
    c->data.n_valid = 0;
    GR_TRY(gr_comm_agree(s->comm, gr_alloc(&memory, n, sizeof(gr_step_record) + sizeof(double), "records of steps")));
    gr_step_record *record = memory;
    gr_err e = gr_train_measure(c, s->comm, &tuning, record, &f->on);
    if (!e) {
        f->loss_first = record[0].loss;
        summarise(f, record + a->n_warm, a->n_step, (double *)(record + n));
    }
    free(memory);
    return e;
}

/* What rank 0 writes. */
typedef struct step_outputs {
    bench_outputs figures;
    gr_out *plans;
} step_outputs;

static gr_err open_outputs(step_outputs *o, const gr_session *s, const step_args *a) {
    const char *plans = s->config->parallel.product_plans;
    if (a->plans && *plans)
        return gr_fail(GR_CONFIG,
            "--tune-products: expected parallel.product_plans to be none, since products of a file are not timed, got "
            "%s; add --set parallel.product_plans=",
            plans);
    if (s->comm->rank[GR_WORLD] != 0)
        return GR_OK;
    GR_TRY(gr_bench_outputs_open(&o->figures, a->json, a->csv));
    return a->plans ? gr_out_open(&o->plans, a->plans) : GR_OK;
}

/* Of rank 0. */
static gr_err write_outputs(step_outputs *o, const step_args *a, const step_figures *f) {
    if (o->plans)
        GR_TRY(gr_out_commit(o->plans));
    return report(a, f, &o->figures);
}

static gr_err run_on(gr_session *s, const step_args *a) {
    const bool first = s->comm->rank[GR_WORLD] == 0;
    step_outputs outputs = {0};
    gr_synthetic data = {0};
    step_figures f = {0};
    gr_err e = gr_comm_agree(s->comm, open_outputs(&outputs, s, a));
    if (!e)
        e = gr_comm_agree(s->comm, gr_config_check_ranks(s->config, s->comm->size[GR_WORLD]));
    if (!e)
        e = gr_synthetic_open(&data, s->config, s->comm);
    f.synthetic = *data.folder;
    if (!e)
        e = measure(s, a, outputs.plans, &f);
    if (!e)
        e = gr_comm_agree(s->comm, first ? write_outputs(&outputs, a, &f) : GR_OK);
    gr_synthetic_close(&data, s->comm);
    gr_bench_outputs_close(&outputs.figures);
    gr_out_close(outputs.plans);
    return e;
}

gr_err gr_cmd_bench_step(int argc, char **argv) {
    step_args a = {0};
    gr_session s;
    GR_TRY(parse(argc, argv, &a));
    gr_err e = gr_session_open(&s, GR_CONFIG_TRAIN, a.config, a.set, a.n_set);
    if (!e)
        e = run_on(&s, &a);
    return gr_session_close(&s, e);
}
