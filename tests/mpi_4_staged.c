/* mpi_4_staged.c: device memory through host memory on four ranks. */
#include "staged_suite.h"

int main(void) {
    return run_staged_suite(4);
}
