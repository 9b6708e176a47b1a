/* The feed: files in proportion to their weights and epoch after epoch, every window with its own routes, limits that
 * no plan exceeds, and refusals that name the window. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grouter/train.h"

enum { E = 8, K = 2, T = 4, B = 2, N_FILE = 2, STEPS = 20, GLOBAL = 4, TAKEN = STEPS * GLOBAL };
static const uint32_t n_window[N_FILE] = {7, 3}, first_token[N_FILE] = {0, 100};
static const char *const tokens_path[N_FILE] = {"feed_a.tmp", "feed_b.tmp"};
static const char *const routes_path[N_FILE] = {"feed_a.tmp.routes", "feed_b.tmp.routes"};
static const char *const touch_path = "feed_a.tmp.routes.touch2";

static void make_routes(uint32_t file, uint64_t window, uint16_t *ids, float *gates) {
    for (uint32_t t = 0; t < T; t++) {
        uint16_t low = (uint16_t)((3 * file + window + t) % (E - 1));
        ids[t * K] = low;
        ids[t * K + 1] = (uint16_t)(low + 1 + (window * T + t) % (E - 1u - low));
        gates[t * K] = 0.75f;
        gates[t * K + 1] = 0.25f;
    }
}

static void make_file_of(uint32_t file, bool variable_k) {
    uint32_t tokens[T * 8], n_token = n_window[file] * T + 1;
    for (uint32_t i = 0; i < n_token; i++)
        tokens[i] = first_token[file] + i;
    gr_tokens_writer *w;
    assert_int_equal(gr_tokens_writer_open(&w, tokens_path[file], GR_BYTE_VOCAB), GR_OK);
    assert_int_equal(gr_tokens_writer_document(w, tokens, n_token), GR_OK);
    assert_int_equal(gr_tokens_writer_commit(w), GR_OK);
    gr_tokens_writer_close(w);

    gr_routes_info info = {.E = E,
        .K = K,
        .T = T,
        .scale = 1.0f,
        .n_window = n_window[file],
        .n_token = n_token,
        .variable_k = variable_k,
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

static void make_file(uint32_t file) {
    make_file_of(file, false);
}

static gr_config *make_config(void) {
    void *memory;
    assert_int_equal(gr_alloc(&memory, 1, sizeof(gr_config), "config"), GR_OK);
    gr_config *c = memory;
    c->run.seed = 11;
    c->model.vocab_size = GR_BYTE_VOCAB;
    c->model.num_experts = E;
    c->model.num_experts_per_tok = K;
    c->data.seq_len = T;
    c->data.n_train = c->data.n_valid = N_FILE;
    for (int f = 0; f < N_FILE; f++) {
        gr_data_file *file = &c->data.train[f];
        snprintf(file->tokens, sizeof file->tokens, "%s", tokens_path[f]);
        snprintf(file->routes, sizeof file->routes, "%s", routes_path[f]);
        file->weight = f == 0 ? 6 : 2; /* relative: 3 to 1 */
        c->data.valid[f] = *file;
    }
    c->train.steps = STEPS;
    c->train.micro_batch_windows = B;
    c->train.global_batch_windows = GLOBAL;
    return c;
}

/* One of n expert-parallel ranks without the others: nothing is exchanged once the feed is open. */
static gr_err sum_of_one(gr_comm *c, gr_group g, gr_dtype dtype, void *data, size_t n) {
    (void)c, (void)g, (void)dtype, (void)data, (void)n;
    return GR_OK;
}

static gr_comm lone_comm(int n_rank, int rank) {
    return (gr_comm){.rank = {rank, rank, 0}, .size = {n_rank, n_rank, 1}, .sum = sum_of_one};
}

typedef struct fixture {
    gr_config *config;
    gr_comm comm;
    gr_expert_map map;
    gr_feed *feed;
} fixture;

static void fixture_open(fixture *f, gr_feed_kind kind, int n_rank, int rank) {
    f->config = make_config();
    f->comm = lone_comm(n_rank, rank);
    assert_int_equal(gr_expert_map_open(&f->map, E, (uint32_t)n_rank), GR_OK);
    gr_err err = gr_feed_open(&f->feed, kind, f->config, &f->comm, &f->map, NULL);
    if (err)
        fail_msg("%s", gr_error_text());
}

static void fixture_close(fixture *f) {
    gr_feed_close(f->feed);
    gr_expert_map_close(&f->map);
    free(f->config);
}

typedef struct place {
    uint32_t file;
    uint64_t window;
} place;

/* Which window these T tokens are. */
static place find_place(const uint32_t *token) {
    uint32_t file = token[0] >= first_token[1], at = token[0] - first_token[file];
    assert_int_equal(at % T, 0);
    for (uint32_t t = 0; t < T; t++)
        assert_int_equal(token[t], token[0] + t);
    return (place){.file = file, .window = at / T};
}

static uint32_t expert_of_pair(const gr_plan *plan, uint32_t pair) {
    uint32_t e = 0;
    while (plan->expert_offset[e + 1] <= pair)
        e++;
    return e;
}

/* The pairs of window b are those its own routes ask for, with their gates. */
static void assert_routes_of(const gr_batch *batch, uint32_t b, place p) {
    uint16_t ids[T * K];
    float gates[T * K];
    make_routes(p.file, p.window, ids, gates);
    for (uint32_t t = 0; t < T; t++) {
        uint32_t first = batch->plan->row_pair_offset[b * T + t];
        assert_int_equal(batch->plan->row_pair_offset[b * T + t + 1] - first, K);
        for (uint32_t k = 0; k < K; k++) {
            uint32_t pair = batch->plan->row_pair[first + k];
            assert_int_equal(expert_of_pair(batch->plan, pair), ids[t * K + k]);
            assert_true(batch->pair_gate[pair] == gates[t * K + k]);
        }
    }
}

static void files_come_by_weight_and_epochs_wrap_without_repeats(void **state) {
    (void)state;
    fixture f;
    uint32_t taken[N_FILE] = {0}, visits[N_FILE][8] = {{0}};
    fixture_open(&f, GR_FEED_TRAIN, 1, 0);
    assert_int_equal(gr_feed_windows(f.feed), n_window[0] + n_window[1]);
    assert_int_equal(gr_feed_micro_batches(f.feed), GLOBAL / B);
    for (uint64_t i = 0; i < TAKEN / B; i++) {
        gr_micro m;
        assert_int_equal(gr_feed_prepare(f.feed, i / 2 * GLOBAL, i % 2, &m), GR_OK);
        assert_int_equal(m.n_target, B * T);
        for (uint32_t b = 0; b < B; b++) {
            place p = find_place(m.batch.token + b * T);
            assert_int_equal(m.batch.target[b * T + T - 1], m.batch.token[b * T + T - 1] + 1);
            assert_routes_of(&m.batch, b, p);
            assert_int_equal(visits[p.file][p.window]++, taken[p.file]++ / n_window[p.file]);
        }
    }
    assert_in_range(taken[0], TAKEN * 3 / 4 - 1, TAKEN * 3 / 4 + 1);
    assert_true(taken[0] > 2 * n_window[0] && taken[1] > 2 * n_window[1]);
    fixture_close(&f);
}

static void an_evaluation_visits_every_window_once_and_ignores_what_fills_up(void **state) {
    (void)state;
    fixture f;
    f.config = make_config();
    f.config->train.micro_batch_windows = 4; /* 10 windows in 3 micro-batches */
    f.comm = lone_comm(1, 0);
    assert_int_equal(gr_expert_map_open(&f.map, E, 1), GR_OK);
    assert_int_equal(gr_feed_open(&f.feed, GR_FEED_VALID, f.config, &f.comm, &f.map, NULL), GR_OK);
    assert_int_equal(gr_feed_micro_batches(f.feed), 3);
    uint32_t n = 0;
    uint64_t n_target = 0, n_byte = 0;
    for (uint64_t micro = 0; micro < 3; micro++) {
        gr_micro m;
        assert_int_equal(gr_feed_prepare(f.feed, 0, micro, &m), GR_OK);
        n_target += m.n_target;
        n_byte += m.n_byte;
        for (uint32_t b = 0; b < 4; b++, n++) {
            place p = find_place(m.batch.token + b * T);
            bool counted = n < n_window[0] + n_window[1];
            for (uint32_t t = 0; t < T; t++)
                assert_true((m.batch.target[b * T + t] >= 0) == counted);
            if (counted)
                assert_int_equal(p.file * n_window[0] + p.window, n);
        }
    }
    assert_int_equal(n_target, (n_window[0] + n_window[1]) * T);
    assert_int_equal(n_byte, n_target);
    fixture_close(&f);
}

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

static void limits_are_the_largest_plan_of_the_run_on_each_rank(void **state) {
    (void)state;
    for (int rank = 0; rank < 2; rank++) {
        fixture f;
        gr_plan_limits found = {0};
        fixture_open(&f, GR_FEED_TRAIN, 2, rank);
        for (uint64_t step = 0; step < STEPS; step++) {
            gr_micro m;
            assert_int_equal(gr_feed_prepare(f.feed, step * GLOBAL, 0, &m), GR_OK);
            found.send_max = larger(found.send_max, m.batch.plan->n_send);
            found.recv_max = larger(found.recv_max, m.batch.plan->n_recv);
            found.pair_max = larger(found.pair_max, m.batch.plan->n_pair);
        }
        const gr_plan_limits *limits = gr_feed_limits(f.feed);
        assert_int_equal(limits->send_max, found.send_max);
        assert_int_equal(limits->recv_max, found.recv_max);
        assert_int_equal(limits->pair_max, found.pair_max);
        fixture_close(&f);
    }
}

/* Overwrites bytes of a file; with `checksum` its last 8 bytes become the checksum of those before. */
static void damage(const char *path, size_t at, const void *bytes, size_t n, bool checksum) {
    char *text;
    size_t size;
    assert_int_equal(gr_file_read(path, 1 << 20, GR_DATA, &text, &size), GR_OK);
    assert_true(at + n <= size);
    memcpy(text + at, bytes, n);
    if (checksum)
        gr_store_u64((uint8_t *)text + size - 8, gr_hash64(text, size - 8));
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(text, 1, size, out), size);
    assert_int_equal(fclose(out), 0);
    free(text);
}

static gr_err prepare_all(gr_feed *feed) {
    gr_micro m;
    for (uint64_t step = 0; step < STEPS; step++)
        GR_TRY(gr_feed_prepare(feed, step * GLOBAL, 0, &m));
    return GR_OK;
}

static void assert_refused_in_mid_run(const char *what) {
    fixture f;
    fixture_open(&f, GR_FEED_TRAIN, 2, 0);
    assert_int_equal(prepare_all(f.feed), GR_DATA);
    const char *text = gr_error_text();
    if (!strstr(text, routes_path[0]) || !strstr(text, "window ") || !strstr(text, what))
        fail_msg("expected the file, the window and \"%s\", got: %s", what, text);
    fixture_close(&f);
}

static void touch_counts_that_are_too_low_are_refused_by_window(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, GR_FEED_TRAIN, 2, 0); /* makes the file of counts */
    fixture_close(&f);
    const uint8_t none[7 * 2 * 4] = {0};
    damage(touch_path, 40, none, sizeof none, true);
    assert_refused_in_mid_run(".touch2");
    unlink(touch_path);
}

static void an_absurd_histogram_is_refused_by_window(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, GR_FEED_TRAIN, 2, 0); /* makes the file of counts: the table is not scanned again */
    fixture_close(&f);
    uint8_t many[4 * E];
    memset(many, 0xff, sizeof many);
    for (size_t w = 0; w < n_window[0]; w++)
        damage(routes_path[0], GR_ROUTES_HEADER + w * sizeof many, many, sizeof many, false);
    assert_refused_in_mid_run("histogram");
    unlink(touch_path);
    make_file(0);
}

static gr_err open_learned(fixture *f, gr_feed_kind kind, int n_rank, int rank) {
    f->config = make_config();
    f->config->routing = f->config->model.routing =
        (gr_routing){.source = GR_SOURCE_LEARNED, .gates = GR_GATES_LEARNED, .scale = 1};
    for (int i = 0; i < N_FILE; i++)
        *f->config->data.train[i].routes = *f->config->data.valid[i].routes = '\0';
    f->comm = lone_comm(n_rank, rank);
    assert_int_equal(gr_expert_map_open(&f->map, E, (uint32_t)n_rank), GR_OK);
    return gr_feed_open(&f->feed, kind, f->config, &f->comm, &f->map, NULL);
}

/* Rank by rank the same windows as with tables, nothing but tokens, and limits for any choice. */
static void without_tables_each_rank_reads_its_own_windows(void **state) {
    (void)state;
    for (int rank = 0; rank < 2; rank++) {
        fixture with, without;
        fixture_open(&with, GR_FEED_TRAIN, 2, rank);
        assert_int_equal(open_learned(&without, GR_FEED_TRAIN, 2, rank), GR_OK);
        assert_int_equal(gr_feed_windows(without.feed), gr_feed_windows(with.feed));
        for (uint64_t step = 0; step < 3; step++) {
            gr_micro a, b;
            assert_int_equal(gr_feed_prepare(with.feed, step * GLOBAL, 0, &a), GR_OK);
            assert_int_equal(gr_feed_prepare(without.feed, step * GLOBAL, 0, &b), GR_OK);
            assert_memory_equal(a.batch.token, b.batch.token, B * T * sizeof *a.batch.token);
            assert_memory_equal(a.batch.target, b.batch.target, B * T * sizeof *a.batch.target);
            assert_true(a.n_target == b.n_target && a.n_byte == b.n_byte);
            assert_null(b.batch.plan);
            assert_null(b.batch.ids);
            assert_null(b.load);
        }
        const gr_plan_limits *l = gr_feed_limits(without.feed);
        assert_int_equal(l->N, B * T);
        assert_int_equal(l->send_max, B * T);
        assert_int_equal(l->recv_max, B * T);
        assert_int_equal(l->pair_max, 2 * B * T * K);
        fixture_close(&with);
        fixture_close(&without);
    }
    unlink(touch_path);
}

static void without_tables_a_file_is_known_by_its_ends(void **state) {
    (void)state;
    fixture f;
    char text[2][GR_FEED_CONTENT_MAX];
    assert_int_equal(open_learned(&f, GR_FEED_TRAIN, 1, 0), GR_OK);
    assert_non_null(strstr(gr_feed_content(f.feed, 0, text[0]), "29 tokens, ends "));
    const char *end = strstr(gr_feed_content(f.feed, 1, text[1]), "ends ");
    assert_non_null(end);
    assert_string_not_equal(strstr(text[0], "ends "), end);
    fixture_close(&f);
}

/* The own tokens' experts go with the plan, whatever their rank. */
static void learned_gates_get_the_experts_of_their_tokens(void **state) {
    (void)state;
    fixture f = {.config = make_config(), .comm = lone_comm(2, 1)};
    f.config->routing = f.config->model.routing = (gr_routing){.gates = GR_GATES_LEARNED, .scale = 1};
    assert_int_equal(gr_expert_map_open(&f.map, E, 2), GR_OK);
    assert_int_equal(gr_feed_open(&f.feed, GR_FEED_TRAIN, f.config, &f.comm, &f.map, NULL), GR_OK);
    gr_micro now, next;
    assert_int_equal(gr_feed_prepare(f.feed, 0, 0, &now), GR_OK);
    assert_int_equal(gr_feed_prepare(f.feed, GLOBAL, 0, &next), GR_OK); /* and they stay while the next is prepared */
    for (uint32_t b = 0; b < B; b++) {
        uint16_t ids[T * K];
        float gates[T * K];
        place p = find_place(now.batch.token + b * T);
        make_routes(p.file, p.window, ids, gates);
        assert_memory_equal(now.batch.ids + b * T * K, ids, sizeof ids);
    }
    fixture_close(&f);
    unlink(touch_path);
}

static void learned_gates_refuse_a_table_with_unused_slots(void **state) {
    (void)state;
    fixture f = {.config = make_config(), .comm = lone_comm(1, 0)};
    f.config->routing = f.config->model.routing = (gr_routing){.gates = GR_GATES_LEARNED, .scale = 1};
    assert_int_equal(gr_expert_map_open(&f.map, E, 1), GR_OK);
    make_file_of(0, true);
    assert_int_equal(gr_feed_open(&f.feed, GR_FEED_TRAIN, f.config, &f.comm, &f.map, NULL), GR_DATA);
    assert_non_null(strstr(gr_error_text(), "variable_k"));
    fixture_close(&f);
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
    for (int f = 0; f < N_FILE; f++) {
        const char *const suffix[] = {".bin", ".idx", ".routes", ".routes.touch2"};
        for (size_t i = 0; i < sizeof suffix / sizeof *suffix; i++) {
            char path[64];
            snprintf(path, sizeof path, "%s%s", tokens_path[f], suffix[i]);
            unlink(path);
        }
    }
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_come_by_weight_and_epochs_wrap_without_repeats),
        cmocka_unit_test(an_evaluation_visits_every_window_once_and_ignores_what_fills_up),
        cmocka_unit_test(limits_are_the_largest_plan_of_the_run_on_each_rank),
        cmocka_unit_test(touch_counts_that_are_too_low_are_refused_by_window),
        cmocka_unit_test(an_absurd_histogram_is_refused_by_window),
        cmocka_unit_test(without_tables_each_rank_reads_its_own_windows),
        cmocka_unit_test(without_tables_a_file_is_known_by_its_ends),
        cmocka_unit_test(learned_gates_get_the_experts_of_their_tokens),
        cmocka_unit_test(learned_gates_refuse_a_table_with_unused_slots),
    };
    gr_log_set(GR_LOG_QUIET);
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
