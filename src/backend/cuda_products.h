/* cuda_products.h: what the files that do matrix products by cuBLASLt share: cuda_gemm.c, cuda_tune.c, cuda_plans.c. */
#ifndef GROUTER_BACKEND_CUDA_PRODUCTS_H
#define GROUTER_BACKEND_CUDA_PRODUCTS_H

#include "cuda.h"
#include "cuda_blas.h"

#define GR_CUDA_WORKSPACE                                                                                              \
    ((size_t)32 << 20) /* of each queue: what NVIDIA advises for Hopper; more changes no algorithm */

typedef struct gr_cuda_plan {
    bool is_lt; /* else cuBLAS chooses each time */
    cublasLtMatmulAlgo_t algorithm;
    float us, us_first; /* one product with it, and with the first suggestion; 0: not timed here */
} gr_cuda_plan;

struct gr_cuda_products {
    gr_cublas call;
    cudaDataType_t act;
    cublasLtHandle_t lt;
    cublasHandle_t blas;
    char *workspace; /* [GR_CUDA_QUEUES][GR_CUDA_WORKSPACE] */
    bool is_tuning;
    int n_listed, n_unlisted; /* shapes: of the file of plans; met without being in it. 0, 0: there is no file */
    gr_product_table table;
    gr_cuda_plan plans[GR_PRODUCTS_MAX];
};

/* ---------------------------------------------------------------- cuda_gemm.c */

GR_MUST gr_err gr_cublas_check(const gr_cuda_products *p, cublasStatus_t status, const char *what);

/* A product as cuBLASLt is told of it. */
typedef struct gr_cublas_descriptors {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t left, right, result;
} gr_cublas_descriptors;
GR_MUST cublasStatus_t gr_cublas_describe(const gr_cuda_products *p, const gr_gemm *g, gr_cublas_descriptors *d);

/* The library's suggestions for g, best first: at most n_max, *n of them; 0 where it has none. */
GR_MUST gr_err gr_cublas_suggest(
    gr_cuda_products *p, const gr_gemm *g, int n_max, cublasLtMatmulHeuristicResult_t *out, int *n);

/* Where a product runs. */
typedef struct gr_cublas_place {
    cudaStream_t stream;
    void *workspace;
} gr_cublas_place;
gr_cublas_place gr_cublas_place_of(const gr_cuda *s, int queue);

/* The product into `to`, laid out as g->c, which is g->c or apart from it: with GR_ACCUMULATE, to = op(a) op(b) + c. */
GR_MUST cublasStatus_t gr_cublas_run(gr_cuda_products *p, gr_cublas_place at, const gr_gemm *g,
    const cublasLtMatmulAlgo_t *algorithm, gr_cublas_descriptors *d, void *to);
/* Nothing was queued: the algorithm is not for this shape, or needs more room for it. */
bool gr_cublas_refused(cublasStatus_t status);

/* ---------------------------------------------------------------- cuda_tune.c */

/* The fastest algorithm for `canonical`, timed on g, which lies ready and whose result is right afterwards only if it
 * is computed again. The GPU is idle meanwhile but for this. Like gr_cublas_suggest's first where nothing can be timed.
 * 69 without memory for a second result. */
GR_MUST gr_err gr_cuda_tune_product(
    gr_backend *b, int queue, const gr_gemm *canonical, const gr_gemm *g, gr_cuda_plan *out);

/* ---------------------------------------------------------------- cuda_plans.c */

/* Would this algorithm have been suggested for the product? NULL, or why not: what cuBLAS refuses, needs more
 * workspace than there is or wider alignment than the key's, or adds parts in another type than fp32. */
const char *gr_cublas_objection(gr_cuda_products *p, const gr_product_key *key, const cublasLtMatmulAlgo_t *algorithm);

void gr_cuda_say_unlisted(const gr_cuda_products *p); /* at the end */

#endif
