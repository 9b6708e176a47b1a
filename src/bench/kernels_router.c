/* kernels_router.c: the router of a layer and the divergence of scores, with sampled results in double. */
#include <math.h>

#include "kernels.h"

enum { SAMPLES = 8 };
enum { FORWARD, BACKWARD };
#define AUX 1e-3
#define Z 1e-3

/* ---------------------------------------------------------------- router */

enum { ROUTER_P, ROUTER_LSE, ROUTER_IDS, ROUTER_GATE, ROUTER_COUNT, ROUTER_LOSS, ROUTER_DGATE, ROUTER_DLOGITS };

static gr_err router_open(bench_kernel *k) {
    const int64_t N = k->N, E = k->shape->E, K = k->shape->K, T = k->shape->T;
    const bool back = k->way == BACKWARD;
    const gr_dtype dtype = k->backend->dtype;
    const bench_want want[] = {[ROUTER_P] = {back ? BENCH_TURN : BENCH_BACK, GR_F32, N * E, 1},
        [ROUTER_LSE] = {BENCH_OUT, GR_F32, N, 0},
        [ROUTER_IDS] = {BENCH_OUT, GR_U16, N * K, 0},
        [ROUTER_GATE] = {BENCH_OUT, GR_F32, N * K, 0},
        [ROUTER_COUNT] = {BENCH_OUT, GR_U32, N / T * E, 0},
        [ROUTER_LOSS] = {BENCH_SUM, GR_F64, 2, 0},
        [ROUTER_DGATE] = {BENCH_IN, GR_F32, back ? N * K : 0, 1},
        [ROUTER_DLOGITS] = {BENCH_OUT, dtype, back ? N * E : 0, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    k->op.router = (gr_router_op){.choice = GR_CHOICE_TOP_K,
        .normalise = true,
        .n = N,
        .T = T,
        .E = E,
        .K = K,
        .scale = 1,
        .aux_scale = AUX,
        .z_scale = Z,
        .p = gr_bench_device(k, ROUTER_P),
        .lse = gr_bench_device(k, ROUTER_LSE),
        .ids = gr_bench_device(k, ROUTER_IDS),
        .gate = gr_bench_device(k, ROUTER_GATE),
        .count = gr_bench_device(k, ROUTER_COUNT),
        .loss = gr_bench_device(k, ROUTER_LOSS),
        .dgate = gr_bench_device(k, ROUTER_DGATE),
        .dlogits = gr_bench_device(k, ROUTER_DLOGITS)};
    const double n = (double)N, act = (double)k->backend->elem_size;
    k->bytes = back ? (4 + act) * n * (double)E + 10.0 * n * (double)K + 4 * n
                    : 8.0 * n * (double)E + 6.0 * n * (double)K + 4 * n;
    snprintf(k->text, sizeof k->text, "N %lld, T %lld, E %lld, K %lld", (long long)N, (long long)T, (long long)E,
        (long long)K);
    return GR_OK;
}

static gr_err router_forward(bench_kernel *k) {
    return k->backend->router_forward(k->backend, GR_LANE_COMPUTE, &k->op.router);
}

static gr_err router_backward(bench_kernel *k) {
    return k->backend->router_backward(k->backend, GR_LANE_COMPUTE, &k->op.router);
}

static double log_sum(const bench_kernel *k, int64_t t) {
    const int64_t E = k->shape->E;
    double sum = 0;
    for (int64_t i = 0; i < E; i++)
        sum += exp(gr_bench_in(k, ROUTER_P, t * E + i));
    return log(sum);
}

/* How many logits of the token are larger than that of expert i, or equal and of a lower id. */
static int64_t rank_of(const bench_kernel *k, int64_t t, int64_t i) {
    const int64_t E = k->shape->E;
    const double own = gr_bench_in(k, ROUTER_P, t * E + i);
    int64_t rank = 0;
    for (int64_t j = 0; j < E; j++) {
        const double other = gr_bench_in(k, ROUTER_P, t * E + j);
        rank += other > own || (other == own && j < i);
    }
    return rank;
}

/* Both losses of all tokens, from the counts that the first window's check stands for. */
static double loss_error(const bench_kernel *k) {
    const int64_t E = k->shape->E, T = k->shape->T;
    bench_error e = {0};
    double aux = 0, z = 0;
    for (int64_t t = 0; t < k->N; t++) {
        const double lse = log_sum(k, t);
        for (int64_t i = 0; i < E; i++)
            aux += gr_bench_out(k, ROUTER_COUNT, t / T * E + i) * exp(gr_bench_in(k, ROUTER_P, t * E + i) - lse);
        z += lse * lse;
    }
    gr_bench_compare(&e, gr_bench_out(k, ROUTER_LOSS, 0), AUX * aux);
    gr_bench_compare(&e, gr_bench_out(k, ROUTER_LOSS, 1), Z * z);
    return gr_bench_error_get(&e);
}

static double router_check(const bench_kernel *k) {
    const int64_t E = k->shape->E, K = k->shape->K, T = k->shape->T;
    bench_error e = {0}, of_gate = {0}, of_count = {0};
    for (int64_t s = 0; s < SAMPLES; s++) {
        const int64_t t = gr_bench_sample(s, SAMPLES, k->N);
        const double lse = log_sum(k, t);
        double chosen = 0;
        gr_bench_compare(&e, gr_bench_out(k, ROUTER_LSE, t), lse);
        for (int64_t i = 0; i < E; i++)
            gr_bench_compare(&e, gr_bench_out(k, ROUTER_P, t * E + i), exp(gr_bench_in(k, ROUTER_P, t * E + i) - lse));
        for (int64_t j = 0; j < K; j++) {
            const int64_t id = (int64_t)gr_bench_out(k, ROUTER_IDS, t * K + j);
            if (id >= E || rank_of(k, t, id) >= K || (j && id <= (int64_t)gr_bench_out(k, ROUTER_IDS, t * K + j - 1)))
                return INFINITY;
            chosen += exp(gr_bench_in(k, ROUTER_P, t * E + id));
        }
        for (int64_t j = 0; j < K; j++) {
            const int64_t id = (int64_t)gr_bench_out(k, ROUTER_IDS, t * K + j);
            gr_bench_compare(
                &of_gate, gr_bench_out(k, ROUTER_GATE, t * K + j), exp(gr_bench_in(k, ROUTER_P, t * E + id)) / chosen);
        }
    }
    for (int64_t i = 0; i < E; i++) { /* of the first window */
        double n = 0;
        for (int64_t j = 0; j < T * K; j++)
            n += gr_bench_out(k, ROUTER_IDS, j) == (double)i;
        gr_bench_compare(&of_count, gr_bench_out(k, ROUTER_COUNT, i), n);
    }
    return fmax(
        fmax(gr_bench_error_get(&e), loss_error(k)), fmax(gr_bench_error_get(&of_gate), gr_bench_error_get(&of_count)));
}

/* From what the forward saved, which its own case has checked. */
static double router_check_back(const bench_kernel *k) {
    const int64_t E = k->shape->E, K = k->shape->K, T = k->shape->T;
    bench_error e = {0};
    for (int64_t s = 0; s < SAMPLES; s++) {
        const int64_t t = gr_bench_sample(s, SAMPLES, k->N), window = t / T;
        double m = 0, a = 0;
        for (int64_t j = 0; j < K; j++)
            m += gr_bench_in(k, ROUTER_DGATE, t * K + j) * gr_bench_out(k, ROUTER_GATE, t * K + j);
        for (int64_t i = 0; i < E; i++)
            a += gr_bench_out(k, ROUTER_COUNT, window * E + i) * gr_bench_out(k, ROUTER_P, t * E + i);
        for (int64_t i = 0, j = 0; i < E; i++) {
            double dl =
                gr_bench_out(k, ROUTER_P, t * E + i) *
                (AUX * (gr_bench_out(k, ROUTER_COUNT, window * E + i) - a) + 2 * Z * gr_bench_out(k, ROUTER_LSE, t));
            if (j < K && (int64_t)gr_bench_out(k, ROUTER_IDS, t * K + j) == i) {
                dl += gr_bench_out(k, ROUTER_GATE, t * K + j) * (gr_bench_in(k, ROUTER_DGATE, t * K + j) - m);
                j++;
            }
            gr_bench_compare(&e, gr_bench_out(k, ROUTER_DLOGITS, t * E + i), dl);
        }
    }
    return gr_bench_error_get(&e);
}

/* ---------------------------------------------------------------- divergence */

enum { DIVERGENCE_TEACHER, DIVERGENCE_STUDENT, DIVERGENCE_LOSS, DIVERGENCE_GRADIENT };
#define TEMPERATURE 2

static gr_err divergence_open(bench_kernel *k) {
    const int64_t n = k->N * k->shape->E;
    const bench_want want[] = {[DIVERGENCE_TEACHER] = {BENCH_IN, GR_F32, n, 2},
        [DIVERGENCE_STUDENT] = {BENCH_IN, GR_F32, n, 2},
        [DIVERGENCE_LOSS] = {BENCH_SUM, GR_F64, 1, 0},
        [DIVERGENCE_GRADIENT] = {BENCH_OUT, GR_F32, n, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    k->op.divergence = (gr_divergence){.n = k->N,
        .E = k->shape->E,
        .teacher = gr_bench_device(k, DIVERGENCE_TEACHER),
        .student = gr_bench_device(k, DIVERGENCE_STUDENT),
        .temperature = TEMPERATURE,
        .scale = 1 / (float)k->N,
        .loss_sum = gr_bench_device(k, DIVERGENCE_LOSS),
        .dstudent = gr_bench_device(k, DIVERGENCE_GRADIENT)};
    k->bytes = 12.0 * (double)n;
    snprintf(k->text, sizeof k->text, "N %lld, E %lld", (long long)k->N, (long long)k->shape->E);
    return GR_OK;
}

static gr_err divergence_run(bench_kernel *k) {
    return k->backend->divergence(k->backend, GR_LANE_COMPUTE, &k->op.divergence);
}

static double normaliser(const bench_kernel *k, int scores, int64_t t) {
    double sum = 0;
    for (int64_t i = 0; i < k->shape->E; i++)
        sum += exp(gr_bench_in(k, scores, t * k->shape->E + i) / TEMPERATURE);
    return log(sum);
}

static double divergence_check(const bench_kernel *k) {
    const int64_t E = k->shape->E;
    bench_error e = {0}, of_loss = {0};
    double loss = 0;
    for (int64_t t = 0; t < k->N; t++) {
        const double of_p = normaliser(k, DIVERGENCE_TEACHER, t), of_q = normaliser(k, DIVERGENCE_STUDENT, t);
        for (int64_t i = t * E; i < (t + 1) * E; i++) {
            const double ln_p = gr_bench_in(k, DIVERGENCE_TEACHER, i) / TEMPERATURE - of_p,
                         ln_q = gr_bench_in(k, DIVERGENCE_STUDENT, i) / TEMPERATURE - of_q;
            loss += TEMPERATURE * TEMPERATURE * exp(ln_p) * (ln_p - ln_q);
            gr_bench_compare(
                &e, gr_bench_out(k, DIVERGENCE_GRADIENT, i), TEMPERATURE / (double)k->N * (exp(ln_q) - exp(ln_p)));
        }
    }
    gr_bench_compare(&of_loss, gr_bench_out(k, DIVERGENCE_LOSS, 0), loss);
    return fmax(gr_bench_error_get(&e), gr_bench_error_get(&of_loss));
}

/* ---------------------------------------------------------------- the cases */

const bench_case gr_bench_router_cases[] = {
    {.op = "router_forward",
        .variant = "",
        .flops = "",
        .bytes = "8 N E + 6 N K + 4 N",
        .way = FORWARD,
        .open = router_open,
        .run = router_forward,
        .check = router_check},
    {.op = "router_backward",
        .variant = "",
        .flops = "",
        .bytes = "(4 + s) N E + 10 N K + 4 N",
        .way = BACKWARD,
        .open = router_open,
        .prepare = router_forward,
        .run = router_backward,
        .check = router_check_back},
    {.op = "divergence",
        .variant = "",
        .flops = "",
        .bytes = "12 N E",
        .open = divergence_open,
        .run = divergence_run,
        .check = divergence_check},
};
const int gr_bench_n_router_case = sizeof gr_bench_router_cases / sizeof *gr_bench_router_cases;
