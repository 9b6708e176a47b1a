/* test_bit_flips.c: one bit at a time is flipped, at random places, in files that training reads, and the file is then
 * read as training reads it: the damage must be found before anything of it is used. `test_bit_flips SEED` tries other
 * places. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <fcntl.h>
#include <inttypes.h>

#define CHECKPOINT_FOLDER "test_bit_flips.work"
#define DATA_FOLDER "test_bit_flips.data"
#include "checkpoint_alone.h"
#include "grouter/router.h"

static uint64_t seed = 1;

/* ---------------------------------------------------------------- flipping */

typedef enum verdict { FOUND /* refused */, SAME /* accepted, and nothing differs */, MISSED } verdict;
typedef verdict read_as_training(void *context);

typedef struct target {
    const char *kind, *path;
    uint64_t first, n_byte; /* the flips stay within them */
    bool may_be_same;       /* bytes that training makes no use of are among them */
    read_as_training *read;
    void *context;
} target;

static void byte_flip(int fd, uint64_t byte, int bit) {
    uint8_t value;
    assert_int_equal(pread(fd, &value, 1, (off_t)byte), 1);
    value = (uint8_t)(value ^ 1 << bit);
    assert_int_equal(pwrite(fd, &value, 1, (off_t)byte), 1);
}

static uint64_t file_size(const char *path) {
    size_t n;
    free(file_read(path, &n));
    return n;
}

static void flip(const target *t, int n_flip) {
    int fd = open(t->path, O_RDWR | O_CLOEXEC), count[3] = {0};
    assert_true(fd >= 0 && t->n_byte > 0);
    assert_int_equal(t->read(t->context), SAME); /* as it was written */
    for (int k = 0; k < n_flip; k++) {
        uint64_t at = gr_random_below(seed, gr_stream_id(t->kind), (uint64_t)k, (uint32_t)(8 * t->n_byte));
        uint64_t byte = t->first + at / 8;
        byte_flip(fd, byte, (int)(at % 8));
        verdict v = t->read(t->context);
        byte_flip(fd, byte, (int)(at % 8));
        if (v == MISSED || (v == SAME && !t->may_be_same))
            fail_msg("%s: %s: byte %" PRIu64 ", bit %d: the flip was %s (seed %" PRIu64 ", flip %d)", t->kind, t->path,
                byte, (int)(at % 8), v == SAME ? "not detected" : "used", seed, k);
        count[v]++;
    }
    close(fd);
    printf("%-40s %5d flips: %d detected, %d without effect\n", t->kind, n_flip, count[FOUND], count[SAME]);
}

/* ---------------------------------------------------------------- windows: tokens with their routes */

enum { T = 16, N_TOKEN = 180, N_WINDOW = 11, K_MAX = 4 };

typedef struct window {
    uint32_t tokens[T + 1];
    uint16_t ids[T * K_MAX];
    float gates[T * K_MAX];
} window;

typedef struct data {
    const char *prefix;
    uint32_t n_vocab, E, K;
    char bin[64], idx[64], routes[64], router[64], touch[64];
    window window[N_WINDOW];      /* as written */
    uint32_t count[N_WINDOW * 2]; /* touch counts of 2 ranks, as counted */
} data;

static void shard_write(const char *path, const uint32_t *ids) {
    uint8_t bytes[1024 + 4 * N_TOKEN] = {0};
    gr_store_u32(bytes, 20240801);
    gr_store_u32(bytes + 4, 7);
    gr_store_u32(bytes + 8, N_TOKEN);
    for (size_t i = 0; i < N_TOKEN; i++)
        gr_store_u32(bytes + 1024 + 4 * i, ids[i]);
    file_write(path, bytes, sizeof bytes);
}

static void tokens_write(const data *d, bool shard) {
    uint32_t ids[N_TOKEN];
    for (size_t i = 0; i < N_TOKEN; i++)
        ids[i] = gr_random_below(3, 0, i, d->n_vocab);
    if (shard) {
        shard_write(d->bin, ids);
        return;
    }
    gr_tokens_writer *w;
    assert_int_equal(gr_tokens_writer_open(&w, d->prefix, d->n_vocab), GR_OK);
    for (size_t i = 0; i < N_TOKEN; i += N_TOKEN / 6)
        assert_int_equal(gr_tokens_writer_document(w, ids + i, N_TOKEN / 6), GR_OK);
    assert_int_equal(gr_tokens_writer_commit(w), GR_OK);
    gr_tokens_writer_close(w);
}

static void routes_write(data *d) {
    gr_router *router;
    gr_tokens *t;
    gr_routes_writer *w;
    gr_routes_info info = {.T = T, .n_window = N_WINDOW, .n_token = N_TOKEN, .provenance = "a test"};
    assert_int_equal(gr_router_make_random(&router, 5, d->E, d->K, 1.0f), GR_OK);
    assert_int_equal(gr_router_save(router, d->router), GR_OK);
    gr_router_describe(router, &info);
    assert_int_equal(gr_tokens_open(&t, d->prefix), GR_OK);
    assert_int_equal(gr_routes_writer_open(&w, d->routes, &info), GR_OK);
    for (uint64_t i = 0; i < N_WINDOW; i++) {
        window *x = &d->window[i];
        assert_int_equal(gr_window_read(t, i, T, d->n_vocab, x->tokens), GR_OK);
        assert_int_equal(gr_router_route(router, i, T, x->tokens, x->ids, x->gates), GR_OK);
        assert_int_equal(gr_routes_writer_window(w, i, x->tokens, x->ids, x->gates), GR_OK);
    }
    assert_int_equal(gr_routes_writer_commit(w), GR_OK);
    gr_routes_writer_close(w);
    gr_tokens_close(t);
    gr_router_close(router);
}

/* A pair, or a shard alone, with its route table and router. */
static data *data_make(const char *prefix, bool shard, uint32_t n_vocab, uint32_t E, uint32_t K) {
    data *d = calloc(1, sizeof *d);
    assert_non_null(d);
    *d = (data){.prefix = prefix, .n_vocab = n_vocab, .E = E, .K = K};
    snprintf(d->bin, sizeof d->bin, "%s.bin", prefix);
    snprintf(d->idx, sizeof d->idx, "%s.idx", prefix);
    snprintf(d->routes, sizeof d->routes, "%s.routes", prefix);
    snprintf(d->router, sizeof d->router, "%s.router", prefix);
    snprintf(d->touch, sizeof d->touch, "%s.routes.touch2", prefix);
    assert_int_equal(gr_folder_make(DATA_FOLDER), GR_OK);
    tokens_write(d, shard);
    routes_write(d);
    return d;
}

static verdict refusal(gr_err err) {
    return err == GR_DATA && gr_error_text()[0] ? FOUND : MISSED;
}

/* Every window by itself: what one refuses must not excuse another that lets damage through. */
static verdict windows_read(const data *d, const gr_tokens *t, gr_routes *r) {
    verdict all = SAME;
    for (uint64_t i = 0; i < N_WINDOW; i++) {
        const window *x = &d->window[i];
        window got = {0};
        gr_err err = gr_window_read(t, i, T, d->n_vocab, got.tokens);
        if (!err)
            err = gr_routes_read(r, i, got.tokens, got.ids, got.gates);
        bool same = memcmp(&got, x, sizeof got) == 0;
        if (err ? refusal(err) == MISSED : !same)
            return MISSED;
        if (err)
            all = FOUND;
    }
    return all;
}

/* As a run opens and reads its data. */
static verdict data_read(void *context) {
    const data *d = context;
    gr_tokens *t = NULL;
    gr_routes *r = NULL;
    gr_err err = gr_tokens_open(&t, d->prefix);
    if (!err)
        err = gr_routes_open(&r, d->routes);
    if (!err)
        err = gr_routes_match(r, t, T, d->E, d->K);
    verdict v = err ? refusal(err) : gr_routes_get(r)->n_window == N_WINDOW ? windows_read(d, t, r) : MISSED;
    gr_routes_close(r);
    gr_tokens_close(t);
    return v;
}

/* n_flip flips in bytes first to first + n_byte of a file; n_byte 0: to its end. */
static void data_flip(
    data *d, const char *kind, const char *path, uint64_t first, uint64_t n_byte, read_as_training *read, int n_flip) {
    flip(&(target){.kind = kind,
             .path = path,
             .first = first,
             .n_byte = n_byte ? n_byte : file_size(path) - first,
             .may_be_same = path == d->idx,
             .read = read,
             .context = d},
        n_flip);
}

static data *narrow_make(void) {
    return data_make(DATA_FOLDER "/narrow", false, 257, 8, 2);
}

static data *wide_make(void) {
    return data_make(DATA_FOLDER "/wide", false, 70000, 300, 4);
}

static data *shard_make(void) {
    return data_make(DATA_FOLDER "/shard", true, 70000, 8, 2);
}

static void flips_in_route_tables_are_detected(void **state) {
    (void)state;
    data *narrow = narrow_make(), *wide = wide_make();
    data_flip(narrow, "route table, expert ids of 1 byte", narrow->routes, 0, 0, data_read, 3000);
    data_flip(wide, "route table, expert ids of 2 bytes", wide->routes, 0, 0, data_read, 3000);
    free(narrow);
    free(wide);
}

/* Tokens behind the last window are routed by no one and read by no one. */
static void flips_in_tokens_of_routed_windows_are_detected(void **state) {
    (void)state;
    enum { N_ROUTED = N_WINDOW * T + 1 };
    data *narrow = narrow_make(), *wide = wide_make(), *shard = shard_make();
    data_flip(narrow, "tokens of windows, u16", narrow->bin, 0, 2 * N_ROUTED, data_read, 1000);
    data_flip(wide, "tokens of windows, i32", wide->bin, 0, 4 * N_ROUTED, data_read, 1000);
    data_flip(shard, "tokens of windows, shard of u32", shard->bin, 1024, 4 * N_ROUTED, data_read, 1000);
    free(narrow);
    free(wide);
    free(shard);
}

static void flips_in_idx_files_are_detected_or_change_no_window(void **state) {
    (void)state;
    data *narrow = narrow_make(), *wide = wide_make();
    data_flip(narrow, ".idx of u16", narrow->idx, 0, 0, data_read, 1000);
    data_flip(wide, ".idx of i32", wide->idx, 0, 0, data_read, 1000);
    free(narrow);
    free(wide);
}

static verdict router_read(void *context) {
    gr_router *r;
    gr_err err = gr_router_open(&r, ((const data *)context)->router);
    gr_router_close(r);
    return err ? refusal(err) : SAME;
}

/* Opens the counts as a run does, with or without leave to write the sidecar. */
static gr_err touch_open(const data *d, bool save, gr_touch *touch) {
    gr_tokens *t;
    gr_routes *r;
    assert_int_equal(gr_tokens_open(&t, d->prefix), GR_OK);
    assert_int_equal(gr_routes_open(&r, d->routes), GR_OK);
    gr_err err = gr_touch_open(touch, r, t, d->n_vocab, 2, NULL, save);
    gr_routes_close(r);
    gr_tokens_close(t);
    return err;
}

/* A damaged sidecar is refused, and a run then gets the counts of the table itself. */
static verdict touch_read(void *context) {
    const data *d = context;
    uint64_t table_hash;
    gr_touch sidecar, used;
    gr_err err = gr_touch_read(&sidecar, d->touch, &table_hash);
    gr_touch_close(&sidecar);
    assert_int_equal(touch_open(d, false, &used), GR_OK);
    bool same = memcmp(used.count, d->count, sizeof d->count) == 0;
    gr_touch_close(&used);
    return !same ? MISSED : err ? refusal(err) : SAME;
}

static void flips_in_routers_and_touch_counts_are_detected(void **state) {
    (void)state;
    data *d = narrow_make();
    gr_touch touch;
    assert_int_equal(touch_open(d, true, &touch), GR_OK);
    memcpy(d->count, touch.count, sizeof d->count);
    gr_touch_close(&touch);
    data_flip(d, "router", d->router, 0, 0, router_read, 500);
    data_flip(d, "touch counts", d->touch, 0, 0, touch_read, 500);
    free(d);
}

/* ---------------------------------------------------------------- checkpoints */

/* Finds and loads as a run that goes on: the older one, bit for bit, when the newer one is damaged. */
static verdict checkpoint_read(void *context) {
    checkpoint_fixture *x = context;
    gr_checkpoint_found found = find();
    int64_t step = found.found ? found.state.step : 0;
    bool loaded = found.found && gr_checkpoint_load(x->checkpointer, &found) == GR_OK;
    bool same = loaded && checkpoint_fixture_differences(x, step) == 0;
    gr_checkpoint_found_close(&found);
    return !same ? MISSED : step == OLD ? FOUND : SAME;
}

static void flips_in_checkpoints_are_detected(void **state) {
    (void)state;
    static const char *const kind[] = {
        "checkpoint, manifest", "checkpoint, weights", "checkpoint, index of weights", "checkpoint, moments"};
    saves(OLD, NEW);
    checkpoint_fixture x;
    checkpoint_fixture_open(&x, comm, quick_io(), folder, GR_ZERO_1, 0);
    assert_int_equal(gr_saved_file_count(1, 1), 3);
    for (int i = -1; i < 3; i++) {
        char path[256];
        snprintf(path, sizeof path, "%s", file_path(i));
        flip(
            &(target){
                .kind = kind[i + 1], .path = path, .n_byte = file_size(path), .read = checkpoint_read, .context = &x},
            500);
    }
    checkpoint_fixture_close(&x);
}

static int remove_all(void **state) {
    fixture_folder_remove(DATA_FOLDER);
    return clean(state);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(flips_in_route_tables_are_detected, remove_all),
        cmocka_unit_test_teardown(flips_in_tokens_of_routed_windows_are_detected, remove_all),
        cmocka_unit_test_teardown(flips_in_idx_files_are_detected_or_change_no_window, remove_all),
        cmocka_unit_test_teardown(flips_in_routers_and_touch_counts_are_detected, remove_all),
        cmocka_unit_test_teardown(flips_in_checkpoints_are_detected, remove_all),
    };
    if (argc > 1)
        seed = strtoull(argv[1], NULL, 10);
    printf("seed %" PRIu64 "\n", seed);
    gr_log_set(GR_LOG_QUIET);
    remove_all(NULL);
    gr_err err = gr_comm_open(&comm, "self");
    if (err) {
        gr_error_print(stderr, err);
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gr_comm_close(comm, GR_OK);
    return failed;
}
