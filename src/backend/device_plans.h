/* device_plans.h: the file of tuned products: which algorithm of cuBLASLt was the fastest for which product, on one
 * kind of GPU and with one version of cuBLAS. A run that reads it chooses nothing by the clock, so its bits repeat.
 * What an algorithm means only the library knows; here it is bytes. Needs no device. */
#ifndef GROUTER_BACKEND_DEVICE_PLANS_H
#define GROUTER_BACKEND_DEVICE_PLANS_H

#include "device.h"

enum {
    GR_ALGORITHM_BYTES = 64,
    GR_PLANS_MAX = GR_PRODUCTS_MAX / 2 /* of a file: shapes that are not in it need room too */
};

/* What an error that such a file caused ends with. */
#define GR_PLANS_ADVICE "tune again with 'grouter-train bench step CONFIG --tune-products FILE'"

typedef struct gr_product_plan {
    gr_product_key key;
    uint8_t algorithm[GR_ALGORITHM_BYTES]; /* cublasLtMatmulAlgo_t */
    double us;                             /* one product, when it was tuned */
    int line;                              /* of the file, for messages */
} gr_product_plan;

struct gr_product_plans {
    char gpu[256], cublas[32]; /* as cudaDeviceProp names it; "13.1.0" */
    gr_dtype dtype;            /* of activations: GR_F32 or GR_BF16 */
    int n;
    gr_product_plan *plan; /* [n], distinct keys */
};

/* JSON: format, version, gpu, cublas, dtype and plans, each {layout, write, m, n, k, lda, ldb, ldc, c, alignment of a,
 * b and c, algorithm in hexadecimal, us}. Everything is held against its range, rows against their leading dimensions,
 * keys against each other: 65 naming file, line, what was expected and found. Whether the algorithm is one is the
 * library's to say. The caller closes *out; an error leaves nothing to close. */
GR_MUST gr_err gr_product_plans_read(gr_product_plans *out, const char *path);
/* To a file that the caller commits: 74. */
GR_MUST gr_err gr_product_plans_write(const gr_product_plans *plans, gr_out *o);
void gr_product_plans_close(gr_product_plans *plans);

const char *gr_product_dtype_name(gr_dtype dtype); /* "fp32", "bf16", as the file has it */

#endif
