/* From scores to routes: the experts with the largest scores, gates that sum to the scale, dynamic activation, bias
 * routing; and what scores that tie, vanish or are no numbers come to. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "grouter/grouter.h"

#define SCALE 2.5f

/* One token. */
typedef struct route {
    uint16_t ids[GR_TOPK_MAX];
    float gates[GR_TOPK_MAX];
} route;

static gr_selection selection(uint32_t E, uint32_t K) {
    return (gr_selection){.E = E, .K = K, .scale = SCALE, .threshold = SCALE};
}

static route select_one(const gr_selection *s, const float *scores) {
    route r;
    gr_select(s, 1, scores, r.ids, r.gates);
    return r;
}

static void assert_ids(const route *r, uint32_t K, const uint16_t *expected) {
    for (uint32_t k = 0; k < K; k++)
        assert_int_equal(r->ids[k], expected[k]);
}

/* Gates are rounded to bf16. */
static void assert_gate(float got, double expected) {
    assert_true(got == gr_f32_from_bf16(gr_bf16_from_f32((float)expected)));
}

static void the_worked_examples_give_their_sets_and_gates(void **state) {
    (void)state;
    gr_selection s = selection(4, 2);
    route r = select_one(&s, (const float[]){1, 3, 2, 3});
    assert_ids(&r, 2, (const uint16_t[]){1, 3});
    assert_true(r.gates[0] == 1.25f && r.gates[1] == 1.25f);
    r = select_one(&s, (const float[]){0.5f, -1, 2, 0});
    assert_ids(&r, 2, (const uint16_t[]){0, 2});
    assert_gate(r.gates[0], 0.456064);
    assert_gate(r.gates[1], 2.043936);
}

static void ties_go_to_the_lower_id(void **state) {
    (void)state;
    gr_selection s = selection(6, 3);
    route r = select_one(&s, (const float[]){1, 2, 1, 2, 1, 1});
    assert_ids(&r, 3, (const uint16_t[]){0, 1, 3});
    r = select_one(&s, (const float[]){0, 0, 0, 0, 0, 0});
    assert_ids(&r, 3, (const uint16_t[]){0, 1, 2});
    r = select_one(&s, (const float[]){0, -0.0f, 0, -0.0f, 0, 5});
    assert_ids(&r, 3, (const uint16_t[]){0, 1, 5});
}

/* A slot without gate would be one that is not used: only dynamic activation makes those. */
static void a_gate_that_vanishes_keeps_its_slot(void **state) {
    (void)state;
    gr_selection s = selection(3, 2);
    uint32_t counts[3];
    const float gaps[] = {80, 100, 700, 800, 1e30f, FLT_MAX};
    const gr_routes_info info = {.E = 3, .K = 2, .T = 1, .scale = SCALE};
    for (size_t i = 0; i < sizeof gaps / sizeof *gaps; i++) {
        route r = select_one(&s, (const float[]){0, gaps[i], -FLT_MAX});
        assert_ids(&r, 2, (const uint16_t[]){0, 1});
        assert_true(r.gates[0] >= FLT_MIN && r.gates[0] < 1e-30f && r.gates[1] == SCALE);
        assert_int_equal(gr_routes_check_rows(&info, "row", r.ids, r.gates, counts), GR_OK);
    }
}

/* Softmax of these is 0.5, 0.25, 0.15, 0.1 of the scale 2.5: 1.25, 0.625, 0.375, 0.25. */
static const double shares[] = {0.15, 0.5, 0.1, 0.25};

static route select_shares(float threshold) {
    float scores[4];
    gr_selection s = selection(4, 4);
    s.threshold = threshold;
    for (int i = 0; i < 4; i++)
        scores[i] = (float)log(shares[i]);
    return select_one(&s, scores);
}

static void dynamic_activation_keeps_gates_while_their_sum_is_within_the_threshold(void **state) {
    (void)state;
    static const struct {
        float threshold;
        bool kept[4];
    } cases[] = {
        {2.5f, {true, true, true, true}}, /* off */
        {2.4f, {true, true, false, true}}, {2.26f, {true, true, false, true}},
        {2.24f, {false, true, false, true}}, /* the one that crosses is dropped */
        {1.88f, {false, true, false, true}}, {1.87f, {false, true, false, false}},
        {0.01f, {false, true, false, false}}, /* the first is always kept */
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        route r = select_shares(cases[c].threshold);
        assert_ids(&r, 4, (const uint16_t[]){0, 1, 2, 3});
        for (int i = 0; i < 4; i++) {
            if (cases[c].kept[i])
                assert_gate(r.gates[i], shares[i] * (double)SCALE); /* nothing is renormalised */
            else
                assert_true(r.gates[i] == 0 && !signbit(r.gates[i]));
        }
    }
}

static void dynamic_activation_takes_the_lower_id_of_equal_gates_first(void **state) {
    (void)state;
    gr_selection s = selection(4, 4);
    s.threshold = 1.3f; /* two gates of 0.625 */
    route r = select_one(&s, (const float[]){1, 1, 1, 1});
    assert_true(r.gates[0] == 0.625f && r.gates[1] == 0.625f && r.gates[2] == 0 && r.gates[3] == 0);
    s.threshold = 0.625f; /* the sum may equal it */
    r = select_one(&s, (const float[]){1, 1, 1, 1});
    assert_true(r.gates[0] == 0.625f && r.gates[1] == 0);
}

static void a_bias_chooses_but_is_not_in_the_gates(void **state) {
    (void)state;
    const float scores[] = {0.5f, -1, 2, 0}, bias[] = {-3, 4, 0, 0};
    gr_selection s = selection(4, 2);
    s.bias = bias;
    route r = select_one(&s, scores);
    assert_ids(&r, 2, (const uint16_t[]){1, 2});
    assert_gate(r.gates[0], 2.5 / (1 + exp(3.0)));
    assert_gate(r.gates[1], 2.5 / (1 + exp(-3.0)));
}

/* A training run that diverges counts choices until it is ended: whatever the scores, ids must be ones. */
static void scores_that_are_no_numbers_choose_distinct_experts(void **state) {
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    enum { E = 6, K = 3 };
    gr_selection s = selection(E, K);
    for (unsigned pattern = 0; pattern < 1u << (2 * E); pattern++) {
        float scores[E];
        for (int i = 0; i < E; i++) {
            unsigned what = pattern >> (2 * i) & 3;
            scores[i] = what == 3 ? (float)i : bad[what];
        }
        route r = select_one(&s, scores);
        assert_true(r.ids[0] < r.ids[1] && r.ids[1] < r.ids[2] && r.ids[2] < E);
    }
}

/* The definition, by sorting. */
static const float *by_score;
static int compare_scores(const void *a, const void *b) {
    uint16_t x = *(const uint16_t *)a, y = *(const uint16_t *)b;
    if (by_score[x] != by_score[y])
        return by_score[x] > by_score[y] ? -1 : 1;
    return x < y ? -1 : x > y;
}

static int compare_ids(const void *a, const void *b) {
    return *(const uint16_t *)a - *(const uint16_t *)b;
}

static void check_random(uint64_t seed, uint32_t E, uint32_t K, float scale, float spread, bool dynamic) {
    enum { T = 40 };
    gr_selection s = {.E = E, .K = K, .scale = scale, .threshold = dynamic ? 0.6f * scale : scale};
    gr_routes_info info = {.E = E, .K = K, .T = T, .scale = scale, .variable_k = dynamic};
    float *scores = malloc((size_t)T * E * sizeof *scores), *gates = malloc((size_t)T * K * sizeof *gates);
    uint16_t *ids = malloc((size_t)T * K * sizeof *ids), *order = malloc(E * sizeof *order);
    uint32_t *counts = malloc(E * sizeof *counts);
    assert_true(scores && gates && ids && order && counts);
    for (uint32_t i = 0; i < T * E; i++) /* coarse, so that many tie */
        scores[i] = spread * roundf(4 * gr_random_normal(seed, E * 64 + K, i)) / 4;
    gr_select(&s, T, scores, ids, gates);
    if (gr_routes_check_rows(&info, "random", ids, gates, counts))
        fail_msg("E %u, K %u, scale %g: %s", E, K, (double)scale, gr_error_text());
    for (uint32_t t = 0; t < T; t++) {
        by_score = scores + (size_t)t * E;
        for (uint32_t e = 0; e < E; e++)
            order[e] = (uint16_t)e;
        qsort(order, E, sizeof *order, compare_scores);
        qsort(order, K, sizeof *order, compare_ids);
        double sum = 0;
        for (uint32_t k = 0; k < K; k++) {
            float g = gates[(size_t)t * K + k];
            assert_int_equal(ids[(size_t)t * K + k], order[k]);
            assert_true(g == gr_f32_from_bf16(gr_bf16_from_f32(g)));
            sum += (double)g;
        }
        assert_true(dynamic || fabs(sum - (double)scale) <= (double)scale / 256);
    }
    free(counts);
    free(order);
    free(ids);
    free(gates);
    free(scores);
}

static void random_scores_give_the_largest_and_rows_that_a_table_takes(void **state) {
    (void)state;
    static const uint32_t shape[][2] = {{1, 1}, {2, 1}, {4, 4}, {32, 4}, {64, 64}, {128, 8}, {300, 17}, {4096, 64}};
    static const float scale[] = {GR_SCALE_MIN, 1, SCALE, GR_SCALE_MAX}, spread[] = {0.1f, 3, 300};
    for (uint64_t i = 0; i < sizeof shape / sizeof *shape; i++)
        for (uint64_t s = 0; s < sizeof scale / sizeof *scale; s++)
            for (uint64_t w = 0; w < sizeof spread / sizeof *spread; w++)
                for (int dynamic = 0; dynamic < 2; dynamic++)
                    check_random(s * 3 + w, shape[i][0], shape[i][1], scale[s], spread[w], dynamic);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_worked_examples_give_their_sets_and_gates),
        cmocka_unit_test(ties_go_to_the_lower_id),
        cmocka_unit_test(a_gate_that_vanishes_keeps_its_slot),
        cmocka_unit_test(dynamic_activation_keeps_gates_while_their_sum_is_within_the_threshold),
        cmocka_unit_test(dynamic_activation_takes_the_lower_id_of_equal_gates_first),
        cmocka_unit_test(a_bias_chooses_but_is_not_in_the_gates),
        cmocka_unit_test(scores_that_are_no_numbers_choose_distinct_experts),
        cmocka_unit_test(random_scores_give_the_largest_and_rows_that_a_table_takes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
