/* cuda_runtime_api.h of kernels/host: the types that C files of backend cuda name; see cuda_runtime.h beside it. */
#ifndef GROUTER_HOST_CUDA_RUNTIME_API_H
#define GROUTER_HOST_CUDA_RUNTIME_API_H

typedef enum cudaError { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 } cudaError_t;
typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;

#endif
