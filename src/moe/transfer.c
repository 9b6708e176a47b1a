/* transfer.c: one exchange of rows in the order of the backend's lanes. */
#include "moe/transfer.h"

gr_err gr_moe_transfer(gr_moe *m, gr_dtype dtype, int64_t width, const void *send, const uint32_t *send_rows,
    void *recv, const uint32_t *recv_rows) {
    GR_ASSERT(m->plan->n_rank == (uint32_t)m->comm->size[GR_EP], "plan of %u ranks, group of %d", m->plan->n_rank,
        m->comm->size[GR_EP]);
    double start_s = gr_time_s();
    gr_exchange x = {
        .group = GR_EP,
        .dtype = dtype,
        .width = (uint32_t)width,
        .send = send,
        .send_rows = send_rows,
        .recv = recv,
        .recv_rows = recv_rows,
    };
    GR_TRY(m->comm->exchange_start(m->comm, &x));
    GR_TRY(m->comm->exchange_wait(m->comm));
    m->exchange_ms += (gr_time_s() - start_s) * 1e3;
    return GR_OK;
}
