/* cuda_double.h: what the doubles of the CUDA runtime and of cuBLAS share. */
#ifndef GROUTER_CUDA_DOUBLE_H
#define GROUTER_CUDA_DOUBLE_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

_Noreturn void double_die(const char *what);
void *double_memory(size_t n_byte); /* aligned to 256 bytes; free() */
/* Queues work on a cudaStream_t; `run` has to free it. */
void double_enqueue(void *stream, void (*run)(void *work), void *work);
/* Has the stream work that is not done? False for one that is closed. */
bool double_is_busy(cudaStream_t stream);

/* Time of a GPU: what is queued next on the stream takes so long; events differ by what lies between them. */
void double_spend(cudaStream_t stream, double ms);
extern int double_n_timed; /* times that were asked for */

/* What cublas_double.c puts into a cublasLtMatmulAlgo_t: the n-th suggestion for the product. */
typedef struct double_algorithm {
    int64_t rows, columns, k;
    uint32_t alignment[4];
    uint32_t number;
} double_algorithm;
enum {
    DOUBLE_ALGORITHMS = 5,
    DOUBLE_FASTEST = 3, /* of those that may be taken */
    DOUBLE_ROUNDED = 2, /* adds parts in the result's type */
    DOUBLE_REFUSED = 4  /* needs more workspace than there is */
};
double double_ms_of(uint32_t number);           /* of a product */
extern int double_n_asked;                      /* questions for suggestions */
extern int double_n_product[DOUBLE_ALGORITHMS]; /* by each */

#endif
