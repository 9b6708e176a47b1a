/* What a device's backend computes on the host: which device, the staging ring, products turned for a column-major
 * library, and which of them share a plan. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "check.h"
#include "ref.h"

#include "backend/device.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- choice */

static const char *const rank_variable[] = {
    "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"};

static void forget_ranks(void) {
    for (size_t i = 0; i < sizeof rank_variable / sizeof *rank_variable; i++)
        unsetenv(rank_variable[i]);
}

static void launchers_say_which_process_of_the_machine_this_is(void **state) {
    (void)state;
    forget_ranks();
    assert_int_equal(gr_device_local_rank(), 0);
    for (size_t i = 0; i < sizeof rank_variable / sizeof *rank_variable; i++) {
        assert_int_equal(setenv(rank_variable[i], "5", 1), 0);
        assert_int_equal(gr_device_local_rank(), 5);
        static const char *const nonsense[] = {"", "x", "-1", "3x", "99999999999999999999"};
        for (size_t j = 0; j < sizeof nonsense / sizeof *nonsense; j++) {
            assert_int_equal(setenv(rank_variable[i], nonsense[j], 1), 0);
            assert_int_equal(gr_device_local_rank(), 0);
        }
        forget_ranks();
    }
    assert_int_equal(setenv("SLURM_LOCALID", "7", 1), 0);
    assert_int_equal(setenv("OMPI_COMM_WORLD_LOCAL_RANK", "2", 1), 0); /* mpirun inside a batch job */
    assert_int_equal(gr_device_local_rank(), 2);
    forget_ranks();
}

static void processes_take_devices_in_turn(void **state) {
    (void)state;
    assert_int_equal(gr_device_choose(0, 1), 0);
    assert_int_equal(gr_device_choose(3, 8), 3);
    assert_int_equal(gr_device_choose(3, 2), 1);
    assert_int_equal(gr_device_choose(8, 8), 0);
}

/* ---------------------------------------------------------------- ring */

static void parts_follow_each_other_and_come_round(void **state) {
    (void)state;
    gr_ring r = {.size = 1024};
    size_t at;
    assert_true(gr_ring_take(&r, 500, &at)); /* 512 with alignment */
    assert_int_equal(at, 0);
    assert_true(gr_ring_take(&r, 256, &at));
    assert_int_equal(at, 512);
    assert_false(gr_ring_take(&r, 300, &at)); /* 256 are left behind, none before */
    gr_ring_drop(&r);
    assert_true(gr_ring_take(&r, 300, &at)); /* at the front, since the end is too short */
    assert_int_equal(at, 0);
    assert_true(gr_ring_take(&r, 192, &at)); /* up to the oldest */
    assert_int_equal(at, 320);
    assert_false(gr_ring_take(&r, 1, &at));
    gr_ring_drop(&r);
    assert_true(gr_ring_take(&r, 448, &at)); /* behind them to the end, where the second was */
    assert_int_equal(at, 512);
    gr_ring_drop(&r);
    gr_ring_drop(&r);
    gr_ring_drop(&r);
    assert_true(gr_ring_take(&r, 1024, &at));
    assert_int_equal(at, 0);
    assert_false(gr_ring_take(&r, 0, &at));
}

/* Against a map of bytes: parts never overlap, keep their bytes until dropped, and an empty ring takes any. */
static void parts_never_overlap(void **state) {
    (void)state;
    enum { SIZE = 4096, RUNS = 20000 };
    static uint32_t owner[SIZE];
    gr_ring r = {.size = SIZE};
    size_t begin[GR_RING_PARTS], n_byte[GR_RING_PARTS];
    uint32_t taken = 0, dropped = 0;
    memset(owner, 0, sizeof owner);
    for (uint64_t run = 0; run < RUNS; run++) {
        const size_t n = 1 + gr_random_below(1, 2, run, run % 3 ? 200 : 1500);
        size_t at;
        while (!gr_ring_take(&r, n, &at)) {
            assert_true(taken > dropped);
            const uint32_t oldest = dropped++;
            for (size_t i = 0; i < n_byte[oldest % GR_RING_PARTS]; i++)
                assert_int_equal(owner[begin[oldest % GR_RING_PARTS] + i], oldest + 1);
            memset(owner + begin[oldest % GR_RING_PARTS], 0, n_byte[oldest % GR_RING_PARTS] * sizeof *owner);
            gr_ring_drop(&r);
        }
        assert_int_equal(at % GR_ALIGN, 0);
        assert_true(at + n <= SIZE);
        begin[taken % GR_RING_PARTS] = at;
        n_byte[taken % GR_RING_PARTS] = n;
        taken++;
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(owner[at + i], 0);
            owner[at + i] = taken;
        }
        assert_int_equal(r.n, taken - dropped);
    }
}

static void a_ring_has_so_many_parts(void **state) {
    (void)state;
    gr_ring r = {.size = (size_t)1 << 20};
    size_t at;
    for (int i = 0; i < GR_RING_PARTS; i++) {
        assert_true(gr_ring_take(&r, 1, &at));
        assert_int_equal(gr_ring_newest(&r), i);
    }
    assert_false(gr_ring_take(&r, 1, &at));
    gr_ring_drop(&r);
    assert_true(gr_ring_take(&r, 1, &at));
    assert_int_equal(gr_ring_newest(&r), 0);
    assert_int_equal(r.oldest, 1);
}

/* ---------------------------------------------------------------- products */

/* Element (i, j) of a column-major matrix as stored, turned or not. */
static double element(const float *x, int64_t ld, bool turned, int64_t i, int64_t j) {
    return (double)(turned ? x[i * ld + j] : x[j * ld + i]);
}

/* What a column-major library makes of the view, with operands of their own leading dimensions, is the product. */
static void check_view(gr_layout layout, int64_t m, int64_t n, int64_t k) {
    const bool ta = layout == GR_TN, tb = layout == GR_NT;
    const gr_gemm g = {
        .layout = layout, .m = m, .n = n, .k = k, .lda = (ta ? m : k) + 1, .ldb = (tb ? k : n) + 2, .ldc = n + 3};
    float *a = check_random(1, (ta ? k : m) * g.lda), *b = check_random(2, (tb ? n : k) * g.ldb);
    const gr_product_view v = gr_product_view_of(&g);
    assert_true(v.left_rows <= g.ldb && v.right_rows <= g.lda);
    assert_int_equal(v.turn_left ? v.left_columns : v.left_rows, n);
    assert_int_equal(v.turn_left ? v.left_rows : v.left_columns, k);
    assert_int_equal(v.turn_right ? v.right_columns : v.right_rows, k);
    assert_int_equal(v.turn_right ? v.right_rows : v.right_columns, m);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            double expected = 0, got = 0;
            for (int64_t l = 0; l < k; l++) {
                expected += (double)(ta ? a[l * g.lda + i] : a[i * g.lda + l]) *
                            (double)(tb ? b[j * g.ldb + l] : b[l * g.ldb + j]);
                got += element(b, g.ldb, v.turn_left, j, l) * element(a, g.lda, v.turn_right, l, i);
            }
            assert_true(got == expected); /* column i of the library's result, row j: c[i, j] */
        }
    }
    free(a);
    free(b);
}

static void a_column_major_library_makes_the_same_product(void **state) {
    (void)state;
    for (int layout = GR_NT; layout <= GR_TN; layout++) {
        check_view((gr_layout)layout, 1, 1, 1);
        check_view((gr_layout)layout, 3, 5, 7);
        check_view((gr_layout)layout, 8, 1, 4);
        check_view((gr_layout)layout, 1, 9, 2);
    }
}

static void rows_that_change_share_plans(void **state) {
    (void)state;
    static const struct {
        int64_t rows, rounded;
    } expected[] = {{1, 16}, {16, 16}, {17, 32}, {64, 64}, {65, 80}, {127, 128}, {128, 128}, {129, 160}, {1000, 1024},
        {1024, 1024}, {1025, 1280}, {2048, 2048}, {2049, 2560}, {INT64_C(1) << 40, INT64_C(1) << 40}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const gr_gemm nt = {.layout = GR_NT, .m = expected[i].rows, .n = 5, .k = 7},
                      tn = {.layout = GR_TN, .m = 5, .n = 6, .k = expected[i].rows};
        gr_gemm c = gr_product_canonical(&nt, GR_ROWS_CHANGE);
        assert_true(c.m == expected[i].rounded && c.n == 5 && c.k == 7);
        c = gr_product_canonical(&tn, GR_ROWS_CHANGE);
        assert_true(c.k == expected[i].rounded && c.m == 5 && c.n == 6);
        c = gr_product_canonical(&nt, GR_ROWS_FIXED);
        assert_int_equal(c.m, expected[i].rows);
        c = gr_product_canonical(&c, GR_ROWS_CHANGE);
        const gr_gemm again = gr_product_canonical(&c, GR_ROWS_CHANGE);
        assert_int_equal(again.m, c.m);
    }
}

static void alignment_is_what_divides_the_address(void **state) {
    (void)state;
    static const uint32_t expected[17] = {16, 1, 2, 1, 4, 1, 2, 1, 8, 1, 2, 1, 4, 1, 2, 1, 16};
    for (uintptr_t i = 0; i <= 16; i++)
        assert_int_equal(gr_product_alignment((const void *)(4096 + i)), expected[i]);
}

/* Each of these is another plan. */
static void plans_differ_by_everything_an_algorithm_depends_on(void **state) {
    (void)state;
    static char memory[64];
    const gr_gemm g = {.layout = GR_NN,
        .m = 3,
        .n = 4,
        .k = 5,
        .a = memory,
        .lda = 6,
        .b = memory,
        .ldb = 7,
        .c = memory,
        .ldc = 8,
        .c_dtype = GR_BF16};
    gr_gemm other[14];
    for (int i = 0; i < 14; i++)
        other[i] = g;
    other[1].m++, other[2].n++, other[3].k++, other[4].lda++, other[5].ldb++, other[6].ldc++;
    other[7].layout = GR_NT, other[8].layout = GR_TN, other[9].write = GR_ACCUMULATE, other[10].c_dtype = GR_F32;
    other[11].a = memory + 2, other[12].b = memory + 2, other[13].c = memory + 2;
    gr_product_table *t = calloc(1, sizeof *t);
    assert_non_null(t);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 14; i++) {
            const gr_product_key key = gr_product_key_of(&other[i]);
            assert_int_equal(gr_product_number(t, &key), i);
        }
    }
    assert_int_equal(t->n, 14);
    other[0].a = memory + 32; /* aligned alike */
    const gr_product_key key = gr_product_key_of(&other[0]);
    assert_int_equal(gr_product_number(t, &key), 0);
    free(t);
}

static void a_full_table_knows_its_plans_and_no_more(void **state) {
    (void)state;
    gr_product_table *t = calloc(1, sizeof *t);
    assert_non_null(t);
    gr_product_key key = {.n = 1};
    for (key.m = 0; key.m < GR_PRODUCTS_MAX; key.m++)
        assert_int_equal(gr_product_number(t, &key), key.m);
    assert_int_equal(gr_product_number(t, &key), -1);
    for (key.m = 0; key.m < GR_PRODUCTS_MAX; key.m++)
        assert_int_equal(gr_product_number(t, &key), key.m);
    free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(launchers_say_which_process_of_the_machine_this_is),
        cmocka_unit_test(processes_take_devices_in_turn),
        cmocka_unit_test(parts_follow_each_other_and_come_round),
        cmocka_unit_test(parts_never_overlap),
        cmocka_unit_test(a_ring_has_so_many_parts),
        cmocka_unit_test(a_column_major_library_makes_the_same_product),
        cmocka_unit_test(rows_that_change_share_plans),
        cmocka_unit_test(alignment_is_what_divides_the_address),
        cmocka_unit_test(plans_differ_by_everything_an_algorithm_depends_on),
        cmocka_unit_test(a_full_table_knows_its_plans_and_no_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
