/* RMS norm and rotary embedding of the CPU backend. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "check.h"
#include "ref.h"

#include "grouter/backend.h"

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

#define EPS 1e-3f

/* x and y have rows longer than `width` by different gaps. */
typedef struct norm_case {
    int64_t n, width, ldx, ldy;
    float *x, *w, *y, *rstd, *dy, *dx, *dw;
} norm_case;

/* What is behind a row of x and of y. */
typedef struct gaps {
    int64_t x, y;
} gaps;
static const gaps odd = {2, 5}, even = {8, 16}; /* after even ones a row may begin where vectors may */

static norm_case open_norm(gaps gap, int64_t n, int64_t width) {
    norm_case c = {.n = n, .width = width, .ldx = width + gap.x, .ldy = width + gap.y};
    c.x = check_random_rows(1, n, width, c.ldx);
    c.dy = check_random_rows(2, n, width, c.ldy);
    c.w = check_random(3, width);
    c.dw = check_random(4, width);
    c.y = check_poisoned(n * c.ldy);
    c.dx = check_poisoned(n * c.ldx);
    c.rstd = check_poisoned(n);
    return c;
}

static void close_norm(norm_case *c) {
    free(c->x);
    free(c->dy);
    free(c->w);
    free(c->dw);
    free(c->y);
    free(c->dx);
    free(c->rstd);
}

static gr_norm norm_of(const norm_case *c) {
    return (gr_norm){.n_row = c->n,
        .width = c->width,
        .ldx = c->ldx,
        .ldy = c->ldy,
        .eps = EPS,
        .x = c->x,
        .w = c->w,
        .y = c->y,
        .rstd = c->rstd,
        .dy = c->dy,
        .dx = c->dx,
        .dw = c->dw};
}

static void check_norm_with(gaps gap, int64_t n, int64_t width, gr_write dx_write) {
    norm_case c = open_norm(gap, n, width);
    if (dx_write == GR_ACCUMULATE) {
        free(c.dx);
        c.dx = check_random_rows(5, n, width, c.ldx);
    }
    double *x = check_packed(n, width, c.ldx, c.x), *dy = check_packed(n, width, c.ldy, c.dy);
    double *w = check_double(width, c.w), *dw = check_double(width, c.dw), *y = ref_alloc(n * width);
    double *dx = dx_write == GR_ACCUMULATE ? check_packed(n, width, c.ldx, c.dx) : ref_alloc(n * width);
    ref_norm(n, width, (double)EPS, x, w, y);
    ref_norm_backward(n, width, (double)EPS, x, w, dy, dx, dw);
    gr_norm a = norm_of(&c);
    a.dx_write = dx_write;
    assert_int_equal(backend->norm_forward(backend, GR_LANE_COMPUTE, &a), 0);
    assert_int_equal(backend->norm_backward(backend, GR_LANE_COMPUTE, &a), 0);
    assert_true(check_rows_error(n, width, c.ldy, c.y, y) <= check_bound());
    assert_true(check_rows_error(n, width, c.ldx, c.dx, dx) <= check_bound());
    assert_true(check_error(width, c.dw, dw) <= CHECK_F32);
    close_norm(&c);
    free(x);
    free(dy);
    free(w);
    free(dw);
    free(y);
    free(dx);
}

static void check_norm(int64_t n, int64_t width, gr_write dx_write) {
    check_norm_with(odd, n, width, dx_write);
    check_norm_with(even, n, width, dx_write);
}

static void norms_match_the_reference(void **state) {
    (void)state;
    static const int64_t width[] = {1, 6, 20, 48, 257, 512};
    for (size_t i = 0; i < sizeof width / sizeof *width; i++) {
        check_norm(1, width[i], GR_OVERWRITE);
        check_norm(259, width[i], GR_OVERWRITE);
        check_norm(21, width[i], GR_ACCUMULATE);
        check_norm(1500, width[i], GR_OVERWRITE);
    }
}

/* Where the sums of a row's weights are kept depends on its width, and how many rows are summed on their number. */
static void wide_and_many_rows_match_the_reference(void **state) {
    (void)state;
    check_norm(17, 1536, GR_OVERWRITE);
    check_norm(17, 2000, GR_ACCUMULATE);
    check_norm(5, 12289, GR_OVERWRITE);
    check_norm(9, 13000, GR_OVERWRITE);
    check_norm(9001, 6, GR_OVERWRITE);
}

static void no_rows_leave_the_weight_gradient(void **state) {
    (void)state;
    check_norm(0, 20, GR_OVERWRITE);
}

static void the_input_gradient_may_replace_the_output_gradient(void **state) {
    (void)state;
    norm_case c = open_norm(odd, 9, 48);
    gr_norm a = norm_of(&c);
    a.ldy = a.ldx; /* one layout for both */
    float *dy = check_random_rows(6, 9, 48, c.ldx), *y = check_poisoned(9 * c.ldx);
    a.y = y;
    a.dy = dy;
    float *dw = check_copy(48, c.dw);
    assert_int_equal(backend->norm_forward(backend, GR_LANE_COMPUTE, &a), 0);
    assert_int_equal(backend->norm_backward(backend, GR_LANE_COMPUTE, &a), 0);
    a.dx = dy;
    a.dw = dw;
    assert_int_equal(backend->norm_backward(backend, GR_LANE_COMPUTE, &a), 0);
    assert_memory_equal(dy, c.dx, (size_t)(9 * c.ldx) * sizeof *dy);
    assert_memory_equal(dw, c.dw, 48 * sizeof *dw);
    close_norm(&c);
    free(dy);
    free(y);
    free(dw);
}

static void weight_gradients_do_not_depend_on_the_threads(void **state) {
    (void)state;
    norm_case c = open_norm(odd, 1111, 33);
    float *expected = NULL, *start = check_copy(33, c.dw);
    for (int n_thread = 1; n_thread <= 3; n_thread++) {
        check_set_threads(n_thread);
        memcpy(c.dw, start, 33 * sizeof *start);
        gr_norm a = norm_of(&c);
        assert_int_equal(backend->norm_forward(backend, GR_LANE_COMPUTE, &a), 0);
        assert_int_equal(backend->norm_backward(backend, GR_LANE_COMPUTE, &a), 0);
        if (!expected)
            expected = check_copy(33, c.dw);
        assert_memory_equal(c.dw, expected, 33 * sizeof *expected);
    }
    close_norm(&c);
    free(expected);
    free(start);
}

/* ---------------------------------------------------------------- rotary embedding */

static void check_rope_with(int64_t gap, int64_t n_row, int64_t T, int64_t n_head, int64_t head_dim) {
    const double theta = 10000;
    const int64_t width = n_head * head_dim, ld = width + gap;
    float *x = check_random_rows(1, n_row, width, ld), *cosine, *sine;
    check_angles(T, head_dim, theta, &cosine, &sine);
    double *expected = check_packed(n_row, width, ld, x), *start = check_packed(n_row, width, ld, x);
    ref_rope(n_row, T, n_head, head_dim, theta, false, expected);
    gr_rope a = {.n_row = n_row,
        .T = T,
        .n_head = n_head,
        .head_dim = head_dim,
        .ld = ld,
        .cosine = cosine,
        .sine = sine,
        .x = x};
    assert_int_equal(backend->rope(backend, GR_LANE_COMPUTE, &a), 0);
    assert_true(check_rows_error(n_row, width, ld, x, expected) <= check_bound());
    a.inverse = true;
    assert_int_equal(backend->rope(backend, GR_LANE_COMPUTE, &a), 0);
    assert_true(check_rows_error(n_row, width, ld, x, start) <= check_bound());
    free(x);
    free(cosine);
    free(sine);
    free(expected);
    free(start);
}

static void check_rope(int64_t n_row, int64_t T, int64_t n_head, int64_t head_dim) {
    check_rope_with(3, n_row, T, n_head, head_dim);
    check_rope_with(8, n_row, T, n_head, head_dim); /* rows begin where vectors may */
}

static void rope_turns_heads_by_position_and_back(void **state) {
    (void)state;
    check_rope(1, 1, 1, 2);
    check_rope(21, 7, 3, 6);
    check_rope(26, 13, 1, 20);
    check_rope(10, 5, 4, 48);
    check_rope(600, 300, 2, 64);
    check_rope(21, 7, 3, 7);
    check_rope(0, 5, 4, 48);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_match_the_reference),
        cmocka_unit_test(wide_and_many_rows_match_the_reference),
        cmocka_unit_test(no_rows_leave_the_weight_gradient),
        cmocka_unit_test(the_input_gradient_may_replace_the_output_gradient),
        cmocka_unit_test(weight_gradients_do_not_depend_on_the_threads),
        cmocka_unit_test(rope_turns_heads_by_position_and_back),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
