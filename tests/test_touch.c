/* A route table beside its token file: the match, and the touch counts with their sidecar. */
#include "routes_fixture.h"

#include <glob.h>

static void write_tokens(const char *prefix, size_t n, uint32_t changed) {
    uint32_t ids[2 * N_TOKEN];
    for (size_t i = 0; i < n; i++)
        ids[i] = (uint32_t)i * 7 % N_VOCAB;
    ids[0] ^= changed;
    gr_tokens_writer *w;
    assert_int_equal(gr_tokens_writer_open(&w, prefix, N_VOCAB), 0);
    assert_int_equal(gr_tokens_writer_document(w, ids, n), 0);
    assert_int_equal(gr_tokens_writer_commit(w), 0);
    gr_tokens_writer_close(w);
}

static void remove_tokens(const char *prefix) {
    char path[64];
    snprintf(path, sizeof path, "%s.bin", prefix);
    unlink(path);
    snprintf(path, sizeof path, "%s.idx", prefix);
    unlink(path);
}

static void test_match_takes_only_its_own_token_file_and_model(void **state) {
    (void)state;
    const char *path = "routes_match.tmp", *prefix = "routes_match_tokens.tmp";
    gr_routes *r;
    gr_tokens *t;
    write_table(path);
    assert_int_equal(gr_routes_open(&r, path), 0);
    write_tokens(prefix, N_TOKEN, 0);
    assert_int_equal(gr_tokens_open(&t, prefix), 0);
    assert_int_equal(gr_routes_match(r, t, T, E, K), 0);
    assert_int_equal(gr_routes_match(r, t, T + 1, E, K), GR_DATA);
    assert_int_equal(gr_routes_match(r, t, T, 2 * E, K), GR_DATA);
    assert_int_equal(gr_routes_match(r, t, T, E, K + 1), GR_DATA);
    assert_error_names("K = 3");
    gr_tokens_close(t);
    write_tokens(prefix, N_TOKEN, 1);
    assert_int_equal(gr_tokens_open(&t, prefix), 0);
    assert_int_equal(gr_routes_match(r, t, T, E, K), GR_DATA);
    assert_error_names(path);
    assert_error_names(prefix);
    gr_tokens_close(t);
    write_tokens(prefix, N_TOKEN + 1, 0);
    assert_int_equal(gr_tokens_open(&t, prefix), 0);
    assert_int_equal(gr_routes_match(r, t, T, E, K), GR_DATA);
    assert_error_names("15 tokens, got 16");
    gr_tokens_close(t);
    gr_routes_close(r);
    remove_tokens(prefix);
    unlink(path);
}

/* rank_of[E], or NULL for consecutive blocks. */
static void assert_touch_is_exact_for(const gr_touch *touch, uint32_t n_rank, const uint16_t *rank_of) {
    assert_int_equal(touch->n_rank, n_rank);
    assert_int_equal(touch->n_window, N_WINDOW);
    for (uint64_t w = 0; w < N_WINDOW; w++) {
        uint32_t tokens[T + 1], expected[E] = {0};
        uint16_t ids[T * K];
        float gates[T * K];
        make_window(w, tokens, ids, gates);
        for (uint32_t t = 0; t < T; t++)
            for (uint32_t rank = 0; rank < n_rank; rank++) {
                bool touched = false;
                for (uint32_t k = 0; k < K; k++)
                    touched |= (rank_of ? rank_of[ids[t * K + k]] : ids[t * K + k] / (E / n_rank)) == rank;
                expected[rank] += touched;
            }
        assert_memory_equal(touch->count + w * n_rank, expected, n_rank * sizeof *expected);
    }
}

static void assert_touch_is_exact(const gr_touch *touch, uint32_t n_rank) {
    assert_touch_is_exact_for(touch, n_rank, NULL);
}

static void test_touch_counts_are_exact_for_every_rank_count(void **state) {
    (void)state;
    const char *path = "routes_touch.tmp", *prefix = "routes_touch_tokens.tmp";
    const char *sidecar = "routes_touch.tmp.touch2";
    unlink(sidecar);
    gr_routes *r;
    gr_tokens *t;
    write_table(path);
    write_tokens(prefix, N_TOKEN, 0);
    assert_int_equal(gr_routes_open(&r, path), 0);
    assert_int_equal(gr_tokens_open(&t, prefix), 0);
    gr_log_set(GR_LOG_QUIET);
    for (uint32_t n_rank = 1; n_rank <= E; n_rank *= 2) {
        gr_touch touch;
        assert_int_equal(gr_touch_open(&touch, r, t, N_VOCAB, n_rank, NULL, false), 0);
        assert_touch_is_exact(&touch, n_rank);
        gr_touch_close(&touch);
    }
    assert_false(gr_path_exists(sidecar));
    gr_tokens_close(t);
    gr_routes_close(r);
    remove_tokens(prefix);
    unlink(path);
}

/* Experts of a placement are no blocks: a rank may come up twice among the ascending ids of a token, not in a row. */
static void test_placements_have_counts_and_sidecars_of_their_own(void **state) {
    (void)state;
    static const uint16_t blocks[E] = {0, 0, 0, 0, 1, 1, 1, 1}, even[E] = {0, 1, 0, 1, 0, 1, 0, 1},
                          mixed[E] = {1, 0, 0, 1, 1, 1, 0, 0};
    const uint16_t *const map[] = {NULL, even, mixed};
    const char *path = "routes_placed.tmp", *prefix = "routes_placed_tokens.tmp", *plain = "routes_placed.tmp.touch2";
    gr_routes *r;
    gr_tokens *t;
    gr_touch touch;
    glob_t found;
    write_table(path);
    write_tokens(prefix, N_TOKEN, 0);
    assert_int_equal(gr_routes_open(&r, path), 0);
    assert_int_equal(gr_tokens_open(&t, prefix), 0);
    gr_log_set(GR_LOG_QUIET);
    for (int again = 0; again < 2; again++)
        for (int i = 0; i < 3; i++) {
            assert_int_equal(gr_touch_open(&touch, r, t, N_VOCAB, 2, map[i], true), 0);
            assert_touch_is_exact_for(&touch, 2, map[i]);
            assert_true((touch.map == 0) == (i == 0));
            gr_touch_close(&touch);
            assert_int_equal(glob("routes_placed.tmp.touch2*", 0, NULL, &found), 0);
            assert_int_equal(found.gl_pathc, again ? 3 : i + 1);
            globfree(&found);
        }
    /* Blocks by another name share the plain file. */
    assert_int_equal(gr_touch_open(&touch, r, t, N_VOCAB, 2, blocks, true), 0);
    assert_int_equal(touch.map, 0);
    gr_touch_close(&touch);
    /* One that lies under another's name is not believed. */
    size_t n;
    uint8_t *bytes = load(plain, &n);
    assert_int_equal(glob("routes_placed.tmp.touch2.*", 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, 2);
    for (int i = 0; i < 2; i++)
        store(found.gl_pathv[i], bytes, n);
    for (int i = 1; i < 3; i++) {
        assert_int_equal(gr_touch_open(&touch, r, t, N_VOCAB, 2, map[i], false), 0);
        assert_touch_is_exact_for(&touch, 2, map[i]);
        gr_touch_close(&touch);
    }
    for (int i = 0; i < 2; i++)
        unlink(found.gl_pathv[i]);
    globfree(&found);
    unlink(plain);
    free(bytes);
    gr_tokens_close(t);
    gr_routes_close(r);
    remove_tokens(prefix);
    unlink(path);
}

static void test_the_sidecar_is_used_when_whole_and_remade_when_not(void **state) {
    (void)state;
    const char *path = "routes_sidecar.tmp", *prefix = "routes_sidecar_tokens.tmp";
    const char *sidecar = "routes_sidecar.tmp.touch2";
    gr_routes *r;
    gr_tokens *t;
    gr_touch touch;
    write_table(path);
    write_tokens(prefix, N_TOKEN, 0);
    assert_int_equal(gr_routes_open(&r, path), 0);
    assert_int_equal(gr_tokens_open(&t, prefix), 0);
    gr_log_set(GR_LOG_QUIET);
    assert_int_equal(gr_touch_open(&touch, r, t, N_VOCAB, 2, NULL, true), 0);
    gr_touch_close(&touch);
    size_t n;
    uint8_t *good = load(sidecar, &n), *bytes = malloc(n);
    assert_non_null(bytes);

    /* A sidecar with its own valid checksum is believed: this is how we see that no scan happens. */
    memcpy(bytes, good, n);
    gr_store_u32(bytes + 40, 0);
    gr_store_u64(bytes + n - 8, gr_hash64(bytes, n - 8));
    store(sidecar, bytes, n);
    assert_int_equal(gr_touch_open(&touch, r, t, N_VOCAB, 2, NULL, true), 0);
    assert_int_equal(touch.count[0], 0);
    gr_touch_close(&touch);

    uint64_t table_hash = 0; /* by itself it is readable too */
    assert_int_equal(gr_touch_read(&touch, sidecar, &table_hash), 0);
    assert_int_equal(touch.n_rank, 2);
    assert_int_equal(touch.n_window, N_WINDOW);
    assert_int_equal(table_hash, gr_routes_get(r)->table_hash);
    gr_touch_close(&touch);
    for (size_t cut = 0; cut < n; cut++) {
        store(sidecar, good, cut);
        assert_int_equal(gr_touch_read(&touch, sidecar, &table_hash), GR_DATA);
        assert_null(touch.count);
    }

    for (size_t byte = 0; byte < n; byte++) { /* anything else is counted again and replaced */
        memcpy(bytes, good, n);
        bytes[byte] ^= 1;
        store(sidecar, bytes, n);
        assert_int_equal(gr_touch_open(&touch, r, t, N_VOCAB, 2, NULL, true), 0);
        assert_touch_is_exact(&touch, 2);
        gr_touch_close(&touch);
        size_t n_now;
        uint8_t *now = load(sidecar, &n_now);
        assert_int_equal(n_now, n);
        assert_memory_equal(now, good, n);
        free(now);
    }
    free(bytes);
    free(good);
    gr_tokens_close(t);
    gr_routes_close(r);
    remove_tokens(prefix);
    unlink(sidecar);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_match_takes_only_its_own_token_file_and_model),
        cmocka_unit_test(test_touch_counts_are_exact_for_every_rank_count),
        cmocka_unit_test(test_placements_have_counts_and_sidecars_of_their_own),
        cmocka_unit_test(test_the_sidecar_is_used_when_whole_and_remade_when_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
