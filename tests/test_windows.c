/* Window order: exactly once per epoch, the same for every rank count, blended by weight, reachable by seek. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "grouter/data.h"

enum { FILES_MAX = 5 };

typedef struct setting {
    int n_file;
    uint64_t n_window[FILES_MAX];
    double weight[FILES_MAX];
} setting;

static const setting settings[] = {
    {1, {1}, {1}},
    {1, {97}, {0.3}},
    {1, {256}, {2}},
    {2, {5, 31}, {1, 1}},
    {2, {40, 7}, {0.9, 0.1}},
    {3, {13, 64, 3}, {0.5, 0.3, 0.2}},
    {4, {10, 20, 30, 40}, {1, 2, 3, 4}},
    {5, {1, 2, 17, 100, 9}, {0.05, 0.05, 0.2, 0.6, 0.1}},
};
enum { N_SETTING = sizeof settings / sizeof settings[0] };

static gr_stream stream_make(const setting *c, uint64_t seed, gr_stream_file file[FILES_MAX]) {
    gr_stream s;
    for (int f = 0; f < c->n_file; f++)
        file[f] = (gr_stream_file){.n_window = c->n_window[f], .weight = c->weight[f], .taken = 77};
    gr_stream_open(&s, seed, file, c->n_file);
    return s;
}

static bool same(gr_window_ref a, gr_window_ref b) {
    return a.file == b.file && a.epoch == b.epoch && a.window == b.window;
}

static void each_window_comes_once_per_epoch_and_file(void **state) {
    (void)state;
    for (int k = 0; k < N_SETTING; k++) {
        const setting *c = &settings[k];
        gr_stream_file file[FILES_MAX];
        gr_stream s = stream_make(c, 11, file);
        static uint8_t seen[FILES_MAX][256];
        uint64_t n_seen[FILES_MAX] = {0}, epoch[FILES_MAX] = {0};
        memset(seen, 0, sizeof seen);
        for (int i = 0; i < 2000; i++) {
            gr_window_ref r = gr_stream_next(&s);
            assert_in_range(r.file, 0, c->n_file - 1);
            assert_true(r.window < c->n_window[r.file]);
            assert_int_equal(r.epoch, epoch[r.file]);
            assert_int_equal(seen[r.file][r.window], 0);
            seen[r.file][r.window] = 1;
            if (++n_seen[r.file] == c->n_window[r.file]) {
                memset(seen[r.file], 0, sizeof seen[r.file]);
                n_seen[r.file] = 0;
                epoch[r.file]++;
            }
        }
    }
}

static void epochs_and_seeds_differ_in_order(void **state) {
    (void)state;
    gr_stream_file file_a[FILES_MAX], file_b[FILES_MAX];
    gr_stream a = stream_make(&settings[2], 1, file_a), b = stream_make(&settings[2], 2, file_b);
    uint64_t first[256];
    int n_same_seed = 0, n_same_epoch = 0, n_unmoved = 0;
    for (uint64_t i = 0; i < 256; i++) {
        first[i] = gr_stream_next(&a).window;
        n_same_seed += first[i] == gr_stream_next(&b).window;
        n_unmoved += first[i] == i;
    }
    for (int i = 0; i < 256; i++)
        n_same_epoch += gr_stream_next(&a).window == first[i];
    assert_in_range(n_same_seed, 0, 10); /* one expected of a random permutation */
    assert_in_range(n_same_epoch, 0, 10);
    assert_in_range(n_unmoved, 0, 10);
}

/* Each rank walks its own stream by seek, as a run does; together they must take the plain stream's slice. */
static void global_batches_do_not_depend_on_the_rank_count(void **state) {
    (void)state;
    enum { GLOBAL = 48, N_STEP = 5, FIRST_STEP = 3 };
    static const uint64_t ranks[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 48};
    for (int k = 0; k < N_SETTING; k++) {
        gr_stream_file file[FILES_MAX];
        gr_stream plain = stream_make(&settings[k], 5, file);
        gr_window_ref expected[(FIRST_STEP + N_STEP) * GLOBAL];
        for (int i = 0; i < (FIRST_STEP + N_STEP) * GLOBAL; i++)
            expected[i] = gr_stream_next(&plain);
        for (size_t n = 0; n < sizeof ranks / sizeof ranks[0]; n++) {
            uint64_t R = ranks[n], B = GLOBAL / R % 2 == 0 ? GLOBAL / R / 2 : GLOBAL / R, n_micro = GLOBAL / (R * B);
            for (uint64_t step = FIRST_STEP; step < FIRST_STEP + N_STEP; step++) {
                int taken[GLOBAL] = {0};
                for (uint64_t rank = 0; rank < R; rank++) {
                    gr_stream_file mine[FILES_MAX];
                    gr_stream s = stream_make(&settings[k], 5, mine);
                    for (uint64_t micro = 0; micro < n_micro; micro++)
                        for (uint64_t b = 0; b < B; b++) {
                            uint64_t i = gr_stream_index(step * GLOBAL, micro, R, B, rank, b);
                            gr_stream_seek(&s, i);
                            assert_true(same(gr_stream_next(&s), expected[i]));
                            taken[i - step * GLOBAL]++;
                        }
                }
                for (int i = 0; i < GLOBAL; i++)
                    assert_int_equal(taken[i], 1);
            }
        }
    }
}

static void seek_equals_taking_one_by_one(void **state) {
    (void)state;
    static const uint64_t jumps[] = {0, 1, 2, 63, 500, 499, 17, 0, 1000};
    for (int k = 0; k < N_SETTING; k++) {
        gr_stream_file file_a[FILES_MAX];
        gr_stream a = stream_make(&settings[k], 9, file_a);
        for (size_t j = 0; j < sizeof jumps / sizeof jumps[0]; j++) {
            gr_stream_file file_b[FILES_MAX];
            gr_stream b = stream_make(&settings[k], 9, file_b);
            for (uint64_t i = 0; i < jumps[j]; i++)
                (void)gr_stream_next(&b);
            gr_stream_seek(&a, jumps[j]);
            assert_int_equal(a.index, jumps[j]);
            assert_int_equal(a.index, b.index);
            for (int f = 0; f < settings[k].n_file; f++)
                assert_int_equal(file_a[f].taken, file_b[f].taken);
            assert_true(same(gr_stream_next(&a), gr_stream_next(&b)));
        }
    }
}

static void shares_stay_within_one_window_of_the_weights(void **state) {
    (void)state;
    for (int k = 0; k < N_SETTING; k++) {
        const setting *c = &settings[k];
        gr_stream_file file[FILES_MAX];
        gr_stream s = stream_make(c, 3, file);
        double sum = 0;
        for (int f = 0; f < c->n_file; f++)
            sum += c->weight[f];
        for (int n = 1; n <= 3000; n++) {
            (void)gr_stream_next(&s);
            for (int f = 0; f < c->n_file; f++)
                assert_true(fabs((double)file[f].taken - c->weight[f] / sum * n) <= 1.0 + 1e-9);
        }
    }
}

static void equal_weights_alternate_from_the_lowest_file(void **state) {
    (void)state;
    gr_stream_file file[FILES_MAX];
    gr_stream s = stream_make(&settings[3], 3, file);
    for (int i = 0; i < 100; i++)
        assert_int_equal(gr_stream_next(&s).file, i % 2);
}

/* Worked by hand from the rule: weights 0.5, 0.3, 0.2. */
static void blend_follows_the_greedy_rule(void **state) {
    (void)state;
    static const int expected[] = {0, 1, 2, 0, 1, 0, 2};
    gr_stream_file file[FILES_MAX];
    gr_stream s = stream_make(&settings[5], 3, file);
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
        assert_int_equal(gr_stream_next(&s).file, expected[i]);
}

/* The order is part of what a run can resume: this formula must not change between versions. */
static void one_file_is_the_plain_bijection(void **state) {
    (void)state;
    for (int k = 0; k < 3; k++) {
        gr_stream_file file[FILES_MAX];
        gr_stream s = stream_make(&settings[k], 42, file);
        uint64_t n = settings[k].n_window[0];
        for (uint64_t i = 0; i < 600; i++) {
            gr_window_ref r = gr_stream_next(&s);
            uint64_t key = gr_random_u64(42, gr_stream_id("window order"), i / n);
            assert_int_equal(r.file, 0);
            assert_int_equal(r.epoch, i / n);
            assert_int_equal(r.window, gr_bijection(key, n, i % n));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_window_comes_once_per_epoch_and_file),
        cmocka_unit_test(epochs_and_seeds_differ_in_order),
        cmocka_unit_test(global_batches_do_not_depend_on_the_rank_count),
        cmocka_unit_test(seek_equals_taking_one_by_one),
        cmocka_unit_test(shares_stay_within_one_window_of_the_weights),
        cmocka_unit_test(equal_weights_alternate_from_the_lowest_file),
        cmocka_unit_test(blend_follows_the_greedy_rule),
        cmocka_unit_test(one_file_is_the_plain_bijection),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
