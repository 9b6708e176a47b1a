/* leak.c: does a route see the future? Twice over the sampled windows: first with the network made ready for whole
 * windows (their routes, and those with other suffixes), then once per cut with one made ready for that prefix. */
#include "grouter/leak.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audit.h"
#include "probe.h"

/* What one window adds: doubles, so that ranks add them up, each window being one rank's alone. */
typedef struct window_sums {
    gr_route_change bucket[GR_LEAK_BUCKETS];
    double n_changed;
    double full, prefix, swapped; /* over cuts */
    double last;
} window_sums;
enum { WINDOW_SUMS = sizeof(window_sums) / sizeof(double) };

typedef struct audit {
    const gr_leak_options *o;
    gr_leak *out;
    gr_backend *network_backend, *target_backend;
    gr_router *router;
    gr_audit_text text;
    gr_probe *probe; /* NULL: only routes */
    uint32_t T, E, K;
    uint64_t n_own;        /* sampled windows of this rank: the rank-th and every size-th after it */
    uint32_t *token;       /* [T+1] of the window at hand */
    uint32_t *changed;     /* [T+1] the same with another suffix */
    uint16_t *ids;         /* [n_own][T*K] routes of whole windows */
    float *gates;          /* [n_own][T*K] */
    uint16_t *changed_ids; /* [T*K] */
    float *changed_gates;  /* [T*K] */
    float *scores;         /* [T*E] of the whole window, of a Grouter */
    double *loss;          /* [T] */
    double *cut_loss;      /* [n_own][n_cut] with routes of the whole window */
    window_sums *sums;     /* [n_window] */
} audit;

/* ---------------------------------------------------------------- sampling */

static uint64_t key_of(const audit *a, const char *name) {
    return gr_random_u64(a->o->seed, gr_stream_id(name), 0);
}

/* The sample's number of the own window i, and which window of the text that is. */
static uint64_t sample_of(const audit *a, uint64_t i) {
    return i * (uint64_t)a->o->comm->size[GR_WORLD] + (uint64_t)a->o->comm->rank[GR_WORLD];
}

static uint64_t window_of(const audit *a, uint64_t sample) {
    return gr_bijection(key_of(a, "leak windows"), a->text.n_all, sample);
}

/* Whose suffix it gets at a cut: any other window's. */
static uint64_t partner_of(const audit *a, uint64_t sample, uint32_t cut) {
    uint64_t draw = gr_random_u64(a->o->seed, gr_stream_id("leak suffixes"), sample * a->out->n_cut + cut);
    uint64_t window = window_of(a, sample), other = draw % (a->text.n_all - 1);
    return other < window ? other : other + 1;
}

static int by_value(const void *x, const void *y) {
    uint32_t a = *(const uint32_t *)x, b = *(const uint32_t *)y;
    return a < b ? -1 : a > b;
}

/* A cut leaves at least one routed token after it. */
static gr_err draw_cuts(audit *a) {
    uint64_t n = a->T - 1;
    a->out->n_cut = (uint32_t)(a->o->n_cut < n ? a->o->n_cut : n);
    GR_TRY(gr_alloc((void **)&a->out->cut, a->out->n_cut, sizeof *a->out->cut, "cuts"));
    for (uint32_t i = 0; i < a->out->n_cut; i++)
        a->out->cut[i] = (uint32_t)gr_bijection(key_of(a, "leak cuts"), n, i);
    qsort(a->out->cut, a->out->n_cut, sizeof *a->out->cut, by_value);
    return GR_OK;
}

/* ---------------------------------------------------------------- opening */

static gr_err check_config(const gr_config *c) {
    if (c->routing.source == GR_SOURCE_LEARNED)
        return gr_fail(GR_CONFIG,
            "routing.source: expected a target with given routes, got \"learned\": its routers see what the model "
            "sees, the tokens up to their own, so there is nothing to measure");
    if (c->data.n_valid == 0)
        return gr_fail(GR_CONFIG, "data.valid: expected at least one file to measure on, got none");
    if (c->data.seq_len < 2)
        return gr_fail(
            GR_CONFIG, "data.seq_len: expected windows of at least 2 tokens to cut, got %d", c->data.seq_len);
    return GR_OK;
}

static gr_err check_router(const audit *a) {
    const gr_router_info *r = gr_router_get(a->router);
    const gr_model_config *m = &a->o->config->model;
    if (r->E != a->E || r->K != a->K)
        return gr_fail(GR_DATA, "%s: expected %u of %u experts per token as the config's model, got %u of %u",
            a->o->router, a->K, a->E, r->K, r->E);
    if (r->V && r->V < (uint32_t)m->vocab_size)
        return gr_fail(GR_DATA,
            "%s: expected a vocabulary of at least model.vocab_size = %d, got %u; it is of another vocabulary",
            a->o->router, m->vocab_size, r->V);
    if (r->variable_k && a->o->config->routing.gates == GR_GATES_LEARNED)
        return gr_fail(GR_DATA,
            "%s: expected a router that fills all K slots, since routing.gates is \"learned\", got one with dynamic "
            "activation",
            a->o->router);
    return GR_OK;
}

static gr_err open_router(audit *a) {
    GR_TRY(gr_router_open(&a->router, a->o->router));
    if (a->o->bias)
        GR_TRY(gr_router_use_bias(a->router));
    if (a->o->threshold > 0)
        GR_TRY(gr_router_use_threshold(a->router, a->o->threshold));
    a->out->router = *gr_router_get(a->router);
    return check_router(a);
}

static gr_err allocate(audit *a) {
    size_t T = a->T, pairs = T * a->K, n_own = a->n_own, n_cut = a->out->n_cut, n_own_pairs, n_own_cuts;
    if (!gr_mul_size(n_own, pairs, &n_own_pairs) || !gr_mul_size(n_own, n_cut, &n_own_cuts))
        return gr_fail(GR_RESOURCE, "routes of %zu windows: expected a size that fits; use fewer --windows", n_own);
    GR_TRY(gr_alloc((void **)&a->token, T + 1, sizeof *a->token, "window"));
    GR_TRY(gr_alloc((void **)&a->changed, T + 1, sizeof *a->changed, "window"));
    GR_TRY(gr_alloc((void **)&a->ids, n_own_pairs, sizeof *a->ids, "routes of all windows"));
    GR_TRY(gr_alloc((void **)&a->gates, n_own_pairs, sizeof *a->gates, "routes of all windows"));
    GR_TRY(gr_alloc((void **)&a->changed_ids, pairs, sizeof *a->changed_ids, "routes"));
    GR_TRY(gr_alloc((void **)&a->changed_gates, pairs, sizeof *a->changed_gates, "routes"));
    if (a->out->router.method == GR_ROUTER_GROUTER)
        GR_TRY(gr_alloc((void **)&a->scores, T * a->E, sizeof *a->scores, "scores"));
    GR_TRY(gr_alloc((void **)&a->loss, T, sizeof *a->loss, "losses"));
    GR_TRY(gr_alloc((void **)&a->cut_loss, n_own_cuts, sizeof *a->cut_loss, "losses"));
    return gr_alloc((void **)&a->sums, a->out->n_window, sizeof *a->sums, "sums of all windows");
}

static gr_err open_audit(audit *a) {
    const gr_config *c = a->o->config;
    uint64_t rank = (uint64_t)a->o->comm->rank[GR_WORLD], n_rank = (uint64_t)a->o->comm->size[GR_WORLD];
    GR_TRY(check_config(c));
    a->T = a->out->T = (uint32_t)c->data.seq_len;
    a->E = (uint32_t)c->model.num_experts;
    a->K = (uint32_t)c->model.num_experts_per_tok;
    GR_TRY(open_router(a));
    GR_TRY(gr_audit_text_open(&a->text, c, &a->out->router));
    a->out->n_window = a->o->n_window < a->text.n_all ? a->o->n_window : a->text.n_all;
    a->n_own = (a->out->n_window + n_rank - 1 - rank) / n_rank;
    GR_TRY(draw_cuts(a));
    GR_TRY(allocate(a));
    GR_TRY(gr_backend_open(&a->network_backend, gr_config_backend_name(c), GR_F32));
    if (!a->o->weights)
        return GR_OK;
    a->out->target = true;
    GR_TRY(gr_backend_open(&a->target_backend, gr_config_backend_name(c), gr_config_dtype(c)));
    GR_TRY(gr_backend_set_experts(a->target_backend, gr_config_expert_kernels_name(c)));
    GR_TRY(gr_backend_set_attention(a->target_backend, gr_config_attention_kernels_name(c)));
    GR_TRY(gr_backend_set_plans(a->target_backend, c->parallel.product_plans));
    return gr_probe_open(&a->probe, c, a->target_backend, a->o->weights);
}

static void close_audit(audit *a) {
    gr_probe_close(a->probe);
    gr_router_close(a->router);
    gr_backend_close(a->target_backend);
    gr_backend_close(a->network_backend);
    gr_audit_text_close(&a->text);
    free(a->sums);
    free(a->cut_loss);
    free(a->loss);
    free(a->scores);
    free(a->changed_gates);
    free(a->changed_ids);
    free(a->gates);
    free(a->ids);
    free(a->changed);
    free(a->token);
}

/* ---------------------------------------------------------------- one cut of one window */

/* Loss at the cut with the changed routes up to it. Positions after it keep the routes of the whole window, whatever
 * they are: the target does not look there. Routes without a changed bit have the loss that is known already. */
static gr_err loss_at(audit *a, uint64_t i, uint32_t cut, bool changed, double *sum) {
    uint32_t t = a->out->cut[cut];
    size_t pairs = (size_t)a->T * a->K, head = ((size_t)t + 1) * a->K;
    double known = a->cut_loss[i * a->out->n_cut + cut];
    if (!a->probe || !changed) {
        *sum += known;
        return GR_OK;
    }
    memcpy(a->changed_ids + head, a->ids + i * pairs + head, (pairs - head) * sizeof *a->ids);
    memcpy(a->changed_gates + head, a->gates + i * pairs + head, (pairs - head) * sizeof *a->gates);
    GR_TRY(gr_probe_losses(a->probe, a->token, a->changed_ids, a->changed_gates, a->loss));
    *sum += a->loss[t];
    return GR_OK;
}

/* Positions up to the cut, before and after the change; `changed` is true if the routes of any differ in a bit. */
static void compare(audit *a, uint64_t i, uint32_t t, window_sums *sums, bool *changed) {
    const float *now = gr_router_scores(a->router);
    const uint16_t *ids = a->ids + i * a->T * a->K;
    const float *gates = a->gates + i * a->T * a->K;
    for (uint32_t p = 0; p <= t; p++) {
        size_t at = (size_t)p * a->K;
        const gr_route before = {ids + at, gates + at, a->scores ? a->scores + (size_t)p * a->E : NULL};
        const gr_route after = {a->changed_ids + at, a->changed_gates + at, a->scores ? now + (size_t)p * a->E : NULL};
        bool differs = gr_route_change_add(&sums->bucket[gr_leak_bucket_of(t - p)], a->E, a->K, &before, &after);
        sums->n_changed += differs;
        *changed |= differs;
    }
}

static gr_err swap_suffix(audit *a, uint64_t i, uint32_t cut) {
    uint64_t sample = sample_of(a, i);
    uint32_t t = a->out->cut[cut];
    int file;
    bool changed = false;
    GR_TRY(gr_audit_text_read(&a->text, partner_of(a, sample, cut), a->changed));
    memcpy(a->changed, a->token, ((size_t)t + 1) * sizeof *a->token);
    GR_TRY(gr_router_route(a->router, gr_audit_text_place(&a->text, window_of(a, sample), &file), a->T, a->changed,
        a->changed_ids, a->changed_gates));
    compare(a, i, t, &a->sums[sample], &changed);
    return loss_at(a, i, cut, changed, &a->sums[sample].swapped);
}

/* Routes of tokens 0..t from nothing but them. Only a Grouter has a context; the routes of other routers follow from
 * the token or the position, and the window is filled up with a token that says nothing. */
static gr_err route_prefix(audit *a, uint64_t place, uint32_t t) {
    if (a->out->router.method == GR_ROUTER_GROUTER)
        return gr_router_route(a->router, place, t + 1, a->token, a->changed_ids, a->changed_gates);
    memcpy(a->changed, a->token, ((size_t)t + 1) * sizeof *a->token);
    memset(a->changed + t + 1, 0, (a->T - t) * sizeof *a->changed);
    return gr_router_route(a->router, place, a->T, a->changed, a->changed_ids, a->changed_gates);
}

static gr_err cut_off(audit *a, uint64_t i, uint32_t cut) {
    uint64_t sample = sample_of(a, i);
    uint32_t t = a->out->cut[cut];
    size_t pairs = (size_t)a->T * a->K, head = ((size_t)t + 1) * a->K;
    int file;
    GR_TRY(gr_audit_text_read(&a->text, window_of(a, sample), a->token));
    GR_TRY(route_prefix(a, gr_audit_text_place(&a->text, window_of(a, sample), &file), t));
    bool changed = memcmp(a->changed_ids, a->ids + i * pairs, head * sizeof *a->ids) != 0 ||
                   memcmp(a->changed_gates, a->gates + i * pairs, head * sizeof *a->gates) != 0;
    return loss_at(a, i, cut, changed, &a->sums[sample].prefix);
}

/* ---------------------------------------------------------------- all of them */

/* The window as it is. */
static gr_err measure_whole(audit *a, uint64_t i) {
    uint64_t sample = sample_of(a, i);
    uint16_t *ids = a->ids + i * a->T * a->K;
    float *gates = a->gates + i * a->T * a->K;
    int file;
    uint64_t place = gr_audit_text_place(&a->text, window_of(a, sample), &file);
    GR_TRY(gr_audit_text_read(&a->text, window_of(a, sample), a->token));
    GR_TRY(gr_router_route(a->router, place, a->T, a->token, ids, gates));
    if (a->scores)
        memcpy(a->scores, gr_router_scores(a->router), (size_t)a->T * a->E * sizeof *a->scores);
    if (!a->probe)
        return GR_OK;
    GR_TRY(gr_probe_losses(a->probe, a->token, ids, gates, a->loss));
    for (uint32_t cut = 0; cut < a->out->n_cut; cut++) {
        a->cut_loss[i * a->out->n_cut + cut] = a->loss[a->out->cut[cut]];
        a->sums[sample].full += a->loss[a->out->cut[cut]];
    }
    a->sums[sample].last = a->loss[a->T - 1];
    return GR_OK;
}

static gr_err measure_windows(audit *a) {
    gr_progress progress;
    GR_TRY(gr_router_prepare(a->router, a->network_backend, a->T));
    gr_progress_start(&progress, "windows with other suffixes", "cuts", a->n_own * a->out->n_cut);
    for (uint64_t i = 0; i < a->n_own; i++) {
        GR_TRY(measure_whole(a, i));
        for (uint32_t cut = 0; cut < a->out->n_cut; cut++)
            GR_TRY(swap_suffix(a, i, cut));
        gr_progress_update(&progress, (i + 1) * a->out->n_cut);
    }
    gr_progress_finish(&progress, a->n_own * a->out->n_cut);
    return GR_OK;
}

/* Only for the losses. */
static gr_err measure_prefixes(audit *a) {
    if (!a->probe)
        return GR_OK;
    gr_progress progress;
    gr_progress_start(&progress, "prefixes alone", "cuts", a->n_own * a->out->n_cut);
    for (uint32_t cut = 0; cut < a->out->n_cut; cut++) {
        GR_TRY(gr_router_prepare(a->router, a->network_backend, a->out->cut[cut] + 1));
        for (uint64_t i = 0; i < a->n_own; i++) {
            GR_TRY(cut_off(a, i, cut));
            gr_progress_update(&progress, cut * a->n_own + i + 1);
        }
    }
    gr_progress_finish(&progress, a->n_own * a->out->n_cut);
    return GR_OK;
}

/* ---------------------------------------------------------------- results */

/* Of values that lie `stride` doubles apart, minus those of `minus` unless NULL, each divided by n_each. */
static gr_leak_mean mean_of(const audit *a, const double *value, const double *minus, double n_each) {
    double n = (double)a->out->n_window, sum = 0, squares = 0;
    for (uint64_t i = 0; i < a->out->n_window; i++)
        sum += (value[i * WINDOW_SUMS] - (minus ? minus[i * WINDOW_SUMS] : 0)) / n_each;
    for (uint64_t i = 0; i < a->out->n_window; i++) {
        double v = (value[i * WINDOW_SUMS] - (minus ? minus[i * WINDOW_SUMS] : 0)) / n_each;
        squares += (v - sum / n) * (v - sum / n);
    }
    return (gr_leak_mean){.mean = sum / n, .error = n > 1 ? sqrt(squares / (n - 1) / n) : NAN};
}

static void reduce_losses(const audit *a) {
    gr_leak *out = a->out;
    const window_sums *s = a->sums;
    double n = out->n_cut;
    out->full = mean_of(a, &s->full, NULL, n);
    out->prefix = mean_of(a, &s->prefix, NULL, n);
    out->swapped = mean_of(a, &s->swapped, NULL, n);
    out->prefix_rise = mean_of(a, &s->prefix, &s->full, n);
    out->swapped_rise = mean_of(a, &s->swapped, &s->full, n);
    out->last = mean_of(a, &s->last, NULL, 1);
}

static void reduce_routes(const audit *a) {
    gr_leak *out = a->out;
    uint32_t farthest = out->cut[out->n_cut - 1];
    out->n_bucket = gr_leak_bucket_of(farthest) + 1;
    for (int b = 0; b < out->n_bucket; b++) {
        gr_route_change sum = {0};
        for (uint64_t i = 0; i < out->n_window; i++) {
            const gr_route_change *one = &a->sums[i].bucket[b];
            sum.n += one->n;
            sum.set_changed += one->set_changed;
            sum.gate_change += one->gate_change;
            sum.divergence += one->divergence;
        }
        gr_leak_bucket *bucket = &out->bucket[b];
        *bucket = (gr_leak_bucket){.n_route = (uint64_t)sum.n,
            .set_changed = sum.n > 0 ? sum.set_changed / sum.n : NAN,
            .gate_change = sum.n > 0 ? sum.gate_change / sum.n : NAN,
            .divergence = sum.n > 0 && a->scores ? sum.divergence / sum.n : NAN};
        gr_leak_bucket_range(b, &bucket->first, &bucket->last);
        if (bucket->last > farthest)
            bucket->last = farthest;
        out->n_route += bucket->n_route;
    }
    for (uint64_t i = 0; i < out->n_window; i++)
        out->n_changed += (uint64_t)a->sums[i].n_changed;
}

static gr_err run(audit *a) {
    gr_comm *c = a->o->comm;
    GR_TRY(gr_comm_agree(c, open_audit(a)));
    GR_TRY(gr_comm_agree(c, measure_windows(a)));
    GR_TRY(gr_comm_agree(c, measure_prefixes(a)));
    GR_TRY(c->sum(c, GR_WORLD, GR_F64, a->sums, (size_t)a->out->n_window * WINDOW_SUMS));
    reduce_routes(a);
    if (a->probe)
        reduce_losses(a);
    return GR_OK;
}

gr_err gr_leak_run(const gr_leak_options *o, gr_leak *out) {
    audit a = {.o = o, .out = out};
    *out = (gr_leak){0};
    gr_err e = run(&a);
    close_audit(&a);
    if (e)
        gr_leak_close(out);
    return e;
}

void gr_leak_close(gr_leak *leak) {
    free(leak->cut);
    *leak = (gr_leak){0};
}
