/* Route tables: what is written is read back; what is damaged, hostile or of other tokens is refused by name. */
#include "routes_fixture.h"

static void test_what_is_written_is_read_back(void **state) {
    (void)state;
    const char *path = "routes_roundtrip.tmp";
    write_table(path);
    gr_routes *r;
    assert_int_equal(gr_routes_open(&r, path), 0);
    const gr_routes_info *info = gr_routes_get(r);
    assert_int_equal(info->E, E);
    assert_int_equal(info->K, K);
    assert_int_equal(info->T, T);
    assert_true(info->scale == 1.0f);
    assert_false(info->variable_k);
    assert_int_equal(info->n_window, N_WINDOW);
    assert_int_equal(info->n_token, N_TOKEN);
    assert_int_equal(info->router.lo, 7);
    assert_int_equal(info->router.hi, 9);
    assert_string_equal(info->provenance, "a test");
    assert_string_equal(gr_routes_path(r), path);
    for (uint64_t w = 0; w < N_WINDOW; w++)
        assert_int_equal(read_window(r, w), 0);
    assert_int_equal(gr_routes_check_hash(r), 0);
    uint32_t counts[E], total = 0;
    gr_routes_histogram(r, 1, counts);
    for (int e = 0; e < E; e++)
        total += counts[e];
    assert_int_equal(total, T * K);
    gr_routes_close(r);
    unlink(path);
}

static void test_the_file_has_exactly_the_described_bytes(void **state) {
    (void)state;
    const char *path = "routes_bytes.tmp";
    write_table(path);
    size_t n;
    uint8_t *file = load(path, &n);
    assert_int_equal(n, FILE_BYTES);
    uint64_t hashes[2 * N_WINDOW];
    for (size_t w = 0; w < N_WINDOW; w++)
        memcpy(hashes + 2 * w, file + RECORDS_AT + w * RECORD_BYTES + HASHES_AT, 16);
    assert_int_equal(gr_load_u64(file + 80), gr_hash64(hashes, sizeof hashes));
    uint32_t tokens[T + 1];
    uint16_t ids[T * K];
    float gates[T * K];
    make_window(2, tokens, ids, gates);
    const uint8_t *record = file + RECORDS_AT + 2 * RECORD_BYTES;
    assert_int_equal(record[3], ids[3]);
    assert_int_equal(gr_load_u16(record + IDS_BYTES), 0x3f40); /* 0.75 */
    assert_int_equal(gr_load_u64(record + HASHES_AT + 8), gr_hash64(tokens, sizeof tokens));
    free(file);
    unlink(path);
}

static void test_more_than_256_experts_take_two_byte_ids(void **state) {
    (void)state;
    const char *path = "routes_wide.tmp";
    gr_routes_info info = make_info();
    info.E = 300;
    gr_routes_writer *w;
    uint32_t tokens[T + 1];
    uint16_t ids[T * K], got_ids[T * K];
    float gates[T * K], got_gates[T * K];
    assert_int_equal(gr_routes_writer_open(&w, path, &info), 0);
    for (uint64_t i = 0; i < N_WINDOW; i++) {
        make_window(i, tokens, ids, gates);
        ids[1] = 299;
        assert_int_equal(gr_routes_writer_window(w, i, tokens, ids, gates), 0);
    }
    assert_int_equal(gr_routes_writer_commit(w), 0);
    gr_routes_writer_close(w);
    gr_routes *r;
    assert_int_equal(gr_routes_open(&r, path), 0);
    assert_int_equal(gr_routes_read(r, 2, tokens, got_ids, got_gates), 0);
    assert_memory_equal(ids, got_ids, sizeof ids);
    gr_routes_close(r);
    unlink(path);
}

static void test_every_flipped_bit_is_detected(void **state) {
    (void)state;
    const char *path = "routes_flip.tmp";
    write_table(path);
    assert_int_equal(read_all(path), 0);
    size_t n;
    uint8_t *file = load(path, &n);
    for (size_t bit = 0; bit < 8 * n; bit++) {
        file[bit / 8] ^= (uint8_t)(1u << bit % 8);
        store(path, file, n);
        if (read_all(path) != GR_DATA)
            fail_msg("bit %zu of byte %zu was not noticed", bit % 8, bit / 8);
        assert_error_names(path);
        file[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    free(file);
    unlink(path);
}

static void test_every_wrong_length_is_refused_at_open(void **state) {
    (void)state;
    const char *path = "routes_length.tmp";
    write_table(path);
    size_t n;
    uint8_t *file = load(path, &n);
    file = realloc(file, n + 1);
    assert_non_null(file);
    file[n] = 0;
    for (size_t length = 0; length <= n + 1; length++) {
        gr_routes *r;
        store(path, file, length);
        assert_int_equal(gr_routes_open(&r, path), length == n ? 0 : GR_DATA);
        gr_routes_close(r);
    }
    free(file);
    unlink(path);
}

typedef struct header_lie {
    size_t at;
    uint32_t value;
    const char *named;
} header_lie;

static void test_header_lies_with_a_good_checksum_are_refused(void **state) {
    (void)state;
    const char *path = "routes_lie.tmp";
    static const header_lie lies[] = {{8, 2, "version"}, {12, 256, "header bytes"}, {16, 0, "E (experts)"},
        {16, 5000, "E (experts)"}, {20, 0, "K (experts per token)"}, {20, 9, "K (experts per token)"}, {24, 0, "T "},
        {24, 5, "windows"}, {28, 0x7fc00000, "scale"}, {28, 0xbf800000, "scale"}, {32, 2, "variable_k"},
        {36, GR_N_MASK, "mask"}, {40, GR_N_POSITION, "position"}, {44, 1, "reserved byte 44"}, {48, 4, "windows"},
        {52, 0x80000000, "windows"}, {56, 100, "windows"}, {60, 0xffffffff, "windows"}, {88, 7, "printable"},
        {400, 1, "reserved byte 400"}};
    write_table(path);
    size_t n;
    uint8_t *good = load(path, &n), *bad = malloc(n);
    assert_non_null(bad);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        gr_routes *r;
        memcpy(bad, good, n);
        gr_store_u32(bad + lies[i].at, lies[i].value);
        fix_header(bad);
        store(path, bad, n);
        assert_int_equal(gr_routes_open(&r, path), GR_DATA);
        assert_error_names(lies[i].named);
        assert_error_names(path);
    }
    /* Sizes that overflow together must not pass for a small file. */
    memcpy(bad, good, n);
    gr_store_u64(bad + 56, UINT64_MAX);
    gr_store_u64(bad + 48, (UINT64_MAX - 1) / T);
    fix_header(bad);
    store(path, bad, n);
    gr_routes *r;
    assert_int_equal(gr_routes_open(&r, path), GR_DATA);
    assert_error_names("2^64");
    free(bad);
    free(good);
    unlink(path);
}

typedef struct hostile_row {
    size_t at;      /* in the record */
    uint16_t value; /* one byte for ids, two for gates */
    const char *named[3];
} hostile_row;

static void test_hostile_rows_are_named_by_window_position_and_value(void **state) {
    (void)state;
    enum { GATE = IDS_BYTES };
    const char *path = "routes_hostile.tmp";
    /* Window 1, position 2 has ids 3 and 6 (slots 4 and 5) and gates 0.75 and 0.25. */
    static const hostile_row rows[] = {
        {5, 3, {"position 2, slot 1", "ascending", "got 3 after 3"}},
        {5, 1, {"position 2, slot 1", "ascending", "got 1 after 3"}},
        {5, 8, {"position 2, slot 1", "below 8", "got 8"}},
        {5, 255, {"position 2, slot 1", "below 8", "got 255"}},
        {GATE + 8, 0x7fc0, {"position 2, slot 0", "finite", "nan"}},
        {GATE + 8, 0x7f80, {"position 2, slot 0", "finite", "inf"}},
        {GATE + 10, 0xbe80, {"position 2, slot 1", "finite", "-0.25"}},
        {GATE + 10, 0x0000, {"position 2, slot 1", "> 0", "got 0"}},
        {GATE + 10, 0x3f00, {"position 2", "sum to", "1.25"}},
        {GATE + 8, 0x3f3e, {"position 2", "sum to", "0.9921875"}},
    };
    write_table(path);
    size_t n;
    uint8_t *good = load(path, &n), *bad = malloc(n);
    assert_non_null(bad);
    assert_int_equal(good[RECORDS_AT + RECORD_BYTES + 4], 3);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        memcpy(bad, good, n);
        uint8_t *p = bad + RECORDS_AT + RECORD_BYTES + rows[i].at;
        if (rows[i].at < GATE)
            *p = (uint8_t)rows[i].value;
        else
            gr_store_u16(p, rows[i].value);
        fix_record(bad, 1);
        store(path, bad, n);
        assert_int_equal(read_all(path), GR_DATA);
        assert_error_names(path);
        assert_error_names("window 1");
        for (int part = 0; part < 3; part++)
            assert_error_names(rows[i].named[part]);
        char offset[32];
        size_t at = strstr(rows[i].named[1], "sum") ? GATE + 8 : rows[i].at;
        snprintf(offset, sizeof offset, "(byte %zu)", RECORDS_AT + RECORD_BYTES + at);
        assert_error_names(offset);
    }
    free(bad);
    free(good);
    unlink(path);
}

static void test_sums_are_accepted_up_to_the_tolerance_and_no_further(void **state) {
    (void)state;
    gr_routes_info info = make_info();
    info.T = 1;
    const uint16_t ids[K] = {0, 1};
    uint32_t counts[E];
    float gates[K] = {0.75f, 0.25390625f}; /* 1 + 1/256 */
    assert_int_equal(gr_routes_check_rows(&info, "here", ids, gates, counts), 0);
    gates[1] = 0.24609375f; /* 1 - 1/256 */
    assert_int_equal(gr_routes_check_rows(&info, "here", ids, gates, counts), 0);
    gates[1] = nextafterf(0.24609375f, 0.0f);
    assert_int_equal(gr_routes_check_rows(&info, "here", ids, gates, counts), GR_DATA);
    assert_error_names("here, position 0");
}

static void test_unused_slots_need_variable_k_and_are_not_counted(void **state) {
    (void)state;
    gr_routes_info info = make_info();
    info.T = 1;
    const uint16_t ids[K] = {2, 5};
    float gates[K] = {0.5f, 0.0f};
    uint32_t counts[E];
    assert_int_equal(gr_routes_check_rows(&info, "t", ids, gates, counts), GR_DATA);
    info.variable_k = true;
    assert_int_equal(gr_routes_check_rows(&info, "t", ids, gates, counts), 0);
    assert_int_equal(counts[2], 1);
    assert_int_equal(counts[5], 0);
    gates[0] = 0.0f;
    assert_int_equal(gr_routes_check_rows(&info, "t", ids, gates, counts), GR_DATA);
    assert_error_names("sum");
    gates[0] = 0.5f;
    gates[1] = -0.0f;
    assert_int_equal(gr_routes_check_rows(&info, "t", ids, gates, counts), GR_DATA);
    gates[1] = 0.75f;
    assert_int_equal(gr_routes_check_rows(&info, "t", ids, gates, counts), GR_DATA);
    assert_error_names("at most");
}

static void test_other_tokens_are_refused(void **state) {
    (void)state;
    const char *path = "routes_tokens.tmp";
    uint32_t tokens[T + 1];
    uint16_t ids[T * K];
    float gates[T * K];
    gr_routes *r;
    write_table(path);
    assert_int_equal(gr_routes_open(&r, path), 0);
    make_window(1, tokens, ids, gates);
    tokens[T] ^= 1; /* the label alone */
    assert_int_equal(gr_routes_read(r, 1, tokens, ids, gates), GR_DATA);
    assert_error_names("window 1");
    assert_error_names("not a pair");
    make_window(2, tokens, ids, gates);
    assert_int_equal(gr_routes_read(r, 1, tokens, ids, gates), GR_DATA);
    assert_int_equal(gr_routes_read(r, 1, NULL, ids, gates), 0); /* nothing to compare */
    gr_routes_close(r);
    unlink(path);
}

static void test_a_lying_histogram_is_caught_under_a_good_hash(void **state) {
    (void)state;
    const char *path = "routes_histogram.tmp";
    write_table(path);
    size_t n;
    uint8_t *file = load(path, &n), *count = file + HISTOGRAMS_AT + 4 * E + 4 * 3;
    gr_store_u32(count, gr_load_u32(count) + 1);
    fix_record(file, 1);
    store(path, file, n);
    assert_int_equal(read_all(path), GR_DATA);
    assert_error_names("window 1, expert 3");
    free(file);
    unlink(path);
}

static void test_records_in_another_order_are_not_the_named_table(void **state) {
    (void)state;
    const char *path = "routes_order.tmp";
    write_table(path);
    size_t n;
    uint8_t *file = load(path, &n), kept[RECORD_BYTES];
    uint8_t *a = file + RECORDS_AT, *b = a + RECORD_BYTES;
    memcpy(kept, a, RECORD_BYTES);
    memcpy(a, b, RECORD_BYTES);
    memcpy(b, kept, RECORD_BYTES);
    store(path, file, n);
    gr_routes *r;
    assert_int_equal(gr_routes_open(&r, path), 0);
    assert_int_equal(gr_routes_check_hash(r), GR_DATA);
    assert_int_equal(read_window(r, 0), GR_DATA);
    gr_routes_close(r);
    free(file);
    unlink(path);
}

static void test_two_writers_make_the_bytes_of_one(void **state) {
    (void)state;
    const char *one = "routes_one.tmp", *two = "routes_two.tmp";
    gr_routes_info info = make_info();
    write_table(one);
    gr_routes_writer *creator, *joiner;
    assert_int_equal(gr_routes_writer_open(&creator, two, &info), 0);
    assert_int_equal(gr_routes_writer_join(&joiner, gr_routes_writer_temporary(creator), &info), 0);
    write_windows(joiner, 2, 3);
    write_windows(creator, 0, 2);
    assert_int_equal(gr_routes_writer_sync(joiner), 0);
    gr_routes_writer_close(joiner);
    assert_false(gr_path_exists(two));
    assert_int_equal(gr_routes_writer_commit(creator), 0);
    gr_routes_writer_close(creator);
    size_t n_one, n_two;
    uint8_t *bytes_one = load(one, &n_one), *bytes_two = load(two, &n_two);
    assert_int_equal(n_one, n_two);
    assert_memory_equal(bytes_one, bytes_two, n_one);
    free(bytes_one);
    free(bytes_two);
    unlink(one);
    unlink(two);
}

static void test_a_table_without_every_window_gets_no_name(void **state) {
    (void)state;
    const char *path = "routes_partial.tmp";
    unlink(path);
    for (uint64_t missing = 0; missing < N_WINDOW; missing++) {
        gr_routes_info info = make_info();
        gr_routes_writer *w;
        assert_int_equal(gr_routes_writer_open(&w, path, &info), 0);
        write_windows(w, 0, missing);
        write_windows(w, missing + 1, N_WINDOW);
        assert_int_equal(gr_routes_writer_commit(w), GR_BUG);
        char *temporary = strdup(gr_routes_writer_temporary(w));
        gr_routes_writer_close(w);
        assert_false(gr_path_exists(path));
        assert_false(gr_path_exists(temporary));
        free(temporary);
    }
}

static void test_the_writer_refuses_bad_rows_and_unrounded_gates(void **state) {
    (void)state;
    const char *path = "routes_refuse.tmp";
    gr_routes_info info = make_info();
    gr_routes_writer *w;
    uint32_t tokens[T + 1];
    uint16_t ids[T * K];
    float gates[T * K];
    assert_int_equal(gr_routes_writer_open(&w, path, &info), 0);
    make_window(0, tokens, ids, gates);
    ids[1] = E;
    assert_int_equal(gr_routes_writer_window(w, 0, tokens, ids, gates), GR_DATA);
    assert_error_names("window 0, position 0, slot 1");
    make_window(0, tokens, ids, gates);
    gates[2] = nextafterf(0.75f, 1.0f);
    assert_int_equal(gr_routes_writer_window(w, 0, tokens, ids, gates), GR_BUG);
    assert_error_names("position 1, slot 0");
    gr_routes_writer_close(w);
    info.n_token = T;
    info.n_window = 0;
    assert_int_equal(gr_routes_writer_open(&w, path, &info), GR_DATA);
    assert_error_names("at least T+1");
    assert_false(gr_path_exists(path));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_written_is_read_back),
        cmocka_unit_test(test_the_file_has_exactly_the_described_bytes),
        cmocka_unit_test(test_more_than_256_experts_take_two_byte_ids),
        cmocka_unit_test(test_every_flipped_bit_is_detected),
        cmocka_unit_test(test_every_wrong_length_is_refused_at_open),
        cmocka_unit_test(test_header_lies_with_a_good_checksum_are_refused),
        cmocka_unit_test(test_hostile_rows_are_named_by_window_position_and_value),
        cmocka_unit_test(test_sums_are_accepted_up_to_the_tolerance_and_no_further),
        cmocka_unit_test(test_unused_slots_need_variable_k_and_are_not_counted),
        cmocka_unit_test(test_other_tokens_are_refused),
        cmocka_unit_test(test_a_lying_histogram_is_caught_under_a_good_hash),
        cmocka_unit_test(test_records_in_another_order_are_not_the_named_table),
        cmocka_unit_test(test_two_writers_make_the_bytes_of_one),
        cmocka_unit_test(test_a_table_without_every_window_gets_no_name),
        cmocka_unit_test(test_the_writer_refuses_bad_rows_and_unrounded_gates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
