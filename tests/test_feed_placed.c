/* The feed with a placement: the same windows in each global batch, where their experts are; limits that no choice of
 * places exceeds; and what is refused. */
#define PLACED_NAME "placed"
#include "placed_feed_fixture.h"

static void a_global_batch_keeps_its_windows(void **state) {
    (void)state;
    uint32_t plain[STEPS][N_WINDOW] = {{0}}, packed[STEPS][N_WINDOW] = {{0}};
    count_windows(GR_WINDOWS_BATCH, false, plain);
    count_windows(GR_WINDOWS_BATCH, true, packed);
    assert_memory_equal(plain, packed, sizeof plain);
}
static void no_plan_exceeds_its_bound_and_rows_are_the_fewest(void **state) {
    (void)state;
    achieved all = {0}, plain = {0};
    gr_step_links expected;
    uint64_t rows = 0;
    gr_micro m;
    fixture f;
    for (int rank = 0; rank < R; rank++) {
        achieved mine = {0};
        fixture_open(&f, GR_WINDOWS_BATCH, rank, true);
        run_rank(&f, &mine);
        const gr_plan_limits *l = gr_feed_limits(f.feed);
        assert_true(mine.send > 0 && mine.send <= l->send_max);
        assert_true(mine.recv > 0 && mine.recv <= l->recv_max);
        assert_true(mine.pair > 0 && mine.pair <= l->pair_max);
        assert_int_equal(gr_feed_rows(f.feed, &expected), GR_OK);
        for (int step = 0; step < STEPS; step++) {
            rows += mine.rows[step];
            all.rows[step] += mine.rows[step];
            all.pairs[step] += mine.pairs[step];
            all.fullest[step] = larger(all.fullest[step], mine.fullest[step]);
        }
        fixture_close(&f);
        fixture_open(&f, GR_WINDOWS_BATCH, rank, false);
        run_rank(&f, &plain);
        fixture_close(&f);
    }
    assert_true(fabs((expected.within + expected.between) * STEPS * R - (double)rows) < 1e-6);
    fixture_open(&f, GR_WINDOWS_BATCH, 0, true);
    double gained = 0;
    for (uint64_t step = 0; step < STEPS; step++) {
        prepare(&f, step, 0, &m);
        assert_true(m.rows_best == (double)all.rows[step]);
        double imbalance = (double)all.fullest[step] * R * N_MICRO / (double)all.pairs[step];
        assert_true(imbalance >= m.imbalance_best - 1e-12);
        assert_true(all.rows[step] <= plain.rows[step]);
        gained += (double)(plain.rows[step] - all.rows[step]);
    }
    assert_true(gained > 0);
    fixture_close(&f);
}

/* The worst that a batch may do to a rank, from all its windows, by sorting. */
static int descending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x < y) - (x > y);
}

static void limits_are_the_bound_of_the_largest_windows(void **state) {
    (void)state;
    uint32_t count[STEPS][N_WINDOW] = {{0}};
    uint64_t recv = 0, send = 0, pair = 0;
    count_windows(GR_WINDOWS_BATCH, false, count);
    fixture f;
    fixture_open(&f, GR_WINDOWS_BATCH, 3, true);
    for (int step = 0; step < STEPS; step++) {
        uint32_t in[GLOBAL], out[GLOBAL], pairs[GLOBAL], n = 0;
        for (uint32_t w = 0; w < N_WINDOW; w++)
            for (uint32_t i = 0; i < count[step][w]; i++, n++) {
                uint64_t window;
                const gr_placed_table *t = table_of(&f, w, &window);
                uint16_t ids[T * K];
                float gates[T * K];
                in[n] = t->touch.count[window * R_EP + 1];
                out[n] = t->touch.count[window * R_EP];
                pairs[n] = 0;
                make_routes(w >= n_window[0], window, ids, gates);
                for (int k = 0; k < T * K; k++)
                    pairs[n] += f.map.rank_of[ids[k]] == 1;
            }
        assert_int_equal(n, GLOBAL);
        uint64_t sum[3] = {0};
        qsort(in, n, sizeof *in, descending);
        qsort(out, n, sizeof *out, descending);
        qsort(pairs, n, sizeof *pairs, descending);
        for (int i = 0; i < R_EP * B; i++) {
            sum[0] += i < (R_EP - 1) * B ? in[i] : 0;
            sum[1] += i < B ? out[i] : 0;
            sum[2] += pairs[i];
        }
        recv = larger(recv, sum[0]);
        send = larger(send, sum[1]);
        pair = larger(pair, sum[2]);
    }
    const gr_plan_limits *l = gr_feed_limits(f.feed);
    assert_int_equal(l->recv_max, recv);
    assert_int_equal(l->send_max, send);
    assert_int_equal(l->pair_max, pair);
    fixture_close(&f);
}

static void going_back_finds_the_same_places(void **state) {
    (void)state;
    fixture f;
    gr_micro m;
    uint32_t first[B * T], again[B * T];
    fixture_open(&f, GR_WINDOWS_BATCH, 1, true);
    prepare(&f, 2, 1, &m);
    memcpy(first, m.batch.token, sizeof first);
    prepare(&f, 7, 0, &m);
    prepare(&f, 2, 1, &m);
    memcpy(again, m.batch.token, sizeof again);
    assert_memory_equal(first, again, sizeof first);
    fixture_close(&f);
}

static void validation_windows_stay_and_their_limits_are_exact(void **state) {
    (void)state;
    fixture f;
    achieved a = {0};
    fixture_prepare(&f, GR_WINDOWS_BATCH, 1);
    assert_int_equal(fixture_survey(&f, GR_FEED_VALID, false), GR_OK);
    assert_int_equal(gr_feed_allocate(f.feed), GR_OK);
    for (uint64_t micro = 0; micro < gr_feed_micro_batches(f.feed); micro++) {
        gr_micro m;
        assert_int_equal(gr_feed_prepare(f.feed, 0, micro, &m), GR_OK);
        for (uint32_t b = 0; b < B; b++) {
            uint32_t at = (uint32_t)micro * R * B + 1 * B + b;
            assert_int_equal(number_of(m.batch.token + b * T), at < N_WINDOW ? at : 0);
        }
        assert_true(isnan(m.rows_best) && isnan(m.imbalance_best));
        a.send = larger(a.send, m.batch.plan->n_send);
        a.recv = larger(a.recv, m.batch.plan->n_recv);
        a.pair = larger(a.pair, m.batch.plan->n_pair);
    }
    const gr_plan_limits *l = gr_feed_limits(f.feed);
    assert_true(l->send_max == a.send && l->recv_max == a.recv && l->pair_max == a.pair);
    fixture_close(&f);
}

/* ---------------------------------------------------------------- what is refused */

static void a_table_without_a_section_is_refused(void **state) {
    (void)state;
    fixture f;
    fixture_prepare(&f, GR_WINDOWS_BATCH, 0);
    gr_placement_close(&f.placement);
    make_placement(&f.placement, true, 1); /* of the first table alone */
    assert_int_equal(fixture_survey(&f, GR_FEED_TRAIN, true), GR_DATA);
    assert_error_names("placed.tmp: expected a placement of route table placed_b.tmp.routes");
    assert_error_names("grouter-train place");
    f.feed = NULL;
    fixture_close(&f);
}

static void counts_that_are_too_low_are_refused_by_window(void **state) {
    (void)state;
    fixture f;
    gr_err e = GR_OK;
    fixture_prepare(&f, GR_WINDOWS_BATCH, 0);
    memset(f.placement.table[0].touch.count, 0, n_window[0] * R_EP * sizeof(uint32_t));
    memset(f.placement.table[1].touch.count, 0, n_window[1] * R_EP * sizeof(uint32_t));
    assert_int_equal(fixture_survey(&f, GR_FEED_TRAIN, true), GR_OK);
    assert_int_equal(gr_feed_allocate(f.feed), GR_OK);
    for (uint64_t step = 0; step < STEPS && !e; step++) {
        gr_micro m;
        e = gr_feed_prepare(f.feed, step * GLOBAL, 0, &m);
    }
    assert_int_equal(e, GR_DATA);
    assert_error_names("window ");
    assert_error_names("placed.tmp; place again");
    fixture_close(&f);
}

/* A histogram is a hint until its window is read: it asks for no more than windows can need. */
static void an_absurd_histogram_asks_for_no_more_than_windows_need(void **state) {
    (void)state;
    fixture f;
    gr_micro m;
    gr_err e = GR_OK;
    uint8_t many[4 * E];
    memset(many, 0xff, sizeof many);
    fixture_prepare(&f, GR_WINDOWS_BATCH, 0);
    FILE *table = fopen(routes_path[0], "r+b");
    assert_non_null(table);
    assert_int_equal(fseek(table, GR_ROUTES_HEADER, SEEK_SET), 0);
    for (uint32_t w = 0; w < n_window[0]; w++)
        assert_int_equal(fwrite(many, 1, sizeof many, table), sizeof many);
    assert_int_equal(fclose(table), 0);
    assert_int_equal(fixture_survey(&f, GR_FEED_TRAIN, true), GR_OK);
    assert_in_range(gr_feed_limits(f.feed)->pair_max, 1, R_EP * B * T * K);
    assert_int_equal(gr_feed_allocate(f.feed), GR_OK);
    for (uint64_t step = 0; step < STEPS && !e; step++)
        e = gr_feed_prepare(f.feed, step * GLOBAL, 0, &m);
    assert_int_equal(e, GR_DATA);
    assert_error_names("histogram");
    fixture_close(&f);
    unlink(routes_path[0]);
    make_file(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_global_batch_keeps_its_windows),
        cmocka_unit_test(no_plan_exceeds_its_bound_and_rows_are_the_fewest),
        cmocka_unit_test(limits_are_the_bound_of_the_largest_windows),
        cmocka_unit_test(going_back_finds_the_same_places),
        cmocka_unit_test(validation_windows_stay_and_their_limits_are_exact),
        cmocka_unit_test(a_table_without_a_section_is_refused),
        cmocka_unit_test(counts_that_are_too_low_are_refused_by_window),
        cmocka_unit_test(an_absurd_histogram_asks_for_no_more_than_windows_need),
    };
    gr_log_set(GR_LOG_QUIET);
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
