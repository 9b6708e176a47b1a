/* mpi_7_nccl.c: comm nccl over a stand-in for NCCL on seven ranks. */
#include "nccl_suite.h"

int main(void) {
    return run_nccl_suite(7);
}
