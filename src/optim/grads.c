/* Gradients across ranks. The dense part is replicated: summed over the world. Expert gradients already hold the tokens
 * of the whole expert-parallel group, so they are summed over the ranks that hold the same experts. */
#include "grouter/optim.h"

gr_err gr_gradients_reduce(const gr_params *p, gr_comm *comm, float *gradients) {
    comm->traffic = GR_TRAFFIC_GRADIENTS;
    GR_TRY(comm->sum(comm, GR_WORLD, GR_F32, gradients, (size_t)p->n_dense));
    comm->traffic = GR_TRAFFIC_GRADIENTS;
    return comm->sum(comm, GR_EDP, GR_F32, gradients + p->n_dense, (size_t)(p->n_element - p->n_dense));
}

gr_err gr_gradients_scatter(const gr_params *p, gr_comm *comm, float *gradients) {
    gr_share owned[2];
    gr_share_owned(p, comm, owned);
    comm->traffic = GR_TRAFFIC_GRADIENTS;
    GR_TRY(comm->reduce_scatter(comm, GR_WORLD, GR_F32, gradients, (size_t)owned[0].n));
    comm->traffic = GR_TRAFFIC_GRADIENTS;
    return comm->reduce_scatter(comm, GR_EDP, GR_F32, gradients + p->n_dense, (size_t)owned[1].n);
}

gr_err gr_gradients_scatter_part(const gr_params *p, gr_comm *comm, float *gradients, gr_share part) {
    const bool experts = part.first >= p->n_dense;
    gr_share owned[2];
    gr_share_owned(p, comm, owned);
    const gr_piece piece = {.shard = (size_t)owned[experts].n,
        .first = (size_t)(part.first - (experts ? p->n_dense : 0)),
        .n = (size_t)part.n};
    comm->traffic = GR_TRAFFIC_GRADIENTS;
    return comm->reduce_piece(comm, experts ? GR_EDP : GR_WORLD, GR_F32, gradients + part.first, piece);
}

gr_err gr_gradients_squares(
    const gr_params *p, gr_backend *b, const gr_comm *comm, const float *gradients, double *squares) {
    gr_share owned[2];
    gr_share_owned(p, comm, owned);
    GR_TRY(b->fill_zero(b, GR_LANE_COMPUTE, squares, sizeof *squares));
    for (int i = 0; i < 2; i++)
        GR_TRY(b->sum_squares(b, GR_LANE_COMPUTE, gradients + owned[i].first, owned[i].n, squares));
    return GR_OK;
}
