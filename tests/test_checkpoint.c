#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "checkpoint_fixture.h"

static const char *const folder = "test_checkpoint.work";
static gr_comm *comm;

static int clean(void **state) {
    (void)state;
    fixture_folder_remove(folder);
    return 0;
}

static void saves(int64_t first, int64_t second) {
    checkpoint_fixture x;
    checkpoint_fixture_open(&x, comm, gr_io_system(), folder, GR_ZERO_1, 0);
    assert_int_equal(checkpoint_fixture_save(&x, first), GR_OK);
    if (second)
        assert_int_equal(checkpoint_fixture_save(&x, second), GR_OK);
    checkpoint_fixture_close(&x);
}

static gr_checkpoint_found find(void) {
    gr_checkpoint_found found;
    assert_int_equal(gr_checkpoint_find(gr_io_system(), comm, folder, &found), GR_OK);
    return found;
}

static int64_t found_step(void) {
    gr_checkpoint_found found = find();
    int64_t step = found.found ? found.state.step : -1;
    gr_checkpoint_found_close(&found);
    return step;
}

/* ---------------------------------------------------------------- there and back */

static void what_was_saved_comes_back_bit_for_bit(void **state) {
    (void)state;
    for (gr_zero zero = GR_ZERO_OFF; zero <= GR_ZERO_1; zero++) {
        saves(10, 0);
        gr_checkpoint_found found = find();
        checkpoint_fixture x;
        checkpoint_fixture_open(&x, comm, gr_io_system(), folder, zero, 0);
        checkpoint_fixture_visit(&x, 0, fixture_scramble, NULL);
        assert_int_equal(gr_checkpoint_load(x.checkpointer, &found), GR_OK);
        assert_int_equal(checkpoint_fixture_differences(&x, 10), 0);
        gr_optimizer_counts counts = gr_optimizer_counts_get(x.optimizer);
        assert_true(counts.n_applied == 10 && counts.n_skipped == 1);
        checkpoint_fixture_close(&x);
        gr_checkpoint_found_close(&found);
        clean(NULL);
    }
}

static void the_manifest_carries_the_run_and_its_facts(void **state) {
    (void)state;
    saves(10, 0);
    gr_checkpoint_found f = find();
    assert_true(f.found && f.n_rank == 1 && f.R_ep == 1 && f.n_fact == 2);
    assert_true(f.state.step == 10 && f.state.cursor == 80 && f.state.decay_steps == 300);
    assert_true(f.state.optimizer.n_applied == 10 && f.state.optimizer.n_skipped == 1);
    assert_string_equal(f.path, "test_checkpoint.work/step-00000010");
    assert_string_equal(f.config_text, "{\n  \"train\": {}\n}\n");
    for (int i = 0; i < f.n_fact; i++) {
        assert_string_equal(f.facts[i].key, fixture_facts[i].key);
        assert_string_equal(f.facts[i].value, fixture_facts[i].value);
    }
    gr_checkpoint_found_close(&f);
}

static void without_a_checkpoint_there_is_nothing_to_resume(void **state) {
    (void)state;
    assert_int_equal(found_step(), -1);
    checkpoint_fixture x;
    checkpoint_fixture_open(&x, comm, gr_io_system(), folder, GR_ZERO_1, 0);
    assert_int_equal(found_step(), -1);
    checkpoint_fixture_close(&x);
}

static void the_newest_checkpoint_wins(void **state) {
    (void)state;
    saves(99999999, 100000000); /* a name of one digit more */
    assert_int_equal(found_step(), 100000000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(what_was_saved_comes_back_bit_for_bit, clean),
        cmocka_unit_test_teardown(the_manifest_carries_the_run_and_its_facts, clean),
        cmocka_unit_test_teardown(without_a_checkpoint_there_is_nothing_to_resume, clean),
        cmocka_unit_test_teardown(the_newest_checkpoint_wins, clean),
    };
    gr_log_set(GR_LOG_QUIET);
    fixture_folder_remove(folder);
    gr_err err = gr_comm_open(&comm, "self");
    if (err) {
        gr_error_print(stderr, err);
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gr_comm_close(comm, GR_OK);
    return failed;
}
