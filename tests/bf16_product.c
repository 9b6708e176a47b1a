/* bf16_product.c: stands in for oneDNN's bf16 products, which need AVX-512, in test programs that are linked with
 * --wrap: fp32 products of the widened operands, rounded once. Everything else is the program's own. */
#include <stdlib.h>

#include "backend/cpu.h"

gr_err __wrap_gr_cpu_products_open(gr_cpu_products **out);
int __wrap_gr_cpu_product_bf16(const gr_cpu_products *none, const gr_gemm *g);

gr_err __wrap_gr_cpu_products_open(gr_cpu_products **out) {
    *out = NULL;
    return GR_OK;
}

/* Rows packed as floats; the caller frees them. */
static float *widened(const uint16_t *x, int64_t n_row, int64_t width, int64_t ld) {
    float *to = malloc((size_t)(n_row * width) * sizeof *to);
    GR_ASSERT(to, "no memory for %lld x %lld", (long long)n_row, (long long)width);
    for (int64_t i = 0; i < n_row; i++)
        for (int64_t j = 0; j < width; j++)
            to[i * width + j] = gr_f32_from_bf16(x[i * ld + j]);
    return to;
}

static int product_to_bf16(gr_gemm *g) {
    uint16_t *to = g->c;
    float *sum = widened(to, g->m, g->n, g->ldc);
    int64_t ld = g->ldc;
    g->c = sum;
    g->ldc = g->n;
    int status = gr_cpu_product_f32(NULL, g);
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++)
            to[i * ld + j] = gr_bf16_from_f32(sum[i * g->n + j]);
    free(sum);
    return status;
}

int __wrap_gr_cpu_product_bf16(const gr_cpu_products *none, const gr_gemm *g) {
    gr_gemm wide = *g;
    wide.lda = g->layout == GR_TN ? g->m : g->k;
    wide.ldb = g->layout == GR_NT ? g->k : g->n;
    float *a = widened(g->a, g->layout == GR_TN ? g->k : g->m, wide.lda, g->lda);
    float *b = widened(g->b, g->layout == GR_NT ? g->n : g->k, wide.ldb, g->ldb);
    wide.a = a;
    wide.b = b;
    int status = g->c_dtype == GR_F32 ? gr_cpu_product_f32(none, &wide) : product_to_bf16(&wide);
    free(a);
    free(b);
    return status;
}
