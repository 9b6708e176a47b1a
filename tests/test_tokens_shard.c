/* llm.c shards: both kinds are read, a pair beside them wins, every lie of the header is refused with 65. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "grouter/data.h"

#define PREFIX "test_tokens_shard.file"

enum { HEADER = 1024, AT_MAGIC = 0, AT_VERSION = 4, AT_COUNT = 8, N_TOKEN = 5 };

typedef struct shard {
    uint8_t byte[HEADER + 64];
    size_t n_byte;
} shard;

static const uint32_t small[N_TOKEN] = {0, 1, 256, 32768, 65535};
static const uint32_t wide[N_TOKEN] = {0, 65536, 128255, 151935, UINT32_C(1) << 31};

static shard shard_make(uint32_t magic, uint32_t version, size_t elem_size, const uint32_t *ids) {
    shard s = {.n_byte = HEADER + N_TOKEN * elem_size};
    gr_store_u32(s.byte + AT_MAGIC, magic);
    gr_store_u32(s.byte + AT_VERSION, version);
    gr_store_u32(s.byte + AT_COUNT, N_TOKEN);
    for (size_t i = 0; i < N_TOKEN; i++)
        for (size_t k = 0; k < elem_size; k++)
            s.byte[HEADER + i * elem_size + k] = (uint8_t)(ids[i] >> 8 * k);
    return s;
}

static shard shard_small(void) {
    return shard_make(20240520, 1, 2, small);
}

static shard shard_wide(void) {
    return shard_make(20240801, 7, 4, wide);
}

static void file_write(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static int files_remove(void **state) {
    (void)state;
    unlink(PREFIX ".bin");
    unlink(PREFIX ".idx");
    return 0;
}

static void refused(const shard *s, const char *words) {
    gr_tokens *t;
    file_write(PREFIX ".bin", s->byte, s->n_byte);
    assert_int_equal(gr_tokens_open(&t, PREFIX), GR_DATA);
    assert_null(t);
    if (!strstr(gr_error_text(), PREFIX ".bin") || !strstr(gr_error_text(), words))
        fail_msg("expected \"%s\" and \"%s\" in: %s", PREFIX ".bin", words, gr_error_text());
}

static void is_read(const char *name, const shard *s, const char *dtype_text, const uint32_t *expected) {
    gr_tokens *t;
    uint32_t ids[N_TOKEN];
    file_write(PREFIX ".bin", s->byte, s->n_byte);
    assert_int_equal(gr_tokens_open(&t, name), GR_OK);
    assert_string_equal(gr_tokens_prefix(t), PREFIX);
    assert_string_equal(gr_tokens_bin_path(t), PREFIX ".bin");
    assert_string_equal(gr_tokens_format(t), "llm.c shard");
    assert_string_equal(gr_tokens_dtype_text(t), dtype_text);
    assert_int_equal(gr_tokens_count(t), N_TOKEN);
    assert_int_equal(gr_tokens_documents(t), 1);
    assert_int_equal(gr_tokens_read(t, 0, N_TOKEN, UINT32_MAX, ids), GR_OK);
    assert_memory_equal(ids, expected, sizeof ids);
    assert_int_equal(gr_tokens_read(t, 3, 2, UINT32_MAX, ids), GR_OK);
    assert_memory_equal(ids, expected + 3, 2 * sizeof *ids);
    assert_int_equal(gr_tokens_read(t, 1, 4, expected[4], ids), GR_DATA);
    assert_non_null(strstr(gr_error_text(), "token 4: "));
    gr_tokens_close(t);
}

static void both_kinds_are_read_by_prefix_or_name(void **state) {
    (void)state;
    shard s = shard_small(), w = shard_wide();
    is_read(PREFIX, &s, "u16", small);
    is_read(PREFIX ".bin", &s, "u16", small);
    is_read(PREFIX, &w, "u32", wide);
    is_read(PREFIX ".bin", &w, "u32", wide);
}

static void unused_header_fields_are_ignored(void **state) {
    (void)state;
    shard s = shard_small();
    memset(s.byte + AT_COUNT + 4, 0xff, HEADER - AT_COUNT - 4);
    is_read(PREFIX, &s, "u16", small);
}

static void a_pair_wins_over_the_shard_in_its_bin(void **state) {
    (void)state;
    shard s = shard_small();
    gr_tokens_writer *w;
    gr_tokens *t;
    uint32_t ids[1];
    const uint32_t magic_as_tokens[] = {20240520 & 0xffff, 20240520 >> 16, 1, 0, N_TOKEN, 0};
    assert_int_equal(gr_tokens_writer_open(&w, PREFIX, 60000), GR_OK);
    assert_int_equal(gr_tokens_writer_document(w, magic_as_tokens, 6), GR_OK);
    assert_int_equal(gr_tokens_writer_commit(w), GR_OK);
    gr_tokens_writer_close(w);
    assert_int_equal(gr_tokens_open(&t, PREFIX ".bin"), GR_OK);
    assert_string_equal(gr_tokens_format(t), "Megatron pair");
    assert_int_equal(gr_tokens_count(t), 6);
    assert_int_equal(gr_tokens_read(t, 0, 1, 60000, ids), GR_OK);
    assert_int_equal(ids[0], magic_as_tokens[0]);
    gr_tokens_close(t);
    refused(&s, "not of this .idx"); /* a whole shard, but the .idx beside it decides */
}

static void a_name_of_an_index_asks_for_a_pair(void **state) {
    (void)state;
    shard s = shard_small();
    gr_tokens *t;
    file_write(PREFIX ".bin", s.byte, s.n_byte);
    assert_int_equal(gr_tokens_open(&t, PREFIX ".idx"), GR_DATA);
    assert_non_null(strstr(gr_error_text(), PREFIX ".idx"));
}

static void lying_fields_are_refused(void **state) {
    (void)state;
    const struct {
        size_t at;
        uint32_t value;
        const char *words;
    } lies[] = {
        {AT_MAGIC, 20240522, "got 20240522; copy the .idx too"},
        {AT_MAGIC, 20240801, "version: expected 7 with magic 20240801, got 1"},
        {AT_MAGIC, __builtin_bswap32(20240520), "got 20240520 in big-endian order"},
        {AT_MAGIC, __builtin_bswap32(20240801), "got 20240801 in big-endian order"},
        {AT_VERSION, 2, "version: expected 1 with magic 20240520, got 2"},
        {AT_VERSION, 0, "version: expected 1"},
        {AT_COUNT, 0, "token count: expected 1 to 2147483647, got 0"},
        {AT_COUNT, UINT32_C(1) << 31, "token count: expected 1 to 2147483647, got -2147483648"},
        {AT_COUNT, UINT32_MAX, "token count: expected 1 to 2147483647, got -1"},
        {AT_COUNT, N_TOKEN - 1, "size: expected 1032 bytes (1024 of header, 4 tokens of 2), got 1034"},
        {AT_COUNT, N_TOKEN + 1, "size: expected 1036 bytes"},
        {AT_COUNT, INT32_MAX, "size: expected 4294968318 bytes"},
    };
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        shard s = shard_small();
        gr_store_u32(s.byte + lies[i].at, lies[i].value);
        refused(&s, lies[i].words);
    }
}

static void every_truncation_is_refused(void **state) {
    (void)state;
    const shard wholes[] = {shard_small(), shard_wide()};
    for (int k = 0; k < 2; k++) {
        for (size_t n = 0; n < wholes[k].n_byte; n++) {
            shard s = wholes[k];
            s.n_byte = n;
            refused(&s, "size: ");
        }
        shard longer = wholes[k];
        longer.n_byte++;
        refused(&longer, "size: ");
    }
}

/* Of the fields that mean something, no bit can change and go unnoticed. */
static void bit_flips_in_the_header_are_refused(void **state) {
    (void)state;
    for (size_t bit = 0; bit < 8 * (AT_COUNT + 4); bit++) {
        shard s = shard_wide();
        s.byte[bit / 8] ^= (uint8_t)(1 << bit % 8);
        refused(&s, "expected");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(both_kinds_are_read_by_prefix_or_name, files_remove),
        cmocka_unit_test_teardown(unused_header_fields_are_ignored, files_remove),
        cmocka_unit_test_teardown(a_pair_wins_over_the_shard_in_its_bin, files_remove),
        cmocka_unit_test_teardown(a_name_of_an_index_asks_for_a_pair, files_remove),
        cmocka_unit_test_teardown(lying_fields_are_refused, files_remove),
        cmocka_unit_test_teardown(every_truncation_is_refused, files_remove),
        cmocka_unit_test_teardown(bit_flips_in_the_header_are_refused, files_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
