/* Norm and rotation of queries and keys of the CPU backend. */
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
    return check_backend_open(&backend, CHECK_DTYPE);
}

static int close_backend(void **state) {
    (void)state;
    gr_backend_close(backend);
    return 0;
}

#define EPS 1e-3f
#define THETA 100.0

typedef struct sizes {
    int64_t n_row, T, n_q, n_k, head_dim;
    int64_t gap_x, gap_y; /* elements behind a row */
    bool turned;
} sizes;

/* Inputs random, outputs poisoned; dwq and dwk hold something already. */
typedef struct heads_case {
    sizes s;
    int64_t n_head, width, ldx, ldy;
    float *x, *wq, *wk, *y, *rstd, *dy, *dx, *dwq, *dwk, *cosine, *sine;
} heads_case;

static heads_case open_case(sizes s) {
    const int64_t n_head = s.n_q + s.n_k, width = n_head * s.head_dim, ldx = width + s.gap_x, ldy = width + s.gap_y;
    heads_case c = {.s = s,
        .n_head = n_head,
        .width = width,
        .ldx = ldx,
        .ldy = ldy,
        .x = check_random_rows(1, s.n_row, width, ldx),
        .wq = check_random(2, s.head_dim),
        .wk = check_random(3, s.head_dim),
        .y = check_poisoned(s.n_row * ldy),
        .rstd = check_poisoned(s.n_row * n_head),
        .dy = check_random_rows(4, s.n_row, width, ldy),
        .dx = check_poisoned(s.n_row * ldx),
        .dwq = check_random(5, s.head_dim),
        .dwk = check_random(6, s.head_dim)};
    check_angles(s.T, s.head_dim, THETA, &c.cosine, &c.sine);
    return c;
}

static void close_case(heads_case *c) {
    float *all[] = {c->x, c->wq, c->wk, c->y, c->rstd, c->dy, c->dx, c->dwq, c->dwk, c->cosine, c->sine};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* Forward must not need what only backward has, nor the weights of heads that are not there. */
static gr_head_norm forward_of(const heads_case *c) {
    return (gr_head_norm){.n_row = c->s.n_row,
        .T = c->s.T,
        .n_q = c->s.n_q,
        .n_k = c->s.n_k,
        .head_dim = c->s.head_dim,
        .ldx = c->ldx,
        .ldy = c->ldy,
        .eps = EPS,
        .cosine = c->s.turned ? c->cosine : NULL,
        .sine = c->s.turned ? c->sine : NULL,
        .x = c->x,
        .wq = c->s.n_q > 0 ? c->wq : NULL,
        .wk = c->s.n_k > 0 ? c->wk : NULL,
        .y = c->y,
        .rstd = c->rstd};
}

/* Backward must not need y. */
static gr_head_norm backward_of(const heads_case *c) {
    gr_head_norm a = forward_of(c);
    a.y = NULL;
    a.dy = c->dy;
    a.dx = c->dx;
    a.dwq = c->s.n_q > 0 ? c->dwq : NULL;
    a.dwk = c->s.n_k > 0 ? c->dwk : NULL;
    return a;
}

static void run(const gr_head_norm *forward, const gr_head_norm *backward) {
    assert_int_equal(backend->head_norm_forward(backend, GR_LANE_COMPUTE, forward), 0);
    assert_int_equal(backend->head_norm_backward(backend, GR_LANE_COMPUTE, backward), 0);
}

/* ---------------------------------------------------------------- the reference */

typedef struct expected_heads {
    double *x, *dy, *y, *dx; /* [n_row, width] */
    double *rstd;            /* [n_row, n_head] */
    double *dwq, *dwk;
} expected_heads;

/* Between columns [first, first + n) of rows of `width` and rows of their own. */
static void take(int64_t n_row, int64_t width, int64_t first, int64_t n, const double *from, double *to) {
    for (int64_t r = 0; r < n_row; r++)
        memcpy(to + r * n, from + r * width + first, (size_t)n * sizeof *to);
}

static void put(int64_t n_row, int64_t width, int64_t first, int64_t n, const double *from, double *to) {
    for (int64_t r = 0; r < n_row; r++)
        memcpy(to + r * width + first, from + r * n, (size_t)n * sizeof *to);
}

/* n_head heads from `head` on, all of them of weights w. */
static void expect(
    const heads_case *c, expected_heads *e, int64_t head, int64_t n_head, const float *weights, double *dw) {
    const sizes *s = &c->s;
    const int64_t n = n_head * s->head_dim, first = head * s->head_dim, all = s->n_row * n_head;
    double *x = ref_alloc(s->n_row * n), *dy = ref_alloc(s->n_row * n), *y = ref_alloc(s->n_row * n);
    double *dx = ref_alloc(s->n_row * n), *w = check_double(s->head_dim, weights);
    take(s->n_row, c->width, first, n, e->x, x);
    take(s->n_row, c->width, first, n, e->dy, dy);
    ref_norm(all, s->head_dim, (double)EPS, x, w, y);
    if (s->turned) {
        ref_rope(s->n_row, s->T, n_head, s->head_dim, THETA, false, y);
        ref_rope(s->n_row, s->T, n_head, s->head_dim, THETA, true, dy);
    }
    ref_norm_backward(all, s->head_dim, (double)EPS, x, w, dy, dx, dw);
    put(s->n_row, c->width, first, n, y, e->y);
    put(s->n_row, c->width, first, n, dx, e->dx);
    free(x);
    free(dy);
    free(y);
    free(dx);
    free(w);
}

static expected_heads expected_of(const heads_case *c) {
    const sizes *s = &c->s;
    expected_heads e = {.x = check_packed(s->n_row, c->width, c->ldx, c->x),
        .dy = check_packed(s->n_row, c->width, c->ldy, c->dy),
        .y = ref_alloc(s->n_row * c->width),
        .dx = ref_alloc(s->n_row * c->width),
        .rstd = ref_alloc(s->n_row * c->n_head),
        .dwq = check_double(s->head_dim, c->dwq),
        .dwk = check_double(s->head_dim, c->dwk)};
    expect(c, &e, 0, s->n_q, c->wq, e.dwq);
    expect(c, &e, s->n_q, s->n_k, c->wk, e.dwk);
    for (int64_t i = 0; i < s->n_row * c->n_head; i++) {
        double squares = 0;
        for (int64_t j = 0; j < s->head_dim; j++)
            squares += e.x[i * s->head_dim + j] * e.x[i * s->head_dim + j];
        e.rstd[i] = 1 / sqrt(squares / (double)s->head_dim + (double)EPS);
    }
    return e;
}

static void close_expected(expected_heads *e) {
    double *all[] = {e->x, e->dy, e->y, e->dx, e->rstd, e->dwq, e->dwk};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void compare(const heads_case *c, const expected_heads *e, const gr_head_norm *y, const gr_head_norm *dx) {
    const sizes *s = &c->s;
    const double error[] = {check_rows_error(s->n_row, c->width, c->ldy, y->y, e->y) / check_bound(),
        check_rows_error(s->n_row, c->width, c->ldx, dx->dx, e->dx) / check_bound(),
        check_error(s->n_row * c->n_head, y->rstd, e->rstd) / CHECK_F32,
        check_error(s->head_dim, c->dwq, e->dwq) / CHECK_F32, check_error(s->head_dim, c->dwk, e->dwk) / CHECK_F32};
    static const char *const what[] = {"y", "dx", "rstd", "dwq", "dwk"};
    for (size_t i = 0; i < sizeof error / sizeof *error; i++)
        if (!(error[i] <= 1))
            fail_msg("%s of %lld rows of %lld + %lld heads of %lld, T %lld: error %.3g times its bound", what[i],
                (long long)s->n_row, (long long)s->n_q, (long long)s->n_k, (long long)s->head_dim, (long long)s->T,
                error[i]);
}

static void check_case(sizes s) {
    heads_case c = open_case(s);
    expected_heads e = expected_of(&c);
    const gr_head_norm forward = forward_of(&c), backward = backward_of(&c);
    run(&forward, &backward);
    compare(&c, &e, &forward, &backward);
    close_case(&c);
    close_expected(&e);
}

/* With and without rotation, and rows that begin where vectors may and where not. */
static void check_heads(int64_t n_row, int64_t T, int64_t n_q, int64_t n_k, int64_t head_dim) {
    sizes s = {.n_row = n_row, .T = T, .n_q = n_q, .n_k = n_k, .head_dim = head_dim};
    for (int turned = 0; turned < 2; turned++)
        for (int odd = 0; odd < 2; odd++) {
            s.turned = turned;
            s.gap_x = odd ? 3 : 8;
            s.gap_y = odd ? 5 : 16;
            check_case(s);
        }
}

/* ---------------------------------------------------------------- the tests */

static void heads_match_the_reference(void **state) {
    (void)state;
    static const int64_t head_dim[] = {1, 2, 3, 7, 16, 20, 48, 64, 72, 96, 128, 256};
    for (size_t i = 0; i < sizeof head_dim / sizeof *head_dim; i++) {
        check_heads(1, 1, 1, 1, head_dim[i]);
        check_heads(21, 7, 3, 1, head_dim[i]);
        check_heads(26, 9, 4, 2, head_dim[i]); /* the last window is not whole */
        check_heads(3, 50, 2, 5, head_dim[i]);
        if (head_dim[i] >= 16) /* the gradient of few weights may be near 0 by chance, after sums of large terms */
            check_heads(90, 32, 3, 2, head_dim[i]);
    }
}

static void queries_alone_and_keys_alone_match_the_reference(void **state) {
    (void)state;
    static const int64_t head_dim[] = {1, 20, 64};
    for (size_t i = 0; i < sizeof head_dim / sizeof *head_dim; i++) {
        check_heads(70, 16, 5, 0, head_dim[i]);
        check_heads(70, 16, 0, 5, head_dim[i]);
    }
}

/* What a warp holds ends at 256 elements of fp32 and 512 of bf16; where sums of weights are kept depends on their
 * number. */
static void wide_heads_match_the_reference(void **state) {
    (void)state;
    static const int64_t head_dim[] = {264, 512, 528, 1001, 1540};
    for (size_t i = 0; i < sizeof head_dim / sizeof *head_dim; i++)
        check_heads(3, 2, 2, 1, head_dim[i]);
    check_case((sizes){.n_row = 5, .T = 3, .n_q = 1, .n_k = 2, .head_dim = 12290, .turned = true});
}

/* Sums of weights over one part, several, and parts that grow because there may be no more of them. */
static void many_rows_match_the_reference(void **state) {
    (void)state;
    check_case((sizes){.n_row = 300, .T = 128, .n_q = 3, .n_k = 2, .head_dim = 64, .turned = true});
    check_case((sizes){.n_row = 300, .T = 128, .n_q = 3, .n_k = 2, .head_dim = 6, .turned = true});
    check_case((sizes){.n_row = 22000, .T = 5000, .n_q = 3, .n_k = 1, .head_dim = 16, .turned = true});
}

static void no_rows_and_no_heads_leave_the_weight_gradients(void **state) {
    (void)state;
    check_heads(0, 5, 2, 1, 20);
    check_heads(0, 5, 2, 1, 64);
    check_heads(4, 5, 0, 0, 64);
}

static void the_input_gradient_may_replace_the_output_gradient(void **state) {
    (void)state;
    static const int64_t head_dim[] = {7, 20, 64, 128};
    for (size_t i = 0; i < sizeof head_dim / sizeof *head_dim; i++) {
        heads_case c = open_case((sizes){
            .n_row = 33, .T = 8, .n_q = 3, .n_k = 2, .head_dim = head_dim[i], .gap_x = 8, .gap_y = 8, .turned = true});
        const int64_t n = c.s.n_row * c.ldx;
        const gr_head_norm forward = forward_of(&c);
        gr_head_norm backward = backward_of(&c), in_place = backward;
        float *dy = check_copy(n, c.dy), *dwq = check_copy(head_dim[i], c.dwq), *dwk = check_copy(head_dim[i], c.dwk);
        in_place.dy = in_place.dx = dy;
        in_place.dwq = dwq;
        in_place.dwk = dwk;
        run(&forward, &backward);
        run(&forward, &in_place);
        assert_memory_equal(dy, c.dx, (size_t)n * sizeof *dy);
        assert_memory_equal(dwq, c.dwq, (size_t)head_dim[i] * sizeof *dwq);
        assert_memory_equal(dwk, c.dwk, (size_t)head_dim[i] * sizeof *dwk);
        close_case(&c);
        free(dy);
        free(dwq);
        free(dwk);
    }
}

/* One array of each call begins an element later, where no vector may. */
static void arrays_may_begin_anywhere(void **state) {
    (void)state;
    enum { N_ARRAY = 8 };
    for (int moved = 0; moved < N_ARRAY; moved++) {
        heads_case c = open_case(
            (sizes){.n_row = 9, .T = 4, .n_q = 2, .n_k = 2, .head_dim = 64, .gap_x = 8, .gap_y = 16, .turned = true});
        expected_heads e = expected_of(&c);
        float **array[N_ARRAY] = {&c.x, &c.y, &c.dy, &c.dx, &c.wq, &c.wk, &c.cosine, &c.sine};
        const int64_t n[N_ARRAY] = {9 * c.ldx, 9 * c.ldy, 9 * c.ldy, 9 * c.ldx, 64, 64, 4 * 32, 4 * 32};
        float *later = check_poisoned(n[moved] + 1), *first = *array[moved];
        memcpy(later + 1, first, (size_t)n[moved] * sizeof *later);
        *array[moved] = later + 1;
        const gr_head_norm forward = forward_of(&c), backward = backward_of(&c);
        run(&forward, &backward);
        compare(&c, &e, &forward, &backward);
        *array[moved] = first;
        free(later);
        close_case(&c);
        close_expected(&e);
    }
}

static void results_do_not_depend_on_the_threads(void **state) {
    (void)state;
    const sizes s = {.n_row = 700, .T = 100, .n_q = 3, .n_k = 2, .head_dim = 48, .turned = true};
    heads_case first = open_case(s);
    const gr_head_norm forward = forward_of(&first), backward = backward_of(&first);
    check_set_threads(1);
    run(&forward, &backward);
    for (int n_thread = 1; n_thread <= 3; n_thread++) {
        check_set_threads(n_thread);
        heads_case c = open_case(s);
        const gr_head_norm again = forward_of(&c), back = backward_of(&c);
        run(&again, &back);
        assert_memory_equal(c.y, first.y, (size_t)(s.n_row * c.ldy) * sizeof *c.y);
        assert_memory_equal(c.dx, first.dx, (size_t)(s.n_row * c.ldx) * sizeof *c.dx);
        assert_memory_equal(c.dwq, first.dwq, (size_t)s.head_dim * sizeof *c.dwq);
        assert_memory_equal(c.dwk, first.dwk, (size_t)s.head_dim * sizeof *c.dwk);
        close_case(&c);
    }
    close_case(&first);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_match_the_reference),
        cmocka_unit_test(queries_alone_and_keys_alone_match_the_reference),
        cmocka_unit_test(wide_heads_match_the_reference),
        cmocka_unit_test(many_rows_match_the_reference),
        cmocka_unit_test(no_rows_and_no_heads_leave_the_weight_gradients),
        cmocka_unit_test(the_input_gradient_may_replace_the_output_gradient),
        cmocka_unit_test(arrays_may_begin_anywhere),
        cmocka_unit_test(results_do_not_depend_on_the_threads),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
