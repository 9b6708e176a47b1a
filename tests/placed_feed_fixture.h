/* placed_feed_fixture.h: two small token files with route tables whose windows like some experts, a placement of them,
 * and feeds of each rank. Whoever includes it defines PLACED_NAME, the beginning of its files' names. */
#ifndef GROUTER_PLACED_FEED_FIXTURE_H
#define GROUTER_PLACED_FEED_FIXTURE_H

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
static const char *const tokens_path[N_FILE] = {PLACED_NAME "_a.tmp", PLACED_NAME "_b.tmp"};
static const char *const routes_path[N_FILE] = {PLACED_NAME "_a.tmp.routes", PLACED_NAME "_b.tmp.routes"};
enum { VOCAB = 300 };

/* Each window likes some experts: what a placement is for. */
static inline void make_routes(uint32_t file, uint64_t window, uint16_t *ids, float *gates) {
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

static inline void make_file(uint32_t file) {
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

static inline gr_config *make_config(gr_windows windows) {
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

static inline gr_err sum_of_one(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n) {
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

static inline void make_placement(gr_placement *p, bool equal, int n_table) {
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
static inline void fixture_prepare(fixture *f, gr_windows windows, int rank) {
    *f = (fixture){.config = make_config(windows),
        .comm = {.rank = {rank, rank % R_EP, rank / R_EP}, .size = {R, R_EP, N_GROUP}, .sum = sum_of_one}};
    make_placement(&f->placement, true, N_FILE);
    assert_int_equal(gr_expert_map_open_placed(&f->map, E, R_EP, f->placement.expert_at), GR_OK);
}

static inline gr_err fixture_survey(fixture *f, gr_feed_kind kind, bool placed) {
    const gr_feed_options o = {.kind = kind,
        .config = f->config,
        .comm = &f->comm,
        .map = &f->map,
        .placement = placed ? &f->placement : NULL};
    return gr_feed_survey(&f->feed, &o);
}

static inline void fixture_open(fixture *f, gr_windows windows, int rank, bool placed) {
    fixture_prepare(f, windows, rank);
    if (fixture_survey(f, GR_FEED_TRAIN, placed))
        fail_msg("%s", gr_error_text());
    assert_int_equal(gr_feed_allocate(f->feed), GR_OK);
}

static inline void fixture_close(fixture *f) {
    gr_feed_close(f->feed);
    gr_expert_map_close(&f->map);
    gr_placement_close(&f->placement);
    free(f->config);
}

/* Window `number`: those of file 0, then those of file 1. */
static inline uint32_t number_of(const uint32_t *token) {
    uint32_t file = token[0] >= first_token[1];
    return (file ? n_window[0] : 0) + (token[0] - first_token[file]) / T;
}

static inline const gr_placed_table *table_of(const fixture *f, uint32_t number, uint64_t *window) {
    uint32_t file = number >= n_window[0];
    *window = number - (file ? n_window[0] : 0);
    return &f->placement.table[file];
}

static inline void prepare(fixture *f, uint64_t step, uint64_t micro, gr_micro *m) {
    if (gr_feed_prepare(f->feed, step * GLOBAL, micro, m))
        fail_msg("%s", gr_error_text());
}

enum { N_WINDOW = 33 };

/* How often each window is in each step's batch, over all ranks. */
static inline void count_windows(gr_windows windows, bool placed, uint32_t count[STEPS][N_WINDOW]) {
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

static inline uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

/* Plans of all ranks and micro-batches: what they need, and per step their rows and their fullest rank. */
typedef struct achieved {
    uint64_t send, recv, pair;
    uint64_t rows[STEPS], fullest[STEPS], pairs[STEPS];
} achieved;

static inline void run_rank(fixture *f, achieved *a) {
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

static inline void assert_error_names(const char *part) {
    if (!strstr(gr_error_text(), part))
        fail_msg("\"%s\" is missing from: %s", part, gr_error_text());
}

static inline int make_files(void **state) {
    (void)state;
    for (uint32_t f = 0; f < N_FILE; f++)
        make_file(f);
    return 0;
}

static inline int remove_files(void **state) {
    (void)state;
    glob_t found;
    if (glob(PLACED_NAME "_[ab].tmp*", 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc; i++)
            unlink(found.gl_pathv[i]);
    globfree(&found);
    return 0;
}

#endif
