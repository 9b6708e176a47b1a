/* test_comm.c: choosing a comm by name and what `self` does, without a launcher. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "comm/kinds.h"

static const char *const launcher[] = {
    "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"};

static int without_launcher(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof launcher / sizeof launcher[0]; i++)
        unsetenv(launcher[i]);
    return 0;
}

static void auto_alone_is_self(void **state) {
    (void)state;
    gr_comm *c;
    assert_int_equal(gr_comm_open(&c, "auto"), 0);
    assert_string_equal(c->name, "self");
    gr_comm_close(c, GR_OK);
}

static void auto_in_a_plain_slurm_batch_shell_is_self(void **state) {
    (void)state;
    gr_comm *c;
    setenv("SLURM_NTASKS", "8", 1);
    setenv("SLURM_PROCID", "0", 1);
    assert_int_equal(gr_comm_open(&c, "auto"), 0);
    assert_string_equal(c->name, "self");
    gr_comm_close(c, GR_OK);
    unsetenv("SLURM_PROCID");
}

static void unknown_names_are_refused(void **state) {
    (void)state;
    gr_comm *c;
    assert_int_equal(gr_comm_open(&c, "tcp"), GR_CONFIG);
    assert_null(c);
    assert_non_null(strstr(gr_error_text(), "\"tcp\""));
}

static void self_leaves_collective_data_alone(void **state) {
    (void)state;
    gr_comm *c;
    assert_int_equal(gr_comm_open(&c, "self"), 0);
    float x[3] = {1, 2, 3};
    for (gr_group g = GR_WORLD; g < GR_N_GROUP; g++) {
        assert_int_equal(c->size[g], 1);
        assert_int_equal(c->rank[g], 0);
        assert_int_equal(c->sum(c, g, GR_F32, x, 3), 0);
        assert_int_equal(c->reduce_scatter(c, g, GR_F32, x, 3), 0);
        assert_int_equal(c->all_gather(c, g, GR_F32, x, 3), 0);
        assert_int_equal(c->reduce_piece(c, g, GR_F32, x + 1, (gr_piece){.shard = 3, .first = 1, .n = 2}), 0);
        assert_int_equal(c->gather_piece(c, g, GR_F32, x + 1, (gr_piece){.shard = 3, .first = 1, .n = 2}), 0);
        assert_int_equal(c->join(c), 0);
        assert_int_equal(c->bcast(c, g, x, sizeof x, 0), 0);
        assert_int_equal(c->barrier(c, g), 0);
    }
    assert_true(x[0] == 1 && x[1] == 2 && x[2] == 3);
    gr_comm_close(c, GR_OK);
}

static void self_exchanges_with_itself(void **state) {
    (void)state;
    gr_comm *c;
    assert_int_equal(gr_comm_open(&c, "self"), 0);
    float send[4] = {1, 2, 3, 4}, recv[4] = {0};
    uint32_t rows = 2;
    gr_exchange x = {.dtype = GR_F32, .width = 2, .send = send, .send_rows = &rows, .recv = recv, .recv_rows = &rows};
    assert_int_equal(c->exchange_start(c, &x), 0);
    assert_int_equal(c->exchange_wait(c), 0);
    assert_memory_equal(send, recv, sizeof send);
    gr_comm_close(c, GR_OK);
}

static void self_has_groups_of_one_only(void **state) {
    (void)state;
    gr_comm *c;
    assert_int_equal(gr_comm_open(&c, "self"), 0);
    assert_int_equal(gr_comm_group(c, 1), 0);
    assert_int_equal(gr_comm_group(c, 2), GR_CONFIG);
    assert_non_null(strstr(gr_error_text(), "expert_parallel_size"));
    gr_comm_close(c, GR_OK);
}

static void agreeing_alone_keeps_the_own_error(void **state) {
    (void)state;
    gr_comm *c;
    assert_int_equal(gr_comm_open(&c, "self"), 0);
    assert_int_equal(gr_comm_agree(c, GR_OK), 0);
    assert_int_equal(gr_comm_agree(c, gr_fail(GR_DATA, "mine")), GR_DATA);
    assert_string_equal(gr_error_text(), "mine");
    gr_comm_close(c, GR_DATA);
    gr_comm_close(NULL, GR_OK);
}

static void libraries_are_named(void **state) {
    (void)state;
    assert_int_equal(strncmp(gr_comm_names(), "self mpi", 8), 0); /* and nccl where it is built in */
    assert_non_null(strstr(gr_comm_library(), "MPI"));
    assert_null(strchr(gr_comm_library(), ','));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(auto_alone_is_self, without_launcher),
        cmocka_unit_test_setup(auto_in_a_plain_slurm_batch_shell_is_self, without_launcher),
        cmocka_unit_test_setup(unknown_names_are_refused, without_launcher),
        cmocka_unit_test_setup(self_leaves_collective_data_alone, without_launcher),
        cmocka_unit_test_setup(self_exchanges_with_itself, without_launcher),
        cmocka_unit_test_setup(self_has_groups_of_one_only, without_launcher),
        cmocka_unit_test_setup(agreeing_alone_keeps_the_own_error, without_launcher),
        cmocka_unit_test_setup(libraries_are_named, without_launcher),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
