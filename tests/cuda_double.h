/* cuda_double.h: what the doubles of the CUDA runtime and of cuBLAS share. */
#ifndef GROUTER_CUDA_DOUBLE_H
#define GROUTER_CUDA_DOUBLE_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

_Noreturn void double_die(const char *what);
void *double_memory(size_t n_byte); /* aligned to 256 bytes; free() */
/* Queues work on a cudaStream_t; `run` has to free it. */
void double_enqueue(void *stream, void (*run)(void *work), void *work);
/* Has the stream work that is not done? False for one that is closed. */
bool double_is_busy(cudaStream_t stream);

#endif
