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

#define SCALED(scale) (&(const gr_decision){.norm = 2, .grad_scale = (scale)})
#define ALL_OF(count) (&(const gr_adamw_range){.n = (count), .decay = true})

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
            .decision = SCALED(0.5f),
            .range = ALL_OF(n),
            .n_range = 1,
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
        .decision = SCALED(1),
        .range = ALL_OF(1),
        .n_range = 1,
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

/* More ranges than one launch takes: with decay and without, of many lengths, some empty, gaps between them. */
enum { N_RANGE = 300, SLOT = 4160 }; /* elements for each range; those of the last one suffice for all */

static int64_t length_of(int r) {
    static const int64_t length[] = {1, 16, 0, 4096, 4097, 100, 4160, 3};
    return r == N_RANGE - 1 ? 3 * SLOT + 5 : length[r % 8];
}

static void every_range_is_updated_and_nothing_else(void **state) {
    (void)state;
    const int64_t n = (int64_t)(N_RANGE + 3) * SLOT;
    float *p = check_random(1, n), *m = check_random(2, n), *v = check_zeros(n), *g = check_random(3, n);
    float *before = malloc((size_t)n * sizeof *before);
    assert_non_null(before);
    memcpy(before, p, (size_t)n * sizeof *p);
    double *p_ref = check_double(n, p), *m_ref = check_double(n, m), *v_ref = ref_alloc(n), *g_ref = check_double(n, g);
    gr_adamw_range range[N_RANGE];
    gr_adamw a = {.n = n,
        .step = 3,
        .lr = 0.01f,
        .beta1 = 0.9f,
        .beta2 = 0.95f,
        .eps = 1e-8f,
        .weight_decay = 0.5f,
        .decision = SCALED(0.25f),
        .range = range,
        .n_range = N_RANGE,
        .p = p,
        .m = m,
        .v = v,
        .g = g};
    for (int r = 0; r < N_RANGE; r++) {
        range[r] = (gr_adamw_range){.first = (int64_t)r * SLOT, .n = length_of(r), .decay = r % 3 != 0};
        ref_adamw o = {.lr = (double)a.lr,
            .beta1 = (double)a.beta1,
            .beta2 = (double)a.beta2,
            .eps = (double)a.eps,
            .weight_decay = range[r].decay ? 0.5 : 0,
            .grad_scale = 0.25,
            .step = a.step};
        const int64_t at = range[r].first;
        ref_adamw_update(&o, range[r].n, g_ref + at, p_ref + at, m_ref + at, v_ref + at);
    }
    assert_int_equal(backend->adamw(backend, GR_LANE_COMPUTE, &a), 0);
    for (int r = 0; r < N_RANGE; r++) {
        const int64_t at = range[r].first, end = r + 1 < N_RANGE ? range[r + 1].first : n;
        assert_true(check_error(range[r].n, p + at, p_ref + at) <= CHECK_F32);
        assert_true(check_error(range[r].n, m + at, m_ref + at) <= CHECK_F32);
        assert_true(check_error(range[r].n, v + at, v_ref + at) <= CHECK_F32);
        for (int64_t i = at + range[r].n; i < end; i++)
            assert_true(p[i] == before[i] && v[i] == 0);
    }
    free(p), free(m), free(v), free(g), free(before);
    free(p_ref), free(m_ref), free(v_ref), free(g_ref);
}

static void a_skipped_step_writes_nothing(void **state) {
    (void)state;
    enum { N = 5000 };
    float *p = check_random(1, N), *m = check_random(2, N), *v = check_zeros(N), *g = check_random(4, N);
    float *same[3] = {check_random(1, N), check_random(2, N), check_zeros(N)};
    g[17] = NAN;
    gr_decision decision = {.norm = (double)NAN, .grad_scale = 1, .skipped = 1};
    gr_adamw a = {.n = N,
        .step = 1,
        .lr = 0.01f,
        .beta1 = 0.9f,
        .beta2 = 0.95f,
        .eps = 1e-8f,
        .weight_decay = 0.1f,
        .decision = &decision,
        .range = ALL_OF(N),
        .n_range = 1,
        .p = p,
        .m = m,
        .v = v,
        .g = g};
    assert_int_equal(backend->adamw(backend, GR_LANE_COMPUTE, &a), 0);
    assert_memory_equal(p, same[0], N * sizeof *p);
    assert_memory_equal(m, same[1], N * sizeof *m);
    assert_memory_equal(v, same[2], N * sizeof *v);
    decision.skipped = 0;
    g[17] = 1;
    assert_int_equal(backend->adamw(backend, GR_LANE_COMPUTE, &a), 0);
    assert_true(p[17] != same[0][17] && p[4999] != same[0][4999]);
    free(p), free(m), free(v), free(g);
    free(same[0]), free(same[1]), free(same[2]);
}

/* To the last digit: what the sums, the clipping and the bound of fp32 make of a step. */
static void a_step_is_decided_by_its_sums(void **state) {
    (void)state;
    static const struct {
        double squares, loss, clip;
        float scale;
        bool skipped;
    } cases[] = {{9, 1, 0, 1, false}, {9, 1, 3, 1, false}, {9, 1, 4, 1, false}, {9, 1, 1, (float)(1.0 / 3), false},
        {2, 1, 1, 0.70710678118654752f, false}, {0, 0, 1, 1, false}, {0, -5e300, 1, 1, false},
        {(double)NAN, 1, 1, 1, true}, {(double)INFINITY, 1, 0, 1, true}, {(double)INFINITY, 1, 1, 0, true},
        {9, (double)NAN, 1, (float)(1.0 / 3), true}, {9, (double)INFINITY, 0, 1, true},
        {9, (double)-INFINITY, 0, 1, true}, {1e38, 1, 0, 1, false}, {1e39, 1, 0, 1, true},
        {1e300, 1, 1, (float)1e-150, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gr_decision d = {.norm = -1, .grad_scale = -1, .skipped = 7};
        const gr_decide a = {.clip = cases[i].clip, .squares = &cases[i].squares, .loss = &cases[i].loss, .out = &d};
        assert_int_equal(backend->decide(backend, GR_LANE_COMPUTE, &a), 0);
        const double norm = sqrt(cases[i].squares);
        assert_true(d.norm == norm || (isnan(norm) && isnan(d.norm)));
        assert_int_equal(d.skipped, cases[i].skipped);
        assert_true(d.grad_scale == cases[i].scale);
    }
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
        cmocka_unit_test(every_range_is_updated_and_nothing_else),
        cmocka_unit_test(a_skipped_step_writes_nothing),
        cmocka_unit_test(a_step_is_decided_by_its_sums),
        cmocka_unit_test(copies_of_weights_are_rounded_to_nearest),
        cmocka_unit_test(sums_of_squares_add_and_do_not_depend_on_the_threads),
        cmocka_unit_test(a_nan_is_a_nan_sum),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
