/* dispatch.c: rows to their experts. */
#include "grouter/moe.h"

#include "moe/transfer.h"

gr_err gr_moe_dispatch(gr_moe *m, void *x) {
    const gr_plan *plan = m->plan;
    if (plan->n_rank == 1)
        return GR_OK;
    gr_gather rows = {
        .n_row = plan->n_send,
        .width = m->D,
        .in = x,
        .index = m->device.send_token,
        .out = m->send,
    };
    GR_TRY(m->backend->gather_rows(m->backend, GR_LANE_COMPUTE, &rows));
    uint8_t *received = (uint8_t *)x + (size_t)plan->N * (size_t)m->D * m->backend->elem_size;
    m->comm->traffic = GR_TRAFFIC_DISPATCH;
    return gr_moe_transfer(m, m->backend->dtype, m->D, m->send, plan->send_rows, received, plan->recv_rows);
}
