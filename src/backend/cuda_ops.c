/* cuda_ops.c: the table of ops of backend cuda: launchers of kernels/ as ops. */
#include "kernels/kernels.h"

#include "cuda.h"

static gr_err ended(gr_err err) {
    gr_cuda_range_pop();
    return err;
}

/* `call` under a name that profilers show. */
#define RANGED(name, call) (gr_cuda_range_push(name), ended(call))
#define LAUNCH(name, call) RANGED(name, gr_cuda_check((call), (name)))

static gr_err gather_rows(gr_backend *b, gr_lane lane, const gr_gather *a) {
    return LAUNCH("gather_rows", gr_kernel_gather(b->lane_native(b, lane), b->dtype, a));
}

static gr_err sum_rows(gr_backend *b, gr_lane lane, const gr_sum *a) {
    return LAUNCH("sum_rows", gr_kernel_sum(b->lane_native(b, lane), b->dtype, a));
}

static gr_err gather_f32(gr_backend *b, gr_lane lane, const gr_gather *a) {
    return LAUNCH("gather_f32", gr_kernel_gather(b->lane_native(b, lane), GR_F32, a));
}

static gr_err sum_f32(gr_backend *b, gr_lane lane, const gr_sum *a) {
    return LAUNCH("sum_f32", gr_kernel_sum(b->lane_native(b, lane), GR_F32, a));
}

static gr_err pair_gates_forward(gr_backend *b, gr_lane lane, const gr_pair_gates *a) {
    return LAUNCH("pair_gates_forward", gr_kernel_pair_gates_forward(b->lane_native(b, lane), a));
}

static gr_err pair_gates_backward(gr_backend *b, gr_lane lane, const gr_pair_gates *a) {
    return LAUNCH("pair_gates_backward", gr_kernel_pair_gates_backward(b->lane_native(b, lane), a));
}

static gr_err router_forward(gr_backend *b, gr_lane lane, const gr_router_op *a) {
    void *scratch;
    GR_TRY(gr_cuda_scratch(b, lane, gr_kernel_router_forward_scratch(a), &scratch));
    return LAUNCH("router_forward", gr_kernel_router_forward(b->lane_native(b, lane), a, scratch));
}

static gr_err router_backward(gr_backend *b, gr_lane lane, const gr_router_op *a) {
    return LAUNCH("router_backward", gr_kernel_router_backward(b->lane_native(b, lane), b->dtype, a));
}

static gr_err embed_forward(gr_backend *b, gr_lane lane, const gr_embed *a) {
    const gr_gather g = {.n_row = a->n, .width = a->width, .in = a->table, .index = a->id, .out = a->out};
    return gather_rows(b, lane, &g);
}

static gr_err embed_backward(gr_backend *b, gr_lane lane, const gr_embed *a) {
    void *scratch;
    GR_TRY(gr_cuda_scratch(b, lane, gr_kernel_embed_backward_scratch(a), &scratch));
    return LAUNCH("embed_backward", gr_kernel_embed_backward(b->lane_native(b, lane), b->dtype, a, scratch));
}

static gr_err norm_forward(gr_backend *b, gr_lane lane, const gr_norm *a) {
    return LAUNCH("norm_forward", gr_kernel_norm_forward(b->lane_native(b, lane), b->dtype, a));
}

static gr_err norm_backward(gr_backend *b, gr_lane lane, const gr_norm *a) {
    void *scratch;
    GR_TRY(gr_cuda_scratch(b, lane, gr_kernel_norm_backward_scratch(a), &scratch));
    return LAUNCH("norm_backward", gr_kernel_norm_backward(b->lane_native(b, lane), b->dtype, a, scratch));
}

static gr_err head_norm_forward(gr_backend *b, gr_lane lane, const gr_head_norm *a) {
    return LAUNCH("head_norm_forward", gr_kernel_head_norm_forward(b->lane_native(b, lane), b->dtype, a));
}

static gr_err head_norm_backward(gr_backend *b, gr_lane lane, const gr_head_norm *a) {
    void *scratch;
    GR_TRY(gr_cuda_scratch(b, lane, gr_kernel_head_norm_backward_scratch(a), &scratch));
    return LAUNCH("head_norm_backward", gr_kernel_head_norm_backward(b->lane_native(b, lane), b->dtype, a, scratch));
}

static gr_err layer_norm_forward(gr_backend *b, gr_lane lane, const gr_layer_norm *a) {
    return LAUNCH("layer_norm_forward", gr_kernel_layer_norm_forward(b->lane_native(b, lane), b->dtype, a));
}

static gr_err layer_norm_backward(gr_backend *b, gr_lane lane, const gr_layer_norm *a) {
    void *scratch;
    GR_TRY(gr_cuda_scratch(b, lane, gr_kernel_layer_norm_backward_scratch(a), &scratch));
    return LAUNCH("layer_norm_backward", gr_kernel_layer_norm_backward(b->lane_native(b, lane), b->dtype, a, scratch));
}

static gr_err rope(gr_backend *b, gr_lane lane, const gr_rope *a) {
    return LAUNCH("rope", gr_kernel_rope(b->lane_native(b, lane), b->dtype, a));
}

static gr_err divergence(gr_backend *b, gr_lane lane, const gr_divergence *a) {
    void *scratch;
    GR_TRY(gr_cuda_scratch(b, lane, gr_kernel_divergence_scratch(a), &scratch));
    return LAUNCH("divergence", gr_kernel_divergence(b->lane_native(b, lane), a, scratch));
}

static gr_err decide(gr_backend *b, gr_lane lane, const gr_decide *a) {
    return LAUNCH("decide", gr_kernel_decide(b->lane_native(b, lane), a));
}

static gr_err adamw(gr_backend *b, gr_lane lane, const gr_adamw *a) {
    return LAUNCH("adamw", gr_kernel_adamw(b->lane_native(b, lane), b->dtype, a));
}

static gr_err round_weights(gr_backend *b, gr_lane lane, const float *from, void *to, int64_t n) {
    return LAUNCH("round_weights", gr_kernel_round_weights(b->lane_native(b, lane), b->dtype, from, to, n));
}

static gr_err sum_squares(gr_backend *b, gr_lane lane, const float *x, int64_t n, double *out) {
    void *scratch;
    GR_TRY(gr_cuda_scratch(b, lane, gr_kernel_sum_squares_scratch(n), &scratch));
    return LAUNCH("sum_squares", gr_kernel_sum_squares(b->lane_native(b, lane), x, n, out, scratch));
}

static gr_err gemm(gr_backend *b, gr_lane lane, const gr_gemm *a) {
    return RANGED("gemm", gr_cuda_gemm(b, lane, a));
}

static gr_err ffn_forward(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    return RANGED("ffn_forward", gr_cuda_ffn_forward(b, lane, a));
}

static gr_err ffn_backward(gr_backend *b, gr_lane lane, const gr_ffn *a) {
    return RANGED("ffn_backward", gr_cuda_ffn_backward(b, lane, a));
}

static gr_err attention_forward(gr_backend *b, gr_lane lane, const gr_attention *a) {
    return RANGED("attention_forward", gr_cuda_attention_forward(b, lane, a));
}

static gr_err attention_backward(gr_backend *b, gr_lane lane, const gr_attention *a) {
    return RANGED("attention_backward", gr_cuda_attention_backward(b, lane, a));
}

static gr_err cross_entropy(gr_backend *b, gr_lane lane, const gr_cross_entropy *a) {
    return RANGED("cross_entropy", gr_cuda_cross_entropy(b, lane, a));
}

void gr_cuda_set_ops(gr_backend *b) {
    b->gemm = gemm;
    b->peak = gr_cuda_peak;
    b->gather_rows = gather_rows;
    b->sum_rows = sum_rows;
    b->gather_f32 = gather_f32;
    b->sum_f32 = sum_f32;
    b->router_forward = router_forward;
    b->router_backward = router_backward;
    b->pair_gates_forward = pair_gates_forward;
    b->pair_gates_backward = pair_gates_backward;
    b->ffn_forward = ffn_forward;
    b->ffn_backward = ffn_backward;
    b->embed_forward = embed_forward;
    b->embed_backward = embed_backward;
    b->norm_forward = norm_forward;
    b->norm_backward = norm_backward;
    b->head_norm_forward = head_norm_forward;
    b->head_norm_backward = head_norm_backward;
    b->layer_norm_forward = layer_norm_forward;
    b->layer_norm_backward = layer_norm_backward;
    b->rope = rope;
    b->attention_forward = attention_forward;
    b->attention_backward = attention_backward;
    b->attention_scratch = gr_cuda_attention_scratch;
    b->cross_entropy = cross_entropy;
    b->divergence = divergence;
    b->decide = decide;
    b->adamw = adamw;
    b->round_weights = round_weights;
    b->sum_squares = sum_squares;
}
