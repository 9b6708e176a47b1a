/* kernels_rows.c: ops over rows: gather, sums, embedding, norm, gates of pairs. Each with the rows it is measured on
 * and loops in double for what comes of them. */
#include <math.h>

#include "kernels.h"

enum { SAMPLES = 8, COLUMNS = 4 };
#define EPS 1e-6f

static size_t act(const bench_kernel *k) {
    return k->backend->elem_size;
}

/* Pairs in a random order: where each of a token's K results lies, or which token a pair is of. */
static uint32_t shuffled(const bench_kernel *k, int64_t i) {
    return (uint32_t)gr_bijection(k->seed, (uint64_t)k->P, (uint64_t)i);
}

/* ---------------------------------------------------------------- gather: rows of a dispatch, or of gates */

enum { GATHER_IN, GATHER_INDEX, GATHER_OUT };
enum { ROWS_ACT, ROWS_F32 };

static gr_err gather_open(bench_kernel *k) {
    const bool floats = k->way == ROWS_F32;
    const gr_dtype dtype = floats ? GR_F32 : k->backend->dtype;
    const int64_t width = floats ? k->shape->K : k->shape->D;
    const bench_want want[] = {[GATHER_IN] = {BENCH_IN, dtype, k->N * width, 1},
        [GATHER_INDEX] = {BENCH_IN, GR_U32, k->P, 0},
        [GATHER_OUT] = {BENCH_OUT, dtype, k->P * width, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    uint32_t *index = gr_bench_host(k, GATHER_INDEX);
    for (int64_t i = 0; i < k->P; i++)
        index[i] = shuffled(k, i) / (uint32_t)k->shape->K;
    k->op.gather = (gr_gather){.n_row = k->P,
        .width = width,
        .in = gr_bench_device(k, GATHER_IN),
        .index = gr_bench_device(k, GATHER_INDEX),
        .out = gr_bench_device(k, GATHER_OUT)};
    k->bytes = (double)(gr_dtype_size(dtype) * (size_t)width * (size_t)(k->N + k->P)) + 4.0 * (double)k->P;
    snprintf(k->text, sizeof k->text, "N %lld, P %lld, W %lld", (long long)k->N, (long long)k->P, (long long)width);
    return GR_OK;
}

static gr_err gather_run(bench_kernel *k) {
    gr_backend *b = k->backend;
    return (k->way == ROWS_F32 ? b->gather_f32 : b->gather_rows)(b, GR_LANE_COMPUTE, &k->op.gather);
}

static double gather_check(const bench_kernel *k) {
    const int64_t width = k->op.gather.width;
    bench_error e = {0};
    for (int64_t i = 0; i < SAMPLES; i++) {
        int64_t r = gr_bench_sample(i, SAMPLES, k->P), from = (int64_t)gr_bench_in(k, GATHER_INDEX, r);
        for (int64_t j = 0; j < width; j++)
            gr_bench_compare(
                &e, gr_bench_out(k, GATHER_OUT, r * width + j), gr_bench_in(k, GATHER_IN, from * width + j));
    }
    return gr_bench_error_get(&e);
}

/* ---------------------------------------------------------------- sums: K rows to each token */

enum { SUM_IN, SUM_OFFSET, SUM_INDEX, SUM_OUT };

static gr_err sum_open(bench_kernel *k) {
    const bool floats = k->way == ROWS_F32;
    const gr_dtype dtype = floats ? GR_F32 : k->backend->dtype;
    const int64_t width = floats ? k->shape->K : k->shape->D;
    const bench_want want[] = {[SUM_IN] = {BENCH_IN, dtype, k->P * width, 1},
        [SUM_OFFSET] = {BENCH_IN, GR_U32, k->N + 1, 0},
        [SUM_INDEX] = {BENCH_IN, GR_U32, k->P, 0},
        [SUM_OUT] = {BENCH_OUT, dtype, k->N * width, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    uint32_t *offset = gr_bench_host(k, SUM_OFFSET), *index = gr_bench_host(k, SUM_INDEX);
    for (int64_t t = 0; t <= k->N; t++)
        offset[t] = (uint32_t)(t * k->shape->K);
    for (int64_t i = 0; i < k->P; i++)
        index[i] = shuffled(k, i);
    k->op.sum = (gr_sum){.n_row = k->N,
        .width = width,
        .source = {gr_bench_device(k, SUM_IN)},
        .offset = {gr_bench_device(k, SUM_OFFSET)},
        .index = {gr_bench_device(k, SUM_INDEX)},
        .out = gr_bench_device(k, SUM_OUT)};
    k->flops = (double)(k->P * width);
    k->bytes = (double)(gr_dtype_size(dtype) * (size_t)width * (size_t)(k->N + k->P)) + 4.0 * (double)(k->P + k->N + 1);
    snprintf(k->text, sizeof k->text, "N %lld, P %lld, W %lld", (long long)k->N, (long long)k->P, (long long)width);
    return GR_OK;
}

static gr_err sum_run(bench_kernel *k) {
    gr_backend *b = k->backend;
    return (k->way == ROWS_F32 ? b->sum_f32 : b->sum_rows)(b, GR_LANE_COMPUTE, &k->op.sum);
}

static double sum_check(const bench_kernel *k) {
    const int64_t width = k->op.sum.width, K = k->shape->K;
    bench_error e = {0};
    for (int64_t i = 0; i < SAMPLES; i++) {
        const int64_t t = gr_bench_sample(i, SAMPLES, k->N);
        for (int64_t j = 0; j < width; j++) {
            double sum = 0;
            for (int64_t s = t * K; s < (t + 1) * K; s++)
                sum += gr_bench_in(k, SUM_IN, (int64_t)gr_bench_in(k, SUM_INDEX, s) * width + j);
            gr_bench_compare(&e, gr_bench_out(k, SUM_OUT, t * width + j), sum);
        }
    }
    return gr_bench_error_get(&e);
}

/* ---------------------------------------------------------------- embedding */

enum { EMBED_ID, EMBED_TABLE, EMBED_OUT, EMBED_DOUT, EMBED_DTABLE };
enum { FORWARD, BACKWARD };

static gr_err embed_open(bench_kernel *k) {
    const int64_t V = k->shape->V, D = k->shape->D;
    const gr_dtype dtype = k->backend->dtype;
    const bool back = k->way == BACKWARD;
    const bench_want want[] = {[EMBED_ID] = {BENCH_IN, GR_U32, k->N, 0},
        [EMBED_TABLE] = {BENCH_IN, dtype, back ? 0 : V * D, 1},
        [EMBED_OUT] = {BENCH_OUT, dtype, back ? 0 : k->N * D, 0},
        [EMBED_DOUT] = {BENCH_IN, dtype, back ? k->N * D : 0, 1},
        [EMBED_DTABLE] = {BENCH_SUM, GR_F32, back ? V * D : 0, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    uint32_t *id = gr_bench_host(k, EMBED_ID);
    for (int64_t i = 0; i < k->N; i++) /* one token in eight is the most frequent one */
        id[i] = i % 8 ? gr_random_below(k->seed, 1, (uint64_t)i, (uint32_t)V) : 0;
    k->op.embed = (gr_embed){.n = k->N,
        .width = D,
        .n_vocab = V,
        .id = gr_bench_device(k, EMBED_ID),
        .table = gr_bench_device(k, EMBED_TABLE),
        .out = gr_bench_device(k, EMBED_OUT),
        .dout = gr_bench_device(k, EMBED_DOUT),
        .dtable = gr_bench_device(k, EMBED_DTABLE)};
    k->flops = back ? (double)(k->N * D) : 0;
    k->bytes = (double)(k->N * D) * (back ? (double)act(k) + 8 : 2 * (double)act(k)) + 4.0 * (double)k->N;
    snprintf(k->text, sizeof k->text, "N %lld, D %lld, V %lld", (long long)k->N, (long long)D, (long long)V);
    return GR_OK;
}

static gr_err embed_run(bench_kernel *k) {
    gr_backend *b = k->backend;
    return (k->way == BACKWARD ? b->embed_backward : b->embed_forward)(b, GR_LANE_COMPUTE, &k->op.embed);
}

static double embed_check(const bench_kernel *k) {
    const int64_t D = k->shape->D;
    bench_error e = {0};
    for (int64_t i = 0; i < SAMPLES; i++) {
        const int64_t t = gr_bench_sample(i, SAMPLES, k->N), id = (int64_t)gr_bench_in(k, EMBED_ID, t);
        for (int64_t j = 0; j < D; j++) {
            double sum = 0;
            for (int64_t s = 0; k->way == BACKWARD && s < k->N; s++)
                sum += (int64_t)gr_bench_in(k, EMBED_ID, s) == id ? gr_bench_in(k, EMBED_DOUT, s * D + j) : 0;
            if (k->way == BACKWARD)
                gr_bench_compare(&e, gr_bench_out(k, EMBED_DTABLE, id * D + j), sum);
            else
                gr_bench_compare(&e, gr_bench_out(k, EMBED_OUT, t * D + j), gr_bench_in(k, EMBED_TABLE, id * D + j));
        }
    }
    return gr_bench_error_get(&e);
}

/* ---------------------------------------------------------------- RMS norm */

enum { NORM_X, NORM_W, NORM_Y, NORM_RSTD, NORM_DY, NORM_DX, NORM_DW };

static gr_err norm_open(bench_kernel *k) {
    const bool back = k->way == BACKWARD;
    const int64_t width = k->shape->D, n = k->N;
    const gr_dtype dtype = k->backend->dtype;
    const bench_want want[] = {[NORM_X] = {BENCH_IN, dtype, n * width, 1},
        [NORM_W] = {BENCH_IN, GR_F32, width, 1},
        [NORM_Y] = {BENCH_OUT, dtype, n * width, 0},
        [NORM_RSTD] = {BENCH_OUT, GR_F32, n, 0},
        [NORM_DY] = {BENCH_IN, dtype, back ? n * width : 0, 1},
        [NORM_DX] = {BENCH_OUT, dtype, back ? n * width : 0, 0},
        [NORM_DW] = {BENCH_SUM, GR_F32, back ? width : 0, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    k->op.norm = (gr_norm){.n_row = n,
        .width = width,
        .ldx = width,
        .ldy = width,
        .eps = EPS,
        .x = gr_bench_device(k, NORM_X),
        .w = gr_bench_device(k, NORM_W),
        .y = gr_bench_device(k, NORM_Y),
        .rstd = gr_bench_device(k, NORM_RSTD),
        .dy = gr_bench_device(k, NORM_DY),
        .dx = gr_bench_device(k, NORM_DX),
        .dw = gr_bench_device(k, NORM_DW)};
    k->bytes =
        (double)act(k) * (double)(n * width) * (back ? 3 : 2) + 4.0 * (double)n + (back ? 12.0 : 4) * (double)width;
    snprintf(k->text, sizeof k->text, "n %lld, W %lld", (long long)n, (long long)width);
    return GR_OK;
}

static gr_err norm_forward(bench_kernel *k) {
    return k->backend->norm_forward(k->backend, GR_LANE_COMPUTE, &k->op.norm);
}

static gr_err norm_backward(bench_kernel *k) {
    return k->backend->norm_backward(k->backend, GR_LANE_COMPUTE, &k->op.norm);
}

static double norm_rstd(const bench_kernel *k, int64_t row) {
    const int64_t width = k->op.norm.width;
    double squares = 0;
    for (int64_t j = 0; j < width; j++) {
        double x = gr_bench_in(k, NORM_X, row * width + j);
        squares += x * x;
    }
    return 1 / sqrt(squares / (double)width + (double)EPS);
}

static double norm_check(const bench_kernel *k) {
    const int64_t width = k->op.norm.width, n = k->op.norm.n_row;
    bench_error e = {0}, of_rstd = {0};
    for (int64_t i = 0; i < SAMPLES; i++) {
        const int64_t at = gr_bench_sample(i, SAMPLES, n) * width;
        const double r = norm_rstd(k, at / width);
        gr_bench_compare(&of_rstd, gr_bench_out(k, NORM_RSTD, at / width), r);
        for (int64_t j = 0; j < width; j++)
            gr_bench_compare(
                &e, gr_bench_out(k, NORM_Y, at + j), gr_bench_in(k, NORM_X, at + j) * r * gr_bench_in(k, NORM_W, j));
    }
    return fmax(gr_bench_error_get(&e), gr_bench_error_get(&of_rstd));
}

static double norm_check_back(const bench_kernel *k) {
    const int64_t width = k->op.norm.width, n = k->op.norm.n_row;
    bench_error e = {0}, of_w = {0};
    double dw[COLUMNS] = {0};
    for (int64_t i = 0; i < SAMPLES; i++) {
        const int64_t at = gr_bench_sample(i, SAMPLES, n) * width;
        const double r = norm_rstd(k, at / width);
        double mean = 0;
        for (int64_t j = 0; j < width; j++)
            mean += gr_bench_in(k, NORM_W, j) * gr_bench_in(k, NORM_DY, at + j) * gr_bench_in(k, NORM_X, at + j) /
                    (double)width;
        for (int64_t j = 0; j < width; j++)
            gr_bench_compare(&e, gr_bench_out(k, NORM_DX, at + j),
                r * (gr_bench_in(k, NORM_W, j) * gr_bench_in(k, NORM_DY, at + j) -
                        gr_bench_in(k, NORM_X, at + j) * r * r * mean));
    }
    for (int64_t row = 0; row < n; row++) {
        const double r = norm_rstd(k, row);
        for (int64_t c = 0; c < COLUMNS; c++) {
            const int64_t j = row * width + gr_bench_sample(c, COLUMNS, width);
            dw[c] += gr_bench_in(k, NORM_DY, j) * gr_bench_in(k, NORM_X, j) * r;
        }
    }
    for (int64_t c = 0; c < COLUMNS; c++)
        gr_bench_compare(&of_w, gr_bench_out(k, NORM_DW, gr_bench_sample(c, COLUMNS, width)), dw[c]);
    return fmax(gr_bench_error_get(&e), gr_bench_error_get(&of_w));
}

/* ---------------------------------------------------------------- gates of pairs */

enum { GATES_ROW, GATES_SLOT, GATES_GATE, GATES_PAIR };

static gr_err gates_open(bench_kernel *k) {
    const int64_t K = k->shape->K;
    const bool back = k->way == BACKWARD;
    const bench_want want[] = {[GATES_ROW] = {BENCH_IN, GR_U32, k->P, 0},
        [GATES_SLOT] = {BENCH_IN, GR_U8, k->P, 0},
        [GATES_GATE] = {back ? BENCH_OUT : BENCH_IN, GR_F32, k->N * K, back ? 0 : 1},
        [GATES_PAIR] = {back ? BENCH_IN : BENCH_OUT, GR_F32, k->P, back ? 1 : 0}};
    GR_TRY(BENCH_OPEN(k, want));
    uint32_t *row = gr_bench_host(k, GATES_ROW);
    uint8_t *slot = gr_bench_host(k, GATES_SLOT);
    for (int64_t i = 0; i < k->P; i++) {
        row[i] = shuffled(k, i) / (uint32_t)K;
        slot[i] = (uint8_t)(shuffled(k, i) % (uint32_t)K);
    }
    k->op.pair_gates = (gr_pair_gates){.n_row = k->N,
        .K = K,
        .n_pair = k->P,
        .pair_row = gr_bench_device(k, GATES_ROW),
        .pair_slot = gr_bench_device(k, GATES_SLOT)};
    if (back) {
        k->op.pair_gates.dpair_gate = gr_bench_device(k, GATES_PAIR);
        k->op.pair_gates.dgate = gr_bench_device(k, GATES_GATE);
    } else {
        k->op.pair_gates.gate = gr_bench_device(k, GATES_GATE);
        k->op.pair_gates.pair_gate = gr_bench_device(k, GATES_PAIR);
    }
    k->bytes = 13.0 * (double)k->P + (back ? 4.0 * (double)(k->N * K) : 0);
    snprintf(k->text, sizeof k->text, "N %lld, P %lld, K %lld", (long long)k->N, (long long)k->P, (long long)K);
    return GR_OK;
}

static gr_err gates_run(bench_kernel *k) {
    gr_backend *b = k->backend;
    return (k->way == BACKWARD ? b->pair_gates_backward : b->pair_gates_forward)(b, GR_LANE_COMPUTE, &k->op.pair_gates);
}

static double gates_check(const bench_kernel *k) {
    bench_error e = {0};
    for (int64_t p = 0; p < k->P; p++) {
        const int64_t at = (int64_t)shuffled(k, p); /* row * K + slot */
        if (k->way == BACKWARD)
            gr_bench_compare(&e, gr_bench_out(k, GATES_GATE, at), gr_bench_in(k, GATES_PAIR, p));
        else
            gr_bench_compare(&e, gr_bench_out(k, GATES_PAIR, p), gr_bench_in(k, GATES_GATE, at));
    }
    return gr_bench_error_get(&e);
}

/* ---------------------------------------------------------------- the cases */

const bench_case gr_bench_row_cases[] = {
    BENCH_CASE("gather_rows", "", "s W (N + P) + 4 P", ROWS_ACT, gather_open, NULL, gather_run, gather_check),
    BENCH_CASE("gather_f32", "", "4 W (N + P) + 4 P", ROWS_F32, gather_open, NULL, gather_run, gather_check),
    BENCH_CASE("sum_rows", "P W", "s W (N + P) + 4 (P + N + 1)", ROWS_ACT, sum_open, NULL, sum_run, sum_check),
    BENCH_CASE("sum_f32", "P W", "4 W (N + P) + 4 (P + N + 1)", ROWS_F32, sum_open, NULL, sum_run, sum_check),
    BENCH_CASE("embed_forward", "", "2 s N D + 4 N", FORWARD, embed_open, NULL, embed_run, embed_check),
    BENCH_CASE("embed_backward", "N D", "(s + 8) N D + 4 N", BACKWARD, embed_open, NULL, embed_run, embed_check),
    BENCH_CASE("norm_forward", "", "2 s n W + 4 n + 4 W", FORWARD, norm_open, NULL, norm_forward, norm_check),
    BENCH_CASE(
        "norm_backward", "", "3 s n W + 4 n + 12 W", BACKWARD, norm_open, norm_forward, norm_backward, norm_check_back),
    BENCH_CASE("pair_gates_forward", "", "13 P", FORWARD, gates_open, NULL, gates_run, gates_check),
    BENCH_CASE("pair_gates_backward", "", "13 P + 4 N K", BACKWARD, gates_open, NULL, gates_run, gates_check),
};
const int gr_bench_n_row_case = sizeof gr_bench_row_cases / sizeof *gr_bench_row_cases;
