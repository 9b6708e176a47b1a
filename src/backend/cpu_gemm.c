/* cpu_gemm.c: matrix products by oneDNN; the only file that knows it.
 *
 * fp32 uses dnnl_sgemm: shapes and transposes are arguments, so an expert's number of rows may change at every call
 * without a primitive to create or cache, and it looks at the threads when it runs, so it may be called inside and
 * outside of parallel regions. Measured on 2 cores of Zen 4 it equals the matmul primitive of a fixed shape (within
 * 5 % at 1024^3, ahead of it for most attention and weight gradient shapes). */
#include "cpu.h"

#include <dnnl.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

const char *gr_backend_library(void) {
    return "oneDNN v" TEXT(DNNL_VERSION_MAJOR) "." TEXT(DNNL_VERSION_MINOR) "." TEXT(DNNL_VERSION_PATCH);
}

static void zero_rows(const gr_gemm *g) {
    for (int64_t i = 0; i < g->m; i++)
        memset((float *)g->c + i * g->ldc, 0, (size_t)g->n * sizeof(float));
}

int gr_cpu_gemm(const gr_gemm *g) {
    if (g->m == 0 || g->n == 0)
        return dnnl_success;
    if (g->k == 0) {
        if (g->write == GR_OVERWRITE)
            zero_rows(g);
        return dnnl_success;
    }
    return (int)dnnl_sgemm(g->layout == GR_TN ? 'T' : 'N', g->layout == GR_NT ? 'T' : 'N', g->m, g->n, g->k, 1.0f, g->a,
        g->lda, g->b, g->ldb, g->write == GR_ACCUMULATE ? 1.0f : 0.0f, g->c, g->ldc);
}

gr_err gr_cpu_gemm_check(int status) {
    if (status == dnnl_success)
        return GR_OK;
    if (status == dnnl_out_of_memory)
        return gr_fail(
            GR_RESOURCE, "oneDNN: expected memory for a matrix product, got none; use a smaller micro-batch");
    return gr_fail(GR_BUG, "oneDNN: expected success from dnnl_sgemm, got status %d; please report this", status);
}

gr_err gr_cpu_gemm_op(gr_backend *b, gr_lane lane, const gr_gemm *a) {
    (void)b;
    (void)lane;
    GR_ASSERT(a->c_dtype == GR_F32, "c_dtype %s", gr_dtype_name(a->c_dtype));
    return gr_cpu_gemm_check(gr_cpu_gemm(a));
}

gr_err gr_cpu_peak(gr_backend *b, double *flops_per_s) {
    enum { SIDE = 1024, RUNS = 6 };
    const size_t n_byte = (size_t)SIDE * SIDE * sizeof(float);
    void *memory = NULL;
    GR_TRY(b->alloc(b, 3 * n_byte, "peak measurement", &memory));
    float *x = memory;
    for (size_t i = 0; i < 2 * (size_t)SIDE * SIDE; i++) /* speed depends on the data: no zeros */
        x[i] = (float)(i * 2654435761u % 1024) / 512 - 1;
    gr_gemm g = {.layout = GR_NN,
        .m = SIDE,
        .n = SIDE,
        .k = SIDE,
        .a = x,
        .lda = SIDE,
        .b = x + (size_t)SIDE * SIDE,
        .ldb = SIDE,
        .c = x + 2 * (size_t)SIDE * SIDE,
        .ldc = SIDE};
    double best = 0;
    int status = 0;
    for (int run = 0; run < RUNS && !status; run++) {
        double start = gr_time_s();
        status = gr_cpu_gemm(&g);
        double rate = 2.0 * SIDE * SIDE * SIDE / (gr_time_s() - start);
        best = rate > best ? rate : best;
    }
    b->release(b, memory);
    *flops_per_s = best;
    return gr_cpu_gemm_check(status);
}
