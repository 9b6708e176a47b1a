/* mpi_1_staged.c: device memory in a world of one rank: nothing goes through host memory. */
#include "staged_suite.h"

int main(void) {
    return run_staged_suite(1);
}
