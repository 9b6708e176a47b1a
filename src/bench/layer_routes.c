/* layer_routes.c: routes with a wanted spread of the experts' loads, or those of a table.
 *
 * Each expert gets a chance, the chances sum to K, and systematic sampling draws exactly K experts with exactly these
 * chances: the experts, in an order that is random for every token, lie on a line, each as long as its chance, and
 * those under the marks u, u+1, ..., u+K-1 are taken. */
#include "layer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/routes.h"

enum { BISECTIONS = 60 };
#define SIGMA_MAX 20.0

const char *gr_load_kind_name(gr_load_kind k) {
    static const char *const name[GR_N_LOAD_KIND] = {"uniform", "skewed", "hot", "table"};
    return name[k];
}

/* ---------------------------------------------------------------- chances */

/* chance[E] proportional to weight[E], at most 1, summing to K. */
static void scale_chances(uint32_t E, uint32_t K, const double *weight, double *chance) {
    double low = 0, high = 1e300;
    for (int i = 0; i < 20 * BISECTIONS && low * (1 + 1e-14) < high; i++) {
        const double factor = low > 0 ? sqrt(low) * sqrt(high) : high / 1e6;
        double sum = 0;
        for (uint32_t e = 0; e < E; e++)
            sum += fmin(1, factor * weight[e]);
        *(sum < K ? &low : &high) = factor;
    }
    for (uint32_t e = 0; e < E; e++)
        chance[e] = fmin(1, high * weight[e]);
}

static double deviation(uint32_t E, const double *load) {
    double mean = 0, squares = 0;
    for (uint32_t e = 0; e < E; e++)
        mean += load[e] / E;
    for (uint32_t e = 0; e < E; e++)
        squares += (load[e] - mean) * (load[e] - mean) / E;
    return mean > 0 ? sqrt(squares) / mean : 0;
}

/* Loads whose logarithms are evenly spread over [-sqrt(3) sigma, sqrt(3) sigma], which experts in a random order get.
 */
static double spread_chances(const gr_layer_options *o, double sigma, double *weight, double *chance) {
    for (uint32_t e = 0; e < o->E; e++) {
        const double at = 2.0 * (double)gr_bijection(o->seed, o->E, e) / fmax(1, o->E - 1.0) - 1;
        weight[e] = exp(sigma * sqrt(3) * at);
    }
    scale_chances(o->E, o->K, weight, chance);
    return deviation(o->E, chance);
}

static gr_err skewed_chances(const gr_layer_options *o, double *weight, double *chance) {
    const double most = spread_chances(o, SIGMA_MAX, weight, chance);
    if (o->cv > most)
        return gr_fail(GR_CONFIG,
            "bench layer: --cv: expected at most %.3g, since no expert can have more than every token, got %g", most,
            o->cv);
    double low = 0, high = SIGMA_MAX;
    for (int i = 0; i < BISECTIONS; i++) {
        const double sigma = (low + high) / 2;
        *(spread_chances(o, sigma, weight, chance) < o->cv ? &low : &high) = sigma;
    }
    return GR_OK;
}

static gr_err hot_chances(const gr_layer_options *o, double *chance) {
    const uint32_t first = (uint32_t)gr_bijection(o->seed, o->E, 0);
    const double mean = (double)o->K / o->E, hot = o->hot * mean;
    if (hot > 1 || o->E == 1)
        return gr_fail(GR_CONFIG,
            "bench layer: --hot: expected at most %.4g, since no expert can have more than every token, got %g",
            1 / mean, o->hot);
    for (uint32_t e = 0; e < o->E; e++)
        chance[e] = e == first ? hot : (o->K - hot) / (o->E - 1);
    return GR_OK;
}

/* chance[E]; weight[E] is room. */
static gr_err find_chances(const gr_layer_options *o, double *weight, double *chance) {
    for (uint32_t e = 0; e < o->E; e++)
        chance[e] = (double)o->K / o->E;
    if (o->load == GR_LOAD_SKEWED)
        return skewed_chances(o, weight, chance);
    return o->load == GR_LOAD_HOT ? hot_chances(o, chance) : GR_OK;
}

/* ---------------------------------------------------------------- one token */

typedef struct sampler {
    uint32_t E, K;
    uint64_t state;  /* of SplitMix64 */
    double *chance;  /* [E] */
    uint32_t *order; /* [E] */
    uint8_t *taken;  /* [E] */
} sampler;

static uint64_t next_word(sampler *s) {
    uint64_t z = s->state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static double next_number(sampler *s) {
    return (double)(next_word(s) >> 11) * 0x1p-53;
}

static void shuffle(sampler *s) {
    for (uint32_t i = s->E - 1; i > 0; i--) {
        const uint32_t j = (uint32_t)((next_word(s) >> 32) * (i + 1) >> 32), kept = s->order[i];
        s->order[i] = s->order[j];
        s->order[j] = kept;
    }
}

/* ids[K] ascending. Rounding at the line's end may leave one mark without an expert: the last one without a mark. */
static void draw_experts(sampler *s, uint16_t *ids) {
    double at = -next_number(s);
    uint32_t n = 0;
    shuffle(s);
    memset(s->taken, 0, s->E);
    for (uint32_t i = 0; i < s->E && n < s->K; i++) {
        const double end = at + s->chance[s->order[i]];
        s->taken[s->order[i]] = floor(end) > floor(at);
        n += s->taken[s->order[i]];
        at = end;
    }
    for (uint32_t i = s->E; i-- > 0 && n < s->K;) {
        n += !s->taken[s->order[i]];
        s->taken[s->order[i]] = 1;
    }
    for (uint32_t e = 0, k = 0; k < s->K; e++)
        if (s->taken[e])
            ids[k++] = (uint16_t)e;
}

static void draw_gates(sampler *s, float *gates) {
    double sum = 0, raw[GR_TOPK_MAX];
    for (uint32_t k = 0; k < s->K; k++)
        sum += raw[k] = 0.5 + next_number(s);
    for (uint32_t k = 0; k < s->K; k++)
        gates[k] = gr_f32_from_bf16(gr_bf16_from_f32((float)(raw[k] / sum)));
}

/* ---------------------------------------------------------------- the micro-batch */

static gr_err allocate(bench_batch *b) {
    const size_t n = (size_t)b->R * b->N * b->K;
    GR_TRY(gr_expert_map_open(&b->map, b->E, b->R));
    GR_TRY(gr_alloc((void **)&b->ids, n, sizeof *b->ids, "routes of the micro-batch"));
    return gr_alloc((void **)&b->gates, n, sizeof *b->gates, "gates of the micro-batch");
}

static gr_err draw(bench_batch *b, const gr_layer_options *o) {
    void *memory;
    GR_TRY(gr_alloc(&memory, o->E, 2 * sizeof(double) + sizeof(uint32_t) + 1, "chances of the experts"));
    sampler s = {.E = o->E, .K = o->K, .state = o->seed ^ UINT64_C(0x6C61796572), .chance = memory};
    double *room = s.chance + o->E;
    s.order = (uint32_t *)(room + o->E);
    s.taken = (uint8_t *)(s.order + o->E);
    for (uint32_t e = 0; e < o->E; e++)
        s.order[e] = e;
    gr_err e = find_chances(o, room, s.chance);
    for (size_t t = 0; t < (size_t)b->R * b->N && !e; t++) {
        draw_experts(&s, b->ids + t * b->K);
        draw_gates(&s, b->gates + t * b->K);
    }
    free(memory);
    return e;
}

static gr_err read_table(bench_batch *b, gr_routes *table, uint64_t seed) {
    const uint64_t n_window = (uint64_t)b->R * b->N / b->T, there = gr_routes_get(table)->n_window;
    const size_t n = (size_t)b->T * b->K;
    if (n_window > there)
        return gr_fail(GR_DATA,
            "%s: expected at least %" PRIu64 " windows, %" PRIu32 " tokens for each of %" PRIu32 " ranks, got %" PRIu64
            "; lower --tokens or take a longer table",
            gr_routes_path(table), n_window, b->N, b->R, there);
    for (uint64_t i = 0; i < n_window; i++)
        GR_TRY(gr_routes_read(table, gr_bijection(seed, there, i), NULL, b->ids + i * n, b->gates + i * n));
    return GR_OK;
}

/* 64: what the ranks' experts and 32-bit row numbers do not allow. */
static gr_err check_shape(const bench_batch *b, const gr_layer_options *o) {
    const double pairs = (double)b->R * b->N * b->K;
    if (b->E % b->R != 0)
        return gr_fail(GR_CONFIG,
            "bench layer: expected a number of ranks that divides the %" PRIu32 " experts, got %" PRIu32
            "; start another number",
            b->E, b->R);
    if (b->K > b->E)
        return gr_fail(GR_CONFIG,
            "bench layer: expected at most %" PRIu32 " experts of a token, as many as there are, got %" PRIu32, b->E,
            b->K);
    if (pairs > 0x1p30)
        return gr_fail(
            GR_CONFIG, "bench layer: expected at most 2^30 pairs of all ranks, got %.3g; lower --tokens", pairs);
    if (o->load == GR_LOAD_TABLE && b->N == 0)
        return gr_fail(GR_CONFIG,
            "bench layer: --tokens: expected at least a window of the table, %" PRIu32 " tokens, got %" PRIu32, b->T,
            o->N);
    return GR_OK;
}

static gr_err open_table(bench_batch *b, const gr_layer_options *o) {
    gr_routes *table;
    GR_TRY(gr_routes_open(&table, o->routes));
    const gr_routes_info *i = gr_routes_get(table);
    b->E = i->E;
    b->K = i->K;
    b->T = i->T;
    b->N = o->N / i->T * i->T;
    b->scale = i->scale;
    gr_err e = check_shape(b, o);
    if (!e)
        e = allocate(b);
    if (!e)
        e = read_table(b, table, o->seed);
    gr_routes_close(table);
    return e;
}

gr_err gr_bench_routes_open(bench_batch *b, const gr_layer_options *o) {
    *b = (bench_batch){.R = (uint32_t)o->comm->size[GR_WORLD],
        .rank = (uint32_t)o->comm->rank[GR_WORLD],
        .N = o->N,
        .K = o->K,
        .E = o->E,
        .T = o->N,
        .scale = 1};
    if (o->load == GR_LOAD_TABLE)
        return open_table(b, o);
    GR_TRY(check_shape(b, o));
    GR_TRY(allocate(b));
    return draw(b, o);
}

/* ---------------------------------------------------------------- what they are */

gr_err gr_bench_routes_save(const bench_batch *b, const gr_layer_options *o) {
    gr_routes_info info = {.E = b->E,
        .K = b->K,
        .T = b->T,
        .scale = b->scale,
        .n_window = (uint64_t)b->R * b->N / b->T,
        .n_token = (uint64_t)b->R * b->N + 1,
        .router = {.lo = o->seed, .hi = (uint64_t)o->load}};
    const size_t n = (size_t)b->T * b->K;
    gr_routes_writer *w;
    void *tokens;
    snprintf(
        info.provenance, sizeof info.provenance, "bench layer: %s, seed %" PRIu64, gr_load_kind_name(o->load), o->seed);
    GR_TRY(gr_alloc(&tokens, (size_t)b->T + 1, sizeof(uint32_t), "tokens"));
    gr_err e = gr_routes_writer_open(&w, o->save_routes, &info);
    for (uint64_t i = 0; i < info.n_window && !e; i++)
        e = gr_routes_writer_window(w, i, tokens, b->ids + i * n, b->gates + i * n);
    if (!e)
        e = gr_routes_writer_commit(w);
    gr_routes_writer_close(w);
    free(tokens);
    return e;
}

gr_err gr_bench_routes_describe(const bench_batch *b, gr_layer_report *report) {
    void *memory;
    GR_TRY(gr_alloc(&memory, (size_t)b->E + b->R, sizeof(double), "loads of the experts"));
    double *load = memory, *of_rank = load + b->E, n_pair = 0, most = 0, most_of_rank = 0;
    for (size_t i = 0; i < (size_t)b->R * b->N * b->K; i++)
        load[b->ids[i]] += b->gates[i] > 0;
    for (uint32_t e = 0; e < b->E; e++) {
        n_pair += load[e];
        most = fmax(most, load[e]);
        of_rank[b->map.rank_of[e]] += load[e];
    }
    for (uint32_t r = 0; r < b->R; r++)
        most_of_rank = fmax(most_of_rank, of_rank[r]);
    report->n_pair = (uint64_t)n_pair;
    report->load_cv = deviation(b->E, load);
    report->load_max = n_pair > 0 ? most / n_pair * b->E : 0;
    report->imbalance = n_pair > 0 ? most_of_rank / n_pair * b->R : 0;
    free(memory);
    return GR_OK;
}
