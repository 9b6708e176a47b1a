/* The divergence of a student's scores from a teacher's, and how alike their choices are, against plain formulas in
 * double. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "grouter/teacher.h"
#include "ref.h"

static gr_backend *backend;

static int open_backend(void **state) {
    (void)state;
    return check_backend_open(&backend, GR_F32);
}

static int close_backend(void **state) {
    (void)state;
    gr_backend_close(backend);
    return 0;
}

/* t^2 KL(softmax(teacher/t) || softmax(student/t)) of one token, as the formula stands. */
static double ref_divergence(int64_t E, double t, const double *teacher, const double *student) {
    double sum_p = 0, sum_q = 0, kl = 0;
    for (int64_t e = 0; e < E; e++) {
        sum_p += exp(teacher[e] / t);
        sum_q += exp(student[e] / t);
    }
    for (int64_t e = 0; e < E; e++) {
        double p = exp(teacher[e] / t) / sum_p, q = exp(student[e] / t) / sum_q;
        kl += p * log(p / q);
    }
    return t * t * kl;
}

static double diverge(
    int64_t n, int64_t E, float t, float scale, const float *teacher, const float *student, float *d) {
    double loss = 0;
    gr_divergence a = {.n = n,
        .E = E,
        .teacher = teacher,
        .student = student,
        .temperature = t,
        .scale = scale,
        .loss_sum = &loss,
        .dstudent = d};
    assert_int_equal(backend->divergence(backend, GR_LANE_COMPUTE, &a), GR_OK);
    return loss;
}

static float *scores(uint64_t seed, int64_t n, float spread) {
    float *x = check_random(seed, n);
    for (int64_t i = 0; i < n; i++)
        x[i] *= spread;
    return x;
}

static void check_against_reference(int64_t n, int64_t E, float t, float spread) {
    const float scale = 0.125f;
    const double step = 1e-5;
    float *teacher = scores(1, n * E, spread), *student = scores(2, n * E, spread), *d = check_poisoned(n * E);
    double *p = check_double(n * E, teacher), *q = check_double(n * E, student), *expected = ref_alloc(n * E);
    double loss = 0, got = diverge(n, E, t, scale, teacher, student, d);
    for (int64_t i = 0; i < n; i++)
        loss += ref_divergence(E, (double)t, p + i * E, q + i * E);
    assert_true(fabs(got - loss) <= 1e-9 * loss + 1e-12);
    for (int64_t i = 0; i < n * E; i++) { /* central differences */
        double *row = q + i / E * E, *of = p + i / E * E, at = q[i];
        q[i] = at + step;
        double high = ref_divergence(E, (double)t, of, row);
        q[i] = at - step;
        double low = ref_divergence(E, (double)t, of, row);
        q[i] = at;
        expected[i] = (double)scale * (high - low) / (2 * step);
    }
    assert_true(check_error(n * E, d, expected) <= 1e-5);
    assert_true(diverge(n, E, t, scale, teacher, student, NULL) == got);
    diverge(n, E, t, scale, teacher, student, student); /* in place */
    for (int64_t i = 0; i < n * E; i++)
        assert_true(student[i] == d[i]);
    free(expected);
    free(q);
    free(p);
    free(d);
    free(student);
    free(teacher);
}

static void divergence_and_gradient_equal_the_formula(void **state) {
    (void)state;
    const float temperature[] = {1, 2, 0.5f, 10};
    for (size_t i = 0; i < sizeof temperature / sizeof *temperature; i++) {
        check_against_reference(1, 2, temperature[i], 1);
        check_against_reference(7, 5, temperature[i], 3);
        check_against_reference(3, 128, temperature[i], 3);
    }
}

static void a_student_that_is_its_teacher_has_no_divergence(void **state) {
    (void)state;
    enum { N = 5, E = 9 };
    float *x = scores(3, N * E, 4), *d = check_poisoned(N * E), moved[N * E];
    assert_true(diverge(N, E, 2, 1, x, x, d) == 0);
    for (int i = 0; i < N * E; i++) {
        assert_true(d[i] == 0);
        moved[i] = x[i] + 8; /* scores mean no more than their differences */
    }
    assert_true(fabs(diverge(N, E, 1, 1, x, moved, d)) < 1e-6);
    assert_true(diverge(N, 1, 1, 1, x, moved, d) == 0); /* one expert: nothing to tell apart */
    free(d);
    free(x);
}

static void huge_scores_stay_exact(void **state) {
    (void)state;
    const float huge[] = {1e4f, 1e8f, 1e30f};
    float d[4];
    for (int i = 0; i < 3; i++) {
        const float h = huge[i], even[] = {h, h, -h, -h}, one[] = {h, -h, -h, -h};
        assert_true(fabs(diverge(1, 4, 1, 1, one, even, d) - log(2)) < 1e-12);
        assert_true(d[0] == -0.5f && d[1] == 0.5f && d[2] == 0 && d[3] == 0);
        assert_true(diverge(1, 4, 1, 1, even, even, d) == 0);
        gr_fidelity f = {0};
        gr_fidelity_add(&f, &(gr_fidelity_pair){.E = 4, .K = 1, .n = 1, .teacher = one, .student = even});
        assert_true(fabs(f.divergence - log(2)) < 1e-12);
    }
}

static void losses_are_added_in_the_order_of_tokens(void **state) {
    (void)state;
    enum { N = 40, E = 6 };
    float *p = scores(4, N * E, 3), *q = scores(5, N * E, 3);
    double all = diverge(N, E, 1, 1, p, q, NULL), sum = 0;
    for (int i = 0; i < N; i++)
        sum += diverge(1, E, 1, 1, p + i * E, q + i * E, NULL);
    assert_true(all == sum);
    check_set_threads(1);
    assert_true(diverge(N, E, 1, 1, p, q, NULL) == all);
    check_set_threads(2);
    free(q);
    free(p);
}

/* ---------------------------------------------------------------- how alike choices are */

/* Teacher's pairs of four experts: {0,1}, {0,1}, {2,3}; student's {0,1}, {1,2}, {0,1}. */
static const float teacher3[] = {3, 2, 0, 0, 3, 2, 0, 0, 0, 0, 2, 3}, student3[] = {2, 3, 0, 0, 0, 3, 2, 0, 3, 2, 0, 0};

static gr_fidelity compare(int64_t n, const float *teacher, const float *student, const int32_t *counted) {
    gr_fidelity f = {0};
    gr_fidelity_add(
        &f, &(gr_fidelity_pair){.E = 4, .K = 2, .n = n, .teacher = teacher, .student = student, .counted = counted});
    return f;
}

static void fidelity_counts_sets_shares_and_angles(void **state) {
    (void)state;
    gr_fidelity f = compare(3, teacher3, student3, NULL);
    assert_true(f.n_token == 3 && f.exact == 1 && f.overlap == 1.5);
    /* Of the teacher's two experts: (e^3, e^2) with (e^2, e^3); (e^3, e^2) with (1, e^3); (e^2, e^3) with (1, 1). */
    double a = exp(1), swapped = 2 * a / (a * a + 1);
    double second = (a + exp(3)) / sqrt((a * a + 1) * (1 + exp(6))), third = (1 + a) / sqrt((1 + a * a) * 2);
    assert_true(fabs(f.cosine - (swapped + second + third)) < 1e-12);
    double kl = 0;
    for (int i = 0; i < 3; i++) {
        double *p = check_double(4, teacher3 + 4 * i), *q = check_double(4, student3 + 4 * i);
        kl += ref_divergence(4, 1, p, q);
        free(q);
        free(p);
    }
    assert_true(fabs(f.divergence - kl) < 1e-12);
    f = compare(3, teacher3, teacher3, NULL);
    assert_true(f.exact == 3 && f.overlap == 3 && fabs(f.cosine - 3) < 1e-12 && f.divergence == 0);
}

static void fidelity_leaves_out_ignored_tokens(void **state) {
    (void)state;
    const int32_t counted[] = {-1, 0, 7};
    gr_fidelity some = compare(3, teacher3, student3, counted), second = compare(1, teacher3 + 4, student3 + 4, NULL),
                third = compare(1, teacher3 + 8, student3 + 8, NULL);
    assert_true(some.n_token == 2 && some.exact == 0 && some.overlap == 0.5);
    assert_true(some.divergence == second.divergence + third.divergence);
    assert_true(some.cosine == second.cosine + third.cosine);
}

static void fidelity_follows_biases_in_the_choice_alone(void **state) {
    (void)state;
    const float bias[] = {0, 0, 10, 10};
    gr_fidelity f = {0};
    gr_fidelity_pair pair = {.E = 4, .K = 2, .n = 1, .teacher = teacher3, .student = teacher3, .student_bias = bias};
    gr_fidelity_add(&f, &pair);
    assert_true(f.exact == 0 && f.overlap == 0 && f.divergence == 0 && fabs(f.cosine - 1) < 1e-12);
    pair.teacher_bias = bias;
    gr_fidelity_add(&f, &pair);
    assert_true(f.exact == 1 && f.overlap == 1 && f.n_token == 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(divergence_and_gradient_equal_the_formula),
        cmocka_unit_test(a_student_that_is_its_teacher_has_no_divergence),
        cmocka_unit_test(huge_scores_stay_exact),
        cmocka_unit_test(losses_are_added_in_the_order_of_tokens),
        cmocka_unit_test(fidelity_counts_sets_shares_and_angles),
        cmocka_unit_test(fidelity_leaves_out_ignored_tokens),
        cmocka_unit_test(fidelity_follows_biases_in_the_choice_alone),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
