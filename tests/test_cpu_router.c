/* The learned router and gates on the CPU backend, against the reference in double. */
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

/* One call with everything it reads and writes. */
typedef struct router_case {
    gr_router_op op;
    float *logits; /* as they went in */
    double loss[2];
} router_case;

static void *take(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    assert_non_null(p);
    return p;
}

/* K distinct ascending experts of token t, the same ones for neighbours so that counts are uneven. */
static void give_ids(const gr_router_op *a) {
    for (int64_t t = 0; t < a->n; t++)
        for (int64_t k = 0; k < a->K; k++)
            a->ids[t * a->K + k] = (uint16_t)(k + (t % 3 == 0 ? a->E - a->K : t % (a->E - a->K + 1)));
}

static void open_case(router_case *c, gr_choice choice, bool normalise, int64_t E, int64_t K) {
    enum { T = 7, N_WINDOW = 3, N = T * N_WINDOW };
    *c = (router_case){.op = {.choice = choice,
                           .normalise = normalise,
                           .n = N,
                           .T = T,
                           .E = E,
                           .K = K,
                           .scale = 2.5f,
                           .aux_scale = 0.03,
                           .z_scale = 0.004}};
    size_t n = N, e = (size_t)E, k = (size_t)K;
    c->logits = check_random(1, N * E);
    for (int64_t i = 0; i < N * E; i++)
        c->logits[i] *= 6;
    c->op.p = check_copy(N * E, c->logits);
    c->op.lse = check_poisoned(N);
    c->op.ids = take(n * k, sizeof *c->op.ids);
    c->op.gate = check_poisoned(N * K);
    c->op.count = take(N_WINDOW * e, sizeof *c->op.count);
    c->op.load = take(e, sizeof *c->op.load);
    c->op.dgate = check_random(2, N * K);
    c->op.dlogits = check_poisoned(N * E);
    memset(c->op.count, 0xff, N_WINDOW * e * sizeof *c->op.count);
    c->op.loss = c->loss;
    if (choice == GR_CHOICE_GIVEN)
        give_ids(&c->op);
}

static void close_case(router_case *c) {
    free(c->logits);
    free(c->op.p);
    free(c->op.lse);
    free(c->op.ids);
    free(c->op.gate);
    free(c->op.count);
    free(c->op.load);
    free((void *)(uintptr_t)c->op.dgate);
    free(c->op.dlogits);
}

static void run(router_case *c) {
    assert_int_equal(backend->router_forward(backend, GR_LANE_COMPUTE, &c->op), GR_OK);
    assert_int_equal(backend->router_backward(backend, GR_LANE_COMPUTE, &c->op), GR_OK);
}

static void check_counts(const router_case *c) {
    const gr_router_op *a = &c->op;
    uint64_t all = 0;
    for (int64_t i = 0; i < a->E; i++) {
        uint64_t load = 0;
        for (int64_t w = 0; w < a->n / a->T; w++) {
            uint32_t n = 0;
            for (int64_t t = w * a->T; t < (w + 1) * a->T; t++)
                for (int64_t k = 0; k < a->K; k++)
                    n += a->ids[t * a->K + k] == i;
            assert_int_equal(a->count[w * a->E + i], n);
            load += n;
        }
        assert_int_equal(a->load[i], load);
        all += load;
    }
    assert_int_equal(all, a->n * a->K);
}

static void check_case(gr_choice choice, bool normalise, int64_t E, int64_t K) {
    router_case c;
    open_case(&c, choice, normalise, E, K);
    const gr_router_op *a = &c.op;
    double *logits = check_double(a->n * E, c.logits), *gates = ref_alloc(a->n * K), *dlogits = ref_alloc(a->n * E);
    double *dgate = check_double(a->n * K, a->dgate), loss[2] = {0, 0};
    uint16_t *ids = take((size_t)(a->n * K), sizeof *ids);
    memcpy(ids, a->ids, (size_t)(a->n * K) * sizeof *ids);
    ref_router ref = {.choose = choice == GR_CHOICE_TOP_K,
        .normalise = normalise,
        .n = a->n,
        .T = a->T,
        .E = E,
        .K = K,
        .scale = (double)a->scale,
        .aux = a->aux_scale,
        .z = a->z_scale,
        .logits = logits};
    ref_router_forward(&ref, ids, gates, loss);
    ref_router_backward(&ref, ids, dgate, dlogits);
    run(&c);
    assert_memory_equal(a->ids, ids, (size_t)(a->n * K) * sizeof *ids);
    assert_true(check_error(a->n * K, a->gate, gates) <= CHECK_F32);
    assert_true(check_error(a->n * E, a->dlogits, dlogits) <= CHECK_F32);
    assert_true(fabs(c.loss[0] - loss[0]) <= 1e-6 * loss[0] && fabs(c.loss[1] - loss[1]) <= 1e-6 * loss[1]);
    check_counts(&c);
    free(logits), free(gates), free(dlogits), free(dgate), free(ids);
    close_case(&c);
}

static void routers_equal_the_reference(void **state) {
    (void)state;
    static const int64_t shape[][2] = {{8, 2}, {5, 1}, {6, 6}, {1, 1}, {130, 8}, {67, 64}};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
        for (int normalise = 0; normalise < 2; normalise++) {
            check_case(GR_CHOICE_TOP_K, normalise, shape[i][0], shape[i][1]);
            check_case(GR_CHOICE_GIVEN, normalise, shape[i][0], shape[i][1]);
        }
}

static void equal_logits_choose_the_lower_ids(void **state) {
    (void)state;
    router_case c;
    open_case(&c, GR_CHOICE_TOP_K, true, 9, 3);
    const float l[9] = {0, 1, 0, 1, 1, -1, 2, 1, 0}; /* 6, then 1 and 3 of the four ones */
    for (int64_t t = 0; t < c.op.n; t++)
        memcpy(c.op.p + t * 9, l, sizeof l);
    run(&c);
    for (int64_t t = 0; t < c.op.n; t++) {
        const uint16_t *ids = c.op.ids + t * 3;
        assert_true(ids[0] == 1 && ids[1] == 3 && ids[2] == 6);
    }
    close_case(&c);
}

/* Logits far apart: nothing overflows, and gates of experts whose probability is 0 are 0. */
static void extreme_logits_stay_finite(void **state) {
    (void)state;
    for (int normalise = 0; normalise < 2; normalise++) {
        router_case c;
        open_case(&c, GR_CHOICE_TOP_K, normalise, 6, 2);
        for (int64_t i = 0; i < c.op.n * 6; i++)
            c.op.p[i] = i % 6 == 3 ? 3e4f : -3e4f;
        run(&c);
        for (int64_t t = 0; t < c.op.n; t++) {
            assert_true(c.op.gate[2 * t] == 0 && c.op.gate[2 * t + 1] == 2.5f); /* experts 0 and 3 */
            assert_true(c.op.ids[2 * t] == 0 && c.op.ids[2 * t + 1] == 3);
            assert_true(c.op.lse[t] == 3e4f);
        }
        for (int64_t i = 0; i < c.op.n * 6; i++)
            assert_true(isfinite(((float *)c.op.dlogits)[i]));
        close_case(&c);
    }
}

/* A run that diverges is skipped or ended by its loss: until then every index must be one. */
static void logits_that_are_not_finite_choose_distinct_experts(void **state) {
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (uint32_t pattern = 0; pattern < 1u << 8; pattern++)
        for (int b = 0; b < 3; b++) {
            router_case c;
            open_case(&c, GR_CHOICE_TOP_K, true, 8, 3);
            for (int64_t i = 0; i < c.op.n * 8; i++)
                if (pattern >> i % 8 & 1)
                    c.op.p[i] = bad[b];
            run(&c);
            for (int64_t t = 0; t < c.op.n; t++) {
                const uint16_t *ids = c.op.ids + t * 3;
                assert_true(ids[0] < ids[1] && ids[1] < ids[2] && ids[2] < 8);
            }
            close_case(&c);
        }
}

static void losses_and_loads_are_added_or_left_out(void **state) {
    (void)state;
    router_case c;
    open_case(&c, GR_CHOICE_TOP_K, true, 8, 2);
    run(&c);
    const double once[2] = {c.loss[0], c.loss[1]};
    memcpy(c.op.p, c.logits, (size_t)(c.op.n * 8) * sizeof *c.op.p);
    run(&c);
    assert_true(c.loss[0] == 2 * once[0] && c.loss[1] == 2 * once[1]);
    uint64_t all = 0;
    for (int i = 0; i < 8; i++)
        all += c.op.load[i];
    assert_int_equal(all, 2 * c.op.n * 2);
    free(c.op.load);
    c.op.load = NULL;
    c.op.loss = NULL;
    memcpy(c.op.p, c.logits, (size_t)(c.op.n * 8) * sizeof *c.op.p);
    run(&c);
    assert_true(c.loss[0] == 2 * once[0]);
    close_case(&c);
}

static void bits_do_not_depend_on_the_threads(void **state) {
    (void)state;
    router_case one, two;
    open_case(&one, GR_CHOICE_TOP_K, true, 130, 8);
    open_case(&two, GR_CHOICE_TOP_K, true, 130, 8);
    check_set_threads(1);
    run(&one);
    check_set_threads(2);
    run(&two);
    assert_memory_equal(one.op.dlogits, two.op.dlogits, (size_t)(one.op.n * 130) * sizeof(float));
    assert_memory_equal(one.op.gate, two.op.gate, (size_t)(one.op.n * 8) * sizeof(float));
    assert_memory_equal(one.loss, two.loss, sizeof one.loss);
    close_case(&one);
    close_case(&two);
}

static void no_tokens_are_legal(void **state) {
    (void)state;
    uint64_t load[4] = {1, 2, 3, 4};
    double loss[2] = {5, 6};
    gr_router_op a = {.T = 3, .E = 4, .K = 2, .scale = 1, .load = load, .loss = loss};
    float dgate[4] = {1, 1, 1, 1};
    gr_pair_gates pairs = {.n_row = 2, .K = 2, .dgate = dgate};
    assert_int_equal(backend->router_forward(backend, GR_LANE_COMPUTE, &a), GR_OK);
    assert_int_equal(backend->router_backward(backend, GR_LANE_COMPUTE, &a), GR_OK);
    assert_int_equal(backend->pair_gates_forward(backend, GR_LANE_COMPUTE, &pairs), GR_OK);
    assert_int_equal(backend->pair_gates_backward(backend, GR_LANE_COMPUTE, &pairs), GR_OK);
    assert_true(load[3] == 4 && loss[1] == 6 && dgate[0] == 0 && dgate[3] == 0);
}

/* Three rows of two gates; pairs take all but row 1's first. */
static void gates_reach_their_pairs_and_come_back(void **state) {
    (void)state;
    static const uint32_t row[5] = {2, 0, 1, 2, 0};
    static const uint8_t slot[5] = {1, 0, 1, 0, 1};
    const float gate[6] = {10, 11, 12, 13, 14, 15}, back[5] = {1, 2, 3, 4, 5};
    float *pair = check_poisoned(5), *dgate = check_poisoned(6);
    gr_pair_gates a = {.n_row = 3,
        .K = 2,
        .n_pair = 5,
        .pair_row = row,
        .pair_slot = slot,
        .gate = gate,
        .pair_gate = pair,
        .dpair_gate = back,
        .dgate = dgate};
    assert_int_equal(backend->pair_gates_forward(backend, GR_LANE_COMPUTE, &a), GR_OK);
    assert_int_equal(backend->pair_gates_backward(backend, GR_LANE_COMPUTE, &a), GR_OK);
    assert_memory_equal(pair, ((const float[]){15, 10, 13, 14, 11}), 5 * sizeof *pair);
    assert_memory_equal(dgate, ((const float[]){2, 5, 0, 3, 4, 1}), 6 * sizeof *dgate);
    free(pair);
    free(dgate);
}

static void fp32_rows_are_gathered_and_summed(void **state) {
    (void)state;
    static const uint32_t index[3] = {2, 0, 2}, offset[3] = {0, 2, 3};
    const float in[6] = {1, 2, 3, 4, 5, 6}, base[4] = {100, 200, 300, 400};
    float rows[6], sums[4];
    gr_gather gather = {.n_row = 3, .width = 2, .in = in, .index = index, .out = rows};
    gr_sum sum = {
        .n_row = 2, .width = 2, .base = base, .source = {in}, .offset = {offset}, .index = {index}, .out = sums};
    assert_int_equal(backend->gather_f32(backend, GR_LANE_COMPUTE, &gather), GR_OK);
    assert_int_equal(backend->sum_f32(backend, GR_LANE_COMPUTE, &sum), GR_OK);
    assert_memory_equal(rows, ((const float[]){5, 6, 1, 2, 5, 6}), sizeof rows);
    assert_memory_equal(sums, ((const float[]){106, 208, 305, 406}), sizeof sums);
    sum.base = NULL;
    assert_int_equal(backend->sum_f32(backend, GR_LANE_COMPUTE, &sum), GR_OK);
    assert_memory_equal(sums, ((const float[]){6, 8, 5, 6}), sizeof sums);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(routers_equal_the_reference),
        cmocka_unit_test(equal_logits_choose_the_lower_ids),
        cmocka_unit_test(extreme_logits_stay_finite),
        cmocka_unit_test(logits_that_are_not_finite_choose_distinct_experts),
        cmocka_unit_test(losses_and_loads_are_added_or_left_out),
        cmocka_unit_test(bits_do_not_depend_on_the_threads),
        cmocka_unit_test(no_tokens_are_legal),
        cmocka_unit_test(gates_reach_their_pairs_and_come_back),
        cmocka_unit_test(fp32_rows_are_gathered_and_summed),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
