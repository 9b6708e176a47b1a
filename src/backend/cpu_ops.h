/* cpu_ops.h: the ops that depend on the storage type of activations, written once for all types.
 *
 * A file that includes this header is compiled once per type; GR_CPU_ACT is then the header of that type. It defines
 * gr_act, its conversions, and GR_CPU(name), the name with the type behind it. Where a loop needs floats for longer
 * than one element (sums, probabilities), room of its own is taken only by types that are not floats: GR_ACT_ROOM. */
#ifndef GROUTER_BACKEND_CPU_OPS_H
#define GROUTER_BACKEND_CPU_OPS_H

#include GR_CPU_ACT

/* Any shape; act operands, c as c_dtype says. */
int GR_CPU(gemm)(const gr_cpu *cpu, const gr_gemm *g);

gr_err GR_CPU(gather_rows)(gr_backend *b, gr_lane lane, const gr_gather *a);
gr_err GR_CPU(sum_rows)(gr_backend *b, gr_lane lane, const gr_sum *a);
gr_err GR_CPU(router_forward)(gr_backend *b, gr_lane lane, const gr_router_op *a);
gr_err GR_CPU(router_backward)(gr_backend *b, gr_lane lane, const gr_router_op *a);
gr_err GR_CPU(ffn_forward)(gr_backend *b, gr_lane lane, const gr_ffn *a);
gr_err GR_CPU(ffn_backward)(gr_backend *b, gr_lane lane, const gr_ffn *a);
gr_err GR_CPU(embed_forward)(gr_backend *b, gr_lane lane, const gr_embed *a);
gr_err GR_CPU(embed_backward)(gr_backend *b, gr_lane lane, const gr_embed *a);
gr_err GR_CPU(norm_forward)(gr_backend *b, gr_lane lane, const gr_norm *a);
gr_err GR_CPU(norm_backward)(gr_backend *b, gr_lane lane, const gr_norm *a);
gr_err GR_CPU(head_norm_forward)(gr_backend *b, gr_lane lane, const gr_head_norm *a);
gr_err GR_CPU(head_norm_backward)(gr_backend *b, gr_lane lane, const gr_head_norm *a);
gr_err GR_CPU(layer_norm_forward)(gr_backend *b, gr_lane lane, const gr_layer_norm *a);
gr_err GR_CPU(layer_norm_backward)(gr_backend *b, gr_lane lane, const gr_layer_norm *a);
gr_err GR_CPU(rope)(gr_backend *b, gr_lane lane, const gr_rope *a);
gr_err GR_CPU(attention_forward)(gr_backend *b, gr_lane lane, const gr_attention *a);
gr_err GR_CPU(attention_backward)(gr_backend *b, gr_lane lane, const gr_attention *a);
gr_err GR_CPU(cross_entropy)(gr_backend *b, gr_lane lane, const gr_cross_entropy *a);
gr_err GR_CPU(adamw)(gr_backend *b, gr_lane lane, const gr_adamw *a);
gr_err GR_CPU(round_weights)(gr_backend *b, gr_lane lane, const float *from, void *to, int64_t n);

/* to[n] := from[n] rounded; nothing where activations are floats in place. */
static inline void gr_act_round(int64_t n, const float *from, gr_act *to) {
    if (!GR_ACT_ROOM)
        return;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        to[i] = gr_act_store(from[i]);
}

#endif
