/* Cross-entropy of the CPU backend, and the exponential it shares with softmax and SwiGLU. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "check.h"
#include "ref.h"

#include "grouter/backend.h"

#include "backend/cpu.h"

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

typedef struct loss_case {
    gr_cross_entropy a;
    float *x, *w, *dx, *dw, *logits;
    int32_t *target;
    double sum;
} loss_case;

static void open_loss(loss_case *c, int64_t n, int64_t D, int64_t V) {
    *c = (loss_case){.sum = 100};
    c->x = check_random(1, n * D);
    c->w = check_random(2, V * D);
    c->dx = check_poisoned(n * D);
    c->dw = check_random(3, V * D);
    c->logits = check_poisoned(gr_logits_chunk(backend, n, V) * V);
    c->target = malloc((size_t)(n + 1) * sizeof *c->target);
    assert_non_null(c->target);
    for (int64_t i = 0; i < n; i++)
        c->target[i] = i % 5 == 3 ? -1 : (int32_t)((i * i + V - 1) % V);
    c->a = (gr_cross_entropy){.n = n,
        .D = D,
        .V = V,
        .x = c->x,
        .w = c->w,
        .target = c->target,
        .scale = 0.25f,
        .loss_sum = &c->sum,
        .dx = c->dx,
        .dw = c->dw,
        .logits = c->logits};
}

static void close_loss(loss_case *c) {
    free(c->x);
    free(c->w);
    free(c->dx);
    free(c->dw);
    free(c->logits);
    free(c->target);
}

static void check_token_losses(loss_case *c, const double *x, const double *w) {
    int64_t n = c->a.n, D = c->a.D, V = c->a.V;
    double *token_loss = ref_alloc(n);
    for (int64_t i = 0; i < n; i++)
        token_loss[i] = NAN;
    c->a.token_loss = token_loss;
    assert_int_equal(backend->cross_entropy(backend, GR_LANE_COMPUTE, &c->a), 0);
    for (int64_t i = 0; i < n; i++) {
        double expected = ref_cross_entropy(1, D, V, x + i * D, w, c->target + i);
        assert_true(fabs(token_loss[i] - expected) <= check_bound() * fabs(expected));
    }
    free(token_loss);
}

static void check_loss(int64_t n, int64_t D, int64_t V) {
    loss_case c;
    open_loss(&c, n, D, V);
    double *x = check_double(n * D, c.x), *w = check_double(V * D, c.w), *dx = ref_alloc(n * D);
    double *dw = check_double(V * D, c.dw), loss = ref_cross_entropy(n, D, V, x, w, c.target);
    ref_cross_entropy_backward(n, D, V, x, w, c.target, 0.25, dx, dw);
    assert_int_equal(backend->cross_entropy(backend, GR_LANE_COMPUTE, &c.a), 0);
    assert_true(fabs(c.sum - 100 - loss) <= check_bound() * fabs(loss));
    assert_true(check_error(n * D, c.dx, dx) <= check_bound());
    assert_true(check_error(V * D, c.dw, dw) <= check_bound());
    const double with_gradients = c.sum;
    c.sum = 100;
    c.a.dx = NULL;
    c.a.dw = NULL;
    assert_int_equal(backend->cross_entropy(backend, GR_LANE_COMPUTE, &c.a), 0);
    assert_true(c.sum == with_gradients);
    check_token_losses(&c, x, w);
    close_loss(&c);
    free(x);
    free(w);
    free(dx);
    free(dw);
}

static void losses_and_gradients_match_the_reference(void **state) {
    (void)state;
    check_loss(0, 6, 257);
    check_loss(1, 1, 2);
    check_loss(1, 20, 257);
    check_loss(37, 48, 257);
    check_loss(64, 33, 1001);
}

static void chunks_do_not_show(void **state) {
    (void)state;
    assert_true(gr_logits_chunk(backend, 170, 100003) < 100);
    check_loss(170, 3, 100003);
}

static void ignored_tokens_contribute_nothing(void **state) {
    (void)state;
    loss_case c;
    open_loss(&c, 9, 7, 11);
    for (int i = 0; i < 9; i++)
        c.target[i] = -1;
    float *dw = check_copy(11 * 7, c.dw);
    assert_int_equal(backend->cross_entropy(backend, GR_LANE_COMPUTE, &c.a), 0);
    assert_true(c.sum == 100);
    assert_memory_equal(c.dw, dw, 11 * 7 * sizeof *dw);
    for (int i = 0; i < 9 * 7; i++)
        assert_true(c.dx[i] == 0);
    free(dw);
    close_loss(&c);
}

static void check_loss_is_nan(float bad) {
    for (int64_t column = 0; column < 37; column++) { /* wherever in a vector it falls */
        loss_case c;
        open_loss(&c, 3, 2, 37);
        c.w[column * 2] = bad;
        assert_int_equal(backend->cross_entropy(backend, GR_LANE_COMPUTE, &c.a), 0);
        assert_true(isnan(c.sum));
        close_loss(&c);
    }
}

static void a_nan_in_the_weights_is_a_nan_loss(void **state) {
    (void)state;
    check_loss_is_nan(NAN);
    loss_case c;
    open_loss(&c, 3, 2, 37);
    c.x[2] = NAN;
    assert_int_equal(backend->cross_entropy(backend, GR_LANE_COMPUTE, &c.a), 0);
    assert_true(isnan(c.sum));
    close_loss(&c);
}

static void an_infinite_logit_is_not_a_finite_loss(void **state) {
    (void)state;
    loss_case c;
    open_loss(&c, 3, 2, 37);
    c.w[4] = INFINITY;
    assert_int_equal(backend->cross_entropy(backend, GR_LANE_COMPUTE, &c.a), 0);
    assert_true(!isfinite(c.sum));
    close_loss(&c);
}

static void large_logits_do_not_overflow(void **state) {
    (void)state;
    loss_case c;
    open_loss(&c, 4, 2, 37);
    for (int i = 0; i < 8; i++)
        c.x[i] *= 1e4f;
    assert_int_equal(backend->cross_entropy(backend, GR_LANE_COMPUTE, &c.a), 0);
    assert_true(isfinite(c.sum));
    close_loss(&c);
}

static void losses_do_not_depend_on_the_threads_that_sum_them(void **state) {
    (void)state;
    double sum[3];
    for (int run = 0; run < 3; run++) {
        loss_case c;
        open_loss(&c, 301, 1, 257); /* D 1: the product of one term is the same in any library order */
        check_set_threads(run + 1);
        assert_int_equal(backend->cross_entropy(backend, GR_LANE_COMPUTE, &c.a), 0);
        sum[run] = c.sum;
        close_loss(&c);
    }
    check_set_threads(2);
    assert_true(sum[0] == sum[1] && sum[1] == sum[2]);
}

/* ---------------------------------------------------------------- the exponential */

static void the_exponential_is_within_one_ulp(void **state) {
    (void)state;
    double worst = 0;
    for (int i = -86599; i <= 88722; i++) {
        const float x = (float)i * 1e-3f;
        const double exact = exp((double)x), ulp = exact * 0x1p-23;
        worst = fmax(worst, fabs((double)gr_cpu_exp(x) - exact) / ulp);
    }
    assert_true(worst <= 1);
    assert_true(gr_cpu_exp(0) == 1);
}

static void the_exponential_saturates_and_keeps_nan(void **state) {
    (void)state;
    assert_true(gr_cpu_exp(-INFINITY) == 0 && gr_cpu_exp(-1e30f) == 0 && gr_cpu_exp(-200) == 0);
    assert_true(gr_cpu_exp(INFINITY) == INFINITY && gr_cpu_exp(1e30f) == INFINITY && gr_cpu_exp(89) == INFINITY);
    assert_true(isnan(gr_cpu_exp(NAN)) && isnan(gr_cpu_exp(-NAN)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_and_gradients_match_the_reference),
        cmocka_unit_test(chunks_do_not_show),
        cmocka_unit_test(ignored_tokens_contribute_nothing),
        cmocka_unit_test(a_nan_in_the_weights_is_a_nan_loss),
        cmocka_unit_test(an_infinite_logit_is_not_a_finite_loss),
        cmocka_unit_test(large_logits_do_not_overflow),
        cmocka_unit_test(losses_do_not_depend_on_the_threads_that_sum_them),
        cmocka_unit_test(the_exponential_is_within_one_ulp),
        cmocka_unit_test(the_exponential_saturates_and_keeps_nan),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
