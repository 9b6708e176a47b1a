#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <sys/stat.h>

#define CHECKPOINT_FOLDER "test_checkpoint.work"
#include "checkpoint_alone.h"

/* ---------------------------------------------------------------- there and back */

static void what_was_saved_comes_back_bit_for_bit(void **state) {
    (void)state;
    for (gr_zero zero = GR_ZERO_OFF; zero <= GR_ZERO_1; zero++) {
        saves(10, 0);
        gr_checkpoint_found found = find();
        checkpoint_fixture x;
        checkpoint_fixture_open(&x, comm, quick_io(), folder, zero, 0);
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
    assert_string_equal(f.path, CHECKPOINT_FOLDER "/step-00000010");
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
    checkpoint_fixture_open(&x, comm, quick_io(), folder, GR_ZERO_1, 0);
    assert_int_equal(found_step(), -1);
    checkpoint_fixture_close(&x);
}

static void the_newest_checkpoint_wins(void **state) {
    (void)state;
    saves(99999999, 100000000); /* a name of one digit more */
    assert_int_equal(found_step(), 100000000);
}

/* ---------------------------------------------------------------- damage */

static void the_older_one_takes_over_for_a_truncated_file(void **state) {
    (void)state;
    saves(OLD, NEW);
    for (int i = -1; i < gr_saved_file_count(1, 1); i++) {
        size_t n;
        char *text = file_read(file_path(i), &n);
        for (size_t k = 0; k <= 40; k++) {
            file_write(file_path(i), text, (n - 1) * k / 40);
            assert_int_equal(found_step(), OLD);
        }
        assert_int_equal(unlink(file_path(i)), 0);
        assert_int_equal(found_step(), OLD);
        file_write(file_path(i), text, n);
        assert_int_equal(found_step(), NEW);
        free(text);
    }
}

static void expect_flip_found(int i, char *text, size_t n, uint64_t bit) {
    char *at = text + bit / 8, kept = *at;
    *at = (char)(kept ^ 1 << bit % 8);
    file_write(file_path(i), text, n);
    assert_int_equal(found_step(), OLD);
    *at = kept;
}

/* A sample of each file, and all of the manifest's last line, which no checksum covers but itself. */
static void the_older_one_takes_over_for_a_flipped_bit(void **state) {
    (void)state;
    saves(OLD, NEW);
    for (int i = -1; i < gr_saved_file_count(1, 1); i++) {
        size_t n, n_seal = 34;
        char *text = file_read(file_path(i), &n);
        for (uint64_t k = 0; k < 200; k++)
            expect_flip_found(i, text, n, gr_bijection(3, 8 * n, k));
        for (uint64_t bit = 8 * (n - n_seal); i < 0 && bit < 8 * n; bit++)
            expect_flip_found(i, text, n, bit);
        file_write(file_path(i), text, n);
        free(text);
    }
    assert_int_equal(found_step(), NEW);
}

static void when_all_are_damaged_none_is_used_and_none_deleted(void **state) {
    (void)state;
    saves(NEW, 0);
    file_write(file_path(0), "x", 1);
    gr_checkpoint_found found;
    assert_int_equal(gr_checkpoint_find(gr_io_system(), comm, folder, &found), GR_CHECKPOINT);
    assert_false(found.found);
    assert_non_null(strstr(gr_error_text(), "1 damaged"));
    assert_true(gr_path_exists(file_path(0)) && gr_path_exists(file_path(1)) && gr_path_exists(file_path(-1)));
}

static void a_damaged_one_makes_way_for_a_new_save_of_its_step(void **state) {
    (void)state;
    saves(OLD, NEW);
    file_write(file_path(0), "x", 1);
    assert_int_equal(found_step(), OLD);
    saves(NEW, 0);
    assert_int_equal(found_step(), NEW);
    gr_names names;
    int64_t step;
    assert_int_equal(gr_names_list(gr_io_system(), folder, gr_step_name_is, &names), 0);
    assert_true(names.n == 2 && gr_step_name_read(names.name[0], &step) && step == OLD);
    free(names.name);
    assert_int_equal(system("test -e " CHECKPOINT_FOLDER "/replaced-00000020.*/model-0-of-1.safetensors"), 0);
}

/* ---------------------------------------------------------------- retention and leftovers */

static bool step_exists(int64_t step) {
    char path[GR_CHECKPOINT_PATH_MAX];
    gr_step_path(folder, step, path);
    return gr_path_exists(path);
}

static void the_newest_and_the_milestones_stay(void **state) {
    (void)state;
    checkpoint_fixture x;
    checkpoint_fixture_open(&x, comm, quick_io(), folder, GR_ZERO_1, 30);
    for (int64_t step = 10; step <= 100; step += 10) {
        assert_int_equal(checkpoint_fixture_save(&x, step), GR_OK);
        for (int64_t s = 10; s <= step; s += 10)
            assert_int_equal(step_exists(s), s % 30 == 0 || s >= step - 10);
    }
    checkpoint_fixture_close(&x);
}

static void the_one_resumed_from_and_damaged_ones_stay(void **state) {
    (void)state;
    saves(OLD, NEW);
    gr_checkpoint_found found = find();
    checkpoint_fixture x;
    checkpoint_fixture_open(&x, comm, quick_io(), folder, GR_ZERO_1, 0);
    assert_int_equal(gr_checkpoint_load(x.checkpointer, &found), GR_OK);
    char path[256];
    snprintf(path, sizeof path, "%s/step-%08d/%s", folder, (int)OLD, CHECKPOINT_MANIFEST);
    file_write(path, "x", 1);
    for (int64_t step = 30; step <= 60; step += 10)
        assert_int_equal(checkpoint_fixture_save(&x, step), GR_OK);
    assert_true(step_exists(OLD) && step_exists(NEW) && !step_exists(30) && !step_exists(40));
    assert_true(step_exists(50) && step_exists(60));
    checkpoint_fixture_close(&x);
    gr_checkpoint_found_close(&found);
}

/* The second newest is damaged by the time it would count: the third stays instead. */
static void damaged_ones_do_not_count_as_kept(void **state) {
    (void)state;
    saves(OLD, NEW);
    file_write(file_path(0), "x", 1);
    saves(30, 0);
    assert_true(step_exists(OLD) && step_exists(NEW) && step_exists(30));
    saves(40, 0);
    assert_true(!step_exists(OLD) && step_exists(NEW) && step_exists(30) && step_exists(40));
}

static const char *const foreign[] = {"step-7", "step-00000010.bak", "step-000000010", "tmp-00000010.12",
    "tmp-00000010.0123456789abcdeX", "trash-mine", "step-0000001x", "latest"};

static void only_leftovers_of_ours_are_removed(void **state) {
    (void)state;
    char path[256];
    saves(OLD, 0);
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, foreign[i]);
        assert_int_equal(mkdir(path, 0777), 0);
    }
    const char *const ours[] = {"tmp-00000020.0123456789abcdef", "trash-00000005.0123456789abcdef"};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, ours[i]);
        assert_int_equal(mkdir(path, 0777), 0);
        snprintf(path, sizeof path, "%s/%s/model-0-of-1.safetensors", folder, ours[i]);
        file_write(path, "x", 1);
    }
    snprintf(path, sizeof path, "%s/%s/notes.txt", folder, ours[1]); /* someone's: stays, and so does its folder */
    file_write(path, "x", 1);
    assert_int_equal(found_step(), OLD);
    saves(30, 40);
    assert_true(gr_path_exists(path));
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, foreign[i]);
        assert_true(gr_path_exists(path));
    }
    snprintf(path, sizeof path, "%s/%s", folder, ours[0]);
    assert_false(gr_path_exists(path));
}

static void saving_the_same_step_again_writes_nothing(void **state) {
    (void)state;
    faulty_io faulty;
    checkpoint_fixture x;
    checkpoint_fixture_open(&x, comm, faulty_io_open(&faulty), folder, GR_ZERO_1, 0);
    assert_int_equal(checkpoint_fixture_save(&x, OLD), GR_OK);
    faulty_io_set(&faulty, 1, EIO, true);
    assert_int_equal(checkpoint_fixture_save(&x, OLD), GR_OK);
    assert_int_equal(faulty.n_call, 0);
    checkpoint_fixture_close(&x);
}

/* ---------------------------------------------------------------- every call fails once, and from then on */

/* Two good saves, then one of which call n fails: what was durable stays, and the next save is well. The third save
 * removes an older checkpoint, so retention is among the calls. */
static void fault_try(checkpoint_fixture *x, faulty_io *faulty, int64_t base, int64_t n, int error, bool persistent) {
    assert_int_equal(checkpoint_fixture_save(x, base + 1), GR_OK);
    assert_int_equal(checkpoint_fixture_save(x, base + 2), GR_OK);
    faulty_io_set(faulty, n, error, persistent);
    gr_err err = checkpoint_fixture_save(x, base + 3);
    assert_true(err == GR_OK || err == GR_STORAGE);
    assert_false(faulty->repeated);
    faulty_io_set(faulty, 0, 0, false);
    assert_true(step_exists(base + 2));
    if (!persistent) { /* finding clears leftovers, over which a second try must not stumble either */
        int64_t step = found_step();
        assert_true(step == base + 3 || (err && step == base + 2));
    }
    int64_t next = base + (err ? 3 : 4);
    assert_int_equal(checkpoint_fixture_save(x, next), GR_OK);
    assert_int_equal(found_step(), next);
}

static void no_failing_call_loses_a_durable_checkpoint(void **state) {
    (void)state;
    faulty_io faulty;
    checkpoint_fixture x;
    checkpoint_fixture_open(&x, comm, faulty_io_open(&faulty), folder, GR_ZERO_1, 0);
    for (int64_t step = 1; step <= 3; step++) {
        faulty_io_set(&faulty, 0, 0, false);
        assert_int_equal(checkpoint_fixture_save(&x, step), GR_OK);
    }
    int64_t n_call = faulty.n_call, base = 10;
    assert_true(n_call > 40 && n_call < 200);
    for (int64_t n = 1; n <= n_call; n++, base += 20) {
        fault_try(&x, &faulty, base, n, ENOSPC, false);
        fault_try(&x, &faulty, base + 10, n, EIO, true);
    }
    checkpoint_fixture_close(&x);
}

/* Of finding and loading: the newest, an older one, or an error, never something wrong. */
static void no_failing_call_makes_resuming_wrong(void **state) {
    (void)state;
    saves(OLD, NEW);
    faulty_io faulty;
    gr_io *io = faulty_io_open(&faulty);
    gr_checkpoint_found found;
    assert_int_equal(gr_checkpoint_find(io, comm, folder, &found), GR_OK);
    gr_checkpoint_found_close(&found);
    int64_t n_call = faulty.n_call;
    for (int64_t n = 1; n <= n_call; n++)
        for (int persistent = 0; persistent < 2; persistent++) {
            faulty_io_set(&faulty, n, EIO, persistent);
            gr_err err = gr_checkpoint_find(io, comm, folder, &found);
            assert_true(err == GR_OK || err == GR_STORAGE || err == GR_CHECKPOINT);
            assert_true(err || (found.found && (found.state.step == OLD || found.state.step == NEW)));
            gr_checkpoint_found_close(&found);
        }
    assert_int_equal(found_step(), NEW);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(what_was_saved_comes_back_bit_for_bit, clean),
        cmocka_unit_test_teardown(the_manifest_carries_the_run_and_its_facts, clean),
        cmocka_unit_test_teardown(without_a_checkpoint_there_is_nothing_to_resume, clean),
        cmocka_unit_test_teardown(the_newest_checkpoint_wins, clean),
        cmocka_unit_test_teardown(the_older_one_takes_over_for_a_truncated_file, clean),
        cmocka_unit_test_teardown(the_older_one_takes_over_for_a_flipped_bit, clean),
        cmocka_unit_test_teardown(when_all_are_damaged_none_is_used_and_none_deleted, clean),
        cmocka_unit_test_teardown(a_damaged_one_makes_way_for_a_new_save_of_its_step, clean),
        cmocka_unit_test_teardown(the_newest_and_the_milestones_stay, clean),
        cmocka_unit_test_teardown(the_one_resumed_from_and_damaged_ones_stay, clean),
        cmocka_unit_test_teardown(damaged_ones_do_not_count_as_kept, clean),
        cmocka_unit_test_teardown(only_leftovers_of_ours_are_removed, clean),
        cmocka_unit_test_teardown(saving_the_same_step_again_writes_nothing, clean),
        cmocka_unit_test_teardown(no_failing_call_loses_a_durable_checkpoint, clean),
        cmocka_unit_test_teardown(no_failing_call_makes_resuming_wrong, clean),
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
