/* mpi_2_bytes.c: the bytes suite on two ranks. */
#include "bytes_suite.h"

int main(void) {
    return run_bytes_suite(2);
}
