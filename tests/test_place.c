/* Placing made-up tables with topics: fewer rows than the other ways, counts and loads as promised, every figure as the
 * tokens give it, the same bits whatever the threads, and damaged or unfitting tables refused. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "grouter/placement.h"
#include "place_fixture.h"

enum { E = 16, K = 3, T = 32, N_WINDOW = 121 };

static topic_shape shape(void) {
    return (topic_shape){.E = E, .K = K, .T = T, .n_window = N_WINDOW, .seed = 4, .n_topic = 9};
}

static gr_place_options options(gr_routes *const *table, int n_table, uint32_t n_node, uint32_t node_ranks) {
    gr_log_set(GR_LOG_QUIET);
    return (gr_place_options){.table = table,
        .n_table = n_table,
        .n_node = n_node,
        .node_ranks = node_ranks,
        .entropy_max = 6.85 / 7,
        .load_max = 1.05,
        .n_sample = 65536,
        .seed = 3};
}

static gr_routes *open_table(const char *path, const topic_shape *s) {
    gr_routes *r;
    assert_int_equal(topic_table(path, s), 0);
    assert_int_equal(gr_routes_open(&r, path), 0);
    return r;
}

static void close_table(gr_routes *r) {
    unlink(gr_routes_path(r));
    gr_routes_close(r);
}

/* ---------------------------------------------------------------- a placement's own figures, from the tokens */

typedef struct figures {
    uint64_t rows, node_rows, pairs;
    uint64_t windows[E], load[E];
} figures;

static void count_token(
    const gr_placement *p, const uint32_t *rank_of, uint32_t home, const uint16_t *ids, uint32_t *touch, figures *f) {
    bool rank[E] = {false}, node[E] = {false};
    for (uint32_t k = 0; k < p->K; k++) {
        const uint32_t r = rank_of[ids[k]];
        rank[r] = node[r / p->node_ranks] = true;
        f->pairs += r != home;
        f->load[r]++;
    }
    for (uint32_t r = 0; r < p->R; r++) {
        touch[r] += rank[r];
        f->rows += rank[r] && r != home;
    }
    for (uint32_t n = 0; n < p->n_node; n++)
        f->node_rows += node[n] && n != home / p->node_ranks;
}

static void count_table(const gr_placement *p, const gr_placed_table *t, gr_routes *r, figures *f) {
    uint32_t rank_of[E];
    for (uint32_t i = 0; i < E; i++)
        rank_of[p->expert_at[i]] = i / (E / p->R);
    for (uint64_t w = 0; w < t->n_window; w++) {
        uint16_t ids[T * K];
        float gates[T * K];
        uint32_t touch[E] = {0};
        assert_int_equal(gr_routes_read(r, w, NULL, ids, gates), 0);
        for (uint32_t i = 0; i < T; i++)
            count_token(p, rank_of, t->rank[w], ids + i * K, touch, f);
        assert_memory_equal(touch, t->touch.count + w * p->R, p->R * sizeof *touch);
        f->windows[t->rank[w]]++;
    }
}

static const gr_place_score *score_of(const gr_placement *p, const char *name) {
    for (int i = 0; i < p->n_score; i++)
        if (strcmp(p->score[i].name, name) == 0)
            return &p->score[i];
    fail_msg("no score of %s", name);
    return NULL;
}

static double most_over_mean(const uint64_t *sum, uint32_t n) {
    uint64_t most = 0;
    double total = 0;
    for (uint32_t i = 0; i < n; i++) {
        most = sum[i] > most ? sum[i] : most;
        total += (double)sum[i];
    }
    return (double)most * n / total;
}

/* Every expert has one slot, and the last score is what the tokens, counted one by one, give. */
static void assert_figures(const gr_placement *p, gr_routes *const *table) {
    figures f = {0};
    bool seen[E] = {false};
    uint64_t n_window = 0;
    for (uint32_t i = 0; i < E; i++) {
        assert_false(seen[p->expert_at[i]]);
        seen[p->expert_at[i]] = true;
        if (i % (E / p->R))
            assert_true(p->expert_at[i] > p->expert_at[i - 1]);
    }
    for (int i = 0; i < p->n_table; i++) {
        assert_int_equal(p->table[i].table_hash, gr_routes_get(table[i])->table_hash);
        count_table(p, &p->table[i], table[i], &f);
        n_window += p->table[i].n_window;
    }
    const double n_token = (double)n_window * T;
    const gr_place_score *s = &p->score[p->n_score - 1];
    assert_true(s->rows == (double)f.rows / n_token);
    assert_true(s->node_rows == (double)f.node_rows / n_token);
    assert_true(fabs(s->pairs - (double)f.pairs / n_token) < 1e-12);
    assert_true(fabs(s->load - most_over_mean(f.load, p->R)) < 1e-12);
    assert_true(fabs(s->windows - most_over_mean(f.windows, p->R)) < 1e-12);
    for (uint32_t r = 0; r < p->R; r++)
        assert_true(fabs(p->rank_load[r] - (double)f.load[r] * p->R / (n_token * K)) < 1e-12);
}

static void assert_equal_counts(const gr_placement *p) {
    uint64_t all[E] = {0}, n_all = 0;
    for (int i = 0; i < p->n_table; i++) {
        const gr_placed_table *t = &p->table[i];
        uint64_t count[E] = {0};
        for (uint64_t w = 0; w < t->n_window; w++)
            count[t->rank[w]]++;
        n_all += t->n_window;
        for (uint32_t r = 0; r < p->R; r++) {
            assert_in_range(count[r], t->n_window / p->R, (t->n_window + p->R - 1) / p->R);
            all[r] += count[r];
        }
    }
    for (uint32_t r = 0; r < p->R; r++)
        assert_in_range(all[r], n_all / p->R, (n_all + p->R - 1) / p->R);
}

static void assert_balanced_is_best(const gr_placement *p) {
    const gr_place_score *balanced = score_of(p, "balanced"), *capped = score_of(p, "paper, capped");
    assert_true(balanced->rows < score_of(p, "round-robin")->rows);
    assert_true(balanced->rows < score_of(p, "random")->rows);
    if (p->grain == GR_PLACE_BY_RANK)
        assert_true(balanced->rows <= capped->rows);
    else
        assert_true(balanced->node_rows <= capped->node_rows);
    /* With few experts on a rank loads cannot always be evener, least of all if these change places within a node only. */
    const double least = fmax(1.05, (p->grain == GR_PLACE_BY_RANK ? 1.01 : 1.03) * p->load_bound);
    assert_true(balanced->load <= least && capped->load <= least);
    assert_true(balanced->windows == capped->windows);
    assert_true(balanced->load >= p->load_bound && p->load_bound >= 1);
    assert_ptr_equal(balanced, &p->score[p->n_score - 1]);
}

/* ---------------------------------------------------------------- balanced */

static void test_balanced_moves_fewest_rows_at_equal_counts_within_the_cap(void **state) {
    (void)state;
    static const uint32_t topology[][2] = {{1, 2}, {2, 2}, {1, 16}, {4, 1}};
    const topic_shape s = shape();
    gr_routes *table = open_table("place_balanced.tmp", &s);
    for (size_t i = 0; i < sizeof topology / sizeof *topology; i++) {
        gr_placement p;
        const gr_place_options o = options(&table, 1, topology[i][0], topology[i][1]);
        assert_int_equal(gr_place(&o, &p), 0);
        assert_int_equal(p.R, topology[i][0] * topology[i][1]);
        assert_figures(&p, &table);
        assert_equal_counts(&p);
        if (p.R < E) /* else loads are those of single experts */
            assert_balanced_is_best(&p);
        assert_true(p.n_sampled == (uint64_t)N_WINDOW * T && p.together[0] > 0);
        gr_placement_close(&p);
    }
    close_table(table);
}

static void test_one_rank_keeps_everything(void **state) {
    (void)state;
    const topic_shape s = shape();
    gr_routes *table = open_table("place_one.tmp", &s);
    gr_placement p;
    const gr_place_options o = options(&table, 1, 1, 1);
    assert_int_equal(gr_place(&o, &p), 0);
    assert_figures(&p, &table);
    for (int i = 0; i < p.n_score; i++)
        assert_true(p.score[i].rows == 0 && p.score[i].pairs == 0 && p.score[i].load == 1);
    gr_placement_close(&p);
    close_table(table);
}

static void test_by_node_rows_between_nodes_come_first(void **state) {
    (void)state;
    const topic_shape s = shape();
    gr_routes *table = open_table("place_node.tmp", &s);
    gr_placement by_rank, by_node;
    gr_place_options o = options(&table, 1, 2, 4);
    assert_int_equal(gr_place(&o, &by_rank), 0);
    o.grain = GR_PLACE_BY_NODE;
    assert_int_equal(gr_place(&o, &by_node), 0);
    assert_figures(&by_node, &table);
    assert_equal_counts(&by_node);
    assert_balanced_is_best(&by_node);
    assert_true(score_of(&by_node, "balanced")->node_rows <= score_of(&by_rank, "balanced")->node_rows);
    gr_placement_close(&by_node);
    gr_placement_close(&by_rank);
    close_table(table);
}

static void test_several_tables_are_balanced_each_and_together(void **state) {
    (void)state;
    topic_shape s = shape();
    gr_routes *table[2] = {open_table("place_first.tmp", &s)};
    s.seed = 5;
    s.n_window = 58;
    table[1] = open_table("place_second.tmp", &s);
    gr_placement p;
    gr_place_options o = options(table, 2, 1, 4);
    o.n_sample = 90; /* fewer than there are */
    assert_int_equal(gr_place(&o, &p), 0);
    assert_int_equal(p.n_sampled, 90 * T);
    assert_figures(&p, table);
    assert_equal_counts(&p);
    gr_placement_close(&p);
    close_table(table[1]);
    close_table(table[0]);
}

static void test_an_expert_above_the_cap_gives_the_least_load_and_its_bound(void **state) {
    (void)state;
    topic_shape s = shape();
    s.hot = 1; /* expert 0 has a third of all pairs, a fair share of four ranks is a quarter */
    gr_routes *table = open_table("place_hot.tmp", &s);
    gr_placement p;
    const gr_place_options o = options(&table, 1, 1, 4);
    assert_int_equal(gr_place(&o, &p), 0);
    assert_figures(&p, &table);
    assert_equal_counts(&p);
    const gr_place_score *balanced = score_of(&p, "balanced");
    assert_true(p.load_bound > 1.3 && balanced->load >= p.load_bound - 1e-12);
    assert_true(balanced->load <= p.load_bound + 0.01); /* the coldest beside the hot one */
    assert_true(balanced->rows <= score_of(&p, "paper, capped")->rows);
    gr_placement_close(&p);
    close_table(table);
}

static void test_unused_slots_are_no_rows(void **state) {
    (void)state;
    topic_shape s = shape();
    s.n_window = 40;
    gr_routes_info info = topic_info(&s);
    info.variable_k = true;
    gr_routes_writer *w;
    gr_routes *table;
    const char *path = "place_variable.tmp";
    assert_int_equal(gr_routes_writer_open(&w, path, &info), 0);
    for (uint64_t i = 0; i < s.n_window; i++) {
        uint32_t tokens[T + 1] = {(uint32_t)i};
        uint16_t ids[T * K];
        float gates[T * K];
        for (uint32_t t = 0; t < T; t++) /* 0, an even one and an odd one; only the first is used */
            for (uint32_t k = 0; k < K; k++) {
                ids[t * K + k] = (uint16_t)(k == 0 ? i % 8 : 8 + 2 * k + (t + i) % 2);
                gates[t * K + k] = k == 0 ? 1.0f : 0.0f;
            }
        assert_int_equal(gr_routes_writer_window(w, i, tokens, ids, gates), 0);
    }
    assert_int_equal(gr_routes_writer_commit(w), 0);
    gr_routes_writer_close(w);
    assert_int_equal(gr_routes_open(&table, path), 0);
    gr_placement p;
    gr_place_options o = options(&table, 1, 1, 4);
    o.load_max = 4;
    assert_int_equal(gr_place(&o, &p), 0);
    assert_true(score_of(&p, "balanced")->rows == 0); /* each window has one expert, equally many windows each */
    for (uint32_t e = 8; e < E; e++)
        assert_int_equal(p.together[e * E + e], 0);
    gr_placement_close(&p);
    close_table(table);
}

/* ---------------------------------------------------------------- paper */

static void test_paper_follows_algorithm_1(void **state) {
    (void)state;
    const topic_shape s = shape();
    gr_routes *table = open_table("place_paper.tmp", &s);
    gr_placement p, q;
    gr_place_options o = options(&table, 1, 2, 2);
    o.method = GR_PLACE_PAPER;
    assert_int_equal(gr_place(&o, &p), 0);
    assert_int_equal(p.n_score, 3);
    assert_figures(&p, &table);
    assert_true(score_of(&p, "paper")->rows < score_of(&p, "round-robin")->rows);
    for (uint64_t w = 0; w < N_WINDOW; w++) {
        const uint32_t *touch = p.table[0].touch.count + w * 4;
        for (uint32_t r = 0; r < 4; r++)
            assert_true(touch[r] < touch[p.table[0].rank[w]] ||
                        (touch[r] == touch[p.table[0].rank[w]] && r >= p.table[0].rank[w]));
    }
    o.grain = GR_PLACE_BY_NODE; /* a node's windows go round its ranks, and so do its experts */
    assert_int_equal(gr_place(&o, &q), 0);
    assert_figures(&q, &table);
    uint32_t count[2] = {0};
    for (uint64_t w = 0; w < N_WINDOW; w++) {
        const uint16_t r = q.table[0].rank[w];
        assert_int_equal(r % 2, count[r / 2]++ % 2);
    }
    for (uint32_t n = 0; n < 2; n++)
        for (uint32_t i = 0; i + 1 < E / 4; i++) {
            const uint16_t *first = q.expert_at + 2 * n * (E / 4), *second = first + E / 4;
            assert_true(first[i] < second[i] && second[i] < first[i + 1]);
        }
    gr_placement_close(&q);
    gr_placement_close(&p);
    close_table(table);
}

/* ---------------------------------------------------------------- the same bits */

static uint8_t *placed_bytes(const gr_place_options *o, int n_thread, size_t *n) {
    const char *path = "place_bytes.tmp";
    gr_placement p;
    char *bytes;
#ifdef _OPENMP
    omp_set_num_threads(n_thread);
#else
    (void)n_thread;
#endif
    assert_int_equal(gr_place(o, &p), 0);
    assert_int_equal(gr_placement_write(&p, path), 0);
    gr_placement_close(&p);
    assert_int_equal(gr_file_read(path, 1 << 24, GR_DATA, &bytes, n), 0);
    unlink(path);
    return (uint8_t *)bytes;
}

static void test_threads_change_nothing_and_the_seed_does(void **state) {
    (void)state;
    topic_shape s = shape();
    s.n_window = 450; /* enough for threads */
    gr_routes *table = open_table("place_threads.tmp", &s);
    gr_place_options o = options(&table, 1, 2, 2);
    for (int grain = 0; grain < GR_N_PLACE_GRAIN; grain++) {
        size_t n[4];
        uint8_t *bytes[4];
        o.grain = (gr_place_grain)grain;
        o.seed = 3;
        o.n_sample = 400;
        for (int i = 0; i < 3; i++)
            bytes[i] = placed_bytes(&o, i + 1, &n[i]);
        o.seed = 4;
        bytes[3] = placed_bytes(&o, 1, &n[3]);
        for (int i = 1; i < 3; i++) {
            assert_int_equal(n[i], n[0]);
            assert_memory_equal(bytes[i], bytes[0], n[0]);
        }
        assert_true(n[3] != n[0] || memcmp(bytes[3], bytes[0], n[0]) != 0);
        for (int i = 0; i < 4; i++)
            free(bytes[i]);
    }
    close_table(table);
}

/* ---------------------------------------------------------------- what does not fit */

static void assert_fails(gr_place_options o, gr_err code, const char *part) {
    gr_placement p;
    assert_int_equal(gr_place(&o, &p), code);
    assert_null(p.expert_at);
    if (!strstr(gr_error_text(), part))
        fail_msg("\"%s\" is missing from: %s", part, gr_error_text());
}

static void test_topologies_that_do_not_fit_are_refused(void **state) {
    (void)state;
    const topic_shape s = shape();
    gr_routes *table = open_table("place_topology.tmp", &s);
    assert_fails(
        options(&table, 1, 1, 3), GR_CONFIG, "divides the 16 experts of place_topology.tmp, got 3 (1 nodes of 3)");
    assert_fails(
        options(&table, 1, 4, 8), GR_CONFIG, "at most as many ranks as the 16 experts of place_topology.tmp, got 32");
    assert_fails(options(&table, 1, UINT32_MAX, UINT32_MAX), GR_CONFIG, "1 to 4096 ranks");
    assert_fails(options(&table, 1, 0, 4), GR_CONFIG, "1 to 4096 ranks");
    close_table(table);
}

static void test_tables_that_do_not_belong_together_are_refused(void **state) {
    (void)state;
    topic_shape s = shape();
    gr_routes *table[2] = {open_table("place_a.tmp", &s)};
    table[1] = table[0];
    assert_fails(options(table, 2, 1, 2), GR_DATA, "each table once");
    for (int i = 0; i < 3; i++) {
        s = shape();
        s.E -= i == 0 ? 8 : 0;
        s.K -= i == 1 ? 1 : 0;
        s.T -= i == 2 ? 1 : 0;
        table[1] = open_table("place_b.tmp", &s);
        assert_fails(
            options(table, 2, 1, 2), GR_DATA, "place_b.tmp: expected E = 16, K = 3, T = 32 as in place_a.tmp, got");
        close_table(table[1]);
    }
    s = shape();
    gr_routes_info info = topic_info(&s);
    info.router.lo++;
    gr_routes_writer *w;
    assert_int_equal(gr_routes_writer_open(&w, "place_b.tmp", &info), 0);
    s.seed++;
    assert_int_equal(topic_write(w, &s), 0);
    assert_int_equal(gr_routes_writer_commit(w), 0);
    gr_routes_writer_close(w);
    assert_int_equal(gr_routes_open(&table[1], "place_b.tmp"), 0);
    assert_fails(options(table, 2, 1, 2), GR_DATA, "place_b.tmp: expected the router");
    close_table(table[1]);
    close_table(table[0]);
}

static void flip(const char *path, long at) {
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    const int c = fgetc(f);
    assert_int_equal(fseek(f, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    fputc(c ^ 1, f);
    assert_int_equal(fclose(f), 0);
}

/* Of several damaged windows the first is named, whichever thread meets one; windows outside the sample are seen too.
 */
static void test_damage_anywhere_is_found(void **state) {
    (void)state;
    const topic_shape s = shape();
    const char *path = "place_damaged.tmp";
    const long records = 512 + 4 * E * N_WINDOW, record = T * K * 3 + 16;
    gr_routes *table = open_table(path, &s);
    gr_place_options o = options(&table, 1, 1, 4);
    o.n_sample = 2;
    gr_placement p;
#ifdef _OPENMP
    omp_set_num_threads(2);
#endif
    flip(path, records + 119 * record + 5);
    assert_fails(o, GR_DATA, "place_damaged.tmp: window 119: expected record hash");
    flip(path, records + 17 * record + T * K * 3 + 2);
    assert_fails(o, GR_DATA, "place_damaged.tmp: window 17: expected record hash");
    flip(path, records + 17 * record + T * K * 3 + 2);
    flip(path, records + 119 * record + 5);
    flip(path, 512 + 4 * E * 100);
    assert_fails(o, GR_DATA, "place_damaged.tmp: window 100: expected record hash");
    flip(path, 512 + 4 * E * 100);
    flip(path, -1); /* the last window's token hash: no record of its own covers it, the table's hash does */
    assert_fails(o, GR_DATA, "place_damaged.tmp: expected table hash");
    flip(path, -1);
    assert_int_equal(gr_place(&o, &p), 0);
    gr_placement_close(&p);
    close_table(table);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_balanced_moves_fewest_rows_at_equal_counts_within_the_cap),
        cmocka_unit_test(test_one_rank_keeps_everything),
        cmocka_unit_test(test_by_node_rows_between_nodes_come_first),
        cmocka_unit_test(test_several_tables_are_balanced_each_and_together),
        cmocka_unit_test(test_an_expert_above_the_cap_gives_the_least_load_and_its_bound),
        cmocka_unit_test(test_unused_slots_are_no_rows),
        cmocka_unit_test(test_paper_follows_algorithm_1),
        cmocka_unit_test(test_threads_change_nothing_and_the_seed_does),
        cmocka_unit_test(test_topologies_that_do_not_fit_are_refused),
        cmocka_unit_test(test_tables_that_do_not_belong_together_are_refused),
        cmocka_unit_test(test_damage_anywhere_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
