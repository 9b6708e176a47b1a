/* kernels.h: the CUDA kernels, as C sees them: one launcher per kernel, one family of kernels per .cu file.
 *
 * A launcher queues its work on `stream` (a cudaStream_t) and returns a cudaError_t value: 0 when it is queued,
 * cudaErrorInvalidValue for a shape it cannot do. It never waits and never allocates. Arrays are in device memory
 * unless said otherwise; their shapes and meaning are those of the argument structs in grouter/backend.h. `dtype` is
 * the storage type behind "act": GR_F32 or GR_BF16. Rows are found with 64-bit offsets. No rows: 0, nothing is
 * launched. Sums are in fixed order, so the same call gives the same bits.
 *
 * Scratch is the caller's: `gr_kernel_<op>_scratch` (C of the host, kernels/<family>.c) says how many bytes; it need
 * not be zeroed, is aligned to 256 bytes and may be reused by the next call on the same stream.
 *
 * "Measured" in a kernel's head: on one H100 (80 GB HBM3, 2026-11-26), where a large copy moves 2.82 TB/s and a large
 * bf16 product runs at 896 TFLOP/s, by grouter-train bench kernels --backend cuda --shape mini-qwen3 --tokens 32768
 * --dtype bf16 */
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

/* ---------------------------------------------------------------- norm.cu, head_norm.cu, layer_norm.cu, rope.cu,
 * embed.cu What blocks take, and their scratch, is in kernels/geometry.h. */

GR_MUST int gr_kernel_norm_forward(void *stream, gr_dtype dtype, const gr_norm *a);
GR_MUST int gr_kernel_norm_backward(void *stream, gr_dtype dtype, const gr_norm *a, void *scratch);
size_t gr_kernel_norm_backward_scratch(const gr_norm *a);

GR_MUST int gr_kernel_head_norm_forward(void *stream, gr_dtype dtype, const gr_head_norm *a);
GR_MUST int gr_kernel_head_norm_backward(void *stream, gr_dtype dtype, const gr_head_norm *a, void *scratch);
size_t gr_kernel_head_norm_backward_scratch(const gr_head_norm *a);

GR_MUST int gr_kernel_layer_norm_forward(void *stream, gr_dtype dtype, const gr_layer_norm *a);
GR_MUST int gr_kernel_layer_norm_backward(void *stream, gr_dtype dtype, const gr_layer_norm *a, void *scratch);
size_t gr_kernel_layer_norm_backward_scratch(const gr_layer_norm *a);

GR_MUST int gr_kernel_rope(void *stream, gr_dtype dtype, const gr_rope *a);

/* Forward is gr_kernel_gather. */
GR_MUST int gr_kernel_embed_backward(void *stream, gr_dtype dtype, const gr_embed *a, void *scratch);
size_t gr_kernel_embed_backward_scratch(const gr_embed *a);

/* ---------------------------------------------------------------- attention.cu: what is between the products */

/* Rows [first, first + n_query) of one window, of query heads h * (H / H_kv) + member for the n_head key/value heads h
 * from kv_head on. Arrays [n_head, n_query, ld], n_key columns of a row in use; aligned to 16 bytes, ld a multiple
 * of 8. */
typedef struct gr_attend_block {
    int64_t window, kv_head, n_head, member, first, n_query, n_key, ld;
    float *scores;  /* q k^T */
    float *dscores; /* dout v^T, backward only */
    void *p, *ds;   /* act: results, which may lie on scores and dscores if these are of the same type */
} gr_attend_block;

/* p and a->lse from the scores. */
GR_MUST int gr_kernel_attend_softmax(void *stream, gr_dtype dtype, const gr_attention *a, const gr_attend_block *b);
/* p and ds, the gradient of q k^T, from scores, dscores and a->lse. */
GR_MUST int gr_kernel_attend_gradient(void *stream, gr_dtype dtype, const gr_attention *a, const gr_attend_block *b);
/* to[t * ld + h * head_dim + c] (act) = from[h, t, c], fp32 [n_head, T, head_dim]. */
GR_MUST int gr_kernel_attend_round(
    void *stream, gr_dtype dtype, const gr_attention *a, int64_t n_head, const float *from, void *to, int64_t ld);

/* ---------------------------------------------------------------- flash_forward.cu, flash_backward.cu: attention in
 * bf16 */

/* Heads of bf16 that can be read 16 bytes at a time: head_dim is a multiple of 8, every row that is there begins at 16
 * bytes. */
bool gr_kernel_attend_aligned(const gr_attention *a);
/* Whether these kernels do the op: bf16, aligned heads of up to 128, T < 2^22, at most 2^31 - 1 blocks, and of
 * documents both arrays or none. */
bool gr_kernel_flash_fits(gr_dtype dtype, const gr_attention *a);
/* Bytes of shared memory that a block needs at most: more than GPUs of 8.6, 8.9 and 12.x have for heads above 48. */
size_t gr_kernel_flash_shared(int64_t head_dim);
GR_MUST int gr_kernel_flash_forward(void *stream, const gr_attention *a);
GR_MUST int gr_kernel_flash_backward(void *stream, const gr_attention *a, void *scratch);
size_t gr_kernel_flash_backward_scratch(const gr_attention *a);

/* ---------------------------------------------------------------- cross_entropy.cu */

/* Logits of n tokens (act [n, V]) become scale * (softmax - onehot of target), zeros for target -1; loss[i] is the loss
 * of token i, 0 where ignored. WITHOUT a gradient only the zeros are written. */
typedef struct gr_token_losses {
    int64_t n, V;
    const int32_t *target; /* [n] */
    float scale;
    bool gradient;
    void *logits;
    double *loss; /* [n] */
} gr_token_losses;
GR_MUST int gr_kernel_token_losses(void *stream, gr_dtype dtype, const gr_token_losses *a);

/* ---------------------------------------------------------------- router.cu, divergence.cu, sums.cu */

GR_MUST int gr_kernel_router_forward(void *stream, const gr_router_op *a, void *scratch);
size_t gr_kernel_router_forward_scratch(const gr_router_op *a);
GR_MUST int gr_kernel_router_backward(void *stream, gr_dtype dtype, const gr_router_op *a);

GR_MUST int gr_kernel_divergence(void *stream, const gr_divergence *a, void *scratch);
size_t gr_kernel_divergence_scratch(const gr_divergence *a);

/* *out += factor * (sum of x[n], in fixed order). */
GR_MUST int gr_kernel_sum_tokens(void *stream, const double *x, int64_t n, double factor, double *out);

/* ---------------------------------------------------------------- ffn.cu: SwiGLU between an expert layer's products */

/* h to a. */
GR_MUST int gr_kernel_swiglu_forward(void *stream, gr_dtype dtype, const gr_ffn *a);
/* h and da to dh (in place of h), a and dgate (if it is there). */
GR_MUST int gr_kernel_swiglu_backward(void *stream, gr_dtype dtype, const gr_ffn *a);

/* ---------------------------------------------------------------- grouped.cu: all experts' products in one launch
 * By mma.sync, bf16 only. */

/* Whether these kernels do the op: bf16, tiles and what follows them are there, D and F are multiples of 8, none
 * of 2 D, 2 F and n_pair is near 2^31, and all arrays that are there begin at 16 bytes. */
bool gr_kernel_grouped_fits(gr_dtype dtype, const gr_ffn *a);

/* x to h, and with y also to a. */
GR_MUST int gr_kernel_grouped_up(void *stream, const gr_ffn *a);
/* a to y. */
GR_MUST int gr_kernel_grouped_down(void *stream, const gr_ffn *a);
/* dy and h to dh (in place of h), a and dgate (if it is there). da is scratch. */
GR_MUST int gr_kernel_grouped_down_input(void *stream, const gr_ffn *a);
/* The end of down_input, where dgate is there: its shares [n_part][n_pair], as floats in da, added up in order. */
GR_MUST int gr_kernel_grouped_gates(void *stream, const gr_ffn *a, int64_t n_part);
/* dh (in h) to dx. */
GR_MUST int gr_kernel_grouped_input(void *stream, const gr_ffn *a);
/* dw2 += from dy and a; dw13 += from dh (in h) and x. Nothing of experts without pairs is touched. */
GR_MUST int gr_kernel_grouped_down_weights(void *stream, const gr_ffn *a);
GR_MUST int gr_kernel_grouped_up_weights(void *stream, const gr_ffn *a);

/* ---------------------------------------------------------------- wgmma_rows.cu, wgmma_weights.cu: the same for sm_90a
 * By wgmma, on devices of compute capability 9.0 only. */

/* Whether these kernels do the op: as gr_kernel_grouped_fits. */
bool gr_kernel_wgmma_fits(gr_dtype dtype, const gr_ffn *a);
/* Columns of the tiles of a product with n columns, which are those of n_part matrices side by side: 128, 192 or 256;
 * what leaves the least to do. */
int gr_wgmma_columns(int64_t n, int n_part);

GR_MUST int gr_kernel_wgmma_up(void *stream, const gr_ffn *a);
GR_MUST int gr_kernel_wgmma_down(void *stream, const gr_ffn *a);
GR_MUST int gr_kernel_wgmma_down_input(void *stream, const gr_ffn *a);
GR_MUST int gr_kernel_wgmma_input(void *stream, const gr_ffn *a);
GR_MUST int gr_kernel_wgmma_down_weights(void *stream, const gr_ffn *a);
GR_MUST int gr_kernel_wgmma_up_weights(void *stream, const gr_ffn *a);

/* What does the op where kernels up to `asked` (not AUTO) may: the last of the enum that fit it. */
gr_experts gr_kernel_experts_choose(gr_experts asked, gr_dtype dtype, const gr_ffn *a);

/* ---------------------------------------------------------------- optimizer.cu: flat ranges */

GR_MUST int gr_kernel_decide(void *stream, const gr_decide *a);
GR_MUST int gr_kernel_adamw(void *stream, gr_dtype dtype, const gr_adamw *a);
GR_MUST int gr_kernel_round_weights(void *stream, gr_dtype dtype, const float *from, void *to, int64_t n);
#define GR_SQUARES_BLOCK 16384 /* elements per partial sum */
GR_MUST int gr_kernel_sum_squares(void *stream, const float *x, int64_t n, double *out, void *scratch); /* *out += */
size_t gr_kernel_sum_squares_scratch(int64_t n);

#ifdef __cplusplus
}
#endif

#endif
