/* cuda_loss.c: head and cross-entropy, a chunk of tokens at a time: logits by a product, one kernel that turns them
 * into losses and their gradients in place, two products of those. The losses of all tokens are summed once, at the
 * end, in their order. */
#include "kernels/kernels.h"

#include "cuda.h"

static const char *rows_of(const gr_backend *b, const void *array, int64_t row, int64_t width) {
    return (const char *)array + (size_t)(row * width) * b->elem_size;
}

/* dx = dlogits W, dw += dlogits^T x of tokens [first, first + n). */
static gr_err chunk_gradients(gr_backend *b, gr_lane lane, const gr_cross_entropy *a, int64_t first, int64_t n) {
    const gr_gemm to_x = {.layout = GR_NN,
        .m = n,
        .n = a->D,
        .k = a->V,
        .a = a->logits,
        .lda = a->V,
        .b = a->w,
        .ldb = a->D,
        .c = (char *)a->dx + (size_t)(first * a->D) * b->elem_size,
        .ldc = a->D,
        .c_dtype = b->dtype};
    const gr_gemm to_w = {.layout = GR_TN,
        .write = GR_ACCUMULATE,
        .m = a->V,
        .n = a->D,
        .k = n,
        .a = a->logits,
        .lda = a->V,
        .b = rows_of(b, a->x, first, a->D),
        .ldb = a->D,
        .c = a->dw,
        .ldc = a->D,
        .c_dtype = GR_F32};
    GR_TRY(gr_cuda_product(b, (int)lane, &to_x, GR_ROWS_FIXED));
    return gr_cuda_product(b, (int)lane, &to_w, GR_ROWS_FIXED);
}

/* Tokens [first, first + n): losses and, if asked for, gradients. */
static gr_err chunk_loss(
    gr_backend *b, gr_lane lane, const gr_cross_entropy *a, int64_t first, int64_t n, double *loss) {
    const gr_gemm head = {.layout = GR_NT,
        .m = n,
        .n = a->V,
        .k = a->D,
        .a = rows_of(b, a->x, first, a->D),
        .lda = a->D,
        .b = a->w,
        .ldb = a->D,
        .c = a->logits,
        .ldc = a->V,
        .c_dtype = b->dtype};
    const gr_token_losses losses = {.n = n,
        .V = a->V,
        .target = a->target + first,
        .scale = a->scale,
        .gradient = a->dx != NULL,
        .logits = a->logits,
        .loss = loss + first};
    GR_TRY(gr_cuda_product(b, (int)lane, &head, GR_ROWS_FIXED));
    GR_TRY(gr_cuda_check(gr_kernel_token_losses(b->lane_native(b, lane), b->dtype, &losses), "cross-entropy"));
    return a->dx ? chunk_gradients(b, lane, a, first, n) : GR_OK;
}

gr_err gr_cuda_cross_entropy(gr_backend *b, gr_lane lane, const gr_cross_entropy *a) {
    const int64_t chunk = gr_logits_chunk(b, a->n, a->V);
    void *loss = a->token_loss;
    if (a->n == 0)
        return GR_OK;
    if (!loss)
        GR_TRY(gr_cuda_scratch(b, lane, (size_t)a->n * sizeof(double), &loss));
    for (int64_t first = 0; first < a->n; first += chunk)
        GR_TRY(chunk_loss(b, lane, a, first, a->n - first < chunk ? a->n - first : chunk, loss));
    return gr_cuda_check(gr_kernel_sum_tokens(b->lane_native(b, lane), loss, a->n, 1, a->loss_sum), "cross-entropy");
}
