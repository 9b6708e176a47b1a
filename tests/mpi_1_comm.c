/* mpi_1_comm.c: the comm `mpi` on one rank, apart from test_comm because MPI libraries keep memory at exit. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include <mpi.h>

#include "comm/kinds.h"

static void several_announced_ranks_that_mpi_does_not_see_are_refused(void **state) {
    (void)state;
    gr_comm *c;
    setenv("OMPI_COMM_WORLD_SIZE", "4", 1);
    assert_int_equal(gr_comm_open(&c, "auto"), GR_CONFIG);
    assert_null(c);
    assert_non_null(strstr(gr_error_text(), "expected 4 ranks"));
    int finalized = 0;
    MPI_Finalized(&finalized);
    assert_true(finalized);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(several_announced_ranks_that_mpi_does_not_see_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
