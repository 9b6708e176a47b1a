/* safetensors: what is written is read back; every truncated, flipped or lying header is refused with 66. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/data.h"

#define PATH "test_safetensors.file"

static int file_remove(void **state) {
    (void)state;
    unlink(PATH);
    return 0;
}

static void bytes_write(const void *data, size_t n) {
    FILE *f = fopen(PATH, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* A file of this header and n_data zero bytes; `length` replaces the true header length unless 0. */
static void file_make(const char *header, uint64_t length, size_t n_data) {
    static uint8_t file[1 << 16];
    size_t n = strlen(header);
    assert_true(8 + n + n_data <= sizeof file);
    memset(file, 0, sizeof file);
    gr_store_u64(file, length ? length : n);
    memcpy(file + 8, header, n);
    bytes_write(file, 8 + n + n_data);
}

static void refused(const char *text) {
    gr_safetensors *s;
    assert_int_equal(gr_safetensors_open(&s, PATH), GR_CHECKPOINT);
    assert_null(s);
    if (!strstr(gr_error_text(), PATH) || !strstr(gr_error_text(), text))
        fail_msg("expected \"%s\" in: %s", text, gr_error_text());
}

static gr_safetensors *accepted(void) {
    gr_safetensors *s;
    if (gr_safetensors_open(&s, PATH))
        fail_msg("%s", gr_error_text());
    return s;
}

/* ---------------------------------------------------------------- round trip */

static const gr_tensor list[] = {
    {.name = "model.embed_tokens.weight", .dtype = GR_F32, .n_dim = 2, .dim = {3, 5}},
    {.name = "empty", .dtype = GR_F64, .n_dim = 3, .dim = {2, 0, 7}},
    {.name = "also empty", .dtype = GR_U8, .n_dim = 1, .dim = {0}},
    {.name = "scalar", .dtype = GR_I64, .n_dim = 0},
    {.name = "bytes \"quoted\\\"", .dtype = GR_U8, .n_dim = 8, .dim = {1, 1, 1, 1, 1, 1, 1, 3}},
    {.name = "half", .dtype = GR_BF16, .n_dim = 1, .dim = {4}},
};
enum { N_TENSOR = sizeof list / sizeof list[0], N_BYTE = 60 + 8 + 3 + 8 };
static const gr_metadata metadata[] = {{"format", "pt"}, {"note", "a \"quoted\"\nline \xc3\xa9"}};

static void list_write(void) {
    gr_safetensors_writer *w;
    assert_int_equal(gr_safetensors_writer_open(&w, PATH, list, N_TENSOR, metadata, 2), GR_OK);
    for (uint8_t i = 0; i < N_BYTE; i++)
        assert_int_equal(gr_safetensors_writer_append(w, &i, 1), GR_OK);
    assert_int_equal(gr_safetensors_writer_commit(w), GR_OK);
    gr_safetensors_writer_close(w);
}

static void written_tensors_are_read_back(void **state) {
    (void)state;
    uint8_t expected = 0;
    list_write();
    gr_safetensors *s = accepted();
    assert_int_equal(gr_safetensors_count(s), N_TENSOR);
    for (int i = 0; i < N_TENSOR; i++) {
        const gr_tensor *t = gr_safetensors_find(s, list[i].name);
        assert_non_null(t);
        assert_string_equal(t->name, list[i].name);
        assert_int_equal(t->dtype, list[i].dtype);
        assert_int_equal(t->n_dim, list[i].n_dim);
        assert_memory_equal(t->dim, list[i].dim, sizeof t->dim);
        for (size_t b = 0; b < t->n_byte; b++)
            assert_int_equal(t->data[b], expected++);
    }
    assert_int_equal(expected, N_BYTE);
    assert_null(gr_safetensors_find(s, "absent"));
    assert_null(gr_safetensors_find(s, "__metadata__"));
    assert_string_equal(gr_safetensors_metadata(s, "format"), "pt");
    assert_string_equal(gr_safetensors_metadata(s, "note"), metadata[1].value);
    assert_null(gr_safetensors_metadata(s, "absent"));
    gr_safetensors_close(s);
}

static void tensors_come_in_file_order(void **state) {
    (void)state;
    list_write();
    gr_safetensors *s = accepted();
    const uint8_t *end = gr_safetensors_at(s, 0)->data;
    for (int i = 0; i < N_TENSOR; i++) {
        const gr_tensor *t = gr_safetensors_at(s, i);
        assert_ptr_equal(t->data, end);
        end += t->n_byte;
    }
    gr_safetensors_close(s);
}

static void data_begin_on_eight_bytes(void **state) {
    (void)state;
    char name[16] = "";
    for (size_t n = 1; n <= 9; n++) {
        name[n - 1] = 'x';
        const gr_tensor t = {.name = name, .dtype = GR_U8, .n_dim = 1, .dim = {0}};
        gr_safetensors_writer *w;
        gr_map m;
        assert_int_equal(gr_safetensors_writer_open(&w, PATH, &t, 1, NULL, 0), GR_OK);
        assert_int_equal(gr_safetensors_writer_commit(w), GR_OK);
        gr_safetensors_writer_close(w);
        assert_int_equal(gr_map_open(&m, PATH, GR_DATA), GR_OK);
        assert_int_equal(m.n % 8, 0);
        assert_int_equal(gr_load_u64(m.p), m.n - 8);
        assert_int_equal(m.p[8], '{');
        gr_map_close(&m);
        gr_safetensors_close(accepted());
    }
}

static void nothing_appears_without_commit(void **state) {
    (void)state;
    gr_safetensors_writer *w;
    assert_int_equal(gr_safetensors_writer_open(&w, PATH, list, N_TENSOR, metadata, 2), GR_OK);
    assert_int_equal(gr_safetensors_writer_append(w, "x", 1), GR_OK);
    gr_safetensors_writer_close(w);
    assert_false(gr_path_exists(PATH));
    assert_int_equal(system("ls | grep -q '^" PATH "'"), 256);
}

static void files_without_tensors_are_legal(void **state) {
    (void)state;
    file_make("{}", 0, 0);
    gr_safetensors *s = accepted();
    assert_int_equal(gr_safetensors_count(s), 0);
    assert_null(gr_safetensors_find(s, "x"));
    gr_safetensors_close(s);
    gr_safetensors_writer *w;
    assert_int_equal(gr_safetensors_writer_open(&w, PATH, NULL, 0, metadata, 2), GR_OK);
    assert_int_equal(gr_safetensors_writer_commit(w), GR_OK);
    gr_safetensors_writer_close(w);
    s = accepted();
    assert_string_equal(gr_safetensors_metadata(s, "format"), "pt");
    gr_safetensors_close(s);
}

static void header_order_need_not_be_data_order(void **state) {
    (void)state;
    file_make("{\"z\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]},"
              "\"b\":{\"data_offsets\":[2,6],\"shape\":[1],\"dtype\":\"F32\"},"
              "\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}   ",
        0, 6);
    gr_safetensors *s = accepted();
    assert_string_equal(gr_safetensors_at(s, 0)->name, "a");
    assert_string_equal(gr_safetensors_at(s, 1)->name, "z");
    assert_string_equal(gr_safetensors_at(s, 2)->name, "b");
    gr_safetensors_close(s);
}

/* ---------------------------------------------------------------- lies */

static void lying_header_lengths_are_refused(void **state) {
    (void)state;
    static const uint64_t lengths[] = {1 << 20, 100000001, INT64_MAX, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        file_make("{}", lengths[i], 0);
        refused("header length");
    }
    file_make("{}", 1, 0);
    refused("header");
    bytes_write("{}\0\0\0\0\0", 7);
    refused("at least 8 bytes");
    bytes_write("\2\0\0\0\0\0\0\0[]", 10);
    refused("JSON object");
    assert_int_equal(unlink(PATH), 0);
    refused(""); /* absent */
}

static void lying_headers_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t n_data;
        const char *text;
    } lies[] = {
        {"{\"a\":1}", 0, "object of dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "object of dtype"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "F4"},
        {"{\"a\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "f32"},
        {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":4,\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "at most 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0,-1],\"data_offsets\":[0,0]}}", 0, "whole sizes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1e0],\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[18446744073709551617],\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[\"1\"],\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]}}", 0, "below 2^64"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, "below 2^64 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.0]}}", 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "range"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "range"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 4, "range"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,3]}}", 4, "expected 4 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1,5]}}", 5, "hole"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5, "size"},
        {"{}", 1, "size"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
            3, "overlap"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
            2, "overlap"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[1,1]}}",
            2, "overlap"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}",
            4, "duplicate"},
        {"{\"__metadata__\":1}", 0, "__metadata__"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__"},
        {"{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}", 0, "__metadata__"},
        {"{\"__metadata__\":{\"a\":[[[[[[\"b\"]]]]]]}}", 0, "deep"},
        {"{\"\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "name"},
        {"{\"a\\u0007\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "name"},
        {"{\"\\u00e9\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "name"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}} x", 0, ""},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", 0, ""},
    };
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        file_make(lies[i].header, 0, lies[i].n_data);
        refused(lies[i].text);
    }
}

static void names_end_at_127_bytes(void **state) {
    (void)state;
    char name[129], header[256];
    memset(name, 'n', 128);
    name[128] = 0;
    snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", name);
    file_make(header, 0, 0);
    refused("name");
    snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", name + 1);
    file_make(header, 0, 0);
    gr_safetensors_close(accepted());
}

static void every_truncation_is_refused(void **state) {
    (void)state;
    uint8_t copy[2048];
    gr_map m;
    list_write();
    assert_int_equal(gr_map_open(&m, PATH, GR_DATA), GR_OK);
    size_t whole = m.n;
    assert_true(whole < sizeof copy);
    memcpy(copy, m.p, whole);
    gr_map_close(&m);
    for (size_t n = 0; n < whole; n++) {
        bytes_write(copy, n);
        refused("");
    }
    copy[whole] = 0;
    bytes_write(copy, whole + 1);
    refused("size");
}

/* A flip ends with 66, or with a file whose tensors still tile its data exactly. */
static void bit_flips_are_refused_or_harmless(void **state) {
    (void)state;
    uint8_t copy[2048];
    gr_map m;
    list_write();
    assert_int_equal(gr_map_open(&m, PATH, GR_DATA), GR_OK);
    size_t whole = m.n, n_header = (size_t)gr_load_u64(m.p);
    memcpy(copy, m.p, whole);
    gr_map_close(&m);
    for (size_t bit = 0; bit < 8 * (8 + n_header); bit++) {
        gr_safetensors *s;
        copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
        bytes_write(copy, whole);
        copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
        gr_err err = gr_safetensors_open(&s, PATH);
        if (err) {
            assert_int_equal(err, GR_CHECKPOINT);
            continue;
        }
        size_t n_byte = 0;
        for (int i = 0; i < gr_safetensors_count(s); i++) {
            const gr_tensor *t = gr_safetensors_at(s, i);
            for (size_t b = 0; b < t->n_byte; b++)
                assert_int_equal(t->data[b], n_byte++);
        }
        assert_int_equal(n_byte, N_BYTE);
        gr_safetensors_close(s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(written_tensors_are_read_back, file_remove),
        cmocka_unit_test_teardown(tensors_come_in_file_order, file_remove),
        cmocka_unit_test_teardown(data_begin_on_eight_bytes, file_remove),
        cmocka_unit_test_teardown(nothing_appears_without_commit, file_remove),
        cmocka_unit_test_teardown(files_without_tensors_are_legal, file_remove),
        cmocka_unit_test_teardown(header_order_need_not_be_data_order, file_remove),
        cmocka_unit_test_teardown(lying_header_lengths_are_refused, file_remove),
        cmocka_unit_test_teardown(lying_headers_are_refused, file_remove),
        cmocka_unit_test_teardown(names_end_at_127_bytes, file_remove),
        cmocka_unit_test_teardown(every_truncation_is_refused, file_remove),
        cmocka_unit_test_teardown(bit_flips_are_refused_or_harmless, file_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
