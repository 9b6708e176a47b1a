/* mpi_2_comm.c: the comm suite on two ranks, closed after an error that is not agreed on. */
#include "comm_suite.h"

int main(void) {
    return run_comm_suite(2, false);
}
