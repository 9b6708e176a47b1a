/* bench layer: the experts of one layer with dispatch and combine, measured. */
#include <string.h>

#include "bench.h"
#include "cmd.h"
#include "grouter/routes.h"

enum {
    SHAPE,
    WIDTH,
    EXPERT_WIDTH,
    EXPERTS,
    TOP_K,
    TOKENS,
    CV,
    HOT,
    ROUTES,
    SAVE_ROUTES,
    BACKEND,
    EXPERT_KERNELS,
    DTYPE,
    REPEAT,
    SEED,
    JSON,
    CSV,
    N_OPTION
};
static const char *const option_name[N_OPTION] = {"--shape", "--width", "--expert-width", "--experts", "--top-k",
    "--tokens", "--cv", "--hot", "--routes", "--save-routes", "--backend", "--expert-kernels", "--dtype", "--repeat",
    "--seed", "--json", "--csv"};

typedef struct layer_args {
    const char *text[N_OPTION];
    gr_bench_shape shape;
    gr_layer_options o;
} layer_args;

/* ---------------------------------------------------------------- arguments */

static gr_err parse_u32(const layer_args *a, int option, uint32_t max, int64_t standard, uint32_t *out) {
    return gr_bench_u32_parse(option_name[option], a->text[option], 1, max, (uint32_t)standard, out);
}

/* One way to make routes at most; a table has experts and top-k of its own. */
static gr_err parse_load(layer_args *a) {
    static const int ways[] = {CV, HOT, ROUTES};
    static const gr_load_kind kinds[] = {GR_LOAD_SKEWED, GR_LOAD_HOT, GR_LOAD_TABLE};
    int given = -1;
    for (int i = 0; i < 3; i++) {
        if (!a->text[ways[i]])
            continue;
        if (given >= 0)
            return gr_fail(GR_USAGE, "bench layer: expected one of --cv, --hot and --routes, got %s and %s",
                option_name[ways[given]], option_name[ways[i]]);
        given = i;
        a->o.load = kinds[i];
    }
    if (a->text[CV])
        GR_TRY(gr_option_f64("--cv", a->text[CV], 0, 100, &a->o.cv));
    if (a->text[HOT])
        GR_TRY(gr_option_f64("--hot", a->text[HOT], 0, 4096, &a->o.hot));
    a->o.routes = a->text[ROUTES];
    a->o.save_routes = a->text[SAVE_ROUTES];
    if (a->o.routes && (a->text[EXPERTS] || a->text[TOP_K] || a->text[SAVE_ROUTES]))
        return gr_fail(GR_USAGE,
            "bench layer: %s: expected only without --routes, whose table has its own; leave one of them out",
            a->text[EXPERTS] ? "--experts"
            : a->text[TOP_K] ? "--top-k"
                             : "--save-routes");
    if (a->o.routes && a->text[JSON] && gr_path_same(a->text[JSON], a->o.routes))
        return gr_fail(GR_USAGE, "--json: expected another file than the input %s, got %s; choose another name",
            a->o.routes, a->text[JSON]);
    if (a->o.routes && a->text[CSV] && gr_path_same(a->text[CSV], a->o.routes))
        return gr_fail(GR_USAGE, "--csv: expected another file than the input %s, got %s; choose another name",
            a->o.routes, a->text[CSV]);
    return GR_OK;
}

static gr_err parse_numbers(layer_args *a) {
    gr_backend *b;
    GR_TRY(gr_backend_describe(&b, a->o.backend, a->o.dtype));
    const bool on_host = b->host_memory;
    gr_backend_close(b);
    GR_TRY(gr_bench_shape_find(a->text[SHAPE] ? a->text[SHAPE] : on_host ? "small" : "mini-qwen3", &a->shape));
    GR_TRY(parse_u32(a, WIDTH, 1 << 16, a->shape.D, &a->o.D));
    GR_TRY(parse_u32(a, EXPERT_WIDTH, 1 << 16, a->shape.F, &a->o.F));
    GR_TRY(parse_u32(a, EXPERTS, GR_EXPERTS_MAX, a->shape.E, &a->o.E));
    const uint32_t most = a->o.E < GR_TOPK_MAX ? a->o.E : GR_TOPK_MAX;
    GR_TRY(parse_u32(a, TOP_K, most, a->shape.K < most ? a->shape.K : most, &a->o.K));
    GR_TRY(parse_u32(a, TOKENS, 1 << 24, on_host ? 512 : 8192, &a->o.N));
    GR_TRY(parse_u32(a, REPEAT, 100000, 20, &a->o.n_repeat));
    return a->text[SEED] ? gr_option_u64("--seed", a->text[SEED], 0, UINT64_MAX, &a->o.seed) : GR_OK;
}

static gr_err parse(int argc, char **argv, layer_args *a) {
    gr_option options[N_OPTION];
    for (int i = 0; i < N_OPTION; i++)
        options[i] = (gr_option){.name = option_name[i], .value = &a->text[i], .max = 1};
    GR_TRY(gr_options_parse(argc, argv, options, N_OPTION, NULL, 0, NULL));
    a->o.backend = a->text[BACKEND] ? a->text[BACKEND] : "auto";
    a->o.expert_kernels = a->text[EXPERT_KERNELS] ? a->text[EXPERT_KERNELS] : "auto";
    GR_TRY(gr_bench_dtype_parse(a->text[DTYPE], &a->o.dtype));
    GR_TRY(parse_load(a));
    return parse_numbers(a);
}

/* ---------------------------------------------------------------- for people */

static void print_head(const layer_args *a, const gr_layer_report *r) {
    const gr_layer_options *o = &a->o;
    printf("experts of one layer: backend %s, %s, %u rank%s x %d threads, %u tokens a rank, D %u, F %u, %u of %u "
           "experts\nroutes: ",
        r->backend, gr_bench_dtype_text(o->dtype), r->R, r->R == 1 ? "" : "s", gr_thread_count(), r->N, o->D, o->F,
        r->K, r->E);
    if (o->routes)
        gr_print_plain(stdout, o->routes, strlen(o->routes));
    else
        printf("%s, seed %llu", gr_load_kind_name(o->load), (unsigned long long)o->seed);
    printf("; loads of the experts: CV %.3f, fullest %.2f x mean; fullest rank %.3f x mean; %llu pairs, %.4f rows sent "
           "per token\n",
        r->load_cv, r->load_max, r->imbalance, (unsigned long long)r->n_pair,
        (double)r->rows / ((double)r->R * (double)r->N));
    printf("peak: %.1f GFLOP/s, the best matrix product of all ranks together\n", r->peak_flops * 1e-9);
    printf("checked: sampled rows of out and dx and elements of dW13 and dW2 against double, error %.1e\n\n", r->error);
    printf("%-10s%-26s%12s%12s%10s   %s\n", "", "ms [quartiles]", "GFLOP", "GFLOP/s", "of peak", "FLOP");
}

static void print_part(const gr_layer_report *r, const char *name, const gr_bench_time *t, double flops, int factor) {
    const double rate = flops / (t->median_ms / 1e3);
    printf("%-10s", name);
    gr_bench_time_print(t);
    printf(
        "%12.3f%12.2f%8.1f %%   %d x pairs x D x F\n", flops * 1e-9, rate * 1e-9, 100 * rate / r->peak_flops, factor);
}

static void print_figures(const layer_args *a, const gr_layer_report *r) {
    print_head(a, r);
    print_part(r, "forward", &r->forward, r->flops[0], 6);
    print_part(r, "backward", &r->backward, r->flops[1], 12);
    print_part(r, "both", &r->both, r->flops[0] + r->flops[1], 18);
    printf(
        "\nmemory of the rank with most: %.1f MB (10^6), of which a layer keeps %.1f MB until backward (its input and "
        "h: (N + M) x D + P x 2 F)\n",
        (double)r->bytes * 1e-6, (double)r->bytes_kept * 1e-6);
    printf("plan: %.3f [%.3f, %.3f] ms, once for all layers of a micro-batch and ahead of it; in no row above\n",
        r->plan.median_ms, r->plan.low_ms, r->plan.high_ms);
}

/* ---------------------------------------------------------------- for programs */

enum { HEAD = 30, COLUMNS = 7, ROWS = 3 };

static gr_err write_figures(const layer_args *a, const gr_layer_report *r, bench_outputs *outputs) {
    const gr_layer_options *o = &a->o;
    const bench_field head[HEAD] = {{"bench", "layer", 0}, {"backend", r->backend, 0},
        {"expert_kernels", o->expert_kernels, 0}, {"dtype", gr_bench_dtype_text(o->dtype), 0}, {"ranks", NULL, r->R},
        {"threads", NULL, gr_thread_count()}, {"shape", a->text[SHAPE] ? a->text[SHAPE] : a->shape.name, 0},
        {"tokens_per_rank", NULL, r->N}, {"width", NULL, o->D}, {"expert_width", NULL, o->F}, {"experts", NULL, r->E},
        {"top_k", NULL, r->K}, {"load", gr_load_kind_name(o->load), 0}, {"routes", o->routes ? o->routes : "", 0},
        {"repeats", NULL, o->n_repeat}, {"seed", NULL, (double)o->seed}, {"load_cv", NULL, r->load_cv},
        {"load_max", NULL, r->load_max}, {"imbalance", NULL, r->imbalance}, {"pairs", NULL, (double)r->n_pair},
        {"rows_sent", NULL, (double)r->rows}, {"peak_flops_per_s", NULL, r->peak_flops},
        {"bytes", NULL, (double)r->bytes}, {"bytes_kept", NULL, (double)r->bytes_kept},
        {"plan_ms", NULL, r->plan.median_ms}, {"error", NULL, r->error}, {"norm_out", NULL, r->norm_out},
        {"norm_dx", NULL, r->norm_dx}, {"norm_dw13", NULL, r->norm_dw13}, {"norm_dw2", NULL, r->norm_dw2}};
    static const char *const name[ROWS] = {"forward", "backward", "both"};
    const gr_bench_time *time[ROWS] = {&r->forward, &r->backward, &r->both};
    const double flops[ROWS] = {r->flops[0], r->flops[1], r->flops[0] + r->flops[1]};
    bench_field field[ROWS * COLUMNS];
    for (int i = 0; i < ROWS; i++) {
        const double rate = flops[i] / (time[i]->median_ms / 1e3);
        const bench_field row[COLUMNS] = {{"part", name[i], 0}, {"median_ms", NULL, time[i]->median_ms},
            {"low_ms", NULL, time[i]->low_ms}, {"high_ms", NULL, time[i]->high_ms}, {"flops", NULL, flops[i]},
            {"tflops_per_s", NULL, rate * 1e-12}, {"share", NULL, rate / r->peak_flops}};
        memcpy(field + i * COLUMNS, row, sizeof row);
    }
    const bench_table t = {
        .rows = "parts", .head = head, .n_head = HEAD, .field = field, .n_row = ROWS, .n_column = COLUMNS};
    return gr_bench_outputs_write(outputs, &t);
}

static gr_err report(const layer_args *a, const gr_layer_report *r, bench_outputs *outputs) {
    print_figures(a, r);
    return write_figures(a, r, outputs);
}

/* ---------------------------------------------------------------- the command */

static gr_err run_on(gr_comm *comm, layer_args *a) {
    const bool first = comm->rank[GR_WORLD] == 0;
    gr_layer_report r;
    bench_outputs outputs = {0};
    a->o.comm = comm;
    gr_err e = gr_comm_agree(comm, first ? gr_bench_outputs_open(&outputs, a->text[JSON], a->text[CSV]) : GR_OK);
    if (!e)
        e = gr_bench_layer(&a->o, &r);
    if (!e)
        e = gr_comm_agree(comm, first ? report(a, &r, &outputs) : GR_OK);
    gr_bench_outputs_close(&outputs);
    return e;
}

gr_err gr_cmd_bench_layer(int argc, char **argv) {
    layer_args a = {0};
    gr_comm *comm = NULL;
    GR_TRY(gr_comm_open(&comm, "auto"));
    gr_err e = gr_comm_agree(comm, parse(argc, argv, &a));
    if (!e)
        e = run_on(comm, &a);
    gr_comm_close(comm, e);
    return e;
}
