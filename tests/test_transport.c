/* The exact assignment of things to places: against all assignments where they can be listed, and against SciPy. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/transport.h"

enum { N_MAX = 200, P_MAX = 12 };

static int64_t total_of(const gr_transport *t, const uint16_t *place) {
    int64_t total = 0;
    for (size_t i = 0; i < t->n; i++)
        total += t->cost[i * t->P + place[i]];
    return total;
}

static void assert_within_room(const gr_transport *t, const uint16_t *place) {
    uint64_t count[P_MAX] = {0};
    for (size_t i = 0; i < t->n; i++) {
        assert_in_range(place[i], 0, t->P - 1);
        count[place[i]]++;
    }
    for (uint32_t p = 0; p < t->P; p++)
        assert_in_range(count[p], 0, t->room[p]);
}

/* The least total of all assignments within the room. */
static int64_t least(const gr_transport *t, size_t i, uint64_t *left) {
    int64_t best = INT64_MAX / 2;
    if (i == t->n)
        return 0;
    for (uint32_t p = 0; p < t->P; p++) {
        if (!left[p])
            continue;
        left[p]--;
        const int64_t total = t->cost[i * t->P + p] + least(t, i + 1, left);
        best = total < best ? total : best;
        left[p]++;
    }
    return best;
}

static void check(const gr_transport *t) {
    uint16_t place[N_MAX];
    uint64_t left[P_MAX];
    int64_t total;
    assert_int_equal(gr_transport_solve(t, place, &total), 0);
    assert_within_room(t, place);
    assert_int_equal(total, total_of(t, place));
    memcpy(left, t->room, t->P * sizeof *left);
    assert_int_equal(total, least(t, 0, left));
}

/* Whole numbers from -range/2 on: few different ones make ties. */
static void random_costs(int32_t *cost, size_t n, uint64_t seed, uint32_t range) {
    for (size_t i = 0; i < n; i++)
        cost[i] = (int32_t)gr_random_below(seed, 3, i, range) - (int32_t)(range / 2);
}

static void test_no_assignment_of_few_things_is_cheaper(void **state) {
    (void)state;
    static const uint32_t range[] = {2, 5, 1000, 1u << 30};
    int32_t cost[8 * 4];
    for (uint64_t seed = 0; seed < 400; seed++) {
        const size_t n = 1 + seed % 7;
        const uint32_t P = 1 + (uint32_t)(seed / 7 % 4);
        uint64_t room[4], all = 0;
        for (uint32_t p = 0; p < P; p++)
            all += room[p] = gr_random_below(seed, 4, p, (uint32_t)n + 1); /* some have none */
        room[seed % P] += all < n ? n - all : 0;
        random_costs(cost, n * P, seed, range[seed % 4]);
        check(&(gr_transport){.n = n, .P = P, .cost = cost, .room = room});
    }
}

static void test_one_thing_each_is_linear_assignment(void **state) {
    (void)state;
    int32_t cost[6 * 6];
    static const uint64_t room[6] = {1, 1, 1, 1, 1, 1};
    for (uint64_t seed = 0; seed < 60; seed++) {
        random_costs(cost, 36, 1000 + seed, seed % 2 ? 4 : 100000);
        check(&(gr_transport){.n = 6, .P = 6, .cost = cost, .room = room});
    }
}

/* The largest costs allowed, where sums of chains exceed 32 bits. */
static void test_costs_at_the_limit(void **state) {
    (void)state;
    int32_t cost[6 * 3];
    static const uint64_t room[3] = {2, 2, 2};
    for (uint64_t seed = 0; seed < 30; seed++) {
        for (size_t i = 0; i < 18; i++)
            cost[i] = gr_random_below(seed, 5, i, 2) ? (1 << 30) - 1 : -(1 << 30) + 1;
        check(&(gr_transport){.n = 6, .P = 3, .cost = cost, .room = room});
    }
}

/* A formula, so that the same costs could be given to SciPy. */
static int32_t formula_cost(int64_t i, int64_t p, int64_t range) {
    return (int32_t)((i * 7919 + p * 104729 + i * i % 1009 * (p * p + 31) + i * p * 617) % range - range / 2);
}

static void test_totals_are_those_of_scipy(void **state) {
    (void)state;
    /* n, P, range, the first place's room more than the others', total by scipy.optimize.linear_sum_assignment */
    static const int64_t example[][5] = {{200, 12, 2003, 0, -165539}, {150, 7, 50, 30, -2762},
        {97, 5, 1000003, 11, -30669820}, {64, 2, 7, 0, -55}, {200, 10, 100000, 60, -7408439}};
    int32_t cost[N_MAX * P_MAX];
    for (size_t k = 0; k < sizeof example / sizeof *example; k++) {
        const int64_t n = example[k][0], P = example[k][1];
        uint64_t room[P_MAX];
        uint16_t place[N_MAX];
        int64_t total;
        for (int64_t p = 0; p < P; p++)
            room[p] = (uint64_t)((n - example[k][3] + P - 1) / P + (p == 0 ? example[k][3] : 0));
        for (int64_t i = 0; i < n; i++)
            for (int64_t p = 0; p < P; p++)
                cost[i * P + p] = formula_cost(i, p, example[k][2]);
        const gr_transport t = {.n = (size_t)n, .P = (uint32_t)P, .cost = cost, .room = room};
        assert_int_equal(gr_transport_solve(&t, place, &total), 0);
        assert_within_room(&t, place);
        assert_int_equal(total, example[k][4]);
        assert_int_equal(total, total_of(&t, place));
    }
}

static void test_the_same_input_gives_the_same_assignment(void **state) {
    (void)state;
    enum { N = 150, P = 5 };
    int32_t cost[N * P];
    static const uint64_t room[P] = {30, 30, 30, 30, 30};
    uint16_t a[N], b[N];
    random_costs(cost, N * P, 8, 3);
    const gr_transport t = {.n = N, .P = P, .cost = cost, .room = room};
    assert_int_equal(gr_transport_solve(&t, a, NULL), 0);
    memset(b, 0x55, sizeof b);
    assert_int_equal(gr_transport_solve(&t, b, NULL), 0);
    assert_memory_equal(a, b, sizeof a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_assignment_of_few_things_is_cheaper),
        cmocka_unit_test(test_one_thing_each_is_linear_assignment),
        cmocka_unit_test(test_costs_at_the_limit),
        cmocka_unit_test(test_totals_are_those_of_scipy),
        cmocka_unit_test(test_the_same_input_gives_the_same_assignment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
