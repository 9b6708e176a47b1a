/* combine.c: sums of expert results back to their tokens. */
#include "grouter/moe.h"

#include "moe/transfer.h"

/* One sum per received row goes back the way the row came: `send` then holds the returned rows in the order sent. */
static gr_err return_partial_sums(gr_moe *m) {
    const gr_plan *plan = m->plan;
    gr_sum sums = {
        .n_row = plan->n_recv,
        .width = m->D,
        .source = {m->pair_out},
        .offset = {m->device.row_pair_offset + plan->N},
        .index = {m->device.row_pair},
        .out = m->partial,
    };
    GR_TRY(m->backend->sum_rows(m->backend, GR_LANE_COMPUTE, &sums));
    m->comm->traffic = GR_TRAFFIC_COMBINE;
    return gr_moe_transfer(m, m->backend->dtype, m->D, m->partial, plan->recv_rows, m->send, plan->send_rows);
}

gr_err gr_moe_combine(gr_moe *m, const void *base, void *out) {
    const gr_plan *plan = m->plan;
    bool alone = plan->n_rank == 1;
    if (!alone)
        GR_TRY(return_partial_sums(m));
    gr_sum sums = {
        .n_row = plan->N,
        .width = m->D,
        .base = base,
        .source = {m->pair_out, alone ? NULL : m->send},
        .offset = {m->device.row_pair_offset, m->device.token_return_offset},
        .index = {m->device.row_pair, m->device.token_return},
        .out = out,
    };
    return m->backend->sum_rows(m->backend, GR_LANE_COMPUTE, &sums);
}
