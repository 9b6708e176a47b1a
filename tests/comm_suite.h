/* comm_suite.h: what holds for the comm `mpi` at any number of ranks; run by mpi_2_comm and mpi_4_comm. */
#ifndef GROUTER_TESTS_COMM_SUITE_H
#define GROUTER_TESTS_COMM_SUITE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/kinds.h"

static gr_comm *suite_large; /* default sizes: owns MPI */
static gr_comm *suite_small; /* messages and scratch of a few bytes: every transfer takes several rounds */

static gr_comm *comm_of(void **state) {
    return *(gr_comm **)*state;
}

static void exchange_puts_rows_by_source_rank(void **state) {
    gr_comm *c = comm_of(state);
    for (gr_group g = GR_WORLD; g < GR_N_GROUP; g++) {
        uint32_t me = (uint32_t)c->rank[g], n = (uint32_t)c->size[g];
        enum { WIDTH = 3 };
        float send[WIDTH * 256], recv[WIDTH * 256 + 1];
        uint32_t send_rows[16], recv_rows[16], at = 0, n_recv = 0;
        for (uint32_t to = 0; to < n; to++) {
            send_rows[to] = (me * 5 + to * 3) % 7; /* some empty */
            for (uint32_t i = 0; i < send_rows[to]; i++, at++)
                for (uint32_t j = 0; j < WIDTH; j++)
                    send[at * WIDTH + j] = (float)(me * 1000 + to * 100 + i * 10 + j);
            recv_rows[to] = (to * 5 + me * 3) % 7;
            n_recv += recv_rows[to];
        }
        recv[n_recv * WIDTH] = -1;
        gr_exchange x = {.group = g,
            .dtype = GR_F32,
            .width = WIDTH,
            .send = send,
            .send_rows = send_rows,
            .recv = recv,
            .recv_rows = recv_rows};
        assert_int_equal(c->exchange_start(c, &x), 0);
        assert_int_equal(c->exchange_wait(c), 0);
        at = 0;
        for (uint32_t from = 0; from < n; from++)
            for (uint32_t i = 0; i < recv_rows[from]; i++, at++)
                for (uint32_t j = 0; j < WIDTH; j++)
                    assert_true(recv[at * WIDTH + j] == (float)(from * 1000 + me * 100 + i * 10 + j));
        assert_true(recv[n_recv * WIDTH] == -1);
    }
}

/* Another order of addition gives other bits for most of these values. */
static float operand(uint32_t rank, size_t i) {
    return (float)((rank * 2654435761u + (uint32_t)i * 40503u) % 1000003u) / 3.0f - 160000.0f;
}

static float sum_in_rank_order(uint32_t n, uint32_t first, uint32_t stride, size_t i) {
    float sum = operand(first, i);
    for (uint32_t r = 1; r < n; r++)
        sum += operand(first + r * stride, i);
    return sum;
}

/* World ranks of a group: first, first + stride, ... */
static void group_members(const gr_comm *c, gr_group g, uint32_t *first, uint32_t *stride) {
    uint32_t world = (uint32_t)c->rank[GR_WORLD], me = (uint32_t)c->rank[g];
    *stride = g == GR_EDP ? (uint32_t)c->size[GR_EP] : 1;
    *first = world - me * *stride;
}

static void sum_adds_in_rank_order(void **state) {
    gr_comm *c = comm_of(state);
    for (gr_group g = GR_WORLD; g < GR_N_GROUP; g++)
        for (size_t n = 0; n < 70; n += n < 6 ? 1 : 21) {
            float x[80];
            uint32_t first, stride;
            group_members(c, g, &first, &stride);
            for (size_t i = 0; i < 80; i++)
                x[i] = operand((uint32_t)c->rank[GR_WORLD], i);
            assert_int_equal(c->sum(c, g, GR_F32, x, n), 0);
            for (size_t i = 0; i < 80; i++) {
                float expected = i < n ? sum_in_rank_order((uint32_t)c->size[g], first, stride, i)
                                       : operand((uint32_t)c->rank[GR_WORLD], i);
                assert_memory_equal(&x[i], &expected, sizeof expected);
            }
        }
}

static void sum_covers_doubles_and_counters(void **state) {
    gr_comm *c = comm_of(state);
    int me = c->rank[GR_WORLD], n = c->size[GR_WORLD];
    double d[5] = {0.5 + me, 1e300, 2.0 * me};
    uint64_t u[3] = {(uint64_t)1 << 62, (uint64_t)me, 7};
    assert_int_equal(c->sum(c, GR_WORLD, GR_F64, d, 3), 0);
    assert_int_equal(c->sum(c, GR_WORLD, GR_U64, u, 3), 0);
    double ranks = n * (n - 1) / 2.0;
    assert_true(d[0] == 0.5 * n + ranks && d[1] == 1e300 * n && d[2] == 2 * ranks);
    assert_true(u[0] == (uint64_t)n << 62 && u[1] == (uint64_t)ranks && u[2] == 7 * (uint64_t)n);
}

static void reduce_scatter_sums_the_own_shard(void **state) {
    gr_comm *c = comm_of(state);
    for (gr_group g = GR_WORLD; g < GR_N_GROUP; g++) {
        enum { SHARD = 37 };
        float x[SHARD * 16];
        uint32_t first, stride;
        group_members(c, g, &first, &stride);
        size_t n = (size_t)c->size[g], own = (size_t)c->rank[g] * SHARD;
        for (size_t i = 0; i < SHARD * n; i++)
            x[i] = operand((uint32_t)c->rank[GR_WORLD], i);
        assert_int_equal(c->reduce_scatter(c, g, GR_F32, x, SHARD), 0);
        for (size_t i = own; i < own + SHARD; i++) {
            float expected = sum_in_rank_order((uint32_t)n, first, stride, i);
            assert_memory_equal(&x[i], &expected, sizeof expected);
        }
    }
}

/* Every piece [first, first + n) of a few lengths: of one owner, of several, of a part of one. */
static void reduced_pieces_are_sums_in_rank_order(void **state) {
    gr_comm *c = comm_of(state);
    for (gr_group g = GR_WORLD; g < GR_N_GROUP; g++) {
        enum { SHARD = 11 };
        uint32_t first, stride;
        group_members(c, g, &first, &stride);
        const size_t n_rank = (size_t)c->size[g], n = SHARD * n_rank, me = (size_t)c->rank[g];
        for (size_t begin = 0; begin < n; begin += 5)
            for (size_t length = 0; length <= n - begin; length += 1 + length) {
                float x[SHARD * 16];
                for (size_t i = 0; i < length; i++)
                    x[i] = operand((uint32_t)c->rank[GR_WORLD], begin + i);
                const gr_piece p = {.shard = SHARD, .first = begin, .n = length};
                assert_int_equal(c->reduce_piece(c, g, GR_F32, x, p), 0);
                for (size_t i = 0; i < length; i++) {
                    float expected = sum_in_rank_order((uint32_t)n_rank, first, stride, begin + i);
                    assert_true((begin + i) / SHARD != me || memcmp(&x[i], &expected, sizeof expected) == 0);
                }
            }
    }
}

static void gathered_pieces_come_from_their_owners(void **state) {
    gr_comm *c = comm_of(state);
    for (gr_group g = GR_WORLD; g < GR_N_GROUP; g++) {
        enum { SHARD = 11 };
        const size_t n = SHARD * (size_t)c->size[g], me = (size_t)c->rank[g];
        for (size_t begin = 0; begin < n; begin += 5)
            for (size_t length = 0; length <= n - begin; length += 1 + length) {
                uint16_t x[SHARD * 16];
                for (size_t i = 0; i < length; i++)
                    x[i] = (begin + i) / SHARD == me ? (uint16_t)(1 + begin + i) : 0;
                const gr_piece p = {.shard = SHARD, .first = begin, .n = length};
                assert_int_equal(c->gather_piece(c, g, GR_U16, x, p), 0);
                for (size_t i = 0; i < length; i++)
                    assert_int_equal(x[i], 1 + begin + i);
            }
    }
}

static void all_gather_completes_every_shard(void **state) {
    gr_comm *c = comm_of(state);
    enum { SHARD = 29 };
    uint16_t x[SHARD * 16] = {0};
    int n = c->size[GR_WORLD], me = c->rank[GR_WORLD];
    for (int i = 0; i < SHARD; i++)
        x[me * SHARD + i] = (uint16_t)(me * 100 + i);
    assert_int_equal(c->all_gather(c, GR_WORLD, GR_U16, x, SHARD), 0);
    for (int i = 0; i < SHARD * n; i++)
        assert_int_equal(x[i], i / SHARD * 100 + i % SHARD);
}

static void bcast_copies_from_any_root(void **state) {
    gr_comm *c = comm_of(state);
    for (int root = 0; root < c->size[GR_WORLD]; root++) {
        char text[100];
        memset(text, 'a' + c->rank[GR_WORLD], sizeof text);
        assert_int_equal(c->bcast(c, GR_WORLD, text, 99, root), 0);
        for (int i = 0; i < 99; i++)
            assert_int_equal(text[i], 'a' + root);
        assert_int_equal(text[99], 'a' + c->rank[GR_WORLD]);
    }
    assert_int_equal(c->barrier(c, GR_WORLD), 0);
}

/* What the rank has sent since `before` (which is set to now), and that nothing else was counted. */
static uint64_t sent_for(gr_comm *c, gr_traffic traffic, uint64_t before[GR_N_TRAFFIC]) {
    uint64_t n = c->sent[traffic] - before[traffic];
    before[traffic] = c->sent[traffic];
    assert_memory_equal(c->sent, before, sizeof c->sent);
    assert_int_equal(c->traffic, GR_TRAFFIC_OTHER);
    return n;
}

static void bytes_to_others_are_counted_by_what_they_are_for(void **state) {
    gr_comm *c = comm_of(state);
    for (gr_group g = GR_WORLD; g < GR_N_GROUP; g++) {
        uint32_t me = (uint32_t)c->rank[g], n = (uint32_t)c->size[g], rows[16], n_row = 0;
        float send[256] = {0}, recv[256];
        uint64_t before[GR_N_TRAFFIC];
        memcpy(before, c->sent, sizeof before);
        for (uint32_t r = 0; r < n; r++) {
            rows[r] = 1 + (me + r) % 3; /* the same either way */
            n_row += r == me ? 0 : rows[r];
        }
        gr_exchange x = {
            .group = g, .dtype = GR_F32, .width = 5, .send = send, .send_rows = rows, .recv = recv, .recv_rows = rows};
        c->traffic = GR_TRAFFIC_DISPATCH;
        assert_int_equal(c->exchange_start(c, &x), 0);
        assert_int_equal(c->exchange_wait(c), 0);
        assert_true(sent_for(c, GR_TRAFFIC_DISPATCH, before) == n_row * 5 * sizeof(float));
        assert_int_equal(c->exchange_start(c, &x), 0); /* nobody said what for */
        assert_int_equal(c->exchange_wait(c), 0);
        assert_true(sent_for(c, GR_TRAFFIC_OTHER, before) == n_row * 5 * sizeof(float));
        c->traffic = GR_TRAFFIC_WEIGHTS;
        assert_int_equal(c->all_gather(c, g, GR_U16, send, 7), 0);
        assert_true(sent_for(c, GR_TRAFFIC_WEIGHTS, before) == (n - 1) * 7 * sizeof(uint16_t));
        c->traffic = GR_TRAFFIC_GRADIENTS;
        assert_int_equal(c->reduce_scatter(c, g, GR_F32, send, 9), 0);
        assert_true(sent_for(c, GR_TRAFFIC_GRADIENTS, before) == (n - 1) * 9 * sizeof(float));
        c->traffic = GR_TRAFFIC_ROUTES;
        assert_int_equal(c->bcast(c, g, send, 33, (int)n - 1), 0);
        assert_true(sent_for(c, GR_TRAFFIC_ROUTES, before) == (me == n - 1 ? 33 * (n - 1) : 0));
        assert_int_equal(c->barrier(c, g), 0);
        assert_true(sent_for(c, GR_TRAFFIC_OTHER, before) == 0);
        c->traffic = GR_TRAFFIC_GATES;
        assert_int_equal(c->sum(c, g, GR_F64, send, 11), 0);
        uint64_t all = sent_for(c, GR_TRAFFIC_GATES, before);
        assert_int_equal(c->sum(c, g, GR_U64, &all, 1), 0);
        assert_true(all == 2 * (n - 1) * 11 * sizeof(double)); /* by shards, of which the last may be short */
    }
}

static void groups_are_consecutive_and_modular(void **state) {
    gr_comm *c = comm_of(state);
    int n = c->size[GR_WORLD], me = c->rank[GR_WORLD];
    for (int R_ep = 1; R_ep <= n; R_ep++) {
        if (n % R_ep != 0) {
            assert_int_equal(gr_comm_group(c, R_ep), GR_CONFIG);
            continue;
        }
        assert_int_equal(gr_comm_group(c, R_ep), 0);
        assert_int_equal(c->size[GR_EP], R_ep);
        assert_int_equal(c->size[GR_EDP], n / R_ep);
        assert_int_equal(c->rank[GR_EP], me % R_ep);
        assert_int_equal(c->rank[GR_EDP], me / R_ep);
        uint64_t ep = 1u << me, edp = 1u << me;
        assert_int_equal(c->sum(c, GR_EP, GR_U64, &ep, 1), 0);
        assert_int_equal(c->sum(c, GR_EDP, GR_U64, &edp, 1), 0);
        for (int r = 0; r < n; r++) {
            assert_int_equal(ep >> r & 1, r / R_ep == me / R_ep);
            assert_int_equal(edp >> r & 1, r % R_ep == me % R_ep);
        }
    }
    assert_int_equal(gr_comm_group(c, 0), GR_CONFIG);
    assert_int_equal(gr_comm_group(c, 2), 0);
}

static void agree_returns_the_first_failing_ranks_code(void **state) {
    gr_comm *c = comm_of(state);
    int me = c->rank[GR_WORLD], last = c->size[GR_WORLD] - 1;
    assert_int_equal(gr_comm_agree(c, GR_OK), 0);
    assert_int_equal(c->agreed, 0);
    gr_err mine = me == last ? gr_fail(GR_RESOURCE, "last") : me == last - 1 ? gr_fail(GR_DATA, "before") : GR_OK;
    assert_int_equal(gr_comm_agree(c, mine), GR_DATA);
    assert_int_equal(c->agreed, GR_DATA);
    assert_int_equal(c->agreed_rank, last - 1);
    char text[100] = "";
    FILE *f = fmemopen(text, sizeof text - 1, "w");
    assert_non_null(f);
    gr_error_print(f, GR_DATA);
    fclose(f);
    assert_int_equal(strstr(text, "before") != NULL, me == last - 1);
    assert_int_equal(text[0] == '\0', me != last - 1);
    assert_int_equal(gr_comm_agree(c, GR_OK), 0);
    assert_int_equal(c->agreed, GR_OK); /* survived: the next error of one rank alone is not agreed on */
}

static void mpi_errors_are_peer_errors_with_their_text(void **state) {
    gr_comm *c = comm_of(state);
    char x = 0;
    assert_int_equal(c->bcast(c, GR_WORLD, &x, 1, 99), GR_PEER);
    assert_non_null(strstr(gr_error_text(), "MPI_Bcast"));
    assert_non_null(strstr(gr_error_text(), "MPI_ERR_ROOT"));
}

static bool mpi_finalized(void) {
    int flag = 0;
    MPI_Finalized(&flag);
    return flag;
}

/* After an error of this rank alone MPI must be left running; after success or an agreed error it is finalised. */
static bool close_rules_hold(gr_comm *owner, bool agreed) {
    if (agreed) {
        gr_comm_close(owner, gr_comm_agree(owner, GR_CONFIG));
        return mpi_finalized();
    }
    gr_comm_close(owner, GR_CONFIG);
    return !mpi_finalized() && MPI_Finalize() == MPI_SUCCESS;
}

static int run_comm_suite(int n_rank, bool close_agreed) {
    alarm(60); /* a failed assertion on one rank leaves the others waiting */
    gr_comm_mpi_limits small = {.message_max = 20, .scratch = 64};
    if (gr_comm_open(&suite_large, "auto") || strcmp(suite_large->name, "mpi") != 0 ||
        gr_comm_mpi_open(&suite_small, 0, &small) || suite_large->size[GR_WORLD] != n_rank ||
        gr_comm_group(suite_large, 2) || gr_comm_group(suite_small, 2))
        return 1;
#define AT_BOTH_SIZES(test)                                                                                            \
    {#test " (large messages)", test, NULL, NULL, &suite_large}, {                                                     \
#test " (small messages)", test, NULL, NULL, &suite_small                                                      \
    }
    const struct CMUnitTest tests[] = {
        AT_BOTH_SIZES(exchange_puts_rows_by_source_rank),
        AT_BOTH_SIZES(sum_adds_in_rank_order),
        AT_BOTH_SIZES(sum_covers_doubles_and_counters),
        AT_BOTH_SIZES(reduce_scatter_sums_the_own_shard),
        AT_BOTH_SIZES(reduced_pieces_are_sums_in_rank_order),
        AT_BOTH_SIZES(gathered_pieces_come_from_their_owners),
        AT_BOTH_SIZES(all_gather_completes_every_shard),
        AT_BOTH_SIZES(bcast_copies_from_any_root),
        AT_BOTH_SIZES(bytes_to_others_are_counted_by_what_they_are_for),
        AT_BOTH_SIZES(groups_are_consecutive_and_modular),
        AT_BOTH_SIZES(agree_returns_the_first_failing_ranks_code),
        AT_BOTH_SIZES(mpi_errors_are_peer_errors_with_their_text),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed)
        _exit(1); /* the ranks may be out of step: finalising could wait for ever */
    gr_comm_close(suite_small, GR_OK);
    if (!close_rules_hold(suite_large, close_agreed)) {
        fprintf(stderr, "closing: MPI was finalised when it must not be, or left running when it must not be\n");
        _exit(1);
    }
    return 0;
}

#endif
