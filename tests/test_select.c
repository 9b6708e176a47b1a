/* From scores to routes: worked examples of top-k with ties, dynamic activation and bias routing. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <float.h>
#include <math.h>

#include "grouter/grouter.h"

/* Routes of one token; gates are bf16 values, so within half a unit of 8 bits of the exact ones. */
static void assert_routes(const gr_selection *s, const float *scores, const uint16_t *ids, const double *gates) {
    uint16_t id[GR_TOPK_MAX];
    float gate[GR_TOPK_MAX];
    gr_select(s, 1, scores, id, gate);
    for (uint32_t k = 0; k < s->K; k++) {
        assert_int_equal(id[k], ids[k]);
        if (!(fabs((double)gate[k] - gates[k]) <= gates[k] / 256))
            fail_msg("slot %u: expected a gate of %g, got %g", k, gates[k], (double)gate[k]);
        assert_true(gr_f32_from_bf16(gr_bf16_from_f32(gate[k])) == gate[k]);
    }
}

static void the_k_largest_scores_win_ties_to_the_lower_id(void **state) {
    (void)state;
    const gr_selection s = {.E = 4, .K = 2, .scale = 2.5f, .threshold = 2.5f};
    assert_routes(&s, (float[]){1, 3, 2, 3}, (uint16_t[]){1, 3}, (double[]){1.25, 1.25});
    assert_routes(&s, (float[]){0.5f, -1, 2, 0}, (uint16_t[]){0, 2}, (double[]){0.456064, 2.043936});
    assert_routes(&s, (float[]){1, 1, 1, 1}, (uint16_t[]){0, 1}, (double[]){1.25, 1.25});
}

static void a_gate_too_small_for_its_type_still_uses_its_slot(void **state) {
    (void)state;
    const gr_selection s = {.E = 2, .K = 2, .scale = 1, .threshold = 1};
    uint16_t ids[2];
    float gates[2];
    gr_select(&s, 1, (float[]){0, 200}, ids, gates);
    assert_true(gates[0] == FLT_MIN && gates[1] == 1);
}

/* Gates ln 4, ln 3, ln 2, ln 1 over 10: scale 2.5 makes them 1, .75, .5, .25. */
static void a_threshold_keeps_gates_while_their_sum_stays_at_or_below_it(void **state) {
    (void)state;
    const float scores[4] = {logf(2), logf(4), logf(1), logf(3)};
    gr_selection s = {.E = 4, .K = 4, .scale = 2.5f, .threshold = 2.5f};
    const uint16_t ids[4] = {0, 1, 2, 3};
    assert_routes(&s, scores, ids, (double[]){0.5, 1, 0.25, 0.75}); /* the scale itself: off */
    s.threshold = 2.3f;
    assert_routes(&s, scores, ids, (double[]){0.5, 1, 0, 0.75}); /* 1, 1.75, 2.25; 2.5 crosses and is dropped */
    s.threshold = 2.2f;
    assert_routes(&s, scores, ids, (double[]){0, 1, 0, 0.75}); /* nothing after the crossing, though .25 would fit */
    s.threshold = 0.9f;
    assert_routes(&s, scores, ids, (double[]){0, 1, 0, 0}); /* the first is kept whatever it is */
}

static void equal_gates_are_kept_from_the_lower_id(void **state) {
    (void)state;
    const gr_selection s = {.E = 4, .K = 4, .scale = 1, .threshold = 0.5f};
    assert_routes(&s, (float[]){0, 0, 0, 0}, (uint16_t[]){0, 1, 2, 3}, (double[]){0.25, 0.25, 0, 0});
}

/* The set by score + bias, the gates by score alone at that set. */
static void a_bias_moves_the_set_and_no_gate(void **state) {
    (void)state;
    const float scores[4] = {logf(4), logf(3), logf(2), logf(1)}, bias[4] = {-5, 0, 0, 5};
    gr_selection s = {.E = 4, .K = 2, .scale = 1, .threshold = 1};
    assert_routes(&s, scores, (uint16_t[]){0, 1}, (double[]){4 / 7.0, 3 / 7.0});
    s.bias = bias;
    assert_routes(&s, scores, (uint16_t[]){1, 3}, (double[]){0.75, 0.25});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_k_largest_scores_win_ties_to_the_lower_id),
        cmocka_unit_test(a_gate_too_small_for_its_type_still_uses_its_slot),
        cmocka_unit_test(a_threshold_keeps_gates_while_their_sum_stays_at_or_below_it),
        cmocka_unit_test(equal_gates_are_kept_from_the_lower_id),
        cmocka_unit_test(a_bias_moves_the_set_and_no_gate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
