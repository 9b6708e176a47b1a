/* cuda_cudnn_absent.c: backend cuda built without cuDNN, in place of the other files cuda_cudnn*.c: attention is left
 * to its own kernels. */
#include "cuda.h"

gr_err gr_cuda_cudnn_open(gr_dtype dtype, gr_cuda_cudnn **out) {
    (void)dtype;
    *out = NULL;
    return GR_OK;
}

void gr_cuda_cudnn_close(gr_cuda_cudnn *c) {
    (void)c;
}

gr_err gr_cuda_cudnn_attention(gr_backend *b, gr_lane lane, const gr_attention *a, bool backward, bool *done) {
    (void)b;
    (void)lane;
    (void)a;
    (void)backward;
    *done = false;
    return GR_OK;
}
