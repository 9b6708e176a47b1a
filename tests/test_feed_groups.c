/* Windows by group: each once per epoch of its group, exact limits, and the figures of what that does to the batches.
 */
#define PLACED_NAME "groups"
#include "placed_feed_fixture.h"

/* Each rank of the second place in its group, and the first: only windows of that group, each once per epoch. */
static void a_rank_reads_its_group_once_per_epoch(void **state) {
    (void)state;
    for (int place = 0; place < R_EP; place++) {
        uint32_t seen[N_WINDOW] = {0}, taken[N_FILE] = {0}, members[N_FILE] = {0};
        fixture f[N_GROUP];
        for (int g = 0; g < N_GROUP; g++)
            fixture_open(&f[g], GR_WINDOWS_CORPUS, g * R_EP + place, true);
        for (uint32_t w = 0; w < N_WINDOW; w++) {
            uint64_t window;
            const gr_placed_table *t = table_of(f, w, &window);
            members[w >= n_window[0]] += t->rank[window] == place;
        }
        for (uint64_t step = 0; step < STEPS; step++)
            for (uint64_t bin = 0; bin < N_MICRO * N_GROUP; bin++) { /* the order of their common stream */
                gr_micro m;
                prepare(&f[bin % N_GROUP], step, bin / N_GROUP, &m);
                for (uint32_t b = 0; b < B; b++) {
                    uint64_t window;
                    uint32_t w = number_of(m.batch.token + b * T), file = w >= n_window[0];
                    assert_int_equal(table_of(f, w, &window)->rank[window], place);
                    assert_int_equal(seen[w]++, taken[file]++ / members[file]);
                }
            }
        assert_true(taken[0] > 2 * members[0] && taken[1] > 2 * members[1]);
        assert_in_range(taken[0], 3 * taken[1] - 4, 3 * taken[1] + 4); /* weights 3 and 1 */
        for (int g = 0; g < N_GROUP; g++)
            fixture_close(&f[g]);
    }
}

static void by_group_limits_are_exact_and_best_figures_are_those_of_the_batch(void **state) {
    (void)state;
    achieved all = {0};
    fixture f;
    for (int rank = 0; rank < R; rank++) {
        achieved mine = {0};
        fixture_open(&f, GR_WINDOWS_CORPUS, rank, true);
        run_rank(&f, &mine);
        const gr_plan_limits *l = gr_feed_limits(f.feed);
        assert_int_equal(l->send_max, mine.send);
        assert_int_equal(l->recv_max, mine.recv);
        assert_int_equal(l->pair_max, mine.pair);
        for (int step = 0; step < STEPS; step++)
            all.rows[step] += mine.rows[step];
        fixture_close(&f);
    }
    fixture_open(&f, GR_WINDOWS_CORPUS, 0, true);
    for (uint64_t step = 0; step < STEPS; step++) {
        gr_micro m;
        prepare(&f, step, 0, &m);
        assert_true(m.rows_best <= (double)all.rows[step] && m.rows_best > 0 && m.imbalance_best >= 1);
    }
    fixture_close(&f);
}

static void the_bias_of_reading_by_group_is_that_of_its_definition(void **state) {
    (void)state;
    fixture f;
    gr_feed_bias bias;
    uint32_t count[2][STEPS][N_WINDOW] = {{{0}}};
    count_windows(GR_WINDOWS_CORPUS, true, count[0]);
    count_windows(GR_WINDOWS_BATCH, false, count[1]);
    fixture_open(&f, GR_WINDOWS_CORPUS, 0, true);
    assert_int_equal(gr_feed_bias_get(f.feed, &bias), GR_OK);

    /* Every window's chance by group and share of the data. */
    double variation = 0, least = INFINITY, most = 0;
    for (uint32_t w = 0; w < N_WINDOW; w++) {
        uint64_t window;
        const gr_placed_table *t = table_of(&f, w, &window);
        double weight = w < n_window[0] ? 0.75 : 0.25, members = 0;
        for (uint64_t i = 0; i < t->n_window; i++)
            members += t->rank[i] == t->rank[window];
        double share = weight / (double)t->n_window, chance = weight / (R_EP * members);
        variation += fabs(chance - share) / 2;
        least = fmin(least, chance / share);
        most = fmax(most, chance / share);
    }
    assert_true(fabs(bias.total_variation - variation) < 1e-12 && variation > 0);
    assert_true(fabs(bias.importance_min - least) < 1e-12 && fabs(bias.importance_max - most) < 1e-12);
    assert_int_equal(bias.n_batch, STEPS);

    double q[VOCAB] = {0}, share[E] = {0};
    for (int file = 0; file < N_FILE; file++) { /* tokens follow one another: each once in the file */
        double weight = file == 0 ? 0.75 : 0.25, n = (double)n_window[file] * T, load[E] = {0};
        for (uint32_t v = 0; v < VOCAB; v++)
            q[v] += weight * (v >= first_token[file] && v < first_token[file] + n ? 2 : 1) / (n + VOCAB);
        for (uint64_t w = 0; w < n_window[file]; w++) {
            uint16_t ids[T * K];
            float gates[T * K];
            make_routes((uint32_t)file, w, ids, gates);
            for (int k = 0; k < T * K; k++)
                load[ids[k]]++;
        }
        for (int e = 0; e < E; e++)
            share[e] += weight * load[e] / (n * K);
    }
    for (int order = 0; order < 2; order++) {
        double divergence = 0, chi = 0;
        for (int step = 0; step < STEPS; step++) {
            double load[E] = {0}, n_pair = GLOBAL * T * K;
            for (uint32_t w = 0; w < N_WINDOW; w++) {
                uint64_t window;
                uint32_t file = w >= n_window[0];
                uint16_t ids[T * K];
                float gates[T * K];
                (void)table_of(&f, w, &window);
                make_routes(file, window, ids, gates);
                for (int k = 0; k < T * K; k++)
                    load[ids[k]] += count[order][step][w];
                for (uint32_t t = 0; t < T && count[order][step][w]; t++) {
                    double p = (double)count[order][step][w] / (GLOBAL * T);
                    divergence += p * log(p / q[first_token[file] + window * T + t]) / STEPS;
                }
            }
            for (int e = 0; e < E; e++)
                chi += pow(load[e] - n_pair * share[e], 2) / (n_pair * share[e]) / (E - 1) / STEPS;
        }
        assert_true(fabs(bias.unigram[order] - divergence) < 1e-9);
        assert_true(fabs(bias.expert[order] - chi) < 1e-9);
    }
    fixture_close(&f);
}

static void a_group_without_windows_is_refused(void **state) {
    (void)state;
    fixture f;
    fixture_prepare(&f, GR_WINDOWS_CORPUS, 0);
    for (uint64_t w = 0; w < n_window[1]; w++)
        f.placement.table[1].rank[w] = 0;
    assert_int_equal(fixture_survey(&f, GR_FEED_TRAIN, true), GR_DATA);
    assert_error_names("groups_b.tmp.routes");
    assert_error_names("got none on rank 1");
    f.feed = NULL;
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rank_reads_its_group_once_per_epoch),
        cmocka_unit_test(by_group_limits_are_exact_and_best_figures_are_those_of_the_batch),
        cmocka_unit_test(the_bias_of_reading_by_group_is_that_of_its_definition),
        cmocka_unit_test(a_group_without_windows_is_refused),
    };
    gr_log_set(GR_LOG_QUIET);
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
