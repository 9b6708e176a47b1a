/* The balance of a Grouter's choices: loss and gradient against the formula in double, choices with a bias, the sign
 * rule. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "grouter/balance.h"
#include "ref.h"

static gr_backend *backend;

static int open_backend(void **state) {
    (void)state;
    return gr_backend_open(&backend, "cpu", GR_F32);
}

static int close_backend(void **state) {
    (void)state;
    gr_backend_close(backend);
    return 0;
}

/* A balance and what its last call gave. */
typedef struct balance_case {
    gr_balance *balance;
    int64_t N, T;
    uint32_t E, K;
    float *softmax; /* [N, E] */
    double loss_sum;
    uint64_t load[64];
} balance_case;

static void open_case(balance_case *c, int64_t n_window, int64_t T, uint32_t E, uint32_t K) {
    *c = (balance_case){.N = n_window * T, .T = T, .E = E, .K = K};
    assert_int_equal(gr_balance_open(&c->balance, backend, c->N, T, E, K), GR_OK);
    c->softmax = check_poisoned(c->N * E);
}

static void close_case(balance_case *c) {
    free(c->softmax);
    gr_balance_close(c->balance);
}

static void forward(balance_case *c, const float *scores, const float *bias) {
    memcpy(c->softmax, scores, (size_t)c->N * c->E * sizeof *scores);
    assert_int_equal(gr_balance_forward(c->balance, c->softmax, bias, &c->loss_sum, c->load), GR_OK);
}

static void the_worked_example_has_its_loss(void **state) {
    (void)state;
    const float scores[] = {1, 3, 2, 3, 0.5f, -1, 2, 0};
    balance_case c;
    open_case(&c, 1, 2, 4, 2);
    forward(&c, scores, NULL);
    assert_true(fabs(c.loss_sum / 2 - 0.25) < 1e-6); /* two tokens: twice the window's loss */
    const double mean[] = {0.106255, 0.217420, 0.428531, 0.247794};
    for (int e = 0; e < 4; e++) {
        assert_int_equal(c.load[e], 1);
        assert_true(fabs(((double)c.softmax[e] + (double)c.softmax[4 + e]) / 2 - mean[e]) < 1e-6);
    }
    close_case(&c);
}

static void equal_scores_in_turn_have_the_least_loss(void **state) {
    (void)state;
    enum { E = 8, T = 8 };
    float scores[E * T];
    balance_case c;
    for (int t = 0; t < T; t++)
        for (int e = 0; e < E; e++)
            scores[t * E + e] = e == t ? 1e-4f : 0;
    open_case(&c, 1, T, E, 1);
    forward(&c, scores, NULL);
    assert_true(fabs(c.loss_sum / T - 1.0 / E) < 1e-6);
    for (int t = 0; t < T; t++) /* and all on one expert the most */
        for (int e = 0; e < E; e++)
            scores[t * E + e] = e == 3 ? 50 : 0;
    c.loss_sum = 0;
    forward(&c, scores, NULL);
    assert_true(fabs(c.loss_sum / T - 1) < 1e-6);
    close_case(&c);
}

/* Sum over windows of T L_w with the choices held. */
static double ref_loss(const balance_case *c, const double *scores, const uint16_t *ids) {
    double all = 0;
    for (int64_t w = 0; w < c->N / c->T; w++) {
        double f[64] = {0}, mean[64] = {0};
        for (int64_t t = w * c->T; t < (w + 1) * c->T; t++) {
            double sum = 0;
            for (uint32_t e = 0; e < c->E; e++)
                sum += exp(scores[t * c->E + e]);
            for (uint32_t e = 0; e < c->E; e++)
                mean[e] += exp(scores[t * c->E + e]) / sum / (double)c->T;
            for (uint32_t k = 0; k < c->K; k++)
                f[ids[t * c->K + k]] += 1.0 / (double)(c->T * c->K);
        }
        for (uint32_t e = 0; e < c->E; e++)
            all += (double)c->T * mean[e] * f[e];
    }
    return all;
}

static void check_gradient(int64_t n_window, int64_t T, uint32_t E, uint32_t K, const float *bias) {
    const double scale = 0.37, step = 1e-5;
    balance_case c;
    open_case(&c, n_window, T, E, K);
    float *scores = check_random(7, c.N * E), *gates = check_zeros(c.N * K);
    for (int64_t i = 0; i < c.N * E; i++)
        scores[i] *= 3;
    uint16_t *ids = malloc((size_t)(c.N * K) * sizeof *ids);
    assert_non_null(ids);
    const gr_selection s = {.E = E, .K = K, .scale = 1, .threshold = 1, .bias = bias};
    gr_select(&s, (uint32_t)c.N, scores, ids, gates);
    double *x = check_double(c.N * E, scores), *expected = ref_alloc(c.N * E);
    const float *d;
    for (int call = 0; call < 2; call++) { /* what a call leaves behind does not matter to the next */
        c.loss_sum = 0;
        memset(c.load, 0, sizeof c.load);
        forward(&c, scores, bias);
        double loss = ref_loss(&c, x, ids);
        assert_true(fabs(c.loss_sum - loss) <= 1e-6 * loss);
        assert_int_equal(gr_balance_backward(c.balance, c.softmax, scale, &d), GR_OK);
    }
    for (int64_t i = 0; i < c.N * E; i++) {
        double at = x[i];
        x[i] = at + step;
        double high = ref_loss(&c, x, ids);
        x[i] = at - step;
        expected[i] = scale * (high - ref_loss(&c, x, ids)) / (2 * step);
        x[i] = at;
    }
    assert_true(check_error(c.N * E, d, expected) <= 2e-5);
    uint64_t load[64] = {0};
    for (int64_t i = 0; i < c.N * K; i++)
        load[ids[i]]++;
    assert_memory_equal(c.load, load, sizeof load);
    free(expected);
    free(x);
    free(ids);
    free(gates);
    free(scores);
    close_case(&c);
}

static void loss_and_gradient_equal_the_formula(void **state) {
    (void)state;
    const float bias[] = {0, 3, -3, 0.5f, 0, 0, -0.5f, 9, 0, 0, 0, 0, 0, 0, 0, 0};
    check_gradient(1, 1, 2, 1, NULL);
    check_gradient(3, 7, 8, 2, NULL);
    check_gradient(2, 16, 16, 4, NULL);
    check_gradient(3, 7, 8, 2, bias);
}

static void experts_that_are_all_chosen_are_in_balance(void **state) {
    (void)state;
    enum { T = 5, E = 8 };
    balance_case c;
    const float *d;
    open_case(&c, 1, T, E, E);
    float *scores = check_random(8, T * E);
    forward(&c, scores, NULL);
    assert_true(fabs(c.loss_sum - (double)T / E) < 1e-6);
    assert_int_equal(gr_balance_backward(c.balance, c.softmax, 1, &d), GR_OK);
    for (int i = 0; i < T * E; i++)
        assert_true(fabsf(d[i]) < 1e-7f);
    free(scores);
    close_case(&c);
}

static void losses_and_loads_are_added_to_what_is_there(void **state) {
    (void)state;
    const float scores[] = {1, 3, 2, 3, 0.5f, -1, 2, 0};
    balance_case c;
    open_case(&c, 1, 2, 4, 2);
    c.loss_sum = 10;
    c.load[2] = 5;
    forward(&c, scores, NULL);
    assert_true(fabs(c.loss_sum - 10.5) < 1e-6);
    assert_true(c.load[0] == 1 && c.load[2] == 6);
    close_case(&c);
}

static void the_sign_rule_lowers_the_bias_of_full_experts(void **state) {
    (void)state;
    float bias[] = {0, 1, -1, 0.5f};
    gr_balance_bias(4, (const uint64_t[]){10, 12, 8, 10}, 0.25, bias); /* mean 10 */
    assert_true(bias[0] == 0 && bias[1] == 0.75f && bias[2] == -0.75f && bias[3] == 0.5f);
    gr_balance_bias(4, (const uint64_t[]){0, 0, 0, 0}, 0.25, bias);
    assert_true(bias[0] == 0 && bias[1] == 0.75f && bias[2] == -0.75f && bias[3] == 0.5f);
    float three[3] = {0};
    gr_balance_bias(3, (const uint64_t[]){3, 3, 4}, 1, three); /* no mean that is whole */
    assert_true(three[0] == 1 && three[1] == 1 && three[2] == -1);
}

static void memory_is_what_is_measured(void **state) {
    (void)state;
    /* lse, two gates, d(scores), ids, one count per window, 2 losses, loads; on the host
     * loads, chosen ids and gates; each a multiple of 64 bytes. */
    assert_int_equal(gr_balance_memory(32, 16, 16, 4),
        32 * 4 + 2 * 32 * 4 * 4 + 32 * 16 * 4 + 32 * 4 * 2 + 2 * 16 * 4 + 64 + 2 * 16 * 8 + 32 * 4 * 2 + 32 * 4 * 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_worked_example_has_its_loss),
        cmocka_unit_test(equal_scores_in_turn_have_the_least_loss),
        cmocka_unit_test(loss_and_gradient_equal_the_formula),
        cmocka_unit_test(experts_that_are_all_chosen_are_in_balance),
        cmocka_unit_test(losses_and_loads_are_added_to_what_is_there),
        cmocka_unit_test(the_sign_rule_lowers_the_bias_of_full_experts),
        cmocka_unit_test(memory_is_what_is_measured),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
