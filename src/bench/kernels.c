/* kernels.c: times every op of a backend alone, its arrays not in the caches. */
#include "kernels.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { RUNS_MIN = 5, RUNS_MAX = 50, RUNS_WARM = 2, COPY_RUNS = 5 };
#define CASE_S 0.4 /* wall-clock time for the runs of one op, unless their number is given */

typedef struct bench_run {
    const gr_kernels_options *o;
    gr_kernels_report *report;
    gr_backend *backend;
    void *cold[2]; /* written between runs; copied for the rate of a copy */
    size_t n_cold;
} bench_run;

/* ---------------------------------------------------------------- the set */

typedef struct family {
    const bench_case *list;
    int n;
} family;

enum { N_FAMILY = 6 };

static family family_of(int i) {
    const family all[N_FAMILY] = {{gr_bench_product_cases, gr_bench_n_product_case},
        {gr_bench_attention_cases, gr_bench_n_attention_case}, {gr_bench_row_cases, gr_bench_n_row_case},
        {gr_bench_head_cases, gr_bench_n_head_case}, {gr_bench_router_cases, gr_bench_n_router_case},
        {gr_bench_flat_cases, gr_bench_n_flat_case}};
    return all[i];
}

/* Is the name one of the comma-separated list? */
static bool is_listed(const char *list, const char *name, size_t n_name) {
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strcspn(at, ",") == n_name && strncmp(at, name, n_name) == 0)
            return true;
    }
    return false;
}

static gr_err check_name(const char *name, size_t n_name) {
    char text[64];
    snprintf(text, sizeof text, "%.*s", (int)(n_name < 63 ? n_name : 63), name);
    gr_nearest nearest = {.to = text};
    for (int f = 0; f < N_FAMILY; f++)
        for (int i = 0; i < family_of(f).n; i++) {
            const char *op = family_of(f).list[i].op;
            if (strcmp(op, text) == 0)
                return GR_OK;
            gr_nearest_offer(&nearest, op);
        }
    return gr_fail(GR_USAGE, "--only: expected ops of a backend, such as gemm,ffn_forward, got \"%s\"%s%s%s", text,
        nearest.name ? ": did you mean " : "", nearest.name ? nearest.name : "", nearest.name ? "?" : "");
}

static gr_err check_only(const char *list) {
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        GR_TRY(check_name(at, strcspn(at, ",")));
    }
    return GR_OK;
}

/* What the cases count on. Sizes of arrays then fit 63 bits with room for their types. */
static gr_err check_options(const gr_kernels_options *o) {
    const gr_bench_shape *s = &o->shape;
    if (s->T < 1 || o->N < s->T || o->N % s->T != 0)
        return gr_fail(GR_CONFIG,
            "bench kernels: expected a number of tokens that is a multiple of the window's %lld, got %lld; change "
            "--tokens or --seq-len",
            (long long)s->T, (long long)o->N);
    if (s->D > 1 << 16 || s->F > 4096 || s->hd > 1024 || s->hd % 2 != 0 || s->V > 1 << 24 || s->E > 4096)
        return gr_fail(GR_CONFIG,
            "bench kernels: expected at most width 65536, expert width 4096, an even head width up to 1024, 2^24 words "
            "and 4096 experts, got %lld, %lld, %lld, %lld and %lld; use a smaller model",
            (long long)s->D, (long long)s->F, (long long)s->hd, (long long)s->V, (long long)s->E);
    if (o->N * s->K > INT32_MAX)
        return gr_fail(GR_CONFIG,
            "bench kernels: expected at most 2^31-1 pairs, got %lld tokens of %lld; lower --tokens", (long long)o->N,
            (long long)s->K);
    return check_only(o->only);
}

/* ---------------------------------------------------------------- the machine */

static gr_err open_cold(bench_run *r) {
    gr_backend *b = r->backend;
    r->n_cold = (size_t)(b->host_memory ? 64 : 256) << 20;
    for (int i = 0; i < 2; i++)
        GR_TRY(b->alloc(b, r->n_cold, "memory larger than the caches", &r->cold[i]));
    return GR_OK;
}

/* In host memory in pieces that take about a millisecond, each of which has left the caches when its turn comes again;
 * what a device copies at once must be large. */
static gr_err measure_copy(bench_run *r) {
    gr_backend *b = r->backend;
    const size_t piece = b->host_memory ? (size_t)4 << 20 : r->n_cold, n = r->n_cold / piece;
    double best_s = INFINITY;
    for (size_t i = 0; i < COPY_RUNS * n; i++) {
        const size_t at = i % n * piece;
        GR_TRY(b->sync(b));
        const double start_s = gr_time_s();
        GR_TRY(b->copy(b, GR_LANE_COMPUTE, (uint8_t *)r->cold[0] + at, (const uint8_t *)r->cold[1] + at, piece));
        GR_TRY(b->sync(b));
        best_s = fmin(best_s, gr_time_s() - start_s);
    }
    r->report->copy_bytes = fmax(r->report->copy_bytes, 2 * (double)piece / best_s);
    return GR_OK;
}

static gr_err measure_launch(bench_run *r) {
    gr_backend *b = r->backend;
    double ms[RUNS_MAX];
    for (int i = 0; i < RUNS_MAX; i++) {
        GR_TRY(b->sync(b));
        const double start_s = gr_time_s();
        GR_TRY(b->fill_zero(b, GR_LANE_COMPUTE, r->cold[0], 64));
        GR_TRY(b->sync(b));
        ms[i] = 1e3 * (gr_time_s() - start_s);
    }
    r->report->launch_ms = gr_bench_quartiles(ms, RUNS_MAX).median_ms;
    return GR_OK;
}

/* All ranks at once, as the ops run: bandwidth and turbo clocks are shared. The best so far: what else runs on the
 * machine can only make them lower. */
static gr_err measure_peaks(bench_run *r) {
    gr_comm *c = r->o->comm;
    double flops = 0;
    GR_TRY(c->barrier(c, GR_WORLD));
    gr_err e = r->backend->peak(r->backend, &flops);
    r->report->peak_flops = fmax(r->report->peak_flops, flops);
    if (!e)
        e = measure_copy(r);
    return gr_comm_agree(c, e);
}

static gr_err open_run(bench_run *r) {
    gr_comm *c = r->o->comm;
    gr_err e = check_options(r->o);
    if (!e)
        e = gr_backend_open(&r->backend, r->o->backend, r->o->dtype);
    if (!e)
        e = open_cold(r);
    GR_TRY(gr_comm_agree(c, e));
    r->report->backend = r->backend->name;
    return gr_comm_agree(c, measure_launch(r));
}

static void close_run(bench_run *r) {
    for (int i = 0; i < 2; i++)
        if (r->cold[i])
            r->backend->release(r->backend, r->cold[i]);
    gr_backend_close(r->backend);
}

/* ---------------------------------------------------------------- one op */

static gr_err run_once(bench_run *r, const bench_case *c, bench_kernel *k, double *ms) {
    gr_backend *b = r->backend;
    GR_TRY(gr_bench_arrays_restore(&k->arrays));
    GR_TRY(b->fill_zero(b, GR_LANE_COMPUTE, r->cold[0], r->n_cold));
    GR_TRY(b->sync(b));
    const double start_s = gr_time_s();
    GR_TRY(c->run(k));
    GR_TRY(b->sync(b));
    *ms = 1e3 * (gr_time_s() - start_s);
    return GR_OK;
}

/* The first run's results; the times of the first runs do not count. */
static gr_err check_results(bench_run *r, const bench_case *c, bench_kernel *k, gr_kernel_figures *f) {
    double ms;
    GR_TRY(gr_bench_arrays_upload(&k->arrays));
    if (c->prepare)
        GR_TRY(c->prepare(k));
    GR_TRY(run_once(r, c, k, &ms));
    GR_TRY(gr_bench_arrays_download(&k->arrays));
    f->error = c->check(k);
    if (f->error <= gr_bench_error_max(r->backend->dtype))
        return GR_OK;
    return gr_fail(GR_BUG,
        "bench kernels: %s %s (%s) of backend %s: expected sampled results within %.1e of those in double, got %.3e; "
        "please report it",
        c->op, c->variant, k->text, r->backend->name, gr_bench_error_max(r->backend->dtype), f->error);
}

static gr_err time_runs(bench_run *r, const bench_case *c, bench_kernel *k, gr_kernel_figures *f) {
    double ms[RUNS_MAX], best_ms = INFINITY;
    const uint32_t given = r->o->n_repeat, n_max = given ? given : RUNS_MAX;
    for (int i = 1; i < RUNS_WARM; i++)
        GR_TRY(run_once(r, c, k, &ms[0]));
    const double begin_s = gr_time_s();
    uint32_t n = 0;
    while (n < n_max && (given || n < RUNS_MIN || gr_time_s() - begin_s < CASE_S)) {
        GR_TRY(run_once(r, c, k, &ms[n]));
        best_ms = fmin(best_ms, ms[n++]);
    }
    f->n_run = n;
    f->best_ms = best_ms;
    f->time = gr_bench_quartiles(ms, n);
    return GR_OK;
}

static gr_err measure_open(bench_run *r, const bench_case *c, bench_kernel *k, gr_kernel_figures *f) {
    gr_comm *comm = r->o->comm;
    gr_err e = c->open(k);
    if (!e)
        e = check_results(r, c, k, f);
    GR_TRY(gr_comm_agree(comm, e));
    GR_TRY(comm->barrier(comm, GR_WORLD));
    GR_TRY(gr_comm_agree(comm, time_runs(r, c, k, f)));
    f->op = c->op;
    f->variant = c->variant;
    f->flops_formula = c->flops;
    f->bytes_formula = c->bytes;
    f->compute = c->compute;
    f->flops = k->flops;
    f->bytes = k->bytes;
    memcpy(f->shape, k->text, sizeof f->shape);
    return GR_OK;
}

static gr_err measure(bench_run *r, const bench_case *c) {
    const gr_kernels_options *o = r->o;
    bench_kernel k = {.backend = r->backend,
        .shape = &o->shape,
        .N = o->N,
        .P = o->N * o->shape.K,
        .flat = (int64_t)(r->n_cold / 16), /* 4 million numbers in host memory, 16 million in a device's */
        .seed = o->seed,
        .way = c->way};
    gr_kernels_report *report = r->report;
    GR_ASSERT(report->n < GR_KERNELS_MAX, "%d ops", report->n);
    r->backend->experts = c->experts;
    r->backend->attention = c->attention;
    gr_err e = measure_open(r, c, &k, &report->kernel[report->n]);
    report->n += !e;
    gr_bench_arrays_close(&k.arrays);
    return e;
}

static void share_peaks(gr_kernels_report *report) {
    for (int i = 0; i < report->n; i++) {
        gr_kernel_figures *f = &report->kernel[i];
        const double s = f->time.median_ms / 1e3;
        f->share = f->compute ? f->flops / s / report->peak_flops : f->bytes / s / report->copy_bytes;
    }
}

/* A way by name is another one than the case before it only on a backend with a choice, in the type that has one. */
static bool has_way(const gr_backend *b, const bench_case *c) {
    if (c->experts == GR_EXPERTS_AUTO && c->attention == GR_ATTENTION_AUTO)
        return true;
    return c->experts <= b->experts_best && c->attention <= b->attention_best && b->dtype == GR_BF16;
}

/* The peaks are measured before and after the ops. */
static gr_err run(bench_run *r) {
    GR_TRY(open_run(r));
    GR_TRY(measure_peaks(r));
    for (int f = 0; f < N_FAMILY; f++)
        for (int i = 0; i < family_of(f).n; i++) {
            const bench_case *c = &family_of(f).list[i];
            if (has_way(r->backend, c) && (!r->o->only || is_listed(r->o->only, c->op, strlen(c->op))))
                GR_TRY(measure(r, c));
        }
    GR_TRY(measure_peaks(r));
    share_peaks(r->report);
    return GR_OK;
}

gr_err gr_bench_kernels(const gr_kernels_options *o, gr_kernels_report *report) {
    bench_run r = {.o = o, .report = report};
    *report = (gr_kernels_report){0};
    GR_ASSERT(o->n_repeat <= RUNS_MAX, "%" PRIu32 " runs", o->n_repeat);
    gr_err e = run(&r);
    close_run(&r);
    return e;
}
