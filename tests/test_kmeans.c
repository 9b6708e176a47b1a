/* k-means: centroids are means, labels are nearest, restarts and iterations never hurt, and nothing but the arguments
 * decides the result. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "grouter/kmeans.h"

enum { N = 700, D = 19, K = 37 }; /* no multiples of what the code takes at a time */

static float *made_up_points(uint32_t n) {
    float *x = malloc(n * D * sizeof *x);
    assert_non_null(x);
    for (uint32_t i = 0; i < n * D; i++)
        x[i] = gr_random_normal(11, 1, i);
    return x;
}

static gr_kmeans_report run(const gr_kmeans *a, float *centroid, uint32_t *label) {
    gr_kmeans_report r;
    assert_int_equal(gr_kmeans_run(a, centroid, label, &r), 0);
    return r;
}

static double distance(const float *x, const float *y, uint32_t width) {
    double sum = 0;
    for (uint32_t d = 0; d < width; d++)
        sum += ((double)x[d] - (double)y[d]) * ((double)x[d] - (double)y[d]);
    return sum;
}

static void test_clusters_of_a_line_are_found_from_every_seed(void **state) {
    (void)state;
    const float x[7] = {0, 100, 1, 201, 99, 2, 199}; /* 0 1 2 | 99 100 | 199 201 */
    for (uint64_t seed = 0; seed < 50; seed++) {
        const gr_kmeans a = {
            .x = x, .n = 7, .D = 1, .K = 3, .seed = seed, .n_restart = 8, .n_iteration_max = 20, .tolerance = 0};
        float c[3];
        uint32_t label[7];
        const gr_kmeans_report r = run(&a, c, label);
        assert_true(r.converged && r.inertia == 4.5);
        assert_true(c[label[0]] == 1.0f && c[label[1]] == 99.5f && c[label[3]] == 200.0f);
        assert_true(label[0] == label[2] && label[0] == label[5]);
        assert_true(label[1] == label[4] && label[3] == label[6]);
    }
}

static void test_a_converged_result_is_a_fixed_point(void **state) {
    (void)state;
    float *x = made_up_points(N), c[K * D];
    uint32_t label[N];
    const gr_kmeans a = {
        .x = x, .n = N, .D = D, .K = K, .seed = 3, .n_restart = 1, .n_iteration_max = 300, .tolerance = 0};
    const gr_kmeans_report r = run(&a, c, label);
    assert_true(r.converged && r.n_iteration > 2 && r.n_iteration < 300);
    double inertia = 0, sum[K * D] = {0};
    size_t count[K] = {0};
    for (uint32_t i = 0; i < N; i++) {
        double best = INFINITY;
        uint32_t nearest = 0;
        for (uint32_t k = 0; k < K; k++)
            if (distance(x + i * D, c + k * D, D) < best) {
                best = distance(x + i * D, c + k * D, D);
                nearest = k;
            }
        assert_int_equal(label[i], nearest);
        inertia += best;
        count[nearest]++;
        for (uint32_t d = 0; d < D; d++)
            sum[nearest * D + d] += (double)x[i * D + d];
    }
    assert_true(fabs(r.inertia - inertia) <= 1e-9 * inertia);
    for (uint32_t k = 0; k < K; k++)
        for (uint32_t d = 0; d < D; d++)
            assert_true(fabs(sum[k * D + d] / (double)count[k] - (double)c[k * D + d]) <= 1e-6);
    free(x);
}

static void test_more_iterations_and_restarts_never_raise_the_inertia(void **state) {
    (void)state;
    float *x = made_up_points(N), c[K * D];
    gr_kmeans a = {.x = x, .n = N, .D = D, .K = K, .seed = 5, .n_restart = 1, .tolerance = 0};
    double before = INFINITY;
    for (int n = 0; n < 12; n++) {
        a.n_iteration_max = n;
        const gr_kmeans_report r = run(&a, c, NULL);
        assert_true(r.inertia < before || r.converged);
        assert_int_equal(r.n_iteration, n);
        before = r.inertia;
    }
    a.n_iteration_max = 50;
    before = INFINITY;
    int n_better = 0;
    for (int n = 1; n <= 8; n++) {
        a.n_restart = n;
        const double inertia = run(&a, c, NULL).inertia;
        assert_true(inertia <= before);
        n_better += inertia < before;
        before = inertia;
    }
    assert_in_range(n_better, 2, 8);
    a.n_restart = 1;
    a.tolerance = 0.01;
    const gr_kmeans_report r = run(&a, c, NULL);
    assert_true(r.converged && r.n_iteration < 12);
    free(x);
}

static void test_the_result_depends_on_the_seed_and_not_on_threads(void **state) {
    (void)state;
    enum { MANY = 4000, CLUSTERS = 9 }; /* enough numbers to be shared out */
    float *x = made_up_points(MANY), c[4][CLUSTERS * D];
    double inertia[3];
    uint32_t *label = malloc(4 * MANY * sizeof *label);
    assert_non_null(label);
    gr_kmeans a = {
        .x = x, .n = MANY, .D = D, .K = CLUSTERS, .seed = 9, .n_restart = 2, .n_iteration_max = 6, .tolerance = 0};
    for (int i = 0; i < 3; i++) {
#ifdef _OPENMP
        omp_set_num_threads(1 + i);
#endif
        inertia[i] = run(&a, c[i], label + i * MANY).inertia;
    }
    a.seed = 10;
    run(&a, c[3], label + 3 * MANY);
    for (int i = 1; i < 3; i++) {
        assert_true(inertia[i] == inertia[0]);
        assert_memory_equal(c[i], c[0], sizeof c[0]);
        assert_memory_equal(label + i * MANY, label, MANY * sizeof *label);
    }
    assert_memory_not_equal(c[3], c[0], sizeof c[0]);
    free(label);
    free(x);
}

/* With one centroid placed, the second is a point with a chance proportional to its squared distance. */
static void test_seeding_prefers_far_points_by_their_squared_distance(void **state) {
    (void)state;
    enum { DRAWS = 6000 };
    const float x[4] = {0, 1, 2, 3};
    int n[4][4] = {{0}};
    for (uint64_t seed = 0; seed < DRAWS; seed++) {
        const gr_kmeans a = {.x = x, .n = 4, .D = 1, .K = 2, .seed = seed, .n_restart = 1, .n_iteration_max = 0};
        float c[2];
        run(&a, c, NULL);
        n[(int)c[0]][(int)c[1]]++;
    }
    for (int i = 0; i < 4; i++) {
        int total = 0, squares = 0;
        for (int j = 0; j < 4; j++) {
            total += n[i][j];
            squares += (i - j) * (i - j);
        }
        assert_true(abs(total - DRAWS / 4) < 170); /* 5 standard deviations */
        for (int j = 0; j < 4; j++) {
            const double p = (double)((i - j) * (i - j)) / squares;
            assert_true(fabs(n[i][j] - p * total) <= 5 * sqrt(p * (1 - p) * total));
        }
    }
}

static void test_as_many_centroids_as_points_are_all_points_from_the_start(void **state) {
    (void)state;
    float *x = made_up_points(N), c[60 * D];
    uint32_t label[60];
    const gr_kmeans a = {.x = x, .n = 60, .D = D, .K = 60, .seed = 1, .n_restart = 1, .n_iteration_max = 0};
    assert_true(run(&a, c, label).inertia == 0.0);
    for (uint32_t i = 0; i < 60; i++)
        assert_memory_equal(c + label[i] * D, x + i * D, D * sizeof *x);
    free(x);
}

static void test_equal_points_fill_no_more_clusters_than_there_are_points(void **state) {
    (void)state;
    const float x[6] = {5, 5, 5, 7, 7, 7};
    for (uint64_t seed = 0; seed < 20; seed++) {
        const gr_kmeans a = {.x = x, .n = 6, .D = 1, .K = 4, .seed = seed, .n_restart = 1, .n_iteration_max = 10};
        float c[4];
        uint32_t label[6];
        const gr_kmeans_report r = run(&a, c, label);
        assert_true(r.inertia == 0.0 && r.converged);
        for (int i = 0; i < 6; i++)
            for (uint32_t k = 0; k <= label[i]; k++) /* of equal centroids the lowest has the points */
                assert_true((c[k] == x[i]) == (k == label[i]));
        for (int k = 0; k < 4; k++)
            assert_true(c[k] == 5.0f || c[k] == 7.0f);
    }
}

/* Without its replacement, a cluster of seed 323 ends with no point. */
static void test_a_cluster_that_loses_its_points_gets_another(void **state) {
    (void)state;
    enum { POINTS = 64, CLUSTERS = 21 };
    for (uint64_t seed = 300; seed < 340; seed++) {
        float x[POINTS], c[CLUSTERS];
        uint32_t label[POINTS], count[CLUSTERS] = {0};
        for (uint32_t i = 0; i < POINTS; i++)
            x[i] = gr_random_normal(seed, 2, i);
        const gr_kmeans a = {
            .x = x, .n = POINTS, .D = 1, .K = CLUSTERS, .seed = seed, .n_restart = 1, .n_iteration_max = 50};
        assert_true(run(&a, c, label).converged);
        for (int i = 0; i < POINTS; i++)
            count[label[i]]++;
        for (int k = 0; k < CLUSTERS; k++)
            assert_true(count[k] > 0);
    }
}

static void test_distances_beyond_float_stay_finite(void **state) {
    (void)state;
    const float x[3] = {-3e38f, 3e38f, 2.9e38f};
    const gr_kmeans a = {.x = x, .n = 3, .D = 1, .K = 2, .seed = 1, .n_restart = 1, .n_iteration_max = 10};
    float c[2];
    uint32_t label[3];
    assert_true(isfinite(run(&a, c, label).inertia));
    assert_true(label[0] != label[1] && label[1] == label[2]);
    assert_true(isfinite(c[0]) && isfinite(c[1]));
}

static void test_too_few_points_and_numbers_that_are_none_are_refused(void **state) {
    (void)state;
    float x[4] = {1, 2, 3, 4}, c[8];
    gr_kmeans a = {.x = x, .n = 4, .D = 1, .K = 5, .n_restart = 1, .n_iteration_max = 1};
    assert_int_equal(gr_kmeans_run(&a, c, NULL, NULL), GR_DATA);
    assert_non_null(strstr(gr_error_text(), "expected 1 to 4 clusters (the number of points), got 5"));
    a.K = 0;
    assert_int_equal(gr_kmeans_run(&a, c, NULL, NULL), GR_DATA);
    a.K = 2;
    assert_int_equal(gr_kmeans_run(&a, c, NULL, NULL), 0);
    x[3] = NAN;
    assert_int_equal(gr_kmeans_run(&a, c, NULL, NULL), GR_NONFINITE);
    assert_non_null(strstr(gr_error_text(), "point 3, coordinate 0"));
    x[3] = INFINITY;
    assert_int_equal(gr_kmeans_run(&a, c, NULL, NULL), GR_NONFINITE);
}

/* sklearn.cluster.KMeans(K, n_init=400, tol=0, random_state=0).fit(x).inertia_ of the same points. Where there are many
 * local optima, as with 5 clusters, the two need not end in the same one. */
static void test_many_starts_end_where_those_of_scikit_learn_do(void **state) {
    (void)state;
    enum { POINTS = 300, WIDTH = 4 };
    static const double inertia[][2] = {{3, 14599.155469}, {4, 13458.774983}, {5, 12333.507730}};
    float x[POINTS * WIDTH], c[5 * WIDTH];
    for (int i = 0; i < POINTS; i++)
        for (int d = 0; d < WIDTH; d++)
            x[i * WIDTH + d] = (float)((i * 37 + d * 101 + i * i * (d + 3)) % 97) / 8 + 20 * (float)(i * (d + 1) % 3);
    for (size_t i = 0; i < sizeof inertia / sizeof *inertia; i++) {
        const gr_kmeans a = {.x = x,
            .n = POINTS,
            .D = WIDTH,
            .K = (uint32_t)inertia[i][0],
            .seed = 1,
            .n_restart = 400,
            .n_iteration_max = 300,
            .tolerance = 0};
        const double found = run(&a, c, NULL).inertia;
        assert_true(fabs(found - inertia[i][1]) <= (i < 2 ? 1e-9 : 5e-4) * inertia[i][1]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clusters_of_a_line_are_found_from_every_seed),
        cmocka_unit_test(test_a_converged_result_is_a_fixed_point),
        cmocka_unit_test(test_more_iterations_and_restarts_never_raise_the_inertia),
        cmocka_unit_test(test_the_result_depends_on_the_seed_and_not_on_threads),
        cmocka_unit_test(test_seeding_prefers_far_points_by_their_squared_distance),
        cmocka_unit_test(test_as_many_centroids_as_points_are_all_points_from_the_start),
        cmocka_unit_test(test_equal_points_fill_no_more_clusters_than_there_are_points),
        cmocka_unit_test(test_a_cluster_that_loses_its_points_gets_another),
        cmocka_unit_test(test_distances_beyond_float_stay_finite),
        cmocka_unit_test(test_too_few_points_and_numbers_that_are_none_are_refused),
        cmocka_unit_test(test_many_starts_end_where_those_of_scikit_learn_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
