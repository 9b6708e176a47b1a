/* balance.c: the balance of a Grouter's choices is the auxiliary loss of a learned router whose gates nobody asks for:
 * the backend's router op computes both. */
#include "grouter/balance.h"

#include <stdlib.h>

struct gr_balance {
    gr_backend *backend;
    int64_t N, T, E, K;
    void *memory;
    float *lse, *gate, *dgate, *dscores;
    uint16_t *ids;
    uint32_t *count;
    double *loss;        /* [2] */
    uint64_t *load;      /* [E] */
    void *host;          /* memory of these three */
    uint64_t *read_load; /* [E] */
    uint16_t *chosen;    /* [N, K] with a bias */
    float *chosen_gates; /* [N, K] */
    gr_staging scores;
};

static void layout(gr_balance *b, gr_arena *a) {
    b->lse = GR_TAKE(a, b->N, float);
    b->gate = GR_TAKE(a, b->N * b->K, float);
    b->dgate = GR_TAKE(a, b->N * b->K, float);
    b->dscores = GR_TAKE(a, b->N * b->E, float);
    b->ids = GR_TAKE(a, b->N * b->K, uint16_t);
    b->count = GR_TAKE(a, b->N / b->T * b->E, uint32_t);
    b->loss = GR_TAKE(a, 2, double);
    b->load = GR_TAKE(a, b->E, uint64_t);
}

static void layout_host(gr_balance *b, gr_arena *a) {
    b->read_load = GR_TAKE(a, b->E, uint64_t);
    b->chosen = GR_TAKE(a, b->N * b->K, uint16_t);
    b->chosen_gates = GR_TAKE(a, b->N * b->K, float);
}

static size_t measure(gr_balance *b, void (*lay)(gr_balance *b, gr_arena *a)) {
    gr_arena a = {0};
    lay(b, &a);
    return a.peak;
}

size_t gr_balance_memory(int64_t N, int64_t T, uint32_t E, uint32_t K) {
    gr_balance b = {.N = N, .T = T, .E = E, .K = K};
    return measure(&b, layout) + measure(&b, layout_host);
}

static gr_err allocate(gr_balance *b) {
    gr_arena a = {.size = measure(b, layout)}, host = {.size = measure(b, layout_host)};
    GR_TRY(b->backend->alloc(b->backend, a.size, "balance of choices", &b->memory));
    GR_TRY(gr_alloc(&b->host, host.size, 1, "balance of choices"));
    a.base = b->memory;
    host.base = b->host;
    layout(b, &a);
    layout_host(b, &host);
    return GR_OK;
}

gr_err gr_balance_open(gr_balance **out, gr_backend *backend, int64_t N, int64_t T, uint32_t E, uint32_t K) {
    *out = NULL;
    GR_ASSERT(backend->dtype == GR_F32, "backend %s stores %s", backend->name, gr_dtype_name(backend->dtype));
    gr_balance *b;
    GR_TRY(gr_alloc((void **)&b, 1, sizeof *b, "balance"));
    *b = (gr_balance){.backend = backend, .N = N, .T = T, .E = E, .K = K, .scores = {.backend = backend}};
    gr_err e = allocate(b);
    if (e) {
        gr_balance_close(b);
        return e;
    }
    *out = b;
    return GR_OK;
}

void gr_balance_close(gr_balance *b) {
    if (!b)
        return;
    gr_staging_close(&b->scores);
    free(b->host);
    b->backend->release(b->backend, b->memory);
    free(b);
}

static gr_router_op router_args(gr_balance *b, float *p) {
    return (gr_router_op){.normalise = true,
        .n = b->N,
        .T = b->T,
        .E = b->E,
        .K = b->K,
        .scale = 1,
        .aux_scale = 1.0 / ((double)b->T * (double)b->K),
        .p = p,
        .lse = b->lse,
        .ids = b->ids,
        .gate = b->gate,
        .count = b->count,
        .load = b->load,
        .loss = b->loss};
}

/* By score and bias, on the host. */
static gr_err choose(gr_balance *b, const float *scores, const float *bias) {
    const gr_selection s = {.E = (uint32_t)b->E, .K = (uint32_t)b->K, .scale = 1, .threshold = 1, .bias = bias};
    const void *host;
    GR_TRY(gr_staging_fetch(&b->scores, scores, (size_t)(b->N * b->E) * sizeof *scores, &host));
    gr_select(&s, (uint32_t)b->N, host, b->chosen, b->chosen_gates);
    return b->backend->upload(b->backend, GR_LANE_COMPUTE, b->ids, b->chosen, (size_t)(b->N * b->K) * sizeof *b->ids);
}

gr_err gr_balance_forward(gr_balance *b, float *scores, const float *bias, double *loss_sum, uint64_t *load) {
    gr_backend *backend = b->backend;
    const size_t n_load = (size_t)b->E * sizeof *b->load;
    gr_router_op op = router_args(b, scores);
    double loss[2];
    op.choice = bias ? GR_CHOICE_GIVEN : GR_CHOICE_TOP_K;
    if (bias)
        GR_TRY(choose(b, scores, bias));
    GR_TRY(backend->fill_zero(backend, GR_LANE_COMPUTE, b->loss, sizeof loss));
    GR_TRY(backend->fill_zero(backend, GR_LANE_COMPUTE, b->load, n_load));
    GR_TRY(backend->router_forward(backend, GR_LANE_COMPUTE, &op));
    GR_TRY(backend->download(backend, GR_LANE_COMPUTE, loss, b->loss, sizeof loss));
    GR_TRY(backend->download(backend, GR_LANE_COMPUTE, b->read_load, b->load, n_load));
    GR_TRY(backend->sync(backend));
    *loss_sum += loss[0];
    for (int64_t e = 0; e < b->E; e++)
        load[e] += b->read_load[e];
    return GR_OK;
}

gr_err gr_balance_backward(gr_balance *b, float *softmax, double scale, const float **dscores) {
    gr_router_op op = router_args(b, softmax);
    op.aux_scale *= scale;
    op.dgate = b->dgate; /* zeros: gates lead nowhere here */
    op.dlogits = b->dscores;
    *dscores = b->dscores;
    return b->backend->router_backward(b->backend, GR_LANE_COMPUTE, &op);
}

void gr_balance_bias(uint32_t E, const uint64_t *load, double rate, float *bias) {
    uint64_t all = 0;
    for (uint32_t e = 0; e < E; e++)
        all += load[e];
    for (uint32_t e = 0; e < E; e++) {
        uint64_t mine = load[e] * E; /* against all: no rounding decides the sign */
        if (mine != all)
            bias[e] += (float)(mine > all ? -rate : rate);
    }
}
