/* bench kernels: every op of a backend, measured. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "cmd.h"
#include "grouter/config.h"

enum { SHAPE, CONFIG, TOKENS, ONLY, BACKEND, DTYPE, REPEAT, SEED, JSON, CSV, N_OPTION };
static const char *const option_name[N_OPTION] = {
    "--shape", "--config", "--tokens", "--only", "--backend", "--dtype", "--repeat", "--seed", "--json", "--csv"};

typedef struct kernels_args {
    const char *text[N_OPTION];
    gr_kernels_options o;
} kernels_args;

/* ---------------------------------------------------------------- arguments */

/* Sizes of a language model's layers, and what it computes with. */
static gr_err take_config(kernels_args *a) {
    void *memory;
    GR_TRY(gr_alloc(&memory, 1, sizeof(gr_config), "config"));
    const gr_config *c = memory;
    const gr_model_config *m = &c->model;
    gr_err e = gr_config_load(memory, GR_CONFIG_TRAIN, a->text[CONFIG], NULL, 0);
    a->o.shape = (gr_bench_shape){.name = a->text[CONFIG],
        .T = c->data.seq_len,
        .D = m->hidden_size,
        .F = m->moe_intermediate_size,
        .E = m->num_experts,
        .K = m->num_experts_per_tok,
        .H = m->num_attention_heads,
        .H_kv = m->num_key_value_heads,
        .hd = m->head_dim,
        .V = m->vocab_size};
    a->o.N = (int64_t)c->train.micro_batch_windows * c->data.seq_len;
    if (!e && !a->text[BACKEND])
        a->o.backend = gr_config_backend_name(c);
    if (!e && !a->text[DTYPE])
        a->o.dtype = gr_config_dtype(c);
    free(memory);
    return e;
}

/* What suits the backend. Windows are no longer than all tokens together. */
static gr_err take_shape(kernels_args *a) {
    gr_backend *b;
    GR_TRY(gr_backend_describe(&b, a->o.backend, a->o.dtype));
    const bool on_host = b->host_memory;
    gr_backend_close(b);
    a->o.N = on_host ? 512 : 8192;
    const char *standard = on_host ? "small" : "mini-qwen3";
    return gr_bench_shape_find(a->text[SHAPE] ? a->text[SHAPE] : standard, &a->o.shape);
}

static gr_err parse(int argc, char **argv, kernels_args *a) {
    gr_option options[N_OPTION];
    for (int i = 0; i < N_OPTION; i++)
        options[i] = (gr_option){.name = option_name[i], .value = &a->text[i], .max = 1};
    GR_TRY(gr_options_parse(argc, argv, options, N_OPTION, NULL, 0, NULL));
    a->o.backend = a->text[BACKEND] ? a->text[BACKEND] : "auto";
    a->o.only = a->text[ONLY];
    GR_TRY(gr_bench_dtype_parse(a->text[DTYPE], &a->o.dtype));
    GR_TRY(gr_bench_u32_parse("--repeat", a->text[REPEAT], 1, 50, 0, &a->o.n_repeat));
    if (a->text[SEED])
        GR_TRY(gr_option_u64("--seed", a->text[SEED], 0, UINT64_MAX, &a->o.seed));
    if (a->text[CONFIG] && a->text[SHAPE])
        return gr_fail(GR_USAGE, "bench kernels: expected --shape or --config, got both; leave one of them out");
    GR_TRY(a->text[CONFIG] ? take_config(a) : take_shape(a));
    uint32_t tokens = 0;
    GR_TRY(gr_bench_u32_parse("--tokens", a->text[TOKENS], 1, 1 << 24, (uint32_t)a->o.N, &tokens));
    a->o.N = tokens;
    if (!a->text[CONFIG] && a->o.shape.T > a->o.N)
        a->o.shape.T = a->o.N;
    return GR_OK;
}

/* ---------------------------------------------------------------- for people */

static void print_head(const kernels_args *a, const gr_kernels_report *r) {
    const gr_bench_shape *s = &a->o.shape;
    printf("ops of backend %s, %s: %d rank%s x %d threads, shape ", r->backend, gr_bench_dtype_text(a->o.dtype),
        a->o.comm->size[GR_WORLD], a->o.comm->size[GR_WORLD] == 1 ? "" : "s", gr_thread_count());
    gr_print_plain(stdout, s->name, strlen(s->name));
    printf(" with %lld tokens, seed %llu\n", (long long)a->o.N, (unsigned long long)a->o.seed);
    printf("peak: matrix product %.1f GFLOP/s, copy %.2f GB/s read and written; an empty op takes %.1f us, which is in "
           "every time\n",
        r->peak_flops * 1e-9, r->copy_bytes * 1e-9, r->launch_ms * 1e3);
    printf("checked: sampled results of every op against double, error as ||got - expected|| / ||expected||\n\n");
    printf("%-20s %-14s %-42s %-30s %9s %8s  %-13s %8s\n", "op", "of", "sizes", "us [quartiles]", "GFLOP/s", "GB/s",
        "share of peak", "error");
}

static void print_kernel(const gr_kernel_figures *f) {
    char time[64], rate[32] = "-";
    const double us = f->time.median_ms * 1e3;
    const int digits = us < 100 ? 1 : 0;
    snprintf(time, sizeof time, "%.*f [%.*f, %.*f]", digits, us, digits, f->time.low_ms * 1e3, digits,
        f->time.high_ms * 1e3);
    if (f->flops > 0)
        snprintf(rate, sizeof rate, "%.2f", f->flops / us * 1e-3);
    printf("%-20s %-14s %-42s %-30s %9s %8.2f  %5.1f %% %-5s %8.1e\n", f->op, f->variant, f->shape, time, rate,
        f->bytes / us * 1e-3, 100 * f->share, f->compute ? "GEMM" : "copy", f->error);
}

static void print_formulas(const gr_kernels_report *r) {
    printf(
        "\nFLOPs and bytes of one run, s bytes of a stored number, N tokens, P pairs, G key/value heads of width h:\n");
    for (int i = 0; i < r->n; i++) {
        const gr_kernel_figures *f = &r->kernel[i];
        const bool again = i > 0 && strcmp(f->op, f[-1].op) == 0 &&
                           strcmp(f->bytes_formula, f[-1].bytes_formula) == 0 &&
                           strcmp(f->flops_formula, f[-1].flops_formula) == 0;
        if (!again)
            printf("  %-20s %-14s %-10s %s\n", f->op, f->variant, *f->flops_formula ? f->flops_formula : "-",
                f->bytes_formula);
    }
}

/* ---------------------------------------------------------------- for programs */

enum { HEAD = 12, COLUMNS = 18 };

static void fill_row(const gr_kernel_figures *f, bench_field row[COLUMNS]) {
    const double s = f->time.median_ms / 1e3;
    const bench_field all[COLUMNS] = {{"op", f->op, 0}, {"variant", f->variant, 0}, {"sizes", f->shape, 0},
        {"median_us", NULL, f->time.median_ms * 1e3}, {"low_us", NULL, f->time.low_ms * 1e3},
        {"high_us", NULL, f->time.high_ms * 1e3}, {"best_us", NULL, f->best_ms * 1e3}, {"runs", NULL, f->n_run},
        {"flops", NULL, f->flops}, {"bytes", NULL, f->bytes}, {"tflops_per_s", NULL, f->flops / s * 1e-12},
        {"gb_per_s", NULL, f->bytes / s * 1e-9}, {"share", NULL, f->share},
        {"share_of", f->compute ? "gemm" : "copy", 0}, {"error", NULL, f->error},
        {"best_tflops_per_s", NULL, f->flops / f->best_ms * 1e-9}, {"flops_formula", f->flops_formula, 0},
        {"bytes_formula", f->bytes_formula, 0}};
    memcpy(row, all, sizeof all);
}

static gr_err write_figures(const kernels_args *a, const gr_kernels_report *r, bench_outputs *outputs) {
    const gr_bench_shape *s = &a->o.shape;
    const bench_field head[HEAD] = {{"bench", "kernels", 0}, {"backend", r->backend, 0},
        {"dtype", gr_bench_dtype_text(a->o.dtype), 0}, {"shape", s->name, 0}, {"tokens", NULL, (double)a->o.N},
        {"seq_len", NULL, (double)s->T}, {"ranks", NULL, a->o.comm->size[GR_WORLD]},
        {"threads", NULL, gr_thread_count()}, {"seed", NULL, (double)a->o.seed},
        {"peak_flops_per_s", NULL, r->peak_flops}, {"copy_bytes_per_s", NULL, r->copy_bytes},
        {"launch_us", NULL, r->launch_ms * 1e3}};
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)r->n * COLUMNS + 1, sizeof(bench_field), "figures"));
    bench_field *field = memory;
    for (int i = 0; i < r->n; i++)
        fill_row(&r->kernel[i], field + i * COLUMNS);
    const bench_table t = {
        .rows = "kernels", .head = head, .n_head = HEAD, .field = field, .n_row = r->n, .n_column = COLUMNS};
    gr_err e = gr_bench_outputs_write(outputs, &t);
    free(memory);
    return e;
}

static gr_err report(const kernels_args *a, const gr_kernels_report *r, bench_outputs *outputs) {
    print_head(a, r);
    for (int i = 0; i < r->n; i++)
        print_kernel(&r->kernel[i]);
    print_formulas(r);
    return write_figures(a, r, outputs);
}

/* ---------------------------------------------------------------- the command */

static gr_err run_on(gr_comm *comm, kernels_args *a) {
    const bool first = comm->rank[GR_WORLD] == 0;
    gr_kernels_report r;
    bench_outputs outputs = {0};
    a->o.comm = comm;
    gr_err e = gr_comm_agree(comm, first ? gr_bench_outputs_open(&outputs, a->text[JSON], a->text[CSV]) : GR_OK);
    if (!e)
        e = gr_bench_kernels(&a->o, &r);
    if (!e)
        e = gr_comm_agree(comm, first ? report(a, &r, &outputs) : GR_OK);
    gr_bench_outputs_close(&outputs);
    return e;
}

gr_err gr_cmd_bench_kernels(int argc, char **argv) {
    kernels_args a = {0};
    gr_comm *comm = NULL;
    GR_TRY(gr_comm_open(&comm, "auto"));
    gr_err e = gr_comm_agree(comm, parse(argc, argv, &a));
    if (!e)
        e = run_on(comm, &a);
    gr_comm_close(comm, e);
    return e;
}
