/* mpi_4_weights.c: four ranks in two expert-parallel groups write the file that one rank writes, and read their own
 * share of it back. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <unistd.h>

#include "weights_fixture.h"

static const char *const path = "mpi_4_weights.safetensors", *const alone_path = "mpi_4_weights.alone.safetensors";
static gr_comm *comm;

static void write_alone(gr_hash128 *hash) {
    weights_fixture whole;
    gr_comm *self;
    fixture_open(&whole, 1, 0);
    assert_int_equal(gr_comm_open(&self, "self"), GR_OK);
    assert_int_equal(
        gr_params_save(&whole.params, self, gr_weights_whole(&whole.params, whole.flat), alone_path, &(gr_metadata){"grouter_config", "{}"}, hash),
        GR_OK);
    gr_comm_close(self, GR_OK);
    fixture_close(&whole);
}

static void assert_same_files(void) {
    char *a, *b;
    size_t n_a, n_b;
    assert_int_equal(gr_file_read(path, 1 << 20, GR_BUG, &a, &n_a), GR_OK);
    assert_int_equal(gr_file_read(alone_path, 1 << 20, GR_BUG, &b, &n_b), GR_OK);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(a, b, n_a);
    free(a);
    free(b);
    unlink(alone_path);
}

static void any_layout_writes_the_same_file_and_reads_its_share(void **state) {
    (void)state;
    weights_fixture f;
    gr_hash128 hash = {0}, alone = {0};
    fixture_open(&f, 2, (uint32_t)comm->rank[GR_EP]);
    assert_int_equal(
        gr_params_save(&f.params, comm, gr_weights_whole(&f.params, f.flat), path, &(gr_metadata){"grouter_config", "{}"}, &hash), GR_OK);
    if (comm->rank[GR_WORLD] == 0) {
        write_alone(&alone);
        assert_true(hash.lo == alone.lo && hash.hi == alone.hi);
        assert_same_files();
    }
    assert_int_equal(comm->barrier(comm, GR_WORLD), GR_OK);
    size_t n_byte = (size_t)f.params.n_element * sizeof *f.flat;
    float *again = malloc(n_byte);
    assert_int_equal(gr_params_load(&f.params, path, gr_weights_whole(&f.params, again)), GR_OK);
    assert_memory_equal(again, f.flat, n_byte);
    free(again);
    fixture_close(&f);
    assert_int_equal(comm->barrier(comm, GR_WORLD), GR_OK);
    if (comm->rank[GR_WORLD] == 0)
        unlink(path);
}

/* Rows that nobody took would turn up in the next save. */
static void every_rank_learns_of_a_storage_error_and_no_row_stays_behind(void **state) {
    (void)state;
    weights_fixture f;
    gr_hash128 hash, alone;
    fixture_open(&f, 2, (uint32_t)comm->rank[GR_EP]);
    float *zeros = calloc((size_t)f.params.n_element, sizeof *zeros);
    assert_int_equal(gr_params_save(&f.params, comm, gr_weights_whole(&f.params, zeros), "mpi_4_weights.absent/x", NULL, &hash), GR_STORAGE);
    assert_int_equal(gr_params_save(&f.params, comm, gr_weights_whole(&f.params, f.flat), NULL, NULL, &hash), GR_OK);
    if (comm->rank[GR_WORLD] == 0) {
        write_alone(&alone);
        unlink(alone_path);
        assert_true(hash.lo == alone.lo && hash.hi == alone.hi);
    }
    free(zeros);
    fixture_close(&f);
    assert_int_equal(comm->barrier(comm, GR_WORLD), GR_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_layout_writes_the_same_file_and_reads_its_share),
        cmocka_unit_test(every_rank_learns_of_a_storage_error_and_no_row_stays_behind),
    };
    gr_err err = gr_comm_open(&comm, "mpi");
    if (!err)
        err = gr_comm_group(comm, 2);
    if (err) {
        gr_error_print(stderr, err);
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gr_comm_close(comm, GR_OK);
    return failed;
}
