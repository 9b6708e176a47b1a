/* nccl_suite.h: src/comm/nccl.c over a strict stand-in for NCCL (nccl_double.h); run by mpi_<n>_nccl. Built where
 * nccl.h is. */
#ifndef GROUTER_TESTS_NCCL_SUITE_H
#define GROUTER_TESTS_NCCL_SUITE_H

#include "mover_suite.h"
#include "nccl_double.h"

static const gr_comm_nccl_limits patient = {.start_s = 60, .wait_s = 60, .abort_s = 10};

static gr_err attach_nccl(gr_comm_nccl_limits limits) {
    gr_mover *m;
    GR_TRY(gr_comm_nccl_open(&m, suite_comm, suite_backend, &limits));
    return gr_device_open(suite_comm, suite_backend, m);
}

static void attach_again(void) {
    gr_comm_detach(suite_comm, GR_PEER);
    assert_int_equal(attach_nccl(patient), 0);
    assert_string_equal(suite_comm->name, "nccl");
}

/* Row r of each rank to rank r, in the world; the arrays live as long as the test. */
static float *some_data;
static uint32_t one_row[R_MAX];

static gr_exchange some_exchange(void) {
    for (int r = 0; r < suite_comm->size[GR_WORLD]; r++)
        one_row[r] = 1;
    return (gr_exchange){.group = GR_WORLD,
        .dtype = GR_F32,
        .width = 1,
        .send = some_data,
        .send_rows = one_row,
        .recv = some_data + R_MAX,
        .recv_rows = one_row};
}

static int open_data(void **state) {
    (void)state;
    some_data = device_alloc(2 * R_MAX * sizeof *some_data);
    return 0;
}

static int close_data(void **state) {
    (void)state;
    suite_backend->release(suite_backend, some_data);
    return 0;
}

/* ---------------------------------------------------------------- communicators */

static void every_group_of_its_own_has_a_communicator(void **state) {
    (void)state;
    int n = suite_comm->size[GR_WORLD];
    for (int R_ep = 1; R_ep <= n; R_ep++) {
        if (n % R_ep != 0)
            continue;
        nccl_double_counts before = nccl_double_count();
        assert_int_equal(gr_comm_group(suite_comm, R_ep), 0);
        nccl_double_counts now = nccl_double_count();
        assert_int_equal(
            now.init - before.init, R_ep > 1 && R_ep < n ? 2 : 0); /* else it is the world's, or no one's */
        assert_int_equal(now.finalized, now.destroyed);
        assert_int_equal(now.aborted, before.aborted);
    }
    nccl_double_counts before = nccl_double_count();
    gr_comm_detach(suite_comm, GR_OK);
    nccl_double_counts now = nccl_double_count();
    assert_int_equal(now.destroyed - before.destroyed, 1);
    assert_int_equal(now.init, now.destroyed);
    assert_string_equal(suite_comm->name, "mpi");
    assert_int_equal(attach_nccl(patient), 0);
    assert_int_equal(nccl_double_count().init, now.init + 1);
    assert_true(nccl_double_count().sends - now.sends == n - 1); /* warmed up: all ranks have met */
}

static void without_rows_nccl_is_not_called(void **state) {
    (void)state;
    nccl_double_counts before = nccl_double_count();
    check_exchange_of(GR_WORLD, GR_F32, 3, 2);
    assert_int_equal(nccl_double_count().groups, before.groups);
    check_exchange_of(GR_WORLD, GR_F32, 3, 1); /* from the first rank only */
    nccl_double_counts now = nccl_double_count();
    exchanged e = rows_of((uint32_t)suite_comm->rank[GR_WORLD], (uint32_t)suite_comm->size[GR_WORLD], 1);
    int n_send = 0, n_recv = 0;
    for (int r = 0; r < suite_comm->size[GR_WORLD]; r++) {
        n_send += r != suite_comm->rank[GR_WORLD] && e.send_rows[r] > 0;
        n_recv += r != suite_comm->rank[GR_WORLD] && e.recv_rows[r] > 0;
    }
    assert_int_equal(now.sends - before.sends, n_send);
    assert_int_equal(now.receives - before.receives, n_recv);
    assert_int_equal(now.groups - before.groups, n_send + n_recv > 0);
}

static void host_memory_does_not_touch_nccl(void **state) {
    nccl_double_counts before = nccl_double_count();
    host_memory_is_moved_as_before(state);
    nccl_double_counts now = nccl_double_count();
    assert_memory_equal(&now, &before, sizeof now);
}

/* ---------------------------------------------------------------- errors and deadlines */

static void expect_lost(gr_err e, const char *what, const char *why) {
    assert_int_equal(e, GR_PEER);
    assert_non_null(strstr(gr_error_text(), what));
    assert_non_null(strstr(gr_error_text(), "with the world group (rank "));
    assert_non_null(strstr(gr_error_text(), why));
    assert_non_null(strstr(gr_error_text(), "nvidia-smi"));
}

static void an_error_of_a_call_ends_all_communicators(void **state) {
    (void)state;
    int n = suite_comm->size[GR_WORLD], R_ep = n == 4 ? 2 : 1;
    assert_int_equal(gr_comm_group(suite_comm, R_ep), 0);
    gr_exchange x = some_exchange();
    nccl_double_counts before = nccl_double_count();
    nccl_double_break();
    expect_lost(suite_comm->exchange_start(suite_comm, &x), "an exchange of rows", "remote process exited");
    assert_non_null(strstr(gr_error_text(), "last words"));
    assert_int_equal(nccl_double_count().aborted - before.aborted, R_ep == 1 ? 1 : 3);
    assert_int_equal(suite_comm->sum(suite_comm, GR_WORLD, GR_F32, some_data, 2), GR_PEER);
    assert_non_null(strstr(gr_error_text(), "has been ended"));
    assert_int_equal(gr_comm_group(suite_comm, 1), GR_PEER);
    attach_again();
    check_exchange(GR_WORLD);
}

/* Rank 0 does not come: the others find out while they wait for their device. */
static gr_err wait_for_the_first_rank(void) {
    gr_exchange x = some_exchange();
    if (suite_comm->rank[GR_WORLD] == 0)
        return GR_PEER;
    GR_TRY(suite_comm->exchange_start(suite_comm, &x));
    GR_TRY(suite_comm->exchange_wait(suite_comm));
    return suite_backend->sync(suite_backend);
}

static void an_error_ends_the_wait_for_the_device(void **state) {
    (void)state;
    gr_exchange x = some_exchange();
    nccl_double_counts before = nccl_double_count();
    if (suite_comm->rank[GR_WORLD] != 0) {
        assert_int_equal(suite_comm->exchange_start(suite_comm, &x), 0);
        assert_int_equal(suite_comm->exchange_wait(suite_comm), 0);
        nccl_double_break();
        expect_lost(suite_backend->sync(suite_backend), "an exchange of rows", "remote process exited");
        assert_int_equal(nccl_double_count().aborted - before.aborted, 1);
    }
    attach_again();
    check_exchange(GR_WORLD);
}

static void a_rank_that_stays_away_is_given_up(void **state) {
    (void)state;
    gr_comm_detach(suite_comm, GR_OK);
    assert_int_equal(attach_nccl((gr_comm_nccl_limits){.start_s = 60, .wait_s = 1, .abort_s = 10}), 0);
    double start_s = gr_time_s();
    gr_err e = wait_for_the_first_rank();
    if (suite_comm->rank[GR_WORLD] != 0) {
        expect_lost(e, "an exchange of rows", "to take part within 1 s");
        assert_true(gr_time_s() - start_s >= 1);
    }
    attach_again();
    check_exchange(GR_WORLD);
}

static void a_rank_that_is_not_there_at_the_start_is_given_up(void **state) {
    (void)state;
    int last = suite_comm->size[GR_WORLD] - 1;
    gr_comm_detach(suite_comm, GR_OK);
    nccl_double_stay_away(suite_comm->rank[GR_WORLD] == last);
    gr_err e = attach_nccl((gr_comm_nccl_limits){.start_s = 1, .wait_s = 60, .abort_s = 10});
    assert_int_equal(e, GR_PEER); /* agreed: rank 0 has the text */
    assert_int_equal(suite_comm->agreed, GR_PEER);
    if (suite_comm->rank[GR_WORLD] == 0)
        expect_lost(e, "creating the communicator", "to take part within 1 s");
    assert_null(suite_comm->device);
    assert_null(suite_backend->watch);
    nccl_double_stay_away(false);
    assert_int_equal(attach_nccl(patient), 0);
    check_exchange(GR_WORLD);
}

static void an_abort_that_hangs_is_left_behind(void **state) {
    (void)state;
    gr_comm_detach(suite_comm, GR_OK);
    assert_int_equal(attach_nccl((gr_comm_nccl_limits){.start_s = 60, .wait_s = 60, .abort_s = 0.2}), 0);
    gr_exchange x = some_exchange();
    nccl_double_hang(true);
    nccl_double_break();
    double start_s = gr_time_s();
    expect_lost(suite_comm->exchange_start(suite_comm, &x), "an exchange of rows", "remote process exited");
    assert_true(gr_time_s() - start_s >= 0.2);
    nccl_double_hang(false);
    attach_again();
    check_exchange(GR_WORLD);
}

/* In a program built with NCCL the first backend with streams makes "auto" NCCL's. */
static void attaching_chooses_nccl_where_it_is_built_in(void **state) {
    (void)state;
    gr_comm_detach(suite_comm, GR_OK);
    assert_true(suite_comm->automatic);
    assert_int_equal(gr_comm_attach(suite_comm, suite_backend), 0);
    bool built_in = strstr(gr_comm_names(), "nccl") != NULL;
    assert_string_equal(suite_comm->name, built_in ? "nccl" : "mpi");
    assert_int_equal(gr_comm_check("nccl"), built_in ? GR_OK : GR_CONFIG);
    assert_int_equal(strncmp(gr_comm_nccl_library(), "NCCL 2.", 7), 0);
    gr_comm_detach(suite_comm, GR_OK);
    assert_int_equal(attach_nccl(patient), 0);
}

static int run_nccl_suite(int n_rank) {
    if (open_mover_suite("auto", n_rank))
        return 1;
    nccl_double_start();
    if (attach_nccl(patient))
        return 1;
    const struct CMUnitTest tests[] = {
        MOVER_SUITE,
        cmocka_unit_test(host_memory_does_not_touch_nccl),
        cmocka_unit_test(every_group_of_its_own_has_a_communicator),
        cmocka_unit_test(without_rows_nccl_is_not_called),
        cmocka_unit_test(an_error_of_a_call_ends_all_communicators),
        cmocka_unit_test(an_error_ends_the_wait_for_the_device),
        cmocka_unit_test(a_rank_that_stays_away_is_given_up),
        cmocka_unit_test(a_rank_that_is_not_there_at_the_start_is_given_up),
        cmocka_unit_test(an_abort_that_hangs_is_left_behind),
        cmocka_unit_test(attaching_chooses_nccl_where_it_is_built_in),
    };
    int failed = cmocka_run_group_tests_name("nccl", tests, open_data, close_data);
    if (!failed) {
        gr_comm_detach(suite_comm, GR_OK);
        nccl_double_finish();
    }
    return close_mover_suite(failed);
}

#endif
