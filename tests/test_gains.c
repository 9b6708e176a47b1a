/* What swaps of experts bring, against counting again; loads and their bound; homes and search against all there are.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "place/internal.h"

enum { E = 12, K = 4, T = 9, N = 24 };

/* Windows with a topic each, and some unused slots. */
static void make_ids(uint16_t *ids, uint32_t n_expert, uint32_t top_k, uint64_t seed) {
    uint64_t draw = 0;
    for (uint32_t w = 0; w < N; w++) {
        const uint32_t topic = gr_random_below(seed, 1, w, 4);
        for (uint32_t t = 0; t < T; t++) {
            bool used[E] = {false};
            for (uint32_t k = 0; k < top_k;) {
                const uint32_t near = gr_random_below(seed, 2, draw, 1 + gr_random_below(seed, 6, draw, n_expert));
                draw++;
                const uint32_t e = (topic * n_expert / 4 + near) % n_expert;
                if (!used[e])
                    k++;
                used[e] = true;
            }
            uint16_t *at = ids + (w * T + t) * top_k;
            uint32_t k = 0;
            for (uint32_t e = 0; e < n_expert; e++)
                if (used[e]) {
                    at[k] = (uint16_t)e;
                    if (k > 0 && gr_random_below(seed, 2, draw++, 8) == 0)
                        at[k] = GR_PLACE_NONE;
                    k++;
                }
        }
    }
}

static gr_place_view make_view(const uint16_t *ids, size_t *begin, uint32_t n_expert, uint32_t top_k) {
    begin[0] = 0;
    begin[1] = 7; /* two tables */
    begin[2] = N;
    return (gr_place_view){
        .E = n_expert, .K = top_k, .T = T, .ids = ids, .n = N, .step = 1, .n_table = 2, .begin = begin};
}

static bool touches(const gr_place_view *v, size_t token, const uint16_t *part, uint32_t p) {
    for (uint32_t k = 0; k < v->K; k++) {
        const uint16_t e = v->ids[token * v->K + k];
        if (e != GR_PLACE_NONE && part[e] == p)
            return true;
    }
    return false;
}

static uint64_t count_rows(const gr_place_view *v, const uint16_t *part, uint32_t n_part, const uint16_t *home) {
    uint64_t rows = 0;
    for (size_t w = 0; w < v->n; w++)
        for (size_t t = 0; t < v->T; t++)
            for (uint32_t p = 0; p < n_part; p++)
                rows += p != home[w] && touches(v, w * v->T + t, part, p);
    return rows;
}

static void shuffled_parts(uint16_t *part, uint32_t n_expert, uint32_t n_part, uint64_t seed) {
    for (uint32_t e = 0; e < n_expert; e++)
        part[e] = (uint16_t)(gr_bijection(seed, n_expert, e) % n_part);
}

/* ---------------------------------------------------------------- gains */

static void test_every_swap_changes_the_rows_by_its_gain(void **state) {
    (void)state;
    static const uint32_t parts[] = {2, 3, 4, 6, 12};
    uint16_t ids[N * T * K], part[E], home[N];
    size_t begin[3];
    for (uint64_t seed = 0; seed < 10; seed++) {
        const uint32_t n_part = parts[seed % 5];
        make_ids(ids, E, K, seed);
        const gr_place_view v = make_view(ids, begin, E, K);
        shuffled_parts(part, E, n_part, seed);
        for (uint32_t w = 0; w < N; w++)
            home[w] = (uint16_t)gr_random_below(seed, 5, w, n_part);
        gr_place_gains g;
        assert_int_equal(gr_place_gains_open(&g, &v, n_part), 0);
        for (int again = 0; again < 2; again++) /* counting again starts from nothing */
            assert_int_equal(gr_place_gains_count(&g, &v, part, home), 0);
        assert_int_equal(g.rows, count_rows(&v, part, n_part, home));
        for (uint32_t e = 0; e < E; e++)
            for (uint32_t f = 0; f < E; f++) {
                if (part[e] == part[f])
                    continue;
                uint16_t swapped[E];
                memcpy(swapped, part, sizeof swapped);
                swapped[e] = part[f];
                swapped[f] = part[e];
                const int64_t change = (int64_t)count_rows(&v, swapped, n_part, home) - (int64_t)g.rows;
                assert_int_equal(gr_place_gains_swap(&g, part, e, f), change);
            }
        gr_place_gains_close(&g);
    }
}

static void test_touch_counts_and_pairs_are_those_of_the_tokens(void **state) {
    (void)state;
    uint16_t ids[N * T * K], part[E], home[N] = {0};
    uint32_t together[E * E];
    size_t begin[3];
    make_ids(ids, E, K, 77);
    const gr_place_view v = make_view(ids, begin, E, K);
    shuffled_parts(part, E, 4, 77);
    gr_place_gains g;
    assert_int_equal(gr_place_gains_open(&g, &v, 4), 0);
    assert_int_equal(gr_place_gains_count(&g, &v, part, home), 0);
    for (size_t w = 0; w < N; w++) {
        uint32_t touch[4], most = 0, fewest = 0;
        uint64_t remote[4] = {0};
        gr_place_touch(ids + w * T * K, T, K, part, 4, touch);
        for (uint32_t p = 0; p < 4; p++) {
            uint32_t expected = 0;
            for (size_t t = 0; t < T; t++)
                expected += touches(&v, w * T + t, part, p);
            assert_int_equal(touch[p], expected);
            assert_int_equal(g.touch[w * 4 + p], expected);
            for (uint32_t q = 0; q < 4; q++)
                remote[p] += q != p ? touch[q] : 0;
        }
        for (uint32_t p = 1; p < 4; p++) { /* most tokens here are fewest rows elsewhere, ties included */
            most = touch[p] > touch[most] ? p : most;
            fewest = remote[p] < remote[fewest] ? p : fewest;
        }
        assert_int_equal(most, fewest);
    }
    gr_place_gains_close(&g);
    assert_int_equal(gr_place_together(&v, together), 0);
    for (uint16_t a = 0; a < E; a++)
        for (uint16_t b = 0; b < E; b++) {
            uint32_t expected = 0;
            for (size_t t = 0; t < N * T; t++) {
                bool has_a = false, has_b = false;
                for (size_t k = 0; k < K; k++) {
                    has_a |= ids[t * K + k] == a;
                    has_b |= ids[t * K + k] == b;
                }
                expected += has_a && has_b;
            }
            assert_int_equal(together[a * E + b], expected);
        }
}

/* ---------------------------------------------------------------- load */

/* Calls visit for every way to give part[n_expert] to n_part parts, equally many each. */
typedef void (*visit_parts)(void *context, const uint16_t *part);
static void every_placement(
    uint32_t e, uint32_t n_expert, uint32_t n_part, uint32_t *left, uint16_t *part, visit_parts visit, void *context) {
    if (e == n_expert) {
        visit(context, part);
        return;
    }
    for (uint32_t p = 0; p < n_part; p++) {
        if (!left[p])
            continue;
        left[p]--;
        part[e] = (uint16_t)p;
        every_placement(e + 1, n_expert, n_part, left, part, visit, context);
        left[p]++;
    }
}

static void visit_every(uint32_t n_expert, uint32_t n_part, visit_parts visit, void *context) {
    uint32_t left[E];
    uint16_t part[E];
    for (uint32_t p = 0; p < n_part; p++)
        left[p] = n_expert / n_part;
    every_placement(0, n_expert, n_part, left, part, visit, context);
}

typedef struct least_load {
    const gr_place_level *level;
    uint64_t least;
} least_load;

static void visit_load(void *context, const uint16_t *part) {
    least_load *l = context;
    uint64_t sum[E];
    const uint64_t most = gr_place_fullest(l->level, part, sum);
    l->least = most < l->least ? most : l->least;
}

static void test_the_bound_of_load_holds_and_even_loads_come_close(void **state) {
    (void)state;
    static const uint32_t shape[][2] = {{6, 2}, {6, 3}, {8, 2}, {8, 4}, {6, 6}};
    int n_exact = 0, n_tight = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        const uint32_t n_expert = shape[seed % 5][0], n_part = shape[seed % 5][1];
        uint64_t load[E], total = 0, sum[E];
        for (uint32_t e = 0; e < n_expert; e++)
            total += load[e] =
                1 + gr_random_below(seed, 7, e, seed % 2 ? 10 : 1000) + (e == 3 && seed % 3 == 0 ? 5000 : 0);
        const gr_place_level l = {.E = n_expert, .n_part = n_part, .group_size = n_part, .load = load};
        least_load least = {.level = &l, .least = UINT64_MAX};
        visit_every(n_expert, n_part, visit_load, &least);
        const double bound = gr_place_load_bound(load, n_expert, n_part);
        const double exact = (double)least.least * n_part / (double)total;
        assert_true(bound <= exact + 1e-12);
        n_tight += bound > exact - 1e-12;
        uint16_t part[E] = {0};
        gr_place_even(&l, part);
        const uint64_t most = gr_place_fullest(&l, part, sum);
        assert_true(most >= least.least && (double)most <= 1.1 * (double)least.least);
        n_exact += most == least.least;
    }
    assert_in_range(n_exact, 40, 60);
    assert_in_range(n_tight, 20, 60);
}

static void test_even_loads_stay_in_their_group(void **state) {
    (void)state;
    uint64_t load[E], sum[4];
    uint16_t part[E];
    uint32_t count[4] = {0};
    for (uint32_t e = 0; e < E; e++) {
        load[e] = 100 + e * e;
        part[e] = e < E / 2 ? 0 : 2; /* groups {0, 1} and {2, 3} */
    }
    const gr_place_level l = {.E = E, .n_part = 4, .group_size = 2, .load = load};
    gr_place_even(&l, part);
    for (uint32_t e = 0; e < E; e++) {
        assert_int_equal(part[e] / 2, e < E / 2 ? 0 : 1);
        count[part[e]]++;
    }
    for (uint32_t p = 0; p < 4; p++)
        assert_int_equal(count[p], E / 4);
    gr_place_fullest(&l, part, sum);
    assert_true(sum[0] < sum[1] + 20 && sum[1] < sum[0] + 20 && sum[2] < sum[3] + 20 && sum[3] < sum[2] + 20);
}

/* ---------------------------------------------------------------- homes */

static uint64_t local_tokens(const gr_place_homes *h, const uint16_t *home) {
    uint64_t sum = 0;
    for (size_t w = 0; w < h->n; w++)
        sum += h->touch[w * h->n_part + home[w]];
    return sum;
}

static uint64_t most_local(const gr_place_homes *h, size_t w, uint64_t *left) {
    uint64_t best = 0;
    for (uint32_t p = 0; p < h->n_part && w < h->n; p++) {
        if (!left[p] || (h->group && p / h->group_size != h->group[w]))
            continue;
        left[p]--;
        const uint64_t sum = h->touch[w * h->n_part + p] + most_local(h, w + 1, left);
        best = sum > best ? sum : best;
        left[p]++;
    }
    return best;
}

static void test_homes_are_the_best_at_equal_counts(void **state) {
    (void)state;
    uint32_t touch[8 * 4];
    for (uint64_t seed = 0; seed < 60; seed++) {
        const size_t n = 1 + seed % 8;
        const uint64_t before = seed % 5;
        for (size_t i = 0; i < n * 4; i++)
            touch[i] = gr_random_below(seed, 9, i, seed % 2 ? 3 : 50);
        uint16_t home[8], group[8];
        uint64_t count[4] = {0}, left[4];
        gr_place_homes h = {.n = n, .before = before, .n_part = 4, .group_size = 4, .part_ranks = 1, .touch = touch};
        for (uint32_t p = 0; p < 4; p++) /* remainders go on where the tables before have ended */
            left[p] = (before + n + 3 - p) / 4 - (before + 3 - p) / 4;
        assert_int_equal(gr_place_homes_find(&h, home), 0);
        for (size_t w = 0; w < n; w++)
            count[home[w]]++;
        assert_memory_equal(count, left, sizeof left);
        assert_int_equal(local_tokens(&h, home), most_local(&h, 0, left));
        for (size_t w = 0; w < n; w++) /* any groups that have as many windows as room */
            group[w] = home[w] / 2;
        h.group = group;
        h.group_size = 2;
        assert_int_equal(gr_place_homes_find(&h, home), 0);
        for (size_t w = 0; w < n; w++)
            assert_int_equal(home[w] / 2, group[w]);
        assert_int_equal(local_tokens(&h, home), most_local(&h, 0, left));
    }
}

/* ---------------------------------------------------------------- search */

typedef struct least_rows {
    const gr_place_view *v;
    const gr_place_level *level;
    uint64_t least;
} least_rows;

static uint64_t rows_at_best_homes(const gr_place_view *v, const uint16_t *part, uint32_t n_part) {
    uint32_t touch[N * E];
    uint16_t home[N];
    for (size_t w = 0; w < v->n; w++)
        gr_place_touch(v->ids + w * v->T * v->K, v->T, v->K, part, n_part, touch + w * n_part);
    for (int i = 0; i < v->n_table; i++) {
        const gr_place_homes h = {.n = v->begin[i + 1] - v->begin[i],
            .before = v->begin[i],
            .n_part = n_part,
            .group_size = n_part,
            .part_ranks = 1,
            .touch = touch + v->begin[i] * n_part};
        assert_int_equal(gr_place_homes_find(&h, home + v->begin[i]), 0);
    }
    return count_rows(v, part, n_part, home);
}

static void visit_rows(void *context, const uint16_t *part) {
    least_rows *l = context;
    uint64_t sum[E];
    if (gr_place_fullest(l->level, part, sum) > l->level->cap)
        return;
    const uint64_t rows = rows_at_best_homes(l->v, part, l->level->n_part);
    l->least = rows < l->least ? rows : l->least;
}

static void count_load(const uint16_t *ids, size_t n, uint64_t *load, uint64_t *total) {
    memset(load, 0, E * sizeof *load);
    *total = 0;
    for (size_t i = 0; i < n; i++)
        if (ids[i] != GR_PLACE_NONE) {
            load[ids[i]]++;
            ++*total;
        }
}

static void test_descent_lowers_rows_within_the_cap(void **state) {
    (void)state;
    uint16_t ids[N * T * K];
    size_t begin[3];
    uint64_t load[E], total, sum[E];
    int n_lower = 0;
    for (uint64_t seed = 0; seed < 20; seed++) {
        const uint32_t n_part = seed % 2 ? 3 : 4;
        make_ids(ids, E, K, seed);
        const gr_place_view v = make_view(ids, begin, E, K);
        count_load(ids, N * T * K, load, &total);
        gr_place_level l = {.E = E, .n_part = n_part, .group_size = n_part, .part_ranks = 1, .load = load};
        uint16_t part[E] = {0}, count[E] = {0};
        gr_place_even(&l, part);
        l.cap = gr_place_fullest(&l, part, sum) + total / 50;
        shuffled_parts(part, E, n_part, seed);
        gr_place_search s;
        uint64_t rows;
        assert_int_equal(gr_place_search_open(&s, &l, &v), 0);
        assert_int_equal(gr_place_repair(&s, part), 0);
        assert_true(gr_place_fullest(&l, part, sum) <= l.cap);
        const uint64_t before = rows_at_best_homes(&v, part, n_part);
        assert_int_equal(gr_place_descend(&s, part, &rows), 0);
        gr_place_search_close(&s);
        assert_true(gr_place_fullest(&l, part, sum) <= l.cap);
        assert_int_equal(rows, rows_at_best_homes(&v, part, n_part));
        assert_true(rows <= before);
        n_lower += rows < before;
        for (uint32_t e = 0; e < E; e++)
            count[part[e]]++;
        for (uint32_t p = 0; p < n_part; p++)
            assert_int_equal(count[p], E / n_part);
    }
    assert_in_range(n_lower, 15, 20); /* a start from which no swap pays is rare */
}

static void test_search_comes_close_to_the_best_of_all_placements(void **state) {
    (void)state;
    enum { FEW = 8, TWO = 2 };
    uint16_t ids[N * T * TWO];
    size_t begin[3];
    uint64_t load[E], total, sum[E];
    int n_best = 0;
    for (uint64_t seed = 0; seed < 10; seed++) {
        const uint32_t n_part = seed % 2 ? 2 : 4;
        make_ids(ids, FEW, TWO, seed);
        const gr_place_view v = make_view(ids, begin, FEW, TWO);
        count_load(ids, N * T * TWO, load, &total);
        gr_place_level l = {.E = FEW, .n_part = n_part, .group_size = n_part, .part_ranks = 1, .load = load};
        uint16_t part[E] = {0};
        gr_place_even(&l, part);
        l.cap = gr_place_fullest(&l, part, sum) + total / 20;
        least_rows least = {.v = &v, .level = &l, .least = UINT64_MAX};
        visit_every(FEW, n_part, visit_rows, &least);
        gr_place_search s;
        uint64_t rows;
        assert_int_equal(gr_place_search_open(&s, &l, &v), 0);
        assert_int_equal(gr_place_improve(&s, part, &rows), 0);
        gr_place_search_close(&s);
        if (rows < least.least || (double)rows > 1.15 * (double)least.least)
            fail_msg("seed %d: %d rows, the least are %d", (int)seed, (int)rows, (int)least.least);
        n_best += rows == least.least;
    }
    assert_in_range(n_best, 2, 10);
}

static void test_search_within_groups_keeps_them(void **state) {
    (void)state;
    uint16_t ids[N * T * K], part[E], before[E];
    size_t begin[3];
    uint64_t load[E], total, rows;
    int n_moved = 0;
    for (uint64_t seed = 0; seed < 6; seed++) {
        make_ids(ids, E, K, seed);
        const gr_place_view v = make_view(ids, begin, E, K);
        count_load(ids, N * T * K, load, &total);
        const gr_place_level l = {.E = E, .n_part = 4, .group_size = 2, .part_ranks = 1, .load = load, .cap = total};
        shuffled_parts(part, E, 4, seed);
        memcpy(before, part, sizeof before);
        gr_place_search s;
        assert_int_equal(gr_place_search_open(&s, &l, &v), 0);
        assert_int_equal(gr_place_descend(&s, part, &rows), 0);
        gr_place_search_close(&s);
        for (uint32_t e = 0; e < E; e++) {
            assert_int_equal(part[e] / 2, before[e] / 2);
            n_moved += part[e] != before[e];
        }
    }
    assert_true(n_moved > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_swap_changes_the_rows_by_its_gain),
        cmocka_unit_test(test_touch_counts_and_pairs_are_those_of_the_tokens),
        cmocka_unit_test(test_the_bound_of_load_holds_and_even_loads_come_close),
        cmocka_unit_test(test_even_loads_stay_in_their_group),
        cmocka_unit_test(test_homes_are_the_best_at_equal_counts),
        cmocka_unit_test(test_descent_lowers_rows_within_the_cap),
        cmocka_unit_test(test_search_comes_close_to_the_best_of_all_placements),
        cmocka_unit_test(test_search_within_groups_keeps_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
