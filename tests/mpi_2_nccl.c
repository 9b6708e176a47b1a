/* mpi_2_nccl.c: comm nccl over a stand-in for NCCL on two ranks. */
#include "nccl_suite.h"

int main(void) {
    return run_nccl_suite(2);
}
