/* mpi_4_bench.c: the exchange benchmark on four ranks: rows and bytes of each way against counts made here, placements,
 * and what is refused. Its own checks of rows, sums and bytes run in every case. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "grouter/bench.h"

enum { R = 4, E = 8, K = 2, T = 16, B = 3, D = 24, N_WINDOW = 64 };

#define NAME (CHECK_DTYPE == GR_F32 ? "mpi_4_bench" : "mpi_4_bench_bf16")
static char table_path[64], holes_path[64];
static gr_comm *comm;
static uint64_t table_hash;

/* Window w is about topic w % R: most of its tokens choose two experts of the topic, {topic, topic + R}; the others any
 * two. With experts in blocks these two are on different ranks. */
static void make_window(uint64_t w, uint32_t *tokens, uint16_t *ids, float *gates) {
    for (uint32_t t = 0; t <= T; t++)
        tokens[t] = (uint32_t)(w * T + t) % 50;
    for (uint32_t t = 0; t < T; t++) {
        uint16_t low = (uint16_t)(w % R), high = (uint16_t)(low + R);
        if (gr_random_below(1, w, t, 4) == 0) {
            low = (uint16_t)gr_random_below(2, w, t, E - 1);
            high = (uint16_t)(low + 1 + gr_random_below(3, w, t, E - 1u - low));
        }
        ids[t * K] = low;
        ids[t * K + 1] = high;
        gates[t * K] = 1.5f;
        gates[t * K + 1] = 0.5f;
    }
}

static void write_table(const char *path, bool unused_slots) {
    gr_routes_info info = {.E = E,
        .K = K,
        .T = T,
        .scale = 2,
        .variable_k = unused_slots,
        .n_window = N_WINDOW,
        .n_token = N_WINDOW * T + 1,
        .router = {.lo = 7, .hi = 9},
        .provenance = "a test"};
    gr_routes_writer *w;
    uint32_t tokens[T + 1];
    uint16_t ids[T * K];
    float gates[T * K];
    assert_int_equal(gr_routes_writer_open(&w, path, &info), GR_OK);
    for (uint64_t i = 0; i < N_WINDOW; i++) {
        make_window(i, tokens, ids, gates);
        if (unused_slots)
            gates[1] = 0;
        assert_int_equal(gr_routes_writer_window(w, i, tokens, ids, gates), GR_OK);
    }
    assert_int_equal(gr_routes_writer_commit(w), GR_OK);
    gr_routes_writer_close(w);
}

/* ---------------------------------------------------------------- a placement by topic */

typedef struct placed {
    gr_placement p;
    gr_placed_table table;
    uint16_t expert_at[E], rank[N_WINDOW];
    uint32_t touch[N_WINDOW][R];
} placed;

static void place(placed *x) {
    *x = (placed){0};
    for (uint32_t r = 0; r < R; r++) { /* rank r has the experts of topic R-1-r */
        x->expert_at[2 * r] = (uint16_t)(R - 1 - r);
        x->expert_at[2 * r + 1] = (uint16_t)(2 * R - 1 - r);
    }
    for (uint64_t w = 0; w < N_WINDOW; w++) {
        uint32_t tokens[T + 1];
        uint16_t ids[T * K];
        float gates[T * K];
        make_window(w, tokens, ids, gates);
        x->rank[w] = (uint16_t)(R - 1 - w % R);
        for (uint32_t t = 0; t < T; t++) {
            uint32_t a = R - 1 - ids[t * K] % R, b = R - 1 - ids[t * K + 1] % R;
            x->touch[w][a]++;
            if (b != a)
                x->touch[w][b]++;
        }
    }
    x->table = (gr_placed_table){.table_hash = table_hash,
        .n_window = N_WINDOW,
        .rank = x->rank,
        .touch = {.n_rank = R, .n_window = N_WINDOW, .count = x->touch[0]}};
    x->p = (gr_placement){.n_node = 2,
        .node_ranks = 2,
        .R = R,
        .E = E,
        .K = K,
        .T = T,
        .expert_at = x->expert_at,
        .n_table = 1,
        .table = &x->table};
}

static gr_exchange_options options(const gr_placement *p) {
    return (gr_exchange_options){.comm = comm,
        .routes = table_path,
        .placement = p,
        .D = D,
        .B = B,
        .dtype = CHECK_DTYPE,
        .n_repeat = 2,
        .seed = 5};
}

/* ---------------------------------------------------------------- rows and bytes */

/* Rows of the benchmark's batch, whose window i is that of the bijection and goes to rank i / B. */
static void count_rows(uint64_t *by_pair, uint64_t *by_rank) {
    *by_pair = *by_rank = 0;
    for (uint64_t i = 0; i < R * B; i++) {
        uint32_t tokens[T + 1];
        uint16_t ids[T * K];
        float gates[T * K];
        make_window(gr_bijection(5, N_WINDOW, i), tokens, ids, gates);
        for (uint32_t t = 0; t < T; t++) {
            uint64_t a = ids[t * K] / 2, b = ids[t * K + 1] / 2, me = i / B;
            *by_pair += (uint64_t)(a != me) + (b != me);
            *by_rank += (uint64_t)(a != me) + (b != me && b != a);
        }
    }
}

static void expect_bytes(const gr_exchange_report *r, gr_exchange_way w, uint64_t forward, uint64_t backward) {
    if (r->way[w].bytes[0] != forward || r->way[w].bytes[1] != backward)
        fail_msg("routes by %s, a row per %s: expected %llu and %llu bytes, got %llu and %llu",
            gr_exchange_way_routes(w), gr_exchange_way_row(w), (unsigned long long)forward,
            (unsigned long long)backward, (unsigned long long)r->way[w].bytes[0],
            (unsigned long long)r->way[w].bytes[1]);
}

static void rows_and_bytes_are_those_of_the_routes(void **state) {
    (void)state;
    gr_exchange_options o = options(NULL);
    gr_exchange_report r;
    uint64_t pairs, ranks, row = D * gr_dtype_size(CHECK_DTYPE);
    count_rows(&pairs, &ranks);
    assert_int_equal(gr_bench_exchange(&o, &r), GR_OK);
    for (gr_exchange_way w = 0; w <= GR_EXCHANGE_PLAN_RANKS; w++) {
        assert_true(r.way[w].measured && r.way[w].both.median_ms > 0);
        assert_true(r.way[w].rows == (w <= GR_EXCHANGE_PLAN_PAIRS ? pairs : ranks));
        assert_true(r.way[w].rows_max >= r.way[w].rows / R && r.way[w].rows_max <= r.way[w].rows);
    }
    assert_false(r.way[GR_EXCHANGE_PLACED_BATCH].measured || r.way[GR_EXCHANGE_PLACED_CORPUS].measured);
    /* rows out and sums back; counts to every other rank, ids and gates with the rows; gates' gradients back */
    uint64_t pair_counts = R * (R - 1) * (E / R) * sizeof(uint32_t), rank_counts = R * (R - 1) * sizeof(uint32_t);
    uint64_t gates = pairs * sizeof(float), routed = ranks * K * (sizeof(float) + sizeof(uint16_t));
    expect_bytes(&r, GR_EXCHANGE_ROUTER_PAIRS, 2 * pairs * row + pair_counts + gates, 2 * pairs * row + gates);
    expect_bytes(&r, GR_EXCHANGE_COUNTS_PAIRS, 2 * pairs * row + pair_counts + gates, 2 * pairs * row);
    expect_bytes(&r, GR_EXCHANGE_PLAN_PAIRS, 2 * pairs * row, 2 * pairs * row);
    expect_bytes(&r, GR_EXCHANGE_ROUTER_RANKS, 2 * ranks * row + rank_counts + routed,
        2 * ranks * row + ranks * K * sizeof(float));
    expect_bytes(&r, GR_EXCHANGE_COUNTS_RANKS, 2 * ranks * row + rank_counts + routed, 2 * ranks * row);
    expect_bytes(&r, GR_EXCHANGE_PLAN_RANKS, 2 * ranks * row, 2 * ranks * row);
}

static void placed_rows_are_those_of_the_touch_counts(void **state) {
    (void)state;
    placed x;
    place(&x);
    gr_exchange_options o = options(&x.p);
    gr_exchange_report r;
    assert_int_equal(gr_bench_exchange(&o, &r), GR_OK);
    uint64_t corpus = 0, n[R] = {0}, row = D * gr_dtype_size(CHECK_DTYPE);
    for (uint64_t i = 0; i < N_WINDOW; i++) { /* the first of the sample for each rank */
        uint64_t w = gr_bijection(5, N_WINDOW, i);
        for (uint32_t q = 0; q < R && n[x.rank[w]] < B; q++)
            corpus += q == x.rank[w] ? 0 : x.touch[w][q];
        n[x.rank[w]] += n[x.rank[w]] < B;
    }
    uint64_t fewest = 0, in_order = 0; /* if every window of the batch could be where most of its tokens have experts */
    for (uint64_t i = 0; i < R * B; i++) {
        const uint32_t *touch = x.touch[gr_bijection(5, N_WINDOW, i)];
        uint32_t most = 0, all = 0;
        in_order -= touch[i / B];
        for (uint32_t q = 0; q < R; q++) {
            all += touch[q];
            most = touch[q] > most ? touch[q] : most;
        }
        in_order += all;
        fewest += all - most;
    }
    assert_true(r.way[GR_EXCHANGE_PLACED_CORPUS].rows == corpus);
    assert_true(r.way[GR_EXCHANGE_PLACED_BATCH].rows < r.way[GR_EXCHANGE_PLAN_RANKS].rows);
    assert_true(r.way[GR_EXCHANGE_PLACED_BATCH].rows >= fewest);
    assert_true(r.way[GR_EXCHANGE_PLACED_BATCH].rows < in_order);
    expect_bytes(&r, GR_EXCHANGE_PLACED_CORPUS, 2 * corpus * row, 2 * corpus * row);
}

static void all_tokens_to_one_rank_or_to_all_are_exchanged(void **state) {
    (void)state;
    gr_exchange_report r;
    gr_exchange_options o = options(NULL);
    o.routes = NULL;
    o.E = E;
    o.K = E; /* every token goes everywhere */
    o.T = 5;
    assert_int_equal(gr_bench_exchange(&o, &r), GR_OK);
    assert_true(r.way[GR_EXCHANGE_PLAN_RANKS].rows == R * 5 * B * (R - 1) && r.uniform == R - 1);
    assert_true(r.way[GR_EXCHANGE_PLAN_PAIRS].rows == R * 5 * B * (E - E / R));
    o.E = R; /* one expert a rank, one expert a token */
    o.K = 1;
    assert_int_equal(gr_bench_exchange(&o, &r), GR_OK);
    assert_true(r.way[GR_EXCHANGE_PLAN_RANKS].rows == r.way[GR_EXCHANGE_PLAN_PAIRS].rows);
    assert_true(r.uniform == 0.75);
}

/* ---------------------------------------------------------------- what is refused */

static void expect_refused(const gr_exchange_options *o, gr_err code, const char *part) {
    gr_exchange_report r;
    assert_int_equal(gr_bench_exchange(o, &r), code);
    if (!strstr(gr_error_text(), part) && comm->agreed_rank == comm->rank[GR_WORLD])
        fail_msg("\"%s\" is missing from: %s", part, gr_error_text());
}

static void placements_of_something_else_are_refused(void **state) {
    (void)state;
    placed x;
    place(&x);
    gr_exchange_options o = options(&x.p);
    x.p.R = 2;
    expect_refused(&o, GR_CONFIG, "expected a placement for 4 ranks as there are, got one for 2");
    place(&x);
    x.table.table_hash++;
    expect_refused(&o, GR_DATA, "got one of other routes");
    place(&x);
    for (uint32_t w = 0; w < N_WINDOW; w++)
        x.touch[w][0] += 1;
    expect_refused(&o, GR_DATA, "rows by the placement's touch counts");
    place(&x);
    for (uint32_t w = 0; w < N_WINDOW; w++)
        x.rank[w] = w < 2 ? 3 : 0;
    expect_refused(&o, GR_DATA, "expected at least 3 windows for rank 1 in the placement, got 0");
}

static void shapes_that_do_not_fit_are_refused(void **state) {
    (void)state;
    gr_exchange_options o = options(NULL);
    o.B = 17;
    expect_refused(&o, GR_DATA, "expected at least 68 windows, 17 for each of 4 ranks, got 64");
    o = options(NULL);
    o.D = 7;
    expect_refused(&o, GR_CONFIG, "expected a width of at least the 8 experts, got 7");
    o = options(NULL);
    o.routes = holes_path;
    expect_refused(&o, GR_DATA, "uses all its K slots");
    o.routes = NULL;
    o.E = 6;
    o.K = 1;
    o.T = 4;
    expect_refused(&o, GR_CONFIG, "divides the 6 experts, got 4");
    o.E = 8;
    o.T = 1 << 20;
    o.B = 1 << 16;
    expect_refused(&o, GR_CONFIG, "expected at most 2^30 pairs");
}

static int open_tables(void **state) {
    (void)state;
    gr_routes *table;
    snprintf(table_path, sizeof table_path, "%s.routes", NAME);
    snprintf(holes_path, sizeof holes_path, "%s_holes.routes", NAME);
    if (comm->rank[GR_WORLD] == 0) {
        write_table(table_path, false);
        write_table(holes_path, true);
    }
    if (comm->barrier(comm, GR_WORLD) || gr_routes_open(&table, table_path))
        return 1;
    table_hash = gr_routes_get(table)->table_hash;
    gr_routes_close(table);
    return 0;
}

int main(void) {
    alarm(240); /* a failed assertion on one rank leaves the others waiting */
    if (gr_comm_open(&comm, "mpi") || comm->size[GR_WORLD] != R)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_and_bytes_are_those_of_the_routes),
        cmocka_unit_test(placed_rows_are_those_of_the_touch_counts),
        cmocka_unit_test(all_tokens_to_one_rank_or_to_all_are_exchanged),
        cmocka_unit_test(placements_of_something_else_are_refused),
        cmocka_unit_test(shapes_that_do_not_fit_are_refused),
    };
    if (cmocka_run_group_tests(tests, open_tables, NULL))
        _exit(1); /* the ranks may be out of step: finalising could wait for ever */
    if (comm->rank[GR_WORLD] == 0) {
        unlink(table_path);
        unlink(holes_path);
    }
    gr_comm_close(comm, GR_OK);
    return 0;
}
