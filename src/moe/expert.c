/* expert.c: this rank's experts over the plan's pairs. */
#include "grouter/moe.h"

/* What forward and backward share. The host knows the offsets too: it may launch one product per expert. */
static gr_ffn pairs_of(const gr_moe *m, const gr_expert_weights *w, const void *x, void *h) {
    return (gr_ffn){
        .n_expert = (int32_t)m->plan->E_local,
        .D = m->D,
        .F = m->F,
        .n_pair = m->plan->n_pair,
        .expert_offset = m->plan->expert_offset,
        .pair_row = m->device.pair_row,
        .pair_gate = m->pair_gate,
        .x = x,
        .w13 = w->w13,
        .w2 = w->w2,
        .h = h,
        .a = m->a,
        .tiles = m->device.tiles,
        .n_tile = m->plan->n_tile,
        .expert_order = m->device.expert_order,
        .device_offset = m->device.expert_offset,
    };
}

gr_err gr_moe_experts_forward(gr_moe *m, const gr_expert_weights *w, const void *x, void *h) {
    gr_ffn ffn = pairs_of(m, w, x, h);
    ffn.y = m->pair_out;
    return m->backend->ffn_forward(m->backend, GR_LANE_COMPUTE, &ffn);
}

gr_err gr_moe_experts_recompute(gr_moe *m, const gr_expert_weights *w, const void *x, void *h) {
    gr_ffn ffn = pairs_of(m, w, x, h);
    ffn.dx = m->pair_out;
    return m->backend->ffn_forward(m->backend, GR_LANE_COMPUTE, &ffn);
}

gr_err gr_moe_experts_backward(gr_moe *m, const gr_expert_weights *w, const void *x, const void *dy, void *h) {
    gr_ffn ffn = pairs_of(m, w, x, h);
    ffn.dy = dy;
    ffn.da = m->da;
    ffn.dw13 = w->dw13;
    ffn.dw2 = w->dw2;
    ffn.dx = m->pair_out;
    ffn.dgate = m->pair_dgate;
    return m->backend->ffn_backward(m->backend, GR_LANE_COMPUTE, &ffn);
}
