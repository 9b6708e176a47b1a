/* scratch.c: how much scratch the kernels of layers need. */
#include "kernels/geometry.h"
#include "kernels/kernels.h"

size_t gr_kernel_norm_backward_scratch(const gr_norm *a) {
    return gr_partial_bytes(a->n_row, a->width);
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
