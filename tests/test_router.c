/* Routers: the balanced hash is the one described and balances; random is uniform; files are checked and stable. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/router.h"

static void assert_error_names(const char *part) {
    if (!strstr(gr_error_text(), part))
        fail_msg("\"%s\" is missing from: %s", part, gr_error_text());
}

static gr_router *fit(const uint64_t *frequency, uint32_t V, uint32_t E, uint32_t K) {
    gr_router *r;
    assert_int_equal(gr_router_fit_hash(&r, frequency, V, E, K, 1.0f), 0);
    return r;
}

static void test_hash_of_a_small_example_worked_by_hand(void **state) {
    (void)state;
    /* Order 2 (9), 0 (5), 3 (3), 1 (unseen: as 1, before 4 by its id), 4 (1). Loads of the 4 experts before each:
     * 2: 0 0 0 0 -> 0,1 | 0: 9 9 0 0 -> 2,3 | 3: 9 9 5 5 -> 2,3 | 1: 9 9 8 8 -> 2,3 | 4: 9 9 9 9 -> 0,1 */
    const uint64_t frequency[5] = {5, 0, 9, 3, 1};
    const uint16_t expected[5][2] = {{2, 3}, {2, 3}, {0, 1}, {2, 3}, {0, 1}};
    gr_router *r = fit(frequency, 5, 4, 2);
    const uint32_t tokens[6] = {0, 1, 2, 3, 4, 99}; /* the label is not routed */
    uint16_t ids[5][2];
    float gates[5][2];
    assert_int_equal(gr_router_route(r, 3, 5, tokens, ids[0], gates[0]), 0);
    assert_memory_equal(ids, expected, sizeof expected);
    for (int t = 0; t < 5; t++)
        assert_true(gates[t][0] == 0.5f && gates[t][1] == 0.5f);
    gr_router_close(r);
}

/* The definition, without a heap. */
static void fit_plainly(const uint64_t *frequency, uint32_t V, uint32_t E, uint32_t K, uint16_t *table) {
    uint64_t *load = calloc(E, sizeof *load);
    bool *done = calloc(V, sizeof *done);
    assert_non_null(load);
    assert_non_null(done);
    for (uint32_t i = 0; i < V; i++) {
        uint32_t id = UINT32_MAX;
        for (uint32_t v = 0; v < V; v++)
            if (!done[v] && (id == UINT32_MAX || frequency[v] > frequency[id]))
                id = v;
        done[id] = true;
        bool taken[256] = {false};
        for (uint32_t k = 0; k < K; k++) {
            uint32_t best = UINT32_MAX;
            for (uint32_t e = 0; e < E; e++)
                if (!taken[e] && (best == UINT32_MAX || load[e] < load[best]))
                    best = e;
            taken[best] = true;
        }
        for (uint32_t e = 0, k = 0; e < E; e++)
            if (taken[e]) {
                table[id * K + k++] = (uint16_t)e;
                load[e] += frequency[id];
            }
    }
    free(done);
    free(load);
}

static void test_hash_equals_its_definition_on_random_frequencies(void **state) {
    (void)state;
    enum { V = 300, E = 13, K = 5 };
    for (uint64_t seed = 0; seed < 5; seed++) {
        uint64_t frequency[V];
        uint32_t tokens[V + 1] = {0};
        uint16_t expected[V * K], ids[V * K];
        float gates[V * K];
        for (uint32_t v = 0; v < V; v++) {
            frequency[v] = 1 + gr_random_below(seed, 1, v, 20);
            tokens[v] = v;
        }
        fit_plainly(frequency, V, E, K, expected);
        gr_router *r = fit(frequency, V, E, K);
        assert_int_equal(gr_router_route(r, 0, V, tokens, ids, gates), 0);
        assert_memory_equal(ids, expected, sizeof expected);
        gr_router_close(r);
    }
}

static double max_violation(const uint64_t *load, uint32_t E) {
    uint64_t most = 0, total = 0;
    for (uint32_t e = 0; e < E; e++) {
        most = load[e] > most ? load[e] : most;
        total += load[e];
    }
    return (double)most * E / (double)total - 1.0;
}

static void test_hash_balances_zipf_frequencies_better_than_modulo(void **state) {
    (void)state;
    enum { V = 5000, E = 32, K = 4 };
    static uint64_t frequency[V];
    static uint32_t tokens[V + 1];
    static uint16_t ids[V * K];
    static float gates[V * K];
    uint64_t balanced[E] = {0}, modulo[E] = {0};
    for (uint32_t v = 0; v < V; v++) {
        frequency[v] = 1000000 / (v + 2);
        tokens[v] = v;
    }
    gr_router *r = fit(frequency, V, E, K);
    assert_int_equal(gr_router_route(r, 0, V, tokens, ids, gates), 0);
    for (uint32_t v = 0; v < V; v++)
        for (uint32_t k = 0; k < K; k++) {
            balanced[ids[v * K + k]] += frequency[v];
            modulo[(v * K + k) % E] += frequency[v];
        }
    assert_true(max_violation(balanced, E) < 0.001);
    assert_true(max_violation(modulo, E) > 0.3);
    gr_router_close(r);
}

static void test_gates_sum_to_the_scale_within_the_tables_tolerance(void **state) {
    (void)state;
    const float scales[] = {1e-6f, 0.3f, 1.0f, 2.5f, 1e6f};
    uint16_t ids[GR_TOPK_MAX];
    float gates[GR_TOPK_MAX];
    uint32_t tokens[2] = {0}, counts[GR_TOPK_MAX];
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++)
        for (uint32_t K = 1; K <= GR_TOPK_MAX; K++) {
            gr_router *r;
            assert_int_equal(gr_router_make_random(&r, 1, GR_TOPK_MAX, K, scales[s]), 0);
            gr_routes_info info = {.T = 1};
            gr_router_describe(r, &info);
            assert_int_equal(gr_router_route(r, 0, 1, tokens, ids, gates), 0);
            assert_true(gates[0] == gr_f32_from_bf16(gr_bf16_from_f32(gates[0])));
            assert_int_equal(gr_routes_check_rows(&info, "gates", ids, gates, counts), 0);
            gr_router_close(r);
        }
}

static void test_random_rows_are_distinct_uniform_and_keyed_by_position(void **state) {
    (void)state;
    enum { E = 6, K = 3, T = 60000 };
    gr_router *r;
    assert_int_equal(gr_router_make_random(&r, 42, E, K, 1.0f), 0);
    uint16_t *ids = malloc(2 * T * K * sizeof *ids), *part = ids + T * K;
    float *gates = malloc(T * K * sizeof *gates);
    uint32_t *tokens = calloc(T + 1, sizeof *tokens);
    assert_non_null(ids);
    assert_non_null(gates);
    assert_non_null(tokens);
    assert_int_equal(gr_router_route(r, 0, T, tokens, ids, gates), 0);
    uint32_t subsets[1 << E] = {0};
    for (uint32_t t = 0; t < T; t++) {
        uint16_t *row = ids + t * K;
        assert_true(row[0] < row[1] && row[1] < row[2] && row[2] < E);
        subsets[1 << row[0] | 1 << row[1] | 1 << row[2]]++;
    }
    double chi2 = 0; /* 20 subsets of 3 out of 6, 19 degrees of freedom: above 50 in fewer than 2 of 10^4 cases */
    const double mean = T / 20.0;
    for (int s = 0; s < 1 << E; s++)
        if (__builtin_popcount((unsigned)s) == K)
            chi2 += (subsets[s] - mean) * (subsets[s] - mean) / mean;
    assert_true(chi2 < 50.0);
    /* Other windows of the same file position give the same rows. */
    assert_int_equal(gr_router_route(r, 7, 100, tokens, part, gates), 0);
    assert_memory_equal(part, ids + 700 * K, 100 * K * sizeof *ids);
    gr_router_close(r);
    assert_int_equal(gr_router_make_random(&r, 43, E, K, 1.0f), 0);
    assert_int_equal(gr_router_route(r, 0, 100, tokens, part, gates), 0);
    assert_memory_not_equal(part, ids, 100 * K * sizeof *ids);
    gr_router_close(r);
    free(tokens);
    free(gates);
    free(ids);
}

static void test_an_id_outside_the_vocabulary_is_refused(void **state) {
    (void)state;
    const uint64_t frequency[4] = {1, 1, 1, 1};
    gr_router *r = fit(frequency, 4, 4, 2);
    const uint32_t tokens[4] = {0, 4, 1, 2};
    uint16_t ids[6];
    float gates[6];
    assert_int_equal(gr_router_route(r, 2, 3, tokens, ids, gates), GR_DATA);
    assert_error_names("token 7");
    assert_error_names("vocabulary of 4, got 4");
    gr_router_close(r);
}

static void assert_saved_and_opened(gr_router *r, const char *path) {
    gr_router *opened;
    assert_int_equal(gr_router_save(r, path), 0);
    assert_int_equal(gr_router_open(&opened, path), 0);
    const gr_router_info *a = gr_router_get(r), *b = gr_router_get(opened);
    assert_int_equal(a->method, b->method);
    assert_int_equal(a->V, b->V);
    assert_int_equal(a->E, b->E);
    assert_int_equal(a->K, b->K);
    assert_true(a->scale == b->scale);
    assert_int_equal(a->seed, b->seed);
    assert_true(a->hash.lo == b->hash.lo && a->hash.hi == b->hash.hi);
    const uint32_t tokens[6] = {3, 1, 0, 2, 1, 0};
    uint16_t ids_a[10], ids_b[10];
    float gates_a[10], gates_b[10];
    assert_int_equal(gr_router_route(r, 1, 5, tokens, ids_a, gates_a), 0);
    assert_int_equal(gr_router_route(opened, 1, 5, tokens, ids_b, gates_b), 0);
    assert_memory_equal(ids_a, ids_b, sizeof ids_a);
    assert_memory_equal(gates_a, gates_b, sizeof gates_a);
    gr_router_close(opened);
    unlink(path);
}

static void test_a_saved_router_opens_with_the_same_routes_and_hash(void **state) {
    (void)state;
    const uint64_t frequency[4] = {8, 4, 2, 1};
    gr_router *r = fit(frequency, 4, 8, 2);
    assert_saved_and_opened(r, "router_hash.tmp");
    gr_router_close(r);
    assert_int_equal(gr_router_make_random(&r, UINT64_MAX, 8, 2, 2.5f), 0);
    assert_saved_and_opened(r, "router_random.tmp");
    gr_router_close(r);
}

static void test_the_hash_names_settings_and_table_not_frequencies(void **state) {
    (void)state;
    const uint64_t a[3] = {9, 4, 1}, scaled[3] = {90, 40, 10}, other[3] = {1, 4, 9};
    gr_router *r[3] = {fit(a, 3, 4, 2), fit(scaled, 3, 4, 2), fit(other, 3, 4, 2)};
    gr_hash128 hash[3];
    for (int i = 0; i < 3; i++) {
        hash[i] = gr_router_get(r[i])->hash;
        gr_router_close(r[i]);
    }
    assert_true(hash[0].lo == hash[1].lo && hash[0].hi == hash[1].hi);
    assert_true(hash[0].lo != hash[2].lo && hash[0].hi != hash[2].hi);
}

static void test_damaged_router_files_are_refused(void **state) {
    (void)state;
    const char *path = "router_damaged.tmp";
    const uint64_t frequency[4] = {8, 4, 2, 1};
    gr_router *r = fit(frequency, 4, 8, 2);
    assert_int_equal(gr_router_save(r, path), 0);
    gr_router_close(r);
    char *bytes;
    size_t n;
    assert_int_equal(gr_file_read(path, 1 << 20, GR_DATA, &bytes, &n), 0);
    assert_int_equal(n, 64 + 4 * 2 * 2 + 8);
    for (size_t bit = 0; bit < 8 * n; bit++) {
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(bytes, 1, n, f), n);
        assert_int_equal(fclose(f), 0);
        assert_int_equal(gr_router_open(&r, path), GR_DATA);
        assert_null(r);
        assert_error_names(path);
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
    }
    for (size_t length = 0; length < n; length++) {
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(bytes, 1, length, f), length);
        assert_int_equal(fclose(f), 0);
        assert_int_equal(gr_router_open(&r, path), GR_DATA);
    }
    free(bytes);
    unlink(path);
}

typedef struct router_lie {
    size_t at;
    uint32_t value;
    const char *named;
} router_lie;

static void test_lies_under_a_good_checksum_are_refused(void **state) {
    (void)state;
    const char *path = "router_lie.tmp";
    static const router_lie lies[] = {{16, 2, "method"}, {16, 1, "vocabulary"}, {20, 0, "vocabulary"}, {20, 5, "bytes"},
        {20, 0xffffffff, "vocabulary"}, {24, 5000, "experts"}, {24, 3, "below 3"}, {28, 9, "experts per token"},
        {28, 0, "experts per token"}, {32, 0x7f800000, "scale"}, {36, 1, "reserved"}, {40, 1, "seed"},
        {60, 1, "reserved"}, {64, 0x00000000, "token id 0"}, {64, 0x00010002, "token id 0"}};
    const uint64_t frequency[4] = {8, 4, 2, 1};
    gr_router *r = fit(frequency, 4, 8, 2);
    assert_int_equal(gr_router_save(r, path), 0);
    gr_router_close(r);
    char *good;
    size_t n;
    assert_int_equal(gr_file_read(path, 1 << 20, GR_DATA, &good, &n), 0);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        uint8_t bad[128];
        memcpy(bad, good, n);
        gr_store_u32(bad + lies[i].at, lies[i].value);
        gr_store_u64(bad + n - 8, gr_hash64(bad, n - 8));
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(bad, 1, n, f), n);
        assert_int_equal(fclose(f), 0);
        assert_int_equal(gr_router_open(&r, path), GR_DATA);
        assert_error_names(lies[i].named);
    }
    free(good);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hash_of_a_small_example_worked_by_hand),
        cmocka_unit_test(test_hash_equals_its_definition_on_random_frequencies),
        cmocka_unit_test(test_hash_balances_zipf_frequencies_better_than_modulo),
        cmocka_unit_test(test_gates_sum_to_the_scale_within_the_tables_tolerance),
        cmocka_unit_test(test_random_rows_are_distinct_uniform_and_keyed_by_position),
        cmocka_unit_test(test_an_id_outside_the_vocabulary_is_refused),
        cmocka_unit_test(test_a_saved_router_opens_with_the_same_routes_and_hash),
        cmocka_unit_test(test_the_hash_names_settings_and_table_not_frequencies),
        cmocka_unit_test(test_damaged_router_files_are_refused),
        cmocka_unit_test(test_lies_under_a_good_checksum_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
