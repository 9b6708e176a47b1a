/* cuda_blas.h: cuBLAS, loaded when backend cuda is opened: the libraries are half a gigabyte, which a run on the CPU
 * should not have in its address space, and a program built with them should start where they are not. */
#ifndef GROUTER_BACKEND_CUDA_BLAS_H
#define GROUTER_BACKEND_CUDA_BLAS_H

#include <cublasLt.h>
#include <cublas_v2.h>

#include "grouter/base.h"

#define GR_CUBLASLT_FUNCTIONS(X)                                                                                       \
    X(cublasLtGetVersion)                                                                                              \
    X(cublasLtCreate)                                                                                                  \
    X(cublasLtDestroy)                                                                                                 \
    X(cublasLtMatmulDescInit_internal)                                                                                 \
    X(cublasLtMatmulDescSetAttribute)                                                                                  \
    X(cublasLtMatrixLayoutInit_internal)                                                                               \
    X(cublasLtMatmulPreferenceInit_internal)                                                                           \
    X(cublasLtMatmulPreferenceSetAttribute)                                                                            \
    X(cublasLtMatmulAlgoGetHeuristic)                                                                                  \
    X(cublasLtMatmulAlgoCheck)                                                                                         \
    X(cublasLtMatmulAlgoCapGetAttribute)                                                                               \
    X(cublasLtMatmulAlgoConfigGetAttribute)                                                                            \
    X(cublasLtMatmul)
#define GR_CUBLAS_FUNCTIONS(X)                                                                                         \
    X(cublasCreate_v2)                                                                                                 \
    X(cublasDestroy_v2)                                                                                                \
    X(cublasSetMathMode)                                                                                               \
    X(cublasSetStream_v2)                                                                                              \
    X(cublasSetWorkspace_v2)                                                                                           \
    X(cublasGemmStridedBatchedEx_64)                                                                                   \
    X(cublasGetStatusString)

/* Each function under its own name. */
typedef struct gr_cublas {
#define GR_CUBLAS_MEMBER(name) __typeof__(&name) name;
    GR_CUBLASLT_FUNCTIONS(GR_CUBLAS_MEMBER)
    GR_CUBLAS_FUNCTIONS(GR_CUBLAS_MEMBER)
#undef GR_CUBLAS_MEMBER
} gr_cublas;

/* The libraries stay loaded. 69 naming the one that is not there. */
GR_MUST gr_err gr_cublas_load(gr_cublas *out);

#endif
