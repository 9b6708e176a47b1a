/* The optimizer's passes on the CPU backend: sum of squares and AdamW. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "check.h"
#include "ref.h"

#include "grouter/backend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static gr_backend *backend;

static int open_backend(void **state) {
    (void)state;
    return check_backend_open(&backend, CHECK_DTYPE);
}

static int close_backend(void **state) {
    (void)state;
    gr_backend_close(backend);
    return 0;
}

static void check_steps(int64_t n, double weight_decay) {
    float *p = check_random(1, n), *m = check_zeros(n), *v = check_zeros(n);
    double *p_ref = check_double(n, p), *m_ref = ref_alloc(n), *v_ref = ref_alloc(n);
    for (int64_t step = 1; step <= 4; step++) {
        float *g = check_random((uint64_t)step + 10, n);
        double *g_ref = check_double(n, g);
        gr_adamw a = {.n = n,
            .step = step,
            .lr = 0.01f,
            .beta1 = 0.9f,
            .beta2 = 0.95f,
            .eps = 1e-8f,
            .weight_decay = (float)weight_decay,
            .grad_scale = 0.5f,
            .p = p,
            .m = m,
            .v = v,
            .g = g};
        ref_adamw o = {.lr = (double)a.lr,
            .beta1 = (double)a.beta1,
            .beta2 = (double)a.beta2,
            .eps = (double)a.eps,
            .weight_decay = (double)a.weight_decay,
            .grad_scale = 0.5,
            .step = step};
        assert_int_equal(backend->adamw(backend, GR_LANE_COMPUTE, &a), 0);
        ref_adamw_update(&o, n, g_ref, p_ref, m_ref, v_ref);
        free(g);
        free(g_ref);
    }
    assert_true(check_error(n, p, p_ref) <= CHECK_F32);
    assert_true(check_error(n, m, m_ref) <= CHECK_F32);
    assert_true(check_error(n, v, v_ref) <= CHECK_F32);
    float *all[] = {p, m, v};
    double *all_ref[] = {p_ref, m_ref, v_ref};
    for (int i = 0; i < 3; i++) {
        free(all[i]);
        free(all_ref[i]);
    }
}

static void steps_match_the_reference(void **state) {
    (void)state;
    check_steps(0, 0.1);
    check_steps(1, 0.1);
    check_steps(1001, 0.1);
    check_steps(257, 0);
}

/* Late steps: 1 - beta^step must not be lost to rounding, nor a tiny gradient to eps. */
static void late_steps_match_the_reference(void **state) {
    (void)state;
    float p = 1, m = 1e-6f, v = 1e-12f, g = 1e-6f;
    double p_ref = 1, m_ref = (double)m, v_ref = (double)v, g_ref = (double)g;
    gr_adamw a = {.n = 1,
        .step = 100000,
        .lr = 0.1f,
        .beta1 = 0.9f,
        .beta2 = 0.999f,
        .eps = 1e-8f,
        .grad_scale = 1,
        .p = &p,
        .m = &m,
        .v = &v,
        .g = &g};
    ref_adamw o = {.lr = (double)a.lr,
        .beta1 = (double)a.beta1,
        .beta2 = (double)a.beta2,
        .eps = (double)a.eps,
        .grad_scale = 1,
        .step = 100000};
    assert_int_equal(backend->adamw(backend, GR_LANE_COMPUTE, &a), 0);
    ref_adamw_update(&o, 1, &g_ref, &p_ref, &m_ref, &v_ref);
    assert_true(fabs((double)p - p_ref) <= CHECK_F32 * p_ref);
}

/* Ties, both infinities, NaN, and what lies between. */
static void copies_of_weights_are_rounded_to_nearest(void **state) {
    (void)state;
    enum { N = 5000 };
    float *x = check_random(1, N), *y = check_poisoned(N);
    const float special[] = {
        1.00390625f, 1.01171875f, 1.003907f, -1.00390625f, INFINITY, -INFINITY, 3.4e38f, 1e-40f, 0};
    for (int i = 0; i < N; i++)
        x[i] *= 1.0f + (float)i * 0x1p-20f;
    memcpy(x, special, sizeof special);
    x[N - 1] = NAN;
    assert_int_equal(backend->round_weights(backend, GR_LANE_COMPUTE, x, y, N), 0);
    for (int i = 0; i < N - 1; i++)
        assert_true(y[i] == check_stored(x[i]));
    assert_true(isnan(y[N - 1]));
    free(x);
    free(y);
}

static void sums_of_squares_add_and_do_not_depend_on_the_threads(void **state) {
    (void)state;
    static const int64_t n[] = {0, 1, 16384, 100001};
    for (size_t i = 0; i < sizeof n / sizeof *n; i++) {
        float *x = check_random(1, n[i]);
        double exact = 0, sum[3];
        for (int64_t j = 0; j < n[i]; j++)
            exact += (double)x[j] * (double)x[j];
        for (int run = 0; run < 3; run++) {
            check_set_threads(run + 1);
            sum[run] = 7;
            assert_int_equal(backend->sum_squares(backend, GR_LANE_COMPUTE, x, n[i], &sum[run]), 0);
            assert_true(fabs(sum[run] - 7 - exact) <= 1e-12 * (7 + exact));
            assert_true(sum[run] == sum[0]);
        }
        free(x);
    }
    check_set_threads(2);
}

static void a_nan_is_a_nan_sum(void **state) {
    (void)state;
    float *x = check_random(1, 20000);
    double sum = 0;
    x[19999] = NAN;
    assert_int_equal(backend->sum_squares(backend, GR_LANE_COMPUTE, x, 20000, &sum), 0);
    assert_true(isnan(sum));
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_match_the_reference),
        cmocka_unit_test(late_steps_match_the_reference),
        cmocka_unit_test(copies_of_weights_are_rounded_to_nearest),
        cmocka_unit_test(sums_of_squares_add_and_do_not_depend_on_the_threads),
        cmocka_unit_test(a_nan_is_a_nan_sum),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
