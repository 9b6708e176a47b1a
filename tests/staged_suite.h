/* staged_suite.h: device memory through host memory, over the comm `mpi` or `self`; run by mpi_<n>_staged. */
#ifndef GROUTER_TESTS_STAGED_SUITE_H
#define GROUTER_TESTS_STAGED_SUITE_H

#include "mover_suite.h"

/* So little that every call takes several pieces. */
enum { FEW_BYTES = 480 };

static void rows_that_do_not_fit_are_refused(void **state) {
    (void)state;
    gr_comm *c = suite_comm;
    uint32_t n = (uint32_t)c->size[GR_WORLD], rows[R_MAX];
    for (uint32_t r = 0; r < n; r++)
        rows[r] = 1;
    float *data = device_alloc(2 * R_MAX * FEW_BYTES);
    gr_exchange x = {.group = GR_WORLD,
        .dtype = GR_U8,
        .width = FEW_BYTES / 2 / (n - 1) + 1,
        .send = data,
        .send_rows = rows,
        .recv = data + R_MAX * FEW_BYTES / sizeof(float),
        .recv_rows = rows};
    assert_int_equal(c->exchange_start(c, &x), GR_RESOURCE);
    assert_non_null(strstr(gr_error_text(), "expected rows of at most"));
    assert_non_null(strstr(gr_error_text(), "nccl"));
    x.width--;
    assert_int_equal(c->exchange_start(c, &x), 0);
    assert_int_equal(c->exchange_wait(c), 0);
    sync_device();
    suite_backend->release(suite_backend, data);
}

/* What the program does: nothing changes on the CPU, and everything is as before after detaching. */
static void attaching_is_undone_by_detaching(void **state) {
    (void)state;
    gr_comm *c = suite_comm;
    gr_backend *cpu;
    gr_comm_detach(c, GR_OK);
    gr_comm before = *c;
    assert_int_equal(gr_backend_open(&cpu, "cpu", GR_F32), 0);
    assert_int_equal(gr_comm_attach(c, cpu), 0);
    assert_null(c->device);
    assert_ptr_equal(c->sum, before.sum);
    assert_int_equal(gr_comm_attach(c, suite_backend), 0);
    assert_ptr_equal(c->device, suite_backend);
    assert_ptr_not_equal(c->sum, before.sum);
    assert_string_equal(c->name, before.name);
    check_collectives(GR_WORLD);
    assert_int_equal(gr_comm_attach(c, cpu), 0); /* replaces it */
    assert_null(c->device);
    gr_backend_close(cpu);
    gr_comm_detach(c, GR_OK);
    assert_ptr_equal(c->sum, before.sum);
    assert_ptr_equal(c->exchange_start, before.exchange_start);
}

static void ranks_with_and_without_a_device_do_not_go_together(void **state) {
    (void)state;
    gr_comm *c = suite_comm;
    gr_backend *cpu;
    assert_int_equal(gr_backend_open(&cpu, "cpu", GR_F32), 0);
    assert_int_equal(gr_comm_attach(c, c->rank[GR_WORLD] == 1 ? cpu : suite_backend), GR_RESOURCE);
    assert_null(c->device);
    if (c->rank[GR_WORLD] == 0)
        assert_non_null(strstr(gr_error_text(), "with a device"));
    gr_backend_close(cpu);
}

static int run_staged_suite(int n_rank) {
    gr_mover *m = NULL;
    if (open_mover_suite(n_rank > 1 ? "mpi" : "self", n_rank))
        return 1;
    if (n_rank > 1 && gr_comm_staged_open(&m, suite_comm, suite_backend, FEW_BYTES))
        return 1;
    if (gr_device_open(suite_comm, suite_backend, m))
        return 1;
    suite_in_rank_order = true;
    suite_waits_max = n_rank > 1 ? 2 * MOST_ROWS : 0;
    const struct CMUnitTest many[] = {
        MOVER_SUITE,
        cmocka_unit_test(rows_that_do_not_fit_are_refused),
        cmocka_unit_test(attaching_is_undone_by_detaching),
        cmocka_unit_test(ranks_with_and_without_a_device_do_not_go_together),
    };
    const struct CMUnitTest one[] = {MOVER_SUITE, cmocka_unit_test(attaching_is_undone_by_detaching)};
    return close_mover_suite(n_rank > 1 ? cmocka_run_group_tests_name("staged", many, NULL, NULL)
                                        : cmocka_run_group_tests_name("alone", one, NULL, NULL));
}

#endif
