/* The feed with a placement: the same windows in each global batch, where their experts are; limits that no choice of
 * places exceeds; windows by group once per epoch; and the figures of what that does. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <glob.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "placement_fixture.h"
#include "train/internal.h"

enum { E = 8, K = 2, T = 8, B = 2, R_EP = 2, N_GROUP = 2, R = R_EP * N_GROUP, N_FILE = 2, STEPS = 12, GLOBAL = 16 };
enum { N_MICRO = GLOBAL / (R * B) };
static const uint32_t n_window[N_FILE] = {21, 12},
                      first_token[N_FILE] = {0, 172}; /* 169 and 97 tokens with steps of 1 */
static const char *const tokens_path[N_FILE] = {"placed_a.tmp", "placed_b.tmp"};
static const char *const routes_path[N_FILE] = {"placed_a.tmp.routes", "placed_b.tmp.routes"};
enum { VOCAB = 300 };

/* Each window likes some experts: what a placement is for. */
static void make_routes(uint32_t file, uint64_t window, uint16_t *ids, float *gates) {
    uint32_t liked = gr_random_below(5, file, window, E);
    for (uint32_t t = 0; t < T; t++) {
        uint64_t at = window * T + t;
        uint32_t a = gr_random_below(6, file, at, 3) ? liked : gr_random_below(7, file, at, E);
        uint32_t b = (a + 1 + gr_random_below(8, file, at, E - 1)) % E;
        ids[t * K] = (uint16_t)(a < b ? a : b);
        ids[t * K + 1] = (uint16_t)(a < b ? b : a);
        gates[t * K] = 0.75f;
        gates[t * K + 1] = 0.25f;
    }
}

static void make_file(uint32_t file) {
    uint32_t tokens[T * 32], n_token = n_window[file] * T + 1;
    for (uint32_t i = 0; i < n_token; i++)
        tokens[i] = first_token[file] + i;
    gr_tokens_writer *w;
    assert_int_equal(gr_tokens_writer_open(&w, tokens_path[file], VOCAB), GR_OK);
    assert_int_equal(gr_tokens_writer_document(w, tokens, n_token), GR_OK);
    assert_int_equal(gr_tokens_writer_commit(w), GR_OK);
    gr_tokens_writer_close(w);
    gr_routes_info info = {.E = E,
        .K = K,
        .T = T,
        .scale = 1,
        .n_window = n_window[file],
        .n_token = n_token,
        .router = {.lo = 7, .hi = 9},
        .provenance = "a test"};
    gr_routes_writer *r;
    assert_int_equal(gr_routes_writer_open(&r, routes_path[file], &info), GR_OK);
    for (uint64_t i = 0; i < n_window[file]; i++) {
        uint16_t ids[T * K];
        float gates[T * K];
        make_routes(file, i, ids, gates);
        assert_int_equal(gr_routes_writer_window(r, i, tokens + i * T, ids, gates), GR_OK);
    }
    assert_int_equal(gr_routes_writer_commit(r), GR_OK);
    gr_routes_writer_close(r);
}

static gr_config *make_config(gr_windows windows) {
    gr_config *c = placement_fixture_take(1, sizeof *c);
    c->run.seed = 11;
    c->model.vocab_size = VOCAB;
    c->model.num_experts = E;
    c->model.num_experts_per_tok = K;
    c->data.seq_len = T;
    c->data.windows = windows;
    c->data.n_train = c->data.n_valid = N_FILE;
    for (int f = 0; f < N_FILE; f++) {
        gr_data_file *file = &c->data.train[f];
        snprintf(file->tokens, sizeof file->tokens, "%s", tokens_path[f]);
        snprintf(file->routes, sizeof file->routes, "%s", routes_path[f]);
        file->weight = f == 0 ? 3 : 1;
        c->data.valid[f] = *file;
    }
    snprintf(c->parallel.placement, sizeof c->parallel.placement, "placed.tmp");
    c->parallel.expert_parallel_size = R_EP;
    c->train.steps = STEPS;
    c->train.micro_batch_windows = B;
    c->train.global_batch_windows = GLOBAL;
    return c;
}

static gr_err sum_of_one(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n) {
    (void)c, (void)g, (void)dtype, (void)data, (void)n;
    return GR_OK;
}

/* Rank `rank` of R without the others: nothing is exchanged once the feed is open. */
typedef struct fixture {
    gr_config *config;
    gr_comm comm;
    gr_expert_map map;
    gr_placement placement;
    gr_feed *feed;
} fixture;

static void make_placement(gr_placement *p, bool equal, int n_table) {
    placement_fixture_make(p, &(placement_fixture){.routes = routes_path,
                                  .tokens = tokens_path,
                                  .n_table = n_table,
                                  .n_vocab = VOCAB,
                                  .n_node = 1,
                                  .node_ranks = R_EP,
                                  .seed = 3,
                                  .equal = equal});
}

/* All but the feed. */
static void fixture_prepare(fixture *f, gr_windows windows, int rank) {
    *f = (fixture){.config = make_config(windows),
        .comm = {.rank = {rank, rank % R_EP, rank / R_EP}, .size = {R, R_EP, N_GROUP}, .sum = sum_of_one}};
    make_placement(&f->placement, true, N_FILE);
    assert_int_equal(gr_expert_map_open_placed(&f->map, E, R_EP, f->placement.expert_at), GR_OK);
}

static gr_err fixture_survey(fixture *f, gr_feed_kind kind, bool placed) {
    const gr_feed_options o = {.kind = kind,
        .config = f->config,
        .comm = &f->comm,
        .map = &f->map,
        .placement = placed ? &f->placement : NULL};
    return gr_feed_survey(&f->feed, &o);
}

static void fixture_open(fixture *f, gr_windows windows, int rank, bool placed) {
    fixture_prepare(f, windows, rank);
    if (fixture_survey(f, GR_FEED_TRAIN, placed))
        fail_msg("%s", gr_error_text());
    assert_int_equal(gr_feed_allocate(f->feed), GR_OK);
}

static void fixture_close(fixture *f) {
    gr_feed_close(f->feed);
    gr_expert_map_close(&f->map);
    gr_placement_close(&f->placement);
    free(f->config);
}

/* Window `number`: those of file 0, then those of file 1. */
static uint32_t number_of(const uint32_t *token) {
    uint32_t file = token[0] >= first_token[1];
    return (file ? n_window[0] : 0) + (token[0] - first_token[file]) / T;
}

static const gr_placed_table *table_of(const fixture *f, uint32_t number, uint64_t *window) {
    uint32_t file = number >= n_window[0];
    *window = number - (file ? n_window[0] : 0);
    return &f->placement.table[file];
}

static void prepare(fixture *f, uint64_t step, uint64_t micro, gr_micro *m) {
    if (gr_feed_prepare(f->feed, step * GLOBAL, micro, m))
        fail_msg("%s", gr_error_text());
}

enum { N_WINDOW = 33 };

/* How often each window is in each step's batch, over all ranks. */
static void count_windows(gr_windows windows, bool placed, uint32_t count[STEPS][N_WINDOW]) {
    for (int rank = 0; rank < R; rank++) {
        fixture f;
        fixture_open(&f, windows, rank, placed);
        for (uint64_t step = 0; step < STEPS; step++)
            for (uint64_t micro = 0; micro < N_MICRO; micro++) {
                gr_micro m;
                prepare(&f, step, micro, &m);
                for (uint32_t b = 0; b < B; b++)
                    count[step][number_of(m.batch.token + b * T)]++;
            }
        fixture_close(&f);
    }
}

static void a_global_batch_keeps_its_windows(void **state) {
    (void)state;
    uint32_t plain[STEPS][N_WINDOW] = {{0}}, packed[STEPS][N_WINDOW] = {{0}};
    count_windows(GR_WINDOWS_BATCH, false, plain);
    count_windows(GR_WINDOWS_BATCH, true, packed);
    assert_memory_equal(plain, packed, sizeof plain);
}

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

/* Plans of all ranks and micro-batches: what they need, and per step their rows and their fullest rank. */
typedef struct achieved {
    uint64_t send, recv, pair;
    uint64_t rows[STEPS], fullest[STEPS], pairs[STEPS];
} achieved;

static void run_rank(fixture *f, achieved *a) {
    for (uint64_t step = 0; step < STEPS; step++)
        for (uint64_t micro = 0; micro < N_MICRO; micro++) {
            gr_micro m;
            prepare(f, step, micro, &m);
            const gr_plan *p = m.batch.plan;
            a->send = larger(a->send, p->n_send);
            a->recv = larger(a->recv, p->n_recv);
            a->pair = larger(a->pair, p->n_pair);
            a->rows[step] += p->n_send;
            a->pairs[step] += p->n_pair;
            a->fullest[step] = larger(a->fullest[step], p->n_pair);
        }
}

static void no_plan_exceeds_its_bound_and_rows_are_the_fewest(void **state) {
    (void)state;
    achieved all = {0}, plain = {0};
    double expected;
    uint64_t rows = 0;
    gr_micro m;
    fixture f;
    for (int rank = 0; rank < R; rank++) {
        achieved mine = {0};
        fixture_open(&f, GR_WINDOWS_BATCH, rank, true);
        run_rank(&f, &mine);
        const gr_plan_limits *l = gr_feed_limits(f.feed);
        assert_true(mine.send > 0 && mine.send <= l->send_max);
        assert_true(mine.recv > 0 && mine.recv <= l->recv_max);
        assert_true(mine.pair > 0 && mine.pair <= l->pair_max);
        assert_int_equal(gr_feed_rows(f.feed, &expected), GR_OK);
        for (int step = 0; step < STEPS; step++) {
            rows += mine.rows[step];
            all.rows[step] += mine.rows[step];
            all.pairs[step] += mine.pairs[step];
            all.fullest[step] = larger(all.fullest[step], mine.fullest[step]);
        }
        fixture_close(&f);
        fixture_open(&f, GR_WINDOWS_BATCH, rank, false);
        run_rank(&f, &plain);
        fixture_close(&f);
    }
    assert_true(fabs(expected * STEPS * R - (double)rows) < 1e-6);
    fixture_open(&f, GR_WINDOWS_BATCH, 0, true);
    double gained = 0;
    for (uint64_t step = 0; step < STEPS; step++) {
        prepare(&f, step, 0, &m);
        assert_true(m.rows_best == (double)all.rows[step]);
        double imbalance = (double)all.fullest[step] * R * N_MICRO / (double)all.pairs[step];
        assert_true(imbalance >= m.imbalance_best - 1e-12);
        assert_true(all.rows[step] <= plain.rows[step]);
        gained += (double)(plain.rows[step] - all.rows[step]);
    }
    assert_true(gained > 0);
    fixture_close(&f);
}

/* The worst that a batch may do to a rank, from all its windows, by sorting. */
static int descending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x < y) - (x > y);
}

static void limits_are_the_bound_of_the_largest_windows(void **state) {
    (void)state;
    uint32_t count[STEPS][N_WINDOW] = {{0}};
    uint64_t recv = 0, send = 0, pair = 0;
    count_windows(GR_WINDOWS_BATCH, false, count);
    fixture f;
    fixture_open(&f, GR_WINDOWS_BATCH, 3, true);
    for (int step = 0; step < STEPS; step++) {
        uint32_t in[GLOBAL], out[GLOBAL], pairs[GLOBAL], n = 0;
        for (uint32_t w = 0; w < N_WINDOW; w++)
            for (uint32_t i = 0; i < count[step][w]; i++, n++) {
                uint64_t window;
                const gr_placed_table *t = table_of(&f, w, &window);
                uint16_t ids[T * K];
                float gates[T * K];
                in[n] = t->touch.count[window * R_EP + 1];
                out[n] = t->touch.count[window * R_EP];
                pairs[n] = 0;
                make_routes(w >= n_window[0], window, ids, gates);
                for (int k = 0; k < T * K; k++)
                    pairs[n] += f.map.rank_of[ids[k]] == 1;
            }
        assert_int_equal(n, GLOBAL);
        uint64_t sum[3] = {0};
        qsort(in, n, sizeof *in, descending);
        qsort(out, n, sizeof *out, descending);
        qsort(pairs, n, sizeof *pairs, descending);
        for (int i = 0; i < R_EP * B; i++) {
            sum[0] += i < (R_EP - 1) * B ? in[i] : 0;
            sum[1] += i < B ? out[i] : 0;
            sum[2] += pairs[i];
        }
        recv = larger(recv, sum[0]);
        send = larger(send, sum[1]);
        pair = larger(pair, sum[2]);
    }
    const gr_plan_limits *l = gr_feed_limits(f.feed);
    assert_int_equal(l->recv_max, recv);
    assert_int_equal(l->send_max, send);
    assert_int_equal(l->pair_max, pair);
    fixture_close(&f);
}

static void going_back_finds_the_same_places(void **state) {
    (void)state;
    fixture f;
    gr_micro m;
    uint32_t first[B * T], again[B * T];
    fixture_open(&f, GR_WINDOWS_BATCH, 1, true);
    prepare(&f, 2, 1, &m);
    memcpy(first, m.batch.token, sizeof first);
    prepare(&f, 7, 0, &m);
    prepare(&f, 2, 1, &m);
    memcpy(again, m.batch.token, sizeof again);
    assert_memory_equal(first, again, sizeof first);
    fixture_close(&f);
}

static void validation_windows_stay_and_their_limits_are_exact(void **state) {
    (void)state;
    fixture f;
    achieved a = {0};
    fixture_prepare(&f, GR_WINDOWS_BATCH, 1);
    assert_int_equal(fixture_survey(&f, GR_FEED_VALID, false), GR_OK);
    assert_int_equal(gr_feed_allocate(f.feed), GR_OK);
    for (uint64_t micro = 0; micro < gr_feed_micro_batches(f.feed); micro++) {
        gr_micro m;
        assert_int_equal(gr_feed_prepare(f.feed, 0, micro, &m), GR_OK);
        for (uint32_t b = 0; b < B; b++) {
            uint32_t at = (uint32_t)micro * R * B + 1 * B + b;
            assert_int_equal(number_of(m.batch.token + b * T), at < N_WINDOW ? at : 0);
        }
        assert_true(isnan(m.rows_best) && isnan(m.imbalance_best));
        a.send = larger(a.send, m.batch.plan->n_send);
        a.recv = larger(a.recv, m.batch.plan->n_recv);
        a.pair = larger(a.pair, m.batch.plan->n_pair);
    }
    const gr_plan_limits *l = gr_feed_limits(f.feed);
    assert_true(l->send_max == a.send && l->recv_max == a.recv && l->pair_max == a.pair);
    fixture_close(&f);
}

/* ---------------------------------------------------------------- windows by group */

/* Each rank of the second place in its group, and the first: only windows of that group, each once per epoch. */
static void a_rank_reads_its_group_once_per_epoch(void **state) {
    (void)state;
    for (int place = 0; place < R_EP; place++) {
        uint32_t seen[N_WINDOW] = {0}, taken[N_FILE] = {0}, members[N_FILE] = {0};
        fixture f[N_GROUP];
        for (int g = 0; g < N_GROUP; g++)
            fixture_open(&f[g], GR_WINDOWS_CORPUS, g * R_EP + place, true);
        for (uint32_t w = 0; w < N_WINDOW; w++) {
            uint64_t window;
            const gr_placed_table *t = table_of(f, w, &window);
            members[w >= n_window[0]] += t->rank[window] == place;
        }
        for (uint64_t step = 0; step < STEPS; step++)
            for (uint64_t bin = 0; bin < N_MICRO * N_GROUP; bin++) { /* the order of their common stream */
                gr_micro m;
                prepare(&f[bin % N_GROUP], step, bin / N_GROUP, &m);
                for (uint32_t b = 0; b < B; b++) {
                    uint64_t window;
                    uint32_t w = number_of(m.batch.token + b * T), file = w >= n_window[0];
                    assert_int_equal(table_of(f, w, &window)->rank[window], place);
                    assert_int_equal(seen[w]++, taken[file]++ / members[file]);
                }
            }
        assert_true(taken[0] > 2 * members[0] && taken[1] > 2 * members[1]);
        assert_in_range(taken[0], 3 * taken[1] - 4, 3 * taken[1] + 4); /* weights 3 and 1 */
        for (int g = 0; g < N_GROUP; g++)
            fixture_close(&f[g]);
    }
}

static void by_group_limits_are_exact_and_best_figures_are_those_of_the_batch(void **state) {
    (void)state;
    achieved all = {0};
    fixture f;
    for (int rank = 0; rank < R; rank++) {
        achieved mine = {0};
        fixture_open(&f, GR_WINDOWS_CORPUS, rank, true);
        run_rank(&f, &mine);
        const gr_plan_limits *l = gr_feed_limits(f.feed);
        assert_int_equal(l->send_max, mine.send);
        assert_int_equal(l->recv_max, mine.recv);
        assert_int_equal(l->pair_max, mine.pair);
        for (int step = 0; step < STEPS; step++)
            all.rows[step] += mine.rows[step];
        fixture_close(&f);
    }
    fixture_open(&f, GR_WINDOWS_CORPUS, 0, true);
    for (uint64_t step = 0; step < STEPS; step++) {
        gr_micro m;
        prepare(&f, step, 0, &m);
        assert_true(m.rows_best <= (double)all.rows[step] && m.rows_best > 0 && m.imbalance_best >= 1);
    }
    fixture_close(&f);
}

static void the_bias_of_reading_by_group_is_that_of_its_definition(void **state) {
    (void)state;
    fixture f;
    gr_feed_bias bias;
    uint32_t count[2][STEPS][N_WINDOW] = {{{0}}};
    count_windows(GR_WINDOWS_CORPUS, true, count[0]);
    count_windows(GR_WINDOWS_BATCH, false, count[1]);
    fixture_open(&f, GR_WINDOWS_CORPUS, 0, true);
    assert_int_equal(gr_feed_bias_get(f.feed, &bias), GR_OK);

    /* Every window's chance by group and share of the data. */
    double variation = 0, least = INFINITY, most = 0;
    for (uint32_t w = 0; w < N_WINDOW; w++) {
        uint64_t window;
        const gr_placed_table *t = table_of(&f, w, &window);
        double weight = w < n_window[0] ? 0.75 : 0.25, members = 0;
        for (uint64_t i = 0; i < t->n_window; i++)
            members += t->rank[i] == t->rank[window];
        double share = weight / (double)t->n_window, chance = weight / (R_EP * members);
        variation += fabs(chance - share) / 2;
        least = fmin(least, chance / share);
        most = fmax(most, chance / share);
    }
    assert_true(fabs(bias.total_variation - variation) < 1e-12 && variation > 0);
    assert_true(fabs(bias.importance_min - least) < 1e-12 && fabs(bias.importance_max - most) < 1e-12);
    assert_int_equal(bias.n_batch, STEPS);

    double q[VOCAB] = {0}, share[E] = {0};
    for (int file = 0; file < N_FILE; file++) { /* tokens follow one another: each once in the file */
        double weight = file == 0 ? 0.75 : 0.25, n = (double)n_window[file] * T, load[E] = {0};
        for (uint32_t v = 0; v < VOCAB; v++)
            q[v] += weight * (v >= first_token[file] && v < first_token[file] + n ? 2 : 1) / (n + VOCAB);
        for (uint64_t w = 0; w < n_window[file]; w++) {
            uint16_t ids[T * K];
            float gates[T * K];
            make_routes((uint32_t)file, w, ids, gates);
            for (int k = 0; k < T * K; k++)
                load[ids[k]]++;
        }
        for (int e = 0; e < E; e++)
            share[e] += weight * load[e] / (n * K);
    }
    for (int order = 0; order < 2; order++) {
        double divergence = 0, chi = 0;
        for (int step = 0; step < STEPS; step++) {
            double load[E] = {0}, n_pair = GLOBAL * T * K;
            for (uint32_t w = 0; w < N_WINDOW; w++) {
                uint64_t window;
                uint32_t file = w >= n_window[0];
                uint16_t ids[T * K];
                float gates[T * K];
                (void)table_of(&f, w, &window);
                make_routes(file, window, ids, gates);
                for (int k = 0; k < T * K; k++)
                    load[ids[k]] += count[order][step][w];
                for (uint32_t t = 0; t < T && count[order][step][w]; t++) {
                    double p = (double)count[order][step][w] / (GLOBAL * T);
                    divergence += p * log(p / q[first_token[file] + window * T + t]) / STEPS;
                }
            }
            for (int e = 0; e < E; e++)
                chi += pow(load[e] - n_pair * share[e], 2) / (n_pair * share[e]) / (E - 1) / STEPS;
        }
        assert_true(fabs(bias.unigram[order] - divergence) < 1e-9);
        assert_true(fabs(bias.expert[order] - chi) < 1e-9);
    }
    fixture_close(&f);
}

/* ---------------------------------------------------------------- what is refused */

static void assert_error_names(const char *part) {
    if (!strstr(gr_error_text(), part))
        fail_msg("\"%s\" is missing from: %s", part, gr_error_text());
}

static void a_table_without_a_section_is_refused(void **state) {
    (void)state;
    fixture f;
    fixture_prepare(&f, GR_WINDOWS_BATCH, 0);
    gr_placement_close(&f.placement);
    make_placement(&f.placement, true, 1); /* of the first table alone */
    assert_int_equal(fixture_survey(&f, GR_FEED_TRAIN, true), GR_DATA);
    assert_error_names("placed.tmp: expected a placement of route table placed_b.tmp.routes");
    assert_error_names("grouter-train place");
    f.feed = NULL;
    fixture_close(&f);
}

static void a_group_without_windows_is_refused(void **state) {
    (void)state;
    fixture f;
    fixture_prepare(&f, GR_WINDOWS_CORPUS, 0);
    for (uint64_t w = 0; w < n_window[1]; w++)
        f.placement.table[1].rank[w] = 0;
    assert_int_equal(fixture_survey(&f, GR_FEED_TRAIN, true), GR_DATA);
    assert_error_names("placed_b.tmp.routes");
    assert_error_names("got none on rank 1");
    f.feed = NULL;
    fixture_close(&f);
}

static void counts_that_are_too_low_are_refused_by_window(void **state) {
    (void)state;
    fixture f;
    gr_err e = GR_OK;
    fixture_prepare(&f, GR_WINDOWS_BATCH, 0);
    memset(f.placement.table[0].touch.count, 0, n_window[0] * R_EP * sizeof(uint32_t));
    memset(f.placement.table[1].touch.count, 0, n_window[1] * R_EP * sizeof(uint32_t));
    assert_int_equal(fixture_survey(&f, GR_FEED_TRAIN, true), GR_OK);
    assert_int_equal(gr_feed_allocate(f.feed), GR_OK);
    for (uint64_t step = 0; step < STEPS && !e; step++) {
        gr_micro m;
        e = gr_feed_prepare(f.feed, step * GLOBAL, 0, &m);
    }
    assert_int_equal(e, GR_DATA);
    assert_error_names("window ");
    assert_error_names("placed.tmp; place again");
    fixture_close(&f);
}

/* A histogram is a hint until its window is read: it asks for no more than windows can need. */
static void an_absurd_histogram_asks_for_no_more_than_windows_need(void **state) {
    (void)state;
    fixture f;
    gr_micro m;
    gr_err e = GR_OK;
    uint8_t many[4 * E];
    memset(many, 0xff, sizeof many);
    fixture_prepare(&f, GR_WINDOWS_BATCH, 0);
    FILE *table = fopen(routes_path[0], "r+b");
    assert_non_null(table);
    assert_int_equal(fseek(table, GR_ROUTES_HEADER, SEEK_SET), 0);
    for (uint32_t w = 0; w < n_window[0]; w++)
        assert_int_equal(fwrite(many, 1, sizeof many, table), sizeof many);
    assert_int_equal(fclose(table), 0);
    assert_int_equal(fixture_survey(&f, GR_FEED_TRAIN, true), GR_OK);
    assert_in_range(gr_feed_limits(f.feed)->pair_max, 1, R_EP * B * T * K);
    assert_int_equal(gr_feed_allocate(f.feed), GR_OK);
    for (uint64_t step = 0; step < STEPS && !e; step++)
        e = gr_feed_prepare(f.feed, step * GLOBAL, 0, &m);
    assert_int_equal(e, GR_DATA);
    assert_error_names("histogram");
    fixture_close(&f);
    unlink(routes_path[0]);
    make_file(0);
}

static int make_files(void **state) {
    (void)state;
    for (uint32_t f = 0; f < N_FILE; f++)
        make_file(f);
    return 0;
}

static int remove_files(void **state) {
    (void)state;
    glob_t found;
    if (glob("placed_[ab].tmp*", 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc; i++)
            unlink(found.gl_pathv[i]);
    globfree(&found);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_global_batch_keeps_its_windows),
        cmocka_unit_test(no_plan_exceeds_its_bound_and_rows_are_the_fewest),
        cmocka_unit_test(limits_are_the_bound_of_the_largest_windows),
        cmocka_unit_test(going_back_finds_the_same_places),
        cmocka_unit_test(validation_windows_stay_and_their_limits_are_exact),
        cmocka_unit_test(a_rank_reads_its_group_once_per_epoch),
        cmocka_unit_test(by_group_limits_are_exact_and_best_figures_are_those_of_the_batch),
        cmocka_unit_test(the_bias_of_reading_by_group_is_that_of_its_definition),
        cmocka_unit_test(a_table_without_a_section_is_refused),
        cmocka_unit_test(a_group_without_windows_is_refused),
        cmocka_unit_test(counts_that_are_too_low_are_refused_by_window),
        cmocka_unit_test(an_absurd_histogram_asks_for_no_more_than_windows_need),
    };
    gr_log_set(GR_LOG_QUIET);
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
