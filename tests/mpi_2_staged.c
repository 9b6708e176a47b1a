/* mpi_2_staged.c: device memory through host memory on two ranks. */
#include "staged_suite.h"

int main(void) {
    return run_staged_suite(2);
}
