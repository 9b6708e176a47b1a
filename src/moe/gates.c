/* gates.c: learned gates to their pairs, and their gradients back. The plan's rows and lists, K floats a row. */
#include "grouter/moe.h"

#include "moe/transfer.h"

static gr_pair_gates pairs_of(const gr_moe *m) {
    return (gr_pair_gates){
        .n_row = (int64_t)m->plan->N + m->plan->n_recv,
        .K = m->plan->K,
        .n_pair = m->plan->n_pair,
        .pair_row = m->device.pair_row,
        .pair_slot = m->device.pair_slot,
    };
}

gr_err gr_moe_gates_dispatch(gr_moe *m, float *gate, float *pair_gate) {
    const gr_plan *plan = m->plan;
    gr_backend *b = m->backend;
    if (plan->n_rank > 1) {
        gr_gather rows = {
            .n_row = plan->n_send,
            .width = plan->K,
            .in = gate,
            .index = m->device.send_token,
            .out = m->gate_send,
        };
        GR_TRY(b->gather_f32(b, GR_LANE_COMPUTE, &rows));
        float *received = gate + (size_t)plan->N * plan->K;
        m->comm->traffic = GR_TRAFFIC_GATES;
        GR_TRY(gr_moe_transfer(m, GR_F32, plan->K, m->gate_send, plan->send_rows, received, plan->recv_rows));
    }
    gr_pair_gates pairs = pairs_of(m);
    pairs.gate = gate;
    pairs.pair_gate = pair_gate;
    return b->pair_gates_forward(b, GR_LANE_COMPUTE, &pairs);
}

gr_err gr_moe_gates_combine(gr_moe *m, float *dgate) {
    const gr_plan *plan = m->plan;
    gr_backend *b = m->backend;
    gr_pair_gates pairs = pairs_of(m);
    pairs.dpair_gate = m->pair_dgate;
    pairs.dgate = dgate;
    GR_TRY(b->pair_gates_backward(b, GR_LANE_COMPUTE, &pairs));
    if (plan->n_rank == 1)
        return GR_OK;
    const float *received = dgate + (size_t)plan->N * plan->K;
    m->comm->traffic = GR_TRAFFIC_GATES;
    GR_TRY(gr_moe_transfer(m, GR_F32, plan->K, received, plan->recv_rows, m->gate_send, plan->send_rows));
    gr_sum sums = {
        .n_row = plan->N,
        .width = plan->K,
        .base = dgate,
        .source = {m->gate_send},
        .offset = {m->device.token_return_offset},
        .index = {m->device.token_return},
        .out = dgate,
    };
    return b->sum_f32(b, GR_LANE_COMPUTE, &sums);
}
