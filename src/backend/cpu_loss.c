/* cpu_loss.c: head and cross-entropy, a chunk of tokens at a time. */
#include "cpu.h"

#include <math.h>
#include <string.h>

/* Exponentials summed in fp32 before the sum goes on in double: a vocabulary may be large. */
#define SUM_BLOCK 2048

static float largest_of(int64_t n, const float *z) {
    float largest = z[0];
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < n; j++)
        largest = z[j] > largest ? z[j] : largest;
    return largest;
}

/* z to exp(z - shift); returns their sum. */
static double exponentials(int64_t n, float shift, gr_act *z) {
    double total = 0;
    for (int64_t at = 0; at < n; at += SUM_BLOCK) {
        const int64_t end = at + SUM_BLOCK < n ? at + SUM_BLOCK : n;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = at; j < end; j++) {
            z[j] = gr_cpu_exp(z[j] - shift);
            sum += z[j];
        }
        total += (double)sum;
    }
    return total;
}

/* Loss of one token; its logits become scale * (softmax - onehot), zeros for an ignored token. */
static double token_loss(const gr_cross_entropy *a, int32_t target, gr_act *z) {
    if (target < 0) {
        memset(z, 0, (size_t)a->V * sizeof *z);
        return 0;
    }
    const float shift = largest_of(a->V, z), hit = z[target];
    const double sum = exponentials(a->V, shift, z);
    const float factor = (float)((double)a->scale / sum);
    if (a->dx) {
#pragma omp simd
        for (int64_t j = 0; j < a->V; j++)
            z[j] *= factor;
        z[target] -= a->scale;
    }
    return log(sum) + ((double)shift - (double)hit);
}

/* Tokens [first, first + n): losses and, if asked for, gradients. */
static int chunk_loss(const gr_cross_entropy *a, int64_t first, int64_t n, double *loss) {
    const gr_act *x = (const gr_act *)a->x + first * a->D;
    const gr_gemm head = {.layout = GR_NT,
        .m = n,
        .n = a->V,
        .k = a->D,
        .a = x,
        .lda = a->D,
        .b = a->w,
        .ldb = a->D,
        .c = a->logits,
        .ldc = a->V};
    int status = gr_cpu_gemm(&head);
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++)
        loss[i] = token_loss(a, a->target[first + i], (gr_act *)a->logits + i * a->V);
    if (!a->dx)
        return status;
    const gr_gemm to_x = {.layout = GR_NN,
        .m = n,
        .n = a->D,
        .k = a->V,
        .a = a->logits,
        .lda = a->V,
        .b = a->w,
        .ldb = a->D,
        .c = (gr_act *)a->dx + first * a->D,
        .ldc = a->D};
    const gr_gemm to_w = {.layout = GR_TN,
        .write = GR_ACCUMULATE,
        .m = a->V,
        .n = a->D,
        .k = n,
        .a = a->logits,
        .lda = a->V,
        .b = x,
        .ldb = a->D,
        .c = a->dw,
        .ldc = a->D};
    return status | gr_cpu_gemm(&to_x) | gr_cpu_gemm(&to_w);
}

gr_err gr_cpu_cross_entropy(gr_backend *b, gr_lane lane, const gr_cross_entropy *a) {
    (void)lane;
    const int64_t chunk = gr_logits_chunk(a->n, a->V);
    void *loss = NULL;
    GR_TRY(gr_cpu_scratch(b, (size_t)chunk * sizeof(double), &loss));
    double sum = 0;
    for (int64_t first = 0; first < a->n; first += chunk) {
        const int64_t n = a->n - first < chunk ? a->n - first : chunk;
        GR_TRY(gr_cpu_gemm_check(chunk_loss(a, first, n, loss)));
        for (int64_t i = 0; i < n; i++)
            sum += ((const double *)loss)[i];
    }
    *a->loss_sum += sum;
    return GR_OK;
}
