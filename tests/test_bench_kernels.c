/* The kernel benchmark: FLOPs and bytes by formula against numbers worked out by hand, every op of the backend in the
 * set, results compared before they are timed, and a comparison that sees damage. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "bench/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Two windows of 8 tokens, 2 of 4 experts each: 32 pairs. */
static const gr_bench_shape tiny = {
    .name = "tiny", .T = 8, .D = 16, .F = 12, .E = 4, .K = 2, .H = 4, .H_kv = 2, .hd = 8, .V = 64};
enum { N = 16, FLAT = (64 << 20) / 16 };

static gr_comm *comm;

static int open_comm(void **state) {
    (void)state;
    return gr_comm_open(&comm, "self");
}

static int close_comm(void **state) {
    (void)state;
    gr_comm_close(comm, GR_OK);
    return 0;
}

static gr_kernels_options options(void) {
    return (gr_kernels_options){
        .comm = comm, .backend = "cpu", .dtype = CHECK_DTYPE, .shape = tiny, .N = N, .n_repeat = 1, .seed = 3};
}

/* ---------------------------------------------------------------- formulas */

typedef struct by_hand {
    const char *op, *variant;
    double flops, bytes; /* of fp32 */
} by_hand;

static const by_hand expected[] = {
    {"gemm", "qkv, NT", 32768, 9216},                 /* 2 16 64 16; 4 (16 16 + 64 16 + 16 64) */
    {"gemm", "qkv, NN", 32768, 9216},                 /* m 16, n 16, k 64 */
    {"gemm", "qkv, TN", 32768, 13312},                /* m 64, n 16, k 16; 4 (1024 + 256) + 8 1024 */
    {"gemm", "expert, NT", 6144, 2816},               /* 8 rows a expert: 2 8 24 16; 4 (128 + 384 + 192) */
    {"gemm", "expert, NN", 6144, 2816},               /* m 8, n 16, k 24 */
    {"gemm", "expert, TN", 6144, 4352},               /* m 24, n 16, k 8; 4 (192 + 128) + 8 384 */
    {"gemm", "head, NT", 32768, 9216},                /* one chunk of 16 tokens: as qkv */
    {"gemm", "head, NN", 32768, 9216},                /* */
    {"gemm", "head, TN", 32768, 13312},               /* */
    {"ffn_forward", "", 36864, 15360},                /* 6 32 16 12; 4 (256 + 2304 + 768 + 512) */
    {"ffn_backward", "", 73728, 37888},               /* 4 (512 + 2304 + 1536 + 512) + 24 768 */
    {"attention_forward", "causal", 8192, 6400},      /* 2 16 8 32; 8 16 6 8 + 4 64 */
    {"attention_backward", "causal", 20480, 12544},   /* 5 16 8 32; 16 16 6 8 + 4 64 */
    {"cross_entropy", "loss", 32768, 5312},           /* 2 16 16 64; 4 (256 + 1024) + 192 */
    {"cross_entropy", "and gradients", 98304, 14528}, /* 4 (512 + 1024) + 8 1024 + 192 */
    {"gather_rows", "", 0, 3200},                     /* 4 16 48 + 4 32 */
    {"gather_f32", "", 0, 512},                       /* 4 2 48 + 4 32 */
    {"sum_rows", "", 512, 3268},                      /* 32 16; 4 16 48 + 4 49 */
    {"sum_f32", "", 64, 580},                         /* 32 2; 4 2 48 + 4 49 */
    {"embed_forward", "", 0, 2112},                   /* 8 256 + 64 */
    {"embed_backward", "", 256, 3136},                /* 12 256 + 64 */
    {"norm_forward", "", 0, 2176},                    /* 8 256 + 64 + 64 */
    {"norm_backward", "", 0, 3328},                   /* 12 256 + 64 + 192 */
    {"head_norm_forward", "", 0, 6848},               /* 8 16 48 + 4 16 6 + 4 8 8 + 64 */
    {"head_norm_backward", "", 0, 10048},             /* 12 16 48 + 4 16 6 + 4 8 8 + 192 */
    {"rope", "", 0, 4352},                            /* 8 16 32 + 4 8 8 */
    {"pair_gates_forward", "", 0, 416},               /* 13 32 */
    {"pair_gates_backward", "", 0, 544},              /* 13 32 + 4 32 */
    {"router_forward", "", 0, 768},                   /* 8 64 + 6 32 + 64 */
    {"router_backward", "", 0, 896},                  /* 8 64 + 10 32 + 64 */
    {"divergence", "", 0, 768},                       /* 12 64 */
    {"layer_norm_forward", "", 0, 3328},              /* 12 256 + 128 + 128 */
    {"layer_norm_backward", "", 0, 3584},             /* 12 256 + 128 + 384 */
    {"sum_squares", "", 2.0 * FLAT, 4.0 * FLAT},
    {"adamw", "", 0, 28.0 * FLAT},
    {"round_weights", "", 0, 8.0 * FLAT},
    {"copy", "", 0, 8.0 * FLAT},
    {"upload", "", 0, 8.0 * FLAT},
    {"download", "", 0, 8.0 * FLAT},
    {"fill_zero", "", 0, 4.0 * FLAT},
};
enum { N_EXPECTED = sizeof expected / sizeof *expected };

static const gr_kernel_figures *find(const gr_kernels_report *r, const char *op, const char *variant) {
    for (int i = 0; i < r->n; i++)
        if (strcmp(r->kernel[i].op, op) == 0 && strcmp(r->kernel[i].variant, variant) == 0)
            return &r->kernel[i];
    fail_msg("no figures of %s %s", op, variant);
    return NULL;
}

static void flops_and_bytes_are_those_worked_out_by_hand(void **state) {
    (void)state;
    const gr_kernels_options o = options();
    gr_kernels_report r;
    assert_int_equal(gr_bench_kernels(&o, &r), GR_OK);
    assert_int_equal(r.n, N_EXPECTED);
    assert_true(r.peak_flops > 0 && r.copy_bytes > 0 && r.launch_ms >= 0);
    for (int i = 0; i < N_EXPECTED; i++) {
        const gr_kernel_figures *f = find(&r, expected[i].op, expected[i].variant);
        if (f->flops != expected[i].flops || (CHECK_DTYPE == GR_F32 && f->bytes != expected[i].bytes))
            fail_msg("%s %s: expected %.0f FLOPs and %.0f bytes, got %.0f and %.0f", f->op, f->variant,
                expected[i].flops, expected[i].bytes, f->flops, f->bytes);
        const double s = f->time.median_ms / 1e3;
        const double share = f->compute ? f->flops / s / r.peak_flops : f->bytes / s / r.copy_bytes;
        assert_true(f->n_run == 1 && f->best_ms == f->time.median_ms && f->time.median_ms > 0);
        assert_true(fabs(f->share - share) <= 1e-9 * share && f->error <= gr_bench_error_max(CHECK_DTYPE));
    }
}

static void every_op_of_the_backend_is_in_the_set(void **state) {
    (void)state;
    static const char *const not_ops[] = {"alloc", "alloc_host", "wait", "sync", "sync_lane", "watch", "peak",
        "use_plans", "tune", "save_plans", "decide" /* on three numbers */};
    char line[256];
    int n_op = 0;
    FILE *header = fopen(FIXTURES "/../../include/grouter/backend.h", "r");
    assert_non_null(header);
    while (fgets(line, sizeof line, header)) { /* "    gr_err (*gemm)(gr_backend *b, ..." */
        char op[64];
        bool wanted = sscanf(line, " gr_err (*%63[a-z0-9_])(", op) == 1, found = false;
        for (size_t i = 0; wanted && i < sizeof not_ops / sizeof *not_ops; i++)
            wanted = strcmp(op, not_ops[i]) != 0;
        for (int i = 0; wanted && i < N_EXPECTED; i++)
            found |= strcmp(op, expected[i].op) == 0;
        if (wanted && !found)
            fail_msg("%s of gr_backend is not measured", op);
        n_op += wanted;
    }
    fclose(header);
    assert_true(n_op >= 31);
}

/* ---------------------------------------------------------------- results */

/* Arrays that an op writes but that are nobody's result: scratch, and what only a forward before it has to say. */
static bool is_scratch(const bench_case *c, int array) {
    enum {
        FFN_H = 6,
        FFN_A = 7,
        FFN_DA = 10,
        LOSS_LOGITS = 7,
        NORM_Y = 2,
        NORM_RSTD = 3,
        HEADS_Y = 5,
        HEADS_RSTD = 6,
        LN_Y = 4,
        LN_MEAN = 5,
        LN_RSTD = 6
    };
    const char *op = c->op;
    if (strcmp(op, "ffn_forward") == 0)
        return array == FFN_A;
    if (strcmp(op, "ffn_backward") == 0)
        return array == FFN_H || array == FFN_A || array == FFN_DA;
    if (strcmp(op, "cross_entropy") == 0)
        return array == LOSS_LOGITS;
    if (strcmp(op, "norm_backward") == 0)
        return array == NORM_Y || array == NORM_RSTD;
    if (strcmp(op, "head_norm_backward") == 0)
        return array == HEADS_Y || array == HEADS_RSTD;
    if (strcmp(op, "layer_norm_backward") == 0)
        return array == LN_Y || array == LN_MEAN || array == LN_RSTD;
    if (strcmp(op, "router_backward") == 0)
        return array < 6; /* all but dlogits */
    if (strcmp(op, "download") == 0)
        return true; /* its result is on the host */
    return false;
}

/* Every number a little off. */
static void damage(const bench_array *a, double by) {
    for (int64_t i = 0; i < a->want.n; i++)
        switch (a->want.dtype) {
        case GR_F32:
            ((float *)a->result)[i] += (float)by;
            break;
        case GR_F64:
            ((double *)a->result)[i] *= 1 + by;
            break;
        case GR_U16:
            ((uint16_t *)a->result)[i] ^= 1;
            break;
        default:
            assert_int_equal(a->want.dtype, GR_U32);
            ((uint32_t *)a->result)[i]++;
        }
}

static void damage_and_check(const bench_case *c, bench_kernel *k) {
    for (int i = 0; i < k->arrays.n; i++) {
        const bench_array *a = &k->arrays.list[i];
        if (!a->result || is_scratch(c, i))
            continue;
        assert_int_equal(gr_bench_arrays_download(&k->arrays), GR_OK);
        assert_true(c->check(k) <= 1e-5);
        damage(a, 0.01);
        if (!(c->check(k) > 1e-5))
            fail_msg("%s %s: array %d is wrong and nobody has seen it", c->op, c->variant, i);
    }
}

static void run_damaged(gr_backend *b, const bench_case *c) {
    bench_kernel k = {.backend = b, .shape = &tiny, .N = N, .P = N * 2, .flat = 1000, .seed = 5, .way = c->way};
    assert_int_equal(c->open(&k), GR_OK);
    assert_int_equal(gr_bench_arrays_upload(&k.arrays), GR_OK);
    if (c->prepare)
        assert_int_equal(c->prepare(&k), GR_OK);
    assert_int_equal(c->run(&k), GR_OK);
    damage_and_check(c, &k);
    gr_bench_arrays_close(&k.arrays);
}

static void damaged_results_are_seen(void **state) {
    (void)state;
    gr_backend *b;
    assert_int_equal(gr_backend_open(&b, "cpu", GR_F32), GR_OK);
    for (int i = 0; i < gr_bench_n_product_case; i++)
        run_damaged(b, &gr_bench_product_cases[i]);
    for (int i = 0; i < gr_bench_n_attention_case; i++)
        run_damaged(b, &gr_bench_attention_cases[i]);
    for (int i = 0; i < gr_bench_n_row_case; i++)
        run_damaged(b, &gr_bench_row_cases[i]);
    for (int i = 0; i < gr_bench_n_head_case; i++)
        run_damaged(b, &gr_bench_head_cases[i]);
    for (int i = 0; i < gr_bench_n_router_case; i++)
        run_damaged(b, &gr_bench_router_cases[i]);
    for (int i = 0; i < gr_bench_n_flat_case; i++)
        run_damaged(b, &gr_bench_flat_cases[i]);
    gr_backend_close(b);
}

/* ---------------------------------------------------------------- choice and refusals */

static void only_the_ops_asked_for_are_measured(void **state) {
    (void)state;
    gr_kernels_options o = options();
    gr_kernels_report r;
    o.only = "rope,norm_forward";
    assert_int_equal(gr_bench_kernels(&o, &r), GR_OK);
    assert_int_equal(r.n, 2);
    find(&r, "rope", "");
    find(&r, "norm_forward", "");
    o.only = "gem";
    assert_int_equal(gr_bench_kernels(&o, &r), GR_USAGE);
    assert_non_null(strstr(gr_error_text(), "did you mean gemm?"));
    o.only = "rope,";
    assert_int_equal(gr_bench_kernels(&o, &r), GR_USAGE);
}

static void sizes_that_do_not_fit_are_refused(void **state) {
    (void)state;
    gr_kernels_options o = options();
    gr_kernels_report r;
    o.N = 12;
    assert_int_equal(gr_bench_kernels(&o, &r), GR_CONFIG);
    assert_non_null(strstr(gr_error_text(), "a multiple of the window's 8, got 12"));
    o = options();
    o.shape.hd = 7;
    assert_int_equal(gr_bench_kernels(&o, &r), GR_CONFIG);
    o = options();
    o.backend = "abacus";
    assert_int_equal(gr_bench_kernels(&o, &r), GR_CONFIG);
    gr_bench_shape shape;
    assert_int_equal(gr_bench_shape_find("tiny-qwen", &shape), GR_USAGE);
    assert_non_null(strstr(gr_error_text(), "did you mean tiny-qwen3?"));
    assert_int_equal(gr_bench_shape_find("qwen3-30b-a3b", &shape), GR_OK);
    assert_true(shape.D == 2048 && shape.F == 768 && shape.E == 128 && shape.K == 8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flops_and_bytes_are_those_worked_out_by_hand),
        cmocka_unit_test(every_op_of_the_backend_is_in_the_set),
        cmocka_unit_test(damaged_results_are_seen),
        cmocka_unit_test(only_the_ops_asked_for_are_measured),
        cmocka_unit_test(sizes_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests(tests, open_comm, close_comm);
}
