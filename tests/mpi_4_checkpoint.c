/* mpi_4_checkpoint.c: four ranks save and load in one layout what any other gets back bit for bit, and fail together.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>

#include "checkpoint_fixture.h"
#include "faulty_io.h"

static const char *const folder = "mpi_4_checkpoint.work";
static gr_comm *comm;

static void barrier(void) {
    assert_int_equal(comm->barrier(comm, GR_WORLD), GR_OK);
}

static int clean(void **state) {
    (void)state;
    barrier();
    if (comm->rank[GR_WORLD] == 0)
        fixture_folder_remove(folder);
    barrier();
    return 0;
}

static void save_as(gr_comm *c, gr_zero zero, int64_t step) {
    checkpoint_fixture x;
    checkpoint_fixture_open(&x, c, gr_io_system(), folder, zero, 0);
    assert_int_equal(checkpoint_fixture_save(&x, step), GR_OK);
    checkpoint_fixture_close(&x);
}

static void load_as(gr_comm *c, gr_zero zero, int64_t step) {
    checkpoint_fixture x;
    gr_checkpoint_found found;
    checkpoint_fixture_open(&x, c, gr_io_system(), folder, zero, 0);
    checkpoint_fixture_visit(&x, 0, fixture_scramble, NULL);
    assert_int_equal(gr_checkpoint_find(gr_io_system(), c, folder, &found), GR_OK);
    assert_true(found.found && found.state.step == step);
    assert_string_equal(found.facts[1].value, fixture_facts[1].value);
    assert_int_equal(gr_checkpoint_load(x.checkpointer, &found), GR_OK);
    assert_int_equal(checkpoint_fixture_differences(&x, step), 0);
    gr_checkpoint_found_close(&found);
    checkpoint_fixture_close(&x);
}

/* Rank 0 alone, the others wait. */
static void alone(void (*act)(gr_comm *c, gr_zero zero, int64_t step), gr_zero zero, int64_t step) {
    if (comm->rank[GR_WORLD] == 0) {
        gr_comm *self;
        assert_int_equal(gr_comm_open(&self, "self"), GR_OK);
        act(self, zero, step);
        gr_comm_close(self, GR_OK);
    }
    barrier();
}

static void group(int R_ep) {
    assert_int_equal(gr_comm_group(comm, R_ep), GR_OK);
}

static void the_same_layout_gets_back_what_it_saved(void **state) {
    (void)state;
    for (int R_ep = 1; R_ep <= 4; R_ep *= 2)
        for (gr_zero zero = GR_ZERO_OFF; zero <= GR_ZERO_1; zero++) {
            group(R_ep);
            save_as(comm, zero, 5);
            load_as(comm, zero, 5);
            clean(NULL);
        }
}

static void any_layout_gets_back_what_any_other_saved(void **state) {
    (void)state;
    group(2);
    save_as(comm, GR_ZERO_1, 1);
    group(4);
    load_as(comm, GR_ZERO_1, 1);
    save_as(comm, GR_ZERO_OFF, 2);
    alone(load_as, GR_ZERO_1, 2);
    alone(save_as, GR_ZERO_OFF, 3);
    group(1);
    load_as(comm, GR_ZERO_1, 3);
    save_as(comm, GR_ZERO_1, 4);
    alone(load_as, GR_ZERO_OFF, 4);
}

/* Each of the first n_call file calls of one rank fails once; every rank then knows the file. */
static void fail_calls(checkpoint_fixture *x, faulty_io *faulty, int rank, int64_t n_call, const char *file) {
    for (int64_t n = 1; n <= n_call; n++) {
        gr_checkpoint_found found;
        faulty_io_set(faulty, comm->rank[GR_WORLD] == rank ? n : 0, ENOSPC, false);
        assert_int_equal(checkpoint_fixture_save(x, 1 + n), GR_STORAGE);
        assert_non_null(strstr(gr_error_text(), file));
        assert_int_equal(gr_checkpoint_find(gr_io_system(), comm, folder, &found), GR_OK);
        assert_true(found.found && found.state.step == 1);
        gr_checkpoint_found_close(&found);
    }
}

/* Rank 3 opens, reserves, writes, syncs and closes one file; rank 1 two, one of them with weights that ranks 1 and 3
 * share. */
static void a_storage_error_on_one_rank_fails_the_save_on_all(void **state) {
    (void)state;
    group(2);
    save_as(comm, GR_ZERO_1, 1);
    faulty_io faulty;
    checkpoint_fixture x;
    checkpoint_fixture_open(&x, comm, faulty_io_open(&faulty), folder, GR_ZERO_1, 0);
    fail_calls(&x, &faulty, 3, 5, "optim-3-of-4.safetensors");
    fail_calls(&x, &faulty, 1, 10, "-1-of-");
    faulty_io_set(&faulty, 0, 0, false);
    assert_int_equal(checkpoint_fixture_save(&x, 7), GR_OK);
    checkpoint_fixture_close(&x);
    load_as(comm, GR_ZERO_1, 7);
}

/* Bytes of a model file of a checkpoint, for the caller to free. */
static char *model_file(int64_t step, int rank, size_t *n) {
    char path[128], *text;
    snprintf(path, sizeof path, "%s/step-%08d/model-%d-of-2.safetensors", folder, (int)step, rank);
    assert_int_equal(gr_file_read(path, 1 << 20, GR_BUG, &text, n), GR_OK);
    return text;
}

static void weights_in_shares_are_saved_as_the_bytes_of_whole_ones(void **state) {
    (void)state;
    group(2);
    checkpoint_fixture x;
    for (gr_zero zero = GR_ZERO_OFF; zero <= GR_ZERO_1; zero++) {
        checkpoint_fixture_open(&x, comm, gr_io_system(), folder, zero, 0);
        gr_run_state at = fixture_state(1 + (int64_t)zero);
        checkpoint_fixture_visit(&x, 5, fixture_set, NULL); /* the same numbers in both */
        assert_int_equal(gr_checkpoint_save(x.checkpointer, &at), GR_OK);
        checkpoint_fixture_close(&x);
    }
    for (int rank = 0; rank < 2; rank++) {
        size_t n[2];
        char *whole = model_file(1, rank, &n[0]), *shared = model_file(2, rank, &n[1]);
        assert_int_equal(n[0], n[1]);
        assert_memory_equal(whole, shared, n[0]);
        free(shared);
        free(whole);
    }
}

static void every_rank_refuses_pieces_that_do_not_fit(void **state) {
    (void)state;
    group(2);
    save_as(comm, GR_ZERO_1, 1);
    checkpoint_fixture x;
    gr_checkpoint_found found;
    checkpoint_fixture_open(&x, comm, gr_io_system(), folder, GR_ZERO_1, 0);
    assert_int_equal(gr_checkpoint_find(gr_io_system(), comm, folder, &found), GR_OK);
    found.n_rank = 3; /* as if one rank's pieces had never been written */
    if (comm->rank[GR_WORLD] == 0)
        for (int i = 0; i < 3; i++) {
            char from[128], to[128];
            snprintf(from, sizeof from, "%s/step-00000001/optim-%d-of-4.safetensors", folder, i);
            snprintf(to, sizeof to, "%s/step-00000001/optim-%d-of-3.safetensors", folder, i);
            assert_int_equal(rename(from, to), 0);
        }
    barrier();
    assert_int_equal(gr_checkpoint_load(x.checkpointer, &found), GR_CHECKPOINT);
    gr_checkpoint_found_close(&found);
    checkpoint_fixture_close(&x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(the_same_layout_gets_back_what_it_saved, clean),
        cmocka_unit_test_teardown(any_layout_gets_back_what_any_other_saved, clean),
        cmocka_unit_test_teardown(weights_in_shares_are_saved_as_the_bytes_of_whole_ones, clean),
        cmocka_unit_test_teardown(a_storage_error_on_one_rank_fails_the_save_on_all, clean),
        cmocka_unit_test_teardown(every_rank_refuses_pieces_that_do_not_fit, clean),
    };
    gr_err err = gr_comm_open(&comm, "mpi");
    if (err) {
        gr_error_print(stderr, err);
        return 1;
    }
    gr_log_set(GR_LOG_QUIET);
    clean(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gr_comm_close(comm, GR_OK);
    return failed;
}
