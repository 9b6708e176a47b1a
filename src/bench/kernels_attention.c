/* kernels_attention.c: attention and the head's cross-entropy, with sampled results in double. */
#include <math.h>

#include "kernels.h"

enum { SAMPLES = 5 };
enum { FORWARD, BACKWARD };

/* ---------------------------------------------------------------- attention */

enum { ATT_Q, ATT_K, ATT_V, ATT_O, ATT_LSE, ATT_DOUT, ATT_DQ, ATT_DK, ATT_DV };

static gr_err attention_open(bench_kernel *k) {
    const gr_bench_shape *s = k->shape;
    const gr_dtype dtype = k->backend->dtype;
    const int64_t q = k->N * s->H * s->hd, kv = k->N * s->H_kv * s->hd;
    const bool back = k->way == BACKWARD;
    const bench_want want[] = {[ATT_Q] = {BENCH_IN, dtype, q, 1},
        [ATT_K] = {BENCH_IN, dtype, kv, 1},
        [ATT_V] = {BENCH_IN, dtype, kv, 1},
        [ATT_O] = {BENCH_OUT, dtype, q, 0},
        [ATT_LSE] = {BENCH_OUT, GR_F32, k->N * s->H, 0},
        [ATT_DOUT] = {BENCH_IN, dtype, back ? q : 0, 1},
        [ATT_DQ] = {BENCH_OUT, dtype, back ? q : 0, 0},
        [ATT_DK] = {BENCH_OUT, dtype, back ? kv : 0, 0},
        [ATT_DV] = {BENCH_OUT, dtype, back ? kv : 0, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    k->op.attention = (gr_attention){.mask = GR_ATTEND_CAUSAL,
        .n_window = k->N / s->T,
        .T = s->T,
        .H = s->H,
        .H_kv = s->H_kv,
        .head_dim = s->hd,
        .ldq = s->H * s->hd,
        .ldk = s->H_kv * s->hd,
        .ldv = s->H_kv * s->hd,
        .ldo = s->H * s->hd,
        .q = gr_bench_device(k, ATT_Q),
        .k = gr_bench_device(k, ATT_K),
        .v = gr_bench_device(k, ATT_V),
        .o = gr_bench_device(k, ATT_O),
        .lse = gr_bench_device(k, ATT_LSE),
        .dout = gr_bench_device(k, ATT_DOUT),
        .dq = gr_bench_device(k, ATT_DQ),
        .dk = gr_bench_device(k, ATT_DK),
        .dv = gr_bench_device(k, ATT_DV)};
    k->flops = (back ? 5.0 : 2.0) * (double)k->N * (double)s->T * (double)(s->H * s->hd);
    k->bytes = (back ? 4.0 : 2.0) * (double)k->backend->elem_size * (double)k->N * (double)((s->H + s->H_kv) * s->hd) +
               4.0 * (double)(k->N * s->H);
    snprintf(k->text, sizeof k->text, "N %lld, T %lld, H %lld, G %lld, h %lld", (long long)k->N, (long long)s->T,
        (long long)s->H, (long long)s->H_kv, (long long)s->hd);
    return GR_OK;
}

static gr_err attention_forward(bench_kernel *k) {
    return k->backend->attention_forward(k->backend, GR_LANE_COMPUTE, &k->op.attention);
}

static gr_err attention_backward(bench_kernel *k) {
    return k->backend->attention_backward(k->backend, GR_LANE_COMPUTE, &k->op.attention);
}

/* One query row: token t of all, head j; its key/value head; the first token of its window. */
typedef struct query {
    int64_t t, j, kv, first, at; /* at: its first element */
} query;

static query query_of(const bench_kernel *k, int64_t t, int64_t j) {
    const gr_bench_shape *s = k->shape;
    return (query){.t = t, .j = j, .kv = j / (s->H / s->H_kv), .first = t / s->T * s->T, .at = (t * s->H + j) * s->hd};
}

static int64_t key_at(const bench_kernel *k, const query *q, int64_t t) {
    return (t * k->shape->H_kv + q->kv) * k->shape->hd;
}

/* <row of `a` at element i, row of `b` at element j> */
static double dot(const bench_kernel *k, int a, int64_t i, int b, int64_t j) {
    double sum = 0;
    for (int64_t d = 0; d < k->shape->hd; d++)
        sum += gr_bench_in(k, a, i + d) * gr_bench_in(k, b, j + d);
    return sum;
}

static double score(const bench_kernel *k, const query *q, int64_t t) {
    return dot(k, ATT_Q, q->at, ATT_K, key_at(k, q, t)) / sqrt((double)k->shape->hd);
}

static query query_sample(const bench_kernel *k, int64_t i) {
    return query_of(k, gr_bench_sample(i, SAMPLES, k->N), gr_bench_sample(i, SAMPLES, k->shape->H));
}

static double attention_check(const bench_kernel *k) {
    const gr_bench_shape *s = k->shape;
    bench_error e = {0}, of_lse = {0};
    for (int64_t i = 0; i < SAMPLES; i++) {
        const query q = query_sample(k, i);
        double sum = 0;
        for (int64_t t = q.first; t <= q.t; t++)
            sum += exp(score(k, &q, t)); /* of normal numbers: no overflow */
        const int64_t window = q.t / s->T, lse = (window * s->H + q.j) * s->T + q.t % s->T;
        gr_bench_compare(&of_lse, gr_bench_out(k, ATT_LSE, lse), log(sum));
        for (int64_t d = 0; d < s->hd; d++) {
            double o = 0;
            for (int64_t t = q.first; t <= q.t; t++)
                o += exp(score(k, &q, t)) / sum * gr_bench_in(k, ATT_V, key_at(k, &q, t) + d);
            gr_bench_compare(&e, gr_bench_out(k, ATT_O, q.at + d), o);
        }
    }
    return fmax(gr_bench_error_get(&e), gr_bench_error_get(&of_lse));
}

/* p and dS of a query and a key, from the forward's o and lse, which its own case has checked. */
static void attention_slope(const bench_kernel *k, const query *q, int64_t t, double *p, double *ds) {
    const gr_bench_shape *s = k->shape;
    const double lse = gr_bench_out(k, ATT_LSE, (q->t / s->T * s->H + q->j) * s->T + q->t % s->T);
    double delta = 0;
    for (int64_t d = 0; d < s->hd; d++)
        delta += gr_bench_in(k, ATT_DOUT, q->at + d) * gr_bench_out(k, ATT_O, q->at + d);
    *p = exp(score(k, q, t) - lse);
    *ds = *p * (dot(k, ATT_DOUT, q->at, ATT_V, key_at(k, q, t)) - delta) / sqrt((double)s->hd);
}

static void check_query(const bench_kernel *k, const query *q, bench_error *e) {
    double dq[1024] = {0}, p, ds;
    for (int64_t t = q->first; t <= q->t; t++) {
        attention_slope(k, q, t, &p, &ds);
        for (int64_t d = 0; d < k->shape->hd; d++)
            dq[d] += ds * gr_bench_in(k, ATT_K, key_at(k, q, t) + d);
    }
    for (int64_t d = 0; d < k->shape->hd; d++)
        gr_bench_compare(e, gr_bench_out(k, ATT_DQ, q->at + d), dq[d]);
}

/* The key of token t that head j reads: all queries of its window behind it, of all heads that share it. */
static void check_key(const bench_kernel *k, int64_t t, int64_t j, bench_error *of_k, bench_error *of_v) {
    const gr_bench_shape *s = k->shape;
    const int64_t share = s->H / s->H_kv, kv = j / share, end = (t / s->T + 1) * s->T, at = (t * s->H_kv + kv) * s->hd;
    double dk[1024] = {0}, dv[1024] = {0}, p, ds;
    for (int64_t head = kv * share; head < (kv + 1) * share; head++)
        for (int64_t row = t; row < end; row++) {
            const query q = query_of(k, row, head);
            attention_slope(k, &q, t, &p, &ds);
            for (int64_t d = 0; d < s->hd; d++) {
                dk[d] += ds * gr_bench_in(k, ATT_Q, q.at + d);
                dv[d] += p * gr_bench_in(k, ATT_DOUT, q.at + d);
            }
        }
    for (int64_t d = 0; d < s->hd; d++) {
        gr_bench_compare(of_k, gr_bench_out(k, ATT_DK, at + d), dk[d]);
        gr_bench_compare(of_v, gr_bench_out(k, ATT_DV, at + d), dv[d]);
    }
}

static double attention_check_back(const bench_kernel *k) {
    bench_error of_q = {0}, of_k = {0}, of_v = {0};
    GR_ASSERT(k->shape->hd <= 1024, "head width %lld", (long long)k->shape->hd);
    for (int64_t i = 0; i < SAMPLES; i++) {
        const query q = query_sample(k, i);
        check_query(k, &q, &of_q);
        check_key(k, q.t, q.j, &of_k, &of_v);
    }
    return fmax(gr_bench_error_get(&of_q), fmax(gr_bench_error_get(&of_k), gr_bench_error_get(&of_v)));
}

/* ---------------------------------------------------------------- head and cross-entropy */

enum { LOSS_X, LOSS_W, LOSS_TARGET, LOSS_SUM, LOSS_TOKEN, LOSS_DX, LOSS_DW, LOSS_LOGITS };

static gr_err loss_open(bench_kernel *k) {
    const int64_t D = k->shape->D, V = k->shape->V, N = k->N;
    const gr_dtype dtype = k->backend->dtype;
    const bool back = k->way == BACKWARD;
    const bench_want want[] = {[LOSS_X] = {BENCH_IN, dtype, N * D, 1},
        [LOSS_W] = {BENCH_IN, dtype, V * D, 1 / sqrtf((float)D)},
        [LOSS_TARGET] = {BENCH_IN, GR_I32, N, 0},
        [LOSS_SUM] = {BENCH_SUM, GR_F64, 1, 0},
        [LOSS_TOKEN] = {BENCH_OUT, GR_F64, N, 0},
        [LOSS_DX] = {BENCH_OUT, dtype, back ? N * D : 0, 0},
        [LOSS_DW] = {BENCH_SUM, GR_F32, back ? V * D : 0, 0},
        [LOSS_LOGITS] = {BENCH_OUT, dtype, gr_logits_chunk(k->backend, N, V) * V, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    int32_t *target = gr_bench_host(k, LOSS_TARGET);
    for (int64_t i = 0; i < N; i++)
        target[i] = (int32_t)gr_random_below(k->seed, 2, (uint64_t)i, (uint32_t)V);
    k->op.loss = (gr_cross_entropy){.n = N,
        .D = D,
        .V = V,
        .x = gr_bench_device(k, LOSS_X),
        .w = gr_bench_device(k, LOSS_W),
        .target = gr_bench_device(k, LOSS_TARGET),
        .scale = 1 / (float)N,
        .loss_sum = gr_bench_device(k, LOSS_SUM),
        .token_loss = gr_bench_device(k, LOSS_TOKEN),
        .dx = gr_bench_device(k, LOSS_DX),
        .dw = gr_bench_device(k, LOSS_DW),
        .logits = gr_bench_device(k, LOSS_LOGITS)};
    const double s = (double)k->backend->elem_size;
    k->flops = (back ? 6.0 : 2.0) * (double)N * (double)D * (double)V;
    k->bytes = s * ((back ? 2.0 : 1.0) * (double)(N * D) + (double)(V * D)) + (back ? 8.0 * (double)(V * D) : 0) +
               12.0 * (double)N;
    snprintf(k->text, sizeof k->text, "N %lld, D %lld, V %lld", (long long)N, (long long)D, (long long)V);
    return GR_OK;
}

static gr_err loss_run(bench_kernel *k) {
    return k->backend->cross_entropy(k->backend, GR_LANE_COMPUTE, &k->op.loss);
}

static double logit(const bench_kernel *k, int64_t i, int64_t v) {
    const int64_t D = k->shape->D;
    double sum = 0;
    for (int64_t d = 0; d < D; d++)
        sum += gr_bench_in(k, LOSS_X, i * D + d) * gr_bench_in(k, LOSS_W, v * D + d);
    return sum;
}

/* Loss of token i, and of its dx, in every 16th column; sums of exponentials of normal numbers do not overflow. */
static void check_token(const bench_kernel *k, int64_t i, bench_error *of_loss, bench_error *of_dx) {
    const int64_t D = k->shape->D, V = k->shape->V, target = (int64_t)gr_bench_in(k, LOSS_TARGET, i);
    double sum = 0, dx[4096] = {0};
    for (int64_t v = 0; v < V; v++) {
        const double e = exp(logit(k, i, v));
        sum += e;
        for (int64_t d = 0; k->way == BACKWARD && d < D; d += 16)
            dx[d / 16] += e * gr_bench_in(k, LOSS_W, v * D + d);
    }
    gr_bench_compare(of_loss, gr_bench_out(k, LOSS_TOKEN, i), log(sum) - logit(k, i, target));
    for (int64_t d = 0; k->way == BACKWARD && d < D; d += 16)
        gr_bench_compare(of_dx, gr_bench_out(k, LOSS_DX, i * D + d),
            (dx[d / 16] / sum - gr_bench_in(k, LOSS_W, target * D + d)) / (double)k->N);
}

/* Elements of row v of dw. The logarithms of the tokens' sums come from the losses that were checked. */
static void check_row(const bench_kernel *k, int64_t v, bench_error *e) {
    const int64_t D = k->shape->D;
    double dw[SAMPLES] = {0};
    for (int64_t i = 0; i < k->N; i++) {
        const int64_t target = (int64_t)gr_bench_in(k, LOSS_TARGET, i);
        const double lse = gr_bench_out(k, LOSS_TOKEN, i) + logit(k, i, target);
        const double g = (exp(logit(k, i, v) - lse) - (v == target)) / (double)k->N;
        for (int64_t s = 0; s < SAMPLES; s++)
            dw[s] += g * gr_bench_in(k, LOSS_X, i * D + gr_bench_sample(s, SAMPLES, D));
    }
    for (int64_t s = 0; s < SAMPLES; s++)
        gr_bench_compare(e, gr_bench_out(k, LOSS_DW, v * D + gr_bench_sample(s, SAMPLES, D)), dw[s]);
}

static double loss_check(const bench_kernel *k) {
    bench_error of_loss = {0}, of_sum = {0}, of_dx = {0}, of_dw = {0};
    double sum = 0;
    GR_ASSERT(k->shape->D <= 16 * 4096, "width %lld", (long long)k->shape->D);
    for (int64_t i = 0; i < k->N; i++)
        sum += gr_bench_out(k, LOSS_TOKEN, i);
    gr_bench_compare(&of_sum, gr_bench_out(k, LOSS_SUM, 0), sum);
    for (int64_t i = 0; i < SAMPLES; i++) {
        const int64_t token = gr_bench_sample(i, SAMPLES, k->N);
        check_token(k, token, &of_loss, &of_dx);
        if (k->way == BACKWARD)
            check_row(k, (int64_t)gr_bench_in(k, LOSS_TARGET, token), &of_dw);
    }
    return fmax(fmax(gr_bench_error_get(&of_loss), gr_bench_error_get(&of_sum)),
        fmax(gr_bench_error_get(&of_dx), gr_bench_error_get(&of_dw)));
}

/* ---------------------------------------------------------------- the cases */

#define ATTENTION_FORWARD(kind, by)                                                                                    \
    {                                                                                                                  \
        .op = "attention_forward", .variant = kind, .flops = "2 N T H h", .bytes = "2 s N (H + G) h + 4 N H",          \
        .way = FORWARD, .compute = true, .attention = by, .open = attention_open, .run = attention_forward,            \
        .check = attention_check                                                                                       \
    }
#define ATTENTION_BACKWARD(kind, by)                                                                                   \
    {                                                                                                                  \
        .op = "attention_backward", .variant = kind, .flops = "5 N T H h", .bytes = "4 s N (H + G) h + 4 N H",         \
        .way = BACKWARD, .compute = true, .attention = by, .open = attention_open, .prepare = attention_forward,       \
        .run = attention_backward, .check = attention_check_back                                                       \
    }

const bench_case gr_bench_attention_cases[] = {
    ATTENTION_FORWARD("causal", GR_ATTENTION_AUTO),
    ATTENTION_FORWARD("causal, cublas", GR_ATTENTION_CUBLAS),
    ATTENTION_FORWARD("causal, flash", GR_ATTENTION_FLASH),
    ATTENTION_FORWARD("causal, cudnn", GR_ATTENTION_CUDNN),
    ATTENTION_BACKWARD("causal", GR_ATTENTION_AUTO),
    ATTENTION_BACKWARD("causal, cublas", GR_ATTENTION_CUBLAS),
    ATTENTION_BACKWARD("causal, flash", GR_ATTENTION_FLASH),
    ATTENTION_BACKWARD("causal, cudnn", GR_ATTENTION_CUDNN),
    {.op = "cross_entropy",
        .variant = "loss",
        .flops = "2 N D V",
        .bytes = "s (N D + V D) + 12 N, logits not counted",
        .way = FORWARD,
        .compute = true,
        .open = loss_open,
        .run = loss_run,
        .check = loss_check},
    {.op = "cross_entropy",
        .variant = "and gradients",
        .flops = "6 N D V",
        .bytes = "s (2 N D + V D) + 8 V D + 12 N, logits not counted",
        .way = BACKWARD,
        .compute = true,
        .open = loss_open,
        .run = loss_run,
        .check = loss_check},
};
const int gr_bench_n_attention_case = sizeof gr_bench_attention_cases / sizeof *gr_bench_attention_cases;
