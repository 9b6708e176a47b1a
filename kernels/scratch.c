/* scratch.c: how much scratch the kernels of layers need. */
#include "kernels/geometry.h"
#include "kernels/kernels.h"

size_t gr_kernel_norm_backward_scratch(const gr_norm *a) {
    return gr_partial_bytes(a->n_row, a->width);
}

size_t gr_kernel_head_norm_backward_scratch(const gr_head_norm *a) {
    const gr_head_parts parts = gr_head_parts_backward((gr_heads){.n_row = a->n_row, .n_q = a->n_q, .n_k = a->n_k});
    return (size_t)(parts.n_q + parts.n_k) * (size_t)a->head_dim * sizeof(float);
}

size_t gr_kernel_layer_norm_backward_scratch(const gr_layer_norm *a) {
    return gr_partial_bytes(a->n_row, 2 * a->width);
}

size_t gr_kernel_embed_backward_scratch(const gr_embed *a) {
    return (size_t)gr_embed_lists_of(a->n, a->n_vocab).n_word * sizeof(uint32_t);
}

size_t gr_kernel_router_forward_scratch(const gr_router_op *a) {
    return a->loss ? 2 * (size_t)a->n * sizeof(double) : 0;
}

size_t gr_kernel_divergence_scratch(const gr_divergence *a) {
    return (size_t)a->n * sizeof(double);
}

/* ---------------------------------------------------------------- attention */

/* Rows of ld elements of bf16 from p on; NULL: there are none. */
static bool is_at_16_bytes(const void *p, int64_t ld) {
    return (uintptr_t)p % 16 == 0 && ld % 8 == 0;
}

bool gr_kernel_attend_aligned(const gr_attention *a) {
    return a->head_dim > 0 && a->head_dim % 8 == 0 && a->H_kv > 0 && a->H % a->H_kv == 0 &&
           is_at_16_bytes(a->q, a->ldq) && is_at_16_bytes(a->k, a->ldk) && is_at_16_bytes(a->v, a->ldv) &&
           is_at_16_bytes(a->o, a->ldo) && is_at_16_bytes(a->dout, a->ldo) && is_at_16_bytes(a->dq, a->ldq) &&
           is_at_16_bytes(a->dk, a->ldk) && is_at_16_bytes(a->dv, a->ldv);
}

bool gr_kernel_flash_fits(gr_dtype dtype, const gr_attention *a) {
    return dtype == GR_BF16 && a->head_dim <= 128 && a->T < 1 << 22 && !a->documents.first == !a->documents.end &&
           a->n_window * a->H * gr_ceil_div(a->T, 64) <= INT32_MAX && gr_kernel_attend_aligned(a);
}

size_t gr_kernel_flash_shared(int64_t head_dim) {
    return (size_t)(head_dim <= 48 ? 99 : 163) << 10;
}

size_t gr_kernel_flash_backward_scratch(const gr_attention *a) {
    return 2 * (size_t)(a->n_window * a->H * gr_flash_padded(a->T)) * sizeof(float);
}
