/* Two ranks whose memory host code, and so MPI, cannot touch: the bits of the CPU backend in both layouts, with sharded
 * moments and weights and without, rows and sums by way of host memory. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "device_suite.h"

static int setup(void **state) {
    (void)state;
    return open_all("mpi");
}

static int teardown(void **state) {
    (void)state;
    close_all();
    return 0;
}

static void for_each_layout(void (*check)(void)) {
    for (int R_ep = 1; R_ep <= 2; R_ep++) {
        assert_int_equal(gr_comm_group(comm, R_ep), GR_OK);
        check();
    }
}

static void check_short_training(void) {
    check_all_training(3);
}

static void training_has_the_bits_of_the_cpu(void **state) {
    (void)state;
    for_each_layout(check_short_training);
}

static void evaluation_has_the_bits_of_the_cpu(void **state) {
    (void)state;
    for_each_layout(check_evaluation);
}

static void a_skipped_step_has_the_bits_of_the_cpu(void **state) {
    (void)state;
    for_each_layout(check_skip);
}

/* What goes through host memory is counted: the sums of gradients, the weights' way back, and with experts on other
 * ranks the rows of each layer, 4 times a micro-batch. */
static void every_way_through_host_memory_is_counted(void **state) {
    (void)state;
    assert_int_equal(gr_comm_group(comm, 1), GR_OK);
    const model_case_waits replicated = waits_of(FIXED);
    assert_true(replicated.n_download > 2 && replicated.n_sync > 1);
    assert_int_equal(gr_comm_group(comm, 2), GR_OK);
    const model_case_waits spread = waits_of(FIXED);
    assert_true(spread.n_sync >= replicated.n_sync + 2 * 2 * 4 - 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(training_has_the_bits_of_the_cpu),
        cmocka_unit_test(evaluation_has_the_bits_of_the_cpu), cmocka_unit_test(a_skipped_step_has_the_bits_of_the_cpu),
        cmocka_unit_test(every_way_through_host_memory_is_counted)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
