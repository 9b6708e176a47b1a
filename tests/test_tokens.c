/* Token files: what the writer makes the reader reads, every integer type is read, every lie is refused with 65. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/data.h"

#define PREFIX "test_tokens.pair"

/* A pair built field by field, so that each field can lie. */
typedef struct pair {
    uint8_t idx[512], bin[256];
    size_t n_idx, n_bin;
} pair;

static void put(uint8_t *base, size_t *n, uint64_t v, size_t n_byte) {
    for (size_t i = 0; i < n_byte; i++)
        base[(*n)++] = (uint8_t)(v >> 8 * i);
}

/* Three sequences of 2, 0 and 3 tokens in two documents; values[5] of elem_size bytes each. */
static pair pair_make(uint8_t code, size_t elem_size, const int64_t values[5]) {
    static const uint64_t length[3] = {2, 0, 3}, boundary[3] = {0, 2, 3};
    pair p = {.n_idx = 9};
    memcpy(p.idx, "MMIDIDX\0", 9);
    put(p.idx, &p.n_idx, 1, 8);
    put(p.idx, &p.n_idx, code, 1);
    put(p.idx, &p.n_idx, 3, 8);
    put(p.idx, &p.n_idx, 3, 8);
    for (int i = 0; i < 3; i++)
        put(p.idx, &p.n_idx, length[i], 4);
    for (uint64_t i = 0, sum = 0; i < 3; sum += length[i++] * elem_size)
        put(p.idx, &p.n_idx, sum, 8);
    for (int i = 0; i < 3; i++)
        put(p.idx, &p.n_idx, boundary[i], 8);
    for (int i = 0; i < 5; i++)
        put(p.bin, &p.n_bin, (uint64_t)values[i], elem_size);
    return p;
}

enum {
    AT_VERSION = 9,
    AT_CODE = 17,
    AT_SEQUENCES = 18,
    AT_BOUNDARIES = 26,
    AT_LENGTH = 34,
    AT_OFFSET = 46,
    AT_DOC = 70
};

static void file_write(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void pair_write(const pair *p) {
    file_write(PREFIX ".idx", p->idx, p->n_idx);
    file_write(PREFIX ".bin", p->bin, p->n_bin);
}

static int pair_remove(void **state) {
    (void)state;
    unlink(PREFIX ".idx");
    unlink(PREFIX ".bin");
    return 0;
}

static const int64_t small[5] = {1, 2, 3, 4, 5};

static void refused(const pair *p, const char *path, const char *field) {
    gr_tokens *t;
    pair_write(p);
    assert_int_equal(gr_tokens_open(&t, PREFIX), GR_DATA);
    assert_null(t);
    if (!strstr(gr_error_text(), path) || !strstr(gr_error_text(), field))
        fail_msg("expected \"%s\" and \"%s\" in: %s", path, field, gr_error_text());
}

static void every_integer_type_is_read(void **state) {
    (void)state;
    static const struct {
        uint8_t code;
        size_t elem_size;
        const char *text;
        int64_t values[5];
    } types[] = {
        {1, 1, "u8", {0, 1, 127, 128, 255}},
        {2, 1, "i8", {0, 1, 2, 126, 127}},
        {3, 2, "i16", {0, 1, 255, 256, 32767}},
        {4, 4, "i32", {0, 1, 65536, 151935, 1 << 20}},
        {5, 8, "i64", {0, 1, 65536, 151935, 1 << 20}},
        {8, 2, "u16", {0, 1, 256, 32768, 65535}},
    };
    for (size_t k = 0; k < sizeof types / sizeof types[0]; k++) {
        pair p = pair_make(types[k].code, types[k].elem_size, types[k].values);
        gr_tokens *t;
        uint32_t ids[5];
        pair_write(&p);
        assert_int_equal(gr_tokens_open(&t, PREFIX), GR_OK);
        assert_string_equal(gr_tokens_dtype_text(t), types[k].text);
        assert_int_equal(gr_dtype_size(gr_tokens_dtype(t)), types[k].elem_size);
        assert_int_equal(gr_tokens_count(t), 5);
        assert_int_equal(gr_tokens_documents(t), 2);
        assert_int_equal(gr_tokens_read(t, 0, 5, 1 << 21, ids), GR_OK);
        for (int i = 0; i < 5; i++)
            assert_int_equal(ids[i], types[k].values[i]);
        gr_tokens_close(t);
    }
}

static void float_types_are_refused_by_name(void **state) {
    (void)state;
    pair p = pair_make(6, 8, small);
    refused(&p, ".idx", "f64");
    p.idx[AT_CODE] = 7;
    refused(&p, ".idx", "f32");
    p.idx[AT_CODE] = 0;
    refused(&p, ".idx", "dtype");
    p.idx[AT_CODE] = 9;
    refused(&p, ".idx", "dtype");
}

static void prefix_may_carry_either_suffix(void **state) {
    (void)state;
    pair p = pair_make(1, 1, small);
    pair_write(&p);
    const char *names[] = {PREFIX, PREFIX ".bin", PREFIX ".idx"};
    for (int i = 0; i < 3; i++) {
        gr_tokens *t;
        assert_int_equal(gr_tokens_open(&t, names[i]), GR_OK);
        assert_string_equal(gr_tokens_prefix(t), PREFIX);
        gr_tokens_close(t);
    }
}

static void multimodal_modes_are_tolerated(void **state) {
    (void)state;
    pair p = pair_make(1, 1, small);
    gr_tokens *t;
    p.n_idx += 3;
    pair_write(&p);
    assert_int_equal(gr_tokens_open(&t, PREFIX), GR_OK);
    gr_tokens_close(t);
    p.n_idx -= 1;
    refused(&p, ".idx", "size");
}

static void lying_fields_are_refused(void **state) {
    (void)state;
    const struct {
        size_t at;
        uint8_t value;
        const char *file, *field;
    } lies[] = {
        {0, 'm', ".idx", "magic"},
        {8, 1, ".idx", "magic"},
        {AT_VERSION, 2, ".idx", "version"},
        {AT_SEQUENCES, 4, ".idx", "size"},
        {AT_SEQUENCES + 7, 0x80, ".idx", "size"},
        {AT_SEQUENCES + 7, 0x40, ".idx", "size"}, /* 4 x this wraps to the true size */
        {AT_BOUNDARIES, 4, ".idx", "size"},
        {AT_BOUNDARIES + 7, 0x20, ".idx", "size"}, /* and 8 x this */
        {AT_LENGTH + 3, 0x80, ".idx", "length of sequence 0"},
        {AT_LENGTH, 1, ".idx", "offset of sequence 1"},
        {AT_LENGTH + 8, 2, ".bin", "size"},
        {AT_LENGTH + 8, 4, ".bin", "size"},
        {AT_LENGTH + 2, 0x10, ".bin", "size"},
        {AT_OFFSET, 1, ".idx", "offset of sequence 0"},
        {AT_OFFSET + 23, 0x80, ".idx", "offset of sequence 2"},
        {AT_DOC, 1, ".idx", "document boundary 0"},
        {AT_DOC + 8, 4, ".idx", "document boundary 1"},
        {AT_DOC + 15, 0xff, ".idx", "document boundary 1"},
        {AT_DOC + 16, 1, ".idx", "document boundary 2"},
        {AT_DOC + 16, 2, ".idx", "last document boundary"},
    };
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        pair p = pair_make(8, 2, small);
        p.idx[lies[i].at] = lies[i].value;
        refused(&p, lies[i].file, lies[i].field);
    }
}

static void big_endian_version_is_named(void **state) {
    (void)state;
    pair p = pair_make(1, 1, small);
    p.idx[AT_VERSION] = 0;
    p.idx[AT_VERSION + 7] = 1;
    refused(&p, ".idx", "big-endian");
}

static void every_truncation_is_refused(void **state) {
    (void)state;
    const pair whole = pair_make(4, 4, small);
    for (size_t n = 0; n < whole.n_idx; n++) {
        pair p = whole;
        p.n_idx = n;
        refused(&p, ".idx", "size");
    }
    for (size_t n = 0; n < whole.n_bin; n++) {
        pair p = whole;
        p.n_bin = n;
        refused(&p, ".bin", "size");
    }
    pair longer = whole;
    longer.n_bin++;
    refused(&longer, ".bin", "size");
}

/* Whatever one bit does, the reader ends with 65 or with tokens it can read. */
static void bit_flips_are_refused_or_harmless(void **state) {
    (void)state;
    const pair whole = pair_make(8, 2, small);
    for (size_t bit = 0; bit < 8 * whole.n_idx; bit++) {
        pair p = whole;
        gr_tokens *t;
        uint32_t ids[16];
        p.idx[bit / 8] ^= (uint8_t)(1 << bit % 8);
        pair_write(&p);
        gr_err err = gr_tokens_open(&t, PREFIX);
        if (err) {
            assert_int_equal(err, GR_DATA);
            continue;
        }
        assert_in_range(gr_tokens_count(t), 1, 10);
        assert_int_equal(gr_tokens_read(t, 0, (size_t)gr_tokens_count(t), 1 << 16, ids), GR_OK);
        gr_tokens_close(t);
    }
}

static void empty_and_absent_files_are_refused(void **state) {
    (void)state;
    gr_tokens *t;
    pair p = pair_make(1, 1, small);
    memset(p.idx + AT_LENGTH, 0, AT_DOC - AT_LENGTH);
    p.n_bin = 0;
    refused(&p, ".bin", "at least one token");
    assert_int_equal(unlink(PREFIX ".bin"), 0);
    assert_int_equal(gr_tokens_open(&t, PREFIX), GR_DATA);
    assert_non_null(strstr(gr_error_text(), PREFIX ".bin"));
}

static void foreign_ids_are_refused_with_their_place(void **state) {
    (void)state;
    const int64_t values[5] = {7, 256, -1, 300, INT64_C(1) << 40};
    uint32_t ids[5];
    gr_tokens *t;
    pair p = pair_make(5, 8, values);
    pair_write(&p);
    assert_int_equal(gr_tokens_open(&t, PREFIX), GR_OK);
    assert_int_equal(gr_tokens_read(t, 0, 2, 257, ids), GR_OK);
    assert_int_equal(gr_tokens_read(t, 0, 2, 256, ids), GR_DATA);
    assert_non_null(strstr(gr_error_text(), "token 1: expected an id from 0 to 255"));
    assert_int_equal(gr_tokens_read(t, 1, 3, 257, ids), GR_DATA);
    assert_non_null(strstr(gr_error_text(), "token 2: "));
    assert_non_null(strstr(gr_error_text(), "got -1"));
    assert_int_equal(gr_tokens_read(t, 4, 1, UINT32_MAX, ids), GR_DATA);
    assert_int_equal(gr_tokens_read(t, 5, 0, 1, ids), GR_OK);
    gr_tokens_close(t);
}

static void negative_ids_are_refused_in_every_signed_type(void **state) {
    (void)state;
    static const struct {
        uint8_t code;
        size_t elem_size;
    } types[] = {{2, 1}, {3, 2}, {4, 4}, {5, 8}};
    const int64_t values[5] = {7, -2, 0, 0, 0};
    for (size_t k = 0; k < sizeof types / sizeof types[0]; k++) {
        pair p = pair_make(types[k].code, types[k].elem_size, values);
        uint32_t ids[5];
        gr_tokens *t;
        pair_write(&p);
        assert_int_equal(gr_tokens_open(&t, PREFIX), GR_OK);
        assert_int_equal(gr_tokens_read(t, 0, 5, UINT32_MAX, ids), GR_DATA);
        assert_non_null(strstr(gr_error_text(), "got -2"));
        gr_tokens_close(t);
    }
}

static void written_documents_are_read_back(uint32_t n_vocab, const char *dtype_text) {
    enum { N_DOCUMENT = 3000, LONGEST = 9000 }; /* more than the writer's first table and its chunk */
    static uint32_t ids[LONGEST], found[LONGEST];
    gr_tokens_writer *w;
    gr_tokens *t;
    uint64_t n_token = 0;
    assert_int_equal(gr_tokens_writer_open(&w, PREFIX, n_vocab), GR_OK);
    for (uint32_t d = 0; d < N_DOCUMENT; d++) {
        size_t n = d == 5 ? LONGEST : d % 7;
        for (size_t i = 0; i < n; i++)
            ids[i] = gr_random_below(1, d, i, n_vocab);
        if (d % 2) {
            assert_int_equal(gr_tokens_writer_document(w, ids, n), GR_OK);
        } else {
            assert_int_equal(gr_tokens_writer_append(w, ids, n / 2), GR_OK);
            assert_int_equal(gr_tokens_writer_append(w, ids + n / 2, n - n / 2), GR_OK);
            assert_int_equal(gr_tokens_writer_end(w), GR_OK);
        }
        n_token += n;
    }
    assert_int_equal(gr_tokens_writer_commit(w), GR_OK);
    gr_tokens_writer_close(w);

    assert_int_equal(gr_tokens_open(&t, PREFIX), GR_OK);
    assert_string_equal(gr_tokens_dtype_text(t), dtype_text);
    assert_int_equal(gr_tokens_documents(t), N_DOCUMENT);
    assert_int_equal(gr_tokens_count(t), n_token);
    uint64_t at = 0;
    for (uint32_t d = 0; d < N_DOCUMENT; d++) {
        size_t n = d == 5 ? LONGEST : d % 7;
        assert_int_equal(gr_tokens_read(t, at, n, n_vocab, found), GR_OK);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(found[i], gr_random_below(1, d, i, n_vocab));
        at += n;
    }
    gr_tokens_close(t);
}

static void writer_takes_u16_below_65500(void **state) {
    (void)state;
    written_documents_are_read_back(65499, "u16");
}

static void writer_takes_i32_from_65500(void **state) {
    (void)state;
    written_documents_are_read_back(65500, "i32");
}

static void uncommitted_pair_leaves_the_old_one(void **state) {
    (void)state;
    pair p = pair_make(1, 1, small);
    const uint32_t id = 9;
    gr_tokens_writer *w;
    gr_tokens *t;
    pair_write(&p);
    assert_int_equal(gr_tokens_writer_open(&w, PREFIX, 10), GR_OK);
    assert_int_equal(gr_tokens_writer_document(w, &id, 1), GR_OK);
    gr_tokens_writer_close(w);
    assert_int_equal(gr_tokens_open(&t, PREFIX), GR_OK);
    assert_int_equal(gr_tokens_count(t), 5);
    gr_tokens_close(t);
    assert_int_equal(system("ls | grep -q '^" PREFIX ".*tmp'"), 256);
}

static void writer_without_a_folder_fails_with_74(void **state) {
    (void)state;
    gr_tokens_writer *w;
    assert_int_equal(gr_tokens_writer_open(&w, "test_tokens.absent/x", 10), GR_STORAGE);
    assert_null(w);
}

static void window_count_drops_the_tail(void **state) {
    (void)state;
    assert_int_equal(gr_window_count(0, 4), 0);
    assert_int_equal(gr_window_count(4, 4), 0);
    assert_int_equal(gr_window_count(5, 4), 1);
    assert_int_equal(gr_window_count(8, 4), 1);
    assert_int_equal(gr_window_count(9, 4), 2);
    assert_int_equal(gr_window_count(UINT64_MAX, 1), UINT64_MAX - 1);
}

static void windows_overlap_by_one_token(void **state) {
    (void)state;
    pair p = pair_make(1, 1, small);
    gr_tokens *t;
    uint32_t a[3], b[3];
    pair_write(&p);
    assert_int_equal(gr_tokens_open(&t, PREFIX), GR_OK);
    assert_int_equal(gr_window_count(gr_tokens_count(t), 2), 2);
    assert_int_equal(gr_window_read(t, 0, 2, 6, a), GR_OK);
    assert_int_equal(gr_window_read(t, 1, 2, 6, b), GR_OK);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(a[i], 1 + i);
        assert_int_equal(b[i], 3 + i);
    }
    assert_int_equal(gr_window_read(t, 1, 2, 5, b), GR_DATA);
    gr_tokens_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(every_integer_type_is_read, pair_remove),
        cmocka_unit_test_teardown(float_types_are_refused_by_name, pair_remove),
        cmocka_unit_test_teardown(prefix_may_carry_either_suffix, pair_remove),
        cmocka_unit_test_teardown(multimodal_modes_are_tolerated, pair_remove),
        cmocka_unit_test_teardown(lying_fields_are_refused, pair_remove),
        cmocka_unit_test_teardown(big_endian_version_is_named, pair_remove),
        cmocka_unit_test_teardown(every_truncation_is_refused, pair_remove),
        cmocka_unit_test_teardown(bit_flips_are_refused_or_harmless, pair_remove),
        cmocka_unit_test_teardown(empty_and_absent_files_are_refused, pair_remove),
        cmocka_unit_test_teardown(foreign_ids_are_refused_with_their_place, pair_remove),
        cmocka_unit_test_teardown(negative_ids_are_refused_in_every_signed_type, pair_remove),
        cmocka_unit_test_teardown(writer_takes_u16_below_65500, pair_remove),
        cmocka_unit_test_teardown(writer_takes_i32_from_65500, pair_remove),
        cmocka_unit_test_teardown(uncommitted_pair_leaves_the_old_one, pair_remove),
        cmocka_unit_test(writer_without_a_folder_fails_with_74),
        cmocka_unit_test(window_count_drops_the_tail),
        cmocka_unit_test_teardown(windows_overlap_by_one_token, pair_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
