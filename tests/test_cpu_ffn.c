/* Grouped SwiGLU experts of the CPU backend: spread over experts or over rows, empty experts, gates. */
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

/* Everything one call reads and writes. x and dy have n_row rows, of which pairs may use some twice and some never. */
typedef struct ffn_case {
    gr_ffn a;
    int64_t n_row, n_w13, n_w2;
    float *x, *w13, *w2, *gate, *h, *act, *y, *dy, *da, *dw13, *dw2, *dx, *dgate;
    uint32_t *row, *order;
    gr_row_tile *tiles;
} ffn_case;

/* For backends that do all experts in one launch. */
static void add_tiles(ffn_case *c, const uint32_t *offset) {
    const uint32_t n_expert = (uint32_t)c->a.n_expert;
    c->tiles = malloc((gr_tiles_max(offset[n_expert], n_expert) + 1) * sizeof *c->tiles);
    c->order = malloc(n_expert * sizeof *c->order);
    assert_true(c->tiles && c->order);
    c->a.n_tile = gr_tiles_build(offset, n_expert, c->tiles, c->order);
    c->a.tiles = c->tiles;
    c->a.expert_order = c->order;
    c->a.device_offset = offset;
}

/* `offset` has n_expert + 1 entries. */
static ffn_case open_ffn(int32_t n_expert, const uint32_t *offset, int64_t D, int64_t F) {
    const int64_t n_pair = offset[n_expert];
    ffn_case c = {.n_row = n_pair + 2, .n_w13 = n_expert * 2 * F * D, .n_w2 = n_expert * D * F};
    c.row = malloc((size_t)(n_pair + 1) * sizeof *c.row);
    assert_non_null(c.row);
    for (int64_t p = 0; p < n_pair; p++)
        c.row[p] = (uint32_t)((p * p + 3) % c.n_row);
    c.x = check_random(1, c.n_row * D);
    c.dy = check_random(2, c.n_row * D);
    c.w13 = check_random(3, c.n_w13);
    c.w2 = check_random(4, c.n_w2);
    c.dw13 = check_random(5, c.n_w13);
    c.dw2 = check_random(6, c.n_w2);
    c.gate = check_random(7, n_pair);
    c.h = check_poisoned(n_pair * 2 * F);
    c.act = check_poisoned(n_pair * F);
    c.da = check_poisoned(n_pair * F);
    c.y = check_poisoned(n_pair * D);
    c.dx = check_poisoned(n_pair * D);
    c.dgate = check_poisoned(n_pair);
    c.a = (gr_ffn){.n_expert = n_expert,
        .D = D,
        .F = F,
        .n_pair = n_pair,
        .expert_offset = offset,
        .pair_row = c.row,
        .pair_gate = c.gate,
        .x = c.x,
        .w13 = c.w13,
        .w2 = c.w2,
        .h = c.h,
        .a = c.act,
        .y = c.y};
    add_tiles(&c, offset);
    return c;
}

/* Backward's arguments, set apart: forward must not need them. */
static void add_backward(ffn_case *c) {
    c->a.dy = c->dy;
    c->a.da = c->da;
    c->a.dw13 = c->dw13;
    c->a.dw2 = c->dw2;
    c->a.dx = c->dx;
    c->a.dgate = c->dgate;
}

static void close_ffn(ffn_case *c) {
    float *all[] = {c->x, c->w13, c->w2, c->gate, c->h, c->act, c->y, c->dy, c->da, c->dw13, c->dw2, c->dx, c->dgate};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(c->row);
    free(c->tiles);
    free(c->order);
}

/* The reference's view of the case, in double; `offset` as opened, even when the call under test has none. */
typedef struct expected {
    ref_ffn s;
    double *x, *w13, *w2, *gate, *dy, *y, *dx, *dw13, *dw2, *dgate;
} expected;

static expected open_expected(const ffn_case *c, const uint32_t *offset) {
    const int64_t D = c->a.D, n_pair = c->a.n_pair;
    expected e = {.x = check_double(c->n_row * D, c->x),
        .w13 = check_double(c->n_w13, c->w13),
        .w2 = check_double(c->n_w2, c->w2),
        .gate = check_double(n_pair, c->gate),
        .dy = check_double(c->n_row * D, c->dy),
        .dw13 = check_double(c->n_w13, c->dw13),
        .dw2 = check_double(c->n_w2, c->dw2),
        .y = ref_alloc(n_pair * D),
        .dx = ref_alloc(n_pair * D),
        .dgate = ref_alloc(n_pair)};
    e.s = (ref_ffn){.n_expert = c->a.n_expert,
        .D = D,
        .F = c->a.F,
        .offset = offset,
        .pair_row = c->a.pair_row,
        .x = e.x,
        .pair_gate = c->a.pair_gate ? e.gate : NULL,
        .w13 = e.w13,
        .w2 = e.w2};
    ref_ffn_forward(&e.s, e.y);
    ref_ffn_backward(&e.s, e.dy, e.dx, e.dw13, e.dw2, e.dgate);
    return e;
}

static void close_expected(expected *e) {
    double *all[] = {e->x, e->w13, e->w2, e->gate, e->dy, e->y, e->dx, e->dw13, e->dw2, e->dgate};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* Runs forward and backward, compares everything, closes the case. */
static void check_ffn(ffn_case *c, const uint32_t *offset) {
    const int64_t D = c->a.D, n_pair = c->a.n_pair;
    expected e = open_expected(c, offset);
    assert_int_equal(backend->ffn_forward(backend, GR_LANE_COMPUTE, &c->a), 0);
    assert_true(check_error(n_pair * D, c->y, e.y) <= check_bound());
    add_backward(c);
    assert_int_equal(backend->ffn_backward(backend, GR_LANE_COMPUTE, &c->a), 0);
    assert_true(check_error(n_pair * D, c->dx, e.dx) <= check_bound());
    assert_true(check_error(c->n_w13, c->dw13, e.dw13) <= check_bound());
    assert_true(check_error(c->n_w2, c->dw2, e.dw2) <= check_bound());
    assert_true(check_error(n_pair, c->dgate, e.dgate) <= check_bound());
    close_expected(&e);
    close_ffn(c);
}

static void experts_match_the_reference(void **state) {
    (void)state;
    static const uint32_t offset[] = {0, 0, 1, 20, 20, 87};
    ffn_case c = open_ffn(5, offset, 20, 31);
    check_ffn(&c, offset);
    c = open_ffn(5, offset, 48, 6);
    check_ffn(&c, offset);
}

/* Counts around the tiles of kernels that do all experts in one launch (multiples of 64 and 128), none and all. */
static void check_counts(int32_t n_expert, const uint32_t *count, int64_t D, int64_t F) {
    uint32_t offset[16] = {0};
    assert_true(n_expert < 16);
    for (int32_t e = 0; e < n_expert; e++)
        offset[e + 1] = offset[e] + count[e];
    ffn_case c = open_ffn(n_expert, offset, D, F);
    check_ffn(&c, offset);
}

static void experts_of_any_number_of_rows(void **state) {
    (void)state;
    check_counts(9, (const uint32_t[]){0, 1, 63, 64, 65, 127, 0, 128, 129}, 40, 24);
    check_counts(6, (const uint32_t[]){0, 0, 130, 0, 0, 0}, 24, 8);
    check_counts(8, (const uint32_t[]){3, 2, 4, 290, 3, 0, 1, 2}, 8, 40);
    check_counts(11, (const uint32_t[]){1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 40, 56);
}

/* Widths around the tiles: whole, half, a few, a model's. */
static void widths_that_are_no_multiples_of_tiles(void **state) {
    (void)state;
    check_counts(3, (const uint32_t[]){5, 70, 1}, 128, 64);
    check_counts(3, (const uint32_t[]){33, 0, 17}, 136, 72);
    check_counts(2, (const uint32_t[]){66, 2}, 8, 200);
    check_counts(2, (const uint32_t[]){20, 130}, 264, 8);
    check_counts(2, (const uint32_t[]){20, 3}, 384, 344);
}

/* Every way of the backend to compute experts, against the reference and so against each other; AUTO is the last. */
static void all_ways_agree(void **state) {
    (void)state;
    for (int way = GR_EXPERTS_CUBLAS; way <= (int)backend->experts_best; way++) {
        backend->experts = (gr_experts)way;
        check_counts(5, (const uint32_t[]){0, 1, 130, 64, 9}, 72, 136);
    }
    backend->experts = GR_EXPERTS_AUTO;
}

static void one_expert_is_spread_over_the_rows(void **state) {
    (void)state;
    static const uint32_t offset[] = {0, 131};
    ffn_case c = open_ffn(1, offset, 33, 65);
    check_ffn(&c, offset);
}

static void more_threads_than_experts_give_the_same(void **state) {
    (void)state;
    static const uint32_t offset[] = {0, 40, 40, 41};
    gr_backend *few = backend;
    check_set_threads(4);
    assert_int_equal(check_backend_open(&backend, CHECK_DTYPE), 0);
    ffn_case c = open_ffn(3, offset, 16, 24);
    check_ffn(&c, offset);
    gr_backend_close(backend);
    check_set_threads(2);
    backend = few;
}

static void pairs_may_be_rows_and_gates_may_be_absent(void **state) {
    (void)state;
    static const uint32_t offset[] = {0, 67};
    ffn_case c = open_ffn(1, offset, 22, 39);
    c.a.pair_row = NULL;
    c.a.pair_gate = NULL;
    c.a.expert_offset = NULL;
    check_ffn(&c, offset);
    static const uint32_t offset3[] = {0, 45, 45, 69};
    for (int64_t F = 39; F <= 40; F++) {
        c = open_ffn(3, offset3, 24, F);
        c.a.pair_row = NULL;
        c.a.pair_gate = NULL;
        check_ffn(&c, offset3);
    }
}

static void no_pairs_leave_the_gradients(void **state) {
    (void)state;
    static const uint32_t offset[] = {0, 0, 0, 0};
    ffn_case c = open_ffn(3, offset, 8, 4);
    check_ffn(&c, offset);
}

static void check_without_gate_gradients(int64_t F) {
    static const uint32_t offset[] = {0, 3, 8};
    ffn_case c = open_ffn(2, offset, 8, F);
    assert_int_equal(backend->ffn_forward(backend, GR_LANE_COMPUTE, &c.a), 0);
    add_backward(&c);
    c.a.dgate = NULL;
    assert_int_equal(backend->ffn_backward(backend, GR_LANE_COMPUTE, &c.a), 0);
    for (int p = 0; p < 8; p++)
        assert_true(check_is_poison(c.dgate[p]));
    close_ffn(&c);
}

static void gate_gradients_are_not_needed(void **state) {
    (void)state;
    check_without_gate_gradients(4);
    check_without_gate_gradients(16);
}

/* Large pre-activations: silu saturates to 0 or to h1 and its derivative to 0 or 1, without NaN. */
static void saturated_units_stay_finite(void **state) {
    (void)state;
    static const uint32_t offset[] = {0, 40, 80};
    ffn_case c = open_ffn(2, offset, 8, 46);
    for (int64_t i = 0; i < c.n_w13; i++)
        c.w13[i] *= 1024;
    check_ffn(&c, offset);
    c = open_ffn(2, offset, 8, 48);
    for (int64_t i = 0; i < c.n_w13; i++)
        c.w13[i] *= 1024;
    check_ffn(&c, offset);
}

static void check_h_alone(int64_t D, int64_t F) {
    static const uint32_t offset[] = {0, 30, 30, 41};
    ffn_case c = open_ffn(3, offset, D, F);
    assert_int_equal(backend->ffn_forward(backend, GR_LANE_COMPUTE, &c.a), 0);
    float *h = check_copy(41 * 2 * F, c.h), *y = check_copy(41 * D, c.y);
    memset(c.h, 0, (size_t)(41 * 2 * F) * sizeof *c.h);
    c.a.y = NULL;
    c.a.dx = c.dx;
    assert_int_equal(backend->ffn_forward(backend, GR_LANE_COMPUTE, &c.a), 0);
    assert_memory_equal(h, c.h, (size_t)(41 * 2 * F) * sizeof *h);
    assert_memory_equal(y, c.y, (size_t)(41 * D) * sizeof *y);
    free(h), free(y);
    close_ffn(&c);
}

static void forward_without_a_result_makes_the_same_h(void **state) {
    (void)state;
    check_h_alone(20, 12);
    check_h_alone(24, 16);
}

static void results_do_not_depend_on_the_schedule(void **state) {
    (void)state;
    static const uint32_t offset[] = {0, 30, 31, 31, 90, 91, 120};
    float *first = NULL;
    for (int run = 0; run < 6; run++) {
        check_set_threads(1 + run % 3);
        ffn_case c = open_ffn(6, offset, 40, 24);
        add_backward(&c);
        assert_int_equal(backend->ffn_forward(backend, GR_LANE_COMPUTE, &c.a), 0);
        assert_int_equal(backend->ffn_backward(backend, GR_LANE_COMPUTE, &c.a), 0);
        if (!first)
            first = check_copy(c.n_w13, c.dw13);
        assert_memory_equal(first, c.dw13, (size_t)c.n_w13 * sizeof *first);
        close_ffn(&c);
    }
    check_set_threads(2);
    free(first);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(experts_match_the_reference),
        cmocka_unit_test(experts_of_any_number_of_rows),
        cmocka_unit_test(widths_that_are_no_multiples_of_tiles),
        cmocka_unit_test(all_ways_agree),
        cmocka_unit_test(one_expert_is_spread_over_the_rows),
        cmocka_unit_test(more_threads_than_experts_give_the_same),
        cmocka_unit_test(pairs_may_be_rows_and_gates_may_be_absent),
        cmocka_unit_test(no_pairs_leave_the_gradients),
        cmocka_unit_test(gate_gradients_are_not_needed),
        cmocka_unit_test(saturated_units_stay_finite),
        cmocka_unit_test(forward_without_a_result_makes_the_same_h),
        cmocka_unit_test(results_do_not_depend_on_the_schedule),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
