/* routes_fixture.h: a small route table, its bytes, and ways to damage it. Shared by test_routes.c and test_touch.c. */
#ifndef GROUTER_ROUTES_FIXTURE_H
#define GROUTER_ROUTES_FIXTURE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/router.h"
#include "grouter/routes.h"

enum { E = 8, K = 2, T = 4, N_TOKEN = 15, N_WINDOW = 3, N_VOCAB = 32 };
/* The file's places, from the format's description rather than the code's. */
enum {
    HISTOGRAMS_AT = 512,
    RECORDS_AT = HISTOGRAMS_AT + N_WINDOW * 4 * E,
    IDS_BYTES = T * K,
    HASHES_AT = IDS_BYTES + 2 * T * K,
    RECORD_BYTES = HASHES_AT + 16,
    FILE_BYTES = RECORDS_AT + N_WINDOW * RECORD_BYTES
};

static inline gr_routes_info make_info(void) {
    return (gr_routes_info){.E = E,
        .K = K,
        .T = T,
        .scale = 1.0f,
        .n_window = N_WINDOW,
        .n_token = N_TOKEN,
        .router = {.lo = 7, .hi = 9},
        .provenance = "a test"};
}

static inline void make_window(uint64_t w, uint32_t *tokens, uint16_t *ids, float *gates) {
    for (uint32_t t = 0; t <= T; t++)
        tokens[t] = (uint32_t)(w * T + t) * 7 % N_VOCAB;
    for (uint32_t t = 0; t < T; t++) {
        uint16_t low = (uint16_t)((w + t) % (E - 1));
        ids[t * K] = low;
        ids[t * K + 1] = (uint16_t)(low + 1 + t % (E - 1u - low));
        gates[t * K] = 0.75f;
        gates[t * K + 1] = 0.25f;
    }
}

static inline void write_windows(gr_routes_writer *w, uint64_t first, uint64_t end) {
    uint32_t tokens[T + 1];
    uint16_t ids[T * K];
    float gates[T * K];
    for (uint64_t i = first; i < end; i++) {
        make_window(i, tokens, ids, gates);
        assert_int_equal(gr_routes_writer_window(w, i, tokens, ids, gates), 0);
    }
}

static inline void write_table_as(const char *path, const gr_routes_info *info) {
    gr_routes_writer *w;
    assert_int_equal(gr_routes_writer_open(&w, path, info), 0);
    write_windows(w, 0, N_WINDOW);
    assert_int_equal(gr_routes_writer_commit(w), 0);
    gr_routes_writer_close(w);
}

static inline void write_table(const char *path) {
    gr_routes_info info = make_info();
    write_table_as(path, &info);
}

static inline uint8_t *load(const char *path, size_t *n) {
    char *bytes;
    assert_int_equal(gr_file_read(path, 1 << 20, GR_DATA, &bytes, n), 0);
    return (uint8_t *)bytes;
}

static inline void store(const char *path, const uint8_t *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static inline void fix_header(uint8_t *file) {
    gr_store_u64(file + 504, gr_hash64(file, 504));
}

static inline void fix_record(uint8_t *file, size_t window) {
    uint8_t hashed[HASHES_AT + 4 * E];
    uint8_t *record = file + RECORDS_AT + window * RECORD_BYTES;
    memcpy(hashed, record, HASHES_AT);
    memcpy(hashed + HASHES_AT, file + HISTOGRAMS_AT + window * 4 * E, 4 * E);
    gr_store_u64(record + HASHES_AT, gr_hash64(hashed, sizeof hashed));
}

static inline gr_err read_window(gr_routes *r, uint64_t window) {
    uint32_t tokens[T + 1];
    uint16_t ids[T * K], got_ids[T * K];
    float gates[T * K], got_gates[T * K];
    make_window(window, tokens, ids, gates);
    GR_TRY(gr_routes_read(r, window, tokens, got_ids, got_gates));
    assert_memory_equal(ids, got_ids, sizeof ids);
    assert_memory_equal(gates, got_gates, sizeof gates);
    return GR_OK;
}

/* Opens the table and reads every window with its tokens. */
static inline gr_err read_all(const char *path) {
    gr_routes *r;
    GR_TRY(gr_routes_open(&r, path));
    gr_err err = GR_OK;
    for (uint64_t w = 0; w < N_WINDOW && !err; w++)
        err = read_window(r, w);
    gr_routes_close(r);
    return err;
}

static inline void assert_error_names(const char *part) {
    if (!strstr(gr_error_text(), part))
        fail_msg("\"%s\" is missing from: %s", part, gr_error_text());
}

#endif
