/* Gradients across ranks. The dense part is replicated: summed over the world. Expert gradients already hold the tokens
 * of the whole expert-parallel group, so they are summed over the ranks that hold the same experts. */
#include "grouter/optim.h"

#include <math.h>

gr_err gr_gradients_reduce(const gr_params *p, gr_comm *comm, float *gradients) {
    GR_TRY(comm->sum(comm, GR_WORLD, GR_F32, gradients, (size_t)p->n_dense));
    return comm->sum(comm, GR_EDP, GR_F32, gradients + p->n_dense, (size_t)(p->n_element - p->n_dense));
}

gr_err gr_gradients_norm(
    const gr_params *p, gr_backend *b, gr_comm *comm, const float *gradients, double *scratch, double *norm) {
    double squares[2]; /* dense, experts */
    GR_TRY(b->fill_zero(b, GR_LANE_COMPUTE, scratch, sizeof squares));
    GR_TRY(b->sum_squares(b, GR_LANE_COMPUTE, gradients, p->n_dense, scratch));
    GR_TRY(b->sum_squares(b, GR_LANE_COMPUTE, gradients + p->n_dense, p->n_element - p->n_dense, scratch + 1));
    GR_TRY(b->download(b, GR_LANE_COMPUTE, squares, scratch, sizeof squares));
    GR_TRY(b->sync(b));
    GR_TRY(comm->sum(comm, GR_EP, GR_F64, &squares[1], 1));
    *norm = sqrt(squares[0] + squares[1]);
    return GR_OK;
}
