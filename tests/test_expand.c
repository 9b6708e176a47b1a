/* Expanding: samples are uniform and reproducible; new rows are made for the vectors no row scores well, at right
 * angles to every other row, of the usual length, and towards their cluster. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/fold.h"
#include "grouter/kmeans.h"

static void assert_error_names(const char *part) {
    if (!strstr(gr_error_text(), part))
        fail_msg("\"%s\" is missing from: %s", part, gr_error_text());
}

static float *normal_numbers(size_t n, uint64_t seed) {
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = gr_random_normal(seed, 1, i);
    return x;
}

static double dot(const float *x, const float *y, uint32_t D) {
    double sum = 0;
    for (uint32_t d = 0; d < D; d++)
        sum += (double)x[d] * (double)y[d];
    return sum;
}

/* ---------------------------------------------------------------- samples */

static void test_a_sample_does_not_depend_on_how_the_stream_is_cut(void **state) {
    (void)state;
    enum { N = 500, D = 3, KEPT = 40 };
    float *x = normal_numbers(N * D, 1);
    gr_reservoir whole, cut, other_seed, other_part;
    assert_int_equal(gr_reservoir_open(&whole, KEPT, D, 7, 0), 0);
    assert_int_equal(gr_reservoir_open(&cut, KEPT, D, 7, 0), 0);
    assert_int_equal(gr_reservoir_open(&other_seed, KEPT, D, 8, 0), 0);
    assert_int_equal(gr_reservoir_open(&other_part, KEPT, D, 7, 1), 0);
    gr_reservoir_add(&whole, N, x);
    gr_reservoir_add(&other_seed, N, x);
    gr_reservoir_add(&other_part, N, x);
    for (size_t at = 0, n; at < N; at += n) {
        n = 1 + at % 50 < N - at ? 1 + at % 50 : N - at;
        gr_reservoir_add(&cut, n, x + at * D);
    }
    assert_int_equal(whole.n, KEPT);
    assert_int_equal(whole.n_seen, N);
    assert_int_equal(cut.n_seen, N);
    assert_memory_equal(cut.x, whole.x, KEPT * D * sizeof *x);
    assert_memory_not_equal(other_seed.x, whole.x, KEPT * D * sizeof *x);
    assert_memory_not_equal(other_part.x, whole.x, KEPT * D * sizeof *x);
    gr_reservoir_close(&other_part);
    gr_reservoir_close(&other_seed);
    gr_reservoir_close(&cut);
    gr_reservoir_close(&whole);
    free(x);
}

static void test_every_vector_is_kept_with_equal_chance(void **state) {
    (void)state;
    enum { N = 50, KEPT = 10, DRAWS = 4000 };
    float x[N];
    int kept[N] = {0};
    for (int i = 0; i < N; i++)
        x[i] = (float)i;
    for (uint64_t seed = 0; seed < DRAWS; seed++) {
        gr_reservoir r;
        assert_int_equal(gr_reservoir_open(&r, KEPT, 1, seed, 0), 0);
        gr_reservoir_add(&r, N, x);
        bool once[N] = {false};
        for (size_t i = 0; i < r.n; i++) {
            const int id = (int)r.x[i];
            assert_false(once[id]);
            once[id] = true;
            kept[id]++;
        }
        gr_reservoir_close(&r);
    }
    for (int i = 0; i < N; i++) /* 800 expected, standard deviation 25.3 */
        assert_in_range(kept[i], 800 - 127, 800 + 127);
}

static void test_a_short_stream_is_kept_whole_and_quotas_add_up(void **state) {
    (void)state;
    const float x[6] = {1, 2, 3, 4, 5, 6};
    gr_reservoir r;
    assert_int_equal(gr_reservoir_open(&r, 5, 2, 1, 0), 0);
    gr_reservoir_add(&r, 3, x);
    assert_int_equal(r.n, 3);
    assert_memory_equal(r.x, x, sizeof x);
    gr_reservoir_close(&r);
    for (uint32_t n_rank = 1; n_rank < 9; n_rank++) {
        size_t sum = 0;
        for (uint32_t rank = 0; rank < n_rank; rank++)
            sum += gr_reservoir_quota(21, rank, n_rank);
        assert_int_equal(sum, 21);
    }
    assert_int_equal(gr_reservoir_quota(21, 0, 8), 3);
    assert_int_equal(gr_reservoir_quota(21, 7, 8), 2);
    assert_int_equal(gr_reservoir_open(&r, SIZE_MAX / 2, 4, 1, 0), GR_RESOURCE);
}

/* ---------------------------------------------------------------- expanding */

/* Old rows of length 2 along axis 0, vectors with scores 2 * s[i] and a cluster of their own along axis 1 or 2. */
static void test_a_small_example_worked_by_hand(void **state) {
    (void)state;
    enum { N = 11, D = 4 };
    const float W[D] = {2, 0, 0, 0}, bias[1] = {0.25f};
    /* Sorted best scores: -8 -6 -4 0 2 4 6 8 10 12 14; position 0.2 * 10 = 2, so the threshold is -4 and the three
     * vectors with scores -8, -6, -4 are bad. Two of them lie along +axis 1, one along -axis 2. */
    const float x[N * D] = {0, 5, 0, 0, 1, 0, 5, 0, -4, 3, 0, 0, 2, 0, 0, 5, 3, 0, 0, 9, -3, 0, -3, 0, 4, 0, 0, 0, 5, 0,
        0, 0, -2, 3, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0};
    const gr_expansion a = {.E_S = 1, .E_T = 3, .D = D, .W = W, .bias = bias, .x = x, .n = N, .seed = 1};
    float W_T[3 * D], bias_T[3];
    gr_expansion_report r;
    assert_int_equal(gr_expansion_run(&a, W_T, bias_T, &r), 0);
    assert_true(r.threshold == -4.0 && r.n_bad == 3 && r.radius == 2.0);
    assert_memory_equal(W_T, W, sizeof W);
    assert_true(bias_T[0] == 0.25f && bias_T[1] == 0.0f && bias_T[2] == 0.0f);
    const int first = fabsf(W_T[D + 1]) > 1 ? 1 : 2, second = 3 - first; /* k-means orders them */
    assert_true(fabsf(W_T[D * first + 1] - 2) < 1e-6f);
    assert_true(fabsf(W_T[D * second + 2] + 2) < 1e-6f);
    for (int i = D; i < 3 * D; i++)
        assert_true(fabsf(W_T[i]) < 1e-6f || i == D * first + 1 || i == D * second + 2);
}

static void test_the_quantile_lies_between_its_neighbours(void **state) {
    (void)state;
    enum { N = 4, D = 2 };
    const float W[D] = {1, 0}, x[N * D] = {7, 1, 1, 1, 3, 1, 5, 2}; /* 1 3 5 7: position 0.6, so 1 + 0.6 * 2 */
    const gr_expansion a = {.E_S = 1, .E_T = 2, .D = D, .W = W, .x = x, .n = N, .seed = 1};
    float W_T[2 * D];
    gr_expansion_report r;
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, &r), 0);
    assert_true(fabs(r.threshold - 2.2) < 1e-12);
    assert_int_equal(r.n_bad, 1);
}

static void test_with_few_bad_vectors_the_lowest_are_taken(void **state) {
    (void)state;
    enum { N = 10, D = 8 };
    float W[D] = {1}, W_T[6 * D], *x = normal_numbers(N * D, 3);
    gr_expansion a = {.E_S = 1, .E_T = 4, .D = D, .W = W, .x = x, .n = N, .seed = 1};
    gr_expansion_report r; /* position 1.8: 2 bad vectors for 3 new rows, so min(10, 12) are taken */
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, &r), 0);
    assert_int_equal(r.n_bad, 10);
    a.n = 5; /* position 0.8: 1 bad vector for 2 new rows, so min(5, 8) */
    a.E_T = 3;
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, &r), 0);
    assert_int_equal(r.n_bad, 5);
    free(x);
    x = normal_numbers(14 * D, 4);
    a = (gr_expansion){.E_S = 1, .E_T = 4, .D = D, .W = W, .x = x, .n = 9, .seed = 1};
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, &r), 0);
    assert_int_equal(r.n_bad, 9);
    free(x);
}

/* Centroids as gr_expansion_run makes them, from the definition: scores by plain loops, then k-means. */
static void find_centroids_plainly(const gr_expansion *a, const gr_expansion_report *r, float *centroid) {
    float *bad = malloc(r->n_bad * a->D * sizeof *bad);
    double *best = malloc(a->n * sizeof *best);
    bool *used = calloc(a->n, sizeof *used);
    assert_true(bad && best && used);
    for (size_t i = 0; i < a->n; i++) {
        best[i] = -INFINITY;
        for (uint32_t e = 0; e < a->E_S; e++)
            best[i] = fmax(best[i], dot(a->x + i * a->D, a->W + (size_t)e * a->D, a->D));
    }
    for (size_t n = 0; n < r->n_bad; n++) {
        size_t lowest = SIZE_MAX;
        for (size_t i = 0; i < a->n; i++)
            if (!used[i] && (lowest == SIZE_MAX || best[i] < best[lowest]))
                lowest = i;
        used[lowest] = true;
        assert_true(best[lowest] <= r->threshold + 1e-12);
        memcpy(bad + n * a->D, a->x + lowest * a->D, a->D * sizeof *bad);
    }
    const gr_kmeans k = {.x = bad,
        .n = r->n_bad,
        .D = a->D,
        .K = a->E_T - a->E_S,
        .seed = a->seed,
        .n_restart = 1,
        .n_iteration_max = 100};
    assert_int_equal(gr_kmeans_run(&k, centroid, NULL, NULL), 0);
    free(used);
    free(best);
    free(bad);
}

/* c -= its projection on the span of W[E,D], by Gram-Schmidt twice in double. */
static void project_off(const float *W, uint32_t E, uint32_t D, double *c) {
    double *q = calloc((size_t)(E + 1) * D, sizeof *q);
    assert_non_null(q);
    for (uint32_t e = 0; e <= E; e++) {
        double *v = q + (size_t)e * D;
        for (uint32_t d = 0; d < D; d++)
            v[d] = e < E ? (double)W[e * D + d] : c[d];
        for (int pass = 0; pass < 2; pass++)
            for (uint32_t o = 0; o < e; o++) {
                double s = 0;
                for (uint32_t d = 0; d < D; d++)
                    s += v[d] * q[o * D + d];
                for (uint32_t d = 0; d < D; d++)
                    v[d] -= s * q[o * D + d];
            }
        double norm = 0;
        for (uint32_t d = 0; d < D; d++)
            norm += v[d] * v[d];
        for (uint32_t d = 0; d < D; d++)
            v[d] = e < E ? v[d] / sqrt(norm) : v[d];
    }
    memcpy(c, q + (size_t)E * D, D * sizeof *c);
    free(q);
}

static void assert_expanded(const gr_expansion *a, const float *W_T, const gr_expansion_report *r) {
    const uint32_t D = a->D, n_new = a->E_T - a->E_S;
    double radius = 0;
    for (uint32_t e = 0; e < a->E_S; e++)
        radius += sqrt(dot(a->W + (size_t)e * D, a->W + (size_t)e * D, D)) / a->E_S;
    assert_true(fabs(r->radius - radius) <= 1e-12 * radius);
    assert_memory_equal(W_T, a->W, (size_t)a->E_S * D * sizeof *W_T);
    float *centroid = malloc((size_t)n_new * D * sizeof *centroid);
    double *c = malloc(D * sizeof *c);
    assert_true(centroid && c);
    find_centroids_plainly(a, r, centroid);
    for (uint32_t j = a->E_S; j < a->E_T; j++) {
        const float *row = W_T + (size_t)j * D;
        assert_true(fabs(sqrt(dot(row, row, D)) - radius) <= 1e-6 * radius);
        for (uint32_t i = 0; i < j; i++) {
            const float *other = W_T + (size_t)i * D;
            assert_true(fabs(dot(row, other, D)) <= 1e-6 * radius * sqrt(dot(other, other, D)));
        }
        for (uint32_t d = 0; d < D; d++)
            c[d] = centroid[(size_t)(j - a->E_S) * D + d];
        project_off(a->W, a->E_S, D, c);
        double towards = 0;
        for (uint32_t d = 0; d < D; d++)
            towards += c[d] * (double)row[d];
        assert_true(towards > 0);
    }
    free(c);
    free(centroid);
}

static void test_new_rows_are_orthogonal_of_mean_length_and_towards_their_centroid(void **state) {
    (void)state;
    static const struct {
        uint32_t E_S, E_T, D;
        size_t n;
    } sizes[] = {{1, 2, 2, 20}, {3, 7, 12, 300}, {16, 32, 64, 900}, {5, 20, 20, 400}, {70, 90, 100, 1000}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        float *W = normal_numbers((size_t)sizes[i].E_S * sizes[i].D, 10 + i);
        float *x = normal_numbers(sizes[i].n * sizes[i].D, 20 + i);
        float *W_T = malloc((size_t)sizes[i].E_T * sizes[i].D * sizeof *W_T);
        assert_non_null(W_T);
        const gr_expansion a = {
            .E_S = sizes[i].E_S, .E_T = sizes[i].E_T, .D = sizes[i].D, .W = W, .x = x, .n = sizes[i].n, .seed = 1423};
        gr_expansion_report r;
        assert_int_equal(gr_expansion_run(&a, W_T, NULL, &r), 0);
        assert_expanded(&a, W_T, &r);
        free(W_T);
        free(x);
        free(W);
    }
}

static void test_old_rows_that_depend_on_each_other_do_not_matter(void **state) {
    (void)state;
    enum { E_S = 4, E_T = 7, D = 8, N = 100 };
    float *x = normal_numbers(N * D, 5), *W = normal_numbers(E_S * D, 6), W_T[E_T * D];
    memcpy(W + D, W, D * sizeof *W);     /* a row twice */
    memset(W + 2 * D, 0, D * sizeof *W); /* and one of zeros */
    const gr_expansion a = {.E_S = E_S, .E_T = E_T, .D = D, .W = W, .x = x, .n = N, .seed = 1};
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, NULL), 0);
    for (int j = E_S; j < E_T; j++) {
        assert_true(dot(W_T + j * D, W_T + j * D, D) > 0.1);
        for (int i = 0; i < j; i++)
            assert_true(fabs(dot(W_T + j * D, W_T + i * D, D)) <= 1e-5);
    }
    free(W);
    free(x);
}

static void test_the_same_arguments_give_the_same_bits(void **state) {
    (void)state;
    enum { E_S = 6, E_T = 12, D = 32, N = 600 };
    float *x = normal_numbers(N * D, 7), *W = normal_numbers(E_S * D, 8), W_T[3][E_T * D];
    gr_expansion a = {.E_S = E_S, .E_T = E_T, .D = D, .W = W, .x = x, .n = N, .seed = 1};
    for (int i = 0; i < 3; i++) {
        a.seed = i == 2 ? 2 : 1;
        assert_int_equal(gr_expansion_run(&a, W_T[i], NULL, NULL), 0);
    }
    assert_memory_equal(W_T[0], W_T[1], sizeof W_T[0]);
    assert_memory_not_equal(W_T[0], W_T[2], sizeof W_T[0]);
    free(W);
    free(x);
}

/* ---------------------------------------------------------------- what cannot be expanded */

static void test_more_experts_than_the_width_are_refused_with_the_numbers(void **state) {
    (void)state;
    float *x = normal_numbers(80, 1), W[8] = {1, 1, 0, 0, 0, 1, 1, 0}, W_T[64];
    gr_expansion a = {.E_S = 2, .E_T = 5, .D = 4, .W = W, .x = x, .n = 20, .seed = 1};
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, NULL), GR_CONFIG);
    assert_error_names("more than the 2 experts there are and at most 4");
    assert_error_names("got 5");
    a.E_T = 2;
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, NULL), GR_CONFIG);
    a.E_T = 4;
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, NULL), 0);
    a.n = 1;
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, NULL), GR_DATA);
    assert_error_names("at least 2 sampled vectors (one a new expert), got 1");
    free(x);
}

static void test_centroids_without_a_part_of_their_own_are_refused(void **state) {
    (void)state;
    enum { N = 40, D = 6 };
    float *x = normal_numbers(N * D, 2), W[2 * D] = {1, 2, 3, 0, 0, 0, 3, -1, 2, 0, 0, 0}, W_T[5 * D];
    gr_expansion a = {.E_S = 2, .E_T = 5, .D = D, .W = W, .x = x, .n = N, .seed = 1};
    for (int i = 0; i < N; i++) { /* all vectors are sums of the old rows */
        const float p = x[i * D], q = x[i * D + 1];
        for (int d = 0; d < D; d++)
            x[i * D + d] = p * W[d] + q * W[D + d];
    }
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, NULL), GR_DATA);
    assert_error_names("new expert 1 of 3: expected a cluster centre with a part outside the span");
    for (int i = 0; i < N; i++) /* two different vectors for three new rows */
        for (int d = 0; d < D; d++)
            x[i * D + d] = d == 3 + i % 2 ? 1.0f : 0.0f;
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, NULL), GR_DATA);
    assert_error_names("new expert 3 of 3");
    memset(x, 0, N * D * sizeof *x);
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, NULL), GR_DATA);
    assert_error_names("new expert 1 of 3");
    free(x);
}

static void test_rows_of_zeros_and_numbers_that_are_none_are_refused(void **state) {
    (void)state;
    float *x = normal_numbers(80, 1), W[4] = {0}, W_T[8];
    const gr_expansion a = {.E_S = 1, .E_T = 2, .D = 4, .W = W, .x = x, .n = 20, .seed = 1};
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, NULL), GR_DATA);
    assert_error_names("not all 0");
    W[1] = NAN;
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, NULL), GR_NONFINITE);
    assert_error_names("finite score rows, got nan in row 0, column 1");
    W[1] = 1;
    x[79] = INFINITY;
    assert_int_equal(gr_expansion_run(&a, W_T, NULL, NULL), GR_NONFINITE);
    assert_error_names("finite sampled vectors, got inf in row 19, column 3");
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_sample_does_not_depend_on_how_the_stream_is_cut),
        cmocka_unit_test(test_every_vector_is_kept_with_equal_chance),
        cmocka_unit_test(test_a_short_stream_is_kept_whole_and_quotas_add_up),
        cmocka_unit_test(test_a_small_example_worked_by_hand),
        cmocka_unit_test(test_the_quantile_lies_between_its_neighbours),
        cmocka_unit_test(test_with_few_bad_vectors_the_lowest_are_taken),
        cmocka_unit_test(test_new_rows_are_orthogonal_of_mean_length_and_towards_their_centroid),
        cmocka_unit_test(test_old_rows_that_depend_on_each_other_do_not_matter),
        cmocka_unit_test(test_the_same_arguments_give_the_same_bits),
        cmocka_unit_test(test_more_experts_than_the_width_are_refused_with_the_numbers),
        cmocka_unit_test(test_centroids_without_a_part_of_their_own_are_refused),
        cmocka_unit_test(test_rows_of_zeros_and_numbers_that_are_none_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
