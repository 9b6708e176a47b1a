/* mpi_4_nccl.c: comm nccl over a stand-in for NCCL on four ranks. */
#include "nccl_suite.h"

int main(void) {
    return run_nccl_suite(4);
}
