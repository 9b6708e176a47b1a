/* kernels_heads.c: ops over the heads of queries and keys: norm with rotary embedding, and rotary embedding alone. Each
 * with the heads it is measured on and loops in double for what comes of them. */
#include <math.h>

#include "kernels.h"

enum { SAMPLES = 8, COLUMNS = 4 };
enum { FORWARD, BACKWARD };
#define EPS 1e-6f

static size_t act(const bench_kernel *k) {
    return k->backend->elem_size;
}

/* Tables [T, h/2] of what positions turn by. */
static void fill_angles(const gr_bench_shape *s, float *cosine, float *sine) {
    const int64_t half = s->hd / 2;
    for (int64_t t = 0; t < s->T; t++)
        for (int64_t i = 0; i < half; i++) {
            const double angle = (double)t * pow(1e4, -2.0 * (double)i / (double)s->hd);
            cosine[t * half + i] = (float)cos(angle);
            sine[t * half + i] = (float)sin(angle);
        }
}

/* ---------------------------------------------------------------- norm and rotary embedding of queries and keys */

enum {
    HEADS_COS,
    HEADS_SIN,
    HEADS_X,
    HEADS_WQ,
    HEADS_WK,
    HEADS_Y,
    HEADS_RSTD,
    HEADS_DY,
    HEADS_DX,
    HEADS_DWQ,
    HEADS_DWK
};

static gr_err heads_open(bench_kernel *k) {
    const gr_bench_shape *s = k->shape;
    const int64_t hd = s->hd, n = k->N * (s->H + s->H_kv), n_angle = s->T * (hd / 2), row = (s->H + s->H_kv) * hd;
    const gr_dtype dtype = k->backend->dtype;
    const bool back = k->way == BACKWARD;
    const bench_want want[] = {[HEADS_COS] = {BENCH_IN, GR_F32, n_angle, 0},
        [HEADS_SIN] = {BENCH_IN, GR_F32, n_angle, 0},
        [HEADS_X] = {BENCH_IN, dtype, n * hd, 1},
        [HEADS_WQ] = {BENCH_IN, GR_F32, hd, 1},
        [HEADS_WK] = {BENCH_IN, GR_F32, hd, 1},
        [HEADS_Y] = {BENCH_OUT, dtype, n * hd, 0},
        [HEADS_RSTD] = {BENCH_OUT, GR_F32, n, 0},
        [HEADS_DY] = {BENCH_IN, dtype, back ? n * hd : 0, 1},
        [HEADS_DX] = {BENCH_OUT, dtype, back ? n * hd : 0, 0},
        [HEADS_DWQ] = {BENCH_SUM, GR_F32, back ? hd : 0, 0},
        [HEADS_DWK] = {BENCH_SUM, GR_F32, back ? hd : 0, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    fill_angles(s, gr_bench_host(k, HEADS_COS), gr_bench_host(k, HEADS_SIN));
    k->op.head_norm = (gr_head_norm){.n_row = k->N,
        .T = s->T,
        .n_q = s->H,
        .n_k = s->H_kv,
        .head_dim = hd,
        .ldx = row,
        .ldy = row,
        .eps = EPS,
        .cosine = gr_bench_device(k, HEADS_COS),
        .sine = gr_bench_device(k, HEADS_SIN),
        .x = gr_bench_device(k, HEADS_X),
        .wq = gr_bench_device(k, HEADS_WQ),
        .wk = gr_bench_device(k, HEADS_WK),
        .y = gr_bench_device(k, HEADS_Y),
        .rstd = gr_bench_device(k, HEADS_RSTD),
        .dy = gr_bench_device(k, HEADS_DY),
        .dx = gr_bench_device(k, HEADS_DX),
        .dwq = gr_bench_device(k, HEADS_DWQ),
        .dwk = gr_bench_device(k, HEADS_DWK)};
    k->bytes = (double)n * ((double)act(k) * (double)hd * (back ? 3 : 2) + 4) + 4.0 * (double)(s->T * hd) +
               (back ? 24.0 : 8) * (double)hd;
    snprintf(k->text, sizeof k->text, "N %lld, T %lld, H %lld, G %lld, h %lld", (long long)k->N, (long long)s->T,
        (long long)s->H, (long long)s->H_kv, (long long)hd);
    return GR_OK;
}

static gr_err heads_forward(bench_kernel *k) {
    return k->backend->head_norm_forward(k->backend, GR_LANE_COMPUTE, &k->op.head_norm);
}

static gr_err heads_backward(bench_kernel *k) {
    return k->backend->head_norm_backward(k->backend, GR_LANE_COMPUTE, &k->op.head_norm);
}

/* Of head `head` of all: its weights, rstd. */
static int heads_weights(const bench_kernel *k, int64_t head) {
    return head % (k->shape->H + k->shape->H_kv) < k->shape->H ? HEADS_WQ : HEADS_WK;
}

static double heads_rstd(const bench_kernel *k, int64_t head) {
    const int64_t hd = k->shape->hd;
    double squares = 0;
    for (int64_t j = 0; j < hd; j++) {
        const double x = gr_bench_in(k, HEADS_X, head * hd + j);
        squares += x * x;
    }
    return 1 / sqrt(squares / (double)hd + (double)EPS);
}

/* Element j of head `head`, turned by its position or back: of x rstd w, or of dy. */
static double heads_element(const bench_kernel *k, int64_t head, int64_t j, double rstd) {
    const int64_t hd = k->shape->hd, half = hd / 2, other = (j + half) % hd, at = head * hd;
    const int64_t angle = head / (k->shape->H + k->shape->H_kv) % k->shape->T * half + j % half;
    const bool back = k->way == BACKWARD;
    const int w = heads_weights(k, head);
    const double c = gr_bench_in(k, HEADS_COS, angle), s = gr_bench_in(k, HEADS_SIN, angle);
    const double sign = (j < half) == back ? 1 : -1;
    if (back)
        return gr_bench_in(k, HEADS_DY, at + j) * c + sign * gr_bench_in(k, HEADS_DY, at + other) * s;
    return rstd * (gr_bench_in(k, HEADS_X, at + j) * gr_bench_in(k, w, j) * c +
                      sign * gr_bench_in(k, HEADS_X, at + other) * gr_bench_in(k, w, other) * s);
}

static double heads_check(const bench_kernel *k) {
    const int64_t hd = k->shape->hd, n = k->N * (k->shape->H + k->shape->H_kv);
    bench_error e = {0}, of_rstd = {0};
    for (int64_t i = 0; i < SAMPLES; i++) {
        const int64_t head = gr_bench_sample(i, SAMPLES, n);
        const double r = heads_rstd(k, head);
        gr_bench_compare(&of_rstd, gr_bench_out(k, HEADS_RSTD, head), r);
        for (int64_t j = 0; j < hd; j++)
            gr_bench_compare(&e, gr_bench_out(k, HEADS_Y, head * hd + j), heads_element(k, head, j, r));
    }
    return fmax(gr_bench_error_get(&e), gr_bench_error_get(&of_rstd));
}

/* Some columns of the gradients of both weights. */
static double heads_check_weights(const bench_kernel *k) {
    const int64_t hd = k->shape->hd, n = k->N * (k->shape->H + k->shape->H_kv);
    bench_error e = {0};
    double dw[2][COLUMNS] = {{0}};
    for (int64_t head = 0; head < n; head++) {
        const double r = heads_rstd(k, head);
        double *of = dw[heads_weights(k, head) == HEADS_WK];
        for (int64_t c = 0; c < COLUMNS; c++) {
            const int64_t j = gr_bench_sample(c, COLUMNS, hd);
            of[c] += heads_element(k, head, j, r) * gr_bench_in(k, HEADS_X, head * hd + j) * r;
        }
    }
    for (int64_t c = 0; c < COLUMNS; c++) {
        const int64_t j = gr_bench_sample(c, COLUMNS, hd);
        gr_bench_compare(&e, gr_bench_out(k, HEADS_DWQ, j), dw[0][c]);
        gr_bench_compare(&e, gr_bench_out(k, HEADS_DWK, j), dw[1][c]);
    }
    return gr_bench_error_get(&e);
}

static double heads_check_back(const bench_kernel *k) {
    const int64_t hd = k->shape->hd, n = k->N * (k->shape->H + k->shape->H_kv);
    bench_error e = {0};
    for (int64_t i = 0; i < SAMPLES; i++) {
        const int64_t head = gr_bench_sample(i, SAMPLES, n);
        const int w = heads_weights(k, head);
        const double r = heads_rstd(k, head);
        double mean = 0;
        for (int64_t j = 0; j < hd; j++)
            mean += gr_bench_in(k, w, j) * heads_element(k, head, j, r) * gr_bench_in(k, HEADS_X, head * hd + j) /
                    (double)hd;
        for (int64_t j = 0; j < hd; j++)
            gr_bench_compare(&e, gr_bench_out(k, HEADS_DX, head * hd + j),
                r * (gr_bench_in(k, w, j) * heads_element(k, head, j, r) -
                        gr_bench_in(k, HEADS_X, head * hd + j) * r * r * mean));
    }
    return fmax(gr_bench_error_get(&e), heads_check_weights(k));
}

/* ---------------------------------------------------------------- rotary embedding alone */

enum { ROPE_COS, ROPE_SIN, ROPE_X };

static gr_err rope_open(bench_kernel *k) {
    const int64_t T = k->shape->T, H = k->shape->H, hd = k->shape->hd, half = hd / 2;
    const bench_want want[] = {[ROPE_COS] = {BENCH_IN, GR_F32, T * half, 0},
        [ROPE_SIN] = {BENCH_IN, GR_F32, T * half, 0},
        [ROPE_X] = {BENCH_TURN, k->backend->dtype, k->N * H * hd, 1}};
    GR_TRY(BENCH_OPEN(k, want));
    fill_angles(k->shape, gr_bench_host(k, ROPE_COS), gr_bench_host(k, ROPE_SIN));
    k->op.rope = (gr_rope){.n_row = k->N,
        .T = T,
        .n_head = H,
        .head_dim = hd,
        .ld = H * hd,
        .cosine = gr_bench_device(k, ROPE_COS),
        .sine = gr_bench_device(k, ROPE_SIN),
        .x = gr_bench_device(k, ROPE_X)};
    k->bytes = 2.0 * (double)act(k) * (double)(k->N * H * hd) + 4.0 * (double)(T * hd);
    snprintf(k->text, sizeof k->text, "N %lld, T %lld, H %lld, h %lld", (long long)k->N, (long long)T, (long long)H,
        (long long)hd);
    return GR_OK;
}

static gr_err rope_run(bench_kernel *k) {
    return k->backend->rope(k->backend, GR_LANE_COMPUTE, &k->op.rope);
}

static double rope_check(const bench_kernel *k) {
    const int64_t T = k->shape->T, hd = k->shape->hd, half = hd / 2, n_head = k->N * k->shape->H;
    bench_error e = {0};
    for (int64_t i = 0; i < SAMPLES; i++) {
        const int64_t head = gr_bench_sample(i, SAMPLES, n_head), t = head / k->shape->H % T;
        for (int64_t j = 0; j < half; j++) {
            const double c = gr_bench_in(k, ROPE_COS, t * half + j), s = gr_bench_in(k, ROPE_SIN, t * half + j);
            const double u = gr_bench_in(k, ROPE_X, head * hd + j), v = gr_bench_in(k, ROPE_X, head * hd + half + j);
            gr_bench_compare(&e, gr_bench_out(k, ROPE_X, head * hd + j), u * c - v * s);
            gr_bench_compare(&e, gr_bench_out(k, ROPE_X, head * hd + half + j), v * c + u * s);
        }
    }
    return gr_bench_error_get(&e);
}

/* ---------------------------------------------------------------- the cases */

const bench_case gr_bench_head_cases[] = {
    BENCH_CASE("head_norm_forward", "", "2 s N (H + G) h + 4 N (H + G) + 4 T h + 8 h", FORWARD, heads_open, NULL,
        heads_forward, heads_check),
    BENCH_CASE("head_norm_backward", "", "3 s N (H + G) h + 4 N (H + G) + 4 T h + 24 h", BACKWARD, heads_open,
        heads_forward, heads_backward, heads_check_back),
    BENCH_CASE("rope", "", "2 s N H h + 4 T h", 0, rope_open, NULL, rope_run, rope_check),
};
const int gr_bench_n_head_case = sizeof gr_bench_head_cases / sizeof *gr_bench_head_cases;
