/* kernels_flat.c: ops over flat arrays, the layer norm of a context-free Grouter, and copies. */
#include <math.h>
#include <string.h>

#include "kernels.h"

enum { SAMPLES = 64 };
enum { FORWARD, BACKWARD };

/* ---------------------------------------------------------------- layer norm with ReLU and residual */

enum { LN_X, LN_W, LN_B, LN_RESIDUAL, LN_Y, LN_MEAN, LN_RSTD, LN_DY, LN_DX, LN_DW, LN_DB };
enum { ROWS = 6, COLUMNS = 4 };
#define EPS 1e-5f

static gr_err layer_norm_open(bench_kernel *k) {
    const int64_t W = k->shape->D, n = k->N;
    const gr_dtype dtype = k->backend->dtype;
    const bool back = k->way == BACKWARD;
    const bench_want want[] = {[LN_X] = {BENCH_IN, dtype, n * W, 1},
        [LN_W] = {BENCH_IN, GR_F32, W, 1},
        [LN_B] = {BENCH_IN, GR_F32, W, 1},
        [LN_RESIDUAL] = {BENCH_IN, dtype, back ? 0 : n * W, 1},
        [LN_Y] = {BENCH_OUT, dtype, n * W, 0},
        [LN_MEAN] = {BENCH_OUT, GR_F32, n, 0},
        [LN_RSTD] = {BENCH_OUT, GR_F32, n, 0},
        [LN_DY] = {BENCH_IN, dtype, back ? n * W : 0, 1},
        [LN_DX] = {BENCH_OUT, dtype, back ? n * W : 0, 0},
        [LN_DW] = {BENCH_SUM, GR_F32, back ? W : 0, 0},
        [LN_DB] = {BENCH_SUM, GR_F32, back ? W : 0, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    k->op.layer_norm = (gr_layer_norm){.n_row = n,
        .width = W,
        .eps = EPS,
        .x = gr_bench_device(k, LN_X),
        .w = gr_bench_device(k, LN_W),
        .b = gr_bench_device(k, LN_B),
        .residual = gr_bench_device(k, LN_RESIDUAL),
        .y = gr_bench_device(k, LN_Y),
        .mean = gr_bench_device(k, LN_MEAN),
        .rstd = gr_bench_device(k, LN_RSTD),
        .dy = gr_bench_device(k, LN_DY),
        .dx = gr_bench_device(k, LN_DX),
        .dw = gr_bench_device(k, LN_DW),
        .db = gr_bench_device(k, LN_DB)};
    k->bytes = 3.0 * (double)k->backend->elem_size * (double)(n * W) + 8.0 * (double)n + (back ? 24.0 : 8) * (double)W;
    snprintf(k->text, sizeof k->text, "n %lld, W %lld", (long long)n, (long long)W);
    return GR_OK;
}

static gr_err layer_norm_forward(bench_kernel *k) {
    return k->backend->layer_norm_forward(k->backend, GR_LANE_COMPUTE, &k->op.layer_norm);
}

static gr_err layer_norm_backward(bench_kernel *k) {
    return k->backend->layer_norm_backward(k->backend, GR_LANE_COMPUTE, &k->op.layer_norm);
}

typedef struct moments {
    double mean, rstd;
} moments;

static moments moments_of(const bench_kernel *k, int64_t row) {
    const int64_t W = k->shape->D;
    double mean = 0, squares = 0;
    for (int64_t j = 0; j < W; j++)
        mean += gr_bench_in(k, LN_X, row * W + j) / (double)W;
    for (int64_t j = 0; j < W; j++) {
        const double d = gr_bench_in(k, LN_X, row * W + j) - mean;
        squares += d * d;
    }
    return (moments){.mean = mean, .rstd = 1 / sqrt(squares / (double)W + (double)EPS)};
}

/* What is normalised, and the ReLU's argument, at column j. */
static double normed(const bench_kernel *k, const moments *m, int64_t row, int64_t j, double *argument) {
    const double n = (gr_bench_in(k, LN_X, row * k->shape->D + j) - m->mean) * m->rstd;
    *argument = n * gr_bench_in(k, LN_W, j) + gr_bench_in(k, LN_B, j);
    return n;
}

static double layer_norm_check(const bench_kernel *k) {
    const int64_t W = k->shape->D;
    bench_error e = {0}, of_mean = {0}, of_rstd = {0};
    double argument;
    for (int64_t i = 0; i < ROWS; i++) {
        const int64_t row = gr_bench_sample(i, ROWS, k->N);
        const moments m = moments_of(k, row);
        gr_bench_compare(&of_mean, gr_bench_out(k, LN_MEAN, row), m.mean);
        gr_bench_compare(&of_rstd, gr_bench_out(k, LN_RSTD, row), m.rstd);
        for (int64_t j = 0; j < W; j++) {
            normed(k, &m, row, j, &argument);
            gr_bench_compare(
                &e, gr_bench_out(k, LN_Y, row * W + j), fmax(argument, 0) + gr_bench_in(k, LN_RESIDUAL, row * W + j));
        }
    }
    return fmax(gr_bench_error_get(&e), fmax(gr_bench_error_get(&of_mean), gr_bench_error_get(&of_rstd)));
}

static void check_row_back(const bench_kernel *k, int64_t row, bench_error *e) {
    const int64_t W = k->shape->D;
    const moments m = moments_of(k, row);
    double sum = 0, along = 0, argument;
    for (int64_t j = 0; j < W; j++) {
        const double n = normed(k, &m, row, j, &argument);
        const double wg = argument > 0 ? gr_bench_in(k, LN_W, j) * gr_bench_in(k, LN_DY, row * W + j) : 0;
        sum += wg / (double)W;
        along += wg * n / (double)W;
    }
    for (int64_t j = 0; j < W; j++) {
        const double n = normed(k, &m, row, j, &argument);
        const double wg = argument > 0 ? gr_bench_in(k, LN_W, j) * gr_bench_in(k, LN_DY, row * W + j) : 0;
        gr_bench_compare(e, gr_bench_out(k, LN_DX, row * W + j), m.rstd * (wg - sum - n * along));
    }
}

static double layer_norm_check_back(const bench_kernel *k) {
    const int64_t W = k->shape->D;
    bench_error e = {0}, of_w = {0};
    double dw[COLUMNS] = {0}, db[COLUMNS] = {0}, argument;
    for (int64_t i = 0; i < ROWS; i++)
        check_row_back(k, gr_bench_sample(i, ROWS, k->N), &e);
    for (int64_t row = 0; row < k->N; row++) {
        const moments m = moments_of(k, row);
        for (int64_t c = 0; c < COLUMNS; c++) {
            const int64_t j = gr_bench_sample(c, COLUMNS, W);
            const double n = normed(k, &m, row, j, &argument);
            const double g = argument > 0 ? gr_bench_in(k, LN_DY, row * W + j) : 0;
            dw[c] += g * n;
            db[c] += g;
        }
    }
    for (int64_t c = 0; c < COLUMNS; c++) {
        gr_bench_compare(&of_w, gr_bench_out(k, LN_DW, gr_bench_sample(c, COLUMNS, W)), dw[c]);
        gr_bench_compare(&of_w, gr_bench_out(k, LN_DB, gr_bench_sample(c, COLUMNS, W)), db[c]);
    }
    return fmax(gr_bench_error_get(&e), gr_bench_error_get(&of_w));
}

/* ---------------------------------------------------------------- the optimizer's passes */

enum { ADAMW_P, ADAMW_M, ADAMW_V, ADAMW_G, ADAMW_DECISION, ADAMW_ACT };
#define ADAMW_SCALE 0.5f /* of gradients */

static gr_err adamw_open(bench_kernel *k) {
    const int64_t n = k->flat;
    const bool rounded = k->backend->dtype == GR_BF16;
    const bench_want want[] = {[ADAMW_P] = {BENCH_TURN, GR_F32, n, 1},
        [ADAMW_M] = {BENCH_TURN, GR_F32, n, 0.1f},
        [ADAMW_V] = {BENCH_TURN, GR_F32, n, 0.1f},
        [ADAMW_G] = {BENCH_IN, GR_F32, n, 1},
        [ADAMW_DECISION] = {BENCH_IN, GR_F64, sizeof(gr_decision) / sizeof(double), 0},
        [ADAMW_ACT] = {BENCH_OUT, GR_BF16, rounded ? n : 0, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    float *v = gr_bench_host(k, ADAMW_V);
    for (int64_t i = 0; i < n; i++)
        v[i] *= v[i];
    *(gr_decision *)gr_bench_host(k, ADAMW_DECISION) = (gr_decision){.norm = 2, .grad_scale = ADAMW_SCALE};
    k->range = (gr_adamw_range){.n = n, .decay = true};
    k->op.adamw = (gr_adamw){.n = n,
        .step = 10,
        .lr = 1e-3f,
        .beta1 = 0.9f,
        .beta2 = 0.95f,
        .eps = 1e-8f,
        .weight_decay = 0.1f,
        .decision = gr_bench_device(k, ADAMW_DECISION),
        .range = &k->range,
        .n_range = 1,
        .p = gr_bench_device(k, ADAMW_P),
        .m = gr_bench_device(k, ADAMW_M),
        .v = gr_bench_device(k, ADAMW_V),
        .g = gr_bench_device(k, ADAMW_G),
        .p_act = gr_bench_device(k, ADAMW_ACT)};
    k->bytes = (rounded ? 30.0 : 28.0) * (double)n;
    snprintf(k->text, sizeof k->text, "n %lld", (long long)n);
    return GR_OK;
}

static gr_err adamw_run(bench_kernel *k) {
    return k->backend->adamw(k->backend, GR_LANE_COMPUTE, &k->op.adamw);
}

static double adamw_check(const bench_kernel *k) {
    const gr_adamw *a = &k->op.adamw;
    const double beta1 = (double)a->beta1, beta2 = (double)a->beta2;
    bench_error e = {0}, of_m = {0}, of_v = {0}, of_act = {0};
    for (int64_t s = 0; s < SAMPLES; s++) {
        const int64_t i = gr_bench_sample(s, SAMPLES, a->n);
        const double g = gr_bench_in(k, ADAMW_G, i) * (double)ADAMW_SCALE, p = gr_bench_in(k, ADAMW_P, i);
        const double m = beta1 * gr_bench_in(k, ADAMW_M, i) + (1 - beta1) * g;
        const double v = beta2 * gr_bench_in(k, ADAMW_V, i) + (1 - beta2) * g * g;
        const double m_hat = m / (1 - pow(beta1, (double)a->step)), v_hat = v / (1 - pow(beta2, (double)a->step));
        gr_bench_compare(&of_m, gr_bench_out(k, ADAMW_M, i), m);
        gr_bench_compare(&of_v, gr_bench_out(k, ADAMW_V, i), v);
        gr_bench_compare(&e, gr_bench_out(k, ADAMW_P, i),
            p - (double)a->lr * (m_hat / (sqrt(v_hat) + (double)a->eps) + (double)a->weight_decay * p));
        if (a->p_act)
            gr_bench_compare(&of_act, gr_bench_out(k, ADAMW_ACT, i),
                (double)gr_f32_from_bf16(gr_bf16_from_f32((float)gr_bench_out(k, ADAMW_P, i))));
    }
    return fmax(fmax(gr_bench_error_get(&e), gr_bench_error_get(&of_act)),
        fmax(gr_bench_error_get(&of_m), gr_bench_error_get(&of_v)));
}

enum { FLAT_FROM, FLAT_TO };

static gr_err flat_open(bench_kernel *k, gr_dtype to, int64_t n_to, bench_role role, double bytes_each) {
    const bench_want want[] = {[FLAT_FROM] = {BENCH_IN, GR_F32, k->flat, 1}, [FLAT_TO] = {role, to, n_to, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    k->bytes = bytes_each * (double)k->flat;
    snprintf(k->text, sizeof k->text, "n %lld", (long long)k->flat);
    return GR_OK;
}

static gr_err squares_open(bench_kernel *k) {
    k->flops = 2.0 * (double)k->flat;
    return flat_open(k, GR_F64, 1, BENCH_SUM, 4);
}

static gr_err squares_run(bench_kernel *k) {
    return k->backend->sum_squares(
        k->backend, GR_LANE_COMPUTE, gr_bench_device(k, FLAT_FROM), k->flat, gr_bench_device(k, FLAT_TO));
}

static double squares_check(const bench_kernel *k) {
    bench_error e = {0};
    double sum = 0;
    for (int64_t i = 0; i < k->flat; i++)
        sum += gr_bench_in(k, FLAT_FROM, i) * gr_bench_in(k, FLAT_FROM, i);
    gr_bench_compare(&e, gr_bench_out(k, FLAT_TO, 0), sum);
    return gr_bench_error_get(&e);
}

static gr_err round_open(bench_kernel *k) {
    return flat_open(k, k->backend->dtype, k->flat, BENCH_OUT, 4 + (double)k->backend->elem_size);
}

static gr_err round_run(bench_kernel *k) {
    return k->backend->round_weights(
        k->backend, GR_LANE_COMPUTE, gr_bench_device(k, FLAT_FROM), gr_bench_device(k, FLAT_TO), k->flat);
}

/* Exact: infinite at the first difference. */
static double round_check(const bench_kernel *k) {
    const bool rounded = k->backend->dtype == GR_BF16;
    for (int64_t i = 0; i < k->flat; i++) {
        const float x = ((const float *)gr_bench_host(k, FLAT_FROM))[i];
        if (gr_bench_out(k, FLAT_TO, i) != (double)(rounded ? gr_f32_from_bf16(gr_bf16_from_f32(x)) : x))
            return INFINITY;
    }
    return 0;
}

/* ---------------------------------------------------------------- copies */

enum { COPY, UPLOAD, DOWNLOAD, ZERO };

static gr_err copy_open(bench_kernel *k) {
    return flat_open(k, GR_F32, k->flat, BENCH_OUT, k->way == ZERO ? 4 : 8);
}

static gr_err copy_run(bench_kernel *k) {
    gr_backend *b = k->backend;
    const size_t n_byte = (size_t)k->flat * sizeof(float);
    void *to = gr_bench_device(k, FLAT_TO), *from = gr_bench_device(k, FLAT_FROM);
    switch (k->way) {
    case COPY:
        return b->copy(b, GR_LANE_COMPUTE, to, from, n_byte);
    case UPLOAD:
        return b->upload(b, GR_LANE_COMPUTE, to, gr_bench_host(k, FLAT_FROM), n_byte);
    case DOWNLOAD: /* its result is the host's: the array's own copy, which the check looks at */
        return b->download(b, GR_LANE_COMPUTE, k->arrays.list[FLAT_TO].host, from, n_byte);
    default:
        return b->fill_zero(b, GR_LANE_COMPUTE, to, n_byte);
    }
}

static double copy_check(const bench_kernel *k) {
    const size_t n_byte = (size_t)k->flat * sizeof(float);
    const void *got = k->way == DOWNLOAD ? k->arrays.list[FLAT_TO].host : k->arrays.list[FLAT_TO].result;
    if (k->way != ZERO)
        return memcmp(got, k->arrays.list[FLAT_FROM].host, n_byte) == 0 ? 0 : INFINITY;
    for (int64_t i = 0; i < k->flat; i++)
        if (gr_bench_out(k, FLAT_TO, i) != 0)
            return INFINITY;
    return 0;
}

/* ---------------------------------------------------------------- the cases */

const bench_case gr_bench_flat_cases[] = {
    BENCH_CASE("layer_norm_forward", "", "3 s n W + 8 n + 8 W", FORWARD, layer_norm_open, NULL, layer_norm_forward,
        layer_norm_check),
    BENCH_CASE("layer_norm_backward", "", "3 s n W + 8 n + 24 W", BACKWARD, layer_norm_open, layer_norm_forward,
        layer_norm_backward, layer_norm_check_back),
    BENCH_CASE("sum_squares", "2 n", "4 n", 0, squares_open, NULL, squares_run, squares_check),
    BENCH_CASE("adamw", "", "28 n, with s = 2 also 2 n", 0, adamw_open, NULL, adamw_run, adamw_check),
    BENCH_CASE("round_weights", "", "(4 + s) n", 0, round_open, NULL, round_run, round_check),
    BENCH_CASE("copy", "", "8 n", COPY, copy_open, NULL, copy_run, copy_check),
    BENCH_CASE("upload", "", "8 n", UPLOAD, copy_open, NULL, copy_run, copy_check),
    BENCH_CASE("download", "", "8 n", DOWNLOAD, copy_open, NULL, copy_run, copy_check),
    BENCH_CASE("fill_zero", "", "4 n", ZERO, copy_open, NULL, copy_run, copy_check),
};
const int gr_bench_n_flat_case = sizeof gr_bench_flat_cases / sizeof *gr_bench_flat_cases;
