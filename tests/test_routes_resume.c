/* A route table whose writing was stopped: what is whole is kept, everything else is written again, and the bytes are
 * those of a table that was never stopped. */
#include "routes_fixture.h"

#define PATH_ "test_routes_resume.routes"
#define PARTIAL PATH_ ".partial"
#define WHOLE "test_routes_resume_whole.routes"

static gr_routes_writer *open_writer(const gr_routes_info *info) {
    gr_routes_writer *w;
    if (gr_routes_writer_open(&w, PATH_, info))
        fail_msg("%s", gr_error_text());
    return w;
}

/* Windows [0, n) and what a kill leaves of them. */
static void stop_after(uint64_t n) {
    gr_routes_info info = make_info();
    gr_routes_writer *w = open_writer(&info);
    write_windows(w, 0, n);
    gr_routes_writer_keep(w);
    gr_routes_writer_close(w);
    assert_false(gr_path_exists(PATH_));
}

static bool found(gr_routes_writer *w, uint64_t window) {
    uint32_t tokens[T + 1];
    uint16_t ids[T * K], got_ids[T * K];
    float gates[T * K], got_gates[T * K];
    bool there;
    make_window(window, tokens, ids, gates);
    assert_int_equal(gr_routes_writer_find(w, window, tokens, got_ids, got_gates, &there), 0);
    if (there) {
        assert_memory_equal(ids, got_ids, sizeof ids);
        assert_memory_equal(gates, got_gates, sizeof gates);
    }
    return there;
}

static void assert_same_file(const char *a, const char *b) {
    size_t n[2];
    uint8_t *bytes[2] = {load(a, &n[0]), load(b, &n[1])};
    assert_int_equal(n[0], n[1]);
    assert_memory_equal(bytes[0], bytes[1], n[0]);
    free(bytes[0]);
    free(bytes[1]);
}

/* Goes on: exactly the windows of the bit mask are there; the others are written. */
static void go_on(unsigned there) {
    gr_routes_info info = make_info();
    gr_routes_writer *w = open_writer(&info);
    assert_true(gr_routes_writer_resumes(w));
    for (uint64_t i = 0; i < N_WINDOW; i++) {
        assert_int_equal(found(w, i), there >> i & 1);
        if (!found(w, i))
            write_windows(w, i, i + 1);
        assert_true(found(w, i));
    }
    assert_int_equal(gr_routes_writer_commit(w), 0);
    gr_routes_writer_close(w);
    assert_false(gr_path_exists(PARTIAL));
    assert_same_file(PATH_, WHOLE);
    unlink(PATH_);
}

static void damage(size_t at) {
    size_t n;
    uint8_t *file = load(PARTIAL, &n);
    assert_true(at < n);
    file[at] ^= 1;
    store(PARTIAL, file, n);
    free(file);
}

static void windows_that_were_written_are_kept(void **state) {
    (void)state;
    for (uint64_t n = 0; n <= N_WINDOW; n++) {
        stop_after(n);
        go_on((1u << n) - 1);
    }
}

static void a_damaged_window_is_written_again(void **state) {
    (void)state;
    const size_t record = RECORDS_AT + RECORD_BYTES;
    const size_t at[] = {record, record + IDS_BYTES, record + HASHES_AT, record + HASHES_AT + 8, HISTOGRAMS_AT + 4 * E};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        stop_after(N_WINDOW);
        damage(at[i]);
        go_on(5);
    }
}

/* A kill at any byte: the header and each record's parts are written in order. */
static void a_file_cut_anywhere_is_taken_up(void **state) {
    (void)state;
    for (size_t n = GR_ROUTES_HEADER; n <= FILE_BYTES; n++) {
        stop_after(N_WINDOW);
        assert_int_equal(truncate(PARTIAL, (off_t)n), 0);
        unsigned there = 0;
        for (size_t w = 0; w < N_WINDOW; w++)
            there |= (unsigned)(n >= RECORDS_AT + (w + 1) * RECORD_BYTES) << w;
        go_on(there);
    }
}

static void a_kill_between_header_and_name_is_taken_up(void **state) {
    (void)state;
    size_t n;
    uint8_t *whole = load(WHOLE, &n);
    store(PARTIAL, whole, n);
    free(whole);
    go_on(7);
}

static void windows_of_other_tokens_are_written_again(void **state) {
    (void)state;
    stop_after(2);
    gr_routes_info info = make_info();
    gr_routes_writer *w = open_writer(&info);
    uint32_t tokens[T + 1];
    uint16_t ids[T * K];
    float gates[T * K];
    bool there = true;
    make_window(1, tokens, ids, gates);
    tokens[T]++;
    assert_int_equal(gr_routes_writer_find(w, 1, tokens, ids, gates, &there), 0);
    assert_false(there);
    gr_routes_writer_close(w);
    assert_false(gr_path_exists(PARTIAL)); /* not killed: nothing stays */
}

static void a_partial_table_of_another_router_or_shape_is_begun_anew(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        stop_after(2);
        gr_routes_info info = make_info();
        if (i == 0)
            info.router.lo++;
        else if (i == 1)
            info.scale = 2;
        else
            info.variable_k = true;
        gr_routes_writer *w = open_writer(&info);
        assert_false(gr_routes_writer_resumes(w));
        for (uint64_t window = 0; window < N_WINDOW; window++)
            assert_false(found(w, window));
        gr_routes_writer_close(w);
    }
    stop_after(1);
    gr_routes_info info = make_info();
    snprintf(info.provenance, sizeof info.provenance, "another spelling of the same paths");
    gr_routes_writer *w = open_writer(&info);
    assert_true(gr_routes_writer_resumes(w) && found(w, 0));
    gr_routes_writer_close(w);
}

static void two_runs_do_not_share_a_partial_table(void **state) {
    (void)state;
    gr_routes_info info = make_info();
    gr_routes_writer *w = open_writer(&info), *other;
    write_windows(w, 0, N_WINDOW);
    assert_int_equal(gr_routes_writer_open(&other, PATH_, &info), GR_CONFIG);
    assert_error_names("in use");
    assert_int_equal(gr_routes_writer_commit(w), 0); /* and it is still ours */
    gr_routes_writer_close(w);
    assert_same_file(PATH_, WHOLE);
    unlink(PATH_);
}

static void readers_refuse_an_unfinished_table(void **state) {
    (void)state;
    gr_routes *r;
    stop_after(N_WINDOW);
    assert_int_equal(gr_routes_open(&r, PARTIAL), GR_DATA);
    assert_error_names("expected a finished route table");
    unlink(PARTIAL);
}

static int make_whole(void **state) {
    (void)state;
    write_table(WHOLE);
    return 0;
}

static int remove_all(void **state) {
    (void)state;
    unlink(WHOLE);
    unlink(PARTIAL);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows_that_were_written_are_kept),
        cmocka_unit_test(a_damaged_window_is_written_again),
        cmocka_unit_test(a_file_cut_anywhere_is_taken_up),
        cmocka_unit_test(a_kill_between_header_and_name_is_taken_up),
        cmocka_unit_test(windows_of_other_tokens_are_written_again),
        cmocka_unit_test(a_partial_table_of_another_router_or_shape_is_begun_anew),
        cmocka_unit_test(two_runs_do_not_share_a_partial_table),
        cmocka_unit_test(readers_refuse_an_unfinished_table),
    };
    gr_log_set(GR_LOG_QUIET);
    return cmocka_run_group_tests(tests, make_whole, remove_all);
}
