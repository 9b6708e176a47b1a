/* The paper's experts: entropy, clusters by linkage against SciPy, centres, and the matching against all matchings. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "place/internal.h"

/* ---------------------------------------------------------------- entropy */

static void test_entropy_is_a_share_of_that_of_equal_use(void **state) {
    (void)state;
    const float even[4] = {0.25f, 0.25f, 0.25f, 0.25f}, half[4] = {0.5f, 0, 0.5f, 0}, one[4] = {0, 0, 1, 0};
    assert_true(gr_place_entropy(even, 4) == 1);
    assert_true(gr_place_entropy(half, 4) == 0.5);
    assert_true(gr_place_entropy(one, 4) == 0);
    assert_true(gr_place_entropy(one + 2, 1) == 0);
}

/* ---------------------------------------------------------------- linkage */

enum { POINTS = 40, DIM = 6 };

static void formula_points(float *x) {
    for (int i = 0; i < POINTS; i++)
        for (int d = 0; d < DIM; d++)
            x[i * DIM + d] = (float)((i * 37 + d * 91 + i * d * 13 + i * i * 7) % 101 + 1);
}

/* scipy.cluster.hierarchy: fcluster(linkage(pdist(x, "cosine"), "complete"), n_cluster, "maxclust"), clusters named by
 * letters in the order of their first points. */
static void test_clusters_are_those_of_scipy(void **state) {
    (void)state;
    static const struct {
        uint32_t n_cluster;
        const char *letters;
    } example[] = {{2, "aaababbbbbbaabbaaaabaabaaababbbbabababab"}, {3, "aaababcbccbaabcaaaabaacaaababcbcabababac"},
        {5, "aabcacdeddeaacdaabaeaadaaaeacdedaeaebebd"}, {9, "abcdbdefggfhbdeabchfhaeabhfhdeigbfbicicg"},
        {17, "abcdbefghijkbefabclgmnfabljkefohbjbpqpqh"}};
    float x[POINTS * DIM];
    formula_points(x);
    for (size_t k = 0; k < sizeof example / sizeof *example; k++) {
        uint32_t cluster[POINTS];
        char letters[POINTS + 1] = "";
        assert_int_equal(gr_place_linkage(x, POINTS, DIM, example[k].n_cluster, cluster), 0);
        for (int i = 0; i < POINTS; i++)
            letters[i] = (char)('a' + cluster[i]);
        assert_string_equal(letters, example[k].letters);
    }
}

static void test_as_many_clusters_as_points_merges_nothing(void **state) {
    (void)state;
    float x[POINTS * DIM];
    uint32_t cluster[POINTS];
    formula_points(x);
    assert_int_equal(gr_place_linkage(x, POINTS, DIM, POINTS, cluster), 0);
    for (uint32_t i = 0; i < POINTS; i++)
        assert_int_equal(cluster[i], i);
    assert_int_equal(gr_place_linkage(x, POINTS, DIM, 1, cluster), 0);
    for (uint32_t i = 0; i < POINTS; i++)
        assert_int_equal(cluster[i], 0);
}

/* Of equal distances the lowest points are merged. */
static void test_ties_are_merged_from_the_lowest(void **state) {
    (void)state;
    const float x[8] = {1, 0, 0, 1, 1, 0, 0, 1}; /* 0 = 2, 1 = 3 */
    uint32_t cluster[4];
    assert_int_equal(gr_place_linkage(x, 4, 2, 3, cluster), 0);
    assert_true(cluster[0] == 0 && cluster[1] == 1 && cluster[2] == 0 && cluster[3] == 2);
}

/* ---------------------------------------------------------------- centres */

enum { E = 8, GROUPS = 4, EACH = 60, N = GROUPS * EACH };

/* Windows i of group i % GROUPS use two experts of their own most; `even` of them all experts equally. */
static void make_sample(gr_place_sample *s, float *phi, size_t n_even) {
    *s = (gr_place_sample){.E = E, .K = 2, .T = 16, .n_table = 1, .n = N, .phi = phi};
    for (uint32_t i = 0; i < N; i++) {
        float sum = 0;
        for (uint32_t e = 0; e < E; e++) {
            const bool own = e / 2 == i % GROUPS;
            phi[i * E + e] = (own ? 1.0f : 0.1f) + 0.02f * (float)gr_random_below(1, 1, i * E + e, 10);
            sum += phi[i * E + e];
        }
        for (uint32_t e = 0; e < E; e++)
            phi[i * E + e] = i < n_even ? 1.0f / E : phi[i * E + e] / sum;
    }
}

/* centre[p] is the mean of group g of windows first..N-1; each group has one. */
static void assert_means(const float *phi, const float *centre, uint32_t first) {
    bool taken[GROUPS] = {false};
    for (uint32_t g = 0; g < GROUPS; g++) {
        double mean[E] = {0};
        uint32_t n = 0, found = GROUPS;
        for (uint32_t i = first; i < N; i++) {
            n += i % GROUPS == g;
            for (uint32_t e = 0; e < E && i % GROUPS == g; e++)
                mean[e] += (double)phi[i * E + e];
        }
        for (uint32_t p = 0; p < GROUPS; p++) {
            double far = 0;
            for (uint32_t e = 0; e < E; e++)
                far = fmax(far, fabs(mean[e] / n - (double)centre[p * E + e]));
            found = far < 1e-6 ? p : found;
        }
        assert_in_range(found, 0, GROUPS - 1);
        assert_false(taken[found]);
        taken[found] = true;
    }
}

static void test_centres_are_the_means_of_clear_groups(void **state) {
    (void)state;
    float phi[N * E], centre[GROUPS * E];
    gr_place_sample s;
    gr_log_set(GR_LOG_QUIET);
    for (uint64_t seed = 0; seed < 5; seed++) {
        make_sample(&s, phi, 0);
        assert_int_equal(gr_place_centres(&s, GROUPS, 1, seed, centre), 0);
        assert_means(phi, centre, 0);
    }
    make_sample(&s, phi, 20); /* left out by their entropy, */
    assert_int_equal(gr_place_centres(&s, GROUPS, 0.99, 1, centre), 0);
    assert_means(phi, centre, 20);
    make_sample(&s, phi, 0); /* but not if that leaves too few */
    assert_int_equal(gr_place_centres(&s, GROUPS, 0, 1, centre), 0);
    assert_means(phi, centre, 0);
}

static void test_fewer_windows_than_parts_leave_centres_empty(void **state) {
    (void)state;
    float phi[N * E], centre[GROUPS * E];
    gr_place_sample s;
    make_sample(&s, phi, 0);
    s.n = 2;
    assert_int_equal(gr_place_centres(&s, GROUPS, 1, 0, centre), 0);
    int n_empty = 0;
    for (uint32_t p = 0; p < GROUPS; p++) {
        float sum = 0;
        for (uint32_t e = 0; e < E; e++)
            sum += centre[p * E + e];
        n_empty += sum == 0;
    }
    assert_int_equal(n_empty, GROUPS - 2);
}

/* ---------------------------------------------------------------- matching */

static double value_of(const float *centre, uint32_t n_part, uint32_t n_expert, const uint16_t *part) {
    double sum = 0;
    (void)n_part;
    for (uint32_t e = 0; e < n_expert; e++)
        sum += (double)centre[part[e] * n_expert + e];
    return sum;
}

static double greatest(const float *centre, uint32_t n_part, uint32_t n_expert, uint32_t e, uint32_t *left) {
    double best = -1;
    if (e == n_expert)
        return 0;
    for (uint32_t p = 0; p < n_part; p++) {
        if (!left[p])
            continue;
        left[p]--;
        best = fmax(best, (double)centre[p * n_expert + e] + greatest(centre, n_part, n_expert, e + 1, left));
        left[p]++;
    }
    return best;
}

static void test_no_matching_of_up_to_8_experts_is_better(void **state) {
    (void)state;
    static const uint32_t shape[][2] = {{1, 4}, {2, 8}, {4, 8}, {8, 8}, {3, 6}, {2, 6}};
    float centre[8 * 8];
    for (uint64_t seed = 0; seed < 60; seed++) {
        const uint32_t n_part = shape[seed % 6][0], n_expert = shape[seed % 6][1];
        for (uint32_t i = 0; i < n_part * n_expert; i++) /* every other time with ties */
            centre[i] = (float)gr_random_below(seed, 2, i, seed % 2 ? 4 : 10000) / (seed % 2 ? 4.0f : 10000.0f);
        uint16_t part[8];
        uint32_t left[8], count[8] = {0};
        assert_int_equal(gr_place_match(centre, n_part, n_expert, part), 0);
        for (uint32_t p = 0; p < n_part; p++)
            left[p] = n_expert / n_part;
        for (uint32_t e = 0; e < n_expert; e++)
            assert_in_range(++count[part[e]], 1, n_expert / n_part);
        const double best = greatest(centre, n_part, n_expert, 0, left);
        assert_true(fabs(value_of(centre, n_part, n_expert, part) - best) < 1e-7);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entropy_is_a_share_of_that_of_equal_use),
        cmocka_unit_test(test_clusters_are_those_of_scipy),
        cmocka_unit_test(test_as_many_clusters_as_points_merges_nothing),
        cmocka_unit_test(test_ties_are_merged_from_the_lowest),
        cmocka_unit_test(test_centres_are_the_means_of_clear_groups),
        cmocka_unit_test(test_fewer_windows_than_parts_leave_centres_empty),
        cmocka_unit_test(test_no_matching_of_up_to_8_experts_is_better),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
