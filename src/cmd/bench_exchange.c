/* bench exchange: dispatch and combine, measured. */
#include <string.h>

#include "bench.h"
#include "bench_exchange_report.h"
#include "cmd.h"
#include "grouter/routes.h"

enum { ROUTES, PLACEMENT, EXPERTS, TOP_K, SEQ_LEN, WIDTH, WINDOWS, DTYPE, REPEAT, SEED, JSON, N_OPTION };
static const char *const option_name[N_OPTION] = {"--routes", "--placement", "--experts", "--top-k", "--seq-len",
    "--width", "--windows", "--dtype", "--repeat", "--seed", "--json"};

typedef struct bench_args {
    const char *text[N_OPTION];
    gr_placement placement;
    gr_exchange_options o;
} bench_args;

/* ---------------------------------------------------------------- arguments */

static gr_err parse_u32(const bench_args *a, int option, uint32_t min, uint32_t max, uint32_t standard, uint32_t *out) {
    return gr_bench_u32_parse(option_name[option], a->text[option], min, max, standard, out);
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
    return gr_bench_dtype_parse(a->text[DTYPE], &o->dtype);
}

static gr_err parse(int argc, char **argv, bench_args *a) {
    static const int of_uniform[] = {EXPERTS, TOP_K, SEQ_LEN};
    gr_option options[N_OPTION];
    for (int i = 0; i < N_OPTION; i++)
        options[i] = (gr_option){.name = option_name[i], .value = &a->text[i], .max = 1};
    GR_TRY(gr_options_parse(argc, argv, options, N_OPTION, NULL, 0, NULL));
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

gr_err gr_cmd_bench_exchange(int argc, char **argv) {
    bench_args a = {0};
    gr_comm *comm = NULL;
    GR_TRY(gr_comm_open(&comm, "auto"));
    gr_err err = gr_comm_agree(comm, parse(argc, argv, &a));
    if (!err)
        err = run_on(comm, &a);
    gr_comm_close(comm, err);
    return err;
}
