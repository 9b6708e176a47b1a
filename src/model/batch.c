/* A micro-batch on its way to the ops: everything they read of it goes in one upload, while COMPUTE may still work on
 * the micro-batch before. Where host code and ops share memory nothing is copied. */
#include "internal.h"

#include <stdlib.h>

size_t gr_model_parcel_largest(const gr_model *m) {
    size_t most = m->parcel[0].size;
    for (int i = 0; i < m->n_router; i++)
        most = m->router[i].parcel.size > most ? m->router[i].parcel.size : most;
    return most;
}

gr_err gr_model_parcels_open(gr_model *m) {
    free(m->parcel_host);
    GR_TRY(gr_alloc(&m->parcel_host, gr_model_parcel_largest(m), 1, "packed plans"));
    for (int i = 0; i < 2; i++)
        m->parcel[i].host = m->parcel_host;
    for (int i = 0; i < m->n_router; i++)
        m->router[i].parcel.host = m->parcel_host;
    return GR_OK;
}

/* Where each position's document begins and ends in its window. */
static void find_documents(gr_model *m, const uint32_t *token) {
    for (int64_t window = 0; m->document_first && window < m->N; window += m->T) {
        const uint32_t *t = token + window;
        uint32_t *first = m->document_first + window, *end = m->document_end + window, T = (uint32_t)m->T;
        for (uint32_t i = 0; i < T; i++)
            first[i] = i == 0 ? 0 : t[i - 1] == (uint32_t)m->config.document_end ? i : first[i - 1];
        for (uint32_t i = T; i-- > 0;)
            end[i] = i + 1 == T || t[i] == (uint32_t)m->config.document_end ? i + 1 : end[i + 1];
    }
}

static batch_arrays pack(gr_model *m, gr_parcel *p, const gr_batch *b) {
    size_t N = (size_t)m->N, n_id = b->ids ? N * m->limits.K : 0, n_gate = b->pair_gate ? b->plan->n_pair : 0;
    return (batch_arrays){.token = gr_parcel_add(p, b->token, N * sizeof *b->token),
        .target = gr_parcel_add(p, b->target, N * sizeof *b->target),
        .ids = gr_parcel_add(p, b->ids, n_id * sizeof *b->ids),
        .documents = {.first = gr_parcel_add(p, m->document_first, N * sizeof *m->document_first),
            .end = gr_parcel_add(p, m->document_end, N * sizeof *m->document_end)},
        .plan = b->plan ? gr_moe_plan_add(p, b->plan) : (gr_plan){0},
        .pair_gate = gr_parcel_add(p, b->pair_gate, n_gate * sizeof *b->pair_gate)};
}

/* With learned gates each layer puts its own plan and gates there (gate.c). */
static void moe_set(gr_model *m, const gr_batch *b) {
    m->moe = (gr_moe){.backend = m->backend,
        .comm = m->comm,
        .plan = b->plan,
        .device = m->now.plan,
        .pair_gate = m->now.pair_gate,
        .D = m->D,
        .F = m->config.moe_intermediate_size,
        .send = m->send,
        .partial = m->partial,
        .pair_out = m->pair_out,
        .a = m->pair_a,
        .da = m->pair_da,
        .gate_send = m->gate_send,
        .pair_dgate = m->pair_dgate};
}

/* Two parcels take turns. SIDE waits here for all that COMPUTE has so far, the micro-batch before this one and older:
 * so the next upload goes into a parcel that nobody reads any more, and need not wait for this micro-batch. */
gr_err gr_model_batch_send(gr_model *m, const gr_batch *b, double loss_scale) {
    gr_parcel *p = &m->parcel[m->parcel_next];
    m->parcel_next ^= 1;
    m->batch = b;
    m->loss_scale = loss_scale;
    find_documents(m, b->token);
    m->now = pack(m, p, b);
    moe_set(m, b);
    GR_TRY(gr_parcel_send(p));
    return m->backend->wait(m->backend, GR_LANE_SIDE, GR_LANE_COMPUTE);
}

gr_err gr_model_plan_send(gr_model *m, router_saved *s) {
    s->device = gr_moe_plan_add(&s->parcel, &s->plan);
    GR_TRY(m->backend->wait(m->backend, GR_LANE_SIDE, GR_LANE_COMPUTE));
    return gr_parcel_send(&s->parcel);
}
