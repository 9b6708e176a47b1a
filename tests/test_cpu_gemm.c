/* Matrix products of the CPU backend: layouts, strides, empty shapes. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "check.h"
#include "ref.h"

#include "grouter/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static gr_backend *backend;

static int open_backend(void **state) {
    (void)state;
    return check_backend_open(&backend, CHECK_DTYPE);
}

/* False with the reason where oneDNN has no products of this type for this CPU and would be asked for them. */
static bool has_products(void) {
    if (strcmp(check_backend_name(), "cuda") == 0)
        return true;
    gr_backend *b;
    gr_err err = gr_backend_open(&b, "cpu", CHECK_DTYPE);
    if (err == GR_RESOURCE)
        printf("skipped: %s\n", gr_error_text());
    gr_backend_close(b);
    return err != GR_RESOURCE;
}

static int close_backend(void **state) {
    (void)state;
    gr_backend_close(backend);
    return 0;
}

#define PAD 3 /* every matrix has rows this much longer than its width */

/* One operand as stored: rows x columns, and its element (i, j) of the product's view. */
typedef struct operand {
    float *x;
    int64_t ld;
    bool transposed;
} operand;

static operand operand_of(uint64_t seed, int64_t rows, int64_t columns, bool transposed) {
    operand o = {.ld = (transposed ? rows : columns) + PAD, .transposed = transposed};
    o.x = check_random(seed, (transposed ? columns : rows) * o.ld);
    return o;
}

static double element(operand o, int64_t i, int64_t j) {
    return (double)(o.transposed ? o.x[j * o.ld + i] : o.x[i * o.ld + j]);
}

/* Poisoned where the product is expected to write and in the gaps; random values to accumulate on otherwise. */
static float *result_memory(int64_t m, int64_t n, gr_write write) {
    float *c = check_poisoned(m * (n + PAD)), *start = check_random(3, m * n);
    for (int64_t i = 0; i < m && write == GR_ACCUMULATE; i++)
        for (int64_t j = 0; j < n; j++)
            c[i * (n + PAD) + j] = start[i * n + j];
    free(start);
    return c;
}

static void check_product_as(gr_dtype result, gr_layout layout, gr_write write, int64_t m, int64_t n, int64_t k) {
    operand a = operand_of(1, m, k, layout == GR_TN), b = operand_of(2, k, n, layout == GR_NT);
    float *c = result_memory(m, n, write);
    double *expected = check_packed(m, n, n + PAD, c);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            double sum = write == GR_ACCUMULATE ? expected[i * n + j] : 0;
            for (int64_t l = 0; l < k; l++)
                sum += element(a, i, l) * element(b, l, j);
            expected[i * n + j] = sum;
        }
    }
    gr_gemm g = {.layout = layout,
        .write = write,
        .m = m,
        .n = n,
        .k = k,
        .a = a.x,
        .lda = a.ld,
        .b = b.x,
        .ldb = b.ld,
        .c = c,
        .ldc = n + PAD,
        .c_dtype = result};
    assert_int_equal(backend->gemm(backend, GR_LANE_COMPUTE, &g), 0);
    assert_true(check_rows_error(m, n, n + PAD, c, expected) <= (result == GR_F32 ? CHECK_F32 : check_bound()));
    free(a.x);
    free(b.x);
    free(c);
    free(expected);
}

static void check_product(gr_layout layout, gr_write write, int64_t m, int64_t n, int64_t k) {
    check_product_as(GR_F32, layout, write, m, n, k);
    check_product_as(CHECK_DTYPE, layout, write, m, n, k);
}

static void products_match_the_reference_in_every_layout(void **state) {
    (void)state;
    static const int64_t shape[][3] = {
        {1, 1, 1}, {1, 257, 20}, {17, 33, 65}, {64, 48, 6}, {130, 257, 31}, {344, 1, 128}, {300, 129, 200}};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        for (int layout = GR_NT; layout <= GR_TN; layout++) {
            check_product((gr_layout)layout, GR_OVERWRITE, shape[i][0], shape[i][1], shape[i][2]);
            check_product((gr_layout)layout, GR_ACCUMULATE, shape[i][0], shape[i][1], shape[i][2]);
        }
    }
}

static void an_empty_inner_dimension_gives_zeros_or_keeps_the_sum(void **state) {
    (void)state;
    for (int layout = GR_NT; layout <= GR_TN; layout++) {
        check_product((gr_layout)layout, GR_OVERWRITE, 5, 7, 0);
        check_product((gr_layout)layout, GR_ACCUMULATE, 5, 7, 0);
    }
}

static void an_empty_result_is_legal(void **state) {
    (void)state;
    for (int layout = GR_NT; layout <= GR_TN; layout++) {
        check_product((gr_layout)layout, GR_OVERWRITE, 0, 7, 3);
        check_product((gr_layout)layout, GR_ACCUMULATE, 5, 0, 3);
    }
}

/* As experts and attention blocks do it: each thread its own shapes, all with the same primitives. */
static void products_run_at_once_in_several_threads(void **state) {
    (void)state;
    if (strcmp(check_backend_name(), "cpu") != 0)
        skip(); /* others are called by one thread */
    enum { N_TASK = 64 };
    float *a[N_TASK], *b[N_TASK], *c[N_TASK];
    int failed = 0;
    for (int i = 0; i < N_TASK; i++) {
        a[i] = check_random((uint64_t)i, 40 * 40);
        b[i] = check_random(100 + (uint64_t)i, 40 * 40);
        c[i] = check_poisoned(40 * 40);
    }
#pragma omp parallel for schedule(dynamic) reduction(| : failed) num_threads(4)
    for (int i = 0; i < N_TASK; i++) {
        const int64_t m = 1 + i % 40, n = 1 + i * 7 % 40, k = 1 + i * 3 % 40;
        const gr_gemm g = {.layout = GR_NN,
            .m = m,
            .n = n,
            .k = k,
            .a = a[i],
            .lda = k,
            .b = b[i],
            .ldb = n,
            .c = c[i],
            .ldc = n,
            .c_dtype = CHECK_DTYPE};
        failed |= backend->gemm(backend, GR_LANE_COMPUTE, &g) != GR_OK;
    }
    assert_int_equal(failed, 0);
    for (int i = 0; i < N_TASK; i++) {
        const int64_t m = 1 + i % 40, n = 1 + i * 7 % 40, k = 1 + i * 3 % 40;
        double *expected = ref_alloc(m * n);
        for (int64_t at = 0; at < m * n; at++)
            for (int64_t l = 0; l < k; l++)
                expected[at] += (double)a[i][at / n * k + l] * (double)b[i][l * n + at % n];
        assert_true(check_error(m * n, c[i], expected) <= check_bound());
        free(a[i]), free(b[i]), free(c[i]), free(expected);
    }
}

static void the_measured_peak_is_a_rate(void **state) {
    (void)state;
    double rate = 0;
    assert_int_equal(backend->peak(backend, &rate), 0);
    assert_true(rate > 1e8 && rate < 1e15);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_match_the_reference_in_every_layout),
        cmocka_unit_test(an_empty_inner_dimension_gives_zeros_or_keeps_the_sum),
        cmocka_unit_test(an_empty_result_is_legal),
        cmocka_unit_test(products_run_at_once_in_several_threads),
        cmocka_unit_test(the_measured_peak_is_a_rate),
    };
    if (!has_products())
        return 77;
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
