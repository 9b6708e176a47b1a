/* Folding: who is chosen together is counted exactly, every way of grouping is the one described, and folded scores are
 * sums of the members' scores. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/fold.h"

enum { E_MAX = 16 };

static void assert_error_names(const char *part) {
    if (!strstr(gr_error_text(), part))
        fail_msg("\"%s\" is missing from: %s", part, gr_error_text());
}

/* Counts of made-up tokens: symmetric, diagonal 0, with ties. */
static gr_affinity made_up_counts(uint32_t E, uint64_t seed) {
    gr_affinity a;
    assert_int_equal(gr_affinity_open(&a, E), 0);
    for (uint32_t i = 0; i < E; i++) {
        a.load[i] = gr_random_below(seed, 1, i, 9);
        for (uint32_t j = 0; j < i; j++)
            a.pair[i * E + j] = a.pair[j * E + i] = gr_random_below(seed, 2, i * E + j, 5);
    }
    *a.n_token = 100;
    return a;
}

static gr_mapping group(gr_fold_method method, const gr_affinity *a, uint32_t E_T, uint64_t seed) {
    const gr_grouping g = {.method = method, .E_S = a->E, .E_T = E_T, .seed = seed, .affinity = a};
    gr_mapping m;
    assert_int_equal(gr_mapping_group(&m, &g), 0);
    return m;
}

static void assert_groups(const gr_mapping *m, uint32_t n_group, const uint32_t *offset, const uint16_t *member) {
    assert_int_equal(m->n_group, n_group);
    assert_memory_equal(m->offset, offset, (n_group + 1) * sizeof *offset);
    assert_memory_equal(m->member, member, offset[n_group] * sizeof *member);
}

/* ---------------------------------------------------------------- affinity */

static void test_tokens_that_share_experts_are_counted(void **state) {
    (void)state;
    const uint16_t ids[5][2] = {{0, 1}, {0, 1}, {1, 2}, {0, 3}, {2, 3}};
    const float gates[5][2] = {{1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 0}}; /* the last token uses expert 2 alone */
    const uint64_t pair[4][4] = {{0, 2, 0, 1}, {2, 0, 1, 0}, {0, 1, 0, 0}, {1, 0, 0, 0}};
    const uint64_t load[4] = {3, 3, 2, 1};
    gr_affinity a;
    assert_int_equal(gr_affinity_open(&a, 4), 0);
    assert_true(gr_affinity_pair_share(&a, 0, 1) == 0.0 && gr_affinity_load_share(&a, 0) == 0.0);
    assert_int_equal(gr_affinity_add(&a, ids[0], gates[0], 5, 2), 0);
    assert_memory_equal(a.pair, pair, sizeof pair);
    assert_memory_equal(a.load, load, sizeof load);
    assert_int_equal(*a.n_token, 5);
    assert_true(gr_affinity_pair_share(&a, 1, 0) == 0.4 && gr_affinity_load_share(&a, 0) == 0.6);
    gr_affinity_close(&a);
}

static void test_the_sum_of_two_ranks_blocks_is_the_count_of_all_tokens(void **state) {
    (void)state;
    enum { E = 9, K = 3, N = 60 };
    uint16_t ids[N * K];
    for (uint32_t t = 0; t < N; t++)
        for (uint32_t k = 0; k < K; k++)
            ids[t * K + k] = (uint16_t)(3 * k + gr_random_below(5, k, t, 3));
    gr_affinity all, part[2];
    assert_int_equal(gr_affinity_open(&all, E), 0);
    assert_int_equal(gr_affinity_add(&all, ids, NULL, N, K), 0);
    for (int r = 0; r < 2; r++)
        assert_int_equal(gr_affinity_open(&part[r], E), 0);
    assert_int_equal(gr_affinity_add(&part[0], ids, NULL, 20, K), 0);
    assert_int_equal(gr_affinity_add(&part[1], ids + 20 * K, NULL, 30, K), 0);
    assert_int_equal(gr_affinity_add(&part[1], ids + 50 * K, NULL, 10, K), 0);
    for (size_t i = 0; i < all.n_block; i++)
        assert_int_equal(all.block[i], part[0].block[i] + part[1].block[i]);
    for (int r = 0; r < 2; r++)
        gr_affinity_close(&part[r]);
    gr_affinity_close(&all);
}

static void test_ids_that_are_no_routes_are_refused(void **state) {
    (void)state;
    const uint16_t beyond[2] = {1, 4}, repeated[2] = {2, 2}, descending[2] = {3, 1};
    gr_affinity a;
    assert_int_equal(gr_affinity_open(&a, 4), 0);
    assert_int_equal(gr_affinity_add(&a, beyond, NULL, 1, 2), GR_DATA);
    assert_error_names("below 4 at token 0, got 4 in slot 1");
    assert_int_equal(gr_affinity_add(&a, repeated, NULL, 1, 2), GR_DATA);
    assert_int_equal(gr_affinity_add(&a, descending, NULL, 1, 2), GR_DATA);
    gr_affinity_close(&a);
    assert_int_equal(gr_affinity_open(&a, 0), GR_CONFIG);
    assert_int_equal(gr_affinity_open(&a, GR_EXPERTS_MAX + 1), GR_CONFIG);
    gr_affinity_close(&a);
}

/* ---------------------------------------------------------------- grouping */

static void test_affinity_of_a_small_example_worked_by_hand(void **state) {
    (void)state;
    /* 5 experts, 2 groups: sizes 3 and 2. Expert 0 starts; 3 is chosen most with it (7). With {0,3}: 1 has 2+3, 2 has
     * 4+1, 4 has 1+1: a tie of 5, so 1. Left: 2 and 4. */
    const uint64_t pair[5][5] = {{0, 2, 4, 7, 1}, {2, 0, 9, 3, 9}, {4, 9, 0, 1, 2}, {7, 3, 1, 0, 1}, {1, 9, 2, 1, 0}};
    gr_affinity a;
    assert_int_equal(gr_affinity_open(&a, 5), 0);
    memcpy(a.pair, pair, sizeof pair);
    *a.n_token = 40;
    gr_mapping m = group(GR_FOLD_AFFINITY, &a, 2, 0);
    assert_groups(&m, 2, (uint32_t[]){0, 3, 5}, (uint16_t[]){0, 1, 3, 2, 4});
    assert_int_equal(m.n_token, 40);
    gr_mapping_close(&m);
    gr_affinity_close(&a);
}

/* The rule as written down: mean over the members, recomputed for every candidate. Marks the group's members. */
static void group_plainly(const gr_affinity *a, uint32_t size, bool *taken, bool *mine) {
    uint32_t seed = 0;
    while (taken[seed])
        seed++;
    taken[seed] = mine[seed] = true;
    for (uint32_t n = 1; n < size; n++) {
        double best = -1;
        uint32_t chosen = 0;
        for (uint32_t j = 0; j < a->E; j++) {
            double sum = 0;
            for (uint32_t i = 0; i < a->E; i++)
                sum += mine[i] ? (double)a->pair[j * a->E + i] : 0.0;
            if (!taken[j] && sum > best) {
                best = sum;
                chosen = j;
            }
        }
        taken[chosen] = mine[chosen] = true;
    }
}

static void test_affinity_follows_its_rule_for_all_sizes(void **state) {
    (void)state;
    for (uint32_t E_S = 1; E_S <= E_MAX; E_S++)
        for (uint32_t E_T = 1; E_T <= E_S; E_T++) {
            gr_affinity a = made_up_counts(E_S, 100 * E_S + E_T);
            gr_mapping m = group(GR_FOLD_AFFINITY, &a, E_T, 0);
            bool taken[E_MAX] = {false};
            for (uint32_t g = 0; g < E_T; g++) {
                bool mine[E_MAX] = {false};
                group_plainly(&a, E_S / E_T + (g < E_S % E_T), taken, mine);
                uint32_t at = m.offset[g];
                for (uint16_t e = 0; e < E_S; e++)
                    if (mine[e])
                        assert_int_equal(m.member[at++], e);
                assert_int_equal(at, m.offset[g + 1]);
            }
            gr_mapping_close(&m);
            gr_affinity_close(&a);
        }
}

static void assert_partition(const gr_mapping *m) {
    uint32_t use[E_MAX] = {0};
    assert_int_equal(m->offset[0], 0);
    assert_int_equal(m->offset[m->n_group], m->E_S);
    for (uint32_t g = 0; g < m->n_group; g++) {
        assert_int_equal(m->offset[g + 1] - m->offset[g], m->E_S / m->E_T + (g < m->E_S % m->E_T));
        for (uint32_t at = m->offset[g]; at < m->offset[g + 1]; at++) {
            use[m->member[at]]++;
            assert_true(at == m->offset[g] || m->member[at] > m->member[at - 1]);
        }
    }
    for (uint32_t e = 0; e < m->E_S; e++)
        assert_int_equal(use[e], 1);
    assert_int_equal(gr_mapping_used(m), m->E_S);
}

static void test_every_method_uses_every_expert_once_for_all_sizes(void **state) {
    (void)state;
    for (uint32_t E_S = 1; E_S <= E_MAX; E_S++)
        for (uint32_t E_T = 1; E_T <= E_S; E_T++)
            for (int method = GR_FOLD_AFFINITY; method <= GR_FOLD_BLOCK; method++) {
                gr_affinity a = made_up_counts(E_S, E_S * E_T);
                gr_mapping m = group((gr_fold_method)method, &a, E_T, 7);
                assert_partition(&m);
                gr_mapping_close(&m);
                gr_affinity_close(&a);
            }
}

/* Ascending load (ties to the lower id): 3 5 | 0 6 | 1 4 | 2. */
static gr_affinity seven_loads(void) {
    const uint64_t load[7] = {4, 6, 9, 1, 8, 2, 4};
    gr_affinity a;
    assert_int_equal(gr_affinity_open(&a, 7), 0);
    memcpy(a.load, load, sizeof load);
    *a.n_token = 17;
    return a;
}

static void test_balance_pairs_little_used_with_much_used(void **state) {
    (void)state;
    gr_affinity a = seven_loads();
    gr_mapping m = group(GR_FOLD_BALANCE, &a, 3, 0); /* sizes 3 2 2: {3, 2 4}, {5, 1}, {0, 6} */
    assert_groups(&m, 3, (uint32_t[]){0, 3, 5, 7}, (uint16_t[]){2, 3, 4, 1, 5, 0, 6});
    gr_mapping_close(&m);
    gr_affinity_close(&a);
}

static void test_greedy_takes_chunks_of_ascending_load_and_block_of_ids(void **state) {
    (void)state;
    gr_affinity a = seven_loads();
    gr_mapping m = group(GR_FOLD_GREEDY, &a, 3, 0);
    assert_groups(&m, 3, (uint32_t[]){0, 3, 5, 7}, (uint16_t[]){0, 3, 5, 1, 6, 2, 4});
    gr_mapping_close(&m);
    m = group(GR_FOLD_BLOCK, &a, 3, 0);
    assert_groups(&m, 3, (uint32_t[]){0, 3, 5, 7}, (uint16_t[]){0, 1, 2, 3, 4, 5, 6});
    gr_mapping_close(&m);
    gr_affinity_close(&a);
}

static void test_balance_reference_repeats_the_least_loaded_experts(void **state) {
    (void)state;
    gr_affinity a = made_up_counts(128, 3);
    a.load[77] = 0; /* ties: the lowest id of load 0 is the least loaded */
    uint32_t least = 0;
    while (a.load[least] != 0)
        least++;
    for (uint32_t E_T = 64; E_T >= 32; E_T /= 2) {
        gr_mapping m = group(GR_FOLD_BALANCE_REFERENCE, &a, E_T, 0);
        assert_int_equal(gr_mapping_used(&m), E_T == 64 ? 65 : 66);
        for (uint32_t g = 0; g < E_T; g++) {
            bool has = false;
            for (uint32_t at = m.offset[g]; at < m.offset[g + 1]; at++)
                has |= m.member[at] == least;
            assert_true(has);
        }
        gr_mapping_close(&m);
    }
    const gr_grouping uneven = {.method = GR_FOLD_BALANCE_REFERENCE, .E_S = 128, .E_T = 48, .affinity = &a};
    gr_mapping m;
    assert_int_equal(gr_mapping_group(&m, &uneven), GR_CONFIG);
    assert_error_names("divides the 128 source experts, got 48");
    gr_affinity_close(&a);
}

static void test_random_depends_on_the_seed_and_nothing_else(void **state) {
    (void)state;
    enum { DRAWS = 4000 };
    gr_affinity a = made_up_counts(8, 1), b = made_up_counts(8, 2);
    gr_mapping x = group(GR_FOLD_RANDOM, &a, 4, 5), y = group(GR_FOLD_RANDOM, &b, 4, 5);
    assert_memory_equal(x.member, y.member, 8 * sizeof *x.member);
    gr_mapping_close(&y);
    int with_1 = 0, same = 0, first[4] = {0}; /* first: groups that expert 0 is in */
    for (uint64_t seed = 0; seed < DRAWS; seed++) {
        y = group(GR_FOLD_RANDOM, &a, 4, 1000 + seed);
        same += memcmp(x.member, y.member, 8 * sizeof *x.member) == 0;
        for (uint32_t at = 0; at < 8; at += 2) {
            with_1 += y.member[at] == 0 && y.member[at + 1] == 1;
            first[at / 2] += y.member[at] == 0;
        }
        gr_mapping_close(&y);
    }
    assert_in_range(with_1, DRAWS / 7 - 120, DRAWS / 7 + 120); /* 5 standard deviations */
    for (int g = 0; g < 4; g++)
        assert_in_range(first[g], DRAWS / 4 - 140, DRAWS / 4 + 140);
    assert_in_range(same, 0, 20); /* 2520 groupings in all */
    gr_mapping_close(&x);
    gr_affinity_close(&b);
    gr_affinity_close(&a);
}

static void test_sizes_and_counts_that_cannot_be_grouped_are_refused(void **state) {
    (void)state;
    gr_affinity a = made_up_counts(4, 1);
    gr_mapping m;
    gr_grouping g = {.method = GR_FOLD_BLOCK, .E_S = 4, .E_T = 5};
    assert_int_equal(gr_mapping_group(&m, &g), GR_CONFIG);
    assert_error_names("at most the 4 source experts as target, got 5");
    g.E_T = 0;
    assert_int_equal(gr_mapping_group(&m, &g), GR_CONFIG);
    g = (gr_grouping){.method = GR_FOLD_EXPAND, .E_S = 4, .E_T = 4};
    assert_int_equal(gr_mapping_group(&m, &g), GR_CONFIG);
    g = (gr_grouping){.method = GR_FOLD_AFFINITY, .E_S = 4, .E_T = 2};
    assert_int_equal(gr_mapping_group(&m, &g), GR_CONFIG);
    assert_error_names("affinity: expected counts of at least 1 routed token");
    *a.n_token = 0;
    g.affinity = &a;
    g.method = GR_FOLD_GREEDY;
    assert_int_equal(gr_mapping_group(&m, &g), GR_CONFIG);
    g.method = GR_FOLD_BLOCK;
    assert_int_equal(gr_mapping_group(&m, &g), 0);
    gr_mapping_close(&m);
    gr_affinity_close(&a);
}

static void test_names_are_found_and_others_refused_with_the_nearest(void **state) {
    (void)state;
    gr_fold_method method;
    gr_fold_kind kind;
    for (int i = 0; i < GR_N_FOLD_METHOD; i++) {
        assert_int_equal(gr_fold_method_find(&method, gr_fold_method_name((gr_fold_method)i)), 0);
        assert_int_equal(method, i);
    }
    for (int i = 0; i < GR_N_FOLD_KIND; i++) {
        assert_int_equal(gr_fold_kind_find(&kind, gr_fold_kind_name((gr_fold_kind)i)), 0);
        assert_int_equal(kind, i);
    }
    assert_int_equal(gr_fold_method_find(&method, "gredy"), GR_CONFIG);
    assert_error_names("did you mean \"greedy\"");
    assert_int_equal(gr_fold_method_find(&method, ""), GR_CONFIG);
    assert_int_equal(gr_fold_kind_find(&kind, "max"), GR_CONFIG);
}

/* ---------------------------------------------------------------- folding */

static void test_folded_scores_are_sums_of_the_members_scores(void **state) {
    (void)state;
    enum { E_S = 11, E_T = 4, D = 13 };
    float W[E_S * D], bias[E_S], x[D], W_T[E_T * D], bias_T[E_T];
    for (uint32_t i = 0; i < E_S * D; i++)
        W[i] = gr_random_normal(1, 1, i);
    for (uint32_t i = 0; i < E_S; i++)
        bias[i] = gr_random_normal(1, 2, i);
    for (uint32_t i = 0; i < D; i++)
        x[i] = gr_random_normal(1, 3, i);
    gr_affinity a = made_up_counts(E_S, 9);
    for (int method = 0; method <= GR_FOLD_BLOCK; method++)
        for (int kind = 0; kind < GR_N_FOLD_KIND; kind++) {
            gr_mapping m = group((gr_fold_method)method, &a, E_T, 4);
            m.fold = (gr_fold_kind)kind;
            gr_mapping_fold(&m, D, W, W_T);
            gr_mapping_fold(&m, 1, bias, bias_T);
            for (uint32_t g = 0; g < E_T; g++) {
                double folded = bias_T[g], sum = 0;
                for (uint32_t d = 0; d < D; d++)
                    folded += (double)W_T[g * D + d] * (double)x[d];
                for (uint32_t at = m.offset[g]; at < m.offset[g + 1]; at++) {
                    sum += (double)bias[m.member[at]];
                    for (uint32_t d = 0; d < D; d++)
                        sum += (double)W[m.member[at] * D + d] * (double)x[d];
                }
                if (kind == GR_FOLD_MEAN)
                    sum /= m.offset[g + 1] - m.offset[g];
                assert_true(fabs(folded - sum) <= 1e-5);
            }
            gr_mapping_close(&m);
        }
    gr_affinity_close(&a);
}

static void test_rows_are_added_in_double_and_rounded_once(void **state) {
    (void)state;
    const float W[3] = {1e9f, 1.0f, -1e9f}; /* in float the 1 is lost */
    gr_affinity a = made_up_counts(3, 1);
    gr_mapping m = group(GR_FOLD_BLOCK, &a, 1, 0);
    float sum;
    gr_mapping_fold(&m, 1, W, &sum);
    assert_true(sum == 1.0f);
    gr_mapping_close(&m);
    gr_affinity_close(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens_that_share_experts_are_counted),
        cmocka_unit_test(test_the_sum_of_two_ranks_blocks_is_the_count_of_all_tokens),
        cmocka_unit_test(test_ids_that_are_no_routes_are_refused),
        cmocka_unit_test(test_affinity_of_a_small_example_worked_by_hand),
        cmocka_unit_test(test_affinity_follows_its_rule_for_all_sizes),
        cmocka_unit_test(test_every_method_uses_every_expert_once_for_all_sizes),
        cmocka_unit_test(test_balance_pairs_little_used_with_much_used),
        cmocka_unit_test(test_greedy_takes_chunks_of_ascending_load_and_block_of_ids),
        cmocka_unit_test(test_balance_reference_repeats_the_least_loaded_experts),
        cmocka_unit_test(test_random_depends_on_the_seed_and_nothing_else),
        cmocka_unit_test(test_sizes_and_counts_that_cannot_be_grouped_are_refused),
        cmocka_unit_test(test_names_are_found_and_others_refused_with_the_nearest),
        cmocka_unit_test(test_folded_scores_are_sums_of_the_members_scores),
        cmocka_unit_test(test_rows_are_added_in_double_and_rounded_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
