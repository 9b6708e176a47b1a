/* The model and its optimizer on memory that host code cannot touch: the bits of the CPU backend, and how often the
 * host waits. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "device_suite.h"

static int setup(void **state) {
    (void)state;
    return open_all("self");
}

static int teardown(void **state) {
    (void)state;
    close_all();
    return 0;
}

static void training_has_the_bits_of_the_cpu(void **state) {
    (void)state;
    check_all_training(20);
}

static void evaluation_has_the_bits_of_the_cpu(void **state) {
    (void)state;
    check_evaluation();
}

static void a_skipped_step_has_the_bits_of_the_cpu(void **state) {
    (void)state;
    check_skip();
}

/* What was decided: one copy, one wait. */
static void with_given_routes_the_host_waits_once_in_a_step(void **state) {
    (void)state;
    for (int routing = FIXED; routing <= TABLE_GATES; routing++) {
        model_case_waits w = waits_of(routing);
        assert_int_equal(w.n_download, 1);
        assert_int_equal(w.n_sync, 1);
    }
}

/* Its choices: once per micro-batch and layer with experts. */
static void a_learned_router_is_waited_for_in_every_layer(void **state) {
    (void)state;
    gr_model_config c = config_of(LEARNED);
    const uint64_t n = 2 * (uint64_t)gr_model_routers(&c);
    model_case_waits w = waits_of(LEARNED);
    assert_int_equal(w.n_download, 1 + n);
    assert_true(w.n_sync >= 1 + n);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(training_has_the_bits_of_the_cpu),
        cmocka_unit_test(evaluation_has_the_bits_of_the_cpu), cmocka_unit_test(a_skipped_step_has_the_bits_of_the_cpu),
        cmocka_unit_test(with_given_routes_the_host_waits_once_in_a_step),
        cmocka_unit_test(a_learned_router_is_waited_for_in_every_layer)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
