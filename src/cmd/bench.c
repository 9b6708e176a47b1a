/* bench: parts of a step, measured. */
#include <string.h>

#include "bench_report.h"
#include "cmd.h"
#include "grouter/routes.h"

enum { ROUTES, PLACEMENT, EXPERTS, TOP_K, SEQ_LEN, WIDTH, WINDOWS, DTYPE, REPEAT, SEED, JSON, N_OPTION };
static const char *const option_name[N_OPTION] = {"--routes", "--placement", "--experts", "--top-k", "--seq-len",
    "--width", "--windows", "--dtype", "--repeat", "--seed", "--json"};

typedef struct bench_args {
    const char *what, *text[N_OPTION];
    gr_placement placement;
    gr_exchange_options o;
} bench_args;

/* ---------------------------------------------------------------- arguments */

static gr_err parse_u32(const bench_args *a, int option, uint64_t min, uint64_t max, uint32_t standard, uint32_t *out) {
    uint64_t n = standard;
    if (a->text[option])
        GR_TRY(gr_option_u64(option_name[option], a->text[option], min, max, &n));
    *out = (uint32_t)n;
    return GR_OK;
}

static gr_err parse_dtype(const char *text, gr_dtype *out) {
    *out = text && strcmp(text, "bf16") == 0 ? GR_BF16 : GR_F32;
    if (!text || *out == GR_BF16 || strcmp(text, "fp32") == 0)
        return GR_OK;
    return gr_fail(GR_USAGE, "--dtype: expected fp32 or bf16, got \"%s\"", text);
}

static gr_err parse_numbers(bench_args *a) {
    gr_exchange_options *o = &a->o;
    GR_TRY(parse_u32(a, EXPERTS, 1, GR_EXPERTS_MAX, 16, &o->E));
    GR_TRY(parse_u32(a, TOP_K, 1, o->E < GR_TOPK_MAX ? o->E : GR_TOPK_MAX, o->E < 2 ? o->E : 2, &o->K));
    GR_TRY(parse_u32(a, SEQ_LEN, 1, 1 << 20, 256, &o->T));
    GR_TRY(parse_u32(a, WIDTH, 1, 1 << 16, 128, &o->D));
    GR_TRY(parse_u32(a, WINDOWS, 1, 1 << 16, 8, &o->B));
    GR_TRY(parse_u32(a, REPEAT, 1, 100000, 50, &o->n_repeat));
    if (a->text[SEED])
        GR_TRY(gr_option_u64(option_name[SEED], a->text[SEED], 0, UINT64_MAX, &o->seed));
    return parse_dtype(a->text[DTYPE], &o->dtype);
}

static gr_err parse(int argc, char **argv, bench_args *a) {
    static const int of_uniform[] = {EXPERTS, TOP_K, SEQ_LEN};
    gr_option options[N_OPTION];
    int n_what = 0;
    for (int i = 0; i < N_OPTION; i++)
        options[i] = (gr_option){.name = option_name[i], .value = &a->text[i], .max = 1};
    GR_TRY(gr_options_parse(argc, argv, options, N_OPTION, &a->what, 1, &n_what));
    if (n_what == 0)
        return gr_fail(
            GR_USAGE, "bench: expected what to measure, exchange, got nothing; see grouter-train bench --help");
    if (strcmp(a->what, "exchange") != 0)
        return gr_fail(GR_USAGE, "bench: expected exchange as what to measure, got \"%s\"", a->what);
    a->o.routes = a->text[ROUTES];
    for (size_t i = 0; a->o.routes && i < sizeof of_uniform / sizeof *of_uniform; i++)
        if (a->text[of_uniform[i]])
            return gr_fail(GR_USAGE,
                "bench exchange: %s: expected only without --routes, whose table has its own; leave "
                "one of them out",
                option_name[of_uniform[i]]);
    if (a->text[PLACEMENT] && !a->o.routes)
        return gr_fail(
            GR_USAGE, "bench exchange: --placement: expected --routes too, the table that was placed, got none");
    for (int i = ROUTES; i <= PLACEMENT && a->text[JSON]; i++)
        if (a->text[i] && gr_path_same(a->text[JSON], a->text[i]))
            return gr_fail(GR_USAGE, "--json: expected another file than the input %s, got %s; choose another name",
                a->text[i], a->text[JSON]);
    return parse_numbers(a);
}

/* ---------------------------------------------------------------- the command */

static gr_err report(const bench_args *a, gr_out *json, const gr_exchange_report *r) {
    gr_exchange_print(&a->o, a->text[PLACEMENT], r);
    if (!json)
        return GR_OK;
    GR_TRY(gr_exchange_write(json, &a->o, a->text[PLACEMENT], r));
    return gr_out_commit(json);
}

static gr_err run_on(gr_comm *comm, bench_args *a) {
    bool first = comm->rank[GR_WORLD] == 0;
    gr_exchange_report r;
    gr_out *json = NULL;
    gr_err e = GR_OK;
    a->o.comm = comm;
    if (a->text[PLACEMENT])
        e = gr_placement_read(&a->placement, a->text[PLACEMENT]);
    a->o.placement = a->text[PLACEMENT] ? &a->placement : NULL;
    if (!e && a->text[JSON] && first) /* a place that cannot be written to shows before the work, not after it */
        e = gr_out_open(&json, a->text[JSON]);
    e = gr_comm_agree(comm, e);
    if (!e)
        e = gr_bench_exchange(&a->o, &r);
    if (!e)
        e = gr_comm_agree(comm, first ? report(a, json, &r) : GR_OK);
    gr_placement_close(&a->placement);
    gr_out_close(json);
    return e;
}

static gr_err run(int argc, char **argv) {
    bench_args a = {0};
    gr_comm *comm = NULL;
    GR_TRY(gr_comm_open(&comm, "auto"));
    gr_err err = gr_comm_agree(comm, parse(argc, argv, &a));
    if (!err)
        err = run_on(comm, &a);
    gr_comm_close(comm, err);
    return err;
}

const gr_command gr_cmd_bench = {
    .name = "bench",
    .summary = "measure parts of a step: the exchange of rows between ranks",
    .help =
        "usage: grouter-train bench exchange [--routes TABLE [--placement FILE] | --experts E --top-k K --seq-len T]\n"
        "                                    [--width D] [--windows B] [--dtype fp32|bf16] [--repeat N] [--seed S]\n"
        "                                    [--json FILE]\n"
        "       mpirun -n R grouter-train bench exchange ...   (2 ranks at least)\n"
        "\n"
        "Times dispatch and combine of one layer with experts, forward and the mirrored backward, without the "
        "experts'\n"
        "own work, on R ranks among which the experts are split. The same rows go the same way with the same code; "
        "what\n"
        "differs is what is known of their routes, and what a row stands for:\n"
        "\n"
        "  router   the layer's router chooses (product, top-k, softmax; in backward their gradients), then as counts\n"
        "  counts   routes are given in the layer: it sorts pairs by expert, exchanges how many come from whom, "
        "waits,\n"
        "           sends ids or gates with the rows\n"
        "  plan     routes were known before the step: only rows travel\n"
        "  pair     a row for each expert of a token on another rank\n"
        "  rank     a row for each other rank with experts of a token; their results come back as one sum\n"
        "\n"
        "Prints rows, bytes (MB: 10^6) and times (the slowest rank's, medians with quartiles), and what is saved from "
        "one to\n"
        "the next, as differences of runs that followed each other. Before, in every way, each row is recognised "
        "where\n"
        "it arrives, each sum is compared with plain loops, and bytes sent with those of the plan; a mismatch is 70.\n"
        "Times mean something while no more ranks than cores run, and nothing else.\n"
        "\n"
        "  --routes TABLE      windows of this route table; without it routes are uniform\n"
        "  --placement FILE    of that table, for R ranks: besides, experts where it puts them, and the same windows "
        "on\n"
        "                      the ranks that leave the fewest rows (batch), or for each rank windows of its own "
        "(corpus)\n"
        "  --experts E         experts (default 16)\n"
        "  --top-k K           experts per token (default 2)\n"
        "  --seq-len T         tokens per window (default 256)\n"
        "  --width D           numbers in a row, at least as many as experts (default 128)\n"
        "  --windows B         windows of a rank (default 8)\n"
        "  --dtype fp32|bf16   of the rows (default fp32)\n"
        "  --repeat N          runs of each (default 50), after some that are not timed\n"
        "  --seed S            of uniform routes, or of which windows of the table (default 0)\n"
        "  --json FILE         the figures once more\n"
        "\n"
        "example:\n"
        "  OMP_NUM_THREADS=1 mpirun -n 2 grouter-train bench exchange --experts 128 --top-k 8 --width 512\n",
    .run = run,
};
