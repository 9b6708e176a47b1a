/* Which rank takes which window of a global batch: every window once, as few rows as any choice at equal counts has,
 * and bins whose fullest rank is no fuller than in the order given. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/packing.h"
#include "grouter/transport.h"

typedef struct batch {
    gr_packing p;
    uint32_t n;
    uint32_t *touch, *pairs, *order;
    gr_packing_report report;
} batch;

static void *take(size_t n, size_t size) {
    void *p;
    assert_int_equal(gr_alloc(&p, n, size, "test"), GR_OK);
    return p;
}

enum { TOKENS = 200, TOP_K = 2 };

/* Windows of `TOKENS` tokens whose experts lie on ranks drawn at random, each window with a rank it prefers by
 * `preference` of 100 tokens. */
static void batch_open(batch *b, uint32_t n_bin, uint32_t R, uint32_t B, uint64_t seed, uint32_t preference) {
    *b = (batch){.n = n_bin * R * B};
    b->touch = take((size_t)b->n * R, sizeof *b->touch);
    b->pairs = take((size_t)b->n * R, sizeof *b->pairs);
    b->order = take(b->n, sizeof *b->order);
    for (uint32_t w = 0; w < b->n; w++) {
        uint32_t liked = gr_random_below(seed, 0, w, R);
        for (uint64_t t = 0; t < TOKENS; t++) {
            uint64_t at = (uint64_t)w * TOKENS + t;
            uint32_t rank[TOP_K];
            for (uint32_t k = 0; k < TOP_K; k++)
                rank[k] =
                    gr_random_below(seed, 1 + k, at, 100) < preference ? liked : gr_random_below(seed, 8 + k, at, R);
            for (uint32_t k = 0; k < TOP_K; k++)
                b->pairs[(size_t)w * R + rank[k]]++;
            b->touch[(size_t)w * R + rank[0]]++;
            b->touch[(size_t)w * R + rank[1]] += rank[1] != rank[0];
        }
    }
    b->p = (gr_packing){.n_bin = n_bin, .R = R, .B = B, .touch = b->touch, .pairs = b->pairs, .goal = 1.03};
}

static void batch_close(batch *b) {
    free(b->order);
    free(b->pairs);
    free(b->touch);
}

static void run(batch *b) {
    assert_int_equal(gr_packing_run(&b->p, b->order, &b->report), GR_OK);
}

/* ---------------------------------------------------------------- figures once more */

static uint64_t rows_of(const batch *b, const uint32_t *order) {
    uint64_t rows = 0;
    for (uint32_t at = 0; at < b->n; at++) {
        uint32_t own = at / b->p.B % b->p.R;
        for (uint32_t r = 0; r < b->p.R; r++)
            if (r != own)
                rows += b->touch[(size_t)order[at] * b->p.R + r];
    }
    return rows;
}

static double imbalance_of(const batch *b, const uint32_t *order) {
    double most = 0, all = 0;
    uint32_t per_bin = b->p.R * b->p.B;
    for (uint32_t bin = 0; bin < b->p.n_bin; bin++)
        for (uint32_t r = 0; r < b->p.R; r++) {
            double load = 0;
            for (uint32_t i = 0; i < per_bin; i++)
                load += b->pairs[(size_t)order[bin * per_bin + i] * b->p.R + r];
            most = fmax(most, load);
            all += load;
        }
    return most * b->p.n_bin * b->p.R / all;
}

static void check_report(const batch *b) {
    uint32_t *given = take(b->n, sizeof *given), *seen = take(b->n, sizeof *seen);
    for (uint32_t i = 0; i < b->n; i++) {
        given[i] = i;
        assert_true(b->order[i] < b->n);
        assert_int_equal(seen[b->order[i]]++, 0);
    }
    assert_int_equal(b->report.rows_before, rows_of(b, given));
    assert_int_equal(b->report.rows, rows_of(b, b->order));
    assert_true(fabs(b->report.imbalance_before - imbalance_of(b, given)) < 1e-12);
    assert_true(fabs(b->report.imbalance - imbalance_of(b, b->order)) < 1e-12);
    assert_true(b->report.imbalance_bound <= b->report.imbalance + 1e-12);
    free(seen);
    free(given);
}

/* ---------------------------------------------------------------- tests */

/* Rows of the best of all ways to give windows w.. to ranks with so much room left. */
static uint64_t least_rows(const batch *b, uint32_t w, uint32_t *room) {
    uint64_t best = UINT64_MAX;
    if (w == b->n)
        return 0;
    for (uint32_t r = 0; r < b->p.R; r++) {
        if (room[r] == 0)
            continue;
        uint64_t rows = 0;
        for (uint32_t q = 0; q < b->p.R; q++)
            rows += q == r ? 0 : b->touch[(size_t)w * b->p.R + q];
        room[r]--;
        rows += least_rows(b, w + 1, room);
        room[r]++;
        best = rows < best ? rows : best;
    }
    return best;
}

static void rows_are_the_fewest_of_all_ways(void **state) {
    (void)state;
    static const uint32_t shape[][3] = {{1, 2, 1}, {1, 2, 4}, {2, 2, 2}, {1, 3, 3}, {3, 3, 1}, {2, 4, 1}, {1, 4, 2}};
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++)
        for (uint64_t seed = 0; seed < 10; seed++) {
            batch b;
            batch_open(&b, shape[s][0], shape[s][1], shape[s][2], seed, 30);
            uint32_t room[4];
            for (uint32_t r = 0; r < b.p.R; r++)
                room[r] = b.p.n_bin * b.p.B;
            run(&b);
            assert_int_equal(b.report.rows, least_rows(&b, 0, room));
            check_report(&b);
            batch_close(&b);
        }
}

/* Things as costly at every place, or far apart: brute force over small cases of any room. */
static int64_t least_cost(const gr_transport *t, size_t thing, uint64_t *room) {
    int64_t best = INT64_MAX;
    if (thing == t->n)
        return 0;
    for (uint32_t p = 0; p < t->P; p++) {
        if (room[p] == 0)
            continue;
        room[p]--;
        int64_t cost = t->cost[thing * t->P + p] + least_cost(t, thing + 1, room);
        room[p]++;
        best = cost < best ? cost : best;
    }
    return best;
}

static void an_assignment_costs_the_least_whatever_the_room(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        int32_t cost[7 * 4];
        uint64_t room[4], left[4], used[4] = {0};
        uint16_t place[7];
        int64_t total, sum = 0;
        gr_transport t = {.n = 1 + gr_random_below(seed, 0, 0, 7), .P = 1 + gr_random_below(seed, 0, 1, 4)};
        uint32_t spread = seed % 3 ? 1000000 : 3;
        for (size_t i = 0; i < t.n * t.P; i++)
            cost[i] = (int32_t)gr_random_below(seed, 1, i, spread) - (int32_t)spread / 2;
        for (uint32_t p = 0; p < t.P; p++)
            room[p] = gr_random_below(seed, 2, p, 4);
        room[0] += t.n; /* enough together */
        for (uint32_t p = 1; p < t.P; p++)
            room[0] -= room[p] < room[0] ? room[p] : 0;
        t.cost = cost;
        t.room = room;
        memcpy(left, room, sizeof left);
        assert_int_equal(gr_transport_solve(&t, place, &total), GR_OK);
        for (size_t i = 0; i < t.n; i++) {
            assert_true(place[i] < t.P && ++used[place[i]] <= room[place[i]]);
            sum += cost[i * t.P + place[i]];
        }
        assert_int_equal(total, sum);
        assert_int_equal(total, least_cost(&t, 0, left));
    }
}

static void several_bins_are_levelled_without_a_row_more(void **state) {
    (void)state;
    static const uint32_t shape[][3] = {{4, 2, 4}, {2, 4, 4}, {8, 2, 8}, {3, 8, 4}, {4, 8, 8}};
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++)
        for (uint64_t seed = 0; seed < 8; seed++)
            for (uint32_t preference = 0; preference <= 30; preference += 30) {
                batch b;
                batch_open(&b, shape[s][0], shape[s][1], shape[s][2], seed, preference);
                run(&b);
                check_report(&b);
                assert_true(b.report.rows <= b.report.rows_before);
                double possible = fmax(1.03, b.report.imbalance_bound + 0.03);
                if (b.report.imbalance > fmax(b.report.imbalance_before, 1.03) || b.report.imbalance > possible)
                    fail_msg("%u x %u x %u, seed %d, preference %u: imbalance %.4f, before %.4f, bound %.4f",
                        shape[s][0], shape[s][1], shape[s][2], (int)seed, preference, b.report.imbalance,
                        b.report.imbalance_before, b.report.imbalance_bound);
                batch_close(&b);
            }
}

/* The least imbalance of all orders that leave windows on their ranks, from place i of rank r on. */
static void least_imbalance(batch *b, uint32_t r, uint32_t i, double *best) {
    uint32_t B = b->p.B, R = b->p.R, *o = b->order;
    if (r == R) {
        *best = fmin(*best, imbalance_of(b, o));
        return;
    }
    if (i == b->p.n_bin * B) {
        least_imbalance(b, r + 1, 0, best);
        return;
    }
    uint32_t at = (i / B * R + r) * B + i % B;
    for (uint32_t j = i; j < b->p.n_bin * B; j++) {
        uint32_t to = (j / B * R + r) * B + j % B, window = o[at];
        o[at] = o[to], o[to] = window;
        if (i % B == 0 || o[at - 1] < o[at]) /* the order within a bin does not matter */
            least_imbalance(b, r, i + 1, best);
        window = o[at], o[at] = o[to], o[to] = window;
    }
}

static void few_windows_are_nearly_as_level_as_can_be(void **state) {
    (void)state;
    static const uint32_t shape[][3] = {{2, 2, 1}, {4, 2, 1}, {2, 2, 2}, {2, 4, 1}};
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++)
        for (uint64_t seed = 0; seed < 10; seed++)
            for (uint32_t preference = 0; preference <= 60; preference += 30) {
                batch b;
                double best = INFINITY;
                batch_open(&b, shape[s][0], shape[s][1], shape[s][2], seed, preference);
                run(&b);
                least_imbalance(&b, 0, 0, &best);
                assert_true(b.report.imbalance >= best - 1e-12);
                assert_true(b.report.imbalance <= fmax(1.03, 1.02 * best));
                batch_close(&b);
            }
}

static void one_bin_has_the_imbalance_of_its_windows(void **state) {
    (void)state;
    batch b;
    batch_open(&b, 1, 4, 8, 3, 40);
    run(&b);
    assert_true(b.report.rows < b.report.rows_before);
    assert_true(fabs(b.report.imbalance - b.report.imbalance_before) < 1e-12);
    assert_true(fabs(b.report.imbalance - b.report.imbalance_bound) < 1e-12);
    batch_close(&b);
}

static void a_batch_without_pairs_or_choice_is_packed_too(void **state) {
    (void)state;
    batch b;
    batch_open(&b, 2, 1, 3, 1, 0); /* one rank */
    run(&b);
    check_report(&b);
    assert_int_equal(b.report.rows, 0);
    batch_close(&b);
    batch_open(&b, 2, 3, 2, 1, 0);
    memset(b.touch, 0, (size_t)b.n * 3 * sizeof *b.touch);
    memset(b.pairs, 0, (size_t)b.n * 3 * sizeof *b.pairs);
    run(&b);
    assert_true(b.report.rows == 0 && b.report.imbalance == 1 && b.report.imbalance_bound == 1);
    batch_close(&b);
}

static void the_same_batch_is_packed_the_same(void **state) {
    (void)state;
    batch a, b;
    batch_open(&a, 4, 4, 4, 5, 30);
    batch_open(&b, 4, 4, 4, 5, 30);
    run(&a);
    run(&b);
    assert_memory_equal(a.order, b.order, a.n * sizeof *a.order);
    for (uint32_t at = 0; at < a.n; at++) /* windows of a rank and bin in their order */
        assert_true(at % a.p.B == 0 || a.order[at] > a.order[at - 1]);
    batch_close(&b);
    batch_close(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_the_fewest_of_all_ways),
        cmocka_unit_test(an_assignment_costs_the_least_whatever_the_room),
        cmocka_unit_test(several_bins_are_levelled_without_a_row_more),
        cmocka_unit_test(few_windows_are_nearly_as_level_as_can_be),
        cmocka_unit_test(one_bin_has_the_imbalance_of_its_windows),
        cmocka_unit_test(a_batch_without_pairs_or_choice_is_packed_too),
        cmocka_unit_test(the_same_batch_is_packed_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
