/* bench_exchange_report.c: the figures of `bench exchange`, for people and for programs. */
#include "bench_exchange_report.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "grouter/json.h"

/* ---------------------------------------------------------------- for people */

static void print_head(const gr_exchange_options *o, const char *placement, const gr_exchange_report *r) {
    printf("exchange of one layer: %" PRIu32 " ranks x %d threads, %" PRIu32 " of %" PRIu32 " experts, %" PRIu32
           " tokens a rank in windows of %" PRIu32 ", rows of %" PRIu32 " x %s\nroutes: ",
        r->R, gr_thread_count(), r->K, r->E, r->N, r->T, o->D, gr_bench_dtype_text(o->dtype));
    if (o->routes)
        gr_print_plain(stdout, o->routes, strlen(o->routes));
    else
        printf("uniform, seed %" PRIu64, o->seed);
    if (placement) {
        printf(", placed by ");
        gr_print_plain(stdout, placement, strlen(placement));
    }
    printf("\nchecked: every row and sum of every way, bytes sent = bytes of the plan\n\n");
    printf("%-8s%-22s%10s%10s%10s%10s  %-26s%-26s%-26s%6s\n", "", "", "rows per", "rows of", "MB fwd", "MB bwd",
        "forward", "backward", "both", "");
    printf("%-8s%-22s%10s%10s%10s%10s  %-26s%-26s%-26s%6s\n", "routes", "a row per", "token", "a rank", "of a rank",
        "of a rank", "ms [quartiles]", "ms [quartiles]", "ms [quartiles]", "GB/s");
}

static void print_way(const gr_exchange_report *r, gr_exchange_way w) {
    const gr_exchange_figures *f = &r->way[w];
    const double R = r->R, bytes = (double)(f->bytes[0] + f->bytes[1]) / R;
    printf("%-8s%-22s%10.4f%10.0f%10.3f%10.3f  ", gr_exchange_way_routes(w), gr_exchange_way_row(w),
        (double)f->rows / (R * r->N), (double)f->rows / R, (double)f->bytes[0] / R / 1e6,
        (double)f->bytes[1] / R / 1e6);
    gr_bench_time_print(&f->forward);
    gr_bench_time_print(&f->backward);
    gr_bench_time_print(&f->both);
    printf("%6.2f\n", bytes / 1e6 / f->both.median_ms);
}

static void print_gain(const gr_exchange_report *r, const gr_exchange_gain *g) {
    printf("  %-32s", g->name);
    gr_bench_time_print(&g->both);
    printf("%7.1f %% of the time of routes by %s, a row per %s\n",
        100 * g->both.median_ms / r->way[g->from].both.median_ms, gr_exchange_way_routes(g->from),
        gr_exchange_way_row(g->from));
}

void gr_exchange_print(const gr_exchange_options *o, const char *placement, const gr_exchange_report *r) {
    print_head(o, placement, r);
    for (int w = 0; w < GR_N_EXCHANGE_WAY; w++)
        if (r->way[w].measured)
            print_way(r, (gr_exchange_way)w);
    printf("\nuniform routes: %.4f rows per token with a row per rank, %.4f with a row per pair\n", r->uniform,
        (double)r->K * (r->R - 1) / r->R);
    printf("plan: %.3f [%.3f, %.3f] ms, once for all layers of a micro-batch and ahead of it; in no row above\n",
        r->plan.median_ms, r->plan.low_ms, r->plan.high_ms);
    printf(
        "\nsaved in a layer, forward and backward: median of %" PRIu32 " differences [quartiles], ms\n", o->n_repeat);
    for (int i = 0; i < GR_EXCHANGE_GAINS; i++)
        if (r->gain[i].measured)
            print_gain(r, &r->gain[i]);
}

/* ---------------------------------------------------------------- for programs */

static gr_err write_time(gr_out *out, const char *name, const gr_bench_time *t) {
    return gr_out_printf(
        out, ", \"%s\": {\"median\": %.6g, \"low\": %.6g, \"high\": %.6g}", name, t->median_ms, t->low_ms, t->high_ms);
}

static gr_err write_path(gr_out *out, const char *name, const char *path) {
    char *escaped;
    if (!path)
        return gr_out_printf(out, "  \"%s\": null,\n", name);
    GR_TRY(gr_alloc((void **)&escaped, 6 * strlen(path) + 1, 1, "text"));
    gr_err e = gr_out_printf(out, "  \"%s\": \"%s\",\n", name, gr_json_escape(path, escaped));
    free(escaped);
    return e;
}

static gr_err write_way(gr_out *out, const gr_exchange_report *r, gr_exchange_way w, const char *before) {
    const gr_exchange_figures *f = &r->way[w];
    GR_TRY(gr_out_printf(out,
        "%s\n    {\"routes\": \"%s\", \"row\": \"%s\", \"rows\": %" PRIu64 ", \"rows_max\": %" PRIu64
        ", \"bytes_forward\": %" PRIu64 ", \"bytes_backward\": %" PRIu64,
        before, gr_exchange_way_routes(w), gr_exchange_way_row(w), f->rows, f->rows_max, f->bytes[0], f->bytes[1]));
    GR_TRY(write_time(out, "forward_ms", &f->forward));
    GR_TRY(write_time(out, "backward_ms", &f->backward));
    GR_TRY(write_time(out, "both_ms", &f->both));
    return gr_out_printf(out, "}");
}

static gr_err write_gain(gr_out *out, const gr_exchange_gain *g, const char *before) {
    GR_TRY(gr_out_printf(out,
        "%s\n    {\"name\": \"%s\", \"from\": {\"routes\": \"%s\", \"row\": \"%s\"}, \"to\": {\"routes\": \"%s\", "
        "\"row\": \"%s\"}",
        before, g->name, gr_exchange_way_routes(g->from), gr_exchange_way_row(g->from), gr_exchange_way_routes(g->to),
        gr_exchange_way_row(g->to)));
    GR_TRY(write_time(out, "both_ms", &g->both));
    return gr_out_printf(out, "}");
}

gr_err gr_exchange_write(
    gr_out *out, const gr_exchange_options *o, const char *placement, const gr_exchange_report *r) {
    int n = 0;
    GR_TRY(gr_out_printf(out, "{\n"));
    GR_TRY(write_path(out, "routes", o->routes));
    GR_TRY(write_path(out, "placement", placement));
    GR_TRY(gr_out_printf(out,
        "  \"ranks\": %" PRIu32 ",\n  \"threads\": %d,\n  \"experts\": %" PRIu32 ",\n  \"top_k\": %" PRIu32
        ",\n  \"seq_len\": %" PRIu32 ",\n  \"tokens_per_rank\": %" PRIu32 ",\n  \"width\": %" PRIu32
        ",\n  \"dtype\": \"%s\",\n  \"repeats\": %" PRIu32 ",\n  \"seed\": %" PRIu64
        ",\n  \"uniform_rows_per_token\": %.9g",
        r->R, gr_thread_count(), r->E, r->K, r->T, r->N, o->D, gr_bench_dtype_text(o->dtype), o->n_repeat, o->seed,
        r->uniform));
    GR_TRY(write_time(out, "plan_ms", &r->plan));
    GR_TRY(gr_out_printf(out, ",\n  \"ways\": ["));
    for (int w = 0; w < GR_N_EXCHANGE_WAY; w++)
        if (r->way[w].measured)
            GR_TRY(write_way(out, r, (gr_exchange_way)w, n++ ? "," : ""));
    GR_TRY(gr_out_printf(out, "\n  ],\n  \"gains\": ["));
    n = 0;
    for (int i = 0; i < GR_EXCHANGE_GAINS; i++)
        if (r->gain[i].measured)
            GR_TRY(write_gain(out, &r->gain[i], n++ ? "," : ""));
    return gr_out_printf(out, "\n  ]\n}\n");
}
