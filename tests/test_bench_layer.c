/* The layer benchmark: its FLOPs, pairs and memory against numbers worked out by hand, loads as asked for, routes that
 * can be saved and read, and a comparison that sees wrong weights. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "bench/layer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/routes.h"

enum { N = 96, D = 24, F = 20, E = 8, K = 3 };
#define STORED gr_dtype_size(CHECK_DTYPE)
#define TABLE (CHECK_DTYPE == GR_F32 ? "test_bench_layer.routes" : "test_bench_layer_bf16.routes")

static gr_comm *comm;

static int open_comm(void **state) {
    (void)state;
    return gr_comm_open(&comm, "self");
}

static int close_comm(void **state) {
    (void)state;
    unlink(TABLE);
    gr_comm_close(comm, GR_OK);
    return 0;
}

static gr_layer_options options(void) {
    return (gr_layer_options){.comm = comm,
        .expert_kernels = "auto",
        .backend = "cpu",
        .dtype = CHECK_DTYPE,
        .N = N,
        .D = D,
        .F = F,
        .E = E,
        .K = K,
        .n_repeat = 3,
        .seed = 11};
}

static void flops_pairs_and_memory_are_those_worked_out_by_hand(void **state) {
    (void)state;
    const gr_layer_options o = options();
    gr_layer_report r;
    assert_int_equal(gr_bench_layer(&o, &r), GR_OK);
    assert_true(r.n_pair == 288 && r.rows == 0 && r.R == 1);    /* 96 x 3 */
    assert_true(r.flops[0] == 829440 && r.flops[1] == 1658880); /* 6 and 12 x 288 x 24 x 20: 18 TK n d in all */
    assert_true(r.bytes_kept == STORED * (96 * 24 + 288 * 40));
    assert_true(r.forward.median_ms > 0 && r.backward.median_ms > 0 && r.both.low_ms <= r.both.high_ms);
    assert_true(r.both.median_ms >= r.forward.low_ms + r.backward.low_ms);
    assert_true(r.error <= gr_bench_error_max(CHECK_DTYPE) && r.peak_flops > 0);
    /* x, dy, out, dx; pair_out; h, a, da; weights and gradients; gates: more only by alignment */
    const double least =
        (double)STORED * (4 * N * D + 288 * D + 288 * 4 * F + E * 3 * D * F) + 4.0 * (E * 3 * D * F + 288);
    assert_true((double)r.bytes >= least && (double)r.bytes <= least + 64 * 20);
    assert_true(r.norm_out > 0 && r.norm_dx > 0 && r.norm_dw13 > 0 && r.norm_dw2 > 0);
}

/* ---------------------------------------------------------------- loads */

static gr_layer_report loads(const gr_layer_options *o) {
    gr_layer_report r = {0};
    bench_batch b;
    assert_int_equal(gr_bench_routes_open(&b, o), GR_OK);
    assert_int_equal(gr_bench_routes_describe(&b, &r), GR_OK);
    uint32_t counts[64];
    const gr_routes_info info = {.E = b.E, .K = b.K, .T = b.N, .scale = 1};
    assert_int_equal(
        gr_routes_check_rows(&info, "drawn", b.ids, b.gates, counts), GR_OK); /* distinct, ascending, sums */
    gr_bench_batch_close(&b);
    return r;
}

static void loads_are_as_uneven_as_asked_for(void **state) {
    (void)state;
    gr_layer_options o = options();
    o.N = 20000;
    o.E = 64;
    o.K = 8;
    gr_layer_report r = loads(&o);
    assert_true(r.load_cv < 0.03); /* of chance: sqrt((1 - 1/8) / 2500) = 0.019 */
    o.load = GR_LOAD_SKEWED;
    for (double cv = 0.3; cv < 1.5; cv += 0.5) {
        o.cv = cv;
        r = loads(&o);
        if (fabs(r.load_cv - cv) > 0.03)
            fail_msg("expected loads of CV %g, got %g", cv, r.load_cv);
    }
    o.load = GR_LOAD_HOT;
    o.hot = 5;
    r = loads(&o);
    assert_true(fabs(r.load_max - 5) < 0.1);
    o.hot = 8; /* every token */
    r = loads(&o);
    assert_true(fabs(r.load_max - 8) < 1e-9);
    o.load = GR_LOAD_UNIFORM;
    o.E = o.K = 5; /* every expert */
    r = loads(&o);
    assert_true(r.load_cv == 0 && r.n_pair == 100000);
}

static void loads_that_no_routes_have_are_refused(void **state) {
    (void)state;
    gr_layer_options o = options();
    gr_layer_report r;
    o.load = GR_LOAD_HOT;
    o.hot = 3; /* at most E/K = 2.67 */
    assert_int_equal(gr_bench_layer(&o, &r), GR_CONFIG);
    assert_non_null(strstr(gr_error_text(), "--hot: expected at most 2.667"));
    o.load = GR_LOAD_SKEWED;
    o.cv = 50;
    assert_int_equal(gr_bench_layer(&o, &r), GR_CONFIG);
    assert_non_null(strstr(gr_error_text(), "--cv: expected at most"));
    o.K = E; /* all equal */
    o.cv = 0.1;
    assert_int_equal(gr_bench_layer(&o, &r), GR_CONFIG);
}

/* ---------------------------------------------------------------- tables */

static void saved_routes_give_the_same_layer_again(void **state) {
    (void)state;
    gr_layer_options o = options();
    gr_layer_report made, read;
    o.load = GR_LOAD_SKEWED;
    o.cv = 0.5;
    o.save_routes = TABLE;
    assert_int_equal(gr_bench_layer(&o, &made), GR_OK);
    o = options();
    o.load = GR_LOAD_TABLE;
    o.routes = TABLE;
    o.E = o.K = 0; /* the table's */
    assert_int_equal(gr_bench_layer(&o, &read), GR_OK);
    assert_true(read.E == E && read.K == K && read.N == N && read.T == N);
    assert_true(read.n_pair == made.n_pair && read.load_cv == made.load_cv);
    assert_true(read.norm_out == made.norm_out && read.norm_dw13 == made.norm_dw13);
    o.N = 2 * N; /* longer than the table */
    assert_int_equal(gr_bench_layer(&o, &read), GR_DATA);
    assert_non_null(strstr(gr_error_text(), "expected at least 2 windows"));
    o.N = N - 1;
    assert_int_equal(gr_bench_layer(&o, &read), GR_CONFIG);
    o.routes = "absent.routes";
    assert_int_equal(gr_bench_layer(&o, &read), GR_DATA);
}

/* ---------------------------------------------------------------- results */

static void wrong_weights_are_seen(void **state) {
    (void)state;
    const gr_layer_options o = options();
    const size_t n13 = (size_t)E * 2 * F * D, n2 = (size_t)E * F * D;
    for (int wrong = 0; wrong < 4; wrong++) {
        bench_experts l;
        gr_layer_report r = {0};
        assert_int_equal(gr_bench_experts_open(&l, &o), GR_OK);
        if (wrong == 1)
            memset(l.w13, 0, n13 * STORED);
        if (wrong == 2)
            memset((uint8_t *)l.w2 + n2 / 2 * STORED, 0, n2 / 2 * STORED);
        if (wrong == 3)
            memset(l.pair_gate, 0, (size_t)l.P * sizeof(float));
        assert_int_equal(gr_bench_experts_check(&l, &r), wrong ? GR_BUG : GR_OK);
        if (wrong)
            assert_non_null(strstr(gr_error_text(), "of those in double"));
        gr_bench_experts_close(&l);
    }
}

/* The three numbers are those that scripts/bench_peers.py makes. */
static void random_numbers_are_normal_and_fixed(void **state) {
    (void)state;
    double sum = 0, squares = 0;
    enum { MANY = 200000 };
    for (uint64_t i = 0; i < MANY; i++) {
        const double x = (double)gr_bench_normal(9, i);
        sum += x;
        squares += x * x;
    }
    assert_true(fabs(sum / MANY) < 0.01 && fabs(squares / MANY - 1) < 0.01);
    assert_true(gr_bench_normal(9, 0) == 0x1.791996p-3f && gr_bench_normal(9, 1) == -0x1.240196p+0f);
    assert_true(gr_bench_normal(9, 2) == 0x1.0a9a9ap+1f && gr_bench_normal(10, 2) != gr_bench_normal(9, 2));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flops_pairs_and_memory_are_those_worked_out_by_hand),
        cmocka_unit_test(loads_are_as_uneven_as_asked_for),
        cmocka_unit_test(loads_that_no_routes_have_are_refused),
        cmocka_unit_test(saved_routes_give_the_same_layer_again),
        cmocka_unit_test(wrong_weights_are_seen),
        cmocka_unit_test(random_numbers_are_normal_and_fixed),
    };
    return cmocka_run_group_tests(tests, open_comm, close_comm);
}
