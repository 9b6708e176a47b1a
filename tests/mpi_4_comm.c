/* mpi_4_comm.c: the comm suite on four ranks, closed after an error that all ranks agreed on. */
#include "comm_suite.h"

int main(void) {
    return run_comm_suite(4, true);
}
