/* Rows are counted on the link they travel on, whatever way windows are given to ranks. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>

#include "grouter/links.h"
#include "grouter/plan.h"

static void the_readers_own_tokens_do_not_travel(void **state) {
    (void)state;
    const uint32_t touch[6] = {1, 2, 4, 8, 16, 32};
    gr_links two = {0}, one = {0}, all = {0};
    gr_links_add(&two, touch, 6, 2, 3); /* nodes {0, 1}, {2, 3}, {4, 5} */
    assert_true(two.within == 4 && two.between == 1 + 2 + 16 + 32);
    gr_links_add(&one, touch, 6, 1, 3);
    assert_true(one.within == 0 && one.between == 63 - 8);
    gr_links_add(&all, touch, 6, 6, 3);
    assert_true(all.within == 63 - 8 && all.between == 0);
    gr_links_add(&all, touch, 6, 6, 0);
    assert_true(all.within == 63 - 8 + 63 - 1); /* windows add up */
}

static void one_rank_alone_sends_nothing(void **state) {
    (void)state;
    const uint32_t touch[1] = {1000};
    gr_links l = {0};
    gr_links_add(&l, touch, 1, 1, 0);
    assert_true(l.within == 0 && l.between == 0);
}

enum { R = 4, T = 50, E = 8, K = 3 };

/* Of every rank's window, by what the plans say they send to each rank. */
static gr_links sent_by_plans(const uint16_t *ids, const float *gates, uint32_t node_ranks) {
    gr_expert_map map;
    gr_plan plan;
    gr_plan_builder *builder;
    gr_arena arena = {0};
    void *memory;
    gr_links l = {0};
    assert_int_equal(gr_expert_map_open(&map, E, R), GR_OK);
    gr_plan_limits limits = gr_plan_limits_worst(T, K, &map);
    gr_plan_layout(&arena, &limits, &map, &plan, &builder);
    assert_int_equal(gr_alloc(&memory, arena.peak, 1, "plan"), GR_OK);
    arena = (gr_arena){.base = memory, .size = arena.peak};
    gr_plan_layout(&arena, &limits, &map, &plan, &builder);
    for (uint32_t rank = 0; rank < R; rank++) {
        assert_int_equal(gr_plan_build(&plan, builder, &limits, &map, rank, ids, gates), GR_OK);
        for (uint32_t r = 0; r < R; r++)
            *(r / node_ranks == rank / node_ranks ? &l.within : &l.between) += plan.send_rows[r];
    }
    free(memory);
    gr_expert_map_close(&map);
    return l;
}

static void they_are_what_plans_send(void **state) {
    (void)state;
    uint16_t ids[R * T * K];
    float gates[R * T * K];
    uint32_t touch[R][R] = {0};
    for (uint32_t t = 0; t < R * T; t++) {
        uint32_t n = 0;
        bool there[R] = {false};
        for (uint32_t e = 0; e < E && n < K; e++)
            if (gr_random_below(7, t, e, E - e) < K - n)
                ids[t * K + n++] = (uint16_t)e;
        for (uint32_t k = 0; k < K; k++) {
            gates[t * K + k] = gr_random_below(8, t, k, 4) ? 0.5f : 0; /* unused slots go nowhere */
            there[ids[t * K + k] / (E / R)] |= gates[t * K + k] > 0;
        }
        for (uint32_t r = 0; r < R; r++)
            touch[t / T][r] += there[r];
    }
    for (uint32_t node_ranks = 1; node_ranks <= R; node_ranks *= 2) {
        gr_links expected = sent_by_plans(ids, gates, node_ranks), l = {0};
        for (uint32_t rank = 0; rank < R; rank++)
            gr_links_add(&l, touch[rank], R, node_ranks, rank);
        assert_true(l.within == expected.within && l.between == expected.between);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_readers_own_tokens_do_not_travel),
        cmocka_unit_test(one_rank_alone_sends_nothing),
        cmocka_unit_test(they_are_what_plans_send),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
