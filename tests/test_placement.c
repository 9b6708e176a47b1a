/* The placement file: what is written is read, damage anywhere is found, and a file that lies is refused by field. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/placement.h"

enum { E = 6, R = 3, T = 10, N_TABLE = 2 };
static const uint64_t n_window[N_TABLE] = {5, 4}; /* odd, so that ranks are filled up */

static void make(gr_placement *p) {
    static const uint16_t expert_at[E] = {1, 4, 0, 5, 2, 3};
    *p = (gr_placement){.n_node = 1,
        .node_ranks = R,
        .R = R,
        .E = E,
        .K = 2,
        .T = T,
        .router = {.lo = 0x123, .hi = UINT64_MAX},
        .method = GR_PLACE_PAPER,
        .grain = GR_PLACE_BY_NODE,
        .seed = UINT64_MAX,
        .n_sampled = 90,
        .load_max = 1.05,
        .load_bound = 1.0 / 3.0,
        .n_score = 2,
        .score = {{.name = "round-robin", .rows = 0.1, .pairs = 0.2, .node_rows = 0, .load = 1.5, .windows = 1},
            {.name = "paper", .rows = 1e-17, .pairs = 7, .node_rows = 0.25, .load = 2, .windows = 1.25}},
        .n_table = N_TABLE};
    assert_int_equal(gr_alloc((void **)&p->expert_at, E, sizeof *p->expert_at, "test"), 0);
    assert_int_equal(gr_alloc((void **)&p->rank_load, R, sizeof *p->rank_load, "test"), 0);
    assert_int_equal(gr_alloc((void **)&p->together, E * E, sizeof *p->together, "test"), 0);
    assert_int_equal(gr_alloc((void **)&p->table, N_TABLE, sizeof *p->table, "test"), 0);
    memcpy(p->expert_at, expert_at, sizeof expert_at);
    for (uint32_t r = 0; r < R; r++)
        p->rank_load[r] = 0.9 + 0.1 * r;
    for (uint32_t a = 0; a < E; a++)
        for (uint32_t b = 0; b < E; b++)
            p->together[a * E + b] = a + b + (a == b ? 40 : 0);
    for (int i = 0; i < N_TABLE; i++) {
        gr_placed_table *t = &p->table[i];
        *t = (gr_placed_table){.path = strdup(i ? "a \"quoted\"\\name" : "data/\xc3\xa9.routes"),
            .table_hash = 100 + (uint64_t)i,
            .n_window = n_window[i],
            .touch = {.n_rank = R, .n_window = n_window[i]}};
        assert_non_null(t->path);
        assert_int_equal(gr_alloc((void **)&t->rank, n_window[i], sizeof *t->rank, "test"), 0);
        assert_int_equal(gr_alloc((void **)&t->touch.count, n_window[i] * R, sizeof *t->touch.count, "test"), 0);
        for (uint64_t w = 0; w < n_window[i]; w++) {
            t->rank[w] = (uint16_t)((w + 1) % R);
            for (uint32_t r = 0; r < R; r++)
                t->touch.count[w * R + r] = (uint32_t)(w * R + r + (uint64_t)i) % (T + 1);
        }
    }
}

static void assert_equal(const gr_placement *a, const gr_placement *b) {
    assert_true(a->n_node == b->n_node && a->node_ranks == b->node_ranks && a->R == b->R);
    assert_true(a->E == b->E && a->K == b->K && a->T == b->T && a->seed == b->seed);
    assert_true(a->router.lo == b->router.lo && a->router.hi == b->router.hi);
    assert_true(a->method == b->method && a->grain == b->grain && a->n_sampled == b->n_sampled);
    assert_true(a->load_max == b->load_max && a->load_bound == b->load_bound && a->n_score == b->n_score &&
                a->n_table == b->n_table);
    for (int i = 0; i < a->n_score; i++) {
        const gr_place_score *s = &a->score[i], *t = &b->score[i];
        assert_string_equal(s->name, t->name);
        assert_true(s->rows == t->rows && s->pairs == t->pairs && s->node_rows == t->node_rows);
        assert_true(s->load == t->load && s->windows == t->windows);
    }
    assert_memory_equal(a->expert_at, b->expert_at, E * sizeof *a->expert_at);
    assert_memory_equal(a->rank_load, b->rank_load, R * sizeof *a->rank_load);
    assert_memory_equal(a->together, b->together, E * E * sizeof *a->together);
    for (int i = 0; i < a->n_table; i++) {
        const gr_placed_table *s = &a->table[i], *t = &b->table[i];
        assert_string_equal(s->path, t->path);
        assert_true(s->table_hash == t->table_hash && s->n_window == t->n_window);
        assert_true(t->touch.n_rank == R && t->touch.n_window == s->n_window);
        assert_memory_equal(s->rank, t->rank, s->n_window * sizeof *s->rank);
        assert_memory_equal(s->touch.count, t->touch.count, s->n_window * R * sizeof *s->touch.count);
    }
}

static uint8_t *load(const char *path, size_t *n) {
    char *bytes;
    assert_int_equal(gr_file_read(path, 1 << 20, GR_DATA, &bytes, n), 0);
    return (uint8_t *)bytes;
}

static void store(const char *path, const uint8_t *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void assert_error_names(const char *part) {
    if (!strstr(gr_error_text(), part))
        fail_msg("\"%s\" is missing from: %s", part, gr_error_text());
}

static void assert_refused(const char *path) {
    gr_placement p;
    assert_int_equal(gr_placement_read(&p, path), GR_DATA);
    assert_null(p.expert_at);
    assert_null(p.table);
    assert_error_names(path);
}

static void test_what_is_written_is_read(void **state) {
    (void)state;
    const char *path = "placement_written.tmp";
    gr_placement p, q;
    make(&p);
    assert_int_equal(gr_placement_write(&p, path), 0);
    assert_true(gr_is_placement(path));
    assert_int_equal(gr_placement_read(&q, path), 0);
    assert_equal(&p, &q);
    assert_ptr_equal(gr_placement_find(&q, 101), &q.table[1]);
    assert_null(gr_placement_find(&q, 102));
    assert_int_equal(gr_placement_hash(&p), gr_placement_hash(&q));
    q.n_node = 3; /* other nodes, the same experts at the same ranks */
    assert_int_equal(gr_placement_hash(&p), gr_placement_hash(&q));
    q.expert_at[0] = 2;
    q.expert_at[4] = 1;
    assert_int_not_equal(gr_placement_hash(&p), gr_placement_hash(&q));
    gr_placement_close(&q);
    gr_placement_close(&q);
    size_t n;
    uint8_t *bytes = load(path, &n); /* places as the header of placement.h says */
    assert_int_equal(16 + gr_load_u32(bytes + 12) + 4 * E * E + 12 + 8 + 4 * R * (5 + 4) + 8, n);
    free(bytes);
    gr_placement_close(&p);
    unlink(path);
    assert_false(gr_is_placement(path));
}

static void test_every_cut_and_a_flipped_bit_of_any_byte_is_found(void **state) {
    (void)state;
    const char *path = "placement_damaged.tmp";
    gr_placement p;
    make(&p);
    assert_int_equal(gr_placement_write(&p, path), 0);
    gr_placement_close(&p);
    size_t n;
    uint8_t *bytes = load(path, &n);
    for (size_t cut = 0; cut < n; cut++) {
        store(path, bytes, cut);
        assert_refused(path);
    }
    for (size_t i = 0; i < n; i++) { /* one bit of each byte */
        const uint8_t bit = (uint8_t)(1u << gr_random_below(1, 1, i, 8));
        bytes[i] ^= bit;
        store(path, bytes, n);
        assert_refused(path);
        bytes[i] ^= bit;
    }
    free(bytes);
    unlink(path);
}

/* The file with the first `from` of its text replaced by `to` of the same length and a checksum to fit. */
static void store_lie(const char *path, const uint8_t *good, size_t n, const char *from, const char *to) {
    uint8_t *bytes = malloc(n);
    assert_non_null(bytes);
    memcpy(bytes, good, n);
    assert_int_equal(strlen(from), strlen(to));
    uint8_t *at = memmem(bytes, n, from, strlen(from));
    if (!at)
        fail_msg("no %s in the text", from);
    memcpy(at, to, strlen(to));
    gr_store_u64(bytes + n - 8, gr_hash64(bytes, n - 8));
    store(path, bytes, n);
    free(bytes);
}

static void test_a_lying_text_is_refused_by_field(void **state) {
    (void)state;
    const char *path = "placement_lying.tmp";
    static const char *const lie[][3] = {{"grouter-placement", "grouter-placemenu", "\"format\""},
        {"\"version\": 1", "\"version\": 2", "\"version\""}, {"\"nodes\": 1", "\"nodes\": 0", "\"nodes\""},
        {"\"nodes\": 1", "\"nodes\": 9", "\"experts\""},
        {"\"ranks_per_node\": 3", "\"ranks_per_node\": 4", "\"experts\""},
        {"\"experts\": 6", "\"experts\": 9", "experts_by_rank"},
        {"\"experts\": 6,", "\"experts\":6e,", "lying.tmp:6:15"},
        {"\"experts_per_token\": 2", "\"experts_per_token\": 7", "\"experts_per_token\""},
        {"\"tokens_per_window\": 10", "\"tokens_per_window\": 00", "lying.tmp:8:"},
        {"\"tokens_per_window\": 10", "\"tokens_per_window\":  5", "at most the window's 5 tokens"},
        {"\"router\": \"ffff", "\"router\": \"fffg", "\"router\""}, {"\"paper\"", "\"papes\"", "\"method\""},
        {"\"granularity\"", "\"granularitz\"", "\"granularity\""}, {"\"node\",", "\"nodf\",", "\"granularity\""},
        {"18446744073709551615", "18446744073709551616", "\"seed\""},
        {"\"sampled_tokens\": 90", "\"sampled_tokens\": -1", "\"sampled_tokens\""},
        {"\"sampled_tokens\": 90", "\"sampled_tokens\": 40", "together"},
        {"\"load_bound\": 0.3", "\"load_bound\": -.3", "lying.tmp:"},
        {"\"load_bound\": 0.3", "\"load_bound\": -33", "number"}, {"[1, 4]", "[4, 1]", "ascending within a rank"},
        {"[1, 4]", "[1, 5]", "every expert once"}, {"[1, 4]", "[1, 6]", "every expert once"},
        {"[1, 4]", "[14  ]", "equally many"}, {"\"rank_load\": [0", "\"rank_load\": [{", "lying.tmp:"},
        {"\"name\": \"round", "\"name\": \"ro\\td", "\"name\""}, {"\"rows\": 0", "\"rows\": f", "lying.tmp:"},
        {"\"hash\": \"0000000000000065\"", "\"hash\": \"0000000000000064\"", "each table once"},
        {"\"windows\": 5}", "\"windows\": 6}", "lying.tmp: table 0, window 5:"},
        {"\"windows\": 5}", "\"windows\": 0}", "\"windows\""},
        {"\"windows\": 4}", "\"windows\": 2}", "lying.tmp: table 1, window 0:"},
        {"\"path\": \"a", "\"psth\": \"a", "\"path\""}};
    gr_placement p;
    make(&p);
    assert_int_equal(gr_placement_write(&p, path), 0);
    gr_placement_close(&p);
    size_t n;
    uint8_t *good = load(path, &n);
    for (size_t i = 0; i < sizeof lie / sizeof *lie; i++) {
        store_lie(path, good, n, lie[i][0], lie[i][1]);
        gr_placement q;
        if (gr_placement_read(&q, path) != GR_DATA || !strstr(gr_error_text(), lie[i][2]))
            fail_msg("%s -> %s: \"%s\" is missing from: %s", lie[i][0], lie[i][1], lie[i][2], gr_error_text());
    }
    free(good);
    unlink(path);
}

static void test_lying_numbers_behind_the_text_are_refused(void **state) {
    (void)state;
    const char *path = "placement_numbers.tmp";
    gr_placement p;
    make(&p);
    for (int lie = 0; lie < 4; lie++) {
        uint32_t *together = &p.together[1], kept = *together;
        uint16_t *rank = &p.table[1].rank[3], kept_rank = *rank;
        uint32_t *touch = &p.table[0].touch.count[14], kept_touch = *touch;
        if (lie == 0)
            ++*together;
        if (lie == 1)
            *rank = R;
        if (lie == 2)
            *touch = T + 1;
        assert_int_equal(gr_placement_write(&p, path), 0);
        gr_placement q;
        if (lie < 3)
            assert_refused(path);
        else
            assert_int_equal(gr_placement_read(&q, path), 0);
        if (lie == 0)
            assert_error_names("together: expected one count either way");
        if (lie == 1)
            assert_error_names("table 1, window 3: expected a rank below 3, got 3");
        if (lie == 2)
            assert_error_names("table 0, window 4: expected at most the window's 10 tokens on a rank, got 11");
        if (lie == 3)
            gr_placement_close(&q);
        *together = kept;
        *rank = kept_rank;
        *touch = kept_touch;
    }
    gr_placement_close(&p);
    unlink(path);
}

static void test_lying_sizes_are_refused(void **state) {
    (void)state;
    const char *path = "placement_sizes.tmp";
    gr_placement p;
    make(&p);
    assert_int_equal(gr_placement_write(&p, path), 0);
    gr_placement_close(&p);
    size_t n;
    uint8_t *bytes = load(path, &n);
    const uint32_t n_json = gr_load_u32(bytes + 12);
    static const uint32_t lies[] = {0, 8, 1, UINT32_MAX, 1u << 24, (1u << 24) + 8};
    for (size_t i = 0; i < sizeof lies / sizeof *lies + 2; i++) {
        gr_store_u32(bytes + 12, i < 6 ? lies[i] : i == 6 ? n_json + 8 : n_json - 8);
        gr_store_u64(bytes + n - 8, gr_hash64(bytes, n - 8));
        store(path, bytes, n);
        assert_refused(path);
    }
    gr_store_u32(bytes + 12, n_json);
    for (size_t more = 4; more <= 8; more += 4) { /* and as many bytes too few */
        uint8_t *other = calloc(n + more, 1);
        assert_non_null(other);
        memcpy(other, bytes, n - 8);
        gr_store_u64(other + n + more - 8, gr_hash64(other, n + more - 8));
        store(path, other, n + more);
        assert_refused(path);
        gr_store_u64(other + n - more - 8, gr_hash64(other, n - more - 8));
        store(path, other, n - more);
        assert_refused(path);
        free(other);
    }
    free(bytes);
    unlink(path);
}

static void test_a_path_that_is_not_utf8_is_written_readably(void **state) {
    (void)state;
    const char *path = "placement_path.tmp";
    gr_placement p, q;
    make(&p);
    strcpy(p.table[0].path, "a\xff\xc3z\x01"); /* in the room of a longer one */
    assert_int_equal(gr_placement_write(&p, path), 0);
    assert_int_equal(gr_placement_read(&q, path), 0);
    assert_string_equal(q.table[0].path, "a??z\x01");
    gr_placement_close(&q);
    gr_placement_close(&p);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_written_is_read),
        cmocka_unit_test(test_every_cut_and_a_flipped_bit_of_any_byte_is_found),
        cmocka_unit_test(test_a_lying_text_is_refused_by_field),
        cmocka_unit_test(test_lying_numbers_behind_the_text_are_refused),
        cmocka_unit_test(test_lying_sizes_are_refused),
        cmocka_unit_test(test_a_path_that_is_not_utf8_is_written_readably),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
