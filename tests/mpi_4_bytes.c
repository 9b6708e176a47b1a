/* mpi_4_bytes.c: the bytes suite on four ranks. */
#include "bytes_suite.h"

int main(void) {
    return run_bytes_suite(4);
}
