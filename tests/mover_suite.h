/* mover_suite.h: what holds for device memory at any number of ranks, by whatever moves it: the results are those of
 * the comm `mpi` on the same data in host memory. Run over comm `mpi` by mpi_<n>_staged, over comm `nccl` with a
 * stand-in for NCCL by mpi_<n>_nccl. */
#ifndef GROUTER_TESTS_MOVER_SUITE_H
#define GROUTER_TESTS_MOVER_SUITE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/kinds.h"
#include "lane_double.h"

static gr_comm *suite_comm; /* with `suite_backend` */
static gr_comm *suite_host; /* the same ranks without a backend */
static gr_backend *suite_backend;
static bool suite_in_rank_order; /* sums have the bits of those in host memory */
static uint64_t suite_waits_max; /* waits of the host for the device per call */

static void *device_alloc(size_t n_byte) {
    void *p;
    assert_int_equal(suite_backend->alloc(suite_backend, n_byte, "test", &p), 0);
    return p;
}

/* As a step would do it: put there and read back by ops of lane COMPUTE around the call. The host array has to stay. */
static void put(void *device, const void *host, size_t n_byte) {
    assert_int_equal(suite_backend->upload(suite_backend, GR_LANE_COMPUTE, device, host, n_byte), 0);
}

static void get(void *host, const void *device, size_t n_byte) {
    assert_int_equal(suite_backend->download(suite_backend, GR_LANE_COMPUTE, host, device, n_byte), 0);
}

static void sync_device(void) {
    assert_int_equal(suite_backend->sync(suite_backend), 0);
}

/* Both lanes that a call is between, preferred in turn. */
static const gr_lane preferred[] = {GR_LANE_COMM, GR_LANE_COMPUTE};
enum { N_PREFERRED = 2, R_MAX = 8, MOST_ROWS = 40 };

static void for_every_layout(void (*check)(gr_group g)) {
    int n = suite_comm->size[GR_WORLD];
    for (int R_ep = 1; R_ep <= n; R_ep++) {
        if (n % R_ep != 0)
            continue;
        assert_int_equal(gr_comm_group(suite_comm, R_ep), 0);
        assert_int_equal(gr_comm_group(suite_host, R_ep), 0);
        for (gr_group g = GR_WORLD; g < GR_N_GROUP; g++)
            for (int i = 0; i < N_PREFERRED; i++) {
                lane_double_prefer(suite_backend, preferred[i]);
                check(g);
            }
    }
}

/* ---------------------------------------------------------------- exchange */

/* From rank a to rank b of a group; some are 0, in one direction or both, and some are for the own rank. */
static uint32_t n_row_between(uint32_t a, uint32_t b, uint32_t kind) {
    uint32_t n = (a * 5 + b * 3 + 2) % 7 + (a == 1 ? 17 : 0);
    return kind == 0 ? n : kind == 1 ? (a == 0 ? n : 0) : 0; /* all to all, from the first, nothing */
}

typedef struct exchanged {
    uint32_t send_rows[R_MAX], recv_rows[R_MAX];
    uint32_t n_send, n_recv;
    uint64_t n_away; /* rows to other ranks */
} exchanged;

static exchanged rows_of(uint32_t me, uint32_t n, uint32_t kind) {
    exchanged e = {0};
    for (uint32_t r = 0; r < n; r++) {
        e.n_send += e.send_rows[r] = n_row_between(me, r, kind);
        e.n_recv += e.recv_rows[r] = n_row_between(r, me, kind);
        e.n_away += r == me ? 0 : e.send_rows[r];
    }
    return e;
}

static void check_exchange_of(gr_group g, gr_dtype dtype, uint32_t width, uint32_t kind) {
    uint32_t me = (uint32_t)suite_comm->rank[g], n = (uint32_t)suite_comm->size[g];
    size_t row = width * gr_dtype_size(dtype), room = (size_t)R_MAX * MOST_ROWS * row;
    exchanged e = rows_of(me, n, kind);
    uint8_t *out = malloc(room), *in = malloc(room), *expected = calloc(room, 1), *poison = malloc(room);
    assert_true(out && in && expected && poison);
    memset(poison, 0xa5, room);
    size_t at = 0;
    for (uint32_t to = 0; to < n; to++)
        for (uint32_t i = 0; i < e.send_rows[to]; i++)
            for (size_t j = 0; j < row; j++, at++)
                out[at] = (uint8_t)(me * 50 + to * 10 + i * 7 + j);
    at = 0;
    for (uint32_t from = 0; from < n; from++)
        for (uint32_t i = 0; i < e.recv_rows[from]; i++)
            for (size_t j = 0; j < row; j++, at++)
                expected[at] = (uint8_t)(from * 50 + me * 10 + i * 7 + j);
    memset(expected + at, 0xa5, room - at);
    uint8_t *send = device_alloc(room), *recv = device_alloc(room);
    put(recv, poison, room);
    put(send, out, room);
    uint64_t sent = suite_comm->sent[GR_TRAFFIC_COMBINE], waits = suite_backend->n_sync;
    suite_comm->traffic = GR_TRAFFIC_COMBINE;
    /* Without rows the place is one past the end of something else. */
    gr_exchange x = {.group = g,
        .dtype = dtype,
        .width = width,
        .send = e.n_send ? send : send + room,
        .send_rows = e.send_rows,
        .recv = e.n_recv ? recv : recv + room,
        .recv_rows = e.recv_rows};
    assert_int_equal(suite_comm->exchange_start(suite_comm, &x), 0);
    assert_int_equal(suite_comm->exchange_wait(suite_comm), 0);
    assert_true(suite_backend->n_sync - waits <= (n > 1 ? suite_waits_max : 0));
    assert_true(suite_comm->sent[GR_TRAFFIC_COMBINE] - sent == e.n_away * row);
    put(send, poison, room); /* the next op of COMPUTE may have the memory */
    get(in, recv, room);
    sync_device();
    assert_memory_equal(in, expected, room);
    suite_backend->release(suite_backend, send);
    suite_backend->release(suite_backend, recv);
    free(out), free(in), free(expected), free(poison);
}

static void check_exchange(gr_group g) {
    for (uint32_t kind = 0; kind < 3; kind++) {
        check_exchange_of(g, GR_F32, 5, kind);
        check_exchange_of(g, GR_BF16, 3, kind);
    }
}

static void exchanged_rows_are_those_of_their_ranks(void **state) {
    (void)state;
    for_every_layout(check_exchange);
}

/* ---------------------------------------------------------------- collectives */

typedef enum collective { SUM, SCATTER, GATHER, BCAST, REDUCE_PIECES, GATHER_PIECES, N_COLLECTIVE } collective;

/* Pieces of uneven lengths, some of one owner, some of several, beside COMPUTE. */
static gr_err run_pieces(gr_comm *c, collective what, gr_group g, gr_dtype dtype, uint8_t *data, size_t n_shard) {
    const size_t n = n_shard * (size_t)c->size[g];
    gr_err e = GR_OK;
    c->beside = true;
    for (size_t first = 0, length = 1; first < n && !e; first += length, length = length * 3 + 1) {
        const gr_piece p = {.shard = n_shard, .first = first, .n = length < n - first ? length : n - first};
        void *at = data + first * gr_dtype_size(dtype);
        c->traffic = GR_TRAFFIC_GRADIENTS;
        e = what == REDUCE_PIECES ? c->reduce_piece(c, g, dtype, at, p) : c->gather_piece(c, g, dtype, at, p);
    }
    c->beside = false;
    return e ? e : c->join(c);
}

static gr_err run_collective(gr_comm *c, collective what, gr_group g, gr_dtype dtype, void *data, size_t n_shard) {
    size_t n = (size_t)c->size[g];
    c->traffic = GR_TRAFFIC_GRADIENTS;
    switch (what) {
    case SUM:
        return c->sum(c, g, dtype, data, n_shard * n - (n_shard > 1)); /* not a multiple */
    case SCATTER:
        return c->reduce_scatter(c, g, dtype, data, n_shard);
    case GATHER:
        return c->all_gather(c, g, dtype, data, n_shard);
    case BCAST:
        return c->bcast(c, g, data, n_shard * gr_dtype_size(dtype), (int)n - 1);
    default:
        return run_pieces(c, what, g, dtype, data, n_shard);
    }
}

static void fill(void *data, gr_dtype dtype, size_t n, bool fractions) {
    uint32_t me = (uint32_t)suite_comm->rank[GR_WORLD];
    for (size_t i = 0; i < n; i++) {
        uint32_t x = (me * 2654435761u + (uint32_t)i * 40503u) % 10007u;
        double value = fractions ? (double)x / 3 - 1600 : (double)x;
        if (dtype == GR_F32)
            ((float *)data)[i] = (float)value;
        else if (dtype == GR_F64)
            ((double *)data)[i] = value;
        else
            ((uint64_t *)data)[i] = x;
    }
}

/* Equal bits; of sums of fractions in another order, to rounding. */
static void expect_equal(const void *a, const void *b, gr_dtype dtype, size_t n, bool rounded) {
    if (!rounded) {
        assert_memory_equal(a, b, n * gr_dtype_size(dtype));
        return;
    }
    for (size_t i = 0; i < n; i++) {
        double u = dtype == GR_F32 ? ((const float *)a)[i] : ((const double *)a)[i];
        double v = dtype == GR_F32 ? ((const float *)b)[i] : ((const double *)b)[i];
        assert_true(fabs(u - v) <= 1e-2); /* of values up to 1e4 per rank: 1e-6 of them */
    }
}

static void check_collective(collective what, gr_group g, gr_dtype dtype, size_t n_shard, bool fractions) {
    size_t elem = gr_dtype_size(dtype), n = (size_t)suite_comm->size[g] * n_shard, room = n * elem;
    size_t own = (size_t)suite_comm->rank[g] * n_shard;
    void *host = calloc(n, elem), *data = calloc(n, elem), *in = calloc(n, elem), *poison = malloc(room);
    assert_true(host && data && in && poison);
    fill(host, dtype, n, fractions);
    memcpy(data, host, room);
    memset(poison, 0xa5, room);
    void *device = device_alloc(room);
    uint64_t sent = suite_comm->sent[GR_TRAFFIC_GRADIENTS], waits = suite_backend->n_sync;
    uint64_t host_sent = suite_host->sent[GR_TRAFFIC_GRADIENTS];
    put(device, data, room);
    assert_int_equal(run_collective(suite_comm, what, g, dtype, device, n_shard), 0);
    uint64_t n_call = what < REDUCE_PIECES ? 1 : 8; /* at most so many pieces */
    assert_true(suite_backend->n_sync - waits <= (suite_comm->size[g] > 1 ? n_call * suite_waits_max : 0));
    get(in, device, room);
    put(device, poison, room); /* the next op of COMPUTE may have the memory */
    sync_device();
    assert_int_equal(run_collective(suite_host, what, g, dtype, host, n_shard), 0);
    if (what == SCATTER || what == REDUCE_PIECES)
        expect_equal((uint8_t *)in + own * elem, (uint8_t *)host + own * elem, dtype, n_shard,
            fractions && !suite_in_rank_order);
    else
        expect_equal(in, host, dtype, n, fractions && what == SUM && !suite_in_rank_order);
    uint64_t all[2] = {
        suite_comm->sent[GR_TRAFFIC_GRADIENTS] - sent, suite_host->sent[GR_TRAFFIC_GRADIENTS] - host_sent};
    if (what != SUM)
        assert_true(all[0] == all[1]);
    assert_int_equal(suite_host->sum(suite_host, g, GR_U64, all, 2), 0); /* pieces may share it out in another way */
    assert_true(all[0] == all[1]);
    suite_backend->release(suite_backend, device);
    free(host), free(data), free(in), free(poison);
}

static void check_collectives(gr_group g) {
    static const size_t shards[] = {1, 7, 61};
    for (collective what = SUM; what < N_COLLECTIVE; what++)
        for (size_t i = 0; i < sizeof shards / sizeof shards[0]; i++) {
            check_collective(what, g, GR_F32, shards[i], false);
            check_collective(what, g, GR_F32, shards[i], true);
            check_collective(what, g, GR_F64, shards[i], true);
            check_collective(what, g, GR_U64, shards[i], false);
        }
}

static void collectives_give_what_they_give_in_host_memory(void **state) {
    (void)state;
    for_every_layout(check_collectives);
}

/* ---------------------------------------------------------------- between the two memories */

static void host_memory_is_moved_as_before(void **state) {
    (void)state;
    gr_comm *c = suite_comm;
    int me = c->rank[GR_WORLD], n = c->size[GR_WORLD];
    uint64_t waits = suite_backend->n_sync, ids[R_MAX] = {0}, u = (uint64_t)me, first = (uint64_t)me + 7;
    double d = 0.5 + me;
    ids[me] = (uint64_t)me * 3;
    assert_int_equal(c->sum(c, GR_WORLD, GR_F64, &d, 1), 0);
    assert_int_equal(c->sum(c, GR_WORLD, GR_U64, &u, 1), 0);
    assert_int_equal(c->all_gather(c, GR_WORLD, GR_U64, ids, 1), 0);
    assert_int_equal(c->bcast(c, GR_WORLD, &first, sizeof first, 0), 0);
    assert_int_equal(c->barrier(c, GR_WORLD), 0);
    assert_true(d == 0.5 * n + n * (n - 1) / 2.0 && u == (uint64_t)(n * (n - 1) / 2) && first == 7);
    for (int r = 0; r < n; r++)
        assert_true(ids[r] == (uint64_t)r * 3);
    uint32_t rows[R_MAX], n_row = 0;
    uint16_t out[R_MAX], in[R_MAX];
    for (int r = 0; r < n; r++, n_row++) {
        rows[r] = 1;
        out[r] = (uint16_t)(me * 100 + r);
    }
    gr_exchange x = {
        .group = GR_WORLD, .dtype = GR_U16, .width = 1, .send = out, .send_rows = rows, .recv = in, .recv_rows = rows};
    assert_int_equal(c->exchange_start(c, &x), 0);
    assert_int_equal(c->exchange_wait(c), 0);
    for (int r = 0; r < n; r++)
        assert_int_equal(in[r], r * 100 + me);
    assert_int_equal(gr_comm_agree(c, me == n - 1 ? gr_fail(GR_DATA, "last") : GR_OK), GR_DATA);
    assert_int_equal(gr_comm_agree(c, GR_OK), 0);
    assert_true(suite_backend->n_sync == waits);
}

/* COMPUTE goes on between start and wait: an op there finds the rows on their way or there, never in its way. */
static void compute_goes_on_beside_an_exchange(void **state) {
    (void)state;
    gr_comm *c = suite_comm;
    uint32_t n = (uint32_t)c->size[GR_WORLD], rows[R_MAX];
    float out[R_MAX], in[R_MAX], beside[4] = {1, 2, 3, 4}, seen[4];
    for (uint32_t r = 0; r < n; r++) {
        rows[r] = 1;
        out[r] = (float)(c->rank[GR_WORLD] * 100 + (int)r);
    }
    float *send = device_alloc(sizeof out), *recv = device_alloc(sizeof in), *other = device_alloc(sizeof beside);
    put(send, out, sizeof out);
    gr_exchange x = {.group = GR_WORLD,
        .dtype = GR_F32,
        .width = 1,
        .send = send,
        .send_rows = rows,
        .recv = recv,
        .recv_rows = rows};
    bool first = c->rank[GR_WORLD] == 0;
    if (!first)
        assert_int_equal(suite_host->barrier(suite_host, GR_WORLD), 0);
    assert_int_equal(c->exchange_start(c, &x), 0);
    put(other, beside, sizeof beside);
    get(seen, other, sizeof seen);
    if (first) { /* the others have not started */
        lane_double_prefer(suite_backend, GR_LANE_COMM);
        lane_double_query(suite_backend->lane_native(suite_backend, GR_LANE_COMPUTE));
        assert_memory_equal(seen, beside, sizeof seen);
        assert_int_equal(suite_host->barrier(suite_host, GR_WORLD), 0);
    }
    assert_int_equal(c->exchange_wait(c), 0);
    get(in, recv, n * sizeof *in);
    sync_device();
    for (uint32_t r = 0; r < n; r++)
        assert_true(in[r] == (float)((int)r * 100 + c->rank[GR_WORLD]));
    suite_backend->release(suite_backend, send);
    suite_backend->release(suite_backend, recv);
    suite_backend->release(suite_backend, other);
}

#define MOVER_SUITE                                                                                                    \
    cmocka_unit_test(exchanged_rows_are_those_of_their_ranks),                                                         \
        cmocka_unit_test(collectives_give_what_they_give_in_host_memory),                                              \
        cmocka_unit_test(host_memory_is_moved_as_before), cmocka_unit_test(compute_goes_on_beside_an_exchange)

/* The comms and the backend, nothing attached yet. */
static gr_err open_mover_suite(const char *comm, int n_rank) {
    alarm(120); /* a failed assertion on one rank leaves the others waiting */
    GR_TRY(gr_comm_open(&suite_comm, comm));
    GR_TRY(gr_comm_mpi_open(&suite_host, 0, &GR_COMM_MPI_LIMITS));
    GR_TRY(lane_double_open(&suite_backend));
    GR_ASSERT(suite_comm->size[GR_WORLD] == n_rank, "%d ranks", suite_comm->size[GR_WORLD]);
    return GR_OK;
}

/* failed: the ranks may be out of step, and finalising could wait for ever. */
static int close_mover_suite(int failed) {
    if (failed)
        _exit(1);
    gr_comm_detach(suite_comm, GR_OK);
    suite_backend->close(suite_backend);
    gr_comm_close(suite_host, GR_OK);
    gr_comm_close(suite_comm, GR_OK);
    return 0;
}

#endif
