/* kernels_product.c: matrix products and grouped experts, with sampled results in double. */
#include <math.h>

#include "kernels.h"

enum { SAMPLES = 6 };

static size_t act(const bench_kernel *k) {
    return k->backend->elem_size;
}

/* ---------------------------------------------------------------- products of attention, one expert, the head */

enum { GEMM_A, GEMM_B, GEMM_C };
enum { OF_QKV, OF_EXPERT, OF_HEAD };
#define GEMM_WAY(of, layout) ((of)*3 + (int)(layout))

/* y = x W^T and its backward, for x [rows, D] and W [wide, D]. */
static void gemm_sizes(const bench_kernel *k, int64_t *rows, int64_t *wide) {
    const gr_bench_shape *s = k->shape;
    const int of = k->way / 3;
    *rows = of == OF_QKV ? k->N : of == OF_EXPERT ? (k->P + s->E - 1) / s->E : gr_logits_chunk(k->backend, k->N, s->V);
    *wide = of == OF_QKV ? (s->H + 2 * s->H_kv) * s->hd : of == OF_EXPERT ? 2 * s->F : s->V;
}

static gr_err gemm_open(bench_kernel *k) {
    const gr_layout layout = (gr_layout)(k->way % 3);
    const gr_dtype dtype = k->backend->dtype, result = layout == GR_TN ? GR_F32 : dtype;
    const int64_t D = k->shape->D;
    int64_t rows, wide;
    gemm_sizes(k, &rows, &wide);
    const int64_t m = layout == GR_TN ? wide : rows, n = layout == GR_NT ? wide : D;
    const int64_t kk = layout == GR_NT ? D : layout == GR_NN ? wide : rows;
    const bench_want want[] = {[GEMM_A] = {BENCH_IN, dtype, m * kk, 1},
        [GEMM_B] = {BENCH_IN, dtype, n * kk, 1},
        [GEMM_C] = {layout == GR_TN ? BENCH_SUM : BENCH_OUT, result, m * n, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    k->op.gemm = (gr_gemm){.layout = layout,
        .write = layout == GR_TN ? GR_ACCUMULATE : GR_OVERWRITE,
        .m = m,
        .n = n,
        .k = kk,
        .a = gr_bench_device(k, GEMM_A),
        .lda = layout == GR_TN ? m : kk,
        .b = gr_bench_device(k, GEMM_B),
        .ldb = layout == GR_NT ? kk : n,
        .c = gr_bench_device(k, GEMM_C),
        .ldc = n,
        .c_dtype = result};
    k->flops = 2.0 * (double)m * (double)n * (double)kk;
    k->bytes = (double)act(k) * ((double)m + (double)n) * (double)kk;
    k->bytes += (layout == GR_TN ? 8.0 : (double)act(k)) * (double)m * (double)n;
    snprintf(k->text, sizeof k->text, "m %lld, n %lld, k %lld", (long long)m, (long long)n, (long long)kk);
    return GR_OK;
}

static gr_err gemm_run(bench_kernel *k) {
    return k->backend->gemm(k->backend, GR_LANE_COMPUTE, &k->op.gemm);
}

static double gemm_check(const bench_kernel *k) {
    const gr_gemm *g = &k->op.gemm;
    bench_error e = {0};
    for (int64_t s = 0; s < SAMPLES * SAMPLES; s++) {
        const int64_t i = gr_bench_sample(s / SAMPLES, SAMPLES, g->m), j = gr_bench_sample(s % SAMPLES, SAMPLES, g->n);
        double sum = 0;
        for (int64_t l = 0; l < g->k; l++)
            sum += gr_bench_in(k, GEMM_A, g->layout == GR_TN ? l * g->lda + i : i * g->lda + l) *
                   gr_bench_in(k, GEMM_B, g->layout == GR_NT ? j * g->ldb + l : l * g->ldb + j);
        gr_bench_compare(&e, gr_bench_out(k, GEMM_C, i * g->ldc + j), sum);
    }
    return gr_bench_error_get(&e);
}

/* ---------------------------------------------------------------- grouped experts */

enum {
    FFN_OFFSET,
    FFN_ROW,
    FFN_GATE,
    FFN_X,
    FFN_W13,
    FFN_W2,
    FFN_H,
    FFN_A,
    FFN_Y,
    FFN_DY,
    FFN_DA,
    FFN_DW13,
    FFN_DW2,
    FFN_DX,
    FFN_DGATE,
    FFN_TILES,
    FFN_ORDER
};
enum { FORWARD, BACKWARD };

/* Experts of 0.5 to 1.5 times the mean, so that their sizes are no multiples of anything. */
static void fill_pairs(bench_kernel *k) {
    const int64_t E = k->shape->E;
    uint32_t *offset = gr_bench_host(k, FFN_OFFSET), *row = gr_bench_host(k, FFN_ROW);
    for (int64_t e = 0; e <= E; e++) {
        const double x = (double)e / (double)E;
        offset[e] = (uint32_t)((double)k->P * (0.5 * x + 0.5 * x * x));
    }
    for (int64_t p = 0; p < k->P; p++)
        row[p] = (uint32_t)gr_bijection(k->seed, (uint64_t)k->P, (uint64_t)p) / (uint32_t)k->shape->K;
}

static gr_err ffn_open(bench_kernel *k) {
    const int64_t E = k->shape->E, D = k->shape->D, F = k->shape->F, N = k->N, P = k->P;
    const gr_dtype dtype = k->backend->dtype;
    const bool back = k->way == BACKWARD;
    const float w = 1 / sqrtf((float)D);
    const bench_want want[] = {[FFN_OFFSET] = {BENCH_IN, GR_U32, E + 1, 0},
        [FFN_ROW] = {BENCH_IN, GR_U32, P, 0},
        [FFN_GATE] = {BENCH_IN, GR_F32, P, 1},
        [FFN_X] = {BENCH_IN, dtype, N * D, 1},
        [FFN_W13] = {BENCH_IN, dtype, E * 2 * F * D, w},
        [FFN_W2] = {BENCH_IN, dtype, E * D * F, w},
        [FFN_H] = {back ? BENCH_BACK : BENCH_OUT, dtype, P * 2 * F, back ? 1 : 0},
        [FFN_A] = {BENCH_OUT, dtype, P * F, 0},
        [FFN_Y] = {BENCH_OUT, dtype, back ? 0 : P * D, 0},
        [FFN_DY] = {BENCH_IN, dtype, back ? N * D : 0, 1},
        [FFN_DA] = {BENCH_OUT, dtype, back ? P * F : 0, 0},
        [FFN_DW13] = {BENCH_SUM, GR_F32, back ? E * 2 * F * D : 0, 0},
        [FFN_DW2] = {BENCH_SUM, GR_F32, back ? E * D * F : 0, 0},
        [FFN_DX] = {BENCH_OUT, dtype, back ? P * D : 0, 0},
        [FFN_DGATE] = {BENCH_OUT, GR_F32, back ? P : 0, 0},
        [FFN_TILES] = {BENCH_IN, GR_U32, (int64_t)gr_tiles_max((uint64_t)P, (uint64_t)E) * 4, 0},
        [FFN_ORDER] = {BENCH_IN, GR_U32, E, 0}};
    GR_TRY(BENCH_OPEN(k, want));
    fill_pairs(k);
    const uint32_t n_tile = gr_tiles_build(
        gr_bench_host(k, FFN_OFFSET), (uint32_t)E, gr_bench_host(k, FFN_TILES), gr_bench_host(k, FFN_ORDER));
    k->op.ffn = (gr_ffn){.n_expert = (int32_t)E,
        .D = D,
        .F = F,
        .n_pair = P,
        .expert_offset = gr_bench_host(k, FFN_OFFSET),
        .pair_row = gr_bench_device(k, FFN_ROW),
        .pair_gate = gr_bench_device(k, FFN_GATE),
        .x = gr_bench_device(k, FFN_X),
        .w13 = gr_bench_device(k, FFN_W13),
        .w2 = gr_bench_device(k, FFN_W2),
        .h = gr_bench_device(k, FFN_H),
        .a = gr_bench_device(k, FFN_A),
        .y = gr_bench_device(k, FFN_Y),
        .dy = gr_bench_device(k, FFN_DY),
        .da = gr_bench_device(k, FFN_DA),
        .dw13 = gr_bench_device(k, FFN_DW13),
        .dw2 = gr_bench_device(k, FFN_DW2),
        .dx = gr_bench_device(k, FFN_DX),
        .dgate = gr_bench_device(k, FFN_DGATE),
        .tiles = gr_bench_device(k, FFN_TILES),
        .n_tile = n_tile,
        .expert_order = gr_bench_device(k, FFN_ORDER),
        .device_offset = gr_bench_device(k, FFN_OFFSET)};
    const double pairs = (double)P, s = (double)act(k), weights = 3.0 * (double)E * (double)D * (double)F;
    k->flops = (back ? 12.0 : 6.0) * pairs * (double)D * (double)F;
    k->bytes =
        s * ((back ? 2.0 : 1) * (double)(N * D) + weights + (back ? 4.0 : 2) * pairs * (double)F + pairs * (double)D) +
        (back ? 8 * weights : 0);
    snprintf(k->text, sizeof k->text, "N %lld, P %lld, E %lld, D %lld, F %lld", (long long)N, (long long)P,
        (long long)E, (long long)D, (long long)F);
    return GR_OK;
}

static gr_err ffn_run(bench_kernel *k) {
    gr_backend *b = k->backend;
    return (k->way == BACKWARD ? b->ffn_backward : b->ffn_forward)(b, GR_LANE_COMPUTE, &k->op.ffn);
}

/* Row i of expert e's W13 times the pair's token: h1 for i < F, else h3. */
static double ffn_h(const bench_kernel *k, int64_t e, int64_t p, int64_t i) {
    const int64_t D = k->shape->D, F = k->shape->F, x = (int64_t)gr_bench_in(k, FFN_ROW, p) * D;
    double sum = 0;
    for (int64_t d = 0; d < D; d++)
        sum += gr_bench_in(k, FFN_W13, (e * 2 * F + i) * D + d) * gr_bench_in(k, FFN_X, x + d);
    return sum;
}

/* The first pair of the i-th of some experts, those without pairs left out. */
static int64_t ffn_sample(const bench_kernel *k, int64_t i, int64_t *e) {
    const int64_t E = k->shape->E;
    *e = gr_bench_sample(i, SAMPLES, E);
    while (*e + 1 < E && gr_bench_in(k, FFN_OFFSET, *e) == gr_bench_in(k, FFN_OFFSET, *e + 1))
        ++*e;
    return (int64_t)gr_bench_in(k, FFN_OFFSET, *e);
}

static double ffn_check(const bench_kernel *k) {
    const int64_t D = k->shape->D, F = k->shape->F;
    bench_error e_h = {0}, e_y = {0};
    double a[4096];
    GR_ASSERT(F <= 4096, "expert width %lld", (long long)F);
    for (int64_t i = 0; i < SAMPLES; i++) {
        int64_t e, p = ffn_sample(k, i, &e);
        if (p >= k->P)
            continue;
        for (int64_t f = 0; f < F; f++) {
            const double h1 = ffn_h(k, e, p, f), h3 = ffn_h(k, e, p, F + f);
            gr_bench_compare(&e_h, gr_bench_out(k, FFN_H, p * 2 * F + f), h1);
            gr_bench_compare(&e_h, gr_bench_out(k, FFN_H, p * 2 * F + F + f), h3);
            a[f] = gr_bench_in(k, FFN_GATE, p) * gr_bench_silu(h1) * h3;
        }
        for (int64_t d = 0; d < D; d++) {
            double y = 0;
            for (int64_t f = 0; f < F; f++)
                y += a[f] * gr_bench_in(k, FFN_W2, (e * D + d) * F + f);
            gr_bench_compare(&e_y, gr_bench_out(k, FFN_Y, p * D + d), y);
        }
    }
    return fmax(gr_bench_error_get(&e_h), gr_bench_error_get(&e_y));
}

/* da' = <dy, column f of W2> of a pair. */
static double ffn_da(const bench_kernel *k, int64_t e, int64_t p, int64_t f) {
    const int64_t D = k->shape->D, F = k->shape->F, dy = (int64_t)gr_bench_in(k, FFN_ROW, p) * D;
    double sum = 0;
    for (int64_t d = 0; d < D; d++)
        sum += gr_bench_in(k, FFN_DY, dy + d) * gr_bench_in(k, FFN_W2, (e * D + d) * F + f);
    return sum;
}

/* dh of a pair at row i of W13, from the h that was given; *dgate grows by <da', gr_bench_silu(h1) h3>. */
static double ffn_dh(const bench_kernel *k, int64_t e, int64_t p, int64_t i, double *dgate) {
    const int64_t F = k->shape->F, f = i < F ? i : i - F;
    const double h1 = gr_bench_in(k, FFN_H, p * 2 * F + f), h3 = gr_bench_in(k, FFN_H, p * 2 * F + F + f);
    const double da = ffn_da(k, e, p, f), g = gr_bench_in(k, FFN_GATE, p);
    *dgate += da * gr_bench_silu(h1) * h3;
    return g * da * (i < F ? h3 * gr_bench_silu_slope(h1) : gr_bench_silu(h1));
}

/* Elements of both weights' gradients of one expert: sums over its pairs. */
static void check_gradients(const bench_kernel *k, int64_t e, bench_error *of13, bench_error *of2) {
    const int64_t D = k->shape->D, F = k->shape->F;
    const int64_t first = (int64_t)gr_bench_in(k, FFN_OFFSET, e), end = (int64_t)gr_bench_in(k, FFN_OFFSET, e + 1);
    for (int64_t s = 0; s < SAMPLES; s++) {
        const int64_t i = gr_bench_sample(s, SAMPLES, 2 * F), f = i < F ? i : i - F, d = gr_bench_sample(s, SAMPLES, D);
        double dw13 = 0, dw2 = 0, unused = 0;
        for (int64_t p = first; p < end; p++) {
            const int64_t row = (int64_t)gr_bench_in(k, FFN_ROW, p) * D;
            const double h1 = gr_bench_in(k, FFN_H, p * 2 * F + f), h3 = gr_bench_in(k, FFN_H, p * 2 * F + F + f);
            dw13 += ffn_dh(k, e, p, i, &unused) * gr_bench_in(k, FFN_X, row + d);
            dw2 += gr_bench_in(k, FFN_DY, row + d) * gr_bench_in(k, FFN_GATE, p) * gr_bench_silu(h1) * h3;
        }
        gr_bench_compare(of13, gr_bench_out(k, FFN_DW13, (e * 2 * F + i) * D + d), dw13);
        gr_bench_compare(of2, gr_bench_out(k, FFN_DW2, (e * D + d) * F + f), dw2);
    }
}

static double ffn_check_back(const bench_kernel *k) {
    const int64_t D = k->shape->D, F = k->shape->F;
    bench_error e_dx = {0}, e_gate = {0}, of13 = {0}, of2 = {0};
    double dh[2 * 4096];
    GR_ASSERT(F <= 4096, "expert width %lld", (long long)F);
    for (int64_t s = 0; s < SAMPLES; s++) {
        int64_t e, p = ffn_sample(k, s, &e);
        if (p >= k->P)
            continue;
        double dgate = 0, unused = 0;
        for (int64_t i = 0; i < 2 * F; i++)
            dh[i] = ffn_dh(k, e, p, i, i < F ? &dgate : &unused);
        gr_bench_compare(&e_gate, gr_bench_out(k, FFN_DGATE, p), dgate);
        for (int64_t d = 0; d < D; d++) {
            double dx = 0;
            for (int64_t i = 0; i < 2 * F; i++)
                dx += dh[i] * gr_bench_in(k, FFN_W13, (e * 2 * F + i) * D + d);
            gr_bench_compare(&e_dx, gr_bench_out(k, FFN_DX, p * D + d), dx);
        }
        if (s == 0 || s == SAMPLES - 1)
            check_gradients(k, e, &of13, &of2);
    }
    return fmax(fmax(gr_bench_error_get(&e_dx), gr_bench_error_get(&e_gate)),
        fmax(gr_bench_error_get(&of13), gr_bench_error_get(&of2)));
}

/* ---------------------------------------------------------------- the cases */

#define GEMM(kind, of, layout, b)                                                                                      \
    {                                                                                                                  \
        .op = "gemm", .variant = kind, .flops = "2 m n k", .bytes = b, .way = GEMM_WAY(of, layout), .compute = true,   \
        .open = gemm_open, .run = gemm_run, .check = gemm_check                                                        \
    }
#define FFN(kind, by, name, f, bb, to, test)                                                                           \
    {                                                                                                                  \
        .op = name, .variant = kind, .flops = f, .bytes = bb, .way = to, .compute = true, .experts = by,               \
        .open = ffn_open, .run = ffn_run, .check = test                                                                \
    }
#define FFN_FORWARD(kind, by)                                                                                          \
    FFN(kind, by, "ffn_forward", "6 P D F", "s (N D + 3 E D F + 2 P F + P D)", FORWARD, ffn_check)
#define FFN_BACKWARD(kind, by)                                                                                         \
    FFN(kind, by, "ffn_backward", "12 P D F", "s (2 N D + 3 E D F + 4 P F + P D) + 24 E D F", BACKWARD, ffn_check_back)
#define PLAIN "s (m k + n k + m n)"
#define ADDED "s (m k + n k) + 8 m n"

const bench_case gr_bench_product_cases[] = {
    GEMM("qkv, NT", OF_QKV, GR_NT, PLAIN),
    GEMM("qkv, NN", OF_QKV, GR_NN, PLAIN),
    GEMM("qkv, TN", OF_QKV, GR_TN, ADDED),
    GEMM("expert, NT", OF_EXPERT, GR_NT, PLAIN),
    GEMM("expert, NN", OF_EXPERT, GR_NN, PLAIN),
    GEMM("expert, TN", OF_EXPERT, GR_TN, ADDED),
    GEMM("head, NT", OF_HEAD, GR_NT, PLAIN),
    GEMM("head, NN", OF_HEAD, GR_NN, PLAIN),
    GEMM("head, TN", OF_HEAD, GR_TN, ADDED),
    FFN_FORWARD("", GR_EXPERTS_AUTO),
    FFN_FORWARD("cublas", GR_EXPERTS_CUBLAS),
    FFN_FORWARD("mma", GR_EXPERTS_MMA),
    FFN_FORWARD("wgmma", GR_EXPERTS_WGMMA),
    FFN_BACKWARD("", GR_EXPERTS_AUTO),
    FFN_BACKWARD("cublas", GR_EXPERTS_CUBLAS),
    FFN_BACKWARD("mma", GR_EXPERTS_MMA),
    FFN_BACKWARD("wgmma", GR_EXPERTS_WGMMA),
};
const int gr_bench_n_product_case = sizeof gr_bench_product_cases / sizeof *gr_bench_product_cases;
