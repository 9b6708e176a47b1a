/* Layer norm with ReLU and residual of the CPU backend. */
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
    return check_backend_open(&backend, GR_F32);
}

static int close_backend(void **state) {
    (void)state;
    gr_backend_close(backend);
    return 0;
}

#define EPS 1e-3f

/* Inputs random, outputs poisoned; dw and db hold something already. */
typedef struct layer_norm_case {
    int64_t n, width;
    float *x, *w, *b, *residual, *y, *mean, *rstd, *dy, *dx, *dw, *db;
} layer_norm_case;

static layer_norm_case open_case(int64_t n, int64_t width) {
    layer_norm_case c = {.n = n,
        .width = width,
        .x = check_random(1, n * width),
        .w = check_random(2, width),
        .b = check_random(3, width),
        .residual = check_random(4, n * width),
        .y = check_poisoned(n * width),
        .mean = check_poisoned(n),
        .rstd = check_poisoned(n),
        .dy = check_random(5, n * width),
        .dx = check_poisoned(n * width),
        .dw = check_random(6, width),
        .db = check_random(7, width)};
    return c;
}

static void close_case(layer_norm_case *c) {
    float *all[] = {c->x, c->w, c->b, c->residual, c->y, c->mean, c->rstd, c->dy, c->dx, c->dw, c->db};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* Forward must not need what only backward has. */
static gr_layer_norm forward_of(const layer_norm_case *c, bool residual) {
    return (gr_layer_norm){.n_row = c->n,
        .width = c->width,
        .eps = EPS,
        .x = c->x,
        .w = c->w,
        .b = c->b,
        .residual = residual ? c->residual : NULL,
        .y = c->y,
        .mean = c->mean,
        .rstd = c->rstd};
}

/* Backward must not need y nor the residual. */
static gr_layer_norm backward_of(const layer_norm_case *c) {
    gr_layer_norm a = forward_of(c, false);
    a.y = NULL;
    a.dy = c->dy;
    a.dx = c->dx;
    a.dw = c->dw;
    a.db = c->db;
    return a;
}

static void run(gr_backend *b, const layer_norm_case *c, bool residual) {
    gr_layer_norm forward = forward_of(c, residual), backward = backward_of(c);
    assert_int_equal(b->layer_norm_forward(b, GR_LANE_COMPUTE, &forward), 0);
    assert_int_equal(b->layer_norm_backward(b, GR_LANE_COMPUTE, &backward), 0);
}

static void check_layer_norm(int64_t n, int64_t width, bool residual) {
    layer_norm_case c = open_case(n, width);
    double *x = check_double(n * width, c.x), *w = check_double(width, c.w), *b = check_double(width, c.b);
    double *r = check_double(n * width, c.residual), *dy = check_double(n * width, c.dy);
    double *y = ref_alloc(n * width), *dx = ref_alloc(n * width);
    double *dw = check_double(width, c.dw), *db = check_double(width, c.db);
    ref_layer_norm s = {.n = n, .width = width, .eps = (double)EPS, .x = x, .w = w, .b = b};
    s.residual = residual ? r : NULL;
    ref_layer_norm_forward(&s, y);
    ref_layer_norm_backward(&s, dy, dx, dw, db);
    run(backend, &c, residual);
    assert_true(check_error(n * width, c.y, y) <= CHECK_F32);
    assert_true(check_error(n * width, c.dx, dx) <= CHECK_F32);
    assert_true(check_error(width, c.dw, dw) <= CHECK_F32);
    assert_true(check_error(width, c.db, db) <= CHECK_F32);
    close_case(&c);
    double *all[] = {x, w, b, r, dy, y, dx, dw, db};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void layer_norms_match_the_reference(void **state) {
    (void)state;
    /* Not 2: all that is left of dx is then what eps takes from a difference of equals. */
    static const int64_t width[] = {1, 3, 7, 20, 48, 257};
    for (size_t i = 0; i < sizeof width / sizeof *width; i++) {
        check_layer_norm(1, width[i], false);
        check_layer_norm(1, width[i], true);
        check_layer_norm(256, width[i], true);
        check_layer_norm(259, width[i], false);
        check_layer_norm(600, width[i], true);
    }
}

/* Where the sums of a row's parameters are kept depends on its width, and how many rows are summed on their number. */
static void wide_and_many_rows_match_the_reference(void **state) {
    (void)state;
    check_layer_norm(17, 768, true);
    check_layer_norm(17, 1000, false);
    check_layer_norm(9, 6145, false);
    check_layer_norm(9, 6400, true);
    check_layer_norm(9001, 6, false);
}

static void no_rows_leave_the_parameter_gradients(void **state) {
    (void)state;
    check_layer_norm(0, 20, false);
    check_layer_norm(0, 20, true);
}

static void a_row_of_equal_values_gives_the_bias_above_zero(void **state) {
    (void)state;
    layer_norm_case c = open_case(3, 33);
    for (int64_t i = 0; i < 3 * 33; i++)
        c.x[i] = 0.5f;
    run(backend, &c, false);
    for (int64_t i = 0; i < 3 * 33; i++) {
        float bias = c.b[i % 33];
        assert_true(c.y[i] == (bias > 0 ? bias : 0));
        assert_true(isfinite(c.dx[i]));
    }
    close_case(&c);
}

static void a_nan_reaches_its_whole_row_and_no_other(void **state) {
    (void)state;
    layer_norm_case c = open_case(5, 20);
    c.x[2 * 20 + 7] = c.y[0]; /* poison */
    run(backend, &c, true);
    for (int64_t i = 0; i < 5 * 20; i++) {
        assert_int_equal(isnan(c.y[i]) != 0, i / 20 == 2);
        assert_int_equal(isnan(c.dx[i]) != 0, i / 20 == 2);
    }
    close_case(&c);
}

static void results_do_not_depend_on_the_threads(void **state) {
    (void)state;
    layer_norm_case first = open_case(1111, 33);
    for (int n_thread = 1; n_thread <= 3; n_thread++) {
        gr_backend *b;
        check_set_threads(n_thread);
        assert_int_equal(check_backend_open(&b, GR_F32), 0);
        layer_norm_case c = open_case(1111, 33);
        run(b, n_thread == 1 ? &first : &c, true);
        if (n_thread > 1) {
            assert_memory_equal(c.y, first.y, 1111 * 33 * sizeof(float));
            assert_memory_equal(c.dx, first.dx, 1111 * 33 * sizeof(float));
            assert_memory_equal(c.dw, first.dw, 33 * sizeof(float));
            assert_memory_equal(c.db, first.db, 33 * sizeof(float));
        }
        close_case(&c);
        gr_backend_close(b);
    }
    close_case(&first);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layer_norms_match_the_reference),
        cmocka_unit_test(wide_and_many_rows_match_the_reference),
        cmocka_unit_test(no_rows_leave_the_parameter_gradients),
        cmocka_unit_test(a_row_of_equal_values_gives_the_bias_above_zero),
        cmocka_unit_test(a_nan_reaches_its_whole_row_and_no_other),
        cmocka_unit_test(results_do_not_depend_on_the_threads),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
