/* kernels.h: the CUDA kernels, as C sees them: one launcher per kernel, one family of kernels per .cu file.
 *
 * A launcher queues its work on `stream` (a cudaStream_t) and returns a cudaError_t value: 0 when it is queued,
 * cudaErrorInvalidValue for a shape it cannot do. It never waits and never allocates. Arrays are in device memory unless
 * said otherwise; their shapes and meaning are those of the argument structs in grouter/backend.h. `dtype` is the
 * storage type behind "act": GR_F32 or GR_BF16. Rows are found with 64-bit offsets. No rows: 0, nothing is launched.
 * Sums are in fixed order, none by atomics on floats, so the same call gives the same bits.
 *
 * Scratch is the caller's: `gr_kernel_<op>_scratch` (C of the host, kernels/<family>.c) says how many bytes; it need not
 * be zeroed, is aligned to 256 bytes and may be reused by the next call on the same stream. */
#ifndef GROUTER_KERNELS_H
#define GROUTER_KERNELS_H

#include "grouter/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------- rows.cu: rows moved and summed by index */

GR_MUST int gr_kernel_gather(void *stream, gr_dtype dtype, const gr_gather *a);
GR_MUST int gr_kernel_sum(void *stream, gr_dtype dtype, const gr_sum *a);
GR_MUST int gr_kernel_pair_gates_forward(void *stream, const gr_pair_gates *a);
GR_MUST int gr_kernel_pair_gates_backward(void *stream, const gr_pair_gates *a);

/* ---------------------------------------------------------------- ffn.cu: SwiGLU between an expert layer's products */

/* h to a. */
GR_MUST int gr_kernel_swiglu_forward(void *stream, gr_dtype dtype, const gr_ffn *a);
/* h and da to dh (in place of h), a and dgate (if it is there). */
GR_MUST int gr_kernel_swiglu_backward(void *stream, gr_dtype dtype, const gr_ffn *a);

/* ---------------------------------------------------------------- optimizer.cu: flat ranges */

GR_MUST int gr_kernel_adamw(void *stream, gr_dtype dtype, const gr_adamw *a);
GR_MUST int gr_kernel_round_weights(void *stream, gr_dtype dtype, const float *from, void *to, int64_t n);
#define GR_SQUARES_BLOCK 16384 /* elements per partial sum */
GR_MUST int gr_kernel_sum_squares(void *stream, const float *x, int64_t n, double *out, void *scratch); /* *out += */
size_t gr_kernel_sum_squares_scratch(int64_t n);

#ifdef __cplusplus
}
#endif

#endif
